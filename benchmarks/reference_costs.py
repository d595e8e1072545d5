"""What references cost, in passes of the image through the vision tower.

ViT-B-16-plus-240 with random weights, the defaults of `ReferenceDetector`, CPU time::

    OMP_NUM_THREADS=1 python benchmarks/reference_costs.py
    OMP_NUM_THREADS=1 python benchmarks/reference_costs.py --folder 200 --photos 0
    python benchmarks/reference_costs.py --memory
    python benchmarks/reference_costs.py --threads

Encoding is timed on a few photos. Matching takes the same time whatever the tokens are,
so a folder is judged from random ones of one block, times the number of blocks, and the
plain way, `torch.cdist` over pairs of photos, is timed on some of them. ``--memory``
reads the peak memory of scoring more and more photos with 200 and with 2,000 references
of the embedded CLIP, each in a new process; the tokens of a few photos are repeated for
so many. ``--threads`` compares the scores of one thread with those of two.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from clipad_sklearn import OpenCLIP, ReferenceDetector
from clipad_sklearn._cli.methods import MUTUAL_SHARE
from clipad_sklearn._clip.encoding import pixel_batches
from clipad_sklearn._clip.models import load
from clipad_sklearn._clip.patch_tokens import PatchTower
from clipad_sklearn._detectors.patch_distances import PatchMatcher, patch_features
from clipad_sklearn._detectors.reference import check_layers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clip", default="ViT-B-16-plus-240/random")
    parser.add_argument("--photos", type=int, default=8, help="new photos")
    parser.add_argument("--references", type=int, default=16)
    parser.add_argument("--folder", type=int, help="photos that judge themselves")
    parser.add_argument("--rows", type=int, default=2, help="of the plain way")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--threads", action="store_true")
    parser.add_argument("--peak", type=int, nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        print(peak(*arguments.peak))
    elif arguments.memory:
        memory()
    elif arguments.threads:
        threads()
    else:
        model_name, _, pretrained = arguments.clip.partition("/")
        clip = OpenCLIP(model_name, pretrained or None, embedding_cache=None)
        one_pass = costs(clip, arguments.references, arguments.photos)
        if arguments.folder:
            of_folder(clip, arguments.folder, one_pass, arguments.rows)


def costs(clip: OpenCLIP, n: int, new: int) -> float:
    """Print what fitting, scores and maps cost; return the seconds of one pass."""
    photos = noise(n + new)
    model = load(clip)

    def encode(some: list[Any]) -> None:
        for pixels, _ in pixel_batches(clip, some):
            model.encode_pixels(pixels)

    encode(photos[:1])
    some = photos[n:] or photos[:4]
    one_pass = timed(lambda: encode(some)) / len(some)
    print(f"one pass {one_pass:.3f} s")
    if new:
        detector = ReferenceDetector(clip)
        fit = timed(lambda: detector.fit(photos[:n])) / n / one_pass
        score = timed(lambda: detector.score_samples(some)) / new / one_pass
        maps = timed(lambda: detector.anomaly_maps(some)) / new / one_pass
        compared = len(detector.layers_) * len(detector.neighborhoods)
        bound = 1 + 1.25 * 0.00167 * compared * n
        print(f"{n} references, {compared} comparisons of each, passes per photo: ")
        print(f"fit {fit:.2f}, score {score:.2f}, map {maps:.2f} (at most {bound:.2f})")
        kept = sum(tokens.nbytes for tokens in detector.reference_tokens_) / 2**20
        print(f"tokens of {n} references: {kept:.1f} MB")
    return one_pass


def noise(n: int) -> list[Any]:
    rng = np.random.default_rng(0)
    return list(rng.integers(0, 256, (n, 240, 240, 3), dtype=np.uint8))


def of_folder(clip: OpenCLIP, n: int, one_pass: float, n_rows: int) -> None:
    tower = PatchTower(load(clip))
    blocks = check_layers(None, tower.shapes)
    # All blocks have the same shape: one of them is timed.
    generator = torch.Generator().manual_seed(0)
    shape = tower.shapes[blocks[0] - 1]
    folder = [torch.randn(n, 1, *shape, generator=generator).half()]
    matcher = PatchMatcher(folder, (1,), ("anywhere", "same"), 0, MUTUAL_SHARE)
    found: list[torch.Tensor] = []
    ours = len(blocks) * timed(lambda: found.append(matcher.leave_one_out(32)))
    print(f"{n} photos judge themselves: {1 + ours / n / one_pass:.2f} ", end="")
    print("times encoding them (at most 2.25)")
    expected: list[torch.Tensor] = []
    rows = range(n_rows)
    plain = timed(lambda: expected.extend(plain_way(folder, i) for i in rows))
    plain *= len(blocks) * n / n_rows
    difference = max(
        float((found[0][:, i].flatten(1) - expected[i]).abs().max()) for i in rows
    )
    print(f"ours {ours:.1f} s, the plain way {plain:.1f} s (from {n_rows} photos), ")
    print(f"{plain / ours:.1f} times as long, largest difference {difference:.1e}")


def plain_way(folder: list[torch.Tensor], i: int) -> torch.Tensor:
    """Patch scores of one photo at both places, compared with one after another."""
    total: Any = 0
    for tokens in folder:
        features = patch_features(tokens[:, 0], 1).flatten(1, 2)
        anywhere, same = [], []
        for j in range(len(features)):
            if j != i:
                distances = torch.cdist(features[i], features[j])
                anywhere.append(distances.amin(dim=1))
                same.append(distances.diagonal())
        count = int(MUTUAL_SHARE * len(same) + 1e-9)
        places = [torch.stack(anywhere), torch.stack(same)]
        nearest = [p.topk(count, dim=0, largest=False)[0].mean(0) for p in places]
        total = total + torch.stack(nearest)
    return total / len(folder)


def memory() -> None:
    for n_references in (200, 2000):
        for n_photos in (32, 96):
            script = [sys.executable, __file__, "--peak"]
            numbers = [str(n_references), str(n_photos)]
            done = subprocess.run(
                [*script, *numbers], capture_output=True, text=True, check=True
            )
            print(f"{n_references} references, {n_photos} new photos: ", end="")
            print(f"peak memory {float(done.stdout):.0f} MB", flush=True)


def peak(n_references: int, n_photos: int) -> float:
    """Score photos with many references; return the peak memory in MB."""
    detector = ReferenceDetector(OpenCLIP("tiny", embedding_cache=None))
    detector.fit(noise(8))
    detector.reference_ids_ = np.array([f"{i:032x}" for i in range(n_references)])
    for name in ("reference_patch_scores_", "reference_sizes_"):
        kept = getattr(detector, name)
        setattr(detector, name, np.resize(kept, (n_references, *kept.shape[1:])))
    detector.reference_tokens_ = [
        np.resize(tokens, (n_references, *tokens.shape[1:]))
        for tokens in detector.reference_tokens_
    ]
    generator = np.random.default_rng(1)
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for number in range(n_photos):
            pixels = generator.integers(0, 256, (240, 240, 3), dtype=np.uint8)
            paths.append(f"{folder}/{number}.png")
            Image.fromarray(pixels).save(paths[-1])
        detector.score_samples(paths)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def threads() -> None:
    photos = noise(12)
    found = []
    for count in (1, 2):
        torch.set_num_threads(count)
        detector = ReferenceDetector(OpenCLIP("tiny", embedding_cache=None))
        found.append(detector.fit(photos[:8]).score_samples(photos))
    difference = float(np.abs(found[0] - found[1]).max())
    print(f"1 and 2 threads: largest difference between scores {difference:.1e}")


def timed(work: Callable[[], Any]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


if __name__ == "__main__":
    main()
