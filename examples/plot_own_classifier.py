"""
Another classifier instead of the network
=========================================

:class:`~clipad_sklearn.RandomWordDetector` trains a four-layer network on the
embeddings of its prompts. Any classifier of scikit-learn that has `decision_function`
or `predict_proba` can take its place, a whole Pipeline too.
"""

import matplotlib.pyplot as plt
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestCentroid
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from clipad_sklearn import CLIPImageEncoder, FeedForwardClassifier, RandomWordDetector
from clipad_sklearn.datasets import make_defect_images

data = make_defect_images(100, size=112, random_state=0)
embeddings = CLIPImageEncoder("tiny").transform(data.images)

# %%
# Here the images are encoded first and the detector is used on its own, on embeddings.
# In a Pipeline with the encoder, the parameter is reached as
# ``randomworddetector__classifier``.

classifiers = {
    "network (default)": FeedForwardClassifier(),
    "small network": FeedForwardClassifier((64,)),
    "logistic regression": LogisticRegression(),
    "scaled logistic regression": make_pipeline(StandardScaler(), LogisticRegression()),
    "linear discriminant": LinearDiscriminantAnalysis(),
    "nearest centroid": NearestCentroid(),
    "support vectors": SVC(),
    "random forest": RandomForestClassifier(50),
}
scores = {}
for name, classifier in classifiers.items():
    detector = RandomWordDetector(
        "tiny", classifier=classifier, n_pairs=1000, random_state=0
    )
    scores[name] = detector.fit().score(embeddings, data.target)

# %%
# `score` is the AUROC.

fig, ax = plt.subplots(figsize=(6.5, 3.5), layout="constrained")
bars = ax.barh(list(scores), list(scores.values()), color="C0")
ax.bar_label(bars, fmt="%.3f", padding=3)
ax.axvline(0.5, color="black", lw=1, ls=":")
ax.set(xlabel="AUROC (0.5 is chance)", xlim=(0.4, 1))
ax.invert_yaxis()
plt.show()
