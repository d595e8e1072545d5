"""WinCLIP maps against the plain way, at equal output; and against matrix products.

The plain way takes one scale after another, sends windows through the whole tower,
and fuses them patch by patch. The model is ViT-B-16-plus-240 with random weights. All
times are CPU times of one thread, so that other work on the machine matters little.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from clipad_sklearn import OpenCLIP, PromptDetector, WinCLIPDetector
from clipad_sklearn._clip.models import load
from clipad_sklearn._detectors.maps import upsampled
from clipad_sklearn._detectors.winclip import window_patches

SIZES = (2, 3)
N_IMAGES = 1
REPETITIONS = 3


@torch.inference_mode()
def plain_maps(detector: Any, pixels: torch.Tensor) -> np.ndarray:
    visual = load(detector.clip).model.visual
    rows, columns = visual.grid_size
    maps = []
    for image in pixels:
        tokens = visual.conv1(image[None]).flatten(2).transpose(1, 2)
        tokens = torch.cat([visual.class_embedding.expand(1, 1, -1), tokens], dim=1)
        tokens = tokens + visual.positional_embedding

        def scores(windows: np.ndarray, tokens: torch.Tensor = tokens) -> np.ndarray:
            sequences = [tokens[0, [0, *(window + 1)]] for window in windows]
            x = visual.transformer(visual.ln_pre(torch.stack(sequences)))
            features = (visual.ln_post(x)[:, 0] @ visual.proj).numpy()
            features /= np.linalg.norm(features, axis=1, keepdims=True)
            return detector.scorer_.predict_proba(features)[:, 0].clip(min=1e-6)

        everything = np.arange(rows * columns)
        fused = np.full(rows * columns, 1 / scores(everything[np.newaxis])[0])
        for size in SIZES:
            windows = window_patches((rows, columns), (size, size))
            of_windows = scores(windows)
            for patch in range(rows * columns):
                covering = [
                    of_windows[i]
                    for i, window in enumerate(windows)
                    if np.isin(patch, window)
                ]
                fused[patch] += np.mean(1 / np.array(covering))
        grid = ((1 + len(SIZES)) / fused).reshape(rows, columns)
        maps.append(upsampled(grid, tuple(pixels.shape[-2:])))
    return np.stack(maps)


def blocks_flops(visual: Any, sequences: list[tuple[int, int]]) -> float:
    """Of the matrix products in the blocks; attention itself is left out."""
    width, depth = visual.conv1.out_channels, len(visual.transformer.resblocks)
    tokens = sum(count * length for count, length in sequences)
    return 2 * 12 * width**2 * depth * tokens


def matrix_speed(width: int, tokens: int) -> float:
    """FLOPs per second of the largest product of a block."""
    a, b = torch.randn(tokens, width), torch.randn(width, 4 * width)
    return 2 * a.numel() * b.shape[1] / seconds(lambda: a @ b, 10)


def seconds(run: Callable[[], Any], repetitions: int = REPETITIONS) -> float:
    times = []
    run()
    for _ in range(repetitions):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return statistics.median(times)


def main() -> None:
    torch.set_num_threads(1)
    clip = OpenCLIP("ViT-B-16-plus-240", "random", device="cpu")
    scorer = PromptDetector(clip, prompts="clip-ac")
    detector = WinCLIPDetector(clip, scorer=scorer, window_sizes=SIZES).fit()
    visual = load(clip).model.visual
    size = visual.image_size
    pixels = torch.randn(
        (N_IMAGES, 3, *size), generator=torch.Generator().manual_seed(0)
    )
    difference = np.abs(
        plain_maps(detector, pixels) - detector._model_maps(pixels, None)
    ).max()
    print(f"largest difference {difference:.1e}", flush=True)

    # In turn, so that both see the same machine.
    times: dict[str, list[float]] = {"plain": [], "fast": [], "speed": []}
    side = visual.grid_size[0]
    windows = [((side - k + 1) ** 2, k * k + 1) for k in SIZES]
    tokens = sum(count * length for count, length in windows)
    for _ in range(REPETITIONS):
        times["plain"].append(seconds(lambda: plain_maps(detector, pixels), 1))
        times["fast"].append(seconds(lambda: detector._model_maps(pixels, None), 1))
        times["speed"].append(matrix_speed(visual.conv1.out_channels, tokens))
    plain, fast = (statistics.median(times[k]) / N_IMAGES for k in ("plain", "fast"))
    print(f"per image: plain {plain:.2f} s, WinCLIPDetector {fast:.2f} s")
    print(f"ratio {plain / fast:.2f}")
    speed = statistics.median(times["speed"])
    pure = blocks_flops(visual, [*windows, (1, side**2 + 1)]) / speed
    print(
        f"matrix products of the blocks alone: {pure:.2f} s at {speed / 1e9:.0f} "
        f"GFLOP/s; WinCLIPDetector takes {fast / pure:.2f} times that"
    )


if __name__ == "__main__":
    main()
