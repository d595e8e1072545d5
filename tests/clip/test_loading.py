"""Where weights come from: folders, files, the hub's cache, no network."""

from __future__ import annotations

import logging
import os
import pickle
import shutil
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from processes import Forked
from sklearn.base import clone

import clipad_sklearn
from clipad_sklearn import (
    OpenCLIP,
    WeightsNotFound,
    clear_models,
)
from clipad_sklearn._clip.loaded_model import LoadedModel
from clipad_sklearn._clip.models import load
from clipad_sklearn._clip.settings import check_clip
from clipad_sklearn._clip.source import TINY

TEXTS = ["a photo of a flawless bottle.", "scratched metal", ""]


# A proxy that nobody serves stands for a network without a way out.
DEAD_PROXY = "http://127.0.0.1:9"


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
        for name in ("small.safetensors", "small.pt"):
            clip = OpenCLIP("ViT-S-32-alt", str(checkpoint_folder / name))
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
        bare = load(OpenCLIP("ViT-S-32-alt", str(checkpoint_folder / "small.pt")))
        assert bare.preprocess_cfg["mean"][0] == pytest.approx(0.48145466)

    def test_random_weights_are_reproducible_and_leave_the_seed_alone(self) -> None:
        torch.manual_seed(7)
        expected = torch.rand(1)
        torch.manual_seed(7)
        first = OpenCLIP("ViT-S-32-alt", "random").encode_text(["a"])
        assert torch.equal(torch.rand(1), expected)
        clear_models()
        clip = OpenCLIP("ViT-S-32-alt", "random", embedding_cache=None)
        np.testing.assert_allclose(clip.encode_text(["a"]), first, atol=1e-6)

    @pytest.mark.usefixtures("on_processor")
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
        assert clip.encode_text(["a"]).shape == (1, 256)

    def test_precision(self, photos: list[np.ndarray]) -> None:
        exact = OpenCLIP("tiny", device="cpu").encode_image(photos)
        half = OpenCLIP("tiny", device="cpu", precision="bf16").encode_image(photos)
        assert not np.array_equal(exact, half)
        full = OpenCLIP("tiny", device="cpu", precision="fp32").encode_image(photos)
        np.testing.assert_array_equal(full, exact)
        assert (exact * half).sum(axis=1).min() > 0.99


def test_hub_out_of_reach(tmp_path: Path) -> None:
    """No route to the hub, nothing cached: an early, helpful error."""
    code = (
        "from clipad_sklearn import OpenCLIP, WeightsNotFound\n"
        "for name in [], ['hf-hub:no-such-organisation/no-such-clip']:\n"
        "    try:\n        OpenCLIP(*name).encode_text(['a'])\n"
        "    except WeightsNotFound as error:\n        print(error)"
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
    assert result.stdout.count("were not found") == 2, result.stderr
    for remedy in ("clipad models --download", "local path", 'clip="tiny"'):
        assert result.stdout.count(remedy) >= 2
    assert time.monotonic() - start < 60, "30 s, and the start of Python and torch"


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


class TestOwnWeights:
    """A folder, the hub and "tiny" bring their weights; others are not ignored."""

    @pytest.mark.parametrize("weights", ["mine.safetensors", "openai", "gone"])
    @pytest.mark.parametrize("name", ["tiny", "clip", "hf-hub:acme/clip"])
    def test_others_are_an_error(
        self, name: str, weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        shutil.copytree(TINY, "clip")
        shutil.copy(Path(TINY, "open_clip_model.safetensors"), "mine.safetensors")
        message = f"^pretrained='{weights}' in '{name}/{weights}': expected None or"
        with pytest.raises(ValueError, match=message):
            OpenCLIP(name, weights).encode_text(["a"])
        if not name.startswith("hf-hub:"):
            with pytest.raises(ValueError, match=message):
                check_clip(f"{name}/{weights}").encode_text(["a"])

    @pytest.mark.parametrize("name", ["tiny", TINY])
    def test_the_default_and_none_stand_for_them(self, name: str) -> None:
        for clip in (OpenCLIP(name), OpenCLIP(name, None)):
            assert load(clip) is load(OpenCLIP("tiny"))

    def test_random(self, photos: list[np.ndarray]) -> None:
        trained = OpenCLIP("tiny").encode_image(photos[:2])
        for clip in (check_clip("tiny/random"), OpenCLIP(TINY, "random")):
            found = clip.encode_image(photos[:2])
            assert found.shape == trained.shape
            assert np.abs(found - trained).max() > 0.01
        same = OpenCLIP("tiny", "random", embedding_cache=None)
        np.testing.assert_allclose(same.encode_image(photos[:2]), found, atol=1e-6)


@pytest.mark.usefixtures("on_processor")
def test_no_error_is_logged_twice() -> None:
    """open_clip logs what it raises, and gives the root logger a handler."""

    def load_both() -> int:
        root = logging.getLogger()
        root.handlers.clear()  # those of pytest
        warnings.simplefilter("ignore")
        try:
            OpenCLIP("ViT-B-32", "missing.pt").encode_text(["a"])
        except WeightsNotFound as error:
            print(error)
        OpenCLIP("ViT-S-32-alt", "random").encode_text(["a"])
        print(root.handlers, root.filters)
        return 0

    process = Forked(load_both)
    assert process.wait() == 0, process.printed
    out, err = process.printed
    assert err == ""
    assert "clipad models --download MODEL/TAG" in out
    assert out.endswith("[] []\n")
