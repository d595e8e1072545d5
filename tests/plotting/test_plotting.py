"""`AnomalyMapDisplay`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import matplotlib
import numpy as np
import pytest

from clipad_sklearn import PromptDetector, SDPDetector
from clipad_sklearn.plotting import AnomalyMapDisplay

matplotlib.use("Agg")

from matplotlib import pyplot as plt


@pytest.fixture(autouse=True)
def close_figures() -> Iterator[None]:
    yield
    plt.close("all")


@pytest.fixture
def maps(photos: list[np.ndarray], rng: np.random.Generator) -> list[np.ndarray]:
    return [rng.random((8, 8)) * (i + 1) for i in range(len(photos))]


def test_one_colour_scale_and_true_proportions(
    photos: list[np.ndarray], maps: list[np.ndarray]
) -> None:
    display = AnomalyMapDisplay.from_predictions(photos, maps)
    assert display.axes_.shape == (len(photos),)
    low, high = min(m.min() for m in maps), max(m.max() for m in maps)
    for axis, photo in zip(display.axes_, photos, strict=True):
        image, overlay = axis.get_images()
        assert overlay.get_clim() == (low, high)
        height, width = photo.shape[:2]
        for drawn in (image, overlay):
            assert drawn.get_extent() == [0, width, height, 0]
        assert axis.get_aspect() == 1
    assert display.colorbar_.ax.get_ylabel() == "anomaly score"
    assert len(display.figure_.axes) == len(photos) + 1


def test_outlines_of_masks(photos: list[np.ndarray], maps: list[np.ndarray]) -> None:
    masks: list[Any] = [None, np.zeros(photos[1].shape[:2], bool)]
    masks.append(np.eye(*photos[2].shape[:2], dtype=bool))
    display = AnomalyMapDisplay.from_predictions(
        photos[:3], maps[:3], masks=masks, titles=["a", "b", "c"]
    )
    drawn = [len(axis.collections) > 0 for axis in display.axes_]
    assert drawn == [False, False, True]
    assert [axis.get_title() for axis in display.axes_] == ["a", "b", "c"]


def test_from_estimator(photos: list[np.ndarray], photo_files: list[str]) -> None:
    detector = SDPDetector("tiny").fit()
    display = AnomalyMapDisplay.from_estimator(
        detector, photo_files[:3], n_columns=2, class_name="nut", cmap="gray"
    )
    expected = detector.anomaly_maps(photos[:3], size="model", class_name="nut")
    for got, wanted in zip(display.anomaly_maps, expected, strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-6)
    display.figure_.canvas.draw()


def test_own_axes_and_scale(photos: list[np.ndarray], maps: list[np.ndarray]) -> None:
    figure, axes = plt.subplots(1, 2)
    display = AnomalyMapDisplay.from_predictions(
        photos[:2], maps[:2], ax=axes, vmin=0, vmax=1, colorbar=False
    )
    assert display.figure_ is figure
    assert display.colorbar_ is None
    assert [axis.get_images()[1].get_clim() for axis in axes] == [(0, 1), (0, 1)]
    _, ax = plt.subplots()
    again = AnomalyMapDisplay(display.images[:1], maps[:1])
    assert again.plot(ax=ax) is again


def test_large_photos_are_drawn_small() -> None:
    photo = np.zeros((1500, 3000, 3), np.uint8)
    display = AnomalyMapDisplay.from_predictions([photo], [np.eye(4)])
    assert display.images[0].shape == (512, 1024, 3)


@pytest.mark.parametrize(
    ("X", "params", "error", "message"),
    [
        (2, {"anomaly_maps": 1}, ValueError, "2 images, but 1 anomaly_maps"),
        (2, {"masks": [None]}, ValueError, "but 1 masks"),
        (2, {"titles": ["a"]}, ValueError, "but 1 titles"),
        (2, {"ax": "one"}, ValueError, "one Axes for each of the 2 images, got 1"),
        (["missing.png"], {"anomaly_maps": 1}, ValueError, "no such file"),
        ("photo.png", {}, ValueError, "Wrap it in a list"),
    ],
)
def test_wrong_input(
    X: Any,
    params: dict[str, Any],
    error: type,
    message: str,
    photos: list[np.ndarray],
    maps: list[np.ndarray],
) -> None:
    X = photos[:X] if isinstance(X, int) else X
    params = dict(params)
    if params.get("ax") == "one":
        params["ax"] = plt.subplots()[1]
    n_maps = params.pop("anomaly_maps", len(X))
    with pytest.raises(error, match=message):
        AnomalyMapDisplay.from_predictions(X, maps[:n_maps], **params)


def test_a_detector_without_maps(photos: list[np.ndarray]) -> None:
    with pytest.raises(TypeError, match="has no anomaly_maps"):
        AnomalyMapDisplay.from_estimator(PromptDetector("tiny"), photos)
