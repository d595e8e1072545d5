"""`FusionDetector`: closed forms, members of every kind, maps, and its errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.special import expit, logit
from sklearn.base import BaseEstimator, OutlierMixin, clone
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.pipeline import make_pipeline

from clipad_sklearn import (
    CLIPImageEncoder,
    DamageDirectionDetector,
    FusionDetector,
    OpenCLIP,
    PromptDetector,
    RandomWordDetector,
    SDPDetector,
    WinCLIPDetector,
)
from clipad_sklearn._clip.models import load

FAST = {"n_pairs": 100, "classifier": LogisticRegression(), "random_state": 0}


@pytest.fixture
def embeddings(rng: np.random.Generator) -> np.ndarray:
    width = load(OpenCLIP("tiny")).embedding_width
    X = rng.standard_normal((60, width)).astype(np.float32)
    return X / np.linalg.norm(X, axis=1, keepdims=True)


class Fixed(OutlierMixin, BaseEstimator):
    """Stands for a detector: its margin is the first feature of X, times C."""

    def __init__(self, C: float = 1.0):
        self.C = C

    def fit(self, X: Any = None, y: Any = None) -> Fixed:
        self.n_features_in_ = 1
        return self

    def score_samples(self, X: Any) -> np.ndarray:
        return np.asarray(X)[:, 0] * self.C


class TestFusionDetector:
    MARGINS = np.linspace(-4, 4, 9)[:, np.newaxis]

    def _fuse(self, **params: Any) -> np.ndarray:
        members = [("a", Fixed(C=1.0)), ("b", Fixed(C=-0.5)), ("c", Fixed(C=2.0))]
        return FusionDetector(members, **params).fit().score_samples(self.MARGINS)

    @pytest.mark.parametrize("weights", [None, [1, 2, 3], [0, 1, 1]])
    @pytest.mark.parametrize("method", ["mean", "harmonic", "logit_mean"])
    def test_closed_forms(self, method: str, weights: list[float] | None) -> None:
        w = np.full(3, 1 / 3) if weights is None else np.array(weights) / sum(weights)
        m = self.MARGINS * [1.0, -0.5, 2.0]
        p = expit(-m)
        expected = {
            "mean": -logit(p @ w),
            "harmonic": -logit(1 / ((1 / p) @ w)),
            "logit_mean": m @ w,
        }[method]
        found = self._fuse(method=method, weights=weights)
        np.testing.assert_allclose(found, expected, atol=1e-9)

    def test_max(self) -> None:
        m = self.MARGINS * [1.0, -0.5, 2.0]
        np.testing.assert_allclose(self._fuse(method="max"), m.min(axis=1))

    def test_mean_ranks_as_the_sum_of_scores(self, rng: np.random.Generator) -> None:
        X = rng.normal(size=(50, 1))
        members = [("a", Fixed(C=3.0)), ("b", Fixed(C=-2.0))]
        fused = FusionDetector(members).fit().score_samples(X)
        total = expit(-3 * X[:, 0]) + expit(2 * X[:, 0])
        np.testing.assert_array_equal(np.argsort(fused), np.argsort(-total))

    def test_does_not_saturate(self) -> None:
        X = np.array([[-900.0], [-800.0], [800.0], [900.0]])
        for method in ("mean", "max", "harmonic", "logit_mean"):
            members = [("a", Fixed(C=1.0)), ("b", Fixed(C=1.5))]
            fused = FusionDetector(members, method=method).fit().score_samples(X)
            assert np.isfinite(fused).all()
            assert (np.diff(fused) > 0).all()

    def test_parameters_of_members(self) -> None:
        fusion = FusionDetector(
            [("words", RandomWordDetector("tiny")), ("prompts", PromptDetector("tiny"))]
        )
        fusion.set_params(words__n_pairs=7, prompts__class_name="nut", method="max")
        assert fusion.get_params()["words__n_pairs"] == 7
        assert clone(fusion).get_params()["prompts__class_name"] == "nut"
        assert fusion.detectors[0][1].n_pairs == 7

    def test_class_name_reaches_only_members_that_take_it(
        self, embeddings: np.ndarray
    ) -> None:
        names = ["nut", "bolt"] * 30
        words, prompts = RandomWordDetector("tiny", **FAST), PromptDetector("tiny")
        fusion = FusionDetector([("w", words), ("p", prompts)], method="logit_mean")
        fused = fusion.fit(embeddings, class_name=names).score_samples(
            embeddings, class_name=names
        )
        single = (
            clone(words).fit().score_samples(embeddings)
            + clone(prompts).fit().score_samples(embeddings, class_name=names)
        ) / 2
        np.testing.assert_allclose(fused, single, atol=1e-5)

    @pytest.mark.parametrize(
        ("detectors", "params", "message"),
        [
            ([], {}, "detectors is empty"),
            ([("a", Fixed()), ("a", Fixed())], {}, "not unique"),
            ([("a__b", Fixed())], {}, "must not contain __"),
            ([("method", Fixed())], {}, "conflict"),
            ([("a", RidgeClassifier())], {}, "is not a detector"),
            ([("a", Fixed())], {"method": "median"}, "method='median'"),
            ([("a", Fixed())], {"weights": [1, 2]}, "expected 1 numbers"),
            ([("a", Fixed())], {"weights": [-1]}, "expected 1 numbers"),
            ([("a", Fixed())], {"weights": [0]}, "not all 0"),
            ([("a", Fixed())], {"weights": [1], "method": "max"}, "takes no weights"),
        ],
    )
    def test_errors(self, detectors: Any, params: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            FusionDetector(detectors, **params).fit()


# -- standardized ------------------------------------------------------------------


@pytest.mark.parametrize("weights", [None, [1, 3]])
def test_standardized(weights: Any, rng: np.random.Generator) -> None:
    """One scale for members whose margins differ in scale; the formula in full."""
    X, new = rng.standard_normal((200, 1)), np.linspace(-4, 4, 9)[:, np.newaxis]
    members = [("a", Fixed(C=1.0)), ("b", Fixed(C=1000.0))]
    fusion = FusionDetector(members, method="standardized", weights=weights).fit(X)
    z = []
    for C in (1.0, 1000.0):
        a = -C * X[:, 0]
        c = np.median(a)
        s = max(c - np.quantile(a, 0.16), 0.01 * abs(c) + 1e-3)
        z.append((-C * new[:, 0] - c) / s)
    w = [0.5, 0.5] if weights is None else [0.25, 0.75]
    np.testing.assert_allclose(
        fusion.score_samples(new), 3 - (w[0] * z[0] + w[1] * z[1]), atol=1e-9
    )
    # Members of one ranking: whatever their scale, the fusion keeps it.
    np.testing.assert_allclose(z[0], z[1], atol=0.05)
    with pytest.raises(ValueError, match="takes the scale of each member"):
        FusionDetector(members, method="standardized").fit()
    later = FusionDetector(members).fit(X).set_params(method="standardized")
    with pytest.raises(ValueError, match="fit again"):
        later.score_samples(new)


# -- members -----------------------------------------------------------------------


def test_dropped_members(rng: np.random.Generator) -> None:
    X = rng.standard_normal((30, 1))
    members = [("a", Fixed(C=1.0)), ("b", Fixed(C=-5.0)), ("c", Fixed(C=2.0))]
    fusion = FusionDetector(members, method="logit_mean", weights=[1, 7, 3])
    fusion.set_params(b="drop").fit(X)
    np.testing.assert_allclose(fusion.score_samples(X), X[:, 0] * (1 + 6) / 4)
    assert list(fusion.named_detectors_) == ["a", "c"]
    assert fusion.n_features_in_ == 1
    fusion.set_params(a="drop", c="drop")
    with pytest.raises(ValueError, match="at least one that is not 'drop'"):
        fusion.fit(X)
    with pytest.raises(ValueError, match="'b' is not a detector: 'none'"):
        fusion.set_params(a=Fixed(), b="none").fit(X)


def test_members_without_names() -> None:
    fusion = FusionDetector([Fixed(), Fixed()])  # type: ignore[list-item]
    with pytest.raises(ValueError, match=r"expected a list of \(name, detector\)"):
        fusion.fit()
    repr(fusion)


def test_members_that_learn_from_labels(embeddings: np.ndarray) -> None:
    y, groups = np.tile([1, -1], 30), np.repeat(["bolt", "nut"], 30)
    direction = DamageDirectionDetector()
    for member in (direction, make_pipeline("passthrough", direction)):
        with pytest.raises(ValueError, match="and freeze it"):
            FusionDetector([("damage", member)]).fit(embeddings)
    direction.fit(embeddings, y, groups)
    members = [
        ("damage", FrozenEstimator(direction)),
        ("prompts", PromptDetector("tiny")),
    ]
    fusion = FusionDetector(members, method="logit_mean")
    fusion.fit(embeddings, class_name="nut")
    prompts = PromptDetector("tiny").fit(embeddings, class_name="nut")
    np.testing.assert_allclose(
        fusion.score_samples(embeddings),
        direction.score_samples(embeddings) / 2 + prompts.score_samples(embeddings) / 2,
    )
    assert clone(fusion).fit(None).detectors_[0].estimator is direction


def test_members_on_images_and_pipelines_mix(photos: list[np.ndarray]) -> None:
    sdp = SDPDetector("tiny", sigma=2)
    prompts = make_pipeline(CLIPImageEncoder("tiny"), PromptDetector("tiny"))
    for first, second in ((sdp, prompts), (prompts, sdp)):
        fusion = FusionDetector([("a", first), ("b", second)], method="max")
        expected = [
            clone(one).fit(photos).score_samples(photos) for one in (first, second)
        ]
        np.testing.assert_allclose(
            fusion.fit(iter(photos)).score_samples(photos),
            np.min(expected, axis=0),
            atol=1e-4,
        )
        assert not hasattr(fusion, "anomaly_maps")
        assert not hasattr(fusion, "pixel_offset_")


# -- maps --------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["mean", "max", "harmonic", "logit_mean"])
def test_maps_pixel_by_pixel(method: str, photos: list[np.ndarray]) -> None:
    words = RandomWordDetector("tiny", **FAST)
    members = [
        ("sdp", SDPDetector("tiny", sigma=2)),
        ("windows", WinCLIPDetector("tiny", scorer=words, window_sizes=(2,))),
    ]
    fusion = FusionDetector(members, method=method)
    assert hasattr(fusion, "anomaly_maps"), "before fit, too"
    fusion.fit(photos[:3])
    p, q = (
        clone(one).fit(photos[:3]).anomaly_maps(photos[:3], size=(20, 30))
        for _, one in members
    )
    expected = {
        "mean": lambda: (p + q) / 2,
        "max": lambda: np.maximum(p, q),
        "harmonic": lambda: 2 / (1 / p + 1 / q),
        "logit_mean": lambda: expit((logit(p) + logit(q)) / 2),
    }[method]()
    found = fusion.anomaly_maps(photos[:3], size=(20, 30))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)
    maps = fusion.anomaly_maps(photos[:3])
    assert [m.shape for m in maps] == [photo.shape[:2] for photo in photos[:3]]
    fusion.pixel_offset_ = float(np.median(found))
    masks = fusion.predict_masks(photos[:3], size=(20, 30))
    np.testing.assert_array_equal(masks, found > fusion.pixel_offset_)
    named = fusion.anomaly_maps(photos[:2], size="model", class_name="nut")
    assert not np.allclose(named, fusion.anomaly_maps(photos[:2], size="model"))
    with pytest.raises(ValueError, match="size='screen'"):
        fusion.iter_anomaly_maps(photos, size="screen")  # before the first map


def test_no_maps_without_those_of_all_members() -> None:
    members = [("sdp", SDPDetector("tiny")), ("prompts", PromptDetector("tiny"))]
    with pytest.raises(AttributeError, match="anomaly_maps") as error:
        FusionDetector(members).anomaly_maps([])
    assert "'prompts' of FusionDetector gives no anomaly maps" in repr(
        error.value.__cause__ or error.value
    )
