"""Offsets, contamination and verdicts of detectors on embeddings."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.special import expit
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from clipad_sklearn import (
    CLIPImageEncoder,
    FusionDetector,
    PromptDetector,
    RandomWordDetector,
    calibrate_threshold,
)

FAST = {"n_pairs": 100, "classifier": LogisticRegression(), "random_state": 0}


class TestThreshold:
    def _detectors(self, **params: Any) -> list[Any]:
        words, prompts = RandomWordDetector("tiny", **FAST), PromptDetector("tiny")
        members = [("words", clone(words)), ("prompts", clone(prompts))]
        detectors = [words, prompts, FusionDetector(members)]
        return [detector.set_params(**params) for detector in detectors]

    @pytest.mark.parametrize("contamination", [0.05, 0.1, 0.29, 0.5])
    def test_contamination(self, contamination: float, embeddings: np.ndarray) -> None:
        for detector in self._detectors(contamination=contamination):
            verdicts = detector.fit(embeddings).predict(embeddings)
            assert (verdicts == -1).sum() == int(contamination * 60)
            scores = detector.score_samples(embeddings)
            assert detector.offset_ in scores, "equal to the offset is normal"

    def test_contamination_needs_images(self) -> None:
        for detector in self._detectors(contamination=0.1):
            with pytest.raises(ValueError, match="but X is None"):
                detector.fit(None)

    def test_contract(self, embeddings: np.ndarray) -> None:
        for detector in self._detectors():
            detector.fit(embeddings)
            assert detector.offset_ == 0
            scores = detector.score_samples(embeddings)
            detector.offset_ = float(np.median(scores))
            decision = detector.decision_function(embeddings)
            np.testing.assert_array_equal(decision, scores - detector.offset_)
            verdicts = detector.predict(embeddings)
            np.testing.assert_array_equal(verdicts, np.where(decision >= 0, 1, -1))
            # The probability belongs to the margin, not to the verdict.
            probabilities = detector.predict_proba(embeddings)
            np.testing.assert_allclose(probabilities[:, 0], expit(-scores))
            assert detector.classes_.tolist() == [-1, 1]

    @pytest.mark.parametrize("offset", [np.nan, np.inf, -np.inf, True, None, "0"])
    def test_set_by_hand_to_no_number(
        self, offset: Any, embeddings: np.ndarray
    ) -> None:
        for detector in self._detectors():
            detector.fit(embeddings).offset_ = offset
            for method in (detector.predict, detector.decision_function):
                with pytest.raises(ValueError, match=r"^offset_=.*: expected a finite"):
                    method(embeddings)

    @pytest.mark.parametrize("offset", [2, np.float32(0.5), np.array([0.5])])
    def test_set_by_hand(self, offset: Any, embeddings: np.ndarray) -> None:
        for detector in self._detectors():
            scores = detector.fit(embeddings).score_samples(embeddings)
            detector.offset_ = offset
            expected = np.where(scores >= float(np.squeeze(offset)), 1, -1)
            np.testing.assert_array_equal(detector.predict(embeddings), expected)

    def test_one_sided_verdicts_warn(self, embeddings: np.ndarray) -> None:
        detector = PromptDetector("tiny").fit()
        scores = detector.score_samples(embeddings)
        same = embeddings[scores > 0][:1].repeat(20, axis=0)
        with pytest.warns(UserWarning, match="All 20 images were classified as normal"):
            detector.predict(same)
        detector.predict(same[:19])
        detector.offset_ = -1.0
        detector.predict(same)

    def test_calibration_of_a_pipeline(self, photos: list[np.ndarray]) -> None:
        for detector in self._detectors():
            pipeline = make_pipeline(CLIPImageEncoder("tiny"), detector).fit(None)
            scores = pipeline.score_samples(photos)
            labels = np.where(scores >= np.median(scores), 1, -1)
            calibrate_threshold(pipeline, photos, labels)
            np.testing.assert_array_equal(pipeline.predict(photos), labels)


@pytest.mark.parametrize(
    "detector", [PromptDetector("tiny"), RandomWordDetector("tiny", **FAST)]
)
def test_rows_of_images_that_could_not_be_read(
    detector: Any, embeddings: np.ndarray
) -> None:
    embeddings[[3, 7]] = np.nan
    with pytest.raises(ValueError, match=r"NaN, in 2 of 60 rows: 3, 7\. .*on_error"):
        detector.fit(None).score_samples(embeddings)


@pytest.mark.parametrize("n", [13, 49])
def test_contamination_in_single_precision_or_8_digits(n, embeddings):
    for count in range(1, n // 2 + 1):
        for share in (np.float32(count / n), round(count / n, 8)):
            detector = PromptDetector("tiny", contamination=share)
            verdicts = detector.fit(embeddings[:n]).predict(embeddings[:n])
            assert (verdicts == -1).sum() == count
