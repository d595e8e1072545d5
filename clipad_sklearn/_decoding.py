"""From the bytes of a file to an image: formats, memory, and what a pixel means."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import re
import struct
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ._files import MADE_HERE, read_bytes
from ._fork import at_fork

if TYPE_CHECKING:
    from PIL import Image

# What Pillow may open: raster formats only. Readers of some others start another
# program (EPS), or were the way in of known attacks.
_FORMATS = (
    *("JPEG", "PNG", "TIFF", "BMP", "DIB", "GIF", "WEBP", "AVIF", "HEIF", "JPEG2000"),
    *("PPM", "TGA"),
)
# What other files begin with, and what to call them.
_OTHER_KINDS = (
    (b"\xc5\xd0\xd3\xc6", "a PostScript file"),
    (b"8BPS", "a Photoshop file"),
    (b"\xff\x0a", "a JPEG XL image"),
    (b"\0\0\0\x0cJXL ", "a JPEG XL image"),
    (b"SIMPLE  =", "a FITS file"),
    (b"\x89HDF", "an HDF5 file"),
    (b"FUJIFILMCCD-RAW", "a raw photo"),
    (b"\x76\x2f\x31\x01", "an EXR image"),
    (b"#?R", "an HDR image"),
    (b"qoif", "a QOI image"),
    (b"IIU\0", "a raw photo"),
    (b"IIRO", "a raw photo"),
    (b"IIRS", "a raw photo"),
    (b"MMOR", "a raw photo"),
    (b"FOVb", "a raw photo"),
    (b"\0MRM", "a raw photo"),
    (b"II\xbc\1", "a JPEG XR image"),
    (b"DDS ", "a DDS image"),
    (b"BPG\xfb", "a BPG image"),
    (b"\x01\xda", "an SGI image"),
    (b"\x0a\x05\x01", "a PCX image"),
    (b"\0\0\1\0", "an icon"),
    (b"icns", "an icon"),
    (b"gimp xcf", "a GIMP file"),
    (b"\x1aE\xdf\xa3", "a video"),
    (b"\xff\xd8\xff", "a JPEG image of a kind"),
)
_TEXTS = (
    (b"%!PS", "a PostScript file"),
    (b"%PDF", "a PDF document"),
    (b"<svg", "an SVG drawing"),
    (b"<?xml", "an SVG drawing"),
    (b"<!DOCTYPE svg", "an SVG drawing"),
)
# What whole files that are read begin with.
_READ = (
    *(b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a"),
    *(b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51"),
)
_ARCHIVES = (
    *(b"PK\3\4", b"PK\5\6", b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd"),
    *(b"7z\xbc\xaf\x27\x1c", b"Rar!"),
)
_ANSWERS = (b"<!doctype html", b"<html", b"<head", b'{"', b"{\n", b"http/")
# The first bytes of a PNG or JPEG with other ends of lines or another encoding.
_AS_TEXT = (
    *(b"\x89PNG\n", b"\x89PNG\r\r", b"\xc2\x89PNG", b"\xef\xbf\xbdPNG"),
    *(b"\xc3\xbf\xc3\x98\xc3\xbf", b"\xef\xbf\xbd" * 3),
)
_CONVERT = "convert it to PNG, JPEG or TIFF of 8 bits"
# In what Pillow says when it lacks something.
_LACKING = ("nsupported", "raw mode", "with compression")
_HEIF_BRANDS = (
    *(b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"),
    *(b"mif1", b"msf1"),
)
# At a time, of all threads.
_MOST_PIXELS = 100_000_000
_MOST_BYTES = 400_000_000
# As the authors of libjpeg-turbo advise.
_MOST_SCANS = 500
# But for those without a length, as within the numbers of a scan.
_JPEG_MARK = re.compile(rb"\xff[^\0\1\xd0-\xd7\xff]")
# Tags of TIFF.
_BITS, _PHOTOMETRIC, _ORIENTATION, _PLANAR = 258, 262, 0x0112, 284
_WIDTH, _HEIGHT = 256, 257
# What of an image's info may say how it is turned.
_ORIENTING = ("exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif")
_STRIPS, _SAMPLE_FORMAT, _DNG = 273, 339, 50706
_KIND_OF_PAGE = 254


class _Budget:
    """Limits what threads take at a time, or lets one that needs more in alone."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.changed = threading.Condition()
        self.taken = 0

    @contextlib.contextmanager
    def taking(self, amount: int) -> Iterator[None]:
        with self.changed:
            while self.taken and self.taken + amount > self.most:
                self.changed.wait()
            self.taken += amount
        try:
            yield
        finally:
            with self.changed:
                self.taken -= amount
                self.changed.notify_all()


_pixels = _Budget(_MOST_PIXELS)
# Taken before pixels are, so that nobody waits for the other.
_bytes = _Budget(_MOST_BYTES)


def _new_budgets() -> None:
    # Other threads of the parent may have taken some.
    global _pixels, _bytes
    _pixels, _bytes = _Budget(_MOST_PIXELS), _Budget(_MOST_BYTES)


at_fork(in_child=_new_budgets)


@contextlib.contextmanager
def content_of(image: Any) -> Iterator[Any]:
    """Give the bytes of an image that is a path, while others wait; else the image.

    Raises ValueError with a short reason.
    """
    if not isinstance(image, (str, os.PathLike)):
        yield image
        return
    try:
        size = os.path.getsize(image)
    except OSError:  # said by whoever reads it
        size = 0
    with _bytes.taking(size):
        yield read_bytes(image)


@dataclass(frozen=True)
class Traits:
    """What an image was in its file, where Pillow does not say."""

    is_deep: bool = False  # 16 bits per channel, of which Pillow keeps the upper 8
    is_signed: bool = False
    is_known_bright: bool = False  # nobody need look again


@contextlib.contextmanager
def decoded(content: bytes) -> Iterator[tuple[Image.Image, Traits]]:
    """Give the upright image of a file, with pixels that mean what its format says.

    Memory is set aside for it meanwhile: others wait. Raises ValueError with a short
    reason.
    """
    with reasons(content):
        image = open_file(content)
    if _n_pages(content, image) > 1:
        _warn_of_pages()
    with _pixels.taking(image.size[0] * image.size[1]):
        with reasons(content):
            image, traits = _first_that_works(
                lambda: loaded(image), lambda bare: loaded(open_file(bare)), content
            )
        if content.startswith(b"\xff\xd8"):
            _warn_if_cut(content)
        yield image, traits


def _first_that_works(
    work: Callable[[], Any], again: Callable[[bytes], Any], content: bytes
) -> Any:
    """Do it once more without metadata that are broken, but for how it is turned."""
    from PIL import Image

    try:
        return work()
    except (Image.DecompressionBombError, MemoryError):
        raise
    except Exception:
        for keeps_exif in (True, False):
            bare = _without_metadata(content, keeps_exif)
            if bare is not None:
                with contextlib.suppress(Exception):
                    return again(bare)
        raise


@contextlib.contextmanager
def reasons(content: bytes = b"") -> Iterator[None]:
    """Make what decoders raise a ValueError with a short reason."""
    from PIL import Image

    try:
        yield
    except Image.UnidentifiedImageError:
        raise ValueError(why_not_an_image(content)) from None
    except Image.DecompressionBombError as error:
        # Its message ends in a point, and speaks of attacks.
        size = str(error).partition(", could be")[0]
        raise ValueError(
            f"too large: {size}. Make it smaller, or cut it into parts (in Python, "
            "PIL.Image.MAX_IMAGE_PIXELS sets the limit)"
        ) from error
    except (ValueError, MemoryError):
        raise
    except Exception as e:
        # Decoders raise all kinds of errors on truncated or damaged files, and on whole
        # ones of kinds that they lack.
        text = str(e) or type(e).__name__
        if any(word in text for word in _LACKING):
            raise ValueError(
                f"truncated or corrupt, or of a kind that is not read ({text}): "
                f"{_CONVERT}"
            ) from e
        raise ValueError(f"truncated or corrupt ({text})") from e


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Return height and width of an opened image once it is upright."""
    width, height = image.size
    # Of a TIFF, some versions of Pillow give the upright size, others that in the file.
    tags = getattr(image, "tag_v2", None) or {}
    width, height = int(tags.get(_WIDTH, width)), int(tags.get(_HEIGHT, height))
    lies_on_its_side = _orientation(image) in (5, 6, 7, 8)
    return (width, height) if lies_on_its_side else (height, width)


def upright(image: Image.Image) -> Image.Image:
    """Turn an image as its metadata say; broken ones say nothing."""
    from PIL import Image

    methods = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    method = methods.get(_orientation(image))
    if method is None:
        return image
    # Such as transparency, and not what would turn it once more.
    info = {k: v for k, v in image.info.items() if k not in _ORIENTING}
    image = image.transpose(method)
    image.info = info
    return image


def traits_of(image: Image.Image) -> Traits:
    """Return what a `PIL.Image` that is not loaded yet was in its file."""
    tiles = getattr(image, "tile", ())
    modes = [str(tile[3]) for tile in tiles]
    # Of a PPM file, channels and the largest value.
    is_deep_ppm = any(
        tile[0].startswith("ppm") and isinstance(tile[3], tuple) and tile[3][-1] > 255
        for tile in tiles
    )
    tags = getattr(image, "tag_v2", None) or {}
    bits = np.atleast_1d(tags.get(_BITS, 8)).tolist()
    return Traits(
        is_deep=any(";16" in mode for mode in modes) or max(bits) == 16 or is_deep_ppm,
        is_signed=2 in np.atleast_1d(tags.get(_SAMPLE_FORMAT, 1)).tolist(),
    )


def why_not_an_image(content: bytes) -> str:
    """Say why no listed format is that of a file, and the way out."""
    from PIL import Image

    head = content[:512]
    # Without what may precede a text.
    text = re.sub(rb"^(\xef\xbb\xbf|\s|<!--.*?-->)+", b"", head, flags=re.DOTALL)
    brand, brands = _brands(head)
    # An AVIF may first name its family; readers of HEIC know it by the first name.
    name = "HEIF" if brand in _HEIF_BRANDS else ""
    name = "AVIF" if brands & {b"avif", b"avis"} else name
    if name in Image.OPEN:
        return "truncated or corrupt"
    if name == "HEIF":
        return (
            "a HEIC photo, which needs the plug-in pillow-heif: "
            "python -m pip install pillow-heif"
        )
    if name == "AVIF":
        return "an AVIF image, which needs Pillow 11.3 or later with AVIF"
    is_cut_jpeg = head.startswith(b"\xff\xd8\xff") and _start_of_pixels(content) < 0
    if is_cut_jpeg or head.startswith(_READ) or head[8:12] == b"WEBP":
        return "truncated or corrupt"
    if head.startswith(_AS_TEXT):
        return "damaged by a copy as text: copy it again as it is"
    if head and not head.strip(b"\0"):
        return "not an image: it begins with zeros, as a copy that was cut off may"
    if head.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS, not the photo: run git lfs pull"
    if b"/annex/objects/" in head:
        return "a pointer of git-annex, not the photo: run git annex get"
    if head.startswith(b"\x93NUMPY"):
        return "an array of numpy: load it in Python and pass the array"
    if head.startswith(_ARCHIVES) or head[257:262] == b"ustar":
        return "an archive or a compressed file, not an image: unpack it"
    if text.lower().startswith(_ANSWERS):
        return "a web page or another answer, not an image: the download went wrong"
    if text.startswith(b"<?xml") and b"<svg" not in text and b"DOCTYPE svg" not in text:
        return (
            "an XML file, not an image: the download went wrong, or it is a drawing to "
            "save as PNG"
        )
    kinds = (kind for start, kind in _OTHER_KINDS if head.startswith(start))
    texts = (kind for start, kind in _TEXTS if text.startswith(start))
    kind = next(kinds, next(texts, ""))
    if not brands.isdisjoint(_HEIF_BRANDS):
        kind = "a HEIC photo of a kind"
    elif brand == b"crx ":
        kind = "a raw photo"
    elif brand or head[4:8] in (b"moov", b"mdat", b"wide") or head[8:12] == b"AVI ":
        kind = "a video or another container"
    elif head[128:132] == b"DICM":
        kind = "a DICOM file"
    elif head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        kind = "a TIFF image of a kind"
    if kind:
        return f"{kind} that is not read: {_CONVERT}"
    return "not an image, or of an unknown format"


def _brands(head: bytes) -> tuple[bytes, set[bytes]]:
    """Return what a file of the family of MP4 calls itself: first, and in all."""
    if head[4:8] != b"ftyp":
        return b"", set()
    others = (head[at : at + 4] for at in range(16, head[3], 4))
    return head[8:12], {head[8:12], *others}


# -- opening -----------------------------------------------------------------------


def open_file(content: bytes) -> Any:
    """Open a file of a listed format without decoding it."""
    from PIL import Image

    Image.init()
    if content[4:8] == b"ftyp" and content[8:12] in _HEIF_BRANDS:
        _register_heif()
    known = [name for name in _FORMATS if name in Image.OPEN]

    def opened(content: bytes) -> Any:
        with _words_of_pillow():
            return Image.open(io.BytesIO(content), formats=known)

    image = _first_that_works(lambda: opened(content), opened, content)
    tags = getattr(image, "tag_v2", None)
    # Raw photos begin with a small copy, or say that they are raw.
    if tags is not None and (
        _DNG in tags or content[8:10] == b"CR" or int(tags.get(_KIND_OF_PAGE, 0)) & 1
    ):
        raise ValueError("a raw photo that is not read: convert it to TIFF or JPEG")
    if tags is not None and tags.get(_BITS) == (16,):
        _check_tiff_pixels(content, tags)
    if image.format in ("JPEG", "MPO"):
        _check_scans(content)
    if image.info.get("Software") == MADE_HERE:
        raise ValueError("a map or an overlay that clipad wrote, no photo")
    return image


def _check_tiff_pixels(content: bytes, tags: Any) -> None:
    """Refuse numbers of 16 bits that begin in the directory: nobody knows where."""
    order = "<" if content.startswith(b"II*\0") else ">"
    if content.startswith((b"II*\0", b"MM\0*")):
        (start,) = struct.unpack_from(f"{order}I", content, 4)
        (n_entries,) = struct.unpack_from(f"{order}H", content, start)
        offsets = np.atleast_1d(tags.get(_STRIPS, start + 2 + 12 * n_entries))
        if ((offsets >= start) & (offsets < start + 2 + 12 * n_entries)).any():
            raise ValueError("truncated or corrupt (its pixels begin in its directory)")


def _check_scans(content: bytes) -> None:
    """Refuse a JPEG of very many scans, of which each takes as long as a photo."""
    pixels = _start_of_pixels(content)
    n_channels = content[pixels + 4 : pixels + 5]
    for kind, start, _ in _jpeg_segments(content):
        if kind in (0xC0, 0xC1) and content[start + 9 : start + 10] == n_channels:
            return  # all is in one
    n_scans, at = 0, 2
    with contextlib.suppress(struct.error):
        while n_scans <= _MOST_SCANS:
            mark = _JPEG_MARK.search(content, at)
            if mark is None or mark[0] == b"\xff\xd9":
                return
            n_scans += mark[0] == b"\xff\xda"
            at = mark.end() + struct.unpack_from(">H", content, mark.end())[0]
        raise ValueError(f"a JPEG image of more than {_MOST_SCANS} scans: save it anew")


def _check_jpeg_2000(content: bytes) -> None:
    """Refuse what Pillow reads wrong.

    Of deep colours it makes the brightest black; of fewer than 8 bits white is grey.
    """
    start = content.find(b"\xff\x4f\xff\x51")  # of the code stream
    if start < 0:
        raise ValueError("truncated or corrupt")
    (n_channels,) = struct.unpack_from(">H", content, start + 40)
    channels = content[start + 42 : start + 42 + 3 * n_channels : 3]
    depths = [(channel & 0x7F) + 1 for channel in channels]
    if any(depth < 8 or (depth > 8 and n_channels > 1) for depth in depths):
        raise ValueError(
            f"a JPEG 2000 image with {max(depths)} bits per channel, which is not "
            "read: save it as PNG or TIFF, or with 8 bits"
        )


def _register_heif() -> None:
    with contextlib.suppress(ImportError):
        importlib.import_module("pillow_heif").register_heif_opener()


def loaded(image: Any) -> tuple[Image.Image, Traits]:
    """Load an opened image, upright and as its format has it; raise for what is not."""
    if image.format == "JPEG2000" and getattr(image, "fp", None) is not None:
        image.fp.seek(0)
        _check_jpeg_2000(image.fp.read())
    traits = traits_of(image)
    # Loading a TIFF turns it, and forgets the tags.
    tags = dict(getattr(image, "tag_v2", None) or {})
    # libtiff reads them well, Pillow's own reader takes 16 bits for 8.
    is_raw = any(tile[0] == "raw" for tile in getattr(image, "tile", ()))
    is_planar = tags.get(_PLANAR) == 2 and len(tags.get(_BITS, ())) > 1
    if is_raw and is_planar and traits.is_deep:
        raise ValueError(
            "a TIFF image of 16 bits in separate planes, which is not read: save it "
            "with interleaved channels, or with 8 bits"
        )
    _scale_transparency(image)
    with _words_of_pillow(image.info.get("compression")):
        image.load()
    if min(image.size) == 0:
        raise ValueError("the image has no pixels")
    if image.format == "PNG" and image.mode == "P" and image.palette is None:
        raise ValueError("truncated or corrupt (it has no palette)")
    image = upright(image)
    if tags.get(_PHOTOMETRIC) == 0 and image.mode == "F":
        raise ValueError("a TIFF image of real numbers in which white is zero")
    if image.mode.startswith("I;16"):
        image = _as_sixteen_bits(image, tags)
    return image, traits


@contextlib.contextmanager
def _words_of_pillow(compression: Any = None) -> Iterator[None]:
    """Make a ValueError of Pillow what decoders raise: its words are no reason yet."""
    try:
        yield
    except ValueError as error:
        if "closed" in str(error):  # by the caller
            raise
        raise OSError(str(error)) from error
    except OSError as error:
        # What libtiff may be built without; it only prints so.
        if compression in ("webp", "zstd", "lzma"):
            raise OSError(f"{error} with compression {compression}") from error
        raise


def _scale_transparency(image: Any) -> None:
    """Bring the transparent colour of a PNG to the 8 bits that Pillow makes of it."""
    clear = image.info.get("transparency")
    if image.format != "PNG" or not isinstance(clear, (int, tuple)):
        return
    kind = image.tile[0][3] if image.tile else ""
    if isinstance(clear, tuple):
        if kind == "RGB;16B":
            image.info["transparency"] = tuple(value >> 8 for value in clear)
    elif kind in ("1", "L;2", "L;4"):
        n_bits = int(kind[-1])
        most = 2**n_bits - 1
        image.info["transparency"] = (clear & most) * 255 // most


def _n_pages(content: bytes, image: Any) -> int:
    """Count the pictures in a file other than previews, no further than 2."""
    kind = image.format
    if kind in ("AVIF", "HEIF"):  # which say so at once, and count no previews
        return 2 if getattr(image, "is_animated", False) else 1
    # Other formats keep previews and depth there.
    if kind not in ("TIFF", "GIF", "WEBP", "PNG"):
        return 1
    # What is wrong after the first costs no photo.
    with contextlib.suppress(Exception):
        image = open_file(content)
        if not getattr(image, "is_animated", False):
            return 1
        if kind != "TIFF":
            return 2
        image.seek(1)
        # A smaller copy, or a mask of what is transparent.
        return 1 if int(image.tag_v2.get(_KIND_OF_PAGE, 0)) & 5 else 2
    return 1


def _warn_of_pages() -> None:
    # The same words for each image, so that they are shown once.
    warn_of_image(
        "A file holds several pages or pictures; only the first is read. Save each as "
        "a file of its own."
    )


def _warn_if_cut(content: bytes) -> None:
    # Zeros and the like behind a JPEG that was cut off pass for pixels. The end mark
    # of a preview in the header does not count; one of what follows the photo may.
    if content.rfind(b"\xff\xd9", max(_start_of_pixels(content), 0)) < 0:
        # The same words for each image, so that they are shown once.
        warn_of_image(
            "A JPEG file has no end mark, so part of the photo may be lost: look at "
            "it, or copy it again."
        )


_noting = threading.local()


@contextlib.contextmanager
def noting_warnings() -> Iterator[list[str]]:
    """Give what this thread warns of images meanwhile, as it is said each time."""
    _noting.texts = texts = list[str]()
    try:
        yield texts
    finally:
        _noting.texts = None


class ImageWarning(UserWarning):
    """What makes an image look other than it should, and of which one, if known."""

    image: str = ""


@contextlib.contextmanager
def naming(image: str) -> Iterator[None]:
    """Let warnings of this thread know which image they are about."""
    _noting.image = image
    try:
        yield
    finally:
        _noting.image = ""


def warn_of_image(text: str) -> None:
    """Warn of what makes an image look other than it should."""
    texts = getattr(_noting, "texts", None)
    if texts is not None:
        texts.append(text)
    warning = ImageWarning(text)
    warning.image = getattr(_noting, "image", "")
    warnings.warn(warning, stacklevel=3)


def _as_sixteen_bits(image: Image.Image, tags: dict[int, Any]) -> Image.Image:
    """Undo 'white is zero' and 12 bits, which Pillow leaves as they are in a TIFF."""
    from PIL import Image

    is_negative = tags.get(_PHOTOMETRIC) == 0
    has_twelve_bits = tags.get(_BITS) == (12,)
    if not (is_negative or has_twelve_bits):
        return image
    pixels = np.asarray(image).astype(np.uint16)
    if has_twelve_bits:
        pixels = (pixels.astype(np.uint32) * 65535 // 4095).astype(np.uint16)
    return Image.fromarray(65535 - pixels if is_negative else pixels)


def _orientation(image: Any) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # broken metadata raise errors of all kinds
        return 1


# -- files whose metadata are broken -------------------------------------------------


def _without_metadata(content: bytes, keeps_exif: bool) -> bytes | None:
    """Return a file with little but its pixels, None if that changes nothing."""
    bare = None
    with contextlib.suppress(struct.error, IndexError):
        if content.startswith(b"\x89PNG\r\n\x1a\n"):
            bare = _bare_png(content, keeps_exif)
        elif content.startswith(b"\xff\xd8"):
            bare = _bare_jpeg(content, keeps_exif)
    return None if bare is None or len(bare) == len(content) else bare


def _bare_png(content: bytes, keeps_exif: bool) -> bytes:
    kept = [b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"] + [b"eXIf"] * keeps_exif
    parts, at = [content[:8]], 8
    while at + 8 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, at)
        if 0 in kind:  # zeros, of a copy that stopped, would be chunk after chunk
            break
        end = at + 12 + length
        if kind in kept:
            parts.append(content[at:end])
        at = end
    return b"".join(parts)


def _bare_jpeg(content: bytes, keeps_exif: bool) -> bytes:
    parts, end = [content[:2]], 2
    for kind, start, end in _jpeg_segments(content):
        # Not APP0 and APP14, which say what colours the numbers are, if they are whole.
        body = content[start + 4 : end]
        is_metadata = kind in {*range(0xE1, 0xEE), 0xEF, 0xFE}
        is_metadata |= end - start - 2 < {0xE0: 16, 0xEE: 14}.get(kind, 0)
        if not is_metadata or (keeps_exif and body.startswith(b"Exif\0")):
            parts.append(content[start:end])
    return b"".join([*parts, content[end:]])


def _jpeg_segments(content: bytes) -> Iterator[tuple[int, int, int]]:
    """Give kind, start and end of each segment before the pixels of a JPEG."""
    at = 2
    with contextlib.suppress(struct.error, IndexError):
        while content[at] == 0xFF and content[at + 1] != 0xDA:
            (length,) = struct.unpack_from(">H", content, at + 2)
            yield content[at + 1], at, at + 2 + length
            at += 2 + length


def _start_of_pixels(content: bytes) -> int:
    """Return where the pixels of a JPEG begin, -1 if its header is cut or broken."""
    end = max([2, *(end for _, _, end in _jpeg_segments(content))])
    return end if content[end : end + 2] == b"\xff\xda" else -1
