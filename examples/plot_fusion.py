"""
Prompts, random words, and both
===============================

:class:`~clipad_sklearn.PromptDetector` compares images with hand-written prompts,
:class:`~clipad_sklearn.RandomWordDetector` learns from random words, and
:class:`~clipad_sklearn.FusionDetector` combines detectors.
"""

import matplotlib.pyplot as plt

from clipad_sklearn import (
    CLIPImageEncoder,
    FusionDetector,
    PromptDetector,
    PromptSet,
    RandomWordDetector,
)
from clipad_sklearn.datasets import make_defect_images

data = make_defect_images(120, size=112, random_state=0)
embeddings = CLIPImageEncoder("tiny").transform(data.images)

# %%
# Your own prompts
# ----------------
# A :class:`~clipad_sklearn.PromptSet` holds states of a normal and of an anomalous
# object, and sentences to put them in.

prompts = PromptSet(
    normal_states=["flawless {}", "{} without damage"],
    anomalous_states=["scratched {}", "stained {}", "{} with a crack"],
    templates=["a photo of a {}.", "a close-up photo of the {}."],
)
for text in prompts.format("bottle")[1]:
    print(text)

# %%
# All of them
# -----------
# Fusion works on anomaly probabilities, so the temperature of the prompts matters
# there, while it changes nothing about the ranking of the prompts alone.

words = RandomWordDetector("tiny", n_pairs=1000, random_state=0)
ensemble = PromptDetector("tiny", prompts="winclip")
members = [("words", words), ("prompts", ensemble)]
detectors = {
    "two prompts": PromptDetector("tiny", prompts="clip-ac"),
    "own prompts": PromptDetector("tiny", prompts=prompts),
    "WinCLIP's prompts": ensemble,
    "CLIP-AD's prompts": PromptDetector("tiny", prompts="clip-ad"),
    "random words": words,
    "fusion, mean": FusionDetector(members),
    "fusion, maximum": FusionDetector(members, method="max"),
    "fusion, harmonic": FusionDetector(members, method="harmonic"),
    "fusion, mean of margins": FusionDetector(members, method="logit_mean"),
}
scores = {
    name: detector.fit(embeddings).score(embeddings, data.target)
    for name, detector in detectors.items()
}
fig, ax = plt.subplots(figsize=(6.5, 3.8), layout="constrained")
bars = ax.barh(list(scores), list(scores.values()), color=["C0"] * 5 + ["C1"] * 4)
ax.bar_label(bars, fmt="%.3f", padding=3)
ax.axvline(0.5, color="black", lw=1, ls=":")
ax.set(xlabel="AUROC (0.5 is chance)", xlim=(0.4, 1))
ax.invert_yaxis()
plt.show()

# %%
# A name for each image
# ---------------------
# Where it is known what an image shows, say so: one name for all, or one per image.
# ``data.family`` has the name of each object here.

detector = PromptDetector("tiny").fit()
for names in (None, "product", data.family):
    known = names if isinstance(names, str) or names is None else "one per image"
    value = detector.score(embeddings, data.target, class_name=names)
    print(f"class_name={known!r}: AUROC {value:.3f}")
