"""Maps from patch tokens and prompts alone, to compare the methods with.

The last patch tokens of the embedded model, projected like an image, against the
difference of the two prompts of PromptDetector; judged like the maps of ``clipad
benchmark``::

    python benchmarks/naive_maps.py "$CLIPAD_SHARED_DATA" hazelnut
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parents[1]))

from clipad_sklearn import OpenCLIP, PromptDetector
from clipad_sklearn._cli.benchmark_run import read_mask
from clipad_sklearn._clip.encoding import pixel_batches
from clipad_sklearn._clip.models import load
from clipad_sklearn.datasets import load_mvtec_ad
from clipad_sklearn.metrics import auroc, pro
from training.model import encode_image_tokens
from training.settings import IMAGE_SIZE

SIZE = (IMAGE_SIZE, IMAGE_SIZE)


def naive_maps(clip: OpenCLIP, images: Sequence[Any]) -> list[np.ndarray]:
    """Return maps at the size of the model's input."""
    loaded = load(clip)
    anomalous, normal = PromptDetector(clip).fit().prototypes_[0]
    direction = torch.from_numpy((anomalous - normal).astype(np.float32))
    maps: list[np.ndarray] = []
    with torch.inference_mode():
        for pixels, _ in pixel_batches(clip, images):
            pixels = loaded.on_device(pixels)
            scores = encode_image_tokens(loaded.model, pixels)[1] @ direction
            side = round(scores.shape[1] ** 0.5)
            grid = scores.view(-1, 1, side, side)
            maps += list(
                functional.interpolate(grid, SIZE, mode="bilinear")[:, 0].numpy()
            )
    return maps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", help="in the layout of MVTec AD")
    parser.add_argument("categories", nargs="+")
    arguments = parser.parse_args()
    figures = []
    for category in arguments.categories:
        data = load_mvtec_ad(arguments.root, category)
        maps = naive_maps(OpenCLIP("tiny"), data.images)
        masks = [
            None if mask is None else read_mask(mask, image, SIZE)
            for mask, image in zip(data.masks, data.images, strict=True)
        ]
        figures.append([100 * auroc(masks, maps), 100 * pro(masks, maps)])
        print(f"{category}: pixel AUROC {figures[-1][0]:.1f}, PRO {figures[-1][1]:.1f}")
    mean = np.mean(figures, axis=0)
    print(f"mean: pixel AUROC {mean[0]:.1f}, PRO {mean[1]:.1f}")


if __name__ == "__main__":
    main()
