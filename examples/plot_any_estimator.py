"""
Any estimator of scikit-learn on CLIP's embeddings
==================================================

:class:`~clipad_sklearn.CLIPImageEncoder` is an ordinary transformer: it returns a
matrix, and any estimator of scikit-learn can follow it. With some photos of your own
product, that may be all you need.
"""

# %%
# Two products
# ------------
# Of each there are photos to learn from and others to judge by, half of them with a
# defect. The model has seen neither these products nor these defects.

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.neighbors import LocalOutlierFactor
from sklearn.pipeline import make_pipeline

from clipad_sklearn import CLIPImageEncoder, PromptDetector
from clipad_sklearn.datasets import make_defect_images
from clipad_sklearn.metrics import auroc

clip = "tiny"


def photos_of(product, n, random_state):
    """Generate photos of one product, half of them with a defect."""
    defects = {"button": ["dent"], "cookie": ["bend", "smear"]}[product]
    return make_defect_images(
        n,
        families=[product],
        defects=defects,
        severity=(0.3, 1),
        size=112,
        random_state=random_state,
    )


train, test = photos_of("button", 120, 0), photos_of("button", 120, 1)

# %%
# Good photos: how far from the others?
# -------------------------------------
# :class:`~sklearn.neighbors.LocalOutlierFactor` with ``novelty=True`` learns from good
# photos. It has the methods of our detectors, because both follow scikit-learn:
# ``score_samples`` is higher for what is more normal, ``predict`` gives +1 or -1, and
# ``offset_`` is the threshold.

good = [image for image, y in zip(train.images, train.target, strict=True) if y == 1]
detector = make_pipeline(
    CLIPImageEncoder(clip), LocalOutlierFactor(n_neighbors=5, novelty=True)
)
detector.fit(good[:20])
value = auroc(test.target, -detector.score_samples(test.images))
print(f"20 good photos: AUROC {value:.3f}")

# %%
# A few labels: a classifier
# --------------------------
# :class:`~sklearn.linear_model.LogisticRegression` needs photos of both kinds. A larger
# ``C`` than the default suits embeddings of unit length, whose features are small.
# ``decision_function`` is higher for ``classes_[1]``, here +1, normal.

classifier = make_pipeline(
    CLIPImageEncoder(clip), LogisticRegression(C=100, max_iter=1000)
)
classifier.fit(train.images[:20], train.target[:20])
value = auroc(test.target, -classifier.decision_function(test.images))
print(f"20 labelled photos: AUROC {value:.3f}")

# %%
# How many photos?
# ----------------
# Photos are encoded once, and then the estimators learn in no time. Each number of
# photos is drawn ten times. Prompts, which need no photo, are the line to beat.

encoder = CLIPImageEncoder(clip)
numbers = [4, 8, 16, 32]
rng = np.random.default_rng(0)
rows = []
for product in ("button", "cookie"):
    train, test = photos_of(product, 120, 0), photos_of(product, 120, 1)
    X, X_test = encoder.transform(train.images), encoder.transform(test.images)
    normal, anomalous = (np.flatnonzero(train.target == y) for y in (1, -1))
    value = PromptDetector(clip).fit(None).score(X_test, test.target)
    rows += [(product, n, "prompts (no photo)", value) for n in numbers]
    for n in numbers:
        for _ in range(10):
            chosen = rng.choice(normal, n, replace=False)
            factor = LocalOutlierFactor(n_neighbors=min(5, n - 1), novelty=True)
            scores = factor.fit(X[chosen]).score_samples(X_test)
            value = auroc(test.target, -scores)
            rows.append((product, n, "good photos, LocalOutlierFactor", value))

            half = rng.choice(anomalous, n // 2, replace=False)
            chosen = np.concatenate([chosen[: n // 2], half])
            regression = LogisticRegression(C=100, max_iter=1000)
            regression.fit(X[chosen], train.target[chosen])
            value = auroc(test.target, -regression.decision_function(X_test))
            rows.append((product, n, "labelled photos, LogisticRegression", value))

results = pd.DataFrame(rows, columns=["product", "n", "method", "AUROC"])
table = results.groupby(["product", "method", "n"])["AUROC"].mean().unstack()
print(table.round(3).to_string())

# %%
# The same as curves; the bands hold eight of ten draws.

fig, axes = plt.subplots(1, 2, figsize=(9, 3.8), sharey=True, layout="constrained")
for ax, (product, part) in zip(axes, results.groupby("product"), strict=True):
    for method, values in part.groupby("method"):
        by_n = values.groupby("n")["AUROC"]
        [line] = ax.plot(numbers, by_n.mean(), label=method)
        low, high = by_n.quantile(0.1), by_n.quantile(0.9)
        ax.fill_between(numbers, low, high, color=line.get_color(), alpha=0.15)
    ax.axhline(0.5, color="black", lw=1, ls=":")
    ax.set(title=product, xlabel="photos to learn from", xticks=numbers)
axes[0].set(ylabel="AUROC (0.5 is chance)", ylim=(0.4, 1))
fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
plt.show()

# %%
# Which defect is it?
# -------------------
# A question that no anomaly detector answers, and a classifier does. Five kinds of
# defect, 120 photos, and the same encoder:

kinds = ["crack", "stain", "hole", "sticker", "burn mark"]
data = make_defect_images(
    120,
    families="textures",
    defects=kinds,
    anomaly_fraction=1.0,
    severity=(0.4, 1),
    size=112,
    random_state=2,
)
accuracy = cross_val_score(
    LogisticRegression(C=100, max_iter=1000),
    encoder.transform(data.images),
    data.defect,
    cv=5,
)
print(f"accuracy {accuracy.mean():.2f}, where guessing has {1 / len(kinds):.2f}")

# %%
# What to take home: try it on your own photos. Here a few labels are worth a little
# more than prompts on the button, and good photos alone less. On the cookie, where
# prompts are no better than chance, good photos help a little and labels do not. No
# figure of ``"tiny"`` says how this would be with a real CLIP.
