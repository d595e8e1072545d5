"""Images per second, memory and agreement with the processor on a GPU.

Each CLIP has random weights, which cost what trained ones do::

    python benchmarks/gpu.py
    python benchmarks/gpu.py ViT-B-32 ViT-L-14:518 --files 256

The number after a colon is ``image_size``. "Model alone" encodes pixels that are on the
GPU already, in the batches and the precision of everything else: what the rest is
compared with. Files are JPEG of 2000 x 1500 pixels; all other photos are arrays of
the model's size. Differences are those between margins, or pixels of maps, of the GPU
and of the processor in float32, in shares of the spread of the latter. ``--short``
allows the GPU that many GiB and gives it one batch that needs more.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from image_encoding import write_photos
from sklearn.base import clone
from sklearn.pipeline import make_pipeline

from clipad_sklearn import (
    CLIPImageEncoder,
    OpenCLIP,
    PromptDetector,
    RandomWordDetector,
    ReferenceDetector,
    SDPDetector,
    WinCLIPDetector,
    clear_models,
)
from clipad_sklearn._clip.models import load
from clipad_sklearn.datasets import make_defect_images

CLIPS = ["ViT-B-16-plus-240", "ViT-L-14-336", "ViT-L-14:518"]
N_REFERENCES = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clips", nargs="*", default=CLIPS, metavar="CLIP")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--photos", type=int, default=512)
    parser.add_argument("--files", type=int, default=512)
    parser.add_argument("--compared", type=int, default=8, help="with the processor")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--pairs", type=int, default=10_000)
    parser.add_argument("--short", type=float, default=4, help="GiB; 0: left out")
    arguments = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads", end="")
    if torch.cuda.is_available():
        print(f", {torch.cuda.get_device_name()}", end="")
    print()
    with tempfile.TemporaryDirectory() as folder:
        paths = write_photos(Path(folder), arguments.files)
        for name in arguments.clips:
            clear_models()
            measure(name, paths, arguments)


def measure(name: str, paths: list[str], arguments: argparse.Namespace) -> None:
    model_name, _, size = name.partition(":")
    clip = OpenCLIP(
        model_name,
        None if model_name == "tiny" else "random",
        image_size=int(size) if size else None,
        device=arguments.device,
        batch_size=arguments.batch_size,
        embedding_cache=None,
    )
    model = load(clip)
    print(f"{name} in {str(model.dtype)[6:]}, batches of {clip.batch_size}")
    side = model.input_size[0]
    images = list(make_defect_images(64, size=side, random_state=0).images)
    images = [np.roll(image, i // 64, axis=1) for i, image in enumerate(images * 8)]
    images = images[: arguments.photos]

    alone = speed_alone(model, clip.batch_size)
    print(f"  model alone: {alone:.0f} images/s")
    report("files", alone, len(paths), lambda: clip.encode_image(paths))
    report("arrays", alone, len(images), lambda: clip.encode_image(images))
    start = time.perf_counter()
    RandomWordDetector(clip, n_pairs=arguments.pairs, random_state=0).fit()
    seconds = time.perf_counter() - start
    print(
        f"  learning from {2 * arguments.pairs:,} random-word prompts: {seconds:.1f} s"
    )

    methods = {
        "prompts": make_pipeline(CLIPImageEncoder(clip), PromptDetector(clip)),
        "SDP": SDPDetector(clip),
        "WinCLIP": WinCLIPDetector(clip),
        "references": ReferenceDetector(clip),
    }
    good = images[-N_REFERENCES:]
    few = images[: arguments.compared]
    for title, detector in methods.items():
        some = images[:64] if title == "WinCLIP" else images
        detector.fit(good)
        report(
            f"{title}, scores", alone, len(some), partial(detector.score_samples, some)
        )
        if title != "prompts":
            work = partial(detector.iter_anomaly_maps, some, size="model")
            report(f"{title}, maps", alone, len(some), lambda work=work: list(work()))
            if arguments.short:
                short_of_memory(detector, images[:4] * 32, arguments.short)
    if not few:
        return
    found = [
        {
            title: outputs(with_clip(d, other).fit(good), few)
            for title, d in methods.items()
        }
        for other in (
            clip,
            clone(clip).set_params(precision="fp32"),
            clone(clip).set_params(device="cpu", precision="fp32"),
        )
    ]
    for title, expected in found.pop().items():
        shares = [np.abs(f[title] - expected).max() / expected.std() for f in found]
        print(f"  {title}: largest differences {shares[0]:.1e}, fp32 {shares[1]:.1e}")


def outputs(detector: Any, images: list[Any]) -> np.ndarray:
    if hasattr(detector, "anomaly_maps"):
        return np.asarray(detector.anomaly_maps(images, size="model"), dtype=float)
    return np.asarray(detector.score_samples(images), dtype=float)


def with_clip(detector: Any, clip: OpenCLIP) -> Any:
    copy = clone(detector)
    names = [name for name in copy.get_params() if name.split("__")[-1] == "clip"]
    return copy.set_params(**dict.fromkeys(names, clip))


def speed_alone(model: Any, batch_size: int) -> float:
    pixels = torch.zeros((batch_size, 3, *model.input_size), device=model.device)
    counts = []
    for _ in range(3):
        start, n = time.perf_counter(), 0
        while time.perf_counter() - start < 1:
            model.encode_pixels(pixels)  # waits for the result
            n += batch_size
        counts.append(n / (time.perf_counter() - start))
    return float(np.median(counts))


def report(title: str, alone: float, n: int, work: Callable[[], Any]) -> None:
    on_gpu = torch.cuda.is_available()
    work()  # what is made once
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    work()
    speed = n / (time.perf_counter() - start)
    peak = torch.cuda.max_memory_allocated() / 2**30 if on_gpu else 0
    print(
        f"  {title}: {speed:.0f} images/s, {alone / speed:.2f} passes each; "
        f"{peak:.2f} GiB of the GPU at most",
        flush=True,
    )


def short_of_memory(detector: Any, images: list[Any], gib: float) -> None:
    expected = detector.score_samples(images)
    detector.set_params(clip=clone(detector.clip).set_params(batch_size=len(images)))
    try:
        if torch.cuda.is_available():
            whole = torch.cuda.get_device_properties(0).total_memory / 2**30
            torch.cuda.empty_cache()
            torch.cuda.set_per_process_memory_fraction(gib / whole)
        difference = np.abs(detector.score_samples(images) - expected).max()
        print(f"    with {gib:g} GiB: largest difference {difference:.1e}", flush=True)
    finally:
        if torch.cuda.is_available():
            torch.cuda.set_per_process_memory_fraction(1.0)


if __name__ == "__main__":
    main()
