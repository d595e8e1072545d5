"""
Random words and prompts together
=================================

:class:`~clipad_sklearn.RandomWordDetector` learns from random words,
:class:`~clipad_sklearn.PromptDetector` compares images with hand-written prompts, and
:class:`~clipad_sklearn.FusionDetector` combines detectors.
"""

import matplotlib.pyplot as plt

from clipad_sklearn import (
    CLIPImageEncoder,
    FusionDetector,
    PromptDetector,
    RandomWordDetector,
)
from clipad_sklearn.datasets import make_defect_images

data = make_defect_images(120, size=112, random_state=0)
embeddings = CLIPImageEncoder("tiny").transform(data.images)

# %%
# Ways to combine
# ---------------
# The images are encoded once, for all detectors. Fusion works on anomaly probabilities,
# so the temperature of the prompts matters there, while it changes nothing about the
# ranking of the prompts alone. ``"logit_mean"`` is the mean of margins instead.

words = RandomWordDetector("tiny", n_pairs=1000, random_state=0)
prompts = PromptDetector("tiny", prompts="winclip")
members = [("words", words), ("prompts", prompts)]
detectors = {
    "random words": words,
    "prompts": prompts,
    "fusion, mean": FusionDetector(members),
    "fusion, maximum": FusionDetector(members, method="max"),
    "fusion, harmonic": FusionDetector(members, method="harmonic"),
    "fusion, mean of margins": FusionDetector(members, method="logit_mean"),
}
scores = {
    name: detector.fit(embeddings).score(embeddings, data.target)
    for name, detector in detectors.items()
}
fig, ax = plt.subplots(figsize=(6.5, 3), layout="constrained")
bars = ax.barh(list(scores), list(scores.values()), color=["C0"] * 2 + ["C1"] * 4)
ax.bar_label(bars, fmt="%.3f", padding=3)
ax.axvline(0.5, color="black", lw=1, ls=":")
ax.set(xlabel="AUROC (0.5 is chance)", xlim=(0.4, 1))
ax.invert_yaxis()
plt.show()

# %%
# Do they see the same?
# ---------------------
# Fusion can only help where the members disagree.

x, y = (
    detectors[name].score_samples(embeddings) for name in ("random words", "prompts")
)
is_bad = data.target == -1
fig, ax = plt.subplots(figsize=(5, 4), layout="constrained")
for which, color, label in ((~is_bad, "C0", "good"), (is_bad, "C3", "with a defect")):
    ax.scatter(x[which], y[which], 20, c=color, alpha=0.6, label=label)
ax.set(xlabel="margin of random words", ylabel="margin of prompts")
ax.legend()
plt.show()

# %%
# In a Pipeline
# -------------
# Members are reached by their names, such as ``fusiondetector__words__n_pairs`` in a
# search, and weighted: here prompts count three times as much.

weighted = FusionDetector(members, weights=[1, 3]).fit(embeddings)
print(f"AUROC: {weighted.score(embeddings, data.target):.3f}")
