"""Where the tiles of an image lie, and images that are read as their tiles."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from .._clip.read_once import given
from .._images import image_size, open_image

# Top, left, bottom and right of a tile, in pixels.
Box = tuple[int, int, int, int]


def tile_boxes(
    size: tuple[int, int],
    tiles: tuple[int, int] | None,
    tile_size: tuple[int, int] | None,
    overlap: float,
) -> list[Box]:
    """Return the boxes of the tiles of an image of `size`, row by row."""
    sides = []
    for axis in (0, 1):
        if tiles is not None:
            sides.append(_spread(size[axis], tiles[axis], overlap))
        else:
            assert tile_size is not None
            sides.append(_stepped(size[axis], tile_size[axis], overlap))
    return [(top, left, bottom, right) for (top, bottom), (left, right) in
            itertools.product(*sides)]  # fmt: skip


def _spread(length: int, count: int, overlap: float) -> list[tuple[int, int]]:
    """Spread `count` tiles of one size over a side, the outer ones at its ends."""
    size = min(length, math.ceil(length / (1 + (count - 1) * (1 - overlap))))
    starts = np.rint(np.linspace(0, length - size, count)).astype(int)
    return [(start, start + size) for start in starts.tolist()]


def _stepped(length: int, size: int, overlap: float) -> list[tuple[int, int]]:
    """Step tiles of a given size along a side, the last one flush with its end."""
    if size >= length:
        return [(0, length)]
    step = max(1.0, size * (1 - overlap))
    count = math.ceil((length - size) / step - 1e-9) + 1
    starts = [min(round(i * step), length - size) for i in range(count)]
    return [(start, start + size) for start in starts]


class Tiles(Sequence[Any]):
    """The tiles of each image, and the whole image after them, as one sequence.

    Iterated, it opens each image once, the next one while the tiles of the last are at
    work, and holds no more than these two. An image with one tile is passed on as it
    was given; so is one that cannot be read, for whoever reads it to say why.
    """

    def __init__(
        self,
        images: Sequence[Any],
        tiles: tuple[int, int] | None,
        tile_size: tuple[int, int] | None,
        overlap: float,
        whole: bool,
    ) -> None:
        self.images = images
        self.grid = tiles
        self.tile_size = tile_size
        self.overlap = overlap
        self.whole = whole
        # How many items each image has, and which image each item comes from.
        self.counts = self._counts()
        self.owners = np.repeat(np.arange(len(images)), self.counts)
        # Height and width of images with several tiles, once they have been opened.
        self.sizes: dict[int, tuple[int, int]] = {}

    def _counts(self) -> list[int]:
        if self.grid is not None:
            return [self._count(self.grid[0] * self.grid[1])] * len(self.images)
        counts = []
        for image in map(given, self.images):
            try:
                counts.append(self._count(len(self.boxes(image_size(image)))))
            except ValueError:
                counts.append(1)  # whoever opens it says why it cannot be read
        return counts

    def _count(self, n_tiles: int) -> int:
        return n_tiles + (self.whole and n_tiles > 1)

    def size(self, index: int) -> tuple[int, int]:
        """Return height and width of an image, which need not be opened for it."""
        known = self.sizes.pop(index, None)
        return known or image_size(given(self.images[index]))

    def boxes(self, size: tuple[int, int]) -> list[Box]:
        """Return the boxes of the tiles of an image of (height, width)."""
        return tile_boxes(size, self.grid, self.tile_size, self.overlap)

    def _items(self, index: int, count: int) -> list[Any]:
        """Return the tiles of one image, opened."""
        image = self.images[index]
        if count == 1:
            return [image]
        try:
            opened = open_image(given(image))
        except ValueError:
            return [image] * count
        self.sizes[index] = opened.height, opened.width
        boxes = self.boxes(self.sizes[index])
        if len(boxes) + (self.whole and len(boxes) > 1) != count:
            return [image] * count  # it has changed since its size was read
        crops = [
            opened.crop((left, top, right, bottom))
            for top, left, bottom, right in boxes
        ]
        return [*crops, opened] if self.whole else crops

    def __len__(self) -> int:
        return len(self.owners)

    def __getitem__(self, index: Any) -> Any:
        """Return one tile; only what names a failure asks for one out of order."""
        owner = int(self.owners[index])
        first = int(np.searchsorted(self.owners, owner))
        items = self._items(owner, self.counts[owner])
        return items[range(len(self))[index] - first]

    def __iter__(self) -> Iterator[Any]:
        with ThreadPoolExecutor(1, thread_name_prefix="clipad") as pool:
            ahead = pool.submit(self._items, 0, self.counts[0])
            for index in range(len(self.images)):
                items = ahead.result()
                if index + 1 < len(self.images):
                    ahead = pool.submit(self._items, index + 1, self.counts[index + 1])
                yield from items


def blending_weights(box: Box, size: tuple[int, int]) -> np.ndarray:
    """Return the weights of a tile's pixels: rising from its borders within the image.

    At pixel i from such a border they are (i + 1/2) / L with the tile's length L; at
    the image's own border nothing falls off.
    """
    sides = []
    for start, end, length in ((box[0], box[2], size[0]), (box[1], box[3], size[1])):
        rising = (np.arange(end - start) + 0.5) / (end - start)
        weights = np.ones(end - start)
        if start > 0:
            weights = np.minimum(weights, rising)
        if end < length:
            weights = np.minimum(weights, rising[::-1])
        sides.append(weights)
    return np.outer(*sides).astype(np.float32)


def stitched(
    maps: Sequence[np.ndarray], boxes: Sequence[Box], size: tuple[int, int]
) -> np.ndarray:
    """Lay the maps of tiles back: (height, width), blended where they overlap.

    One more map than boxes is that of the whole image, of which the maximum counts.
    """
    total = np.zeros(size, np.float32)
    weight = np.zeros(size, np.float32)
    for tile_map, box in zip(maps, boxes, strict=False):
        part = slice(box[0], box[2]), slice(box[1], box[3])
        blend = blending_weights(box, size)
        total[part] += blend * tile_map
        weight[part] += blend
    result = total / weight
    return np.maximum(result, maps[-1]) if len(maps) > len(boxes) else result
