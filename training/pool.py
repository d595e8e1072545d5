"""The pool of training pairs: a ring of files that generators refresh."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from clipad_sklearn.datasets._defect_images import Sample, draw_sample
from clipad_sklearn.datasets._drawn.drawing import COLORS

from .settings import (
    TRAIN_SEED,
    TRAINED_DEFECTS,
    TRAINED_FAMILIES,
    TRAINED_OBJECTS,
    TRAINED_TEXTURES,
    Settings,
)

COUNTS = range(1, 13)


def record(size: int) -> np.dtype:
    """One pair of images and what is known about it."""
    return np.dtype(
        [
            ("good", np.uint8, (size, size, 3)),
            ("bad", np.uint8, (size, size, 3)),
            ("mask", np.uint8, (size, size // 8)),
            ("family", np.int16),
            ("defect", np.int16),
            ("color", np.int16),  # -1: not clear
            ("count", np.int16),  # -1: nothing to count, or too much
        ]
    )


def fill(row: np.void, sample: Sample) -> None:
    row["good"], row["bad"] = sample.good, sample.bad
    row["mask"] = np.packbits(sample.mask, axis=-1)
    row["family"] = TRAINED_FAMILIES.index(sample.family)
    row["defect"] = TRAINED_DEFECTS.index(sample.defect)
    row["color"] = COLORS.index(sample.color) if sample.color else -1
    row["count"] = sample.count if sample.count in COUNTS else -1


def training_sample(number: int, settings: Settings) -> Sample:
    rng = np.random.default_rng([TRAIN_SEED, settings.seed, number])
    objects = rng.random() < settings.object_share
    families = TRAINED_OBJECTS if objects else TRAINED_TEXTURES
    return draw_sample(
        rng, settings.pool_size, families, TRAINED_DEFECTS, settings.severity
    )


def write_shard(folder: Path, shard: int, settings: Settings) -> None:
    """Generate shard number `shard` into its place in the ring."""
    rows = np.zeros(settings.pairs_per_shard, record(settings.pool_size))
    for k in range(len(rows)):
        fill(rows[k], training_sample(shard * len(rows) + k, settings))
    place = folder / f"shard_{shard % settings.shards:04d}.npy"
    partial = folder / f"partial_{os.getpid()}.npy"
    np.save(partial, rows)
    partial.replace(place)
    (folder / f"done_{shard:07d}").touch()


def shards_done(folder: Path) -> int:
    """Number of the shard after the highest one that was written."""
    numbers = [int(path.name[5:]) for path in folder.glob("done_*")]
    return max(numbers, default=-1) + 1


def generate(
    folder: Path, settings: Settings, worker: int, workers: int, limit: int | None
) -> None:
    """Write every `workers`-th shard; stop at `limit`, or when the parent is gone."""
    folder.mkdir(parents=True, exist_ok=True)
    parent = os.getppid()
    start = shards_done(folder)
    shard = start - start % workers + worker
    while (limit is None or shard < limit) and os.getppid() == parent:
        if not (folder / f"done_{shard:07d}").exists():
            write_shard(folder, shard, settings)
        shard += workers


class Pool:
    """Batches from the files that are there now."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: list[Path] = []
        self.refresh()

    def refresh(self) -> None:
        self.files = sorted(self.folder.glob("shard_*.npy"))

    def batch(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """`count` pairs from a few files."""
        pieces = min(8, len(self.files))
        rows = []
        for index in rng.choice(len(self.files), pieces, replace=False):
            shard = np.load(self.files[index], mmap_mode="r")
            share = count // pieces
            if not rows:
                share += count % pieces
            rows.append(shard[np.sort(rng.choice(len(shard), share, replace=False))])
        return np.concatenate(rows)
