"""`OpenCLIP` on real architectures with random weights, and on the tiny model."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from sklearn.base import clone

import clipad_sklearn
from clipad_sklearn import (
    OpenCLIP,
    SDPDetector,
    WeightsNotFound,
    clear_models,
)
from clipad_sklearn._clip.loaded_model import LoadedModel
from clipad_sklearn._clip.models import load
from clipad_sklearn._clip.settings import check_clip
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

# A proxy that nobody serves stands for a network without a way out.
DEAD_PROXY = "http://127.0.0.1:9"


def _stock(clip: OpenCLIP) -> tuple[Any, Any]:
    """The same model and tokenizer, as open_clip itself uses them."""
    loaded = load(clip)
    return loaded.model, loaded.tokenizer


@pytest.mark.parametrize("name", ["tiny", "ViT-B-32", "RN50", "ViT-B-16-plus-240"])
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


def _count(monkeypatch: pytest.MonkeyPatch, method: str) -> list[int]:
    """Count the rows that go through a method of the loaded model."""
    rows: list[int] = []
    original = getattr(LoadedModel, method)

    def counting(self: LoadedModel, batch: torch.Tensor, *args: Any) -> np.ndarray:
        rows.append(len(batch))
        return original(self, batch, *args)

    monkeypatch.setattr(LoadedModel, method, counting)
    return rows


class TestCache:
    @pytest.mark.parametrize("cache", ["memory", None])
    def test_duplicates_are_encoded_once(
        self, monkeypatch: pytest.MonkeyPatch, cache: str | None
    ) -> None:
        clip = OpenCLIP("tiny", embedding_cache=cache)
        load(clip)
        rows = _count(monkeypatch, "encode_tokens")
        texts = [f"duplicate {i % 7} {cache}" for i in range(50)]
        first = clip.encode_text(texts)
        assert sum(rows) == 7
        np.testing.assert_array_equal(clip.encode_text(texts), first)
        assert sum(rows) == (7 if cache else 14)

    def test_same_picture_in_several_guises(
        self, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator, tmp_path: Path
    ) -> None:
        clip = OpenCLIP("tiny", batch_size=2)
        load(clip)
        picture = rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)
        for name in ("a.png", "b.png"):
            Image.fromarray(picture).save(tmp_path / name)
        rows = _count(monkeypatch, "encode_pixels")
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
        self, photos: list[np.ndarray], checkpoint_folder: Path
    ) -> None:
        rows = [
            OpenCLIP("ViT-B-32", "random").encode_image(photos[:1]),
            OpenCLIP(str(checkpoint_folder / "clip")).encode_image(photos[:1]),
            OpenCLIP("ViT-B-32", "random", resize="crop").encode_image(photos[:1]),
        ]
        assert np.abs(rows[0] - rows[1]).max() > 1e-4
        assert np.abs(rows[0] - rows[2]).max() > 1e-4


class TestLoading:
    def test_nothing_loads_before_it_is_needed(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        loads: list[Any] = []
        monkeypatch.setattr(LoadedModel, "__init__", lambda *a, **k: loads.append(a))
        clip = OpenCLIP("tiny")
        clone(clip).get_params()
        repr(clip)
        clip._repr_html_()
        pickle.loads(pickle.dumps(clip))
        assert loads == []

    def test_loaded_once_by_many_threads(self, monkeypatch: pytest.MonkeyPatch) -> None:
        clear_models()
        loads: list[int] = []
        original = LoadedModel.__init__

        def counting(self: LoadedModel, *args: Any, **params: Any) -> None:
            loads.append(1)
            original(self, *args, **params)

        monkeypatch.setattr(LoadedModel, "__init__", counting)
        expected: list[np.ndarray] = []

        def work() -> None:
            expected.append(OpenCLIP("tiny").encode_text(["thread", "safe " * 5]))

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(loads) == 1
        assert len(expected) == 8
        for rows in expected[1:]:
            np.testing.assert_array_equal(rows, expected[0])

    def test_checkpoint_file_and_folder(self, checkpoint_folder: Path) -> None:
        from_folder = OpenCLIP(str(checkpoint_folder / "clip")).encode_text(TEXTS)
        for name in ("b32.safetensors", "b32.pt"):
            clip = OpenCLIP("ViT-B-32", str(checkpoint_folder / name))
            np.testing.assert_allclose(clip.encode_text(TEXTS), from_folder, atol=1e-6)
        short = check_clip(str(checkpoint_folder / "clip"))
        np.testing.assert_array_equal(short.encode_text(TEXTS), from_folder)

    def test_hub_cache_without_a_network(
        self, checkpoint_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        snapshot = tmp_path / "models--acme--clip" / "snapshots" / ("0" * 40)
        snapshot.parent.mkdir(parents=True)
        snapshot.symlink_to(checkpoint_folder / "clip")
        (tmp_path / "models--acme--clip" / "refs").mkdir()
        (tmp_path / "models--acme--clip" / "refs" / "main").write_text("0" * 40)
        for name in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"):
            monkeypatch.setenv(name, DEAD_PROXY)
        cached = OpenCLIP("hf-hub:acme/clip", cache_dir=str(tmp_path))
        expected = OpenCLIP(str(checkpoint_folder / "clip")).encode_text(TEXTS)
        np.testing.assert_allclose(cached.encode_text(TEXTS), expected, atol=1e-6)

    def test_folder_brings_its_preprocessing(self, checkpoint_folder: Path) -> None:
        loaded = load(OpenCLIP(str(checkpoint_folder / "clip")))
        assert tuple(loaded.preprocess_cfg["mean"]) == (0.5, 0.4, 0.3)
        bare = load(OpenCLIP("ViT-B-32", str(checkpoint_folder / "b32.pt")))
        assert bare.preprocess_cfg["mean"][0] == pytest.approx(0.48145466)

    def test_random_weights_are_reproducible_and_leave_the_seed_alone(self) -> None:
        torch.manual_seed(7)
        expected = torch.rand(1)
        torch.manual_seed(7)
        first = OpenCLIP("ViT-B-32", "random").encode_text(["a"])
        assert torch.equal(torch.rand(1), expected)
        clear_models()
        clip = OpenCLIP("ViT-B-32", "random", embedding_cache=None)
        np.testing.assert_allclose(clip.encode_text(["a"]), first, atol=1e-6)

    def test_tiny_through_every_door(self) -> None:
        model = open_clip.create_model(f"local-dir:{TINY}", require_pretrained=True)
        tokenizer = open_clip.get_tokenizer(
            f"local-dir:{TINY}", bpe_path=os.path.join(TINY, "bpe_merges.txt.gz")
        )
        model.eval()
        with torch.inference_mode():
            stock = model.encode_text(tokenizer(TEXTS), normalize=True).numpy()
        for clip in (OpenCLIP("tiny"), OpenCLIP(TINY), check_clip("tiny")):
            np.testing.assert_allclose(clip.encode_text(TEXTS), stock, atol=1e-5)

    def test_path_wins_over_model_slash_pretrained(
        self,
        monkeypatch: pytest.MonkeyPatch,
        checkpoint_folder: Path,
        tmp_path: Path,
    ) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "ViT-B-32").mkdir()
        (tmp_path / "ViT-B-32" / "openai").symlink_to(checkpoint_folder / "clip")
        with pytest.warns(UserWarning, match=r"Write '\./ViT-B-32/openai'"):
            clip = check_clip("ViT-B-32/openai")
        assert clip.model_name == "ViT-B-32/openai"
        assert clip.encode_text(["a"]).shape == (1, 512)

    def test_precision(self, photos: list[np.ndarray]) -> None:
        exact = OpenCLIP("tiny", device="cpu").encode_image(photos)
        half = OpenCLIP("tiny", device="cpu", precision="bf16").encode_image(photos)
        assert not np.array_equal(exact, half)
        full = OpenCLIP("tiny", device="cpu", precision="fp32").encode_image(photos)
        np.testing.assert_array_equal(full, exact)
        assert (exact * half).sum(axis=1).min() > 0.99


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
    loaded = load(OpenCLIP("tiny", embedding_cache=None))
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
    clip = OpenCLIP("tiny", embedding_cache=None)

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
        detector = SDPDetector(
            OpenCLIP("tiny", embedding_cache=None, batch_size=2)
        ).fit()
        expected = detector.anomaly_maps(photos, size="model", class_name=names)
        detector.set_params(clip__batch_size=12)
        found = detector.anomaly_maps(photos, size="model", class_name=names)
        assert max(short_memory) > 5
        np.testing.assert_allclose(found, expected, atol=1e-5)

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


class TestErrors:
    @pytest.mark.parametrize(
        ("clip", "kind", "message"),
        [
            (OpenCLIP("ViT-B-23"), ValueError, "Did you mean 'ViT-B-32'"),
            (OpenCLIP("acme", "clip"), ValueError, "write 'hf-hub:acme/clip'"),
            (OpenCLIP("a", "b/c.pt"), ValueError, "in 'a/b/c.pt': neither a path"),
            (OpenCLIP("ViT-B-32", "no/a.pt"), WeightsNotFound, "'ViT-B-32/no/a.pt'"),
            (OpenCLIP("ViT-B-32", "opnai"), ValueError, "open_clip knows openai"),
            (OpenCLIP("ViT-B-32", None), ValueError, "needs `pretrained`"),
            (OpenCLIP("ViT-B-32", "openai"), ValueError, "'ViT-B-32-quickgelu'"),
            (OpenCLIP("ViT-B-32", "no/such.pt"), WeightsNotFound, "no such checkpoint"),
            (OpenCLIP("tiny", batch_size=0), ValueError, "batch_size=0"),
            (OpenCLIP("tiny", num_workers=0), ValueError, "num_workers=0"),
            (OpenCLIP("tiny", resize="stretch"), ValueError, "resize='stretch'"),
            (OpenCLIP("tiny", precision="int8"), ValueError, "precision='int8'"),
            (OpenCLIP("tiny", device="cuda:99"), ValueError, "cannot be used here"),
        ],
    )
    def test_settings(
        self, clip: OpenCLIP, kind: type[Exception], message: str
    ) -> None:
        with pytest.raises(kind, match=message):
            clip.encode_text(["a"])

    @pytest.mark.parametrize(
        ("clip", "kind", "message"),
        [
            ("nothing", ValueError, "not of the form 'model/pretrained'"),
            ("/no/such/folder", ValueError, "'/no/such/folder': no such file"),
            ("~/clips/vit", ValueError, "'~/clips/vit': no such file"),
            ("./clips", ValueError, "'./clips': no such file"),
            ("ViT-B-32", ValueError, "'ViT-B-32/TAG'"),
            (3, TypeError, "expected an OpenCLIP"),
        ],
    )
    def test_short_string(self, clip: Any, kind: type[Exception], message: str) -> None:
        with pytest.raises(kind, match=message):
            check_clip(clip)

    @pytest.mark.parametrize(
        ("texts", "kind", "message"),
        [
            ("one string", TypeError, "Wrap it in a list"),
            ([], ValueError, "0 texts"),
            (["a", 3], TypeError, "got int"),
        ],
    )
    def test_texts(self, texts: Any, kind: type[Exception], message: str) -> None:
        with pytest.raises(kind, match=message):
            OpenCLIP("tiny").encode_text(texts)

    @pytest.mark.parametrize("name", ["truncated.safetensors", "truncated.pt"])
    def test_truncated_checkpoint(self, name: str, checkpoint_folder: Path) -> None:
        with pytest.raises(
            ValueError,
            match="truncated, damaged, not a checkpoint, or one of another model",
        ):
            load(OpenCLIP("ViT-B-32", str(checkpoint_folder / name)))

    def test_checkpoint_of_another_model(self, checkpoint_folder: Path) -> None:
        clip = OpenCLIP("ViT-B-16", str(checkpoint_folder / "b32.safetensors"))
        with pytest.raises(ValueError, match="does not fit the model 'ViT-B-16'"):
            load(clip)

    def test_vocabulary_that_does_not_fit(self, tmp_path: Path) -> None:
        """tiny without its merges file gets open_clip's vocabulary of 49,408."""
        import json

        config = json.loads(Path(TINY, "open_clip_config.json").read_text())
        config["model_cfg"]["text_cfg"].pop("tokenizer_kwargs")
        (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
        weights = Path(TINY, "open_clip_model.safetensors").read_bytes()
        (tmp_path / "open_clip_model.safetensors").write_bytes(weights)
        with pytest.raises(ValueError, match="do not belong together"):
            load(OpenCLIP(str(tmp_path)))

    def test_folders_that_are_no_clip(self, tmp_path: Path) -> None:
        with pytest.raises(WeightsNotFound, match=r"no open_clip_config\.json there"):
            load(OpenCLIP(str(tmp_path)))
        (tmp_path / "open_clip_config.json").write_text("{")
        with pytest.raises(ValueError, match="not a valid open_clip config"):
            load(OpenCLIP(str(tmp_path)))
        config = Path(TINY, "open_clip_config.json").read_text()
        (tmp_path / "open_clip_config.json").write_text(config)
        with pytest.raises(WeightsNotFound, match=r"clip=\"tiny\""):
            load(OpenCLIP(str(tmp_path)))


@pytest.mark.parametrize(
    "clip", ["OpenCLIP()", "OpenCLIP('hf-hub:no-such-organisation/no-such-clip')"]
)
def test_hub_out_of_reach(clip: str, tmp_path: Path) -> None:
    """No route to the hub, nothing cached: an early, helpful error."""
    code = (
        f"from clipad_sklearn import OpenCLIP, WeightsNotFound\n"
        f"try:\n    {clip}.encode_text(['a'])\n"
        f"except WeightsNotFound as error:\n    print(error)"
    )
    environment = {
        **os.environ,
        "HF_HOME": str(tmp_path),
        "HTTPS_PROXY": DEAD_PROXY,
        "https_proxy": DEAD_PROXY,
        "HTTP_PROXY": DEAD_PROXY,
        "http_proxy": DEAD_PROXY,
    }
    start = time.monotonic()
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env=environment,
        cwd=Path(clipad_sklearn.__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "were not found" in result.stdout, result.stderr
    for remedy in ("clipad models --download", "local path", 'clip="tiny"'):
        assert remedy in result.stdout
    assert time.monotonic() - start < 60, "30 s, and the start of Python and torch"


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


def test_equal_settings_share_one_model() -> None:
    model = load(OpenCLIP("tiny"))
    assert load(OpenCLIP("tiny", precision="fp32")) is model or (model.device != "cpu")
    assert load(OpenCLIP("tiny", device=model.device)) is model


def test_a_folder_named_tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").mkdir()
    assert OpenCLIP("tiny").encode_text(["a"]).shape == (1, 128)
    with pytest.raises(WeightsNotFound):
        OpenCLIP("./tiny").encode_text(["a"])


def test_no_error_is_logged_twice() -> None:
    """open_clip logs what it raises, and gives the root logger a handler."""
    code = (
        "import logging\n"
        "from clipad_sklearn import OpenCLIP, WeightsNotFound\n"
        "try:\n    OpenCLIP('ViT-B-32', 'missing.pt').encode_text(['a'])\n"
        "except WeightsNotFound as error:\n    print(error)\n"
        "OpenCLIP('ViT-B-32', 'random').encode_text(['a'])\n"
        "print(logging.getLogger().handlers, logging.getLogger().filters)"
    )
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=Path(clipad_sklearn.__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert result.stderr == ""
    assert "clipad models --download MODEL/TAG" in result.stdout
    assert result.stdout.endswith("[] []\n")
