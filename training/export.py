"""Write a run's averaged weights into the package: ``python -m training.export``."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from .settings import IMAGE_MEAN, IMAGE_STD, PACKAGE, RUNS

CONFIG = "open_clip_config.json"
WEIGHTS = "open_clip_model.safetensors"
VOCABULARY = "bpe_merges.txt.gz"


def open_clip_config(model: dict[str, Any]) -> dict[str, Any]:
    """What open_clip reads from a `local-dir:` folder.

    The vocabulary is named by its file name. `OpenCLIP` looks for it in the folder.
    open_clip itself would look in the working directory and fail: there, pass the
    whole path as `bpe_path` to `open_clip.get_tokenizer`.
    """
    text = {**model["text_cfg"], "tokenizer_kwargs": {"bpe_path": VOCABULARY}}
    return {
        "model_cfg": {**model, "text_cfg": text},
        "preprocess_cfg": {
            "size": model["vision_cfg"]["image_size"],
            "mode": "RGB",
            "mean": list(IMAGE_MEAN),
            "std": list(IMAGE_STD),
            "interpolation": "bicubic",
            "resize_mode": "squash",
        },
    }


def export(run: Path, target: Path) -> None:
    """Averaged weights in half precision, the configuration and the vocabulary."""
    state = torch.load(run / "checkpoint.pt", map_location="cpu", weights_only=True)
    target.mkdir(parents=True, exist_ok=True)
    weights = {
        name: value.half().contiguous()
        for name, value in state["average"].items()
        if name != "attn_mask"
    }
    save_file(weights, target / WEIGHTS, metadata={"format": "pt"})
    config = json.dumps(open_clip_config(state["config"]), indent=2)
    (target / CONFIG).write_text(config + "\n")
    shutil.copyfile(run / VOCABULARY, target / VOCABULARY)
    for name in (WEIGHTS, CONFIG, VOCABULARY):
        (target / name).chmod(0o644)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", default="main", help="name of the run")
    parser.add_argument("--target", type=Path, default=PACKAGE)
    options = parser.parse_args(argv)
    export(RUNS / options.run, options.target)
    sizes = {p.name: p.stat().st_size for p in sorted(options.target.iterdir())}
    print(json.dumps({"files": sizes, "bytes": sum(sizes.values())}))


if __name__ == "__main__":
    main()
