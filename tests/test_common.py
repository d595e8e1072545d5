"""scikit-learn's own checks over every estimator, then ours over image estimators."""

from __future__ import annotations

import pickle
import zlib
from typing import Any

import numpy as np
import pytest
from sklearn.base import BaseEstimator, clone
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import (
    check_estimator_cloneable,
    check_estimator_repr,
    check_get_params_invariance,
    check_no_attributes_set_in_init,
    check_parameters_default_constructible,
    check_set_params,
    parametrize_with_checks,
)
from sklearn.utils.validation import _num_samples, check_consistent_length

import clipad_sklearn
from clipad_sklearn import (
    CalibratedThresholdDetector,
    CLIPImageEncoder,
    DamageDirectionDetector,
    FeedForwardClassifier,
    FusionDetector,
    ImageReadError,
    OpenCLIP,
    PromptDetector,
    RandomWordDetector,
    ReferenceDetector,
    SDPDetector,
    SDPPlusDetector,
    TiledDetector,
    WinCLIPDetector,
)


def _encode(prompts: list[str], n_features: int | None) -> np.ndarray:
    """Encode prompts to any width: a seeded direction for each."""
    rows = [
        np.random.default_rng(zlib.crc32(prompt.encode())).standard_normal(
            n_features or 3
        )
        for prompt in prompts
    ]
    embeddings = np.array(rows, dtype=np.float32)
    return embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)


class AnyWidthRandomWordDetector(RandomWordDetector):
    """scikit-learn's checks have 2 to 10 features, a CLIP has its own number."""

    def _encode_prompts(self, prompts: list[str], n_features: int | None) -> np.ndarray:
        return _encode(prompts, n_features)


class AnyWidthPromptDetector(PromptDetector):
    def _encode_prompts(self, prompts: list[str], n_features: int | None) -> np.ndarray:
        return _encode(prompts, n_features)


class LabelledDamageDirectionDetector(DamageDirectionDetector):
    """Brings its own labels, because those of the checks have one kind, or three."""

    def fit(self, X: Any = None, y: Any = None, groups: Any = None) -> Any:
        if X is None:
            return super().fit()
        n_samples = _num_samples(X)
        labels = np.where(np.arange(n_samples) % 3, 1, -1)
        if y is not None:
            check_consistent_length(X, y)
        return super().fit(X, labels)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = False
        return tags


class UnlabelledCalibratedThresholdDetector(CalibratedThresholdDetector):
    """scikit-learn's checks give labels of any number; `fit` takes them for what
    they are, which is tested in tests/detectors/test_calibrated_threshold.py."""

    def fit(self, X: Any, y: Any = None, class_name: Any = None) -> Any:
        return super().fit(X, None, class_name)


# The default takes seconds for each fit, of which the checks make hundreds.
SMALL_NETWORK = FeedForwardClassifier((16,), min_steps=20, n_epochs=1)


def _embedding_detectors() -> list[Any]:
    words = AnyWidthRandomWordDetector(
        "tiny", n_pairs=40, classifier=SMALL_NETWORK, random_state=0
    )
    prompts = AnyWidthPromptDetector("tiny")
    return [
        words,
        AnyWidthRandomWordDetector(
            "tiny", n_pairs=40, classifier=LogisticRegression(), random_state=0
        ),
        prompts,
        FusionDetector([("words", clone(words)), ("prompts", clone(prompts))]),
        UnlabelledCalibratedThresholdDetector(
            clone(prompts), max_false_alarm=0.5, random_state=0
        ),
    ]


# Every expected failure: the check, why it cannot hold, and what replaces it.
_THREE_CLASSES = {
    "check_fit_score_takes_y": "its labels are of three classes, which `score` "
    "refuses; replaced by test_score_takes_y below"
}
EXPECTED_FAILURES: dict[str, dict[str, str]] = {
    "AnyWidthRandomWordDetector": _THREE_CLASSES,
    "AnyWidthPromptDetector": _THREE_CLASSES,
    "FusionDetector": _THREE_CLASSES,
    "LabelledDamageDirectionDetector": _THREE_CLASSES
    | {
        "check_fit2d_1sample": "one sample has one label; the error names it",
    },
    "UnlabelledCalibratedThresholdDetector": _THREE_CLASSES,
}


CHECKED = [
    FeedForwardClassifier((64, 64), learning_rate=3e-3, min_steps=40),
    *_embedding_detectors(),
    LabelledDamageDirectionDetector(),
    CLIPImageEncoder(),
    WinCLIPDetector(),
    ReferenceDetector(),
    SDPDetector(),
    SDPPlusDetector(),
    TiledDetector(SDPDetector()),
]


def test_every_estimator_is_checked() -> None:
    public = {getattr(clipad_sklearn, name) for name in clipad_sklearn.__all__}
    estimators = {
        thing
        for thing in public - {OpenCLIP}  # holds settings
        if isinstance(thing, type) and issubclass(thing, BaseEstimator)
    }
    checked = {base for one in CHECKED for base in type(one).mro()}
    assert estimators <= checked, "add one to CHECKED"


@parametrize_with_checks(
    CHECKED,
    expected_failed_checks=lambda estimator: EXPECTED_FAILURES.get(
        type(estimator).__name__, {}
    ),
)
# On noise, an uncalibrated threshold does call everything the same.
@pytest.mark.filterwarnings("ignore:All .* images were classified:UserWarning")
# Nor do the checks have products.
@pytest.mark.filterwarnings("ignore:The direction is learned from one:UserWarning")
@pytest.mark.filterwarnings("ignore:The threshold 0 is that of:UserWarning")
def test_sklearn_check(estimator: Any, check: Any) -> None:
    check(estimator)


@pytest.mark.parametrize("estimator", _embedding_detectors())
@pytest.mark.parametrize("labels", [(-1, 1), (1, 0), (True, False)])
def test_score_takes_y(estimator: Any, labels: Any, rng: np.random.Generator) -> None:
    X = rng.standard_normal((30, 4))
    y = np.where(np.arange(30) % 3 == 0, *labels)
    margins = clone(estimator).fit(X, y).score_samples(X)
    anomalous, normal = margins[::3], np.delete(margins, slice(None, None, 3))
    wins = (anomalous[:, None] < normal) + (anomalous[:, None] == normal) / 2
    assert estimator.fit(X, y).score(X, y) == pytest.approx(wins.mean(), abs=0.02)


@pytest.mark.parametrize(
    "check",
    [
        check_parameters_default_constructible,
        check_no_attributes_set_in_init,
        check_get_params_invariance,
        check_set_params,
        check_estimator_repr,
        check_estimator_cloneable,
    ],
)
def test_settings_object(check: Any) -> None:
    """`OpenCLIP` has parameters but no `fit`."""
    check("OpenCLIP", OpenCLIP())


class TrainedSDPPlusDetector(SDPPlusDetector):
    """Brings its own training images, because the checks know no masks."""

    def fit(self, X: Any = None, masks: Any = None, class_name: Any = None) -> Any:
        images = [np.full((16, 16, 3), value, np.uint8) for value in (0, 200)]
        return super().fit(images, [None, np.eye(16, dtype=bool)])


class OwnReferenceDetector(ReferenceDetector):
    """Brings its own references where the checks have no photos."""

    def fit(self, X: Any = None, y: Any = None, class_name: Any = None) -> Any:
        rng = np.random.default_rng(1)
        own = rng.integers(0, 256, (5, 24, 24, 3), dtype=np.uint8)
        return super().fit(own if X is None else X, y)


def _image_estimators() -> list[Any]:
    words = RandomWordDetector(
        "tiny", n_pairs=50, classifier=SMALL_NETWORK, random_state=0
    )
    return [
        CLIPImageEncoder("tiny"),
        make_pipeline(CLIPImageEncoder("tiny"), words),
        make_pipeline(CLIPImageEncoder("tiny"), PromptDetector("tiny")),
        make_pipeline(
            CLIPImageEncoder("tiny"),
            FusionDetector([("words", words), ("prompts", PromptDetector("tiny"))]),
        ),
        WinCLIPDetector("tiny"),
        OwnReferenceDetector("tiny"),
        SDPDetector("tiny"),
        TrainedSDPPlusDetector("tiny", n_epochs=1, random_state=0),
        TiledDetector(SDPDetector("tiny"), tiles=(1, 2)),
    ]


def _output(estimator: Any, images: Any) -> np.ndarray:
    name = "score_samples" if hasattr(estimator, "score_samples") else "transform"
    return getattr(estimator, name)(images)


image_estimators = pytest.mark.parametrize(
    "estimator",
    _image_estimators(),
    ids=lambda e: type(getattr(e, "_final_estimator", e)).__name__,
)


@image_estimators
class TestImageEstimator:
    """Replaces what scikit-learn's checks cannot do with images."""

    def test_fit_returns_self(self, estimator: Any, photos: list[Any]) -> None:
        estimator = clone(estimator)
        assert estimator.fit(photos) is estimator

    def test_parameters_and_dict_unchanged(
        self, estimator: Any, photos: list[Any]
    ) -> None:
        estimator = clone(estimator)
        before = repr(estimator.get_params(deep=False))
        estimator.fit(photos)
        assert repr(estimator.get_params(deep=False)) == before
        last = getattr(estimator, "_final_estimator", estimator)
        state = pickle.dumps(vars(last))
        _output(estimator, photos)
        assert pickle.dumps(vars(last)) == state

    def test_fit_is_idempotent(self, estimator: Any, photos: list[Any]) -> None:
        first = _output(clone(estimator).fit(photos), photos)
        twice = clone(estimator).fit(photos).fit(photos)
        np.testing.assert_array_equal(_output(twice, photos), first)

    def test_input_kinds_agree(
        self, estimator: Any, photos: list[Any], photo_files: list[str]
    ) -> None:
        estimator = clone(estimator).fit(None)
        expected = _output(estimator, photo_files)
        from PIL import Image

        for images in (
            photos,
            [Image.fromarray(pixels) for pixels in photos],
            np.array(photo_files),
            np.array(photo_files, dtype=object),
            tuple(photo_files),
        ):
            np.testing.assert_allclose(_output(estimator, images), expected, atol=1e-5)

    @pytest.mark.usefixtures("on_processor")
    def test_subset_and_order_invariance(
        self, estimator: Any, photos: list[Any]
    ) -> None:
        estimator = clone(estimator).fit(None)
        expected = _output(estimator, photos)
        # Margins in spreads of the references magnify the noise of float32.
        atol = 1e-3 if isinstance(estimator, ReferenceDetector) else 1e-5
        one_by_one = [_output(estimator, [photo])[0] for photo in photos]
        np.testing.assert_allclose(one_by_one, expected, atol=atol, rtol=1e-4)
        backwards = _output(estimator, photos[::-1])[::-1]
        np.testing.assert_allclose(backwards, expected, atol=atol, rtol=1e-4)

    def test_pickle_round_trip(self, estimator: Any, photos: list[Any]) -> None:
        estimator = clone(estimator).fit(photos)
        again = pickle.loads(pickle.dumps(estimator))
        np.testing.assert_array_equal(
            _output(again, photos), _output(estimator, photos)
        )

    def test_none_passes_fit_only(self, estimator: Any, photos: list[Any]) -> None:
        estimator = clone(estimator).fit(None)
        if hasattr(estimator, "predict"):
            with pytest.raises(ValueError, match="X is None"):
                estimator.predict(None)
            with pytest.raises(ValueError, match="X is None"):
                estimator.fit_predict(None)
        else:
            assert estimator.transform(None) is None

    def test_pandas_output(self, estimator: Any, photos: list[Any]) -> None:
        pd = pytest.importorskip("pandas")
        if not hasattr(estimator, "set_output"):
            pytest.skip("not a transformer")
        expected = _output(clone(estimator).fit(None), photos)
        estimator = clone(estimator).set_output(transform="pandas").fit(None)
        output = _output(estimator, photos)
        np.testing.assert_allclose(np.asarray(output), expected, rtol=1e-6)
        if isinstance(output, pd.DataFrame):
            assert list(output.columns) == list(estimator.get_feature_names_out())

    def test_unreadable_images_are_all_named(
        self, estimator: Any, photos: list[Any]
    ) -> None:
        images = [photos[0], "missing.png", photos[1], np.zeros((0, 4, 3), np.uint8)]
        estimator = clone(estimator).fit(None)
        with pytest.raises(ImageReadError) as error:
            _output(estimator, images)
        assert [failure[0] for failure in error.value.failures] == [1, 3]

    @pytest.mark.parametrize("images", [[], "photo.png", np.zeros((8, 8, 3), np.uint8)])
    def test_not_a_list_of_images(self, estimator: Any, images: Any) -> None:
        estimator = clone(estimator).fit(None)
        with pytest.raises(ValueError, match=r"minimum of 1|[Ww]rap it in a list"):
            _output(estimator, images)
