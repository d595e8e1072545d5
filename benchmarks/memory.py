"""Peak memory of scoring 20,000 small files, against that of scoring 1,000.

Each is a process of its own, with a folder cache and with no cache.
"""

from __future__ import annotations

import io
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

_SCORE = """
import resource, sys
from sklearn.pipeline import make_pipeline
from clipad_sklearn import CLIPImageEncoder, OpenCLIP, PromptDetector, list_images

clip = OpenCLIP("tiny", embedding_cache=sys.argv[2] or None)
detector = make_pipeline(CLIPImageEncoder(clip), PromptDetector(clip)).fit(None)
detector.score_samples(list_images(sys.argv[1]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def write_photos(folder: Path, count: int, size: int = 256) -> None:
    """Write different JPEG files, each about 25 kB at 256 x 256 pixels."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    base = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
    for i in range(count):
        pixels = np.asarray(Image.fromarray(np.roll(base, i, 0)).resize((size, size)))
        pixels = pixels ^ rng.integers(0, 32, pixels.shape, dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG")
        (folder / f"{i:05d}.jpg").write_bytes(buffer.getvalue())


def peak(folder: Path, cache: str) -> int:
    result = subprocess.run(
        [sys.executable, "-c", _SCORE, str(folder), cache],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return int(result.stdout)


def main() -> None:
    counts = (1_000, 20_000)
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        for count in counts:
            write_photos(folder / str(count), count, size=96)
        for cache in (str(folder / "cache"), ""):
            peaks = [peak(folder / str(count), cache) for count in counts]
            print("folder cache" if cache else "no cache")
            for count, kib in zip(counts, peaks, strict=True):
                print(f"  {count:6d} files: {kib / 1024:.0f} MiB", flush=True)
            print(f"  ratio {peaks[1] / peaks[0]:.3f}  (to be at most 1.1)")


if __name__ == "__main__":
    main()
