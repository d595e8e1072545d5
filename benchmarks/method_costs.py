"""What methods cost, in passes of one image through the vision tower.

On one thread, so that the passes are comparable. The cost of 20,000 random-word prompts
is scaled up from some of them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from clipad_sklearn import (
    FeedForwardClassifier,
    PromptDetector,
    SDPDetector,
    SDPPlusDetector,
    WinCLIPDetector,
    random_word_prompts,
)
from clipad_sklearn._clip.models import load
from clipad_sklearn._clip.settings import check_clip
from clipad_sklearn.datasets import make_defect_images

N_IMAGES = 2
N_PAIRS = 300


def seconds(work: Callable[[], Any]) -> float:
    times = []
    for _ in range(2):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clip", nargs="?", default="ViT-B-16-plus-240/random")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    clip = check_clip(arguments.clip).set_params(
        device="cpu", batch_size=N_IMAGES, num_workers=1, embedding_cache=None
    )
    data = make_defect_images(N_IMAGES, size=240, random_state=0)
    images = data.images
    clip.encode_image(images)
    one_pass = seconds(lambda: clip.encode_image(images)) / N_IMAGES
    print(f"{arguments.clip}: one pass {1e3 * one_pass:.0f} ms")

    def passes(work: Callable[[], Any], share: float = 1) -> str:
        return f"{seconds(work) / share / one_pass:.2f} passes"

    plus = SDPPlusDetector(clip, n_epochs=1, random_state=0)
    for detector in (
        SDPDetector(clip).fit(),
        plus.fit(images, data.masks),
        WinCLIPDetector(clip).fit(),
    ):
        cost = passes(lambda d=detector: d.anomaly_maps(images, size="model"), N_IMAGES)
        print(f"{type(detector).__name__}, a map: {cost}")
    for prompts in ("clip-ac", "winclip", "clip-ad"):
        cost = passes(lambda p=prompts: PromptDetector(clip, prompts=p).fit())
        print(f"PromptDetector({prompts!r}), fit: {cost}")
    normal, anomalous = random_word_prompts(N_PAIRS, random_state=0)
    cost = passes(lambda: clip.encode_text(normal + anomalous), N_PAIRS / 10_000)
    print(f"20,000 random-word prompts: {cost}")
    width = load(clip).embedding_width
    X = np.random.default_rng(0).normal(size=(20_000, width)).astype(np.float32)
    network = FeedForwardClassifier(n_epochs=1, random_state=0)
    cost = passes(lambda: network.fit(X, np.repeat([1, -1], 10_000)), 1 / 5)
    print(f"training the default network on them: {cost}")


if __name__ == "__main__":
    main()
