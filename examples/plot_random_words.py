"""
What random words teach
=======================

How :class:`~clipad_sklearn.RandomWordDetector` works, step by step and with pictures.
"""

# %%
# Prompts
# -------
# Pairs of prompts with the same random words; only the state differs. The words mean
# nothing, so all that a classifier can learn is the difference between the states.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.decomposition import PCA

from clipad_sklearn import OpenCLIP, RandomWordDetector, random_word_prompts
from clipad_sklearn.datasets import make_defect_images

normal, anomalous = random_word_prompts(1000, random_state=0)
for pair in list(zip(normal, anomalous, strict=True))[:3]:
    print(*pair, sep="\n", end="\n\n")

# %%
# Embeddings
# ----------
# CLIP puts texts and images into one space, but not into one place of it: they lie
# apart, which is known as the modality gap. Two principal components show it.

clip = OpenCLIP("tiny")
data = make_defect_images(120, size=112, random_state=0)
is_bad = data.target == -1
images = clip.encode_image(data.images)
texts = clip.encode_text(normal + anomalous)
text_is_bad = np.repeat([False, True], len(normal))

plane = PCA(n_components=2).fit(np.concatenate([texts[::10], images]))
fig, ax = plt.subplots(figsize=(6, 4.5), layout="constrained")
for points, bad, marker, kind in (
    (texts, text_is_bad, ".", "prompts"),
    (images, is_bad, "x", "images"),
):
    for which, color, state in ((~bad, "C0", "normal"), (bad, "C3", "anomalous")):
        x, y = plane.transform(points[which]).T
        size = 12 if kind == "prompts" else 30
        label = f"{kind}, {state}"
        ax.scatter(x, y, size, c=color, marker=marker, alpha=0.5, label=label)
ax.set(xlabel="first component", ylabel="second component")
ax.legend()
plt.show()

# %%
# Scores
# ------
# A network learns to separate the two kinds of prompts, and is then shown images. Its
# margins on the prompts are far apart. Those on images are not where those of prompts
# are, which is why zero is not a threshold, but the order of images still says which
# are suspicious.

detector = RandomWordDetector("tiny", n_pairs=1000, random_state=0).fit(texts)
fig, axes = plt.subplots(2, 1, figsize=(6, 5), sharex=True, layout="constrained")
for ax, points, bad, title in (
    (axes[0], texts, text_is_bad, "prompts"),
    (axes[1], images, is_bad, "images"),
):
    margins = detector.score_samples(points)
    bins = np.histogram_bin_edges(margins, 20)
    ax.hist(margins[~bad], bins, color="C0", alpha=0.6, label="normal")
    ax.hist(margins[bad], bins, color="C3", alpha=0.6, label="anomalous")
    ax.axvline(0, color="black", lw=1)
    ax.set(title=title, ylabel="number")
axes[0].legend(loc="upper center")
axes[1].set_xlabel("margin (higher is more normal)")
plt.show()
