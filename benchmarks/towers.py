"""Which CLIPs of open_clip work for which method, and whether they encode alike.

    python benchmarks/towers.py --table [FILTER]
    python benchmarks/towers.py --compare NAME [NAME ...]

``--table`` builds every architecture of open_clip without weights (on torch's "meta"
device) and prints what its towers allow; those whose text tower is described on the hub
only are named at the end. ``--compare`` gives models random weights and prints the
largest difference between our embeddings and open_clip's own; texts are left out where
their tokenizer is not on this machine.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
from types import SimpleNamespace
from typing import Any

import numpy as np
import open_clip
import torch
from PIL import Image

from clipad_sklearn import OpenCLIP, clear_models
from clipad_sklearn._clip.models import load
from clipad_sklearn._clip.vision_tower import VisionTower

TEXTS = ["a photo of a flawless bolt", "scratched", "", "a photo of a very old screw"]


def allowed(model: Any) -> tuple[str, str, str]:
    """Say whether references, windows and the dual path work."""
    answers = {"windows": "yes", "dual path": "yes"}
    try:
        tower = VisionTower(SimpleNamespace(model=model))  # type: ignore[arg-type]
    except ValueError:
        answers = {"windows": "no", "dual path": "no"}
    else:
        try:
            tower.check_dual_path()
        except ValueError:
            answers["dual path"] = "no"
    references = "yes" if hasattr(model.visual, "forward_intermediates") else "no"
    return references, answers["windows"], answers["dual path"]


def table(text: str) -> None:
    """Print a row for each architecture, equal answers together."""
    groups: dict[tuple[str, ...], list[str]] = {}
    failed = []
    for name in open_clip.list_models():
        if text.lower() not in name.lower():
            continue
        config = open_clip.get_model_config(name)
        needs = bool(config["text_cfg"].get("hf_tokenizer_name"))
        if config["text_cfg"].get("hf_model_name"):
            failed.append(name)
            continue
        try:
            with torch.device("meta"):
                model = open_clip.create_model(name, load_weights=False, device="meta")
        except Exception as error:
            failed.append(f"{name} ({str(error).splitlines()[0]})")
            continue
        tower = type(getattr(model.visual, "trunk", model.visual)).__name__
        answers = (tower, *allowed(model), "yes" if needs else "no")
        groups.setdefault(answers, []).append(name)
    print(
        "vision tower | references | windows | dual path | needs transformers | models"
    )
    for answers, names in groups.items():
        print(" | ".join([*answers, f"{len(names)}: {', '.join(names)}"]))
    print("not built:", ", ".join(failed) or "none")


def compare(name: str) -> None:
    """Print the largest differences to open_clip's own way, same weights."""
    clip = OpenCLIP(name, "random", embedding_cache=None, device="cpu", resize="crop")
    model = load(clip)
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (60, 80, 3), dtype=np.uint8) for _ in range(2)]
    transform = open_clip.image_transform(
        model.input_size, is_train=False,
        mean=model.preprocess_cfg["mean"], std=model.preprocess_cfg["std"],
    )  # fmt: skip
    pixels = torch.stack([transform(Image.fromarray(image)) for image in images])
    with torch.inference_mode():
        expected = model.model.encode_image(pixels, normalize=True).numpy()
    difference = float(np.abs(clip.encode_image(images) - expected).max())
    said = f"{name}: images {difference:.1e}"
    with contextlib.suppress(OSError, ImportError):
        tokens = model.tokenizer(TEXTS)
        with torch.inference_mode():
            expected = model.model.encode_text(tokens, normalize=True).numpy()
        difference = float(np.abs(clip.encode_text(TEXTS) - expected).max())
        said += f", texts {difference:.1e}"
    print(said, flush=True)
    clear_models()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", nargs="?", const="", metavar="FILTER")
    parser.add_argument("--compare", nargs="+", default=[], metavar="NAME")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    if arguments.table is not None:
        table(arguments.table)
    for model_name in arguments.compare:
        compare(model_name)
