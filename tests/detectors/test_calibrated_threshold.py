"""A threshold that is set within `fit` and kept by cross-validation."""

from __future__ import annotations

import pickle
import re
from typing import Any

import numpy as np
import pytest
from sklearn.base import BaseEstimator, OutlierMixin, clone
from sklearn.ensemble import IsolationForest
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import make_scorer, recall_score
from sklearn.model_selection import (
    GridSearchCV,
    StratifiedKFold,
    cross_val_score,
    train_test_split,
)
from sklearn.neighbors import LocalOutlierFactor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.validation import check_is_fitted

from clipad_sklearn import (
    CalibratedThresholdDetector,
    CLIPImageEncoder,
    DamageDirectionDetector,
    FusionDetector,
    PromptDetector,
    WinCLIPDetector,
    calibrate_threshold,
)
from clipad_sklearn.metrics import p_values

forest = make_pipeline(StandardScaler(), IsolationForest(random_state=0))


@pytest.fixture(scope="module")
def data() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    y = np.where(np.arange(150) % 5 == 0, -1, 1)
    return rng.normal(size=(150, 3)) + 4 * (y == -1)[:, None], y


class Remembers(OutlierMixin, BaseEstimator):
    """Keeps what `fit` was given; the first feature is the score."""

    def __init__(self, requires_labels: bool = False) -> None:
        self.requires_labels = requires_labels

    def fit(self, X: Any, y: Any = None) -> Remembers:
        self.X_, self.y_ = np.array(X), y
        self.offset_ = 0.0
        return self

    def score_samples(self, X: Any) -> np.ndarray:
        return np.asarray(X, dtype=np.float64)[:, 0]

    def is_reference(self, X: Any) -> np.ndarray:
        return np.isin(np.asarray(X)[:, 0], self.X_[:, 0])

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = self.requires_labels
        return tags


def by_hand(detector: Any, good: Any, new: Any, seed: int, **params: Any) -> Any:
    taught, held_out = train_test_split(good, test_size=0.5, random_state=seed)
    fitted = clone(detector).fit(taught)
    return calibrate_threshold(fitted, held_out, **params).predict(new)


@pytest.mark.parametrize("confidence", [None, 0.9])
def test_it_is_a_split_and_a_calibration(data: Any, confidence: float | None) -> None:
    X, y = data
    params = {"max_false_alarm": 0.1, "confidence": confidence}
    detector = CalibratedThresholdDetector(forest, random_state=3, **params)
    for good, labels in ((X, y), (X, y == -1), (X[y == 1], None)):
        detector.fit(good, labels)
        expected = by_hand(forest, X[y == 1], X, 3, **params)
        np.testing.assert_array_equal(detector.predict(X), expected)
        assert np.sum(expected[y == 1] == -1) > 0
        assert len(detector.calibration_scores_) == 60
    scores = detector.detector_.score_samples(X)
    np.testing.assert_array_equal(detector.score_samples(X), scores)
    np.testing.assert_array_equal(
        detector.p_values(X), p_values(scores, detector.calibration_scores_)
    )
    assert detector.n_features_in_ == 3


def test_cross_validation_equals_the_loop_by_hand(data: Any) -> None:
    X, y = data
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    params = {"max_false_alarm": 0.1}
    detector = CalibratedThresholdDetector(forest, random_state=3, **params)
    kept = make_scorer(recall_score, pos_label=1)  # 1 - the rate of false alarms
    found = cross_val_score(detector, X, y, cv=folds, scoring=kept)
    expected = []
    for train, test in folds.split(X, y):
        good = X[train][y[train] == 1]
        verdicts = by_hand(forest, good, X[test], 3, **params)
        expected.append(np.mean(verdicts[y[test] == 1] == 1))
    np.testing.assert_array_equal(found, expected)
    assert np.ptp(found) > 0


def test_searches_and_clones_keep_the_promise(data: Any) -> None:
    X, y = data
    detector = CalibratedThresholdDetector(
        IsolationForest(random_state=0), confidence=0.9, random_state=0
    )
    grid = {"detector__max_samples": [0.2, 0.9], "max_false_alarm": [0.1, 0.3]}
    search = GridSearchCV(detector, grid, cv=StratifiedKFold(2), scoring="accuracy")
    search.fit(X, y)
    best = clone(search.best_estimator_)
    np.testing.assert_array_equal(best.fit(X, y).predict(X), search.predict(X))
    assert best.confidence == 0.9
    assert not np.isnan(search.cv_results_["mean_test_score"]).any()
    again = pickle.loads(pickle.dumps(best))
    np.testing.assert_array_equal(again.p_values(X), best.p_values(X))


def test_who_sees_which_images() -> None:
    X = np.arange(40.0)[:, None]
    y = np.where(np.arange(40) % 4 == 0, -1, 1)
    params: dict[str, Any] = {"max_false_alarm": 0.3, "random_state": 0}
    detector = CalibratedThresholdDetector(Remembers(), **params).fit(X, y)
    taught = set(detector.detector_.X_[:, 0])
    held_out = set(detector.calibration_scores_)
    assert taught.isdisjoint(held_out)
    assert taught | held_out == set(X[y == 1, 0])
    assert detector.detector_.y_ is None
    assert detector.is_reference(X).tolist() == [x in taught for x in X[:, 0]]
    # One that requires labels sees all that is not held out.
    detector = CalibratedThresholdDetector(Remembers(True), **params).fit(X, y)
    assert set(detector.calibration_scores_) == held_out
    assert set(detector.detector_.X_[:, 0]) == set(X[:, 0]) - held_out
    assert set(detector.detector_.X_[detector.detector_.y_ == -1, 0]) == set(
        X[y == -1, 0]
    )
    # A photo that is there twice may fall on both sides, where it promises nothing.
    twice = np.repeat(X, 2, axis=0)
    detector = CalibratedThresholdDetector(Remembers(), **params)
    with pytest.warns(UserWarning, match="are references of the detector"):
        detector.fit(twice)
    with pytest.raises(ValueError, match="are references of the detector"):
        detector.set_params(confidence=0.9).fit(twice)


def test_all_images_can_be_held_out(data: Any) -> None:
    X, y = data
    fitted = forest.fit(X[:50])
    threshold = fitted[-1].offset_
    detector = CalibratedThresholdDetector(
        FrozenEstimator(fitted), calibration_size=1.0, max_false_alarm=0.1
    ).fit(X, y)
    assert len(detector.calibration_scores_) == 120
    assert detector.offset_ == np.sort(fitted.score_samples(X[y == 1]))[11]
    assert fitted[-1].offset_ == threshold  # frozen

    rng = np.random.default_rng(0)
    embeddings, names = rng.normal(size=(20, 128)), ["nut", "bolt"] * 10
    prompts = PromptDetector("tiny")
    detector = CalibratedThresholdDetector(prompts, calibration_size=1)
    detector.fit(embeddings, class_name=names)
    scores = prompts.fit(None).score_samples(embeddings, class_name=names)
    np.testing.assert_array_equal(detector.calibration_scores_, np.sort(scores))
    np.testing.assert_array_equal(
        detector.predict_proba(embeddings, class_name=names),
        prompts.predict_proba(embeddings, class_name=names),
    )
    assert not hasattr(CalibratedThresholdDetector(forest), "predict_proba")


def test_images(photos: list[np.ndarray], photo_files: list[str]) -> None:
    detectors = [
        WinCLIPDetector("tiny"),
        make_pipeline(CLIPImageEncoder("tiny"), PromptDetector("tiny")),
    ]
    for inner in detectors:
        detector = CalibratedThresholdDetector(
            inner, max_false_alarm=0.3, calibration_size=0.5, random_state=0
        )
        scores = detector.fit(photos).score_samples(photos)
        assert len(detector.calibration_scores_) == 6
        again = detector.fit(photo_files).score_samples(photo_files)
        np.testing.assert_allclose(again, scores, atol=1e-4)
        with pytest.raises(ValueError, match=r"[Ww]rap it in a list"):
            detector.fit(photo_files[0])
    # As a member of a fusion, it is a detector like others.
    fusion = FusionDetector([("calibrated", detector), ("winclip", detectors[0])])
    assert fusion.fit(photos).score_samples(photos).shape == (12,)


@pytest.mark.filterwarnings("ignore:The direction is learned from one:UserWarning")
def test_a_pipeline_that_learns_from_labels(
    photos: list[np.ndarray],
) -> None:
    damage = make_pipeline(CLIPImageEncoder("tiny"), DamageDirectionDetector())
    detector = CalibratedThresholdDetector(
        damage, max_false_alarm=0.3, calibration_size=0.5, random_state=0
    )
    y = np.tile([1, 1, -1], 4)
    detector.fit(photos, y)
    embeddings = CLIPImageEncoder("tiny").transform(photos)
    alone = clone(detector).set_params(detector=DamageDirectionDetector())
    alone.fit(embeddings, y)
    assert detector.offset_ == pytest.approx(alone.offset_)


def test_what_has_no_scores_is_no_detector(photos: list[np.ndarray]) -> None:
    encoder = CLIPImageEncoder("tiny")
    for wrong in (
        "x",
        LocalOutlierFactor(),
        make_pipeline(encoder, LocalOutlierFactor()),
        make_pipeline(encoder, LogisticRegression()),
    ):
        with pytest.raises(ValueError, match=r"(?s)^detector=.*with score_samples"):
            CalibratedThresholdDetector(wrong).fit(photos, [1, -1] * 6)


@pytest.mark.parametrize("calibration_size", [0, -0.5, 1.1, True, None, "0.5", np.nan])
def test_bad_sizes(data: Any, calibration_size: Any) -> None:
    detector = CalibratedThresholdDetector(forest, calibration_size=calibration_size)
    message = f"calibration_size={calibration_size!r}: expected a number in (0, 1]."
    with pytest.raises(ValueError, match=re.escape(message)):
        detector.fit(data[0])


def test_errors_change_nothing(data: Any) -> None:
    X, y = data
    detector = CalibratedThresholdDetector(forest, confidence=0.9, random_state=0)
    detector.fit(X, y)
    before = dict(vars(detector))
    for arguments, message in (
        ((None,), "X is None, but a threshold is set from images"),
        ((X, np.ones(150)), "All labels are 1: both"),
        ((X, y[:5]), "y has 5 labels, but X has 150 samples"),
        ((X, np.arange(150)), "which is no known convention"),
        ((X[:40],), "needs 45 good images to calibrate with. There are 20, which"),
        ((X[:1],), "n_samples=1"),
    ):
        with pytest.raises(ValueError, match=message):
            detector.fit(*arguments)
        assert vars(detector) == before
    check_is_fitted(detector)


def test_whether_it_takes_images_is_asked_of_the_first_step() -> None:
    words = make_pipeline(CLIPImageEncoder("tiny"), PromptDetector("tiny"))
    search = GridSearchCV(words, {"promptdetector__temperature": [0.1, 1]})
    for detector in (words, FrozenEstimator(words), search, WinCLIPDetector("tiny")):
        tags = CalibratedThresholdDetector(detector).__sklearn_tags__()
        assert not tags.input_tags.two_d_array
    for detector in (forest, make_pipeline("passthrough", forest), PromptDetector()):
        tags = CalibratedThresholdDetector(detector).__sklearn_tags__()
        assert tags.input_tags.two_d_array
