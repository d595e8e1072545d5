"""SDP maps against a plain pass of the image through the vision tower.

The model is ViT-B-16-plus-240 with random weights. All times are CPU times of one
thread, so that other work on the machine matters little.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from clipad_sklearn import OpenCLIP, SDPDetector
from clipad_sklearn._clip.models import load

N_IMAGES = 4
REPETITIONS = 5


def seconds(run: Callable[[], Any]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def main() -> None:
    torch.set_num_threads(1)
    clip = OpenCLIP("ViT-B-16-plus-240", "random")
    model = load(clip)
    detector = SDPDetector(clip, prompts="clip-ac").fit()
    pixels = torch.randn((N_IMAGES, 3, *model.model.visual.image_size))
    runs: dict[str, Callable[[], Any]] = {
        "plain pass": lambda: model.encode_pixels(pixels),
        "SDP maps": lambda: detector._model_maps(pixels, None),
    }
    times: dict[str, list[float]] = {name: [] for name in runs}
    for repetition in range(REPETITIONS + 1):
        # In turn, so that both see the same machine.
        for name, run in runs.items():
            elapsed = seconds(run)
            if repetition:
                times[name].append(elapsed)
    plain, sdp = (statistics.median(times[name]) / N_IMAGES for name in runs)
    print(
        f"per image: plain pass {plain:.3f} s, SDP maps {sdp:.3f} s, "
        f"ratio {sdp / plain:.2f}  (to be at most 1.25)"
    )


if __name__ == "__main__":
    main()
