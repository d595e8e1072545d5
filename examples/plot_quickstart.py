"""
A detector without a training image
===================================

A detector is a Pipeline of two steps: one encodes images with CLIP, the other has
learned from random words what "normal" and "damaged" mean. It never sees a training
image, and does not know what the images show.
"""

# %%
# Some photos
# -----------
# Generated ones, so that this runs anywhere. Yours may be paths, PIL images or arrays;
# :func:`~clipad_sklearn.list_images` lists a folder. ``target`` is -1 for images with a
# defect and +1 for good ones. The detector does not get to see it.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.pipeline import make_pipeline

from clipad_sklearn import CLIPImageEncoder, RandomWordDetector
from clipad_sklearn.datasets import make_defect_images
from clipad_sklearn.metrics import auroc

data = make_defect_images(80, size=112, random_state=0)

# %%
# The detector
# ------------
# ``"tiny"`` ships with the package. For real work name a real CLIP in both places, such
# as ``"ViT-B-16-plus-240/laion400m_e32"``. ``fit(None)`` because it takes no images to
# learn from words; 1,000 pairs of prompts, a tenth of the default, to be quick.

detector = make_pipeline(
    CLIPImageEncoder("tiny"),
    RandomWordDetector("tiny", n_pairs=1000, random_state=0),
)
detector.fit(None)

# %%
# Scores
# ------
# Higher is more normal, as in all of scikit-learn's outlier detectors. The metrics of
# this package take anomaly scores, hence the minus.

scores = detector.score_samples(data.images)
print(f"AUROC: {auroc(data.target, -scores):.3f}")

# %%
# The most suspicious images come first.

order = np.argsort(scores)
fig, axes = plt.subplots(2, 6, figsize=(10, 4.2), layout="constrained")
for row, indices, title in zip(
    axes, (order[:6], order[-6:]), ("most suspicious", "most normal"), strict=True
):
    row[0].set_ylabel(title)
    for ax, i in zip(row, indices, strict=True):
        ax.imshow(data.images[i])
        ax.set_title(f"{scores[i]:.1f}\n{data.defect[i] or 'good'}", fontsize=9)
        ax.set(xticks=[], yticks=[])
plt.show()

# %%
# The ranking is what a zero-shot score is good for. Where to draw the line between
# normal and anomalous is another question: see
# :ref:`sphx_glr_auto_examples_plot_threshold.py`.
