"""Scoring 5,000 files again, with their embeddings in a cache folder.

Cold: nothing is cached. Warm: a new process finds every embedding. To compare with:
reading the same files and hashing them with SHA-256, which a cache that is keyed by
content cannot do without. CPU time counts where other programs run on the machine.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from memory import write_photos

_PREDICT = """
import sys, time, warnings
from sklearn.pipeline import make_pipeline
from clipad_sklearn import CLIPImageEncoder, PromptDetector, list_images
from clipad_sklearn._clip.settings import check_clip

warnings.simplefilter("ignore", UserWarning)
clip = check_clip(sys.argv[1]).set_params(embedding_cache=sys.argv[2])
detector = make_pipeline(CLIPImageEncoder(clip), PromptDetector(clip)).fit(None)
load(clip).identity
paths = list_images(sys.argv[3])
start, cpu = time.perf_counter(), time.process_time()
detector.predict(paths)
print(time.perf_counter() - start, time.process_time() - cpu)
"""
_HASH = """
import hashlib, sys, time
from clipad_sklearn import list_images
from clipad_sklearn._clip.models import load

paths = list_images(sys.argv[3])
start, cpu = time.perf_counter(), time.process_time()
for path in paths:
    with open(path, "rb") as file:
        hashlib.sha256(file.read()).hexdigest()
print(time.perf_counter() - start, time.process_time() - cpu)
"""


def run(code: str, *arguments: str) -> tuple[float, float]:
    command = [sys.executable, "-c", code, *arguments]
    result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    wall, cpu = map(float, result.stdout.split())
    return wall, cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clip", nargs="?", default="ViT-B-32/random")
    parser.add_argument("--files", type=int, default=5_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        photos, cache = Path(root) / "photos", Path(root) / "cache"
        write_photos(photos, arguments.files)
        times = {
            name: run(code, arguments.clip, str(cache), str(photos))
            for name, code in (
                ("cold", _PREDICT),
                ("warm", _PREDICT),
                ("read and hash", _HASH),
            )
        }
    for name, (wall, cpu) in times.items():
        print(f"{name:14s} {wall:7.2f} s (CPU {cpu:.2f} s)")
    for above, below in (("cold", "warm"), ("warm", "read and hash")):
        wall, cpu = (times[above][i] / times[below][i] for i in range(2))
        print(f"{above} : {below} = {wall:.1f} (CPU {cpu:.1f})")


if __name__ == "__main__":
    main()
