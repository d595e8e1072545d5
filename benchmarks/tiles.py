"""Small defects in large photos: whole against tiled, and what tiles cost.

20 good and 20 defective photos of 2,000 x 2,000 pixels are generated: paper-like noise
at several scales, and in the defective ones a dark spot of 8 pixels. First the AUROC
of several methods on the embedded CLIP, of the whole photo and of 8 x 8 tiles. Then the
peak memory with more photos; and, with ViT-B-16-plus-240 and random weights, the time
of n tiles and the whole of photos of 12 megapixels against n + 1 images of the model's
size given to the same detector, and how often a file is opened::

    OMP_NUM_THREADS=1 python benchmarks/tiles.py [STEP ...] [--methods NAME ...]
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sklearn.base import clone
from sklearn.pipeline import make_pipeline

from clipad_sklearn import (
    CLIPImageEncoder,
    OpenCLIP,
    PromptDetector,
    RandomWordDetector,
    ReferenceDetector,
    SDPDetector,
    TiledDetector,
    WinCLIPDetector,
    metrics,
)
from clipad_sklearn._detectors import tiles as tiles_module

SIDE, SPOT, GRID = 2000, 8, (8, 8)
N_REFERENCES = 4
STEPS = ("detection", "memory", "cost")


def photo(seed: int, defect: bool) -> np.ndarray:
    """Return one photo (SIDE, SIDE, 3)."""
    rng = np.random.default_rng(seed)
    grey = np.full((SIDE, SIDE), 180.0)
    for size, strength in ((8, 6.0), (60, 4.0), (SIDE, 3.0)):
        noise = rng.normal(0, strength, (size, size)).astype(np.float32)
        image = Image.fromarray(noise).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        grey += np.asarray(image)
    if defect:
        top, left = rng.integers(0, SIDE - SPOT, 2)
        y, x = np.mgrid[:SPOT, :SPOT] - (SPOT - 1) / 2
        grey[top : top + SPOT, left : left + SPOT][y**2 + x**2 <= (SPOT / 2) ** 2] = 70
    return np.repeat(grey.clip(0, 255).astype(np.uint8)[..., np.newaxis], 3, axis=2)


def write_photos(folder: Path, count: int, format_: str = "png") -> list[str]:
    paths = []
    for number in range(count):
        path = folder / f"{number:03d}.{format_}"
        Image.fromarray(photo(number, number % 2 == 1)).save(path)
        paths.append(str(path))
    return paths


def detectors() -> dict[str, Any]:
    clip = OpenCLIP("tiny", embedding_cache=None)
    words = RandomWordDetector(clip, n_pairs=2000, random_state=0)
    return {
        "random words": make_pipeline(CLIPImageEncoder(clip), words),
        "WinCLIP": WinCLIPDetector(clip),
        "SDP": SDPDetector(clip),
        "SDP, prompts+map": SDPDetector(clip, image_score="prompts+map"),
        "references (8 good)": ReferenceDetector(clip),
    }


def detection(paths: list[str], good: list[str], names: list[str]) -> None:
    y = np.arange(len(paths)) % 2
    side = f"{GRID[0]} x {GRID[1]}"
    print(f"AUROC of {len(paths)} photos, whole and {side} tiles:")
    for name, detector in detectors().items():
        if name not in names:
            continue
        found = []
        for tiles in ((1, 1), GRID):
            tiled = TiledDetector(detector, tiles=tiles)
            # Photos teach only those that learn from them: good ones, not scored.
            learns = "map" in name or "references" in name
            tiled.fit(good if learns else None)
            found.append(metrics.auroc(y, -tiled.score_samples(paths)))
        print(f"  {name}: {100 * found[0]:.1f} {100 * found[1]:.1f}", flush=True)


def cost(folder: Path, tiles: tuple[int, int] = (3, 4)) -> None:
    rng = np.random.default_rng(0)
    paths = []
    for number in range(2 + N_REFERENCES):
        small = rng.integers(0, 256, (120, 160, 3), dtype=np.uint8)
        paths.append(f"{folder}/{number}.jpg")
        Image.fromarray(small).resize((4000, 3000)).save(paths[-1])
    paths, references = paths[:2], paths[2:]
    clip = OpenCLIP("ViT-B-16-plus-240", "random", embedding_cache=None, batch_size=8)
    n_parts = tiles[0] * tiles[1] + 1
    n_images = len(paths) * n_parts
    sizes = (N_REFERENCES * n_parts, 240, 240, 3)
    images = list(rng.integers(0, 256, sizes, dtype=np.uint8))
    opened: list[Any] = []
    real = tiles_module.open_image
    setattr(  # noqa: B010
        tiles_module, "open_image", lambda image: opened.append(image) or real(image)
    )
    words = make_pipeline(CLIPImageEncoder(clip), PromptDetector(clip))
    photos = ReferenceDetector(clip, location="anywhere")
    # A tile is compared with all tiles of all references: as an image is with as many.
    for name, detector, good, good_alone in (
        ("words", words, None, None),
        ("SDP", SDPDetector(clip), None, None),
        (f"{N_REFERENCES} references", photos, references, images[:N_REFERENCES]),
        (f"{N_REFERENCES} references and images with their tiles as references",
         photos, references, images),
    ):  # fmt: skip
        tiled = TiledDetector(detector, tiles=tiles).fit(good)
        alone = clone(detector).fit(good_alone)
        alone.score_samples(images[:1])
        opened.clear()
        ours = timed(tiled, paths)
        # Others than the references, which leave themselves out.
        theirs = timed(alone, [255 - image for image in images[:n_images]])
        print(
            f"{name}, {tiles[0]} x {tiles[1]} tiles and the whole of {len(paths)} "
            f"photos: {ours / theirs:.3f} of {n_images} images (CPU time); files "
            f"opened {len(opened) / len(paths):.0f} time(s) each",
            flush=True,
        )


def timed(detector: Any, images: list[Any]) -> float:
    start = time.process_time()
    detector.score_samples(images)
    return time.process_time() - start


def memory(folder: Path) -> None:
    for count in (4, 40):
        script = [sys.executable, __file__, "--peak", str(folder), str(count)]
        done = subprocess.run(script, capture_output=True, text=True, check=True)
        print(f"peak memory with {count} photos: {int(done.stdout) / 1024:.0f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("steps", nargs="*", metavar="STEP", help=", ".join(STEPS))
    parser.add_argument("--methods", nargs="+", default=list(detectors()))
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        paths = sorted(str(path) for path in Path(arguments.peak[0]).glob("*.png"))
        count = int(arguments.peak[1])
        paths = (paths * count)[:count]
        clip = OpenCLIP("tiny", embedding_cache=None)
        TiledDetector(SDPDetector(clip), tiles=(3, 4)).fit().score_samples(paths)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        return
    steps = arguments.steps or STEPS
    with tempfile.TemporaryDirectory() as folder:
        if "detection" in steps:
            paths = write_photos(Path(folder), 56)
            detection(paths[:40], paths[40::2], arguments.methods)
        if "memory" in steps:
            write_photos(Path(folder), 4)
            memory(Path(folder))
        if "cost" in steps:
            cost(Path(folder))


if __name__ == "__main__":
    main()
