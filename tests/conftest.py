"""Fixtures and helpers of all tests."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

# Real labelled photos, which lie on a developer's machine: see CONTRIBUTING.md.
REAL_PHOTOS = Path(
    os.environ.get("CLIPAD_SHARED_DATA")
    or Path(__file__).parents[2] / "shared" / "data"
)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real labelled photos, in folders laid out like MVTec AD."""
    if not REAL_PHOTOS.is_dir():
        pytest.skip(f"no real photos in {REAL_PHOTOS}: set CLIPAD_SHARED_DATA")
    return REAL_PHOTOS


@pytest.fixture(autouse=True, scope="session")
def _cache_folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Commands keep embeddings in a folder of this run, not in the user's."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # one for all processes of the run
        folder = folder.parent
    os.environ["CLIPAD_CACHE"] = str(folder / "cache")


@pytest.fixture(scope="module")
def on_processor() -> Iterator[None]:
    """What follows in this module ignores a GPU, and so do processes that it starts.

    For numbers that hold in float32 only, and for children that are forked.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch.cuda.is_available", lambda: False)
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        yield


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def photos(rng: np.random.Generator) -> list[np.ndarray]:
    """Twelve small colour images of different sizes."""
    return [
        rng.integers(0, 256, (20 + i, 30 - i, 3), dtype=np.uint8) for i in range(12)
    ]


@pytest.fixture
def photo_files(photos: list[np.ndarray], tmp_path: Path) -> list[str]:
    """The same images as PNG files."""
    folder = tmp_path / "photos"
    folder.mkdir()
    paths = [str(folder / f"{i:02d}.png") for i in range(len(photos))]
    for path, pixels in zip(paths, photos, strict=True):
        Image.fromarray(pixels).save(path)
    return paths


@pytest.fixture(scope="session")
def checkpoint_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ViT-S-32-alt with random weights: bare checkpoints, and a CLIP folder."""
    import json

    import open_clip
    import torch
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("checkpoints")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = open_clip.create_model("ViT-S-32-alt")
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    (folder / "clip").mkdir()
    save_file(state, folder / "clip" / "open_clip_model.safetensors")
    config = {
        "model_cfg": open_clip.get_model_config("ViT-S-32-alt"),
        "preprocess_cfg": {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.2]},
    }
    (folder / "clip" / "open_clip_config.json").write_text(json.dumps(config))
    os.link(
        folder / "clip" / "open_clip_model.safetensors", folder / "small.safetensors"
    )
    whole = (folder / "small.safetensors").read_bytes()
    (folder / "truncated.safetensors").write_bytes(whole[: len(whole) // 2])
    torch.save(state, folder / "small.pt")
    whole = (folder / "small.pt").read_bytes()
    (folder / "truncated.pt").write_bytes(whole[: len(whole) // 2])
    return folder


@pytest.fixture
def count_rows(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[int]]:
    """Count the rows that go through a method of the loaded model."""
    from clipad_sklearn._clip.loaded_model import LoadedModel

    def count(method: str) -> list[int]:
        rows: list[int] = []
        original = getattr(LoadedModel, method)

        def counting(self: LoadedModel, batch: Any, *args: Any) -> np.ndarray:
            rows.append(len(batch))
            return original(self, batch, *args)

        monkeypatch.setattr(LoadedModel, method, counting)
        return rows

    return count
