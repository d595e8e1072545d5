"""
Learn from photos
=================

A few good photos of a product say more than words. And a folder of unlabelled photos
can judge itself, as long as most of them are good.
"""

# %%
# Photos of one product
# ---------------------
# Generated ones: twelve good photos, and sixteen to be judged, half of them defective.

import matplotlib.pyplot as plt
import numpy as np

from clipad_sklearn import ReferenceDetector
from clipad_sklearn.datasets import make_defect_images
from clipad_sklearn.plotting import AnomalyMapDisplay

good = make_defect_images(
    12, families="perforated sheet", anomaly_fraction=0, random_state=0
).images
data = make_defect_images(
    16,
    families="perforated sheet",
    defects=["stain", "paint spot", "hole", "sticker"],
    severity=(0.6, 1.0),
    random_state=1,
)

# %%
# Good photos as references
# -------------------------
# Each patch of a photo is compared with the patches of the good ones. The zero of the
# margin is three spreads below the median of the good photos, each compared with the
# others.

detector = ReferenceDetector("tiny").fit(good)
print("margins of the good photos:", np.round(detector.reference_scores_, 1))
print(f"AUROC {detector.score(data.images, data.target):.3f}")

worst = np.argsort(detector.score_samples(data.images))[:4]
AnomalyMapDisplay.from_estimator(
    detector,
    [data.images[i] for i in worst],
    masks=[data.masks[i] for i in worst],
)
plt.show()

# %%
# More good photos can be added later; that equals one ``fit`` of all of them.

detector = ReferenceDetector("tiny").fit(good[:6]).partial_fit(good[6:])
print(f"AUROC {detector.score(data.images, data.target):.3f}")

# %%
# A folder that judges itself
# ---------------------------
# With a share as ``n_neighbors``, a patch has to have its like in so many of the other
# photos. A photo is never compared with itself.

folder = [*good, *data.images[:4]]
mutual = ReferenceDetector("tiny", n_neighbors=0.3)
verdicts = mutual.fit_predict(folder)
print("defective:", np.flatnonzero(data.target[:4] == -1) + len(good))
print("called anomalous:", np.flatnonzero(verdicts == -1))
