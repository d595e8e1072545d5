"""Reading images: what counts as an image, and what is said when one is not."""

from __future__ import annotations

import contextlib
import io
import os
import threading
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ._fork import at_fork

if TYPE_CHECKING:
    from PIL import Image

_EXTENSIONS = frozenset(
    [
        ".avif",
        ".bmp",
        ".dib",
        ".gif",
        ".heic",
        ".heif",
        ".j2k",
        ".jfif",
        ".jp2",
        ".jpe",
        ".jpeg",
        ".jpg",
        ".pbm",
        ".pgm",
        ".png",
        ".pnm",
        ".ppm",
        ".tga",
        ".tif",
        ".tiff",
        ".webp",
    ]
)


def list_images(folder: str | os.PathLike[str]) -> list[str]:
    """List the images of a folder and its subfolders, sorted.

    Parameters
    ----------
    folder : str or PathLike
        The folder. Files are recognised by their extension, whatever its case: those
        of AVIF, BMP, GIF, HEIC, JPEG, JPEG 2000, PNG, PNM, TGA, TIFF and WebP. Hidden
        files and folders (names that begin with a dot) are left out.

    Returns
    -------
    list of str
        Paths that begin with `folder` as given.

    Raises
    ------
    NotADirectoryError
        If `folder` is not a folder.

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
    return list_files(folder)[0]


def list_files(folder: str) -> tuple[list[str], list[str]]:
    """List the images of a folder, sorted, and the files that are none."""
    images: list[str] = []
    others: list[str] = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if not name.startswith("."):
                is_image = os.path.splitext(name)[1].lower() in _EXTENSIONS
                (images if is_image else others).append(os.path.join(parent, name))
    return sorted(images), others


def check_images(images: Any) -> Sequence[Any]:
    """Return `images` as a non-empty sequence of single images."""
    if images is None:
        raise ValueError(
            "Expected a list of images, got None. X=None is accepted by `fit` only."
        )
    if isinstance(images, (str, bytes, os.PathLike)) or is_pil(images):
        raise ValueError(
            f"Expected a list of images, got one {_name(images)}. "
            "Wrap it in a list: [image]."
        )
    if isinstance(images, np.ndarray):
        images = _check_array_of_images(images)
    elif hasattr(images, "columns"):
        raise TypeError(
            "Expected a list of images, got a DataFrame. Pass the column that holds "
            "the paths: X['path']."
        )
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


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """Return a file's content; the errors say what a user can act on."""
    try:
        with open(path, "rb") as file:
            content = file.read()
    except FileNotFoundError:
        raise ValueError("no such file") from None
    except IsADirectoryError:
        raise ValueError("is a folder, not an image; see list_images") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ValueError(reason.lower()) from error
    if not content:
        raise ValueError("the file is empty")
    return content


# Pillow reads the file of an opened image at first use, which two threads must not do
# at once. One of these locks for each image, so that others are read meanwhile.
_load_locks = [threading.Lock() for _ in range(64)]


def _new_locks() -> None:
    # Other threads of the parent may have held some.
    _load_locks[:] = [threading.Lock() for _ in _load_locks]


at_fork(in_child=_new_locks)


def open_image(image: Any) -> Image.Image:
    """Convert one image of any accepted kind to an upright RGB `PIL.Image`.

    `image` may also be the bytes of a file, as `read_bytes` returns them. Raises
    ValueError with a short reason.
    """
    if isinstance(image, np.ndarray):
        return _image_from_array(image)
    return opened(image, _to_rgb)


def image_size(image: Any) -> tuple[int, int]:
    """Return height and width of an upright image, of a file from its header alone.

    Raises ValueError where that cannot be told; `open_image` says why.
    """
    from PIL import Image

    if isinstance(image, np.ndarray):
        if image.ndim < 2:
            raise ValueError(f"array of shape {image.shape} is no image")
        return int(image.shape[0]), int(image.shape[1])
    try:
        with contextlib.ExitStack() as stack:
            if not is_pil(image):
                image = stack.enter_context(Image.open(image))
            width, height = image.size
            # From 5 on, EXIF turns the image on its side.
            turned = image.getexif().get(0x0112, 1) >= 5
    except Exception as error:  # of all kinds, from decoders of damaged files
        raise ValueError("its size cannot be read") from error
    return (width, height) if turned else (height, width)


def opened(image: Any, convert: Callable[[Image.Image], Any]) -> Any:
    """Return what `convert` makes of a path, a file's bytes or a `PIL.Image`."""
    from PIL import Image, ImageOps

    if isinstance(image, (str, os.PathLike)):
        image = read_bytes(image)
    lock: Any = contextlib.nullcontext()
    try:
        if isinstance(image, bytes):
            image = Image.open(io.BytesIO(image))
        elif not is_pil(image):
            raise ValueError(
                f"{_name(image)} is not an image: pass a path, a PIL image or an array"
            )
        else:
            lock = _load_locks[id(image) // 64 % len(_load_locks)]
        with lock:
            image.load()
            if min(image.size) == 0:
                raise ValueError("the image has no pixels")
            image = ImageOps.exif_transpose(image)
        return convert(image)
    except Image.UnidentifiedImageError:
        raise ValueError("not an image, or of an unknown format") from None
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"too large: {error}. If you trust it, raise PIL.Image.MAX_IMAGE_PIXELS"
        ) from error
    except (ValueError, MemoryError):
        raise
    except Exception as e:
        # Decoders raise all kinds of errors on truncated or damaged files.
        raise ValueError(f"truncated or corrupt ({str(e) or type(e).__name__})") from e


def _to_rgb(image: Image.Image) -> Image.Image:
    from PIL import Image

    if image.mode.startswith("I") or image.mode == "F":
        return _image_from_array(_sixteen_bits(np.asarray(image)))
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


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
    pixels = _to_eight_bits(pixels)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    return _to_rgb(Image.fromarray(np.ascontiguousarray(pixels)))


_CHAN = (1, 3, 4)


def _to_eight_bits(pixels: np.ndarray) -> np.ndarray:
    pixels = pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype == np.bool_:
        return pixels.astype(np.uint8) * np.uint8(255)
    if pixels.dtype == np.uint16:
        if 256 <= pixels.max() < 4096:
            # The same words for each, so that Python shows them once.
            warnings.warn(
                "A 16-bit image has no value above 4095, so it is seen nearly black. "
                "If its camera gives 10 or 12 bits, multiply the pixels by 64 or 16.",
                UserWarning,
                stacklevel=2,
            )
        return ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if pixels.dtype.kind == "f":
        low, high = pixels.min(), pixels.max()
        # Rounding of float32 may go a little beyond. This also catches NaN.
        if not (low >= -1e-6 and high <= 1 + 1e-6):
            raise ValueError(
                f"float pixels must lie in [0, 1], found [{low:.9g}, {high:.9g}]; "
                "divide 8-bit values by 255"
            )
        return np.rint(pixels.astype(np.float64) * 255).astype(np.uint8)
    raise ValueError(
        f"array of dtype {pixels.dtype}: expected uint8, uint16, bool or float in "
        "[0, 1]"
    )


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
