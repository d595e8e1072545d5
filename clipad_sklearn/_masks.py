"""Masks: which pixels are anomalous, by one rule for all that take masks."""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from ._decoding import Traits
from ._errors import ImageReadError, printable
from ._images import image_name, is_pil, opened

if TYPE_CHECKING:
    from PIL import Image

# Masks with several kinds of anomaly number them.
_MOST_LABELS = 32


def mask_pixels(mask: Any) -> np.ndarray:
    """Return which pixels of a mask are anomalous, as bool (height, width).

    `mask` is an array of 0 and 1, 0 and 255 or bool; or a path or a `PIL.Image`, in
    which anomalous pixels are above 0, and of two grey levels the brighter one. Raises
    ValueError with a short reason.
    """
    if isinstance(mask, (str, bytes, os.PathLike)) or is_pil(mask):
        return opened(mask, _anomalous)
    if np.ma.is_masked(mask):
        raise ValueError("array with masked pixels: expected a value for each")
    mask = np.asarray(mask)
    if mask.ndim != 2 or mask.size == 0:
        raise ValueError(f"array of shape {mask.shape}: expected (height, width)")
    if mask.dtype == np.bool_:
        return mask
    if not (np.isin(mask, (0, 1)).all() or np.isin(mask, (0, 255)).all()):
        raise ValueError(
            "values other than 0 and 1, or 0 and 255; pass `mask > 0` if anything "
            "above 0 is anomalous"
        )
    return mask > 0


def numbered_mask(index: int, mask: Any) -> np.ndarray:
    """As `mask_pixels`, with an error that says which mask of a list it is."""
    try:
        return mask_pixels(mask)
    except ValueError as error:
        is_path = isinstance(mask, (str, os.PathLike))
        name = f", {printable(image_name(mask))}" if is_path else ""
        raise ValueError(f"Mask {index}{name}: {error}.") from error


def resized_mask(mask: np.ndarray, size: tuple[int, int], how: str) -> np.ndarray:
    """Resize a mask of bool to (height, width).

    `how` is ``"nearest"``, or ``"bilinear"`` for what is anomalous by half and more.
    """
    from PIL import Image

    image = Image.fromarray(mask.astype(np.uint8) * np.uint8(255))
    resample = Image.Resampling[how.upper()]
    return np.asarray(image.resize(size[::-1], resample)) > 127


class ResizedMasks:
    """Masks of many images at the size of a model's input, one bit per pixel.

    Parameters
    ----------
    masks : sequence of path, PIL.Image, array or None
        One mask for each image, None for an image without anomaly.
    n_images : int
        Number of images.
    size : (int, int)
        Height and width of the model's input.

    Attributes
    ----------
    sizes : list of (int, int) or None
        Height and width of each mask as given.

    Raises
    ------
    ImageReadError
        If masks cannot be read; it names all of them.
    ValueError
        If `masks` is no such sequence, or no mask has an anomalous pixel.
    """

    def __init__(self, masks: Any, n_images: int, size: tuple[int, int]) -> None:
        if isinstance(masks, (str, bytes)) or not hasattr(masks, "__len__"):
            raise ValueError(
                f"masks={masks!r}: expected a sequence with one mask for each image, "
                "None for an image without anomaly."
            )
        if len(masks) != n_images:
            raise ValueError(
                f"There are {len(masks)} masks, but X has {n_images} images."
            )
        self.size = size
        self.sizes: list[tuple[int, int] | None] = []
        self._bits: list[np.ndarray | None] = []
        failures = []
        for index, mask in enumerate(masks):
            if mask is None:
                self._bits.append(None)
                self.sizes.append(None)
                continue
            try:
                pixels = mask_pixels(mask)
            except ValueError as error:
                failures.append((index, f"mask {image_name(mask)}", str(error)))
                continue
            self._bits.append(np.packbits(resized_mask(pixels, size, "bilinear")))
            self.sizes.append(pixels.shape)
        if failures:
            raise ImageReadError(failures)
        if not any(bits is not None and bits.any() for bits in self._bits):
            raise ValueError(
                "No mask has an anomalous pixel (at the size of the model's input), so "
                "there is nothing to learn from."
            )

    def load(self, batch: np.ndarray) -> np.ndarray:
        """Return the masks of some images, (n, height, width) of 0.0 and 1.0."""
        masks = np.zeros((len(batch), self.size[0] * self.size[1]), dtype=np.float32)
        for row, index in enumerate(batch):
            bits = self._bits[index]
            if bits is not None:
                masks[row] = np.unpackbits(bits, count=masks.shape[1])
        return masks.reshape(len(batch), *self.size)


def _anomalous(image: Image.Image, traits: Traits) -> np.ndarray:
    """Of two grey levels the brighter one, else all above 0."""
    levels = _grey(image)
    found = _distinct(levels)
    if not np.isfinite(found).all() or found[0] < 0:
        raise ValueError("the mask has values that are below 0 or not numbers")
    seems_whole = found[-1] == 255 and set(found.tolist()) <= {0, 255}
    if traits.is_deep and levels.dtype == np.uint8 and not seems_whole:
        raise ValueError(
            "a mask of 16 bits in several channels, of which only the upper 8 are "
            "read: save it in grey, or with 8 bits"
        )
    if len(found) == 2:
        return levels == found[1]
    # Labels of kinds of anomaly are small numbers; anything else may be a photo.
    if len(found) > 2 and found[-1] > _MOST_LABELS:
        warnings.warn(
            "A mask has more than two grey levels, and all above 0 are anomalous: is "
            "it a mask, and was it kept as JPEG or with soft edges? Pass `mask > 127` "
            "if only bright pixels are.",
            UserWarning,
            stacklevel=2,
        )
    return levels > 0


def _grey(image: Image.Image) -> np.ndarray:
    """Return the numbers of a grey image, or the brightest of the colours."""
    clear = image.info.get("transparency")
    if image.mode in ("P", "PA"):
        has_alpha = image.mode == "PA" or clear is not None
        shown = image.convert("RGBA" if has_alpha else "RGB")
        extrema = np.asarray(shown.getextrema())
        # Where all of a palette looks the same, its numbers are what is meant.
        image = image if (extrema[:, 0] == extrema[:, 1]).all() else shown
    elif image.mode in ("1", "L", "RGB") and clear is not None:
        image = image.convert("RGBA")
    if image.mode in ("CMYK", "RGBX", "YCbCr", "LAB", "HSV"):
        image = image.convert("RGB")
    pixels, bands = np.asarray(image), image.getbands()
    if image.mode.startswith("I") and isinstance(clear, int):
        pixels, bands = np.dstack([pixels, pixels != clear]), ("L", "A")
    if pixels.ndim == 2:
        return pixels
    colours = [k for k, band in enumerate(bands) if band not in "Aa"]
    grey = pixels[..., colours].max(axis=2)
    if len(colours) < len(bands):
        alpha = pixels[..., -1]
        if grey.min() == grey.max() and alpha.min() < alpha.max():
            return alpha  # of one colour, what is seen is what is meant
        if alpha.max() > 0:  # zero everywhere, it is no alpha
            grey = np.where(alpha > 0, grey, 0)
    if grey.min() == grey.max() and np.ptp(pixels[..., colours], axis=(0, 1)).any():
        raise ValueError(
            "the colours of the mask are equally bright (transparent ones count as "
            "black), so which are anomalous is not known: save it in black and white, "
            "without transparency"
        )
    return grey


def _distinct(levels: np.ndarray) -> np.ndarray:
    if levels.dtype == np.uint8:  # several times faster
        return np.flatnonzero(np.bincount(levels.ravel(), minlength=256))
    return np.unique(levels)
