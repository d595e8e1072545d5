"""`DamageDirectionDetector`: its formula, thresholds, and routing of groups."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from sklearn import config_context
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import LeaveOneGroupOut, cross_val_score
from sklearn.pipeline import make_pipeline

from clipad_sklearn import (
    CLIPImageEncoder,
    DamageDirectionDetector,
    WinCLIPDetector,
    calibrate_threshold,
)
from clipad_sklearn.datasets import make_defect_images
from clipad_sklearn.metrics import auroc


@pytest.fixture
def products(
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Embeddings of three products, labels, groups, and the planted direction."""
    direction = rng.standard_normal(12)
    direction /= np.linalg.norm(direction)
    groups = np.repeat(["bolt", "lid", "nut"], [60, 40, 50])
    y = np.where(rng.random(150) < 0.4, -1, 1)
    places = {name: 4 * rng.standard_normal(12) for name in ("bolt", "lid", "nut")}
    X = rng.standard_normal((150, 12)) + np.stack([places[name] for name in groups])
    X[y == -1] += 2.5 * direction
    return X, y, groups, direction


def slow(X: np.ndarray, y: np.ndarray, groups: np.ndarray) -> tuple[Any, ...]:
    """The formula, written out product by product."""
    names = sorted(set(groups))

    def unit(some: list[str]) -> np.ndarray:
        total = np.zeros(X.shape[1])
        for name in some:
            own = groups == name
            bad, good = X[own & (y == -1)], X[own & (y == 1)]
            total += (bad.sum(0) / len(bad) - good.sum(0) / len(good)) / len(some)
        return total / np.sqrt((total**2).sum())

    w = unit(names)
    medians, deviations = [], []
    for name in names:
        along = X[(groups == name) & (y == 1)] @ w
        medians.append(np.median(along))
        deviations += list(along - along.mean())
    b = sum(medians) / len(names)
    s = np.sqrt(np.sum(np.square(deviations)) / (len(deviations) - len(names)))
    ranking = [
        auroc(y[groups == n], X[groups == n] @ unit([m for m in names if m != n]))
        for n in names
    ]
    return w, -(X @ w - b) / s, ranking


def test_formula_and_recovery(products: Any) -> None:
    X, y, groups, direction = products
    w, margins, ranking = slow(X, y, groups)
    detector = DamageDirectionDetector().fit(X, y, groups)
    np.testing.assert_allclose(detector.direction_, w)
    np.testing.assert_allclose(detector.score_samples(X), margins)
    np.testing.assert_allclose(detector.product_auroc_, ranking)
    assert detector.products_ == ["bolt", "lid", "nut"]
    assert detector.direction_ @ direction > 0.9
    assert np.linalg.norm(detector.direction_) == pytest.approx(1)
    for labels in (y == -1, (y == -1).astype(int)):
        same = DamageDirectionDetector().fit(X, labels, groups)
        np.testing.assert_array_equal(same.direction_, detector.direction_)


def test_a_constant_per_product(products: Any, rng: np.random.Generator) -> None:
    """It shifts all margins by one number, and changes nothing else."""
    X, y, groups, _ = products
    moved = X.copy()
    for name in set(groups):
        moved[groups == name] += 5 * rng.standard_normal(X.shape[1])
    first = DamageDirectionDetector().fit(X, y, groups)
    second = DamageDirectionDetector().fit(moved, y, groups)
    np.testing.assert_allclose(second.direction_, first.direction_)
    assert second.scale_ == pytest.approx(first.scale_)
    np.testing.assert_allclose(second.product_auroc_, first.product_auroc_)
    shifts = second.score_samples(X) - first.score_samples(X)
    assert np.ptp(shifts) < 1e-9
    assert abs(shifts[0]) > 1e-3


def test_products_with_one_kind_of_image(products: Any) -> None:
    X, y, groups, _ = products
    with_more = np.concatenate([groups, ["good only"] * 5, ["bad only"] * 2])
    labels = np.concatenate([y, [1] * 5, [-1] * 2])
    rows = np.concatenate([X, np.full((7, 12), 99.0)])
    expected = DamageDirectionDetector().fit(X, y, groups)
    with pytest.warns(UserWarning, match=r"2 products are left out.*'bad only', 'good"):
        found = DamageDirectionDetector().fit(rows, labels, with_more)
    np.testing.assert_array_equal(found.direction_, expected.direction_)
    assert found.center_ == expected.center_
    with pytest.warns(UserWarning, match="learned from one product"):
        one = DamageDirectionDetector().fit(X, y)
    assert one.product_auroc_.shape == (0,)
    with pytest.raises(ValueError, match="No product has both"):
        DamageDirectionDetector().fit(X[:4], [1, 1, -1, -1], list("aabb"))


@pytest.mark.parametrize(
    ("X", "y", "groups", "message"),
    [
        (None, None, None, "X is None, but DamageDirectionDetector learns"),
        (np.eye(4), None, None, "requires y to be passed, but the target y is None"),
        (np.eye(4), ["good", "bad"] * 2, None, "y holds strings"),
        (np.eye(4), [1, 1, 1, 1], None, "All labels are 1"),
        (np.eye(4), [1, -1], None, "inconsistent numbers of samples"),
        (np.eye(4), [1, -1, 1, -1], ["a"], "inconsistent numbers of samples"),
        (np.ones((4, 4)), [1, -1, 1, -1], list("aabb"), "cancel out"),
        (["a.png"] * 4, [1, -1, 1, -1], None, "put CLIPImageEncoder"),
    ],
)
def test_bad_input(X: Any, y: Any, groups: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DamageDirectionDetector().fit(X, y, groups)


def test_verdicts_need_a_threshold(products: Any) -> None:
    X, y, groups, _ = products
    detector = DamageDirectionDetector().fit(X[:100], y[:100], groups[:100])
    new, labels = X[100:], y[100:]
    with pytest.warns(UserWarning, match="set its threshold"):
        detector.predict(new[:3])
    calibrate_threshold(detector, new, labels)
    assert (detector.predict(new) == labels).mean() > 0.8
    with pytest.warns(UserWarning, match="set its threshold"):
        verdicts = DamageDirectionDetector().fit_predict(X, y, groups)
    assert set(verdicts) == {-1, 1}
    quantile = DamageDirectionDetector(contamination=0.4).fit(X, y, groups)
    assert (quantile.predict(X) == -1).sum() == 60


def test_groups_are_routed(products: Any) -> None:
    X, y, groups, _ = products
    expected = DamageDirectionDetector().fit(X, y, groups)
    plain = make_pipeline("passthrough", DamageDirectionDetector())
    plain.fit(X, y, damagedirectiondetector__groups=groups)
    np.testing.assert_array_equal(plain[-1].direction_, expected.direction_)
    with config_context(enable_metadata_routing=True):
        routed = make_pipeline(
            "passthrough", DamageDirectionDetector().set_fit_request(groups=True)
        )
        scores = cross_val_score(
            routed,
            X,
            y,
            cv=LeaveOneGroupOut(),
            params={"groups": groups},
            error_score="raise",
        )
    np.testing.assert_allclose(scores, expected.product_auroc_)


def test_frozen_as_scorer_of_windows() -> None:
    data = make_defect_images(40, families="textures", size=64, random_state=0)
    encoder = CLIPImageEncoder("tiny")
    X = encoder.fit_transform(data.images)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about families with one kind of image
        detector = DamageDirectionDetector().fit(X, data.target, data.family)
    windows = WinCLIPDetector("tiny", scorer=FrozenEstimator(detector))
    windows.fit()
    np.testing.assert_allclose(
        windows.score_samples(data.images[:3]), detector.score_samples(X[:3]), atol=1e-4
    )
    assert windows.anomaly_maps(data.images[:2])[0].shape == (64, 64)
    with pytest.raises(ValueError, match="fit it on other products and freeze it"):
        WinCLIPDetector("tiny", scorer=DamageDirectionDetector()).fit()
