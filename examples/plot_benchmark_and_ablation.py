"""
How many random words, and which
================================

The paper on random words is reported to ask how many pairs of prompts a detector needs.
This example draws that curve, and what changes with the words themselves, with
:class:`~clipad_sklearn.plotting.SearchDisplay`.

For figures of your own, give a folder that holds ``good`` and one folder for each
defect, and a CLIP::

    python plot_benchmark_and_ablation.py mvtec_ad/screw/test ViT-B-32-quickgelu/openai
"""

# %%
# Images
# ------
# Embeddings are all that the detectors see, so images are encoded once, before any
# search.

import sys

import matplotlib.pyplot as plt
from sklearn.model_selection import GridSearchCV

from clipad_sklearn import (
    CLIPImageEncoder,
    FeedForwardClassifier,
    FusionDetector,
    PromptDetector,
    RandomWordDetector,
)
from clipad_sklearn.datasets import load_image_folder, make_defect_images
from clipad_sklearn.model_selection import ZeroShotSplit
from clipad_sklearn.plotting import PromptDisplay, SearchDisplay

if len(sys.argv) == 3:
    clip = sys.argv[2]
    data = load_image_folder(sys.argv[1])
else:
    clip = "tiny"
    data = make_defect_images(100, size=112, random_state=7)

embeddings = CLIPImageEncoder(clip).transform(data.images)


def search(detector, grid):
    """Score every setting on all images; nothing is learned from them."""
    searching = GridSearchCV(detector, grid, cv=ZeroShotSplit(), refit=False)
    return searching.fit(embeddings, data.target)


# %%
# The number of pairs
# -------------------
# The prompts of a search share their beginning: the first 100 pairs are the same for
# all numbers of pairs, and each prompt is encoded once. Every network is trained for
# the same number of steps, so that more pairs do not mean more training. The band is
# the spread over seeds of the network, with the prompts as they are.

n_pairs = [100, 300, 1_000, 3_000, 10_000, 30_000]
# 300 steps are more than one pass over 30,000 pairs.
network = FeedForwardClassifier((64,), n_epochs=1, min_steps=300)
words = RandomWordDetector(clip, classifier=network, random_state=0)
prompts = PromptDetector(clip)
fusion = FusionDetector([("words", words), ("prompts", prompts)])
seeds = [0, 1, 2]

alone = search(words, {"n_pairs": n_pairs, "classifier__random_state": seeds})
fused = search(
    fusion,
    {"words__n_pairs": n_pairs, "words__classifier__random_state": seeds},
)

fig, ax = plt.subplots(figsize=(6.5, 4), layout="constrained")
display = SearchDisplay.from_estimator(alone, "n_pairs", ax=ax)
display.lines_[0].set_label("random words")
display = SearchDisplay.from_estimator(fused, "words__n_pairs", ax=ax)
display.lines_[0].set_label("random words and prompts")
level = prompts.fit(embeddings).score(embeddings, data.target)
ax.axhline(level, color="black", linestyle=":", label="prompts")
ax.legend()
plt.show()

# %%
# The words
# ---------
# How many words a prompt has, and whether they are random letters or words of CLIP's
# vocabulary. Here the seed decides the prompts too.

ablation = search(
    words.set_params(n_pairs=300),
    {
        "n_words": [1, 2, 3, 5, 8],
        "word_source": ["letters", "vocabulary"],
        "random_state": seeds,
    },
)
fig, ax = plt.subplots(figsize=(6.5, 4), layout="constrained")
SearchDisplay.from_estimator(ablation, "n_words", ax=ax)
plt.show()

# %%
# Where prompts and images lie
# ----------------------------
# A detector that learns from texts is asked about images, which lie elsewhere in CLIP's
# space. What it learns serves as far as the direction from normal to anomalous is the
# same in both places.

fig, ax = plt.subplots(figsize=(6.5, 4.5), layout="constrained")
PromptDisplay.from_estimator(clip, data.images, data.target, ax=ax)
plt.show()

# %%
# What this shows
# ---------------
# On ``"tiny"`` and these drawings, nearly nothing: the curve is flat from 100 to
# 30,000 pairs, and neither the number of words nor their source matters as much as the
# seed does. The prompts alone are two to four points above the words alone, and one or
# two above both together; 100 images could not settle differences of that size. The
# model knows few words, which may be why it has little use for thousands of random
# ones. The 10,000 pairs or so that are reported of the paper are for real CLIPs, on
# which nothing was measured here. When you draw the curve for yours, keep the steps of
# training the same, as above, or the curve shows them too.
