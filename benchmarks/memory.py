"""Peak memory of scoring 5,000 files, against that of scoring 500.

Each is a run of ``clipad score`` in a process of its own.
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
from clipad_sklearn._cli import main
status = main(["score", sys.argv[1], "--clip", "tiny", "--out", sys.argv[2]])
assert status == 0
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)
"""


def write_photos(folder: Path, count: int) -> None:
    """Write small different JPEG files, each about 25 kB."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    base = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
    for i in range(count):
        pixels = np.asarray(Image.fromarray(np.roll(base, i, 0)).resize((256, 256)))
        pixels = pixels ^ rng.integers(0, 32, pixels.shape, dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG")
        (folder / f"{i:05d}.jpg").write_bytes(buffer.getvalue())


def peak(folder: Path) -> int:
    result = subprocess.run(
        [sys.executable, "-c", _SCORE, str(folder), f"{folder}.csv"],
        check=True,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    return int(result.stderr.split()[-1])


def main() -> None:
    counts = (500, 5_000)
    with tempfile.TemporaryDirectory() as folder:
        peaks = []
        for count in counts:
            photos = Path(folder) / str(count)
            write_photos(photos, count)
            peaks.append(peak(photos))
            print(f"{count:5d} files: {peaks[-1] / 1024:.0f} MiB", flush=True)
    print(f"ratio {peaks[1] / peaks[0]:.3f}  (to be at most 1.1)")


if __name__ == "__main__":
    main()
