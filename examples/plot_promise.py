"""
A threshold that keeps its promise
==================================

At most one good photo in ten is to be flagged, on photos that nobody has seen yet. The
threshold comes from good photos that are held out, within `fit` or by hand.
"""

# %%
# What will be compared
# ---------------------
# Embeddings of images with and without defects, and a detector that learns from words.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.base import clone
from sklearn.metrics import make_scorer, recall_score
from sklearn.model_selection import (
    StratifiedKFold,
    cross_validate,
    train_test_split,
)

from clipad_sklearn import (
    CalibratedThresholdDetector,
    CLIPImageEncoder,
    PromptDetector,
    calibrate_threshold,
)
from clipad_sklearn.datasets import make_defect_images
from clipad_sklearn.metrics import error_bounds

data = make_defect_images(240, anomaly_fraction=0.25, size=112, random_state=0)
X, y = CLIPImageEncoder("tiny").transform(data.images), data.target

# %%
# Within fit
# ----------
# Half of the good images of each training part set the threshold. scikit-learn's
# `recall_score` of the class +1 is the share of good images that are not flagged, and
# that of -1 the share of anomalies that are.

detector = PromptDetector("tiny")
calibrated = CalibratedThresholdDetector(
    detector, max_false_alarm=0.1, calibration_size=0.5, random_state=0
)
folds = StratifiedKFold(5, shuffle=True, random_state=0)
scoring = {
    "kept": make_scorer(recall_score, pos_label=1),
    "found": make_scorer(recall_score, pos_label=-1),
}
within = cross_validate(calibrated, X, y, cv=folds, scoring=scoring)

# %%
# By hand
# -------
# The same in a loop: split, fit, calibrate, judge.

kept, found, scores, offsets = [], [], [], []
for train, test in folds.split(X, y):
    good = X[train][y[train] == 1]
    taught, held_out = train_test_split(good, test_size=0.5, random_state=0)
    fitted = clone(detector).fit(taught)
    calibrate_threshold(fitted, held_out, max_false_alarm=0.1)
    verdicts = fitted.predict(X[test])
    kept.append(np.mean(verdicts[y[test] == 1] == 1))
    found.append(np.mean(verdicts[y[test] == -1] == -1))
    scores.append(fitted.score_samples(X[test]))
    offsets.append(fitted.offset_)

np.testing.assert_array_equal(within["test_kept"], kept)
np.testing.assert_array_equal(within["test_found"], found)
print(f"false alarms on average: {1 - np.mean(kept):.1%}")
print(f"anomalies found: {np.mean(found):.1%}")

# %%
# What one fold can say
# ---------------------
# A fold has 36 good images, so its own rate is a rough measure; the interval says how
# rough.

fig, ax = plt.subplots(figsize=(7, 3.5), layout="constrained")
for i, (_, test) in enumerate(folds.split(X, y)):
    false_alarms, escapes = error_bounds(y[test], scores[i], offsets[i])
    for shift, color, label, rate in (
        (-0.1, "C0", "false alarms", false_alarms),
        (0.1, "C3", "escapes", escapes),
    ):
        ax.plot([i + shift] * 2, [rate.low, rate.high], color=color, lw=2)
        ax.plot(i + shift, rate.rate, "o", color=color, label=None if i else label)
ax.axhline(0.1, color="black", ls="--", lw=1, label="promised false alarms")
ax.set(xlabel="fold", ylabel="rate, with 95 % interval", xticks=range(5))
ax.legend()
plt.show()
