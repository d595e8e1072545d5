"""
Prompts and ensembles of prompts
================================

:class:`~clipad_sklearn.PromptDetector` compares images with prompts that say normal and
anomalous. Which prompts, and how many of them become one vector, are parameters.
"""

# %%
# Your own prompts
# ----------------
# A :class:`~clipad_sklearn.PromptSet` holds states of a normal and of an anomalous
# object, and sentences to put them in. Every state goes with every sentence.

import matplotlib.pyplot as plt
import pandas as pd
from sklearn.model_selection import GridSearchCV

from clipad_sklearn import CLIPImageEncoder, PromptDetector, PromptSet
from clipad_sklearn.datasets import make_defect_images
from clipad_sklearn.model_selection import ZeroShotSplit
from clipad_sklearn.plotting import PromptDisplay

own = PromptSet(
    normal_states=["flawless {}", "{} without damage"],
    anomalous_states=["scratched {}", "stained {}", "{} with a crack"],
    templates=["a photo of a {}.", "a close-up photo of the {}."],
)
normal, anomalous = own.format("bottle")
print(*normal, "", *anomalous, sep="\n")

# %%
# Presets
# -------
# ``"clip-ac"`` is one prompt for each state, ``"winclip"`` and ``"clip-ad"`` are the
# ensembles of the papers of these names. The prompts of a state become one vector:
# their mean, or what CLIP-AD calls representative vector selection (``aggregation``).
# Both are parameters, so a search compares them. It needs some labelled images.

data = make_defect_images(120, size=112, random_state=0)
embeddings = CLIPImageEncoder("tiny").transform(data.images)

aggregations = ["mean", "kde", "pca", "dbscan"]
grid = [
    {"prompts": ["winclip", "clip-ad"], "aggregation": aggregations},
    # Too few prompts for the clusters of DBSCAN; with one there is nothing to choose.
    {"prompts": [own], "aggregation": ["mean", "kde", "pca"]},
    {"prompts": ["clip-ac"], "aggregation": ["mean"]},
]
search = GridSearchCV(PromptDetector("tiny"), grid, cv=ZeroShotSplit())
search.fit(embeddings, data.target)
results = pd.DataFrame(search.cv_results_["params"])
results["prompts"] = results["prompts"].where(results["prompts"] != own, "own")
results["AUROC"] = search.cv_results_["mean_test_score"]
table = results.pivot(index="prompts", columns="aggregation", values="AUROC")
table = table.loc[["clip-ac", "own", "winclip", "clip-ad"], aggregations]

fig, ax = plt.subplots(figsize=(6.5, 3.2), layout="constrained")
table.plot.barh(ax=ax, width=0.8, legend=False)
ax.axvline(0.5, color="black", lw=1, ls=":")
ax.set(xlabel="AUROC (0.5 is chance)", ylabel="", xlim=(0.4, 1))
ax.invert_yaxis()
fig.legend(title="aggregation", loc="outside right center")
plt.show()

# %%
# The object
# ----------
# ``class_name`` says what the images show: nothing (``"object"``), the same for all, or
# one name for each image. Whether that helps depends on whether the CLIP knows the
# names.

detector = PromptDetector("tiny").fit()
for title, names in (
    ("object", "object"),
    ("product", "product"),
    ("its name", data.family),
):
    value = detector.score(embeddings, data.target, class_name=names)
    print(f"{title}: AUROC {value:.3f}")

# %%
# Where the prompts lie
# ---------------------
# Texts and images of a CLIP lie apart. What counts is the direction from normal to
# anomalous prompts, and whether it is that of the images too. The two axes are those of
# the largest spread, which need not be that direction.

fig, ax = plt.subplots(figsize=(6.5, 4.5), layout="constrained")
PromptDisplay.from_estimator("tiny", data.images, data.target, prompts="clip-ad", ax=ax)
plt.show()
