"""Whatever comes in, only what is documented comes out.

CONTRIBUTING.md has the command of a long run, with other examples each time.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from PIL import Image
from sklearn.linear_model import LogisticRegression

from clipad_sklearn import (
    CLIPImageEncoder,
    ImageReadError,
    OpenCLIP,
    PromptDetector,
    PromptSet,
    RandomWordDetector,
    SDPPlusDetector,
    WeightsNotFound,
    random_word_prompts,
)
from clipad_sklearn._cli.main import main
from clipad_sklearn._clip.settings import check_clip

# ruff: noqa: PT017  (what is wrong, if anything, depends on the example)
# Pillow warns about damaged metadata and large images; that is no error.
pytestmark = pytest.mark.filterwarnings("ignore")

FACTOR = int(os.environ.get("CLIPAD_FUZZ", "1"))
CLIP = OpenCLIP("tiny", batch_size=4, num_workers=1, embedding_cache=None)


def fuzz(max_examples: int) -> Any:
    return settings(
        max_examples=max_examples * FACTOR,
        derandomize=FACTOR == 1,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


def check_embeddings(embeddings: np.ndarray, n: int) -> None:
    assert embeddings.shape == (n, 128)
    assert embeddings.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-5)


def encode_or_refuse(image: Any) -> None:
    """An image is encoded, or it is named with a reason of one line."""
    for resize in ("squash", "crop"):
        clip = OpenCLIP(**CLIP.get_params() | {"resize": resize})
        try:
            check_embeddings(CLIPImageEncoder(clip).transform([image]), 1)
        except ImageReadError as error:
            [(index, name, reason)] = error.failures
            assert index == 0
            assert isinstance(name, str)
            assert reason.strip()


# -- images ----------------------------------------------------------------------


@functools.cache
def image_files() -> dict[str, bytes]:
    """One small file of each kind."""
    rng = np.random.default_rng(0)
    photo = Image.fromarray(rng.integers(0, 256, (24, 20, 3), dtype=np.uint8))
    smooth = photo.resize((3, 3)).resize((40, 32))
    exif = Image.Exif()
    exif[0x0112] = 6
    deep = Image.fromarray(rng.integers(0, 65536, (20, 24), dtype=np.uint16))
    animation: dict[str, Any] = {
        "save_all": True,
        "append_images": [photo.rotate(90), photo.rotate(180)],
    }
    kinds: dict[str, tuple[Image.Image, str, dict[str, Any]]] = {
        "png": (photo, "PNG", {}),
        "png exif": (photo, "PNG", {"exif": exif}),
        "png alpha": (photo.convert("RGBA"), "PNG", {}),
        "png palette": (photo.convert("P"), "PNG", {"transparency": 3}),
        "png 16": (deep, "PNG", {}),
        "png 1": (photo.convert("1"), "PNG", {}),
        "apng": (photo, "PNG", animation),
        "jpeg": (photo, "JPEG", {"exif": exif}),
        "jpeg progressive": (smooth, "JPEG", {"progressive": True}),
        "jpeg cmyk": (photo.convert("CMYK"), "JPEG", {}),
        "mpo": (photo, "MPO", animation),
        "tiff": (photo, "TIFF", {}),
        "tiff lzw": (photo, "TIFF", {"compression": "tiff_lzw"}),
        "tiff deflate": (photo, "TIFF", {"compression": "tiff_adobe_deflate"}),
        "tiff jpeg": (smooth, "TIFF", {"compression": "jpeg"}),
        "tiff g4": (photo.convert("1"), "TIFF", {"compression": "group4"}),
        "tiff 16": (deep, "TIFF", {}),
        "tiff float": (photo.convert("F"), "TIFF", {}),
        "tiff pages": (photo, "TIFF", animation),
        "webp": (smooth, "WEBP", {}),
        "webp lossless": (photo.convert("RGBA"), "WEBP", {"lossless": True}),
        "webp animated": (photo, "WEBP", animation),
        "gif": (photo, "GIF", {}),
        "gif animated": (photo, "GIF", animation),
        "bmp": (photo, "BMP", {}),
        "ppm": (photo, "PPM", {}),
        "tga": (photo, "TGA", {"compression": "tga_rle"}),
        "jp2": (smooth, "JPEG2000", {}),
        "ico": (photo, "ICO", {}),
        "pcx": (photo, "PCX", {}),
        "sgi": (photo, "SGI", {}),
        "eps": (photo, "EPS", {}),
        "pdf": (photo, "PDF", {}),
    }
    files = {}
    for name, (image, kind, options) in kinds.items():
        file = io.BytesIO()
        with contextlib.suppress(OSError, TypeError):  # not of every Pillow
            image.save(file, kind, **options)
            files[name] = file.getvalue()
    return files


def with_right_checksums(content: bytes) -> bytes:
    """Mend the checksums of a PNG, so that damage gets past them."""
    if not content.startswith(b"\x89PNG\r\n\x1a\n"):
        return content
    parts, at = [content[:8]], 8
    while at + 12 <= len(content):
        length = int.from_bytes(content[at : at + 4], "big")
        body = content[at + 4 : at + 8 + length]
        if len(body) < 4 + length:
            break
        checksum = zlib.crc32(body).to_bytes(4, "big")
        parts.append(content[at : at + 4] + body + checksum)
        at += 12 + length
    return b"".join(parts) + content[at:]


@st.composite
def damaged(draw: Any, contents: tuple[bytes, ...]) -> bytes:
    """The bytes of a real file, after a few accidents."""
    content = draw(st.sampled_from(contents))
    for _ in range(draw(st.integers(0, 6))):
        # Headers break more than pixels do.
        ends = (len(content), min(64, len(content)), min(400, len(content)))
        at = draw(st.integers(0, draw(st.sampled_from(ends))))
        length = draw(st.integers(1, draw(st.sampled_from((1, 4, 64)))))
        kind = draw(st.sampled_from(("cut", "flip", "write", "insert", "drop", "copy")))
        if kind == "cut":
            content = content[:at]
        elif kind == "flip" and at < len(content):
            bit = 1 << draw(st.integers(0, 7))
            content = content[:at] + bytes([content[at] ^ bit]) + content[at + 1 :]
        elif kind == "write":
            other = draw(st.binary(min_size=length, max_size=length))
            content = content[:at] + other + content[at + length :]
        elif kind == "insert":
            content = content[:at] + draw(st.binary(max_size=length)) + content[at:]
        elif kind == "drop":
            content = content[:at] + content[at + length :]
        else:
            content = content[:at] + content[at : at + length] + content[at:]
    return with_right_checksums(content) if draw(st.booleans()) else content


@given(
    damaged(tuple(image_files().values())),
    st.sampled_from((".png", ".JPG", ".tif", ".webp", ".gif", ".txt", "")),
)
@fuzz(100)
def test_damaged_files(content: bytes, suffix: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"photo{suffix}")
        path.write_bytes(content)
        encode_or_refuse(path)


DTYPES = st.one_of(
    npst.scalar_dtypes(),
    npst.nested_dtypes(),
    st.sampled_from(["u1", "u2", ">u2", "f2", "f4", ">f8", "g", "O", "?", "i8", "c8"]),
).map(np.dtype)


@st.composite
def arrays(draw: Any) -> np.ndarray:
    dtype = draw(DTYPES)
    shape = draw(
        npst.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=5)
        | st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 5))
    )
    if dtype.hasobject:
        array = np.empty(shape, dtype)
    elif dtype.kind == "f" and draw(st.booleans()):
        array = draw(npst.arrays(dtype, shape, elements=st.floats(0, 1, width=16)))
    else:
        array = draw(npst.arrays(dtype, shape))
    for _ in range(draw(st.integers(0, 2))):
        change = draw(
            st.sampled_from(("transpose", "flip", "step", "read-only", "fortran"))
        )
        if change == "transpose":
            array = array.T
        elif change == "flip" and array.ndim:
            array = np.flip(array)
        elif change == "step" and array.ndim:
            array = array[::2]
        elif change == "fortran":
            array = np.asfortranarray(array)
        else:
            array.setflags(write=False)
    return array


@given(arrays())
@example(np.array(0.5))
@example(np.ones((1, 1), np.longdouble))
@fuzz(70)
def test_arrays(array: np.ndarray) -> None:
    encode_or_refuse(array)
    try:  # as the whole input
        check_embeddings(CLIPImageEncoder(CLIP).transform(array), len(array))
    except (ValueError, TypeError) as error:
        assert str(error)


MODES = (
    *("1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "F"),
    *("LA", "PA", "RGBX", "RGBa", "La", "I;16", "I;16L", "I;16B", "I;16N"),
)


@given(
    st.sampled_from(MODES),
    st.tuples(st.integers(0, 9), st.integers(0, 9)),
    st.binary(min_size=9 * 9 * 4, max_size=9 * 9 * 4),
    st.none() | st.integers(-1, 300) | st.binary(max_size=300) | st.just((1, 2, 3)),
    st.booleans(),
)
@example("1", (1, 1), bytes(9 * 9 * 4), b"", False)
@fuzz(80)
def test_modes_of_pillow(
    mode: str, size: tuple[int, int], content: bytes, transparency: Any, closed: bool
) -> None:
    image = Image.new(mode, size)
    if 0 not in size:
        with contextlib.suppress(ValueError):  # modes that take no raw bytes
            image.frombytes(content[: len(image.tobytes())])
    if transparency is not None:
        image.info["transparency"] = transparency
    if closed:
        image.close()
    encode_or_refuse(image)


THINGS = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.complex_numbers()
    | st.text(max_size=5)
    | st.binary(max_size=5)
    | st.just(b"")
    | st.builds(object),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.sets(st.integers(), max_size=2)
        | st.dictionaries(st.text(max_size=2), inner, max_size=2)
        | inner.map(lambda value: iter([value]))
    ),
    max_leaves=4,
)


@given(THINGS)
@example("x\0.png")
@example("\udc00.png")
@example("x" * 5000)
@fuzz(150)
def test_anything_as_images(thing: Any) -> None:
    encoder = CLIPImageEncoder(CLIP)
    # The empty name and "." are folders, and no file of this folder is an image.
    with contextlib.suppress(ImageReadError):
        raise AssertionError(f"{encoder.transform([thing])} from {thing!r}")
    if thing is None:
        return  # passes through
    with pytest.raises((ValueError, TypeError)):
        encoder.transform(thing)


# -- texts -----------------------------------------------------------------------

LETTERS = st.characters(exclude_categories=())  # lone surrogates too
TEXTS = (
    st.text(LETTERS, max_size=30)
    | st.text("{}!:.[]0ab %\\", max_size=12)
    | st.text(LETTERS, min_size=1, max_size=3).map(lambda text: text * 2000)
    | st.sampled_from(
        ("", " ", "\0", "<|endoftext|>", "<start_of_text>", "word " * 5000)
    )
)


@given(st.lists(TEXTS | THINGS, max_size=4))
@example(["\ud800"])
@example([""])
@example([None])
@fuzz(100)
def test_prompts(texts: list[Any]) -> None:
    try:
        check_embeddings(CLIP.encode_text(texts), len(texts))
    except TypeError:
        assert not all(isinstance(text, str) for text in texts)
    except ValueError as error:
        assert ("minimum of 1" if not texts else "lone surrogate") in str(error)


@given(st.lists(TEXTS, max_size=2), st.lists(TEXTS, max_size=2), st.lists(TEXTS), TEXTS)
@fuzz(30)
def test_states_templates_and_class_names(
    normal: list[str], anomalous: list[str], templates: list[str], class_name: str
) -> None:
    try:
        prompts = PromptSet(normal, anomalous, templates)
        written = prompts.format(class_name)
    except ValueError as error:
        assert str(error)
    else:
        for states, texts in zip((normal, anomalous), written, strict=True):
            assert len(texts) == len(states) * len(templates)
            assert all(class_name in text for text in texts)
    with contextlib.suppress(ValueError):
        good, bad = random_word_prompts(
            3,
            normal_states=normal,
            anomalous_states=anomalous,
            templates=["a {}", *templates],
            class_name=class_name,
            random_state=0,
        )
        assert len(good) == len(bad) == 3
    try:
        detector = PromptDetector(CLIP, prompts="clip-ac", class_name=class_name).fit()
    except ValueError as error:
        assert str(error)
    else:
        assert np.isfinite(detector.prototypes_).all()


@given(TEXTS | st.lists(TEXTS, max_size=3) | THINGS, THINGS, THINGS, THINGS)
@example(["\ud800"], 1, 3, None)
@fuzz(60)
def test_settings_of_random_words(
    word_source: Any, n_words: Any, word_length: Any, class_name: Any
) -> None:
    params = {"n_words": n_words, "word_length": word_length, "class_name": class_name}
    for more in ({}, params):
        detector = RandomWordDetector(
            CLIP,
            n_pairs=3,
            word_source=word_source,
            classifier=LogisticRegression(),
            random_state=0,
        )
        for name, value in more.items():
            assume(not isinstance(value, int) or value < 1000)
            detector.set_params(**{name: value})
        try:
            detector.fit()
        except (ValueError, TypeError) as error:
            assert str(error)


# -- settings --------------------------------------------------------------------

STRINGS = st.one_of(
    st.text(LETTERS, max_size=12),
    st.lists(
        st.sampled_from(
            (
                *("ViT-B-32", "RN50", "tiny", "hf-hub:", "org", "/", "..", ".", "~"),
                *("laion2b_s34b_b79k", "openai", "local-dir:", "timm/", " ", "\\"),
                *("ViT-B-32-quickgelu", "schema:", "@", ".safetensors", ".pt", "C:"),
            )
        ),
        max_size=4,
    ).map("".join),
)
VALUES: dict[str, Any] = {
    "model_name": STRINGS,
    "pretrained": STRINGS | st.none(),
    "device": st.sampled_from(
        ("cpu", "cpu:0", "cpu:1", "cuda:99", "meta", "mps", "xpu", "xla", "vulkan")
    ),
    "precision": st.sampled_from(("fp32", "bf16", "fp16", "FP32", "", "pure_bf16")),
    "resize": st.sampled_from(("squash", "crop", "Squash", "", "shortest")),
    "batch_size": st.integers(-2, 5) | st.just(10**30),
    "num_workers": st.integers(-2, 3) | st.just(10**30),
    "cache_dir": STRINGS | st.none(),
    "embedding_cache": st.none(),
}


@pytest.fixture(scope="module")
def offline() -> Iterator[None]:
    """The hub's client has read its settings already."""
    from huggingface_hub import constants

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        with tempfile.TemporaryDirectory() as folder:
            patch.chdir(folder)
            yield


@pytest.mark.usefixtures("offline")
@given(STRINGS | THINGS)
@example("local-dir:x/y")
@example("hf-hub:")
@example("ViT-B-32/\0")
@fuzz(80)
def test_short_strings(text: Any) -> None:
    assume(not str(text).endswith("random"))
    try:
        clip = check_clip(text)
        check_embeddings(clip.encode_text(["a"]), 1)
    except (ValueError, TypeError, WeightsNotFound) as error:
        assert str(error)
    else:
        # Only the small one that comes with the package needs no network.
        assert text in ("tiny", "tiny/laion400m_e32")


@pytest.mark.usefixtures("offline")
@given(
    st.sampled_from(sorted(VALUES)).flatmap(
        lambda name: st.tuples(st.just(name), VALUES[name] | THINGS)
    )
)
@example(("device", "meta"))
@example(("device", None))
@example(("precision", "fp16"))
@example(("cache_dir", "\0"))
@fuzz(120)
def test_one_wrong_setting(setting: tuple[str, Any]) -> None:
    name, value = setting
    assume(not (name in ("pretrained", "model_name") and value == "random"))
    usual = CLIP.get_params()
    if name in ("pretrained", "cache_dir"):
        usual["model_name"] = "ViT-B-32"
        usual["pretrained"] = "laion2b_s34b_b79k"
    if name == "embedding_cache" and isinstance(value, str):
        value = value.replace("/", "_")
    clip = OpenCLIP(**usual | {name: value})
    repr(clip)
    image = np.zeros((4, 4, 3), np.uint8)
    for encode in (lambda: clip.encode_text(["a"]), lambda: clip.encode_image([image])):
        try:
            check_embeddings(encode(), 1)
        except (ValueError, TypeError, WeightsNotFound) as error:
            assert str(error)


# -- saved detectors -------------------------------------------------------------


@functools.cache
def saved_pipeline() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        photo = Path(folder, "photo.png")
        Image.new("RGB", (8, 8)).save(photo)
        options = ["--clip", "tiny", "--method", "prompt", "--save", f"{folder}/saved"]
        assert main(["score", str(photo), *options]) == 0
        return Path(folder, "saved").read_bytes()


@given(st.deferred(lambda: damaged((saved_pipeline(),))))
@fuzz(60)
def test_damaged_saved_pipeline(content: bytes) -> None:
    """The command says what is wrong, and does not call it an error of its own."""
    with tempfile.TemporaryDirectory() as folder:
        photo = Path(folder, "photo.png")
        Image.new("RGB", (8, 8)).save(photo)
        Path(folder, "saved").write_bytes(content)
        status = main(["score", str(photo), "--load", f"{folder}/saved"])
    if content == saved_pipeline():
        assert status == 0
    else:
        assert status in (0, 2)


@functools.cache
def saved_layers() -> bytes:
    rng = np.random.default_rng(0)
    detector = SDPPlusDetector(CLIP, n_epochs=1, random_state=0)
    images = rng.integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    detector.fit(images, [None, np.eye(16, dtype=bool)])
    with tempfile.TemporaryDirectory() as folder:
        detector.save_layers(f"{folder}/layers")
        return Path(folder, "layers").read_bytes()


@given(st.deferred(lambda: damaged((saved_layers(),))))
@fuzz(60)
def test_damaged_layers(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "layers")
        path.write_bytes(content)
        detector = SDPPlusDetector(CLIP)
        try:
            detector.load_layers(path)
        except ValueError as error:
            assert str(error)
            return
    [anomaly_map] = detector.anomaly_maps([np.zeros((4, 4, 3), np.uint8)])
    assert np.isfinite(anomaly_map).all()


def test_layers_with_a_number_that_is_none() -> None:
    content = saved_layers()
    for damage in (b"\0\0\xc0\x7f", b"\0\0\x80\x7f"):  # NaN, infinity
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "layers")
            path.write_bytes(content[:-400] + damage + content[-396:])
            with pytest.raises(ValueError, match="the file is damaged"):
                SDPPlusDetector(CLIP).load_layers(path)


@given(
    st.recursive(
        st.none() | st.integers() | st.text(max_size=5) | st.floats(allow_nan=False),
        lambda inner: (
            st.lists(inner, max_size=2)
            | st.dictionaries(
                st.sampled_from(
                    (
                        *("model_cfg", "vision_cfg", "text_cfg", "tokenizer_kwargs"),
                        *("bpe_path", "preprocess_cfg", "embed_dim", "width", "layers"),
                        *("hf_model_name", "hf_tokenizer_name", "mean", "std", "size"),
                    )
                ),
                inner,
                max_size=3,
            )
        ),
        max_leaves=8,
    )
)
@example({"model_cfg": {"text_cfg": None}})
@example({"model_cfg": {"text_cfg": {"tokenizer_kwargs": {"bpe_path": 3}}}})
@fuzz(60)
def test_config_of_a_folder(config: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "open_clip_config.json").write_text(json.dumps(config))
        with pytest.raises((ValueError, WeightsNotFound)):
            OpenCLIP(folder).encode_text(["a"])
