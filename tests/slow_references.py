"""References as the documentation describes them, in plain loops over photos."""

from __future__ import annotations

from typing import Any

import numpy as np


def few_colours(n: int, seed: int = 0, size: Any = (40, 48)) -> list[np.ndarray]:
    """Return photos of 4 x 4 coloured areas: no two alike, but all of a kind."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(60, 200, (n, 4, 4, 3))
    steps = [np.arange(length) * 4 // length for length in size]
    return [photo[np.ix_(*steps)].astype(np.uint8) for photo in coarse]


def features(tokens: np.ndarray, side: int) -> np.ndarray:
    """Average (rows, columns, width) over neighbourhoods, patch by patch."""
    rows, columns, width = tokens.shape
    tokens = tokens.astype(np.float64)
    result = np.zeros_like(tokens)
    reach = side // 2
    for row in range(rows):
        for column in range(columns):
            total = np.zeros(width)
            for r in range(row - reach, row + reach + 1):
                for c in range(column - reach, column + reach + 1):
                    if 0 <= r < rows and 0 <= c < columns:
                        total += tokens[r, c]
            total /= side**2
            result[row, column] = total / np.linalg.norm(total)
    return result


def distance(
    photo: np.ndarray, references: list[np.ndarray], place: str, radius: int
) -> np.ndarray:
    """Distance of each patch of a photo to the nearest of a reference and its copies.

    From features (rows, columns, width) to (rows, columns).
    """
    rows, columns = photo.shape[:2]
    result = np.zeros((rows, columns))
    for row in range(rows):
        for column in range(columns):
            found = []
            # Only the reference as it is has the same places.
            for copy in references if place == "anywhere" else references[:1]:
                for r in range(rows):
                    for c in range(columns):
                        near = max(abs(r - row), abs(c - column)) <= radius
                        if place == "anywhere" or near:
                            square = 2 - 2 * photo[row, column] @ copy[r, c]
                            found.append(0.0 if square < 1e-5 else square**0.5)
            result[row, column] = min(found)
    return result


def patch_scores(
    photo: list[np.ndarray],
    references: list[list[np.ndarray]],
    sides: tuple[int, ...],
    place: str,
    radius: int,
    n_neighbors: Any,
) -> np.ndarray:
    """Score the patches (rows, columns) of a photo.

    `photo` holds tokens of each block, `references` those of each reference, with
    orientations first. All blocks have the same grid.
    """
    m = len(references)
    count = min(n_neighbors, m)
    if isinstance(n_neighbors, float):
        count = max(1, int(n_neighbors * m + 1e-9))
    maps = []
    for block, tokens in enumerate(photo):
        for side in sides:
            own = features(tokens, side)
            each = [
                distance(
                    own, [features(t, side) for t in reference[block]], place, radius
                )
                for reference in references
            ]
            maps.append(np.sort(np.stack(each), axis=0)[:count].mean(axis=0))
    return np.mean(maps, axis=0)


def farthest(
    tokens: np.ndarray, side: int, count: int, order: list[int]
) -> tuple[list[np.ndarray], list[int]]:
    """Return features and photos of patches, each the farthest from those before.

    `tokens` are (n_references, orientations, rows, columns, width) of one block.
    """
    pool, photos = [], []
    for number in order:
        for copy in tokens[number]:
            pool += list(features(copy, side).reshape(-1, copy.shape[-1]))
            photos += [number] * (copy.shape[0] * copy.shape[1])
    chosen = [0]
    while len(chosen) < min(count, len(pool)):
        nearest = [max(patch @ pool[i] for i in chosen) for patch in pool]
        for i in chosen:
            nearest[i] = np.inf
        chosen.append(int(np.argmin(nearest)))
    return [pool[i] for i in chosen], [photos[i] for i in chosen]


def nearest_kept(
    photo: np.ndarray, patches: list[np.ndarray], owners: list[int], own: int | None
) -> np.ndarray:
    """Distance of each patch (rows, columns, width) to the nearest of other photos."""
    result = np.zeros(photo.shape[:2])
    for row in range(photo.shape[0]):
        for column in range(photo.shape[1]):
            best = max(
                photo[row, column] @ patch
                for patch, owner in zip(patches, owners, strict=True)
                if owner != own
            )
            square = 2 - 2 * best
            result[row, column] = 0.0 if square < 1e-5 else square**0.5
    return result


def center_and_spread(scores: np.ndarray) -> tuple[float, float]:
    c = float(np.median(scores))
    return c, max(c - float(np.quantile(scores, 0.16)), 0.01 * abs(c) + 1e-3)
