"""
What damage looked like on old products
=======================================

Nobody has defect images of a new product. But many have labelled images of the products
before it. :class:`~clipad_sklearn.DamageDirectionDetector` learns from these in which
direction an embedding moves when a product is damaged.
"""

import matplotlib.pyplot as plt
import numpy as np

from clipad_sklearn import (
    CLIPImageEncoder,
    DamageDirectionDetector,
    PromptDetector,
    calibrate_threshold,
)
from clipad_sklearn.datasets import make_defect_images

products = ["hex nut", "gear", "screw", "button", "pill", "bottle"]
X, y, groups = [], [], []
for product in products:
    data = make_defect_images(60, size=112, families=product, random_state=0)
    X.append(CLIPImageEncoder("tiny").transform(data.images))
    y.append(data.target)
    groups += [product] * len(data.images)
X, y, groups = np.concatenate(X), np.concatenate(y), np.array(groups)

# %%
# What to expect of a new product
# -------------------------------
# Each product in turn is taken for the new one, and the direction is learned from the
# others. This is also what ``product_auroc_`` holds. Words know no product at all. The
# embedded CLIP was trained on generated images whose damage lies along one direction,
# so here words do as well. The benchmarks page compares both on real photos.

old = DamageDirectionDetector().fit(X, y, groups)
words = PromptDetector("tiny").fit(None)
by_words = [words.score(X[groups == p], y[groups == p]) for p in old.products_]
places = np.arange(len(old.products_))
fig, ax = plt.subplots(figsize=(6.5, 3.5), layout="constrained")
ax.barh(places - 0.2, by_words, 0.4, label="words")
ax.barh(places + 0.2, old.product_auroc_, 0.4, label="the other products")
ax.axvline(0.5, color="black", lw=1, ls=":")
ax.set(xlabel="AUROC (0.5 is chance)", xlim=(0, 1), yticks=places)
ax.set_yticklabels(old.products_)
ax.invert_yaxis()
fig.legend(loc="outside upper right", ncols=2)
plt.show()

# %%
# The new product
# ---------------
# It only has good images, which set its threshold: margins of another product are
# shifted by a number that nobody knows beforehand.

new = make_defect_images(120, size=112, families="washer", random_state=0)
X_new = CLIPImageEncoder("tiny").transform(new.images)
good = np.flatnonzero(new.target == 1)
rest = np.setdiff1d(np.arange(len(X_new)), good[:30])
detector = calibrate_threshold(old, X_new[good[:30]], max_false_alarm=0.1)
margins, anomalous = detector.score_samples(X_new[rest]), new.target[rest] == -1
fig, ax = plt.subplots(figsize=(6.5, 3), layout="constrained")
bins = np.linspace(margins.min(), margins.max(), 25)
ax.hist([margins[~anomalous], margins[anomalous]], bins, label=["normal", "anomalous"])
ax.axvline(detector.offset_, color="black", lw=1, label="threshold")
ax.set(xlabel="margin (higher is more normal)", ylabel="images")
ax.legend()
plt.show()
called = detector.predict(X_new[rest]) == -1
print(
    f"called anomalous: {called[anomalous].mean():.0%} of the defective images, ",
    end="",
)
print(f"{called[~anomalous].mean():.0%} of the good ones")
