"""``clipad models``: which CLIPs there are, and how fast one is here."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from .._clip.models import LEAST_COSINE, clear_models, load
from .._clip.settings import OpenCLIP, check_clip
from .arguments import ModelsSettings
from .output import UsageError, as_usage_error, given_settings

_SECONDS = 3.0  # of measuring, for each precision


def run(settings: ModelsSettings) -> int:
    """Run ``clipad models``."""
    if settings.download:
        _download(_clip(settings.download, settings), settings.download)
    elif settings.time:
        _time(_clip(settings.time, settings))
    else:
        _list(settings.filter)
    return 0


def _clip(name: str, settings: ModelsSettings) -> OpenCLIP:
    with as_usage_error():
        return check_clip(name).set_params(**given_settings(settings))


def _list(text: str) -> None:
    import open_clip

    lines = ["tiny  (ships with this package; for trying things out)"]
    for model, tag in open_clip.list_pretrained():
        weights: dict[str, Any] = open_clip.get_pretrained_cfg(model, tag)
        config: dict[str, Any] = open_clip.get_model_config(model) or {}
        if bool(weights.get("quick_gelu")) != bool(config.get("quick_gelu")):
            continue  # would give wrong embeddings, so OpenCLIP refuses it
        lines.append(f"{model}/{tag}" + ("  (here)" if _is_here(weights) else ""))
    found = [line for line in lines if text.lower() in line.lower()]
    if not found:
        raise UsageError(f"no model with {text!r} in its name")
    print("\n".join(found))


def _is_here(weights: dict[str, Any]) -> bool:
    """Whether the default cache folder has these weights."""
    from huggingface_hub.constants import HF_HUB_CACHE

    repository = weights.get("hf_hub", "").rstrip("/")
    if repository:
        folder = Path(HF_HUB_CACHE, "models--" + repository.replace("/", "--"))
        return any(folder.glob("snapshots/*/*.safetensors")) or any(
            folder.glob("snapshots/*/*.bin")
        )
    name = os.path.basename(weights.get("url", ""))
    return bool(name) and Path("~/.cache/clip", name).expanduser().is_file()


def _download(clip: OpenCLIP, name: str) -> None:
    with as_usage_error():
        width = clip.encode_text(["a photo"]).shape[1]
    print(f"{name} is here: {width} features per image")


def _time(clip: OpenCLIP) -> None:
    import torch

    with as_usage_error():
        device = load(clip).device
        precisions = ["fp32", "bf16"] + ["fp16"] * device.startswith("cuda")
        size = load(clip).preprocess_cfg["size"]
    height, width = (size, size) if isinstance(size, int) else size
    noise = torch.Generator().manual_seed(0)
    pixels = torch.randn((clip.batch_size, 3, height, width), generator=noise)
    print(f"{clip.batch_size} images at once on {device}:")
    exact = None
    best = ("fp32", np.inf)
    for precision in precisions:
        clear_models()  # so that memory holds one at a time
        model = load(OpenCLIP(**clip.get_params() | {"precision": precision}))
        embeddings = model.encode_pixels(pixels)  # the first call is slower
        exact = embeddings if exact is None else exact
        cosine = float((exact * embeddings).sum(axis=1).min())
        times: list[float] = []
        while sum(times) < _SECONDS or len(times) < 3:
            start = time.perf_counter()
            model.encode_pixels(pixels)
            times.append(time.perf_counter() - start)
        duration = float(np.median(times)) / clip.batch_size * 1000
        print(f"  {precision}: {duration:.2f} ms per image, cosine {cosine:.6f}")
        if cosine >= LEAST_COSINE and duration < best[1]:
            best = (precision, duration)
    print(
        f"Recommended: OpenCLIP(..., precision={best[0]!r}), or --precision {best[0]} "
        f"of `clipad score`, the fastest whose cosine to fp32 is at least "
        f"{LEAST_COSINE}."
    )
