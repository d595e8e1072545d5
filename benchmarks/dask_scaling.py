"""Scoring in one process without Dask, against Dask workers with one thread each.

Both score the same JPEG files of 640 x 480 pixels into Parquet files, with the model
loaded before, so that the start is left out. The process without Dask is kept on one
core, where the system allows it: the threads that read images would use the others.
Times need an idle machine; CPU times, of all processes together, hardly do.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pandas as pd
import torch
from distributed import Client
from PIL import Image
from sklearn.pipeline import make_pipeline

from clipad_sklearn import CLIPImageEncoder, PromptDetector, score_images
from clipad_sklearn._clip.settings import check_clip

ENVIRON = "distributed.nanny.pre-spawn-environ"


def write_photos(folder: Path, count: int) -> list[str]:
    rng = np.random.default_rng(0)
    paths = [str(folder / f"{i:06d}.jpg") for i in range(count)]
    for path in paths:
        coarse = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        pixels = np.asarray(Image.fromarray(coarse).resize((640, 480)))
        pixels = pixels ^ rng.integers(0, 16, pixels.shape, dtype=np.uint8)
        Image.fromarray(pixels).save(path, quality=85)
    return paths


def seconds(*arguments: Any, client: Any = None, **params: Any) -> tuple[float, float]:
    """Return how long it takes, and the CPU time of this process and the workers."""

    def cpu_time() -> float:
        workers = client.run(time.process_time).values() if client else ()
        return time.process_time() + sum(workers)

    start, cpu_start = time.perf_counter(), cpu_time()
    score_images(*arguments, client=client, **params)
    return time.perf_counter() - start, cpu_time() - cpu_start


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("clip", nargs="?", default="ViT-B-32/random")
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    clip = check_clip(arguments.clip).set_params(embedding_cache=None)
    detector = make_pipeline(CLIPImageEncoder(clip), PromptDetector(clip)).fit(None)
    detector[-1].offset_ = 1e-9  # verdicts do not matter: without the warning
    size = max(1, arguments.images // (4 * arguments.workers))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = write_photos(folder, arguments.images)
        mean = sum(map(os.path.getsize, paths)) / len(paths)
        print(f"{len(paths)} files of {mean / 1000:.0f} kB, {arguments.clip}")

        cores = None
        if hasattr(os, "sched_setaffinity"):
            cores = os.sched_getaffinity(0)
            os.sched_setaffinity(0, {min(cores)})
        score_images(detector, paths[:2], out=folder / "warm")
        run = {"partition_size": size}
        here, cpu_here = seconds(detector, paths, out=folder / "here", **run)
        print(
            f"without Dask: {here:.1f} s, {cpu_here:.1f} s of CPU time, "
            f"{len(paths) / cpu_here:.2f} images per second of it",
            flush=True,
        )
        if cores:
            os.sched_setaffinity(0, cores)

        with (
            # Dask's own setting costs half as much again: see docs/guide/dask.rst.
            dask.config.set({f"{ENVIRON}.MALLOC_TRIM_THRESHOLD_": None}),
            Client(
                n_workers=arguments.workers,
                threads_per_worker=1,
                dashboard_address=":0",
            ) as client,
        ):
            for number, address in enumerate(client.nthreads()):
                # Each worker imports everything and loads the model.
                client.submit(
                    score_images,
                    detector,
                    paths[:2],
                    out=folder / f"warm-{number}",
                    workers=[address],
                ).result()
            there, cpu_there = seconds(
                detector, paths, out=folder / "there", client=client, **run
            )
        print(
            f"{arguments.workers} workers: {there:.1f} s, {cpu_there:.1f} s of CPU "
            f"time, {len(paths) / cpu_there:.2f} images per second of it"
        )
        a, b = (pd.read_parquet(folder / name) for name in ("here", "there"))
    if list(a["path"]) != paths or list(b["path"]) != paths:
        raise AssertionError("the rows are not those of the images")
    cosines = np.abs(a["margin"] - b["margin"]) * detector[-1].temperature
    print(f"largest difference of cosines {cosines.max():.1e}")
    n_cores = min(arguments.workers, len(cores) if cores else os.cpu_count() or 1)
    print(f"ratio {here / there:.2f}, {here / there / n_cores:.2f} of {n_cores} cores")
    print(f"CPU time of the workers : of one process {cpu_there / cpu_here:.2f}")


if __name__ == "__main__":
    main()
