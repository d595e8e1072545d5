"""
Search over the augmentation
============================

The words, their number, the states and the templates are parameters like any other, so
:class:`~sklearn.model_selection.GridSearchCV` searches over them. Every prompt and
every image is encoded once, because embeddings are cached.
"""

# %%
# A few labelled images
# ---------------------
# A search needs labels to tell good settings from bad ones: -1 for anomalous and +1 for
# normal, or 1 and 0.

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline

from clipad_sklearn import CLIPImageEncoder, FeedForwardClassifier, RandomWordDetector
from clipad_sklearn.datasets import make_defect_images
from clipad_sklearn.model_selection import ZeroShotSplit

data = make_defect_images(100, size=112, random_state=1)

# %%
# The search
# ----------
# Two things to know. First, ``cv``: the detector learns nothing from images, so
# :class:`~clipad_sklearn.model_selection.ZeroShotSplit` judges each setting on all of
# them. The default of ``GridSearchCV`` would cut the images into consecutive folds, and
# a fold with only good images has no AUROC. Second, ``scoring``: left out, it is the
# AUROC for labels of either kind. ``scoring="roc_auc"`` turns it upside down when 1
# stands for anomalous.

detector = Pipeline(
    [
        ("encode", CLIPImageEncoder("tiny")),
        (
            "detect",
            RandomWordDetector(
                "tiny",
                classifier=FeedForwardClassifier((64,), min_steps=100),
                random_state=0,
            ),
        ),
    ]
)
grid = {
    "detect__n_pairs": [30, 100, 300],
    "detect__n_words": [1, (1, 5)],
    "detect__word_source": ["letters", "vocabulary"],
}
search = GridSearchCV(detector, grid, cv=ZeroShotSplit()).fit(data.images, data.target)
print(search.best_params_)
print(f"AUROC: {search.best_score_:.3f}")

# %%
# The whole grid
# --------------

results = pd.DataFrame(search.cv_results_)
fig, ax = plt.subplots(figsize=(6.5, 4), layout="constrained")
columns = ["param_detect__n_words", "param_detect__word_source"]
for (words, source), group in results.groupby(columns, sort=False):
    label = f"{source}, {words} words" if words != 1 else f"{source}, 1 word"
    ax.plot(group["param_detect__n_pairs"], group["mean_test_score"], "o-", label=label)
ax.set(xscale="log", xlabel="pairs of prompts", ylabel="AUROC")
ax.set_xticks(grid["detect__n_pairs"], grid["detect__n_pairs"])
ax.minorticks_off()
ax.legend()
plt.show()

# %%
# The best of several scores on the same images is optimistic, because it was chosen by
# them. On other images:

other = make_defect_images(100, size=112, random_state=2)
print(f"AUROC on other images: {search.score(other.images, other.target):.3f}")
print(f"Spread over the grid: {np.ptp(results['mean_test_score']):.3f}")
