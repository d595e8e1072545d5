from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.ensemble import IsolationForest
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from clipad_sklearn import (
    CalibratedThresholdDetector,
    CLIPImageEncoder,
    FusionDetector,
    OpenCLIP,
    PromptDetector,
    RandomWordDetector,
    ReferenceDetector,
    TiledDetector,
    calibrate_threshold,
)
from clipad_sklearn._detectors.class_names import score_named
from clipad_sklearn.metrics import f1_max, get_scorer, p_values
from clipad_sklearn.model_selection import ZeroShotSplit


class GivenScores(OutlierMixin, BaseEstimator):
    """The samples are their scores; a class name may shift them."""

    def __init__(self, dtype="float64"):
        self.dtype = dtype

    def fit(self, X=None, y=None):
        self.offset_ = 0.0
        return self

    def score_samples(self, X, class_name=None):
        scores = np.asarray(X, dtype=self.dtype).reshape(len(X))
        if class_name is None:
            return scores
        names = np.broadcast_to(class_name, len(X))
        return scores + np.array([{"nut": 100, "pill": 200}[name] for name in names])

    def decision_function(self, X):
        return self.score_samples(X) - self.offset_

    def predict(self, X):
        return np.where(self.decision_function(X) >= 0, 1, -1)


def calibrated(scores, y=None, *, dtype="float64", **params):
    detector = GivenScores(dtype).fit()
    assert calibrate_threshold(detector, scores, y, **params) is detector
    assert type(detector.offset_) is float
    return detector


# Known thresholds -----------------------------------------------------------


@pytest.mark.parametrize(
    ("scores", "y", "params", "offset"),
    [
        # Separable: midway between the classes.
        ([1, 2, 7, 9], [-1, -1, 1, 1], {}, 4.5),
        ([1, 2, 7, 9], [1, 1, 0, 0], {"strategy": "youden"}, 4.5),
        # One good image among the anomalous ones.
        ([1, 2, 3, 7], [-1, 1, -1, 1], {"strategy": "f1"}, 5),
        ([1, 2, 3, 7, 8, 9], [-1, 1, -1, 1, 1, 1], {"strategy": "youden"}, 5),
        # F1 may be best with everything flagged; Youden's index is 0 then.
        ([1, 2], [1, -1], {"strategy": "f1"}, np.nextafter(2, np.inf)),
        ([1, 2], [1, -1], {"strategy": "youden"}, 1),
        # Equally good cuts: the one that flags fewest.
        ([1, 2, 3, 4], [-1, 1, -1, 1], {"strategy": "youden"}, 1.5),
        ([5, 5, 5, 5], [-1, 1, -1, 1], {"strategy": "youden"}, 5),
        # Good images only: the k-th lowest score, with k = floor(rate (n + 1)).
        ([4, 1, 3, 2], None, {"max_false_alarm": 0.2}, 1),
        ([4, 1, 3, 2], None, {"max_false_alarm": 0.39}, 1),
        ([4, 1, 3, 2], None, {"max_false_alarm": 0.4}, 2),
        ([4, 1, 3, 2], None, {"max_false_alarm": 0.5}, 2),
        ([4, 1, 3, 2], None, {"max_false_alarm": 0.99}, 4),
        ([1, 1, 1, 2], None, {"max_false_alarm": 0.5}, 1),
        (list(range(20)), None, {}, 0),
        (list(range(39)), None, {}, 1),
        (list(range(99)), None, {"max_false_alarm": 0.29}, 28),
        # With confidence: BetaCDF(0.1; k, n + 1 - k) >= 0.95.
        (list(range(29)), None, {"max_false_alarm": 0.1, "confidence": 0.95}, 0),
        (list(range(45)), None, {"max_false_alarm": 0.1, "confidence": 0.95}, 0),
        (list(range(46)), None, {"max_false_alarm": 0.1, "confidence": 0.95}, 1),
        (list(range(1)), None, {"max_false_alarm": 0.95, "confidence": 0.95}, 0),
        # With labels the promise is about the good ones, however bad the others are.
        (
            [0, 4, 5, 1, 3, 2],
            [-1] + [1] * 5,
            {"strategy": "max_false_alarm", "max_false_alarm": 0.2},
            1,
        ),
        (
            [0, 1, 2, 3, 4],
            [0, 1, 1, 0, 0],
            {"strategy": "max_false_alarm", "max_false_alarm": 0.5},
            3,
        ),
        # A confidence is about false alarms, with labels too.
        (
            [0, 4, 5, 1, 3, 2],
            [-1] + [1] * 5,
            {"max_false_alarm": 0.5, "confidence": 0.9},
            1,
        ),
    ],
)
def test_known_thresholds(scores, y, params, offset):
    assert calibrated(scores, y, **params).offset_ == offset


def test_the_default_strategy_depends_on_the_labels():
    scores, y = [1, 2, 7, 9], [-1, -1, 1, 1]
    assert calibrated(scores, y).offset_ == calibrated(scores, y, strategy="f1").offset_
    good, params = list(range(30)), {"max_false_alarm": 0.1}
    assert (
        calibrated(good, **params).offset_
        == calibrated(good, strategy="max_false_alarm", **params).offset_
    )


# Too few images ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "y", "max_false_alarm", "message"),
    [
        (
            18,
            None,
            0.05,
            "max_false_alarm=0.05 on average needs 19 good images to calibrate with. "
            "There are 18, which can promise 5.27% on average at best. The threshold "
            "is the lowest of",
        ),
        (
            40,
            None,
            0.02,
            "needs 49 good images to calibrate with. There are 40, which can promise "
            "2.44%",
        ),
        (
            5,
            [1, 1, 1, 1, -1],
            0.1,
            "needs 9 good images to calibrate with. There are 4, which can promise 20.",
        ),
        (3, None, 0, "max_false_alarm=0 cannot be promised by any number of good imag"),
    ],
)
def test_too_few_for_the_average_warn(n, y, max_false_alarm, message):
    scores = np.arange(n, 0, -1.0)
    params = {"strategy": "max_false_alarm", "max_false_alarm": max_false_alarm}
    with pytest.warns(UserWarning, match=re.escape(message)) as caught:
        detector = calibrated(scores, y, **params)
    assert [warning.filename for warning in caught] == [__file__]
    assert detector.offset_ == (1 if y is None else 2)


@pytest.mark.parametrize(
    ("n", "max_false_alarm", "message"),
    [
        (
            40,
            0.02,
            "max_false_alarm=0.02 with confidence=0.95 needs 149 good images to "
            "calibrate with. There are 40, which can promise 7.22% with "
            "confidence=0.95 at best.",
        ),
        (
            28,
            0.1,
            "needs 29 good images to calibrate with. There are 28, which can promise "
            "10.15%",
        ),
        (28, 0, "max_false_alarm=0 cannot be promised by any number of good images."),
    ],
)
def test_too_few_for_a_confidence_is_an_error(n, max_false_alarm, message):
    detector = GivenScores().fit()
    with pytest.raises(ValueError, match=re.escape(message)):
        calibrate_threshold(
            detector, np.arange(n), max_false_alarm=max_false_alarm, confidence=0.95
        )
    assert vars(detector) == vars(GivenScores().fit())


def test_what_the_error_says_can_be_promised():
    for n in (1, 2, 10, 28, 40, 58, 100):
        for confidence in (0.5, 0.9, 0.95):
            params = {"max_false_alarm": 1e-6, "confidence": confidence}
            with pytest.raises(ValueError, match="good images") as error:
                calibrated(np.arange(n), **params)
            percent = re.search(r"can promise ([\d.]+)%", str(error.value)).group(1)
            params["max_false_alarm"] = float(percent) / 100
            assert calibrated(np.arange(n), **params).offset_ == 0


# References -------------------------------------------------------------------


class KeepsReferences(GivenScores):
    def is_reference(self, X):
        return np.asarray(X).reshape(len(X)) < 3


@pytest.mark.parametrize(
    "wrap",
    [
        lambda detector: detector,
        lambda detector: make_pipeline(FunctionTransformer(), detector),
        FrozenEstimator,
        lambda detector: make_pipeline(FrozenEstimator(make_pipeline(detector))),
    ],
)
def test_references_promise_nothing(wrap):
    scores, params = np.arange(20.0)[:, None], {"max_false_alarm": 0.2}
    with pytest.warns(UserWarning, match="3 of the good images are references of the"):
        calibrate_threshold(wrap(KeepsReferences().fit()), scores, **params)
    detector = KeepsReferences().fit()
    with pytest.raises(ValueError, match="calibrate with other images, or without co"):
        calibrate_threshold(wrap(detector), scores, **params, confidence=0.9)
    assert detector.offset_ == 0
    # Other images are welcome, and bad ones promise nothing anyway.
    calibrate_threshold(wrap(detector), scores[3:], **params)
    params["confidence"] = 0.9
    calibrate_threshold(wrap(detector), scores, np.arange(20) < 3, **params)
    assert detector.offset_ == 3


@pytest.mark.parametrize("place", ["alone", "fusion", "tiled", "calibrated"])
def test_references_wherever_they_are(place, photos):
    references = ReferenceDetector("tiny")
    words = make_pipeline(CLIPImageEncoder("tiny"), PromptDetector("tiny"))
    members = [("words", words), ("references", references)]
    detector = {
        "alone": references,
        "fusion": FusionDetector(members, method="logit_mean"),
        "tiled": TiledDetector(references, tiles=(1, 2), overlap=0),
        "calibrated": CalibratedThresholdDetector(
            references, max_false_alarm=0.5, random_state=0
        ),
    }[place].fit(photos[:8])
    kept = detector.is_reference(photos)
    assert kept.sum() == (4 if place == "calibrated" else 8)
    assert not kept[8:].any()
    params = {"max_false_alarm": 0.2}
    new, threshold = photos[8:], detector.offset_
    with pytest.raises(ValueError, match="1 of the good images are references of the"):
        calibrate_threshold(
            detector, [*new, photos[kept.argmax()]], confidence=0.5, **params
        )
    assert detector.offset_ == threshold
    calibrate_threshold(detector, iter(new), **params)
    assert detector.offset_ == detector.score_samples(new).min()
    assert detector.p_values(new).min() == 0.4
    detector.fit(photos[:8])
    assert hasattr(detector, "calibration_scores_") == (place == "calibrated")


# Calibration scores -------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["f1", "youden", "max_false_alarm"])
def test_sorted_scores_of_the_good_images_stay(strategy):
    scores, y = [5, 1, 7, 2, 9, 0], [1, -1, 1, 1, 1, -1]
    detector = calibrated(scores, y, strategy=strategy, max_false_alarm=0.2)
    assert detector.calibration_scores_.tolist() == [2, 5, 7, 9]


# Properties -----------------------------------------------------------------

score = st.integers(-20, 20).map(float) | st.floats(-1e300, 1e300)
labelled = st.lists(st.tuples(score, st.booleans()), min_size=2, max_size=40).filter(
    lambda pairs: len({label for _, label in pairs}) == 2
)
dtypes = st.sampled_from(["float32", "float64"])


def split(pairs, dtype):
    scores = np.array([value for value, _ in pairs])
    if dtype == "float32":
        scores = np.clip(scores, -1e38, 1e38)
    return scores.astype(dtype), np.array([label for _, label in pairs])


@settings(max_examples=200, deadline=None)
@given(
    scores=st.lists(score, min_size=1, max_size=60),
    rank=st.integers(1, 60),
    dtype=dtypes,
)
def test_rates_of_whole_ranks_give_their_scores(scores, rank, dtype):
    assume(rank <= len(scores))
    scores, _ = split([(value, False) for value in scores], dtype)
    rate = rank / (len(scores) + 1)
    detector = calibrated(scores, max_false_alarm=rate, dtype=dtype)
    assert detector.offset_ == np.sort(scores)[rank - 1]
    assert np.sum(detector.predict(scores) == -1) < rank


@settings(max_examples=100, deadline=None)
@given(pairs=labelled, bound=st.floats(0.34, 1, exclude_max=True), dtype=dtypes)
def test_bad_images_do_not_change_a_promise(pairs, bound, dtype):
    scores, y = split(pairs, dtype)
    assume(np.sum(~y) >= 2)
    params = {"max_false_alarm": bound, "dtype": dtype}
    detector = calibrated(scores, y, strategy="max_false_alarm", **params)
    assert detector.offset_ == calibrated(scores[~y], **params).offset_


@settings(max_examples=300, deadline=None)
@given(pairs=labelled, dtype=dtypes, convention=st.sampled_from(["sklearn", "field"]))
def test_f1_at_the_threshold_is_f1_max(pairs, dtype, convention):
    scores, is_anomalous = split(pairs, dtype)
    y = 1 - 2 * is_anomalous if convention == "sklearn" else is_anomalous * 1
    detector = calibrated(scores, y, strategy="f1", dtype=dtype)
    found = f1_score(is_anomalous, detector.predict(scores) == -1)
    assert found == pytest.approx(f1_max(y, -scores), abs=1e-12)


@settings(max_examples=300, deadline=None)
@given(pairs=labelled, dtype=dtypes)
def test_youden_at_the_threshold_is_the_best(pairs, dtype):
    scores, y = split(pairs, dtype)

    def youden(flagged):
        return np.mean(flagged[y]) - np.mean(flagged[~y])

    detector = calibrated(scores, y, strategy="youden", dtype=dtype)
    best = max([youden(scores < level) for level in scores])
    found = youden(detector.predict(scores) == -1)
    assert found == pytest.approx(max(best, 0), abs=1e-12)


@settings(max_examples=100, deadline=None)
@given(
    pairs=labelled,
    strategy=st.sampled_from(["f1", "youden", "max_false_alarm"]),
    seed=st.integers(0, 2**32 - 1),
)
def test_order_does_not_matter_and_scale_carries_over(pairs, strategy, seed):
    scores, y = split(pairs, "float64")
    assume(np.abs(scores).max() < 1e100)
    params = {"strategy": strategy, "max_false_alarm": 0.6}
    offset = calibrated(scores, y, **params).offset_
    order = np.random.default_rng(seed).permutation(len(scores))
    assert calibrated(scores[order], y[order], **params).offset_ == offset
    assert calibrated(4 * scores, y, **params).offset_ == pytest.approx(4 * offset)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_neighbouring_floats_are_told_apart(dtype):
    for start in (1.0, 3.0, -1.0, 1e-3, 7e7):
        low = np.dtype(dtype).type(start)
        high = np.nextafter(low, low.dtype.type(np.inf))
        scores = np.array([low, high])
        detector = calibrated(scores, [-1, 1], dtype=dtype)
        np.testing.assert_array_equal(detector.predict(scores), [-1, 1])


def test_huge_scores_do_not_overflow():
    scores = np.array([-1.7e308, 1.7e308])
    assert calibrated(scores, [-1, 1]).offset_ == 0


# Detectors ------------------------------------------------------------------


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    is_anomalous = np.arange(80) % 4 == 0
    return rng.normal(size=(80, 3)) + 4 * is_anomalous[:, None], is_anomalous


@pytest.mark.parametrize(
    "make",
    [
        lambda: IsolationForest(random_state=0),
        lambda: make_pipeline(StandardScaler(), IsolationForest(random_state=0)),
        lambda: make_pipeline(
            StandardScaler(),
            make_pipeline(FunctionTransformer(), IsolationForest(random_state=0)),
        ),
        lambda: GridSearchCV(
            make_pipeline(StandardScaler(), IsolationForest(random_state=0)),
            {"isolationforest__max_samples": [0.5]},
            scoring=get_scorer("auroc"),
            cv=ZeroShotSplit(),
        ),
    ],
    ids=["detector", "pipeline", "nested", "search"],
)
def test_detectors_pipelines_and_searches(make, data):
    X, is_anomalous = data
    detector = make().fit(X, is_anomalous)
    before = detector.score_samples(X)
    assert calibrate_threshold(detector, X, is_anomalous) is detector
    np.testing.assert_array_equal(detector.score_samples(X), before)
    found = f1_score(is_anomalous, detector.predict(X) == -1)
    assert found == pytest.approx(f1_max(is_anomalous, -before))
    good = X[~is_anomalous]
    calibrate_threshold(detector, good, max_false_alarm=0.1)
    assert np.sum(detector.predict(good) == -1) == 5  # below the 6th of 60 scores


def test_class_names_reach_the_detector():
    X = np.array([[1.0], [2.0], [7.0]])
    params = {"max_false_alarm": 0.25}
    detector = calibrate_threshold(GivenScores().fit(), X, class_name="nut", **params)
    assert detector.offset_ == 101
    names = ["nut", "pill", "nut"]
    for last in (GivenScores(), make_pipeline(GivenScores())):
        pipeline = make_pipeline(FunctionTransformer(lambda X: 10 * X), last).fit(X)
        calibrate_threshold(pipeline, X, [-1, 1, 1], class_name=names)
        final = last if last is pipeline[-1] and hasattr(last, "offset_") else last[-1]
        assert final.offset_ == (110 + 170) / 2
    search = GridSearchCV(
        GivenScores(), {}, scoring=get_scorer("auroc"), cv=ZeroShotSplit()
    ).fit(X, [-1, 1, 1])
    calibrate_threshold(search, X, class_name="pill", **params)
    assert search.best_estimator_.offset_ == 201


def test_integer_scores_and_lists():
    detector = calibrated([3, 1, 2], [1, -1, 1], dtype="int64")
    assert detector.offset_ == 1.5


# Errors ---------------------------------------------------------------------

SCORES = [1.0, 2.0, 3.0]


@pytest.mark.parametrize(
    ("X", "y", "params", "message"),
    [
        (SCORES, [1, -1, 1], {"strategy": "f2"}, "strategy='f2' is not known. Use one"),
        (
            SCORES,
            None,
            {"strategy": "f1"},
            "strategy='f1' needs labels: pass y, or use",
        ),
        (SCORES, None, {"strategy": "youden"}, "strategy='youden' needs labels"),
        *[
            (
                SCORES,
                None,
                {"max_false_alarm": value},
                f"max_false_alarm={value!r}: expected a number in [0, 1).",
            )
            for value in (1, -0.1, np.nan, None, True, "0.1")
        ],
        *[
            (
                SCORES,
                None,
                {"confidence": value},
                f"confidence={value!r}: expected None or a number in (0, 1).",
            )
            for value in (0, 1, 95, np.nan, True, "0.95")
        ],
        (
            SCORES,
            [1, -1, 1],
            {"strategy": "f1", "confidence": 0.9},
            "confidence=0.9 is for strategy='max_false_alarm': 'f1' promises no rate.",
        ),
        (None, None, {}, "X is None, but a threshold is set from images"),
        ([], None, {}, "X is empty: a threshold is set from images"),
        ([], [], {}, "X is empty"),
        (SCORES, [1, -1], {}, "y has 2 labels, but X has 3 samples"),
        (SCORES, [], {}, "y has 0 labels, but X has 3 samples"),
        (SCORES, [1, 1, 1], {}, "All labels are 1: both"),
        (SCORES, [1, 1, 1], {}, "If all of X are good, leave y out."),
        (SCORES, [0, 0, 0], {"strategy": "max_false_alarm"}, "leave y out"),
        (SCORES, [1, 2, 3], {}, "Labels are 1, 2, 3, which is no known convention"),
        (SCORES, [1, -1, np.nan], {}, "Labels must not be NaN"),
        (SCORES, [[1], [-1], [1]], {}, "Labels must be one-dimensional"),
        (SCORES, ["good", "bad", "bad"], {}, "Labels must be numbers"),
        (
            [np.nan, 1.0, np.nan],
            None,
            {},
            "2 of 3 scores are not finite, at index 0, 2. Leave these samples out",
        ),
        ([1.0, np.inf], [1, -1], {}, "1 of 2 scores are not finite, at index 1."),
        ([np.nan] * 12, None, {}, "at index 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, ...."),
    ],
)
def test_bad_input(X, y, params, message):
    detector = GivenScores().fit()
    with pytest.raises(ValueError, match=re.escape(message)):
        calibrate_threshold(detector, X, y, **params)
    assert detector.offset_ == 0


def test_what_cannot_be_calibrated(data):
    X, y = data
    for detector in (GivenScores(), make_pipeline(StandardScaler(), GivenScores())):
        with pytest.raises(NotFittedError, match="GivenScores instance is not fitted"):
            calibrate_threshold(detector, X)
    classifier = LogisticRegression().fit(X, y)
    with pytest.raises(TypeError, match="LogisticRegression has no score_samples: pas"):
        calibrate_threshold(classifier, X)
    with pytest.raises(TypeError, match="StandardScaler has no score_samples"):
        calibrate_threshold(make_pipeline(StandardScaler()).fit(X), X)
    with pytest.raises(TypeError, match="is not an estimator instance"):
        calibrate_threshold("detector", X)


def test_frozen_detectors(data):
    X = data[0]
    frozen = FrozenEstimator(IsolationForest(random_state=0).fit(X))
    calibrate_threshold(frozen, X, max_false_alarm=0.2)
    other = IsolationForest(random_state=0).fit(X)
    calibrate_threshold(other, X, max_false_alarm=0.2)
    assert frozen.estimator.offset_ == other.offset_
    np.testing.assert_array_equal(frozen.predict(X), other.predict(X))
    pipeline = make_pipeline(StandardScaler(), frozen).fit(X)
    assert calibrate_threshold(pipeline, X) is pipeline


def test_names_reach_what_takes_them_and_no_other(photos: list[np.ndarray]) -> None:
    """One way through Pipelines, searches and frozen estimators."""
    clip = CLIPImageEncoder("tiny")
    X, names = clip.transform(photos), ["bolt", "nut"] * 6
    fitted = PromptDetector("tiny").fit(X)
    expected = fitted.score_samples(X, class_name=names)
    search = GridSearchCV(
        make_pipeline(clip, PromptDetector("tiny")),
        {"promptdetector__prompts": ["winclip"]},
        cv=ZeroShotSplit(),
    ).fit(photos, [1, -1] * 6)
    for detector, samples in (
        (fitted, X),
        (FrozenEstimator(fitted), X),
        (make_pipeline(clip, FrozenEstimator(fitted)), photos),
        (search, photos),
    ):
        np.testing.assert_allclose(
            score_named(detector, samples, names), expected, atol=1e-5
        )
        calibrate_threshold(detector, samples, [1, -1] * 6, class_name=names)
    words = RandomWordDetector(
        "tiny", n_pairs=50, classifier=LogisticRegression(), random_state=0
    ).fit()
    params = {"max_false_alarm": 0.3}
    plain = calibrate_threshold(words, X, **params).offset_
    assert calibrate_threshold(words, X, class_name="bolt", **params).offset_ == plain


# p-values of detectors ----------------------------------------------------------


@pytest.fixture(scope="module")
def embeddings():
    rng = np.random.default_rng(3)
    return rng.normal(size=(40, 128)), rng.normal(size=(5, 128))


def members():
    words = RandomWordDetector(
        "tiny", n_pairs=20, classifier=LogisticRegression(), random_state=0
    )
    return [("words", words), ("prompts", PromptDetector("tiny"))]


@pytest.mark.parametrize("place", ["words", "prompts", "fusion"])
def test_p_values_of_a_calibrated_detector(place, embeddings):
    good, new = embeddings
    detector = (dict(members()) | {"fusion": FusionDetector(members())})[place]
    detector.fit(None)
    with pytest.raises(NotFittedError, match="is not calibrated: call calibrate_thres"):
        detector.p_values(new)
    calibrate_threshold(detector, good, max_false_alarm=0.1)
    calibration_scores = detector.calibration_scores_
    np.testing.assert_array_equal(
        calibration_scores, np.sort(detector.score_samples(good))
    )
    expected = p_values(detector.score_samples(new), calibration_scores)
    np.testing.assert_array_equal(detector.p_values(new), expected)
    # They do not depend on the threshold, and end with the next fit.
    detector.offset_ = 7.0
    np.testing.assert_array_equal(detector.p_values(new), expected)
    detector.fit(None)
    assert not hasattr(detector, "calibration_scores_")
    with pytest.raises(NotFittedError, match="not calibrated"):
        detector.p_values(new)


def test_p_values_with_class_names(embeddings):
    good, new = embeddings
    detector = PromptDetector("tiny").fit(None)
    names = ["nut", "bolt"] * 20
    calibrate_threshold(detector, good, class_name=names)
    scores = detector.score_samples(new, class_name="bolt")
    np.testing.assert_array_equal(
        detector.p_values(new, class_name="bolt"),
        p_values(scores, np.sort(detector.score_samples(good, class_name=names))),
    )


def test_p_values_behind_a_pipeline(embeddings):
    good, new = embeddings
    detector = make_pipeline(FunctionTransformer(), PromptDetector("tiny")).fit(good)
    calibrate_threshold(FrozenEstimator(detector), good)
    np.testing.assert_array_equal(
        p_values(detector.score_samples(new), detector[-1].calibration_scores_),
        detector[-1].p_values(new),
    )


def test_contamination_counts_whole_images(embeddings):
    clip = OpenCLIP("tiny")
    rng = np.random.default_rng(0)
    for n in (49, 98, 100):
        X = rng.normal(size=(n, 128))
        for k in (1, 29, 2 * n // 5, n // 2):
            if k <= n // 2:
                detector = PromptDetector(clip, contamination=k / n).fit(X)
                assert np.sum(detector.predict(X) == -1) == k
