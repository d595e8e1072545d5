"""Where tiles lie, and how their maps are laid back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipad_sklearn._detectors.tiles import blending_weights, stitched, tile_boxes

sides = st.integers(1, 300)
overlaps = st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.9])


def covered(boxes: list[tuple[int, int, int, int]], size: tuple[int, int]) -> bool:
    seen = np.zeros(size, bool)
    for top, left, bottom, right in boxes:
        assert 0 <= top < bottom <= size[0]
        assert 0 <= left < right <= size[1]
        seen[top:bottom, left:right] = True
    return bool(seen.all())


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    st.tuples(sides, sides), st.tuples(st.integers(1, 6), st.integers(1, 6)), overlaps
)
def test_a_grid_covers_the_image(
    size: tuple[int, int], tiles: tuple[int, int], overlap: float
) -> None:
    boxes = tile_boxes(size, tiles, None, overlap)
    assert len(boxes) == tiles[0] * tiles[1]
    assert covered(boxes, size)
    assert (
        len({(bottom - top, right - left) for top, left, bottom, right in boxes}) == 1
    )


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    st.tuples(sides, sides), st.tuples(st.integers(1, 99), st.integers(1, 99)), overlaps
)
def test_tiles_of_one_size_cover_the_image(
    size: tuple[int, int], tile: tuple[int, int], overlap: float
) -> None:
    boxes = tile_boxes(size, None, tile, overlap)
    assert covered(boxes, size)
    heights = {bottom - top for top, _, bottom, _ in boxes}
    assert heights == {min(tile[0], size[0])}
    assert max(bottom for _, _, bottom, _ in boxes) == size[0]


def test_neighbours_overlap_as_asked() -> None:
    boxes = tile_boxes((100, 1000), (1, 4), None, 0.25)
    lefts = [left for _, left, _, _ in boxes]
    width = boxes[0][3] - boxes[0][1]
    assert width == 308  # 1000 / (1 + 3 x 0.75), rounded up
    assert lefts == [0, 231, 461, 692]
    assert max(np.diff(lefts)) < 0.75 * width + 1


def test_no_larger_than_a_tile_is_one_tile() -> None:
    assert tile_boxes((50, 80), None, (64, 80), 0.25) == [(0, 0, 50, 80)]
    assert tile_boxes((200, 5000), None, (400, 400), 0.0)[-1] == (0, 4600, 200, 5000)


@settings(deadline=None, derandomize=True, max_examples=40)
@given(
    st.tuples(sides, sides), st.tuples(st.integers(1, 5), st.integers(1, 5)), overlaps
)
def test_constant_maps_give_a_constant_map(
    size: tuple[int, int], tiles: tuple[int, int], overlap: float
) -> None:
    boxes = tile_boxes(size, tiles, None, overlap)
    maps = [np.full((b - t, r - x), 0.7, np.float32) for t, x, b, r in boxes]
    np.testing.assert_allclose(stitched(maps, boxes, size), 0.7, rtol=1e-6)


def test_weights_fall_off_inside_the_image_only() -> None:
    weights = blending_weights((0, 4, 2, 8), (2, 12))
    np.testing.assert_allclose(weights, [[0.125, 0.375, 0.375, 0.125]] * 2)
    left = blending_weights((0, 0, 1, 4), (1, 12))
    np.testing.assert_allclose(left, [[0.875, 0.625, 0.375, 0.125]])


def test_the_whole_counts_where_it_is_higher() -> None:
    boxes = [(0, 0, 2, 2), (0, 2, 2, 4)]
    whole = np.array([[0.9, 0.0, 0.0, 0.9]] * 2, np.float32)
    tiles = [np.full((2, 2), 0.5, np.float32)] * 2
    result = stitched([*tiles, whole], boxes, (2, 4))
    np.testing.assert_allclose(result, [[0.9, 0.5, 0.5, 0.9]] * 2)


def test_seams_are_blended() -> None:
    boxes = tile_boxes((1, 70), (1, 2), None, 0.25)
    (_, _, _, end), (_, start, _, _) = boxes
    maps = [np.zeros((1, end), np.float32), np.ones((1, 70 - start), np.float32)]
    row = stitched(maps, boxes, (1, 70))[0]
    assert (row[:start] == 0).all()
    assert (row[end:] == 1).all()
    assert (np.diff(row[start:end]) > 0).all()
    assert pytest.approx(0.5, abs=0.1) == row[(start + end) // 2]
