"""
Beyond one machine
==================

:func:`~clipad_sklearn.score_images` cuts a list of images into partitions and scores
these on the workers of a Dask cluster. Each partition becomes one Parquet file, written
complete or not at all. Whatever stops the run, the next one resumes where it
stopped.
"""

# %%
# Photos in files
# ---------------
# Workers read the images themselves, so they need paths. One file is not an image.

import os
import tempfile

import matplotlib.pyplot as plt
import pandas as pd
from dask.distributed import Client
from PIL import Image
from sklearn.pipeline import make_pipeline

from clipad_sklearn import (
    CLIPImageEncoder,
    PromptDetector,
    calibrate_threshold,
    list_images,
    score_images,
)
from clipad_sklearn.datasets import make_defect_images

folder = tempfile.TemporaryDirectory()
photos = os.path.join(folder.name, "photos")
os.mkdir(photos)
data = make_defect_images(120, size=112, random_state=0)
for number, pixels in enumerate(data.images):
    Image.fromarray(pixels).save(os.path.join(photos, f"{number:03d}.png"))
with open(os.path.join(photos, "empty.png"), "w"):
    pass
paths = list_images(photos)

# %%
# A detector with a threshold
# ---------------------------
# It is fitted before, on one machine: what it learned is small. The threshold comes
# from some good photos, of which one in twenty may be called anomalous.

detector = make_pipeline(CLIPImageEncoder("tiny"), PromptDetector("tiny")).fit(None)
good = make_defect_images(60, anomaly_fraction=0, size=112, random_state=1).images
calibrate_threshold(detector, good, max_false_alarm=0.05)

# %%
# On a cluster
# ------------
# Here it is a cluster of two threads in this process, which starts anywhere. For the
# cores of one machine use ``Client(threads_per_worker=1)`` below
# ``if __name__ == "__main__":``, and for many machines the address of a scheduler,
# ``Client("tcp://scheduler:8786")``. Without ``client`` the partitions run one after
# another in this process, for which Dask is not needed.

out = os.path.join(folder.name, "scores")
with Client(
    processes=False, n_workers=2, threads_per_worker=1, dashboard_address=":0"
) as client:
    summary = score_images(detector, paths, out=out, client=client, partition_size=25)
print({name: value for name, value in summary.items() if name != "folder"})

# %%
# The data set
# ------------
# Any reader of Parquet takes the folder as a whole. Rows are in the order of the list
# of images. The one that could not be read has the reason instead of numbers.

scores = pd.read_parquet(out)
scores["path"] = scores["path"].map(os.path.basename)
print(scores.sort_values("margin")[["path", "margin", "verdict"]].head())
print(scores.loc[scores["error"] != "", ["path", "error"]])

# %%
# Resumed
# -------
# Called again with the same detector and list, it runs nothing that is finished: here
# one file was lost, and one photo was repaired.

os.remove(os.path.join(out, "part-00000002.parquet"))
Image.fromarray(data.images[0]).save(os.path.join(photos, "empty.png"))
summary = score_images(detector, paths, out=out, partition_size=25)
print(f"{summary.n_partitions_run} of {summary.n_partitions} partitions were run")

# %%
# Another detector in the same folder would be an error: the folder knows whose scores
# it holds.

try:
    detector[-1].offset_ += 1
    score_images(detector, paths, out=out, partition_size=25)
except ValueError as error:
    print(str(error).replace(folder.name, "..."))

# %%
# All scores, with the threshold.

scores = pd.read_parquet(out)
fig, ax = plt.subplots(figsize=(6.5, 3.5), layout="constrained")
for verdict, color in (("normal", "C0"), ("anomalous", "C3")):
    chosen = scores.loc[scores["verdict"] == verdict, "margin"]
    ax.hist(chosen, bins=20, color=color, alpha=0.7, label=verdict)
ax.axvline(scores["threshold"].dropna().iloc[0], color="black", label="threshold")
ax.set(xlabel="margin (higher is more normal)", ylabel="number of photos")
ax.legend()
plt.show()
folder.cleanup()
