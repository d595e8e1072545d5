"""Encoding image files that nothing has cached, against what the processors allow.

With decoding and the model at work side by side and no time lost, `cores` processors
make ``cores / (cores * t_model + t_decode)`` images per second, where t_model is the
time of the model alone on all cores and t_decode that of reading, decoding and resizing
on one. The plain way decodes a batch, then encodes it, and so on. All of them are
measured by turns in one run; the files are JPEG of 2000 x 1500 pixels.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from clipad_sklearn import OpenCLIP
from clipad_sklearn._clip.models import load
from clipad_sklearn._clip.settings import check_clip
from clipad_sklearn._images import open_image


def write_photos(folder: Path, count: int) -> list[str]:
    """Write different photographs with grain, about 700 kB each."""
    rng = np.random.default_rng(0)
    grain = rng.normal(0, 6, (1500, 2000, 1))
    paths = []
    for i in range(count):
        base = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(base).resize((2000, 1500)), float)
        pixels = np.clip(smooth + np.roll(grain, 37 * i, 1), 0, 255).astype(np.uint8)
        paths.append(str(folder / f"{i:04d}.jpg"))
        Image.fromarray(pixels).save(paths[-1], quality=90)
    return paths


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clip", nargs="*", default=["ViT-B-32/random"])
    parser.add_argument("--files", type=int, default=300)
    parser.add_argument("--runs", type=int, default=2)
    arguments = parser.parse_args()

    cores = len(os.sched_getaffinity(0))
    print(f"{cores} cores, {torch.get_num_threads()} torch threads")
    with tempfile.TemporaryDirectory() as folder:
        paths = write_photos(Path(folder), arguments.files)
        for name in arguments.clip:
            measure(check_clip(name), name, paths, arguments.runs, cores)


def measure(clip: OpenCLIP, name: str, paths: list[str], runs: int, cores: int) -> None:
    clip.set_params(device="cpu", embedding_cache=None)
    model = load(clip)
    transform = model.transform(clip.resize)
    size = clip.batch_size

    def decode(some: list[str]) -> torch.Tensor:
        return torch.stack([transform(open_image(path)) for path in some])

    def plain() -> np.ndarray:
        batches = [paths[i : i + size] for i in range(0, len(paths), size)]
        return np.concatenate([model.encode_pixels(decode(b)) for b in batches])

    sample = decode(paths[:size])
    model.encode_pixels(sample)
    times = []
    for _ in range(runs):
        few = paths[: 2 * size]
        model_time = timed(lambda: [model.encode_pixels(sample) for _ in range(3)])[0]
        decode_time = timed(lambda few=few: decode(few))[0] / len(few)
        slow, base = timed(plain)
        fast, mine = timed(lambda: clip.encode_image(paths))
        times.append([model_time / (3 * size), decode_time, slow, fast])
    t_model, t_decode, slow, fast = np.median(times, axis=0)
    bound = cores / (cores * t_model + t_decode)
    speed = len(paths) / fast
    print(f"{name}: model {1e3 * t_model:.1f} ms, decoding {1e3 * t_decode:.1f} ms")
    print(f"  bound {bound:.1f}, ours {speed:.1f} images/s: {speed / bound:.2f} of it")
    print(f"  plain {len(paths) / slow:.1f} images/s: ours {slow / fast:.2f} times it")
    print(f"  difference {np.abs(base - mine).max():.1e} at most", flush=True)


if __name__ == "__main__":
    main()
