"""Small CLIPs of any architecture, as folders."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from clipad_sklearn._clip.source import TINY


@pytest.fixture(scope="session")
def clip_folder(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., Path]:
    """Write a folder with random float32 weights and the vocabulary of "tiny".

    Settings replace those of "tiny"; a dict replaces the settings of a tower.
    """

    def write(**settings: Any) -> Path:
        folder = tmp_path_factory.mktemp("clip")
        shutil.copy(Path(TINY, "bpe_merges.txt.gz"), folder)
        config = json.loads(Path(TINY, "open_clip_config.json").read_text())
        config["model_cfg"] |= settings
        (folder / "open_clip_config.json").write_text(json.dumps(config))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(2)
            model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
        state = {k: v.contiguous() for k, v in model.state_dict().items()}
        save_file(state, folder / "open_clip_model.safetensors")
        return folder

    return write
