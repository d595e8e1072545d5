"""
Search over the augmentation
============================

The words, their number, the states, the templates and what learns from them are
parameters like any other, so
:class:`~sklearn.model_selection.GridSearchCV` searches over them. Every prompt and
every image is encoded once, because embeddings are cached.
"""

# %%
# A few labelled images
# ---------------------
# A search needs labels to separate good settings from bad ones: -1 for anomalous and +1
# for normal, or 1 and 0.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline

from clipad_sklearn import CLIPImageEncoder, FeedForwardClassifier, RandomWordDetector
from clipad_sklearn.datasets import make_defect_images
from clipad_sklearn.model_selection import ZeroShotSplit
from clipad_sklearn.plotting import SearchDisplay

data = make_defect_images(200, size=112, random_state=1)

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
        ("detect", RandomWordDetector("tiny", random_state=0)),
    ]
)
grid = {
    "detect__n_pairs": [30, 100, 300, 1000],
    "detect__word_source": ["letters", "vocabulary"],
    "detect__classifier": [FeedForwardClassifier((64,)), LinearDiscriminantAnalysis()],
}
search = GridSearchCV(detector, grid, cv=ZeroShotSplit()).fit(data.images, data.target)
print(search.best_params_)
print(f"AUROC: {search.best_score_:.3f}")

# %%
# The whole grid
# --------------
# From chance to a perfect ranking, so that small differences look small.

fig, ax = plt.subplots(figsize=(6.5, 4), layout="constrained")
SearchDisplay.from_estimator(search, "detect__n_pairs", ax=ax, xscale="log")
ax.set(ylim=(0.5, 1), xlabel="pairs of prompts")
plt.show()

# %%
# The best of several scores on the same images is optimistic, because it was chosen by
# them. So it is measured again on other images, which may also be easier or harder:

other = make_defect_images(200, size=112, random_state=2)
spread = np.ptp(search.cv_results_["mean_test_score"])
print(f"Spread over the grid: {spread:.3f}")
print(f"AUROC on other images: {search.score(other.images, other.target):.3f}")
