"""Every kind of image that is accepted, and the error of every kind that is not."""

from __future__ import annotations

import io
import pickle
import re
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clipad_sklearn import CLIPImageEncoder, ImageReadError, list_images
from clipad_sklearn._images import check_images, open_image
from clipad_sklearn._masks import mask_pixels, numbered_mask

RAMP = np.arange(48, dtype=np.uint8).reshape(4, 4, 3) * 5
NOISE = np.random.default_rng(0).integers(0, 256, (50, 50, 3), dtype=np.uint8)


def _file(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


class TestOpenImage:
    @pytest.mark.parametrize(
        "pixels",
        [
            RAMP,
            RAMP.astype(np.uint16) * 257,
            RAMP / 255,
            (RAMP / 255).astype(np.float32),
            np.dstack([RAMP, np.full((4, 4), 255, np.uint8)]),
        ],
        ids=["uint8", "uint16", "float64", "float32", "opaque"],
    )
    def test_arrays_of_equal_meaning(self, pixels: np.ndarray) -> None:
        np.testing.assert_array_equal(np.asarray(open_image(pixels)), RAMP)

    @pytest.mark.parametrize("shape", [(4, 4), (4, 4, 1)])
    def test_grey(self, shape: tuple[int, ...]) -> None:
        grey = RAMP[:, :, 0]
        expected = np.dstack([grey] * 3)
        image = open_image(grey.reshape(shape))
        np.testing.assert_array_equal(np.asarray(image), expected)

    def test_bool(self) -> None:
        image = np.asarray(open_image(RAMP[:, :, 0] > 100))
        assert set(np.unique(image)) == {0, 255}

    def test_alpha_lies_on_white(self) -> None:
        transparent = np.zeros((4, 4, 4), np.uint8)
        transparent[0, 0, 3] = 17
        assert np.asarray(open_image(transparent)).min() == 238
        assert np.asarray(open_image(_file(transparent))).min() == 238
        palette = Image.fromarray(RAMP).convert("P")
        file = io.BytesIO()
        palette.save(file, "PNG", transparency=palette.getpixel((0, 0)))
        assert np.asarray(open_image(file.getvalue()))[0, 0].tolist() == [255] * 3

    def test_sixteen_bit_files_are_scaled_not_clipped(self) -> None:
        grey = (np.arange(16, dtype=np.uint16) * 4096).reshape(4, 4)
        expected = np.rint(grey / 257)
        for format_ in ("PNG", "TIFF"):
            file = io.BytesIO()
            Image.fromarray(grey).save(file, format_)
            image = np.asarray(open_image(file.getvalue()))
            np.testing.assert_allclose(image[:, :, 0], expected, atol=1)

    @pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "LAB", "I", "F"])
    def test_modes(self, mode: str) -> None:
        image = Image.fromarray(RAMP).convert(mode)
        if mode in ("I", "F"):
            scale = 257 if mode == "I" else 1 / 255
            image = image.point(lambda value: value * scale + 0)
        converted = open_image(image)
        assert converted.mode == "RGB"
        if mode != "1":
            expected = np.asarray(Image.fromarray(RAMP).convert("L"), dtype=float)
            found = np.asarray(converted.convert("L"), dtype=float)
            np.testing.assert_allclose(found, expected, atol=25)

    def test_exif_orientation(self) -> None:
        image = Image.fromarray(np.repeat(RAMP, 8, axis=0).repeat(4, axis=1))
        exif = Image.Exif()
        exif[0x0112] = 6
        file = io.BytesIO()
        image.save(file, "PNG", exif=exif)
        assert open_image(file.getvalue()).size == image.size[::-1]

    def test_animation_gives_first_frame(self) -> None:
        frames = [
            Image.fromarray(np.full((4, 4), value, np.uint8)) for value in (9, 99)
        ]
        file = io.BytesIO()
        frames[0].save(file, "TIFF", save_all=True, append_images=frames[1:])
        with pytest.warns(UserWarning, match="only the first is read"):
            assert np.asarray(open_image(file.getvalue())).max() == 9


def _huge_png() -> bytes:
    """A few bytes that claim to be an image of 60,000 x 60,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"x")


BAD_FILES = {
    "empty.png": (b"", "the file is empty"),
    "text.png": (b"not an image at all", "not an image, or of an unknown format"),
    "truncated.png": (_file(NOISE)[:2000], "truncated or corrupt"),
    "truncated.jpg": (_file(NOISE, "JPEG")[:1000], "truncated or corrupt"),
    "bomb.png": (_huge_png(), "too large"),
}
BAD_OBJECTS: dict[str, tuple[Any, str]] = {
    "missing": ("no/such/photo.png", "no such file"),
    "NUL in path": ("a\0b.png", "null"),
    "number": (7, "int is not an image"),
    "None": (None, "NoneType is not an image"),
    "nested list": ([[1, 2], [3, 4]], "list is not an image"),
    "zero-sized array": (np.zeros((0, 5, 3), np.uint8), "has no pixels"),
    "zero-sized PIL": (Image.new("RGB", (0, 5)), "no pixels"),
    "one dimension": (np.zeros(5, np.uint8), "expected (height, width)"),
    "five channels": (np.zeros((4, 4, 5), np.uint8), "1, 3 or 4 channels"),
    "float up to 255": (RAMP.astype(float), "divide 8-bit values by 255"),
    "negative float": (np.full((4, 4), -0.5), "shift or cut off what is negative"),
    "float up to 4095": (
        RAMP * 17.0,
        "scale them by the largest value that the camera",
    ),
    "infinite": (np.full((4, 4), np.inf), "fill in what is infinite or not a number"),
    "NaN": (np.array([[0, np.nan]]), "fill in what is infinite or not a number"),
    "NaN in a TIFF": (
        Image.fromarray(np.float32([[0, np.nan]])),
        "fill in what is infinite or not a number",
    ),
    "int64": (RAMP.astype(np.int64), "dtype int64"),
    "masked": (np.ma.array(RAMP, mask=RAMP > 9), "fill them, for example"),
    "complex": (RAMP.astype(complex), "dtype complex128"),
}


class TestBadImages:
    @pytest.mark.parametrize("name", BAD_FILES)
    def test_file(self, name: str, tmp_path: Path) -> None:
        content, reason = BAD_FILES[name]
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(ImageReadError) as error:
            CLIPImageEncoder("tiny").transform([str(path)])
        [(index, named, found)] = error.value.failures
        assert (index, named) == (0, str(path))
        assert reason in found

    @pytest.mark.parametrize("name", BAD_OBJECTS)
    def test_object(self, name: str) -> None:
        image, reason = BAD_OBJECTS[name]
        with pytest.raises(ImageReadError) as error:
            CLIPImageEncoder("tiny").transform([RAMP, image])
        [(index, _, found)] = error.value.failures
        assert index == 1
        assert reason in found

    def test_folder(self, tmp_path: Path) -> None:
        with pytest.raises(ImageReadError, match="is a folder, not an image"):
            CLIPImageEncoder("tiny").transform([tmp_path])

    def test_all_bad_named_and_nothing_lost(
        self, tmp_path: Path, photo_files: list[str]
    ) -> None:
        images: list[Any] = list(photo_files)
        for position, (name, (content, _)) in enumerate(BAD_FILES.items()):
            (tmp_path / name).write_bytes(content)
            images.insert(3 * position, str(tmp_path / name))
        bad = list(range(0, 3 * len(BAD_FILES), 3))
        with pytest.raises(ImageReadError) as error:
            CLIPImageEncoder("tiny").transform(images)
        assert [index for index, _, _ in error.value.failures] == bad
        assert str(error.value).startswith("5 images could not be read:\n  0: ")
        for name in BAD_FILES:
            assert name in str(error.value)

        rows = CLIPImageEncoder("tiny", on_error="nan").transform(images)
        assert np.flatnonzero(np.isnan(rows).any(axis=1)).tolist() == bad
        good = CLIPImageEncoder("tiny").transform(photo_files)
        np.testing.assert_allclose(np.delete(rows, bad, axis=0), good, atol=1e-6)

    def test_error_pickles(self) -> None:
        error = ImageReadError([(3, "a.png", "no such file")])
        again = pickle.loads(pickle.dumps(error))
        assert again.failures == error.failures
        assert str(again) == str(error)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a\x1b[31m.png", r"a\x1b[31m.png"),
        ("a\n  7: b.png", r"a\n  7: b.png"),
        ("a\u202eb.png", r"a\u202eb.png"),
        ("a\u2028b.png", r"a\u2028b.png"),
        ("写真\u3000a\u202fb\u200d.png", "写真\u3000a\u202fb\u200d.png"),
    ],
)
def test_names_in_errors_are_shown_as_one_line(name: str, shown: str) -> None:
    with pytest.raises(ImageReadError) as error:
        CLIPImageEncoder("tiny").transform([f"no/{name}"])
    assert str(error.value).split("\n")[1:] == [f"  0: no/{shown}: no such file"]
    assert error.value.failures == [(0, f"no/{name}", "no such file")]
    with pytest.raises(ValueError, match=re.escape(f"Mask 3, no/{shown}: no such")):
        numbered_mask(3, f"no/{name}")


class TestCheckImages:
    @pytest.mark.parametrize(
        ("images", "kind", "message"),
        [
            ([], ValueError, "minimum of 1 is required"),
            (np.empty((0, 8, 8)), ValueError, "minimum of 1 is required"),
            ("photo.png", ValueError, "Wrap it in a list"),
            (Path("photo.png"), ValueError, "Wrap it in a list"),
            (Image.new("RGB", (4, 4)), ValueError, "Wrap it in a list"),
            (RAMP, ValueError, "Wrap it in a list"),
            (RAMP[:, :, 0], ValueError, "Wrap it in a list"),
            (".", ValueError, r"got the folder '\.'\. List its images: list_images"),
            (np.array([["a.png", "1"]]), ValueError, r"X\[:, 0\]"),
            (np.zeros(5), ValueError, "n, height, width"),
            (np.zeros((2, 2, 2, 2, 2)), ValueError, "n, height, width"),
            (None, ValueError, "got None"),
            (3, TypeError, "got int"),
            ({"a": RAMP}, TypeError, "got dict"),
        ],
    )
    def test_not_a_list_of_images(
        self, images: Any, kind: type[Exception], message: str
    ) -> None:
        with pytest.raises(kind, match=message):
            check_images(images)

    def test_data_frame(self) -> None:
        pd = pytest.importorskip("pandas")
        frame = pd.DataFrame({"path": ["a.png", "b.png"], "line": [1, 2]})
        with pytest.raises(TypeError, match=r"'line'\]\. Pass the one"):
            check_images(frame)
        for column in (frame["path"], frame[["path"]], frame[["path"]].to_numpy()):
            assert list(check_images(column)) == ["a.png", "b.png"]

    def test_stack_of_images(self) -> None:
        assert len(check_images(np.stack([RAMP, RAMP]))) == 2
        assert len(check_images(np.zeros((5, 8, 8)))) == 5

    def test_paths_as_bytes(self) -> None:
        assert check_images(np.array([b"a.png", b"b.png"])) == ["a.png", "b.png"]


class TestListImages:
    def test_recursive_sorted_and_only_images(self, tmp_path: Path) -> None:
        for name in (
            "b/z.PNG",
            "b/a.jpeg",
            "a.tif",
            ".hidden/x.png",
            "._a.tif",
            "c.txt",
        ):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).touch()
        found = [str(Path(p).relative_to(tmp_path)) for p in list_images(tmp_path)]
        assert found == ["a.tif", "b/a.jpeg", "b/z.PNG"]

    def test_not_a_folder(self, tmp_path: Path) -> None:
        with pytest.raises(NotADirectoryError, match="is not a folder"):
            list_images(tmp_path / "missing")


def test_arrays_that_are_nearly_as_they_should_be() -> None:
    rounded = np.full((4, 4), np.float32(1.0000002))
    assert np.asarray(open_image(rounded)).min() == 255
    assert np.asarray(open_image(np.full((4, 4), np.float32(-1e-7)))).max() == 0
    with pytest.raises(ValueError, match=r"found \[0, 1.001\]"):
        open_image(np.array([[0, 1.001]]))
    swapped = np.array([[0, 257], [65535, 514]], dtype=">u2")
    assert np.asarray(open_image(swapped))[..., 0].tolist() == [[0, 1], [255, 2]]


@pytest.mark.parametrize("mode", ["1", "L", "P", "I;16", "RGB", "RGBA", "LA"])
def test_masks_are_above_zero(mode: str, tmp_path: Path) -> None:
    expected = np.eye(6, dtype=bool)
    if mode == "1":
        image = Image.fromarray(expected)
    elif mode == "I;16":
        image = Image.fromarray(expected.astype(np.uint16) * 3)
    elif mode == "P":
        image = Image.frombytes("P", (6, 6), (expected * 2).astype(np.uint8).tobytes())
        image.putpalette([0, 0, 0, 9, 9, 9, 0, 0, 0])
    else:
        image = Image.fromarray(expected.astype(np.uint8) * 4).convert(mode)
    path = tmp_path / "mask.png"
    image.save(path)
    np.testing.assert_array_equal(mask_pixels(path), expected)
    np.testing.assert_array_equal(mask_pixels(Image.open(path)), expected)


@pytest.mark.parametrize(
    ("highest", "warns"), [(0, False), (256, True), (4095, True), (4096, False)]
)
def test_cameras_of_twelve_bits(highest: int, warns: bool) -> None:
    pixels = np.linspace(0, highest, 64).reshape(8, 8).astype(np.uint16)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        open_image(pixels)
    assert ["no value above 4095" in str(w.message) for w in caught] == [True] * warns


def test_every_ending_of_a_photo(tmp_path: Path) -> None:
    names = ["a.AVIF", "b.heic", "c.jpg", "d.tiff", "e.webp"]
    for name in [*names, "f.dng", "g.txt"]:
        (tmp_path / name).touch()
    assert [Path(p).name for p in list_images(tmp_path)] == names
