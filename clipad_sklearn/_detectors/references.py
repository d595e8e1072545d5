"""Photos that others are compared with: which they are, and what is kept of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import torch


def photo_ids(pixels: torch.Tensor) -> list[str]:
    """Return what identifies each photo: a digest of its pixels, resized."""
    return [
        hashlib.blake2b(photo.tobytes(), digest_size=16).hexdigest()
        for photo in pixels.cpu().contiguous().numpy()
    ]


def center_and_spread(scores: np.ndarray) -> np.ndarray:
    """Return the median and the lower spread of scores of mostly normal photos.

    The lower side, so that defective ones among them do not widen it.
    """
    center, low = np.quantile(scores, [0.5, 0.16])
    return np.array([center, max(center - low, 0.01 * abs(center) + 1e-3)])


class Photo(NamedTuple):
    """What is kept of a reference photo."""

    size: tuple[int, int]  # height and width
    tokens: list[np.ndarray]  # of each block, (orientations, rows, columns, width)


class References:
    """Reference photos while they are collected.

    Copies are kept once. Of more than `largest` photos those are kept whose ids have
    the smallest hashes under `key`, whatever their order.
    """

    def __init__(self, key: int, largest: int | None) -> None:
        self.key = key.to_bytes(8, "little")
        self.largest = largest
        self.photos: dict[str, Photo] = {}
        self.n_copies = 0

    def add(
        self,
        pixels: torch.Tensor,
        sizes: Sequence[tuple[int, int]],
        encode: Callable[[list[int]], list[np.ndarray]],
    ) -> None:
        """Add those of a batch that are new and wanted.

        `encode` returns the tokens of some rows of the batch.
        """
        ids = photo_ids(pixels)
        kept = self._smallest([*self.photos, *ids])
        wanted: dict[str, int] = {}
        for position, name in enumerate(ids):
            if name in self.photos or name in wanted:
                self.n_copies += 1
            elif name in kept:
                wanted[name] = position
        if wanted:
            positions = list(wanted.values())
            tokens = encode(positions)
            for row, (name, position) in enumerate(wanted.items()):
                # Copies, so that no photo holds on to the tokens of its batch.
                own = [block[row].copy() for block in tokens]
                self.photos[name] = Photo(sizes[position], own)
        self.photos = {name: p for name, p in self.photos.items() if name in kept}

    def order(self) -> list[int]:
        """Return the numbers of the photos in the order of their hashes."""
        names = list(self.photos)
        return sorted(range(len(names)), key=lambda number: self._hash(names[number]))

    def _smallest(self, names: list[str]) -> set[str]:
        distinct = set(names)
        if self.largest is None or len(distinct) <= self.largest:
            return distinct
        return set(sorted(distinct, key=self._hash)[: self.largest])

    def _hash(self, name: str) -> bytes:
        return hashlib.blake2b(name.encode(), key=self.key, digest_size=16).digest()
