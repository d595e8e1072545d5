"""Distances to the nearest patches, against plain loops and scikit-learn."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors
from slow_references import features, patch_scores

from clipad_sklearn._detectors import patch_distances
from clipad_sklearn._detectors.patch_distances import (
    PatchMatcher,
    mean_distance,
    nearest_anywhere,
    nearest_in_place,
    patch_features,
)
from clipad_sklearn._detectors.references import center_and_spread, photo_ids


def _tokens(n: int, orientations: int = 1, seed: int = 0, grid: Any = (3, 4)) -> Any:
    noise = torch.Generator().manual_seed(seed)
    tokens = torch.randn((n, orientations, *grid, 6), generator=noise)
    return (tokens + 0.5).half()  # some likeness, as real tokens have


def _squares(scores: Any) -> np.ndarray:
    """Half the square of a distance: what float32 is exact for."""
    return np.asarray(scores, dtype=np.float64) ** 2 / 2


@pytest.mark.parametrize("side", [1, 3, 5])
def test_features(side: int) -> None:
    tokens = _tokens(2)[:, 0]
    expected = np.stack([features(t, side) for t in tokens.numpy()])
    np.testing.assert_allclose(patch_features(tokens, side), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("n_neighbors", "orientations", "radius", "block"),
    [
        (1, 1, 0, 2**23),
        (1, 4, 7, 2**9),
        (3, 1, 1, 1),
        (20, 4, 1, 2**23),
        (0.3, 1, 0, 2**9),
        (np.float32(0.5), 4, 0, 1),
        (1.0, 1, 7, 2**9),
    ],
)
def test_equals_plain_loops(
    monkeypatch: pytest.MonkeyPatch,
    block: int,
    n_neighbors: Any,
    orientations: int,
    radius: int,
) -> None:
    monkeypatch.setattr(patch_distances, "LARGEST_BLOCK", block)
    references = [_tokens(5, orientations, seed) for seed in (0, 1)]
    queries = [_tokens(2, 1, seed)[:, 0] for seed in (2, 3)]
    matcher = PatchMatcher(
        references, (1, 3), ("anywhere", "same"), radius, n_neighbors
    )
    found = matcher.scores(queries)
    left_out = matcher.leave_one_out(batch_size=2)
    if isinstance(n_neighbors, np.float32):
        n_neighbors = float(n_neighbors)
    arrays = [[r[i].numpy() for r in references] for i in range(5)]

    def slow(photo: Any, others: Any, place: str) -> np.ndarray:
        return patch_scores(photo, others, (1, 3), place, radius, n_neighbors)

    for number, place in enumerate(("anywhere", "same")):
        for i in range(2):
            expected = slow([q[i].numpy() for q in queries], arrays, place)
            np.testing.assert_allclose(
                _squares(found[number, i]), _squares(expected), atol=1e-5
            )
        others = arrays[:1] + arrays[2:]
        expected = slow([tokens[0] for tokens in arrays[1]], others, place)
        np.testing.assert_allclose(
            _squares(left_out[number, 1]), _squares(expected), atol=1e-5
        )


def test_equals_nearest_neighbors() -> None:
    references, queries = _tokens(7), _tokens(3, seed=1)[:, 0]
    matcher = PatchMatcher([references], (1,), ("anywhere",), 0, 1)
    stacked = patch_features(references[:, 0], 1).flatten(0, 2).numpy()
    rows = patch_features(queries, 1).flatten(0, 2).numpy()
    nearest = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(stacked)
    expected = nearest.kneighbors(rows)[0].reshape(3, 3, 4)
    found = matcher.scores([queries])[0]
    np.testing.assert_allclose(_squares(found), _squares(expected), atol=1e-5)


def test_share_of_all_is_the_mean() -> None:
    references, queries = _tokens(4), _tokens(2, seed=1)[:, 0]
    cosines = nearest_anywhere(patch_features(queries, 1), references, 1)
    expected = torch.sqrt(2 - 2 * cosines).mean(dim=2)
    found = PatchMatcher([references], (1,), ("anywhere",), 0, 1.0).scores([queries])
    np.testing.assert_allclose(found[0].flatten(1), expected, atol=1e-6)


def test_a_reference_is_at_no_distance_from_itself() -> None:
    references = _tokens(4, grid=(5, 5))
    upright = patch_features(references[:, 0], 3)
    cosines = nearest_anywhere(upright, references, 3)
    same = nearest_in_place(upright, upright, 0)
    for found in (cosines, same):
        itself = torch.stack([found[i, :, i] for i in range(4)])
        assert mean_distance(itself[..., None], 1).max() == 0


@pytest.mark.parametrize("place", ["anywhere", "same"])
def test_one_more_reference_never_raises_a_distance(place: str) -> None:
    references, queries = _tokens(6), _tokens(3, seed=1)[:, 0]
    scores = [
        PatchMatcher([references[:n]], (1, 3), (place,), 0, 1).scores([queries])
        for n in range(1, 7)
    ]
    for fewer, more in itertools.pairwise(scores):
        assert (more <= fewer + 1e-6).all()


def test_order_of_references_and_queries_does_not_matter() -> None:
    references, queries = _tokens(6), _tokens(4, seed=1)[:, 0]
    places = ("anywhere", "same")
    expected = PatchMatcher([references], (1, 3), places, 1, 2).scores([queries])
    order = torch.tensor([3, 0, 2, 5, 1, 4])
    turned = PatchMatcher([references[order]], (1, 3), places, 1, 2)
    found = turned.scores([queries.flip(0)]).flip(1)
    np.testing.assert_allclose(_squares(found), _squares(expected), atol=1e-5)
    left_out = PatchMatcher([references], (1, 3), places, 1, 2).leave_one_out(8)
    np.testing.assert_allclose(
        _squares(turned.leave_one_out(8)), _squares(left_out[:, order]), atol=1e-5
    )


@pytest.mark.parametrize("n_neighbors", [1, 2, 0.5])
def test_pairs_once_or_twice(
    monkeypatch: pytest.MonkeyPatch, n_neighbors: float
) -> None:
    """Beyond a bound on memory each pair of photos is computed twice."""
    matcher = PatchMatcher([_tokens(9)], (1, 3), ("anywhere", "same"), 0, n_neighbors)
    monkeypatch.setattr(patch_distances, "LARGEST_BLOCK", 1200)  # two photos at once
    once = matcher.leave_one_out(4)
    monkeypatch.setattr(patch_distances, "_LARGEST_KEPT", -1)
    np.testing.assert_allclose(
        _squares(matcher.leave_one_out(4)), _squares(once), atol=1e-5
    )


def test_a_folder_too_large_for_the_memory_of_a_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    matcher = PatchMatcher([_tokens(9)], (1,), ("anywhere", "same"), 0, 0.5)
    expected = matcher.leave_one_out(4)

    def refuse(*arguments: Any) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.")

    def of_few(self: Any, queries: Any, own: Any) -> Any:
        sizes.append(len(own))
        return refuse() if len(own) > 2 else scores(self, queries, own)

    sizes: list[int] = []
    scores = PatchMatcher.scores
    monkeypatch.setattr(PatchMatcher, "_pair_distances", refuse)
    monkeypatch.setattr(PatchMatcher, "scores", of_few)
    np.testing.assert_allclose(
        _squares(matcher.leave_one_out(4)), _squares(expected), atol=1e-5
    )
    assert sizes == [4, 2, 2, 4, 2, 2, 1]


def test_grids_of_different_size() -> None:
    """The coarser one is enlarged; each is matched on its own."""
    fine, coarse = _tokens(3, grid=(4, 6)), _tokens(3, grid=(2, 3), seed=5)
    queries = [_tokens(2, grid=(4, 6), seed=1)[:, 0], _tokens(2, grid=(2, 3))[:, 0]]
    found = PatchMatcher([fine, coarse], (1,), ("anywhere",), 0, 1).scores(queries)
    alone = [
        PatchMatcher([block], (1,), ("anywhere",), 0, 1).scores([tokens])
        for block, tokens in zip((fine, coarse), queries, strict=True)
    ]
    enlarged = torch.nn.functional.interpolate(alone[1], (4, 6), mode="bilinear")
    assert found.shape == (1, 2, 4, 6)
    np.testing.assert_allclose(found, (alone[0] + enlarged) / 2, atol=1e-6)


def test_center_and_spread() -> None:
    scores = np.arange(101) / 100
    np.testing.assert_allclose(center_and_spread(scores), [0.5, 0.34])
    # The upper side does not count, and the spread is never 0.
    scores[90:] = 50
    np.testing.assert_allclose(center_and_spread(scores), [0.5, 0.34])
    np.testing.assert_allclose(center_and_spread(np.full(5, 0.2)), [0.2, 0.003])
    assert center_and_spread(np.full(5, -1.0))[1] > 0


def test_photo_ids() -> None:
    pixels = torch.rand(3, 3, 4, 5)
    ids = photo_ids(pixels)
    assert len(set(ids)) == 3
    assert photo_ids(pixels.flip(0)) == ids[::-1]
    assert photo_ids(pixels[1:2]) == ids[1:2]
    pixels[0, 0, 0, 0] += 1e-3
    assert photo_ids(pixels)[0] != ids[0]


def test_a_radius_beyond_the_grid_is_all_of_it() -> None:
    queries = patch_features(_tokens(2)[:, 0], 1)
    tokens = _tokens(3, 1, 1)
    references = patch_features(tokens[:, 0], 1)
    everywhere = nearest_anywhere(queries, tokens, 1)
    for radius in (3, 50, 10**9):
        found = nearest_in_place(queries, references, radius)
        np.testing.assert_allclose(found, everywhere, atol=1e-6)
