"""What `OpenCLIP` encodes: open_clip's numbers, each input once, in any memory."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from sklearn.base import clone

from clipad_sklearn import (
    OpenCLIP,
    ReferenceDetector,
    SDPDetector,
    SDPPlusDetector,
    TiledDetector,
    WinCLIPDetector,
    clear_models,
)
from clipad_sklearn._clip.models import load
from clipad_sklearn._clip.source import TINY

pytestmark = pytest.mark.filterwarnings("ignore:.*longer than the context")

TEXTS = [
    "a",
    "a photo of a flawless qwv zzkr bottle for visual inspection.",
    "scratched metal",
    "",
    "a photo of " + "very " * 90 + "old wood",
    "a",
]


def _stock(clip: OpenCLIP) -> tuple[Any, Any]:
    """The same model and tokenizer, as open_clip itself uses them."""
    loaded = load(clip)
    return loaded.model, loaded.tokenizer


@pytest.mark.parametrize("resize", ["squash", "crop"])
def test_bytes_become_the_pixels_of_open_clip(
    resize: str, photos: list[np.ndarray]
) -> None:
    """To the bit, though the arithmetic is done for many images at once."""
    model = load(OpenCLIP("tiny", image_size=(70, 56), device="cpu"))
    images = [Image.fromarray(photo) for photo in photos]
    images += [images[0].convert(mode) for mode in ("L", "RGBA", "CMYK")]
    found = model.on_device(torch.stack([model.resizing(resize)(i) for i in images]))
    expected = torch.stack([model.transform(resize)(image) for image in images])
    assert torch.equal(found, expected)
    assert model.on_device(expected) is expected


@pytest.mark.parametrize("name", ["tiny", "RN50", "ViT-S-32-alt"])
class TestAgainstOpenCLIP:
    @pytest.fixture
    def clip(self, name: str) -> OpenCLIP:
        pretrained = None if name == "tiny" else "random"
        return OpenCLIP(name, pretrained, embedding_cache=None, device="cpu")

    def test_text(self, clip: OpenCLIP) -> None:
        model, tokenizer = _stock(clip)
        with torch.inference_mode():
            expected = model.encode_text(tokenizer(TEXTS), normalize=True).numpy()
        np.testing.assert_allclose(clip.encode_text(TEXTS), expected, atol=1e-5)

    def test_text_batches_and_order(self, clip: OpenCLIP) -> None:
        expected = clip.encode_text(TEXTS)
        assert expected.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(expected, axis=1), 1, rtol=1e-5)
        clip.set_params(batch_size=1)
        np.testing.assert_allclose(clip.encode_text(TEXTS), expected, atol=1e-5)
        backwards = clip.encode_text(TEXTS[::-1])[::-1]
        np.testing.assert_allclose(backwards, expected, atol=1e-5)

    def test_image_crop(self, clip: OpenCLIP, photos: list[np.ndarray]) -> None:
        loaded = load(clip)
        mean, std = loaded.preprocess_cfg["mean"], loaded.preprocess_cfg["std"]
        size = loaded.preprocess_cfg["size"]
        transform = open_clip.image_transform(size, is_train=False, mean=mean, std=std)
        pixels = torch.stack([transform(Image.fromarray(p)) for p in photos[:2]])
        with torch.inference_mode():
            expected = loaded.model.encode_image(pixels, normalize=True).numpy()
        clip.set_params(resize="crop")
        np.testing.assert_allclose(clip.encode_image(photos[:2]), expected, atol=1e-5)

    def test_image_batches_and_order(
        self, clip: OpenCLIP, photos: list[np.ndarray]
    ) -> None:
        images = photos[:2]
        expected = clip.encode_image(images)
        clip.set_params(batch_size=1, num_workers=1)
        np.testing.assert_allclose(clip.encode_image(images), expected, atol=1e-5)
        backwards = clip.encode_image(images[::-1])[::-1]
        np.testing.assert_allclose(backwards, expected, atol=1e-5)


def test_squash_keeps_the_borders() -> None:
    """A defect at the far end of a wide image is seen by squash, cut off by crop."""
    plain = np.full((40, 400, 3), 128, np.uint8)
    marked = plain.copy()
    marked[:, 380:] = 255
    for resize, seen in (("squash", True), ("crop", False)):
        a, b = OpenCLIP("tiny", resize=resize).encode_image([plain, marked])
        assert (np.abs(a - b).max() > 1e-3) == seen


class TestCache:
    @pytest.mark.parametrize("cache", ["memory", None])
    def test_duplicates_are_encoded_once(
        self, count_rows: Callable[[str], list[int]], cache: str | None
    ) -> None:
        clip = OpenCLIP("tiny", embedding_cache=cache)
        load(clip)
        rows = count_rows("encode_tokens")
        texts = [f"duplicate {i % 7} {cache}" for i in range(50)]
        first = clip.encode_text(texts)
        assert sum(rows) == 7
        np.testing.assert_array_equal(clip.encode_text(texts), first)
        assert sum(rows) == (7 if cache else 14)

    def test_same_picture_in_several_guises(
        self,
        count_rows: Callable[[str], list[int]],
        rng: np.random.Generator,
        tmp_path: Path,
    ) -> None:
        clip = OpenCLIP("tiny", batch_size=2)
        load(clip)
        picture = rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)
        for name in ("a.png", "b.png"):
            Image.fromarray(picture).save(tmp_path / name)
        rows = count_rows("encode_pixels")
        files = [str(tmp_path / name) for name in ("a.png", "b.png", "a.png")]
        encoded = clip.encode_image(files)
        assert sum(rows) == 1
        np.testing.assert_array_equal(encoded, np.repeat(encoded[:1], 3, axis=0))
        arrays = clip.encode_image([picture, Image.fromarray(picture)])
        assert sum(rows) == 2
        np.testing.assert_allclose(arrays, encoded[:2], atol=1e-6)

    def test_changed_file_is_read_again(
        self, rng: np.random.Generator, tmp_path: Path
    ) -> None:
        path = tmp_path / "photo.png"
        rows = []
        for _ in range(2):
            picture = rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)
            Image.fromarray(picture).save(path)
            rows.append(OpenCLIP("tiny").encode_image([path])[0])
        assert np.abs(rows[0] - rows[1]).max() > 1e-4

    def test_keyed_by_weights_and_preprocessing(
        self, photos: list[np.ndarray], clip_folder: Callable[..., Path]
    ) -> None:
        rows = [
            OpenCLIP("tiny").encode_image(photos[:1]),
            OpenCLIP(str(clip_folder())).encode_image(photos[:1]),
            OpenCLIP("tiny", resize="crop").encode_image(photos[:1]),
        ]
        assert np.abs(rows[0] - rows[1]).max() > 1e-4
        assert np.abs(rows[0] - rows[2]).max() > 1e-4


@pytest.mark.parametrize(
    ("part", "setting", "value"),
    [
        ("vision_cfg", "head_width", 32),
        ("vision_cfg", "pool_type", "avg"),
        ("text_cfg", "pool_type", "last"),
        ("text_cfg", "no_causal_mask", True),
        ("text_cfg", "tokenizer_kwargs", {"clean": "canonicalize"}),
    ],
)
def test_cached_embeddings_are_of_this_architecture(
    part: str, setting: str, value: Any, photos: list[np.ndarray], tmp_path: Path
) -> None:
    """Settings that change embeddings, but no weight, are told apart."""
    folder = tmp_path / "clip"
    shutil.copytree(TINY, folder)
    path = folder / "open_clip_config.json"
    clip = OpenCLIP(str(folder), embedding_cache=str(tmp_path / "cache"))
    texts = ["a photo of a bolt, broken!", "Scratched."]
    before = [clip.encode_image(photos), clip.encode_text(texts)]
    config = json.loads(path.read_text())
    settings = config["model_cfg"][part]
    if isinstance(value, dict):
        value = {**settings[setting], **value}
    settings[setting] = value
    path.write_text(json.dumps(config))
    uncached = OpenCLIP(str(folder), embedding_cache=None)
    now = [uncached.encode_image(photos), uncached.encode_text(texts)]
    assert not all(np.allclose(a, b) for a, b in zip(before, now, strict=True))
    np.testing.assert_allclose(clip.encode_image(photos), now[0], atol=1e-6)
    np.testing.assert_allclose(clip.encode_text(texts), now[1], atol=1e-6)


@pytest.mark.parametrize(
    ("name", "value"),
    [("embedding_cache", v) for v in ("", 3, True)] + [("cache_dir", 3)],
)
def test_what_is_no_folder(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{name}={value!r}: expected .*folder or"):
        OpenCLIP("tiny", **{name: value}).encode_text(["a"])


@pytest.fixture
def short_memory() -> Iterator[list[int]]:
    """A device on which "tiny" can take five images or texts, and what it was given.

    There is no GPU whose memory a test could fill, so the model itself complains.
    """
    sizes: list[int] = []

    def refuse(module: Any, arguments: tuple[torch.Tensor, ...]) -> None:
        sizes.append(len(arguments[0]))
        if sizes[-1] > 5:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")

    clear_models()
    loaded = load(OpenCLIP("tiny", precision="fp32", embedding_cache=None))
    assert loaded.embedding_width == 128
    model = loaded.model
    hooks = [
        module.register_forward_pre_hook(refuse)
        for module in (model.visual.conv1, model.token_embedding)
    ]
    yield sizes
    for hook in hooks:
        hook.remove()
    clear_models()


class TestShortMemory:
    clip = OpenCLIP("tiny", precision="fp32", embedding_cache=None)

    def test_images(
        self, photos: list[np.ndarray], short_memory: list[int], caplog: Any
    ) -> None:
        found = self.clip.encode_image(photos)
        assert short_memory == [12, 6, 3, 3, 3, 3]
        assert [r.levelname for r in caplog.records] == ["WARNING"] * 2
        self.clip.encode_image(photos)  # the size that fits is remembered
        assert short_memory[6:] == [3, 3, 3, 3]
        clear_models()
        expected = self.clip.encode_image(photos)
        np.testing.assert_allclose(found, expected, atol=1e-6)

    def test_texts(self, short_memory: list[int]) -> None:
        texts = [f"a photo of a {word} bolt" for word in "abcdefghijkl"]
        found = self.clip.encode_text(texts)
        assert max(short_memory) > 5 >= short_memory[-1]
        clear_models()
        np.testing.assert_allclose(found, self.clip.encode_text(texts), atol=1e-6)

    def test_maps(self, photos: list[np.ndarray], short_memory: list[int]) -> None:
        names = ["bolt", "nut"] * 6
        clip = clone(self.clip).set_params(batch_size=2)
        detector = SDPDetector(clip, prompts="clip-ac").fit()
        expected = detector.anomaly_maps(photos, size="model", class_name=names)
        detector.set_params(clip__batch_size=12)
        found = detector.anomaly_maps(photos, size="model", class_name=names)
        assert max(short_memory) > 5
        np.testing.assert_allclose(found, expected, atol=1e-5)

    @pytest.mark.parametrize("method", ["references", "tiles", "winclip", "sdp-plus"])
    def test_learning_and_scores(
        self, method: str, photos: list[np.ndarray], short_memory: list[int]
    ) -> None:
        clip = clone(self.clip).set_params(batch_size=12)
        detector: Any = {
            "references": ReferenceDetector(clip),
            "tiles": TiledDetector(ReferenceDetector(clip), tiles=(3, 2)),
            "winclip": WinCLIPDetector(clip, references=True),
            "sdp-plus": SDPPlusDetector(clip, n_epochs=1, random_state=0),
        }[method]
        masks = {}
        if method == "sdp-plus":
            masks["masks"] = [np.eye(*p.shape[:2], dtype=bool) for p in photos[:6]]
        found = detector.fit(photos[:6], **masks).score_samples(photos)
        assert max(short_memory) > 5 >= short_memory[-1]
        clear_models()
        expected = clone(detector).fit(photos[:6], **masks).score_samples(photos)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)

    def test_not_even_one(self, photos: list[np.ndarray]) -> None:
        clear_models()
        model = load(self.clip).model
        error = torch.cuda.OutOfMemoryError("CUDA out of memory.")

        def refuse(module: Any, arguments: Any) -> None:
            raise error

        model.visual.conv1.register_forward_pre_hook(refuse)
        with pytest.raises(torch.cuda.OutOfMemoryError):
            self.clip.encode_image(photos)
        clear_models()
