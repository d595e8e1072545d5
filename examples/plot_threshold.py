"""
From scores to verdicts
=======================

Scores rank images without any labelled image. Verdicts need a threshold, and a good one
needs images: a guess of how many are bad, some good ones, or a few of both.
"""

# %%
# Two halves
# ----------
# One to set thresholds with, the other to see what they are worth.

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from clipad_sklearn import CLIPImageEncoder, PromptDetector, calibrate_threshold
from clipad_sklearn.datasets import make_defect_images

encoder = CLIPImageEncoder("tiny")
first, second = (
    make_defect_images(200, anomaly_fraction=0.25, size=112, random_state=seed)
    for seed in (0, 1)
)
X, X_new = encoder.transform(first.images), encoder.transform(second.images)
good = X[first.target == 1]

# %%
# Four thresholds
# ---------------
# ``calibrate_threshold`` sets ``offset_`` of a fitted detector in place. It also takes
# a whole Pipeline, and images.


def detector(**params):
    return PromptDetector("tiny", **params).fit(X)


detectors = {
    "zero (uncalibrated)": detector(),
    "contamination=0.25": detector(contamination=0.25),
    "good images, 5 % false alarms": calibrate_threshold(detector(), good),
    "good and bad images, F1": calibrate_threshold(detector(), X, first.target),
}

# %%
# On new images
# -------------
# The false alarms are the share of good images that are called anomalous, the misses
# the share of anomalous ones that are called normal.

scores = detectors["zero (uncalibrated)"].score_samples(X_new)
is_bad = second.target == -1
rows = {}
for name, fitted in detectors.items():
    flagged = scores < fitted.offset_
    rows[name] = {
        "threshold": fitted.offset_,
        "false alarms": np.mean(flagged[~is_bad]),
        "misses": np.mean(~flagged[is_bad]),
    }
table = pd.DataFrame(rows).T.round(2)
print(table)

# %%
# The two error rates trade against each other, and the threshold chooses.

fig, ax = plt.subplots(figsize=(7, 4.5), layout="constrained")
bins = np.histogram_bin_edges(scores, 30)
ax.hist(scores[~is_bad], bins, color="C0", alpha=0.6, label="good images")
ax.hist(scores[is_bad], bins, color="C3", alpha=0.6, label="images with a defect")
styles = ("-", "--", "-.", ":")
for (name, fitted), style in zip(detectors.items(), styles, strict=True):
    ax.axvline(fitted.offset_, color="black", ls=style, lw=1.5, label=name)
ax.set(xlabel="margin (higher is more normal)", ylabel="number of new images")
fig.legend(loc="outside lower center", ncols=2)
plt.show()
