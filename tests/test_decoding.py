"""What a pixel means, which files are opened, and what is said of the others."""

from __future__ import annotations

import base64
import contextlib
import io
import lzma
import struct
import threading
import time
import tracemalloc
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin, features

from clipad_sklearn import CLIPImageEncoder, ImageReadError, OpenCLIP, SDPDetector
from clipad_sklearn import _decoding as decoding
from clipad_sklearn._images import image_size, open_image
from clipad_sklearn._masks import mask_pixels

GREY = np.random.default_rng(0).integers(0, 256, (12, 16), dtype=np.uint8)
COLOUR = np.random.default_rng(1).integers(0, 256, (12, 16, 3), dtype=np.uint8)


def file(image: Any, kind: str = "PNG", **options: Any) -> bytes:
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(kind + body))
    return struct.pack(">I", len(body)) + kind + body + checksum


def deep_png(pixels: np.ndarray) -> bytes:
    """A PNG of 16 bits per channel, which Pillow cannot write in colour."""
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[pixels.shape[2]]
    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts) + chunk(b"IEND", b"")


def tiff(
    pixels: np.ndarray,
    *,
    bits: int,
    photometric: int = 1,
    planar: int = 1,
    sample_format: int = 1,
    width: int | None = None,
    alpha: int = 0,
    compression: int = 1,
) -> bytes:
    """A TIFF with one strip for each plane, as it says itself uncompressed."""
    n = 1 if pixels.ndim == 2 else pixels.shape[0 if planar == 2 else 2]
    height = pixels.shape[1 if planar == 2 else 0]
    width = width or (pixels.shape[2] if planar == 2 else pixels.shape[1])
    n_strips = n if planar == 2 else 1
    size = pixels.nbytes // n_strips
    start = 400
    tags: list[tuple[int, str, list[int]]] = [
        (256, "I", [width]),
        (257, "I", [height]),
        (258, "H", [bits] * n),
        (259, "H", [compression]),
        (262, "H", [photometric]),
        (273, "I", [start + i * size for i in range(n_strips)]),
        (277, "H", [n]),
        (278, "I", [height]),
        (279, "I", [size] * n_strips),
        (284, "H", [planar]),
        *([(338, "H", [alpha])] if alpha else []),
        (339, "H", [sample_format] * n),
    ]
    directory, extra = struct.pack("<H", len(tags)), b""
    end = 8 + 2 + 12 * len(tags) + 4
    for tag, kind, values in tags:
        value = struct.pack(f"<{len(values)}{kind}", *values)
        if len(value) > 4:
            place = struct.pack("<I", end + len(extra))
            extra += value
            value = place
        code = 3 if kind == "H" else 4
        directory += struct.pack("<HHI", tag, code, len(values)) + value.ljust(4, b"\0")
    head = b"II*\0" + struct.pack("<I", 8) + directory + struct.pack("<I", 0) + extra
    return head.ljust(start, b"\0") + pixels.tobytes()


def opened(content: Any) -> np.ndarray:
    return np.asarray(open_image(content))


# -- alpha -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["RGBA", "LA", "array", "float", "TGA", "palette"])
def test_alpha_that_is_zero_everywhere_is_none(kind: str) -> None:
    rgba = np.dstack([COLOUR, np.zeros((12, 16), np.uint8)])
    expected, content = COLOUR, file(rgba)
    if kind == "LA":
        expected = np.dstack([GREY] * 3)
        content = file(
            Image.merge("LA", [Image.fromarray(GREY), Image.new("L", (16, 12))])
        )
    elif kind == "array":
        content = rgba
    elif kind == "float":
        content = rgba / 255
    elif kind == "TGA":
        content = file(rgba, "TGA")
    elif kind == "palette":
        palette = Image.fromarray(GREY).convert("P")
        content = file(palette, transparency=bytes(256))
        expected = np.dstack([GREY] * 3)
    np.testing.assert_array_equal(opened(content), expected)


FAINT = {
    "PNG": file(np.dstack([COLOUR, GREY * 0 + 1])),
    "WebP": file(np.dstack([COLOUR, GREY * 0 + 1]), "WEBP", lossless=True, exact=True),
    "TGA": file(np.dstack([COLOUR, GREY * 0 + 3]), "TGA"),
    "grey": file(Image.merge("LA", [Image.new("L", (16, 12), n) for n in (9, 1)])),
    "0 and 1": file(np.dstack([COLOUR, GREY % 2])),
    "palette": file(Image.fromarray(GREY).convert("P"), transparency=b"\1" * 256),
    "array": np.dstack([COLOUR, GREY * 0 + 1]),
    "8 bits in 16": np.dstack([COLOUR, GREY * 0 + 1]).astype(np.uint16) * 255,
    "12 bits in 16": np.dstack([COLOUR * np.uint16(257), GREY * np.uint16(0) + 4095]),
    "floats": np.dstack([COLOUR / 255, np.full(GREY.shape, 1 / 255)]),
}


@pytest.mark.parametrize("name", FAINT)
def test_alpha_in_a_small_part_of_its_range_warns(name: str) -> None:
    image = FAINT[name]
    with pytest.warns(UserWarning, match="no alpha above 16 of 255, so it will look"):
        assert opened(image).min() >= 239


def test_faint_alpha_does_not_warn_where_some_is_seen() -> None:
    for most in (0, 17, 128, 255):  # zero everywhere is none
        alpha = GREY * 0 + 1 if most else GREY * 0
        alpha[0, 0] = most
        opened(np.dstack([COLOUR, alpha]))


def test_grey_that_was_multiplied_by_its_alpha() -> None:
    """As TIFF has it, and Pillow calls "La"."""
    alpha = np.full(GREY.shape, 255, np.uint8)
    alpha[:, 8:] = 0
    content = tiff(np.dstack([GREY * (alpha > 0), alpha]), bits=8, alpha=1)
    expected = np.where(alpha > 0, GREY, 255)
    for image in (content, Image.open(io.BytesIO(content))):
        np.testing.assert_array_equal(opened(image), np.dstack([expected] * 3))
    half = tiff(np.full((12, 16, 2), 64, np.uint8), bits=8, alpha=1)
    np.testing.assert_allclose(opened(half), 64 + 255 - 64, atol=1)
    mask = np.dstack([MASK, MASK]) * np.uint8(255)
    np.testing.assert_array_equal(mask_pixels(tiff(mask, bits=8, alpha=1)), MASK)


def test_alpha_that_says_something_lies_on_white() -> None:
    alpha = np.zeros((12, 16), np.uint8)
    alpha[:, 8:] = 255
    seen = opened(file(np.dstack([COLOUR, alpha])))
    assert (seen[:, :8] == 255).all()
    np.testing.assert_array_equal(seen[:, 8:], COLOUR[:, 8:])


# -- numbers -----------------------------------------------------------------------


@pytest.mark.parametrize("n_bits", [1, 2, 4, 8, 16])
def test_a_transparent_grey_lies_on_white(n_bits: int) -> None:
    """Whatever the depth; Pillow compares it with the grey of 8 bits."""
    row = np.zeros(8 * n_bits, np.uint8)
    row[2 * n_bits - 1] = 1  # the second pixel of eight
    row[-n_bits:] = 1  # the last is white
    header = struct.pack(">IIBBBBB", 8, 1, n_bits, 0, 0, 0, 0)
    parts = (
        chunk(b"IHDR", header),
        chunk(b"tRNS", struct.pack(">H", 1)),
        chunk(b"IDAT", zlib.compress(b"\0" + np.packbits(row).tobytes())),
        chunk(b"IEND", b""),
    )
    image = open_image(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    expected = np.zeros((1, 8, 3))
    expected[0, 1] = expected[0, 7] = 255
    np.testing.assert_array_equal(np.asarray(image), expected)


def test_a_transparent_colour_of_16_bits_lies_on_white() -> None:
    colours = np.array([[[60000] * 3, [0x1234, 0x5678, 0x9ABC]]], np.uint16)
    head, body = (content := deep_png(colours))[:33], content[33:]
    clear = chunk(b"tRNS", struct.pack(">3H", *colours[0, 1]))
    image = np.asarray(open_image(head + clear + body))
    np.testing.assert_array_equal(image[0], [[234] * 3, [255] * 3])


# White, 16 by 16, three channels of 16 bits. Pillow reads black and cannot write it.
DEEP_JPEG_2000 = """
AAAADGpQICANCocKAAAAFGZ0eXBqcDIgAAAAAGpwMiAAAAAtanAyaAAAABZpaGRyAAAAEAAAABAAAw8HAAAA
AAAPY29scgEAAAAAABAAAACXanAyY/9P/1EALwAAAAAAEAAAABAAAAAAAAAAAAAAABAAAAAQAAAAAAAAAAAA
Aw8BAQ8BAQ8BAf9SAAwAAAABAQEEBAAB/1wAB0CAiIiQ/2QAJQABQ3JlYXRlZCBieSBPcGVuSlBFRyB2ZXJz
aW9uIDIuNS40/5AACgAAAAAAHAAB/5PP/DAUFABcr4eAgICAgP/Z
"""


def test_deep_colours_of_jpeg_2000_are_refused() -> None:
    content = base64.b64decode(DEEP_JPEG_2000)
    for read in (open_image, mask_pixels):
        for image in (content, Image.open(io.BytesIO(content))):
            with pytest.raises(ValueError, match="16 bits per channel, which is not"):
                read(image)
    for right in (COLOUR, GREY, GREY.astype(np.uint16) * 257):
        again = np.asarray(open_image(file(right, "JPEG2000")))
        grey = right // 257 if right.dtype == np.uint16 else right
        expected = grey if grey.ndim == 3 else np.repeat(grey[..., None], 3, axis=2)
        np.testing.assert_array_equal(again, expected)


def test_white_is_zero() -> None:
    eight = opened(tiff(255 - GREY, bits=8, photometric=0))
    wide = 65535 - GREY.astype("<u2") * 257
    np.testing.assert_array_equal(eight, np.dstack([GREY] * 3))
    np.testing.assert_array_equal(opened(tiff(wide, bits=16, photometric=0)), eight)
    mask = np.eye(12, 16, dtype="<u2") * 65535
    content = tiff(65535 - mask, bits=16, photometric=0)
    np.testing.assert_array_equal(mask_pixels(content), mask > 0)
    with pytest.raises(ValueError, match="real numbers in which white is zero"):
        opened(tiff(np.zeros((12, 16), "<f4"), bits=32, photometric=0, sample_format=3))


def test_twelve_bits_in_a_tiff_reach_white() -> None:
    values = np.random.default_rng(0).integers(0, 4096, (12, 16))
    packed = np.zeros((12, 24), np.uint8)
    packed[:, 0::3] = values[:, 0::2] >> 4
    packed[:, 1::3] = ((values[:, 0::2] & 15) << 4) | (values[:, 1::2] >> 8)
    packed[:, 2::3] = values[:, 1::2] & 255
    seen = opened(tiff(packed, bits=12, width=16))[..., 0]
    np.testing.assert_allclose(seen, values * 255 / 4095, atol=0.51)


def test_planes() -> None:
    planes = np.ascontiguousarray(COLOUR.transpose(2, 0, 1))
    content = tiff(planes, bits=8, photometric=2, planar=2)
    np.testing.assert_array_equal(opened(content), COLOUR)
    wide = planes.astype("<u2") * 257
    with pytest.raises(ValueError, match="16 bits in separate planes"):
        opened(tiff(wide, bits=16, photometric=2, planar=2))
    together = tiff(COLOUR.astype("<u2") * 257, bits=16, photometric=2)
    np.testing.assert_array_equal(opened(together), COLOUR)


def bmp(compression: int) -> bytes:
    head = struct.pack("<IiiHHIIiiII", 40, 16, 12, 1, 24, compression, 576, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 630, 0, 0, 54) + head + COLOUR.tobytes()


# Grey, or colours, and alpha in planes of their own.
TWO, FOUR = np.stack([GREY] * 2), np.stack([GREY] * 4)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (tiff(TWO, bits=8, planar=2, alpha=2), "unknown raw mode"),
        (tiff(FOUR, bits=8, photometric=2, planar=2, alpha=1), "unknown raw mode"),
        (tiff(COLOUR, bits=8, photometric=2, compression=50001), "compression webp"),
        (bmp(4), "Unsupported BMP compression"),
    ],
)
def test_what_pillow_lacks_is_not_only_called_corrupt(
    content: bytes, words: str
) -> None:
    reason = rf"or of a kind that is not read \(.*{words}.*\): convert it to PNG"
    with pytest.raises(ValueError, match=reason):
        open_image(content)


def test_an_image_that_was_closed_is_not_called_corrupt() -> None:
    image = Image.open(io.BytesIO(file(COLOUR)))
    image.close()
    with pytest.raises(ValueError, match=r"^Operation on closed image$"):
        open_image(image)


def test_words_of_pillow_about_damage_are_no_reason_alone() -> None:
    for damaged in (b"P5\n8 8\n0\n" + bytes(64), b"P2\n2 2\n9\n1 x 3 4\n"):
        with pytest.raises(ValueError, match=r"^truncated or corrupt \("):
            open_image(damaged)


@pytest.mark.parametrize(("dtype", "bits"), [("i1", 8), ("<i2", 16), ("<i4", 32)])
def test_signed_pixels_are_refused_as_photos_not_as_masks(
    dtype: str, bits: int
) -> None:
    content = tiff(np.eye(12, 16, dtype=dtype), bits=bits, sample_format=2)
    with pytest.raises(ValueError, match="signed pixels have no known white"):
        opened(content)
    np.testing.assert_array_equal(mask_pixels(content), np.eye(12, 16, dtype=bool))


FEW = {
    "PNG, colour, 12 bits": (deep_png(COLOUR.astype(np.uint16) * 16), 4095),
    "PNG, colour, 10 bits": (deep_png(COLOUR.astype(np.uint16) * 4), 4095),
    "PNG, grey with alpha": (
        deep_png(
            np.dstack(
                [GREY.astype(np.uint16) * 16, np.full(GREY.shape, 65535, np.uint16)]
            )
        ),
        4095,
    ),
    "PNG, colour with alpha": (
        deep_png(
            np.dstack(
                [COLOUR.astype(np.uint16) * 16, np.full(GREY.shape, 65535, np.uint16)]
            )
        ),
        4095,
    ),
    "PNG, 8 bits in 16": (deep_png(COLOUR.astype(np.uint16)), 255),
    "TIFF, colour, 12 bits": (
        tiff(COLOUR.astype("<u2") * 16, bits=16, photometric=2),
        4095,
    ),
    "array, colour": (COLOUR.astype(np.uint16) * 16, 4095),
    "array with alpha": (
        np.dstack(
            [COLOUR.astype(np.uint16) * 16, np.full(GREY.shape, 65535, np.uint16)]
        ),
        4095,
    ),
    "array of 8 bits": (GREY % 8, 7),
    "PNG of 8 bits": (file(GREY % 8), 7),
    "floats": (COLOUR / 65535, "1/16"),
}


@pytest.mark.parametrize("name", FEW)
def test_a_small_part_of_the_range_warns(name: str) -> None:
    content, highest = FEW[name]
    with pytest.warns(UserWarning, match=f"no value above {highest}, so it will look"):
        open_image(content)


def test_dark_and_black_photos_of_8_bits_do_not_warn() -> None:
    for pixels in (GREY // 16, GREY * 0, COLOUR // 8, COLOUR / 255 / 8):
        open_image(pixels)


@pytest.mark.parametrize("kind", ["TIFF", "GIF", "WEBP", "PNG", "AVIF"])
def test_several_pages_warn(kind: str) -> None:
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    pages = [Image.fromarray(COLOUR), Image.fromarray(255 - COLOUR)]
    content = file(pages[0], kind, save_all=True, append_images=pages[1:])
    with pytest.warns(UserWarning, match="several pages or pictures; only the first"):
        open_image(content)
    opened(file(COLOUR, kind))
    with pytest.warns(UserWarning, match="only the first is read"):
        mask_pixels(file(GREY & 128, "TIFF", save_all=True, append_images=pages[:1]))


def test_previews_and_broken_pages_do_not_warn() -> None:
    pages = [Image.fromarray(COLOUR), Image.fromarray(COLOUR[::2, ::2])]
    whole = file(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    # The second page lies beyond the file, or says (tag 254) that it is a smaller copy.
    first = struct.unpack_from("<I", whole, 4)[0]
    link = first + 2 + 12 * struct.unpack_from("<H", whole, first)[0]
    opened(whole[:link] + struct.pack("<I", 10**9) + whole[link + 4 :])
    info = TiffImagePlugin.ImageFileDirectory_v2()
    info[254] = 1
    pages[1].encoderinfo = {"tiffinfo": info}
    content = file(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    with Image.open(io.BytesIO(content)) as image:
        image.seek(1)
        assert image.tag_v2[254] == 1
    opened(content)


# -- masks -------------------------------------------------------------------------

MASK = np.zeros((12, 16), dtype=bool)
MASK[3:7, 4:9] = True


def palette_of(mask: np.ndarray, colours: list[int]) -> Image.Image:
    image = Image.frombytes("P", (16, 12), mask.astype(np.uint8).tobytes())
    image.putpalette(colours)
    return image


@pytest.mark.parametrize(
    "image",
    [
        palette_of(~MASK, [255, 255, 255, 0, 0, 0]),  # white is entry 0
        palette_of(MASK, [0, 0, 0, 128, 0, 0]),
        palette_of(MASK, [10, 10, 10, 200, 200, 200]),  # neither is black
        Image.fromarray(np.where(MASK, 250, 5).astype(np.uint8)),
        Image.fromarray(np.where(MASK, 2, 1).astype(np.uint8)),
        Image.fromarray(np.dstack([MASK * np.uint8(255)] * 3 + [MASK * np.uint8(255)])),
        Image.fromarray(
            np.dstack([np.full((12, 16, 3), 255, np.uint8), MASK * np.uint8(255)])
        ),
        # Painted in black on nothing.
        Image.fromarray(
            np.dstack([np.zeros((12, 16, 3), np.uint8), MASK * np.uint8(255)])
        ),
        Image.fromarray(np.dstack([MASK * np.uint8(0), MASK * np.uint8(200)])),
    ],
)
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_masks_of_two_levels_are_read_by_their_grey(
    image: Image.Image, kind: str
) -> None:
    np.testing.assert_array_equal(
        mask_pixels(Image.open(io.BytesIO(file(image, kind)))), MASK
    )


BLACK, WHITE, RED = [0] * 3, [255] * 3, [255, 0, 0]
RED_ON_WHITE = np.where(MASK[..., np.newaxis], RED, 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("image", "clear"),
    [
        # White on nothing, which is white too, or of one colour that is nothing else.
        (palette_of(~MASK, WHITE + WHITE), 1),
        (palette_of(MASK, WHITE + WHITE), 0),
        (palette_of(MASK, BLACK + BLACK), 0),
        (palette_of(MASK, WHITE + WHITE), b"\0\x80"),
        (palette_of(~MASK, RED + WHITE), 1),
        (palette_of(MASK, WHITE + RED), 0),
        (Image.fromarray(RED_ON_WHITE), (255, 255, 255)),
        (Image.fromarray(np.where(MASK, 200, 255).astype(np.uint8)), 255),
        (Image.fromarray(np.where(MASK, 9, 65535).astype(np.uint16)), 65535),
        # As they would be read without.
        (palette_of(~MASK, WHITE + BLACK), 1),
        (Image.fromarray(MASK), 0),
        (Image.fromarray(MASK * np.uint8(255)), 0),
        (Image.fromarray(MASK * np.uint8(2)), 7),
        (Image.fromarray(MASK * np.uint16(2)), 0),
        (Image.fromarray(MASK * np.uint16(2)), 7),
    ],
)
def test_what_is_transparent_in_a_mask_is_not_painted(
    image: Image.Image, clear: Any
) -> None:
    content = file(image, transparency=clear)
    assert "transparency" in Image.open(io.BytesIO(content)).info
    np.testing.assert_array_equal(mask_pixels(content), MASK)
    np.testing.assert_array_equal(mask_pixels(Image.open(io.BytesIO(content))), MASK)


@pytest.mark.parametrize(
    ("image", "clear"),
    [
        (palette_of(~MASK, BLACK + WHITE), 1),
        (Image.fromarray(~MASK), 1),
        (Image.fromarray(~MASK * np.uint8(255)), 255),
        (Image.fromarray(~MASK * np.uint16(65535)), 65535),
        (Image.fromarray(~MASK * np.uint8(255)).convert("RGB"), (255, 255, 255)),
    ],
)
def test_black_on_what_is_transparent_and_white_is_refused(
    image: Image.Image, clear: Any
) -> None:
    """As with an alpha channel: either may be meant."""
    with pytest.raises(ValueError, match="transparent ones count as black"):
        mask_pixels(file(image, transparency=clear))
    alpha = np.dstack([~MASK * np.uint8(255), MASK * np.uint8(255)])
    with pytest.raises(ValueError, match="transparent ones count as black"):
        mask_pixels(file(alpha))


@pytest.mark.parametrize("mode", ["RGBX", "YCbCr", "CMYK", "RGB", "HSV"])
def test_masks_as_images_of_any_mode(mode: str) -> None:
    image = Image.fromarray(MASK * np.uint8(255)).convert("RGB").convert(mode)
    np.testing.assert_array_equal(mask_pixels(image), MASK)


def ppm(pixels: np.ndarray) -> bytes:
    return b"P6\n16 12\n65535\n" + pixels.astype(">u2").tobytes()


def plain_ppm(pixels: np.ndarray) -> bytes:
    numbers = " ".join(map(str, pixels.ravel().tolist()))
    return b"P3\n16 12\n65535\n" + numbers.encode()


@pytest.mark.parametrize("encode", [deep_png, ppm, plain_ppm])
def test_deep_masks_in_colour(encode: Callable[[np.ndarray], bytes]) -> None:
    """Pillow keeps the upper 8 bits, and numbers of kinds would all be 0."""
    full = np.repeat(MASK[..., np.newaxis] * np.uint16(65535), 3, axis=2)
    np.testing.assert_array_equal(mask_pixels(encode(full)), MASK)
    assert mask_pixels(encode(np.full_like(full, 65535))).all()
    for label in (1, 200, 300):
        with pytest.raises(ValueError, match="save it in grey, or with 8 bits"):
            mask_pixels(encode(full // 65535 * np.uint16(label)))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (Image.fromarray(np.where(MASK, 1, np.nan).astype(np.float32)), "not numbers"),
        (Image.fromarray(np.where(MASK, np.nan, 0).astype(np.float32)), "not numbers"),
        (Image.fromarray(np.where(MASK, -1, 0).astype(np.int32)), "below 0"),
        (Image.fromarray(RED_ON_WHITE), "equally bright"),
        (Image.fromarray(RED_ON_WHITE).quantize(), "equally bright"),
        (np.ma.array(MASK, mask=MASK), "masked pixels"),
    ],
)
def test_masks_that_say_nothing_are_refused(image: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mask_pixels(image)


def test_masks_of_many_levels_warn() -> None:
    soft = np.where(MASK, 255, 0).astype(np.uint8)
    soft[3, 4:9] = 128
    for content in (file(soft), file(Image.fromarray(GREY), "JPEG")):
        with pytest.warns(UserWarning, match="more than two grey levels"):
            mask_pixels(Image.open(io.BytesIO(content)))
    labels = np.arange(192, dtype=np.uint8).reshape(12, 16) % 7
    np.testing.assert_array_equal(mask_pixels(Image.fromarray(labels)), labels > 0)


# -- metadata ----------------------------------------------------------------------


def with_chunk(content: bytes, kind: bytes, body: bytes, good: bool = True) -> bytes:
    added = chunk(kind, body)
    added = added if good else added[:-1] + bytes([added[-1] ^ 1])
    return content[:33] + added + content[33:]


END = chunk(b"IEND", b"")
BROKEN = {
    "EXIF without TIFF": with_chunk(file(COLOUR), b"eXIf", b"no tiff header"),
    "EXIF cut short": with_chunk(file(COLOUR), b"eXIf", b"MM\0*\0\0\0\x08\0\x05"),
    "wrong checksum": with_chunk(file(COLOUR), b"tEXt", b"a\0b", good=False),
    "text that is a bomb": with_chunk(
        file(COLOUR), b"zTXt", b"a\0\0" + zlib.compress(bytes(2 * 10**6))
    ),
    "profile that is none": with_chunk(file(COLOUR), b"iCCP", b"a\0\0xx"),
    "orientation 99": file(
        COLOUR, exif=b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0c\0\0\0\0\0\0\0"
    ),
}


BOMB = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2 * 10**6)))
BROKEN["text that is a bomb, behind the pixels"] = file(COLOUR)[:-12] + BOMB + END
BROKEN["gamma cut short, behind the pixels"] = (
    file(COLOUR)[:-12] + chunk(b"gAMA", b"\0") + END
)


@pytest.mark.parametrize("n_bits", [1, 2, 4, 8])
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_palette_that_is_lost(n_bits: int, orientation: int) -> None:
    """Pillow makes such a photo black."""
    image = Image.fromarray(GREY).quantize(2**n_bits)
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = file(image, bits=n_bits, exif=exif)
    assert opened(content).max() > 0
    start = content.index(b"PLTE") - 4
    (length,) = struct.unpack_from(">I", content, start)
    content = content[:start] + content[start + 12 + length :]
    for broken in (content, Image.open(io.BytesIO(content))):
        for read in (open_image, mask_pixels):
            with pytest.raises(ValueError, match=r"corrupt \(it has no palette\)"):
                read(broken)


def test_palettes_without_colours_of_their_own_are_read() -> None:
    image = Image.new("P", (16, 12), 3)
    assert opened(image).shape == (12, 16, 3)
    assert opened(file(image)).shape == (12, 16, 3)


def test_zeros_behind_the_head_of_a_png_take_no_time() -> None:
    """As a copy that stopped leaves them; they were taken for a million chunks."""
    content = file(COLOUR)[:33]
    zeros = bytes(2**25)
    for broken in (content + zeros, content + b"\0\0\0\1" * 2**23):
        start = time.process_time()
        with pytest.raises(ValueError, match=r".+"):
            open_image(broken)
        assert time.process_time() - start < 1
    # Whatever follows the photo.
    np.testing.assert_array_equal(opened(BROKEN["wrong checksum"] + zeros), COLOUR)
    odd = with_chunk(file(COLOUR), b"a!cd", b"\0" * 24)
    np.testing.assert_array_equal(opened(odd), COLOUR)


@pytest.mark.parametrize("name", BROKEN)
def test_broken_metadata_cost_no_photo(name: str) -> None:
    np.testing.assert_array_equal(opened(BROKEN[name]), COLOUR)


def segment(marker: int, body: bytes) -> bytes:
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(body) + 2) + body


@pytest.mark.parametrize(
    "broken",
    [
        segment(0xE2, b"ICC_PROFILE\0"),
        segment(0xED, b"Photoshop 3.0\0" + b"8BIM\x04"),
        segment(0xEE, b"Adobe"),
        segment(0xE0, b"JFIF\0"),
    ],
)
def test_broken_metadata_cost_no_orientation(broken: bytes) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    content = file(Image.fromarray(COLOUR), "JPEG", exif=exif, quality=95)
    expected = opened(content)
    assert expected.shape == (16, 12, 3)
    spoilt = content[:2] + broken + content[2:]
    np.testing.assert_array_equal(opened(spoilt), expected)
    assert image_size(spoilt) == (16, 12)
    png = file(Image.fromarray(COLOUR), exif=exif)
    spoilt = with_chunk(png, b"tEXt", b"a\0b", good=False)
    assert opened(spoilt).shape == (16, 12, 3)


def test_a_small_copy_is_no_photo() -> None:
    """As raw photos of some cameras begin with."""
    content = file(Image.fromarray(COLOUR), "TIFF", tiffinfo={254: 1})
    with pytest.raises(ValueError, match="a raw photo that is not read"):
        open_image(content)


@pytest.mark.parametrize(
    "content",
    [
        tiff(GREY.astype(np.uint16) * 257, bits=16, photometric=0),
        tiff(GREY, bits=8, photometric=0),
        file(COLOUR),
    ],
)
def test_an_opened_image_means_what_its_file_means(content: bytes) -> None:
    expected = opened(content)
    image = Image.open(io.BytesIO(content))
    for _ in range(2):  # once it is loaded, too
        np.testing.assert_array_equal(np.asarray(open_image(image)), expected)


@pytest.mark.filterwarnings("error:A file holds several pages:UserWarning")
def test_what_was_warned_of_is_warned_of_again(tmp_path: Path) -> None:
    """In the next run, in which the embedding would come from the cache."""
    frames = [Image.fromarray(COLOUR), Image.fromarray(COLOUR)]
    path = tmp_path / "pages.tif"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    clip = OpenCLIP("tiny", embedding_cache=str(tmp_path / "cache"))
    for _ in range(2):
        with pytest.warns(UserWarning, match="several pages or pictures"):
            CLIPImageEncoder(clip).transform([path])
        with pytest.warns(UserWarning, match="several pages or pictures"):
            SDPDetector(clip).fit().score_samples([path])


LARGE = Image.fromarray(np.kron(COLOUR, GREY[..., np.newaxis]))
PREVIEW = segment(0xE1, b"Exif\0\0" + file(COLOUR, "JPEG"))
JPEGS = {
    "plain": file(LARGE, "JPEG"),
    "fine": file(LARGE, "JPEG", quality=95, subsampling=0),
    "restarts": file(LARGE, "JPEG", restart_marker_rows=1),
    "grey": file(LARGE.convert("L"), "JPEG"),
}
JPEGS["preview"] = JPEGS["plain"][:2] + PREVIEW + JPEGS["plain"][2:]


@pytest.mark.parametrize("name", JPEGS)
def test_a_jpeg_without_an_end_warns(name: str) -> None:
    """What broken copies leave; where Pillow sees it, it is an error."""
    content = JPEGS[name]
    n_read = 0
    for kept in (len(content) // 3, len(content) // 2, len(content) - 2):
        for tail in (bytes(len(content)), b"text" * len(content)):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                with contextlib.suppress(ValueError):
                    open_image(content[:kept] + tail)
                    n_read += 1
                    assert "has no end mark" in str(caught[0].message)
    assert n_read >= 2


def of_scans(n_scans: int, **options: Any) -> bytes:
    """A photo with its last scan once more, again and again."""
    content = file(LARGE, "JPEG", **options)
    last = content[content.rindex(b"\xff\xda") : -2]
    return content[:-2] + last * (n_scans - content.count(b"\xff\xda")) + content[-2:]


def of_scans_in_turn(n_scans: int) -> bytes:
    """The same, one channel after another, and not progressive."""
    grey = file(LARGE.convert("L"), "JPEG")
    start = grey.index(b"\xff\xda")
    at = grey.index(b"\xff\xc0")
    frame = segment(0xC0, grey[at + 4 : at + 9] + b"\3\1\x11\0\2\x11\0\3\x11\0")
    scan = grey[start:-2]
    others = scan[:5] + b"\2" + scan[6:], scan[:5] + b"\3" + scan[6:]
    remark = segment(0xFE, b"\xff\xd9")
    head = grey[:at] + frame + grey[at + 13 : start]
    scans = scan + remark + others[0] + others[1] * (n_scans - 2)
    return head + scans + b"\xff\xd9"


BEHIND = np.random.default_rng(0).bytes(2**26)


def test_a_jpeg_of_many_scans_takes_no_hours() -> None:
    many = of_scans(501, progressive=True)
    padded = many[:2] + b"\xff\xff" + many[2:]
    start = many.rindex(b"\xff\xda")
    marked = many[:start] + b"\xff\1" + many[start:]
    for content in (many, padded, marked, of_scans_in_turn(501)):
        for read in (open_image, mask_pixels, image_size):
            with pytest.raises(ValueError, match="JPEG image of more than 500 scans"):
                read(content)
    assert opened(of_scans(500, progressive=True)).shape == (144, 256, 3)
    assert opened(of_scans_in_turn(3)).shape == (144, 256, 3)
    # A film behind a photo has such marks by chance.
    assert BEHIND.count(b"\xff\xda") > 500
    for content in (file(LARGE, "JPEG", progressive=True), JPEGS["preview"]):
        np.testing.assert_array_equal(opened(content + BEHIND), opened(content))
    assert image_size(of_scans(900)) == (144, 256)


@pytest.mark.parametrize(
    "content",
    [
        *JPEGS.values(),
        file(LARGE, "JPEG", progressive=True),
        file(Image.new("RGB", (640, 480), "white"), "JPEG", optimize=True),
        file(LARGE, "MPO", save_all=True, append_images=[LARGE]),
        # What cameras and servers put behind a photo.
        *(
            JPEGS["preview"] + tail
            for tail in (bytes(9999), b"\r\n--x--", b"MotionPhoto")
        ),
    ],
)
def test_a_whole_jpeg_does_not_warn(content: bytes) -> None:
    assert opened(content).size > 0


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "PNG", "TIFF"])
@pytest.mark.parametrize("orientation", [*range(10), 255, 65535])
def test_orientation_of_photos_and_sizes(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = file(Image.fromarray(COLOUR), kind, exif=exif)
    expected = (16, 12) if orientation in (5, 6, 7, 8) else (12, 16)
    assert opened(content).shape[:2] == image_size(content) == expected


CUT = {
    "JPEG": file(COLOUR, "JPEG")[:100],
    "JPEG with a preview": JPEGS["preview"][:1000],
    "PNG": file(COLOUR)[:20],
    "GIF": file(GREY, "GIF")[:8],
    "WebP": file(COLOUR, "WEBP")[:15],
    "JPEG 2000": file(COLOUR, "JPEG2000")[:60],
    "JPEG 2000 without its stream": file(COLOUR, "JPEG2000")[:115],
}


@pytest.mark.parametrize("name", CUT)
def test_a_photo_of_which_little_is_left(name: str) -> None:
    """It is not of a kind that is not read."""
    with pytest.raises(ValueError, match=r"^truncated or corrupt( \(.*\))?$"):
        open_image(CUT[name])


@pytest.mark.parametrize("kind", ["AVIF", "HEIF"])
def test_a_truncated_photo_of_a_format_that_is_read(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The remedy is not to install what is there."""
    brand = {"AVIF": b"avif", "HEIF": b"heic"}[kind]
    content = b"\0\0\0\x18ftyp" + brand + bytes(100)
    if kind == "AVIF":  # it may first name its family
        monkeypatch.setitem(Image.OPEN, kind, None)
        family = b"\0\0\0\x18ftypmif1\0\0\0\0mif1avif" + bytes(60)
        assert decoding.why_not_an_image(family) == "truncated or corrupt"
    monkeypatch.setitem(Image.OPEN, kind, None)
    assert decoding.why_not_an_image(content) == "truncated or corrupt"
    monkeypatch.delitem(Image.OPEN, kind)
    assert "which needs" in decoding.why_not_an_image(content)


def test_a_thin_photo_of_which_a_square_is_cut_out() -> None:
    photo = Image.new("RGB", (30_000, 1), "white")
    encoder = CLIPImageEncoder(OpenCLIP("tiny", resize="crop", embedding_cache=None))
    with pytest.raises(ImageReadError, match="30000 times as long as it is wide"):
        encoder.transform([photo])
    squashed = CLIPImageEncoder(OpenCLIP("tiny", embedding_cache=None))
    assert np.isfinite(squashed.transform([photo])).all()


# -- files that are no photos ------------------------------------------------------

OTHERS = {
    "HEIC": (b"\0\0\0\x18ftypheic" + bytes(100), "plug-in pillow-heif"),
    "HEIF of another brand": (b"\0\0\0\x18ftypmif1" + bytes(100), "pillow-heif"),
    "HEIF of 10 bits": (b"\0\0\0\x18ftyphevx" + bytes(100), "plug-in pillow-heif"),
    "HEIF that readers do not know": (
        b"\0\0\0\x18ftypmiaf\0\0\0\0miafheic" + bytes(100),
        "a HEIC photo of a kind that is not read: convert it",
    ),
    "EPS": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "a PostScript file"),
    "EPS with a preview": (b"\xc5\xd0\xd3\xc6" + bytes(60), "a PostScript file"),
    "PDF": (b"%PDF-1.7\n", "a PDF document"),
    "web page in capitals": (b"<HTML><head></head></HTML>", "a web page"),
    "web page behind a mark": (b"\xef\xbb\xbf\n<html>", "a web page"),
    "web page behind a remark": (b"<!-- a\nb --> <head>", "a web page"),
    "JSON": (b'{"error": "not found"}', "the download went wrong"),
    "headers": (b"HTTP/1.1 200 OK\r\n\r\n" + file(COLOUR), "the download went wrong"),
    "error of a server": (b"<?xml version='1.0'?><Error><Code>", "an XML file, not an"),
    "SVG": (b"<?xml version='1.0'?><svg/>", "an SVG drawing"),
    "SVG behind a remark": (b"\xef\xbb\xbf<!-- made --><svg/>", "an SVG drawing"),
    "PDF behind a line": (b"\n%PDF-1.7\n", "a PDF document"),
    "ZIP": (b"PK\x03\x04" + bytes(60), "a compressed file, not an image: unpack it"),
    "7z": (b"7z\xbc\xaf\x27\x1c" + bytes(60), "unpack it"),
    "xz": (lzma.compress(file(COLOUR)), "unpack it"),
    "tar": (b"a.png".ljust(257, b"\0") + b"ustar\0" + bytes(300), "unpack it"),
    "line ends lost": (file(COLOUR).replace(b"\r\n", b"\n"), "by a copy as text"),
    "line ends added": (file(COLOUR).replace(b"\n", b"\r\n"), "by a copy as text"),
    "recoded PNG": (file(COLOUR).decode("latin1").encode(), "by a copy as text"),
    "recoded JPEG": (
        file(COLOUR, "JPEG").decode(errors="replace").encode(),
        "by a copy as text",
    ),
    "zeros": (bytes(5000), "it begins with zeros, as a copy that was cut off"),
    "annex": (b"/annex/objects/SHA256E-s1--0.png\n", "run git annex get"),
    "link to annex": (b"../.git/annex/objects/xx", "run git annex get"),
    "icon": (b"\0\0\1\0\1\0" + bytes(60), "an icon that is not read"),
    "JPEG XR": (b"II\xbc\1" + bytes(60), "a JPEG XR image that is not read"),
    "AVI": (b"RIFF\0\1\0\0AVI LIST" + bytes(60), "a video"),
    "old MOV": (b"\0\0\0\x08wide\0\0\1\0mdat" + bytes(60), "a video"),
    "raw photo of an MP4 kind": (b"\0\0\0\x18ftypcrx " + bytes(60), "a raw photo"),
    "QOI": (b"qoif" + bytes(60), "a QOI image"),
    "JPEG of 12 bits": (
        b"\xff\xd8" + segment(0xC1, b"\x0c\0\x08\0\x08\1\1\x11\0") + b"\xff\xda",
        "a JPEG image of a kind",
    ),
    "JPEG of no loss": (
        b"\xff\xd8" + segment(0xC3, b"\x0c\0\x08\0\x08\1\1\x11\0") + b"\xff\xda",
        "a JPEG image of a kind",
    ),
    "PSD": (b"8BPS\0\1" + bytes(60), "a Photoshop file"),
    "JPEG XL": (b"\xff\x0a" + bytes(60), "a JPEG XL image"),
    "DICOM": (bytes(128) + b"DICM" + bytes(60), "a DICOM file"),
    "video": (b"\0\0\0\x18ftypmp42" + bytes(60), "a video"),
    "web page": (b"<!DOCTYPE html><title>404</title>", "a web page"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    "array": (b"\x93NUMPY\1\0" + bytes(60), "load it in Python"),
    "FITS": (b"SIMPLE  =    T" + bytes(60), "a FITS file"),
    "TIFF of doubles": (
        tiff(np.zeros((4, 4)), bits=64, sample_format=3),
        "a TIFF image of a kind that is not read",
    ),
    "text": (b"not an image at all", "not an image, or of an unknown format"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_photo_is_named(name: str, tmp_path: Path) -> None:
    content, reason = OTHERS[name]
    path = tmp_path / "photo.png"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=reason):
        open_image(path)
    with pytest.raises(ValueError, match=reason):
        image_size(path)


def test_only_listed_formats_are_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all the readers of Pillow, and those that other packages add."""
    Image.init()
    tried = []

    def spy(name: str, opener: Any) -> Any:
        def open_(*arguments: Any) -> Any:
            tried.append(name)
            return opener[0](*arguments)

        return open_, None

    spies = {name: spy(name, opener) for name, opener in Image.OPEN.items()}
    monkeypatch.setattr(Image, "OPEN", spies)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match=r".+"):
            open_image(b"\x01\x02\x03 no format begins so")
    assert set(tried) <= set(decoding._FORMATS)
    assert tried


# -- memory ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["file", "array", "later"])
def test_an_image_without_memory_costs_its_own_row(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*arguments: Any) -> Any:
        raise MemoryError

    def then(image: Image.Image) -> Any:
        raise MemoryError

    if kind == "file":
        monkeypatch.setattr(Image.Image, "convert", fails)
    elif kind == "array":
        monkeypatch.setattr(Image, "fromarray", fails)
    image: Any = COLOUR if kind == "array" else FILE
    with pytest.raises(ValueError, match="needs more memory than there is"):
        open_image(image, then if kind == "later" else None)


FILE = file(COLOUR)


def test_large_images_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding._pixels, "most", 200)  # each has 192
    at_once = most = 0
    lock = threading.Lock()

    def then(image: Image.Image) -> None:
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        threading.Event().wait(0.01)
        with lock:
            at_once -= 1

    threads = [threading.Thread(target=open_image, args=(FILE, then)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert decoding._pixels.taken == 0


def test_large_files_take_turns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding._bytes, "most", len(FILE) + 1)
    paths = [tmp_path / f"{number}.png" for number in range(6)]
    for path in paths:
        path.write_bytes(FILE)
    at_once: list[int] = []

    def then(image: Image.Image) -> None:
        at_once.append(decoding._bytes.taken)
        threading.Event().wait(0.01)

    threads = [threading.Thread(target=open_image, args=(p, then)) for p in paths]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert at_once == [len(FILE)] * 6
    monkeypatch.setattr(decoding._bytes, "most", 1)  # larger ones are read alone
    CLIPImageEncoder("tiny").transform(paths)
    assert decoding._bytes.taken == 0


def test_a_file_that_is_refused_is_not_kept(tmp_path: Path) -> None:
    """Not even by the traceback of the error, while others are read."""
    paths = [tmp_path / f"{number}.png" for number in range(12)]
    for path in paths:
        path.write_bytes(bytes(2**22))
    encoder = CLIPImageEncoder(OpenCLIP("tiny", num_workers=2), on_error="nan")
    encoder.transform([COLOUR])
    tracemalloc.start()
    assert np.isnan(encoder.transform(paths)).all()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 9 * 2**22


def test_a_photo_that_vanishes_is_an_error_row(tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    path.write_bytes(FILE)
    encoder = CLIPImageEncoder("tiny", on_error="nan")
    assert np.isfinite(encoder.transform([path])).all()
    path.unlink()
    assert np.isnan(encoder.transform([path, COLOUR])).any(axis=1).tolist() == [1, 0]
