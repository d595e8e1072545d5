"""Reading images: what counts as an image, and what is said when one is not."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ._decoding import (
    Traits,
    content_of,
    decoded,
    loaded,
    open_file,
    reasons,
    upright_size,
    warn_of_image,
)
from ._files import read_bytes, walk_images
from ._fork import at_fork

if TYPE_CHECKING:
    from PIL import Image


def list_images(folder: str | os.PathLike[str]) -> list[str]:
    """List the images of a folder and its subfolders, sorted.

    Parameters
    ----------
    folder : str or PathLike
        The folder. Files are recognised by their extension, whatever its case: those
        of AVIF, BMP, GIF, HEIC, JPEG, JPEG 2000, PNG, PNM, TGA, TIFF and WebP. Links to
        folders are followed, and no folder is listed twice. Left out are hidden files
        and folders (names that begin with a dot), folders in which systems keep
        thumbnails and deleted files (such as ``@eaDir`` and ``$RECYCLE.BIN``), pipes
        and devices, and maps and overlays that ``clipad score`` wrote.

    Returns
    -------
    list of str
        Paths that begin with `folder` as given.

    Raises
    ------
    NotADirectoryError
        If `folder` is not a folder.
    PermissionError
        If `folder` may not be listed.

    Warns
    -----
    UserWarning
        For each folder in it that may not be listed.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> from clipad_sklearn import list_images
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     (pathlib.Path(folder) / "b.png").touch()
    ...     (pathlib.Path(folder) / "a.JPG").touch()
    ...     (pathlib.Path(folder) / "notes.txt").touch()
    ...     [os.path.basename(path) for path in list_images(folder)]
    ['a.JPG', 'b.png']
    """
    folder = os.fspath(folder)
    if not os.path.isdir(folder):
        raise NotADirectoryError(f"{folder!r} is not a folder")
    walk = walk_images(folder)
    for name, reason in walk.unreadable:
        if name == folder:
            raise PermissionError(f"{folder!r} cannot be listed: {reason}")
        warnings.warn(
            f"{name!r} and what it holds is left out: {reason}.",
            UserWarning,
            stacklevel=2,
        )
    return walk.images


def check_images(images: Any) -> Sequence[Any]:
    """Return `images` as a non-empty sequence of single images."""
    if images is None:
        raise ValueError(
            "Expected a list of images, got None. X=None is accepted by `fit` only."
        )
    if isinstance(images, (str, bytes, os.PathLike)) and os.path.isdir(images):
        raise ValueError(
            f"Expected a list of images, got the folder {os.fspath(images)!r}. List "
            "its images: list_images(folder)."
        )
    if isinstance(images, (str, bytes, os.PathLike)) or is_pil(images):
        raise ValueError(
            f"Expected a list of images, got one {_name(images)}. "
            "Wrap it in a list: [image]."
        )
    if isinstance(images, np.ndarray):
        images = _check_array_of_images(images)
    elif hasattr(images, "columns"):
        if len(images.columns) != 1:
            names = list(images.columns)
            raise TypeError(
                f"Expected a list of images, got a DataFrame with the columns {names}. "
                "Pass the one that holds the paths, such as X['path'] or X[['path']]."
            )
        images = list(images[images.columns[0]])
    elif not isinstance(images, Sequence):
        if not isinstance(images, Iterable) or isinstance(images, (dict, set)):
            raise TypeError(
                f"Expected a list of images, got {type(images).__name__}. Pass a list "
                "of paths, PIL images or arrays, or one array (n, height, width[, "
                "channels])."
            )
        images = list(images)
    if len(images) == 0:
        raise ValueError(
            "Found 0 image(s) (an empty list) while a minimum of 1 is required."
        )
    return images


def _check_array_of_images(images: np.ndarray) -> Sequence[Any]:
    if images.ndim == 1 and images.dtype.kind == "S":
        return [os.fsdecode(path) for path in images.tolist()]
    if images.ndim == 1 and images.dtype.kind in "OU":
        return images.tolist()
    if images.ndim == 2 and images.dtype.kind in "OUS":
        if images.shape[1] == 1:
            return _check_array_of_images(images[:, 0])
        raise ValueError(
            f"Expected a list of images, got a table of shape {images.shape}. Pass the "
            "column that holds the paths: X[:, 0]."
        )
    if images.ndim == 2 or (images.ndim == 3 and images.shape[-1] in (1, 3, 4)):
        raise ValueError(
            f"Expected a list of images, got one array of shape {images.shape}, which "
            "reads as a single image. Wrap it in a list: [image]. (Embeddings go to "
            "the detector, not to the encoder.)"
        )
    if images.ndim not in (3, 4):
        raise ValueError(
            f"Expected an array of shape (n, height, width[, channels]), got "
            f"{images.shape}."
        )
    return images  # type: ignore[return-value]


# Pillow reads the file of an opened image at first use, which two threads must not do
# at once. One of these locks for each image, so that others are read meanwhile.
_load_locks = [threading.Lock() for _ in range(64)]


def _new_locks() -> None:
    # Other threads of the parent may have held some.
    _load_locks[:] = [threading.Lock() for _ in _load_locks]


at_fork(in_child=_new_locks)


def open_image(image: Any, then: Callable[[Image.Image], Any] | None = None) -> Any:
    """Convert one image of any accepted kind to an upright RGB `PIL.Image`.

    `image` may also be the bytes of a file, as `read_bytes` returns them. What `then`
    makes of it is returned instead, while no other thread needs much memory. Raises
    ValueError with a short reason.
    """
    if isinstance(image, np.ndarray):
        return _without_memory(lambda: _then(_image_from_array(image), then))
    return opened(image, _to_rgb, then)


def _then(image: Any, then: Callable[[Any], Any] | None) -> Any:
    return image if then is None else then(image)


def image_size(image: Any) -> tuple[int, int]:
    """Return height and width of an upright image, without decoding it.

    Raises ValueError where that cannot be said; `open_image` says why.
    """
    if isinstance(image, np.ndarray):
        if image.ndim < 2:
            raise ValueError(f"array of shape {image.shape} is no image")
        return int(image.shape[0]), int(image.shape[1])
    if is_pil(image):
        return upright_size(image)
    content = image if isinstance(image, bytes) else read_bytes(image)
    with reasons(content):
        return upright_size(open_file(content))


def opened(
    image: Any,
    convert: Callable[[Image.Image, Traits], Any],
    then: Callable[[Any], Any] | None = None,
) -> Any:
    """Return what `convert` and `then` make of a path, a file's bytes or a `PIL.Image`.

    Errors of `convert` are said to be those of the image.
    """
    if isinstance(image, (str, bytes, os.PathLike)):
        with content_of(image) as content:
            return _without_memory(lambda: _decoded(content, convert, then))
    if not is_pil(image):
        raise ValueError(
            f"{_name(image)} is not an image: pass a path, the bytes of a file, a PIL "
            "image or an array"
        )
    return _without_memory(lambda: _converted(image, convert, then))


def _without_memory(work: Callable[[], Any]) -> Any:
    try:
        return work()
    except MemoryError:
        raise ValueError("the image needs more memory than there is") from None


def _decoded(
    content: bytes,
    convert: Callable[[Image.Image, Traits], Any],
    then: Callable[[Any], Any] | None,
) -> Any:
    with decoded(content) as (image, traits):
        with reasons(content):
            converted = convert(image, traits)
        return _then(converted, then)


def _converted(
    image: Image.Image,
    convert: Callable[[Image.Image, Traits], Any],
    then: Callable[[Any], Any] | None,
) -> Any:
    with _load_locks[id(image) // 64 % len(_load_locks)], reasons():
        image, traits = loaded(image)
    with reasons():
        converted = convert(image, traits)
    return _then(converted, then)


def _to_rgb(image: Image.Image, traits: Traits) -> Image.Image:
    if traits.is_signed:
        raise ValueError(
            "signed pixels have no known white; save the image with 8 bits, or 16 bits "
            "without sign"
        )
    if image.mode.startswith("I") or image.mode == "F":
        pixels = _sixteen_bits(np.asarray(image))
        clear = image.info.get("transparency")
        if isinstance(clear, int) and pixels.dtype == np.uint16:
            alpha = np.where(pixels == clear, 0, 65535).astype(np.uint16)
            pixels = np.stack([pixels, pixels, pixels, alpha], axis=2)
        return _image_from_array(pixels)
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        if image.mode == "La":  # which Pillow converts to nothing else
            image = image.convert("LA")
        image = image.convert("RGBA")
        _warn_if_dark(image, traits)
        lowest, highest = np.asarray(image.getchannel("A").getextrema()).tolist()
        if 0 < highest <= 16:  # of 12 bits in 16, the most is 16 of 255
            warn_of_image(
                "An image has no alpha above 16 of 255, so it will look almost white "
                "to the model. Save it without alpha if nothing in it is transparent."
            )
        # Zero everywhere, alpha is what a program left in an unused byte.
        if lowest < 255 and highest > 0:
            return _on_white(image)
        return image.convert("RGB")
    image = image.convert("RGB")
    _warn_if_dark(image, traits)
    return image


def _on_white(image: Image.Image) -> Image.Image:
    from PIL import Image

    width, height = image.size
    result = Image.new("RGB", image.size)
    for top in range(0, height, _STRIP):  # a large image needs no second copy
        strip = image.crop((0, top, width, min(top + _STRIP, height)))
        white = Image.new("RGBA", strip.size, "white")
        result.paste(Image.alpha_composite(white, strip).convert("RGB"), (0, top))
    return result


def _warn_if_dark(image: Image.Image, traits: Traits) -> None:
    if traits.is_known_bright:
        return
    # As Pillow has it: of 16 bits only the upper 8 are left.
    limit = 16 if traits.is_deep else 8
    few = image.resize((min(64, image.width), min(64, image.height)), _NEAREST)
    if _brightest(few) >= limit:
        return
    highest = _brightest(image)
    if traits.is_deep and highest < limit:
        _warn_of_few_bits(16, 4095 if highest else 255)
    elif 0 < highest < limit:
        _warn_of_few_bits(8, 7)


def _brightest(image: Image.Image) -> int:
    return int(np.asarray(image.getextrema())[:3, 1].max())


def _warn_of_few_bits(n_bits: int, highest: int) -> None:
    # The same words for each image, so that they are shown once.
    remedy = {
        4095: "If its camera gives 10 or 12 bits, multiply the pixels by 64 or 16; of "
        "colours, have its software save 8 bits.",
        255: "If these are 8-bit values, save it with 8 bits.",
        7: "If its camera gives few bits, multiply the pixels.",
    }
    warn_of_image(
        f"A {n_bits}-bit image has no value above {highest}, so it will look almost "
        f"black to the model. {remedy[highest]}"
    )


def _sixteen_bits(pixels: np.ndarray) -> np.ndarray:
    """Pillow opens 16-bit files in 32-bit modes too; take them as 16 bits."""
    if pixels.dtype.kind == "f":
        return pixels
    if pixels.min() < 0 or pixels.max() > 65535:
        raise ValueError(
            "32-bit integer pixels outside [0, 65535] have no known scale; convert "
            "the image to 8 or 16 bits"
        )
    return pixels.astype(np.uint16)


def _image_from_array(pixels: np.ndarray) -> Image.Image:
    from PIL import Image

    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in _CHAN):
        raise ValueError(
            f"array of shape {pixels.shape}: expected (height, width) or (height, "
            "width, 1, 3 or 4 channels)"
        )
    if pixels.size == 0:
        raise ValueError(f"array of shape {pixels.shape} has no pixels")
    if np.ma.is_masked(pixels):
        raise ValueError(
            "array with masked pixels: expected a value for each; fill them, for "
            "example with image.filled(0)"
        )
    pixels = np.ma.getdata(pixels)
    eight = _to_eight_bits(pixels)
    if eight.ndim == 3 and eight.shape[2] == 1:
        eight = eight[:, :, 0]
    # How dark it is was seen in its own type.
    traits = Traits() if pixels.dtype == np.uint8 else Traits(is_known_bright=True)
    return _to_rgb(Image.fromarray(np.ascontiguousarray(eight)), traits)


_CHAN = (1, 3, 4)
_NEAREST = 0
_STRIP = 256  # rows


def _to_eight_bits(pixels: np.ndarray) -> np.ndarray:
    pixels = pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype == np.bool_:
        return pixels.astype(np.uint8) * np.uint8(255)
    if pixels.dtype == np.uint16:
        highest = _colours(pixels).max()
        if 0 < highest < 4096:
            _warn_of_few_bits(16, 4095 if highest > 255 else 255)
        return _by_strips(pixels, lambda some: (some.astype(np.uint32) + 128) // 257)
    if pixels.dtype.kind == "f":
        low, high = pixels.min(), pixels.max()
        # Rounding of float32 may go a little beyond. This also catches NaN.
        if not (low >= -1e-6 and high <= 1 + 1e-6):
            remedy = "scale them by the largest value that the camera gives"
            if not (np.isfinite(low) and np.isfinite(high)):
                remedy = "fill in what is infinite or not a number"
            elif low < 0:
                remedy = "shift or cut off what is negative"
            elif high <= 255:
                remedy = "divide 8-bit values by 255"
            raise ValueError(
                f"float pixels must lie in [0, 1], found [{low:.9g}, {high:.9g}]; "
                f"{remedy}"
            )
        if 1e-6 < _colours(pixels).max() < 1 / 16:
            warn_of_image(
                "A float image has no value above 1/16, so it will look almost black "
                "to the model. Divide the pixels by the largest value that its camera "
                "gives."
            )
        return _by_strips(pixels, lambda some: np.rint(some.astype(np.float64) * 255))
    raise ValueError(
        f"array of dtype {pixels.dtype}: expected uint8, uint16, bool or float in "
        "[0, 1]"
    )


def _colours(pixels: np.ndarray) -> np.ndarray:
    """Return an array without its alpha channel."""
    return pixels[..., :3] if pixels.ndim == 3 and pixels.shape[2] == 4 else pixels


def _by_strips(
    pixels: np.ndarray, convert: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """Convert to uint8 without a large array in between."""
    result = np.empty(pixels.shape, np.uint8)
    for top in range(0, len(pixels), _STRIP):
        result[top : top + _STRIP] = convert(pixels[top : top + _STRIP])
    return result


def image_name(image: Any) -> str:
    """How an error names the image: its path, or what kind of object it is."""
    return os.fsdecode(image) if isinstance(image, (str, os.PathLike)) else _name(image)


def _name(image: Any) -> str:
    if isinstance(image, (str, os.PathLike)):
        return f"path {os.fsdecode(image)!r}"
    if is_pil(image):
        return "PIL image"
    if isinstance(image, np.ndarray):
        return f"array of shape {image.shape}"
    return type(image).__name__


def is_pil(image: Any) -> bool:
    """Whether `image` is a `PIL.Image`."""
    # Without importing Pillow: an object of it exists only if it was imported.
    return any(base.__module__ == "PIL.Image" for base in type(image).__mro__)
