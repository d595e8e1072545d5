"""
Where the defect is
===================

Three detectors say not only whether there is a defect, but where. All take images,
not embeddings, and all give maps at the size of the image.
"""

# %%
# Photos with defects
# -------------------
# Generated ones come with masks, which only the metrics and the figures see.

import matplotlib.pyplot as plt

from clipad_sklearn import RandomWordDetector, SDPDetector, WinCLIPDetector
from clipad_sklearn.datasets import make_defect_images
from clipad_sklearn.metrics import auroc
from clipad_sklearn.plotting import AnomalyMapDisplay

data = make_defect_images(
    5,
    families="textures",
    defects=["stain", "paint spot", "hole", "sticker", "burn mark"],
    severity=(0.6, 1.0),
    anomaly_fraction=0.8,
    random_state=0,
)

# %%
# Windows scored by random words
# ------------------------------
# :class:`~clipad_sklearn.WinCLIPDetector` encodes windows of the image one by one, and
# any detector on embeddings can score them. With random words, nobody has to say what
# the images show. (1,000 pairs of prompts, a tenth of the default, to be quick.)

words = RandomWordDetector("tiny", n_pairs=1000, random_state=0)
windows = WinCLIPDetector("tiny", scorer=words).fit()
AnomalyMapDisplay.from_estimator(windows, data.images, masks=data.masks)
plt.show()

# %%
# The outlines are the true masks. All maps of a figure share one colour scale.
#
# Patches compared with prompts
# -----------------------------
# :class:`~clipad_sklearn.SDPDetector` needs little more than one pass of the image. Its
# filter ``sigma`` counts pixels of the model's input: 8 by default, less for this small
# model.

patches = SDPDetector("tiny", sigma=4).fit()
AnomalyMapDisplay.from_estimator(patches, data.images, masks=data.masks)
plt.show()

# %%
# How good are they?
# ------------------
# The metrics judge pixels when they are given masks and maps.

for name, detector in (("windows", windows), ("patches", patches)):
    maps = detector.anomaly_maps(data.images)
    print(f"{name}: pixel AUROC {auroc(data.masks, maps):.3f}")

# %%
# From maps to masks
# ------------------
# ``pixel_offset_`` is the threshold of maps. ``pixel_contamination`` sets it such that
# this share of the pixels of the images given to ``fit`` is anomalous.

patches.set_params(pixel_contamination=0.05).fit(data.images)
masks = patches.predict_masks(data.images)
print("share of anomalous pixels:", [f"{mask.mean():.3f}" for mask in masks])
