"""Images that are read once for several passes over them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

# At least so many images in a group, if that is no whole batch.
_GROUP = 64


class ReadOnce:
    """An image that keeps what was made of it: pixels, or what a detector found.

    For a few images at a time, several detectors on them, or a score and a map.
    """

    def __init__(self, image: Any) -> None:
        self.image = image
        self.made: dict[Any, Any] = {}


def given(image: Any) -> Any:
    """Return the image as the user gave it."""
    return image.image if isinstance(image, ReadOnce) else image


def groups(
    images: Sequence[Any], batch_size: int
) -> Iterator[tuple[int, list[ReadOnce]]]:
    """Yield where each group of whole batches begins, and its images."""
    size = batch_size * -(-_GROUP // batch_size)
    for start in range(0, len(images), size):
        some = [images[i] for i in range(start, min(start + size, len(images)))]
        yield (
            start,
            [
                image if isinstance(image, ReadOnce) else ReadOnce(image)
                for image in some
            ],
        )


def keep(images: Sequence[Any], start: int, maker: Any, values: Sequence[Any]) -> None:
    """Have some of the images, if they can, keep what `maker` found."""
    if isinstance(images, list):
        for image, value in zip(images[start:], values, strict=False):
            if isinstance(image, ReadOnce):
                image.made[id(maker)] = value


def kept(images: Sequence[Any], maker: Any) -> list[Any] | None:
    """Return what `maker` found on each of the images; None if not all keep it."""
    if not isinstance(images, list) or not all(
        isinstance(image, ReadOnce) and id(maker) in image.made for image in images
    ):
        return None
    return [image.made[id(maker)] for image in images]
