"""
In code that does not know this library
=======================================

A detector is used through scikit-learn's names only, so code of yours can take any
detector without importing this library, and without a class to inherit from. Here: an
inspection line that counts rejects and says when they are too many.
"""

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import joblib
import matplotlib.pyplot as plt
import numpy as np
from scipy.stats import binom
from sklearn.ensemble import IsolationForest
from sklearn.pipeline import make_pipeline

from clipad_sklearn import (
    CLIPImageEncoder,
    RandomWordDetector,
    SDPDetector,
    calibrate_threshold,
)
from clipad_sklearn.datasets import make_defect_images

# %%
# The code of the line
# --------------------
# Imagine it in a package of its own. It asks a detector for `predict`, which gives -1
# for what is to be rejected, and for nothing else.


class Count(NamedTuple):
    """What became of one batch."""

    n_photos: int
    n_rejects: int
    alarm: bool


def inspect(
    detector: Any, batches: Iterable[Sequence[Any]], *, expected: float
) -> Iterator[Count]:
    """Count the rejects of each batch; raise an alarm where they are too many.

    Too many are as many as would come less than once in a thousand batches if the rate
    of rejects were the expected one.
    """
    for photos in batches:
        n_rejects = int(np.sum(detector.predict(photos) == -1))
        chance = binom.sf(n_rejects - 1, len(photos), expected)
        yield Count(len(photos), n_rejects, bool(chance < 0.001))


# %%
# A detector for it
# -----------------
# It learns from random words; 60 good photos of the line set its threshold, and a
# second set of good photos shows which rate of rejects to expect. It is saved where the
# photos for the threshold are, and loaded where the line is.


def photos_of_line(n, defects, random_state):
    """Generate photos of one product, of which this share has a defect."""
    return make_defect_images(
        n,
        families=["brushed metal"],
        defects=["crack", "stain", "hole"],
        anomaly_fraction=defects,
        severity=(0.5, 1),
        size=112,
        random_state=random_state,
    ).images


detector = make_pipeline(
    CLIPImageEncoder("tiny"),
    RandomWordDetector("tiny", n_pairs=1000, random_state=0),
).fit(None)
calibrate_threshold(detector, photos_of_line(60, 0, 0), max_false_alarm=0.05)
expected = float(np.mean(detector.predict(photos_of_line(100, 0, 1)) == -1))
print(f"good photos that are rejected: {expected:.0%}")

folder = Path(tempfile.mkdtemp())
joblib.dump(detector, folder / "line.joblib")
print(f"saved: {(folder / 'line.joblib').stat().st_size / 1e6:.1f} MB")

# %%
# The line runs
# -------------
# 5 of 100 photos have a defect, until a tool breaks. Only files that you trust should
# be loaded so.

shares = [0.05] * 8 + [0.6] * 4
batches = [photos_of_line(40, share, 10 + i) for i, share in enumerate(shares)]

loaded = joblib.load(folder / "line.joblib")
counts = list(inspect(loaded, batches, expected=expected + 0.05))
for number, count in enumerate(counts, start=1):
    alarm = "  ALARM" if count.alarm else ""
    print(
        f"batch {number:2d}: {count.n_rejects:2d} of {count.n_photos} rejected{alarm}"
    )

# %%
# The same figures as a chart.

fig, ax = plt.subplots(figsize=(6.5, 3.2), layout="constrained")
numbers = np.arange(1, len(counts) + 1)
colors = ["tab:red" if count.alarm else "tab:blue" for count in counts]
ax.bar(numbers, [count.n_rejects for count in counts], color=colors)
ax.axvline(8.5, color="black", ls="--", lw=1)
ax.annotate("the tool breaks", (8.4, ax.get_ylim()[1] * 0.95), ha="right", va="top")
ax.set(xlabel="batch of 40 photos", ylabel="rejects", xticks=numbers)
plt.show()

# %%
# Any other detector
# ------------------
# `inspect` takes whatever has `predict`: a detector of this library with anomaly maps,
# or one of scikit-learn that learns from good photos.

good = photos_of_line(60, 0, 0)
others = {
    "SDPDetector": calibrate_threshold(SDPDetector("tiny").fit(), good),
    "IsolationForest": make_pipeline(
        CLIPImageEncoder("tiny"), IsolationForest(contamination=0.05, random_state=0)
    ).fit(good),
}
for name, other in others.items():
    rejects = [count.n_rejects for count in inspect(other, batches, expected=0.1)]
    print(f"{name}: {rejects}")
