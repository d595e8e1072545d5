"""Small defects in large photos: whole against tiled, and what tiles cost.

20 good and 20 defective photos of 2,000 x 2,000 pixels are generated: paper-like noise
at several scales, and in the defective ones a dark spot of 8 pixels. First the AUROC of
several methods on the embedded CLIP, of the whole photo and of 8 x 8 tiles. Then, with
ViT-B-16-plus-240 and random weights, the time of n tiles and the whole against n + 1
passes of prepared pixels, how often a file is opened, and the peak memory with more
photos.
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
from sklearn.pipeline import make_pipeline

from clipad_sklearn import (
    CLIPImageEncoder,
    OpenCLIP,
    RandomWordDetector,
    ReferenceDetector,
    SDPDetector,
    TiledDetector,
    WinCLIPDetector,
    metrics,
)
from clipad_sklearn._clip.models import load
from clipad_sklearn._detectors import tiles as tiles_module

SIDE, SPOT, GRID = 2000, 8, (8, 8)


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


def detection(paths: list[str], good: list[str]) -> None:
    y = np.arange(len(paths)) % 2
    side = f"{GRID[0]} x {GRID[1]}"
    print(f"AUROC of {len(paths)} photos, whole and {side} tiles:")
    for name, detector in detectors().items():
        found = []
        for tiles in ((1, 1), GRID):
            tiled = TiledDetector(detector, tiles=tiles)
            # Photos teach only those that learn from them: good ones, not scored.
            learns = "map" in name or "references" in name
            tiled.fit(good if learns else None)
            found.append(metrics.auroc(y, -tiled.score_samples(paths)))
        print(f"  {name}: {100 * found[0]:.1f} {100 * found[1]:.1f}", flush=True)


def cost(paths: list[str], tiles: tuple[int, int]) -> None:
    clip = OpenCLIP("ViT-B-16-plus-240", "random", embedding_cache=None, batch_size=8)
    tiled = TiledDetector(SDPDetector(clip), tiles=tiles).fit()
    n_passes = len(paths) * (tiles[0] * tiles[1] + 1)
    model = load(clip)
    import torch

    pixels = torch.randn(8, 3, *model.input_size)
    for _ in range(2):
        model.encode_pixels(pixels)
    opened: list[Any] = []
    real = tiles_module.open_image
    setattr(  # noqa: B010
        tiles_module, "open_image", lambda image: opened.append(image) or real(image)
    )
    ratios = []
    for _ in range(3):
        start = time.process_time()
        tiled.score_samples(paths)
        ours = time.process_time() - start
        start = time.process_time()
        for first in range(0, n_passes, 8):
            model.encode_pixels(pixels[: min(8, n_passes - first)])
        ratios.append(ours / (time.process_time() - start))
    print(
        f"{tiles[0]} x {tiles[1]} tiles and the whole of {len(paths)} photos: "
        f"{np.median(ratios):.3f} of {n_passes} passes (CPU time); files opened "
        f"{len(opened) / 3 / len(paths):.0f} time(s) each"
    )


def memory(folder: Path) -> None:
    for count in (4, 40):
        script = [sys.executable, __file__, "--peak", str(folder), str(count)]
        done = subprocess.run(script, capture_output=True, text=True, check=True)
        print(f"peak memory with {count} photos: {int(done.stdout) / 1024:.0f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peak", nargs=2, metavar=("FOLDER", "COUNT"))
    peak = parser.parse_args().peak
    if peak:
        paths = sorted(str(path) for path in Path(peak[0]).glob("*.png"))
        paths = (paths * int(peak[1]))[: int(peak[1])]
        clip = OpenCLIP("tiny", embedding_cache=None)
        TiledDetector(SDPDetector(clip), tiles=(3, 4)).fit().score_samples(paths)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        return
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "png").mkdir()
        paths = write_photos(Path(folder) / "png", 56)
        detection(paths[:40], paths[40::2])
        memory(Path(folder) / "png")
        large = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)
        twelve = Image.fromarray(large).resize((4000, 3000))
        files = []
        for number in range(2):
            files.append(f"{folder}/{number}.jpg")
            twelve.save(files[-1])
        cost(files, (3, 4))


if __name__ == "__main__":
    main()
