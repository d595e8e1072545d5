"""Connected regions of anomaly maps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from clipad_sklearn import anomaly_regions


def test_two_blobs_and_touching_borders() -> None:
    anomaly_map = np.zeros((10, 12), np.float32)
    anomaly_map[:2, :3] = 0.6
    anomaly_map[1, 1] = 0.9
    anomaly_map[7:, 11] = 0.8
    first, second = anomaly_regions(anomaly_map).tolist()
    assert first == (0, 0, 2, 3, 6, pytest.approx(0.9), pytest.approx(0.65))
    assert second == (7, 11, 10, 12, 3, pytest.approx(0.8), pytest.approx(0.8))


def test_pixels_that_touch_at_a_corner_are_one_region() -> None:
    assert anomaly_regions(np.eye(5))["area"].tolist() == [5]


def test_the_threshold_itself_is_normal() -> None:
    anomaly_map = np.full((3, 3), 0.5, np.float32)
    assert len(anomaly_regions(anomaly_map)) == 0
    assert anomaly_regions(anomaly_map, 0.25)["area"].tolist() == [9]


@pytest.mark.parametrize("dtype", [bool, np.uint8, float])
def test_ignored_mask_splits_a_region(dtype: Any) -> None:
    ignore = np.zeros((5, 9), dtype)
    ignore[:, 4] = 255 if dtype is np.uint8 else 1
    regions = anomaly_regions(np.ones((5, 9)), ignore=ignore)
    assert sorted(regions["left"].tolist()) == [0, 5]
    assert regions["area"].tolist() == [20, 20]


def test_ignored_polygon_is_what_lies_inside() -> None:
    triangle = [(0, 0), (8, 0), (0, 8)]
    left = anomaly_regions(np.ones((8, 8)), ignore=triangle)
    # Of 64 pixel centres, x + y < 8 holds for 28 above the diagonal and not on it.
    assert left["area"].tolist() == [64 - 28]


def test_small_regions_are_left_out() -> None:
    anomaly_map = np.zeros((6, 6))
    anomaly_map[0, 0] = anomaly_map[3:5, 3:5] = 1
    assert anomaly_regions(anomaly_map, min_area=2)["area"].tolist() == [4]


@settings(deadline=None, derandomize=True, max_examples=30)
@given(
    hnp.arrays(
        np.float32, st.tuples(st.integers(1, 9), st.integers(1, 9)),
        elements=st.sampled_from([0.0, 0.25, 0.75, 1.0]),
    )
)  # fmt: skip
def test_regions_hold_exactly_the_pixels_above(anomaly_map: np.ndarray) -> None:
    regions = anomaly_regions(anomaly_map)
    assert regions["area"].sum() == (anomaly_map > 0.5).sum()
    for top, left, bottom, right, area, peak, mean in regions.tolist():
        box = anomaly_map[top:bottom, left:right]
        assert 1 <= area <= box.size
        assert 0.5 < mean <= peak <= box.max()
    assert (np.diff(regions["peak"]) <= 0).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"anomaly_map": np.zeros(3)}, "expected one map of shape"),
        ({"anomaly_map": np.full((2, 2), np.nan)}, "without NaN"),
        ({"anomaly_map": np.zeros((0, 5))}, r"shape \(0, 5\): expected one map"),
        ({"offset": np.nan}, "offset=nan: expected a number"),
        ({"offset": True}, "offset=True: expected a number"),
        ({"offset": "0.5"}, "offset='0.5': expected a number"),
        ({"min_area": True}, "min_area=True: expected"),
        ({"ignore": [(0, 0), (1, 1), (np.nan, 2)]}, "ignore: expected finite numbers"),
        ({"ignore": [(0, 0), (10**400, 1), (2, 2)]}, "ignore: expected finite numbers"),
        ({"ignore": [("a", "b")] * 3}, "ignore: expected finite numbers"),
        ({"min_area": 0}, "min_area=0: expected"),
        ({"min_area": 1.5}, "min_area=1.5: expected"),
        ({"ignore": np.zeros((3, 4))}, r"ignore of shape \(3, 4\): expected a mask"),
        ({"ignore": [(0, 0), (1, 1)]}, "at least three"),
    ],
)
def test_bad_input(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        anomaly_regions(**{"anomaly_map": np.zeros((5, 5)), **arguments})


@pytest.mark.parametrize("offset", [-np.inf, np.float32(0.25), np.array(0.25), 0])
def test_any_number_is_a_threshold(offset: Any) -> None:
    assert anomaly_regions(np.full((2, 3), 0.5), offset)["area"].tolist() == [6]
