"""Forty lines as a user writes them, which ``mypy --strict`` must accept.

tests/test_types.py checks them. Nothing here is run.
"""

from __future__ import annotations

import numpy as np
from typing_extensions import assert_type

import clipad_sklearn
from clipad_sklearn import (
    CLIPImageEncoder,
    FeedForwardClassifier,
    FusionDetector,
    PromptDetector,
    RandomWordDetector,
    SDPDetector,
    SDPPlusDetector,
    WinCLIPDetector,
    calibrate_threshold,
    list_images,
)


def inspect(folder: str, masks: list[str]) -> dict[str, float]:
    """Score a folder with every detector."""
    photos = list_images(folder)
    X = CLIPImageEncoder("tiny").transform(photos)
    words = RandomWordDetector("tiny", n_pairs=100, random_state=0).fit(None)
    assert_type(words, RandomWordDetector)
    prompts = assert_type(PromptDetector("tiny").fit(X), PromptDetector)
    fusion = FusionDetector([("words", words), ("prompts", prompts)], method="max")
    assert_type(calibrate_threshold(fusion.fit(X, class_name="nut"), X), FusionDetector)
    assert_type(fusion.fit_predict(X), np.ndarray)
    assert_type(words.fit_predict(X), np.ndarray)
    assert_type(WinCLIPDetector("tiny", scorer=words).fit(photos), WinCLIPDetector)
    assert_type(SDPPlusDetector("tiny").fit(photos, masks), SDPPlusDetector)
    sdp = assert_type(SDPDetector("tiny", sigma=4.0).fit(), SDPDetector)
    labels = np.ones(len(photos), dtype=int)
    assert_type(FeedForwardClassifier().fit(X, labels), FeedForwardClassifier)
    margins = assert_type(sdp.score_samples(photos), np.ndarray)
    ranking: float = clipad_sklearn.metrics.auroc(labels, -margins)
    return {"AUROC": ranking, "threshold": sdp.offset_}
