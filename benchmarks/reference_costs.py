"""What references cost, in passes of the image through the vision tower.

ViT-B-16-plus-240 with random weights, the defaults of `ReferenceDetector`, CPU time::

    OMP_NUM_THREADS=1 python benchmarks/reference_costs.py

Encoding is timed on a few photos. Matching takes the same time whatever the tokens are,
so a folder is judged from random ones, and the plain way, `torch.cdist` over pairs of
photos, is timed on some of its rows.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from clipad_sklearn import OpenCLIP, ReferenceDetector
from clipad_sklearn._clip.encoding import pixel_batches
from clipad_sklearn._clip.models import load
from clipad_sklearn._detectors.patch_distances import PatchMatcher, patch_features


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clip", default="ViT-B-16-plus-240/random")
    parser.add_argument("--photos", type=int, default=8, help="new photos")
    parser.add_argument("--references", type=int, default=16)
    parser.add_argument("--folder", type=int, default=200)
    parser.add_argument("--rows", type=int, default=4, help="of the plain way")
    arguments = parser.parse_args()
    model_name, _, pretrained = arguments.clip.partition("/")
    clip = OpenCLIP(model_name, pretrained or None, embedding_cache=None)
    rng = np.random.default_rng(0)
    n, new = arguments.references, arguments.photos
    photos = list(rng.integers(0, 256, (n + new, 240, 240, 3), dtype=np.uint8))
    model = load(clip)

    def encode(some: list[Any]) -> None:
        for pixels, _ in pixel_batches(clip, some):
            model.encode_pixels(pixels)

    encode(photos[:1])
    one_pass = timed(lambda: encode(photos[n:])) / new
    detector = ReferenceDetector(clip)
    fit = timed(lambda: detector.fit(photos[:n])) / n / one_pass
    score = timed(lambda: detector.score_samples(photos[n:])) / new / one_pass
    maps = timed(lambda: detector.anomaly_maps(photos[n:])) / new / one_pass
    compared = len(detector.layers_) * len(detector.neighborhoods)
    bound = 1 + 1.25 * 0.00167 * compared * n
    print(f"one pass {one_pass:.3f} s; {n} references, {compared} comparisons of each")
    print(f"passes per photo: fit {fit:.2f}, score {score:.2f}, map {maps:.2f}", end="")
    print(f" (at most {bound:.2f})")
    kept = sum(tokens.nbytes for tokens in detector.reference_tokens_) / 2**20
    print(f"tokens of {n} references: {kept:.1f} MB")

    shapes = [tokens.shape[1:] for tokens in detector.reference_tokens_]
    folder = [torch.randn(arguments.folder, *shape).half() for shape in shapes]
    of_folder(folder, one_pass, arguments.rows)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"peak memory {peak:.0f} MB")


def of_folder(folder: list[torch.Tensor], one_pass: float, n_rows: int) -> None:
    n = len(folder[0])
    both = PatchMatcher(folder, (1,), ("anywhere", "same"), 0, 0.3)
    whole = 1 + timed(lambda: both.leave_one_out(32)) / n / one_pass
    print(f"{n} photos judge themselves: {whole:.2f} times encoding (at most 2.25)")
    anywhere = PatchMatcher(folder, (1,), ("anywhere",), 0, 0.3)
    found: list[torch.Tensor] = []
    ours = timed(lambda: found.append(anywhere.leave_one_out(32)[0]))
    expected: list[torch.Tensor] = []
    rows = range(n_rows)
    plain = timed(lambda: expected.extend(plain_way(folder, i) for i in rows))
    plain *= n / n_rows
    difference = max(
        float((found[0][i].flatten() - expected[i]).abs().max()) for i in rows
    )
    print(f"anywhere: {ours:.1f} s, the plain way: {plain:.1f} s, ", end="")
    print(f"{plain / ours:.1f} times as long, largest difference {difference:.1e}")


def plain_way(folder: list[torch.Tensor], i: int) -> torch.Tensor:
    """Patch scores of one photo, compared with each other one in turn."""
    total: Any = 0
    for tokens in folder:
        features = patch_features(tokens[:, 0], 1).flatten(1, 2)
        distances = [
            torch.cdist(features[i], features[j]).amin(dim=1)
            for j in range(len(features))
            if j != i
        ]
        count = int(0.3 * len(distances) + 1e-9)
        total = total + torch.stack(distances).topk(count, dim=0, largest=False)[
            0
        ].mean(0)
    return total / len(folder)


def timed(work: Callable[[], Any]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


if __name__ == "__main__":
    main()
