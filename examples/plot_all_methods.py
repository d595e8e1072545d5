"""
All methods side by side
========================

Every detector on the same images: how well it ranks images, how well it finds the
pixels, and how long it takes. For data sets on your disk, with intervals, several seeds
and resumption, there is the command ``clipad benchmark``; see :doc:`/benchmarks`.
"""

# %%
# Images with masks
# -----------------
# Half of them have a defect. The layers of
# :class:`~clipad_sklearn.SDPPlusDetector` are trained on others.

import time

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from sklearn.pipeline import make_pipeline

from clipad_sklearn import (
    CLIPImageEncoder,
    FeedForwardClassifier,
    FusionDetector,
    PromptDetector,
    RandomWordDetector,
    SDPDetector,
    SDPPlusDetector,
    WinCLIPDetector,
)
from clipad_sklearn.datasets import make_defect_images
from clipad_sklearn.metrics import auroc, pro

clip = "tiny"
data = make_defect_images(100, size=112, random_state=3)
auxiliary = make_defect_images(100, size=112, random_state=4)

# %%
# The detectors
# -------------
# Those on embeddings stand behind an encoder; the others take images themselves.

words = RandomWordDetector(
    clip, n_pairs=1000, classifier=FeedForwardClassifier((64,)), random_state=0
)
prompts = PromptDetector(clip)
fusion = FusionDetector([("words", words), ("prompts", prompts)])
layers = SDPPlusDetector(
    clip, temperature=0.07, learning_rate=3e-3, n_epochs=20, random_state=0
)
detectors = {
    "random words": make_pipeline(CLIPImageEncoder(clip), words),
    "prompts": make_pipeline(CLIPImageEncoder(clip), prompts),
    "fusion": make_pipeline(CLIPImageEncoder(clip), fusion),
    "WinCLIP": WinCLIPDetector(clip),
    "WinCLIP, random words": WinCLIPDetector(clip, scorer=words),
    "SDP": SDPDetector(clip),
    "SDP+": layers,
}

# %%
# The comparison
# --------------
# Nothing is learned from the images that are scored, so all of them are scored.

rows = []
for name, detector in detectors.items():
    start = time.perf_counter()
    if detector is layers:
        detector.fit(auxiliary.images, auxiliary.masks)
    else:
        detector.fit(None)
    row = {"method": name, "fit, s": time.perf_counter() - start}
    row["AUROC"] = auroc(data.target, -detector.score_samples(data.images))
    if hasattr(detector, "anomaly_maps"):
        start = time.perf_counter()
        maps = detector.anomaly_maps(data.images)
        seconds = (time.perf_counter() - start) / len(data.images)
        row |= {"map, ms": 1e3 * seconds, "pixel AUROC": auroc(data.masks, maps)}
        row["PRO"] = pro(data.masks, maps)
    rows.append(row)
table = pd.DataFrame(rows).set_index("method")
print(table.round(3).to_string(na_rep=""))

# %%
# Times are of the machine that built this page, and embeddings that one method needed
# are there for the next: the first fit paid for all random words.

metrics = ["AUROC", "pixel AUROC", "PRO"]
fig, ax = plt.subplots(figsize=(7, 4), layout="constrained")
place = np.arange(len(table))
for k, metric in enumerate(metrics):
    ax.barh(place + 0.27 * (k - 1), table[metric], height=0.25, label=metric)
ax.set(yticks=place, xlim=(0, 1), xlabel="higher is better")
ax.set_yticklabels(table.index)
ax.invert_yaxis()
fig.legend(loc="outside upper center", ncols=3)
plt.show()

# %%
# Read it with care
# -----------------
# All scores of images come from the same few prompts, and 100 images are too few to
# separate them. Maps differ more. And this is ``"tiny"``, on drawings like those that
# it was trained on: with another CLIP, or other images, the order may differ.
