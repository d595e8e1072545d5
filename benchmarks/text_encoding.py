"""Encoding random-word prompts, against open_clip's plain way on the same weights.

The plain way pads every prompt to the full context of the model. Both take batches of
32, give the same embeddings and run on the CPU. Two ratios: of the text tower alone,
from token numbers to embeddings, and of everything, from prompts to embeddings (the
tokenizer is open_clip's in both). Timed by turns, the median of three; where other
programs run on the machine, the ratio of the CPU times is the one to look at. With
``--every 16`` only every 16th of our batches is timed, and the plain way on the
prompts of these.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from clipad_sklearn import OpenCLIP, random_word_prompts
from clipad_sklearn._clip.models import load
from clipad_sklearn._clip.settings import check_clip


def plain(clip: OpenCLIP, tokens: torch.Tensor) -> np.ndarray:
    model = load(clip).model
    with torch.inference_mode():
        batches = [
            model.encode_text(batch, normalize=True).numpy()
            for batch in tokens.split(clip.batch_size)
        ]
    return np.concatenate(batches)


def ours(
    clip: OpenCLIP, tokens: torch.Tensor, batches: list[tuple[np.ndarray, int]]
) -> np.ndarray:
    encode = load(clip).encode_tokens
    return np.concatenate([encode(tokens[rows], shared) for rows, shared in batches])


def timed(work: Callable[[], Any]) -> tuple[float, float, Any]:
    start, cpu = time.perf_counter(), time.process_time()
    result = work()
    return time.perf_counter() - start, time.process_time() - cpu, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clip", nargs="?", default="tiny")
    parser.add_argument("--prompts", type=int, default=20_000)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()

    clip = check_clip(arguments.clip).set_params(device="cpu", embedding_cache=None)
    pairs = random_word_prompts(-(-arguments.prompts // 2), random_state=0)
    prompts = [prompt for pair in zip(*pairs, strict=True) for prompt in pair]
    tokenize = load(clip).tokenize
    times = []
    for _ in range(arguments.runs):
        tokenizing = timed(lambda: tokenize(prompts))
        tokens = tokenizing[-1]
        grouping = timed(lambda t=tokens: load(clip).text_batches(t, 32))
        batches = grouping[-1][:: arguments.every]
        rows = np.concatenate([rows for rows, _ in batches])
        base = timed(lambda t=tokens[rows]: plain(clip, t))
        mine = timed(lambda t=tokens, b=batches: ours(clip, t, b))
        share = len(rows) / len(tokens)
        tokenizing = [share * part for part in tokenizing[:2]]
        mine = [*(mine[i] + share * grouping[i] for i in range(2)), mine[-1]]
        times.append([t for part in (tokenizing, base, mine) for t in part[:2]])
    medians = np.median(times, axis=0).reshape(3, 2)
    print(f"{arguments.clip}, {len(rows)} of {len(prompts)} prompts (CPU in brackets)")
    for name, (wall, cpu) in zip(("tokenizer", "plain", "ours"), medians, strict=True):
        print(f"{name:10s} {wall:.1f} s ({cpu:.1f} s)")
    for name, first in (("text tower", 0), ("with tokenizer", medians[0])):
        wall, cpu = (medians[1] + first) / (medians[2] + first)
        print(f"{name}: {wall:.1f} ({cpu:.1f}) times faster")
    print(f"difference {np.abs(base[-1] - mine[-1]).max():.1e} at most")


if __name__ == "__main__":
    main()
