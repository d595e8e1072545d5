"""References as the documentation describes them, in plain loops over photos."""

from __future__ import annotations

from typing import Any

import numpy as np


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


def center_and_spread(scores: np.ndarray) -> tuple[float, float]:
    c = float(np.median(scores))
    return c, max(c - float(np.quantile(scores, 0.16)), 0.01 * abs(c) + 1e-3)
