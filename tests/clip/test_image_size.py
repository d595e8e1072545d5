"""`image_size` against open_clip's own `force_image_size`, and in the caches."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from clipad_sklearn import (
    CLIPImageEncoder,
    OpenCLIP,
    PromptDetector,
    SDPDetector,
    WinCLIPDetector,
    clear_models,
)
from clipad_sklearn._clip.loaded_model import LoadedModel
from clipad_sklearn._clip.models import load

pytestmark = pytest.mark.usefixtures("on_processor")

STOCK = {"image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16}
TOWERS: dict[str, dict[str, Any]] = {
    "stock": STOCK,
    "attention pooling": STOCK | {"attentional_pool": True, "attn_pooler_queries": 4,
                                  "attn_pooler_heads": 2},
    "timm transformer": {
        "image_size": 224,
        "timm_model_name": "vit_tiny_patch16_224",
        "timm_pool": "token",
    },
    "timm convolutions": {
        "image_size": 64,
        "timm_model_name": "convnext_atto",
        "timm_proj": "linear",
    },
}  # fmt: skip
SIZES: list[Any] = [64, (96, 32), (32, 128)]


@pytest.mark.parametrize("tower", TOWERS)
def test_as_open_clip(
    tower: str, clip_folder: Callable[..., Path], photos: list[np.ndarray]
) -> None:
    folder = clip_folder(vision_cfg=TOWERS[tower])
    for size in SIZES:
        model = open_clip.create_model(f"local-dir:{folder}", force_image_size=size)
        height, width = (size, size) if isinstance(size, int) else size
        transform = open_clip.image_transform(
            (height, width), is_train=False, resize_mode="squash",
            mean=model.visual.preprocess_cfg["mean"],
            std=model.visual.preprocess_cfg["std"],
        )  # fmt: skip
        pixels = torch.stack([transform(Image.fromarray(p)) for p in photos[:2]])
        with torch.inference_mode():
            expected = model.eval().encode_image(pixels, normalize=True).numpy()
        clip = OpenCLIP(str(folder), image_size=size)
        found = clip.encode_image(photos[:2])
        np.testing.assert_allclose(found, expected, atol=1e-5)
        assert load(clip).input_size == (height, width)


def test_as_many_patches_in_another_shape(clip_folder: Callable[..., Path]) -> None:
    """Positions are interpolated then too: 16 patches in one row are no square."""
    folder = clip_folder(vision_cfg=STOCK)
    native = load(OpenCLIP(str(folder))).model.visual.positional_embedding
    visual = load(OpenCLIP(str(folder), image_size=(8, 128))).model.visual
    assert visual.positional_embedding.shape == native.shape
    assert (visual.positional_embedding - native).abs().max() > 1e-3
    # Along one row of the grid, positions of the same row would differ least.
    assert visual.grid_size == (1, 16)


class TestCaches:
    def test_sizes_are_never_mixed(
        self, photos: list[np.ndarray], tmp_path: Path
    ) -> None:
        cache = str(tmp_path / "cache")
        sizes: list[Any] = [None, 224, (112, 224), (224, 112)]
        for embedding_cache in ("memory", cache):
            for _ in range(2):
                for size in sizes:
                    found = OpenCLIP(
                        "tiny", image_size=size, embedding_cache=embedding_cache
                    ).encode_image(photos[:2])
                    plain = OpenCLIP("tiny", image_size=size, embedding_cache=None)
                    np.testing.assert_allclose(
                        found, plain.encode_image(photos[:2]), atol=1e-6
                    )

    def test_words_are_encoded_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        texts = [f"words of a search over sizes {i}" for i in range(5)]
        first = OpenCLIP("tiny").encode_text(texts)
        rows: list[int] = []
        original = LoadedModel.encode_tokens

        def counting(self: LoadedModel, tokens: Any, *more: Any) -> np.ndarray:
            rows.append(len(tokens))
            return original(self, tokens, *more)

        for size in (112, 224, (168, 56)):
            clip = OpenCLIP("tiny", image_size=size)
            load(clip)
            monkeypatch.setattr(LoadedModel, "encode_tokens", counting)
            np.testing.assert_array_equal(clip.encode_text(texts), first)
            monkeypatch.undo()
        assert rows == []

    def test_the_native_size_is_none(self, photos: list[np.ndarray]) -> None:
        for first, second in ((None, 112), (112, None), ((112, 112), 112)):
            clear_models()
            model = load(OpenCLIP("tiny", image_size=first))
            assert load(OpenCLIP("tiny", image_size=second)) is model
        other = load(OpenCLIP("tiny", image_size=224))
        assert other is not model
        assert other.identity == model.identity


@pytest.mark.parametrize("size", [168, (112, 168), (168, 56)])
def test_every_detector(size: Any, photos: list[np.ndarray]) -> None:
    clip = OpenCLIP("tiny", image_size=size)
    height, width = (size, size) if isinstance(size, int) else size
    for detector in (WinCLIPDetector(clip), SDPDetector(clip)):
        maps = detector.fit(None).anomaly_maps(photos[:2], size="model")
        assert maps.shape == (2, height, width)
        assert np.isfinite(maps).all()
        (of_image,) = detector.anomaly_maps(photos[:1])
        assert of_image.shape == photos[0].shape[:2]
    embeddings = CLIPImageEncoder(clip).transform(photos[:2])
    assert np.isfinite(PromptDetector(clip).fit(None).score_samples(embeddings)).all()


@pytest.mark.parametrize(
    ("tower", "size", "message"),
    [
        (STOCK, (36, 32), r"multiples of the patches of 8 x 8 .* \(32, 32\) or \(40,"),
        (TOWERS["timm transformer"], 100, "multiples of the patches of 16 x 16"),
        (
            {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16},
            128,
            r"\(ModifiedResNet\) cannot take images of that size",
        ),
        (STOCK, (8, 10**20 + 1), rf"\(8, {10**20}\) or \(8, {10**20 + 8}\)"),
        (STOCK, (8 * 10**6, 8 * 10**7), r"\(it needs more memory than there is\)"),
        (STOCK, (8, 8 * 10**25), r"\(VisionTransformer\) cannot take images of that"),
        (
            TOWERS["timm convolutions"],
            32 * 10**6,
            r"\(it needs more memory than there is\)",
        ),
        (STOCK, 0, "image_size=0: expected"),
        (STOCK, (32, 32, 32), "expected pixels of one side"),
        (STOCK, 32.0, "expected pixels of one side"),
    ],
)
def test_sizes_that_do_not_work(
    tower: dict[str, Any],
    size: Any,
    message: str,
    clip_folder: Callable[..., Path],
    photos: list[np.ndarray],
) -> None:
    clip = OpenCLIP(str(clip_folder(vision_cfg=tower)), image_size=size)
    with pytest.raises(ValueError, match=message):
        clip.encode_image(photos[:1])


def test_settings_saved_before_there_was_a_size() -> None:
    clip = OpenCLIP("tiny")
    state = pickle.dumps(clip).replace(b"image_size", b"image_sizf")
    old = pickle.loads(state)
    assert old.image_size is None
