"""Images per second of one core without Dask, and of Dask workers with one core each.

Both score the same JPEG files of 640 x 480 pixels into Parquet files, with the model
loaded before, so that the start is left out. The process without Dask is kept on one
core, where the system allows it: the threads that read images would use the others.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from distributed import Client
from PIL import Image
from sklearn.pipeline import make_pipeline

from clipad_sklearn import CLIPImageEncoder, PromptDetector, score_images
from clipad_sklearn._clip import check_clip


def write_photos(folder: Path, count: int) -> list[str]:
    rng = np.random.default_rng(0)
    paths = [str(folder / f"{i:06d}.jpg") for i in range(count)]
    for path in paths:
        coarse = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        pixels = np.asarray(Image.fromarray(coarse).resize((640, 480)))
        pixels = pixels ^ rng.integers(0, 16, pixels.shape, dtype=np.uint8)
        Image.fromarray(pixels).save(path, quality=85)
    return paths


def seconds(*arguments: Any, **params: Any) -> float:
    start = time.perf_counter()
    score_images(*arguments, **params)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("clip", nargs="?", default="ViT-B-32/random")
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    clip = check_clip(arguments.clip).set_params(embedding_cache=None)
    detector = make_pipeline(CLIPImageEncoder(clip), PromptDetector(clip)).fit(None)
    size = max(1, arguments.images // (10 * arguments.workers))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = write_photos(folder, arguments.images)
        mean = sum(map(os.path.getsize, paths)) / len(paths)
        print(f"{len(paths)} files of {mean / 1000:.0f} kB, {arguments.clip}")

        cores = None
        if hasattr(os, "sched_setaffinity"):
            cores = os.sched_getaffinity(0)
            os.sched_setaffinity(0, {min(cores)})
        warm = {"partition_size": 1}
        score_images(detector, paths[:2], out=folder / "warm", **warm)
        run = {"partition_size": size}
        here = seconds(detector, paths, out=folder / "here", **run)
        print(f"without Dask: {here:.1f} s, {len(paths) / here:.2f} images/s")
        if cores:
            os.sched_setaffinity(0, cores)

        with Client(
            n_workers=arguments.workers, threads_per_worker=1, dashboard_address=":0"
        ) as client:
            for address in client.nthreads():
                # Each worker loads the model.
                client.submit(
                    detector.score_samples, paths[:2], workers=[address], pure=False
                ).result()
            run["client"] = client
            there = seconds(detector, paths, out=folder / "there", **run)
        print(
            f"{arguments.workers} workers: {there:.1f} s, "
            f"{len(paths) / there / arguments.workers:.2f} images/s each"
        )
        a, b = (pd.read_parquet(folder / name) for name in ("here", "there"))
    if list(a["path"]) != paths or list(b["path"]) != paths:
        raise AssertionError("the rows are not those of the images")
    cosines = np.abs(a["margin"] - b["margin"]) * detector[-1].temperature
    print(f"largest difference of cosines {cosines.max():.1e}")
    n_cores = min(arguments.workers, len(cores) if cores else os.cpu_count() or 1)
    print(f"ratio {here / there:.2f}, {here / there / n_cores:.2f} of {n_cores} cores")


if __name__ == "__main__":
    main()
