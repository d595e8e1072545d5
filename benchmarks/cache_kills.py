"""The folder cache, used by processes that are killed at random.

Eight processes read and write the same 5,000 embeddings for a minute, each killed
after a random time and replaced. An embedding says which key it belongs to, so a wrong
one is noticed by whoever reads it. At the end the cache is verified and read whole.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import tempfile
import time
import warnings
from typing import Any

import numpy as np

from clipad_sklearn._clip.embedding_cache import FolderCache

ITEMS = 5_000
WIDTH = 512


def embedding(number: int) -> np.ndarray:
    return np.random.default_rng(number).random(WIDTH, dtype=np.float32)


def check(known: dict[str, np.ndarray]) -> int:
    """Return how many embeddings are wrong."""
    return sum(not np.array_equal(v, embedding(int(k))) for k, v in known.items())


def work(folder: str, seed: int, read: Any, written: Any, wrong: Any) -> None:
    warnings.simplefilter("error")
    cache = FolderCache(folder)
    choose = random.Random(seed)
    while True:
        numbers = choose.sample(range(ITEMS), 64)
        known = cache.get_many([str(n) for n in numbers])
        wrong.value += check(known)
        read.value += len(known)
        missing = [n for n in numbers if str(n) not in known or choose.random() < 0.1]
        cache.put_many({str(n): embedding(n) for n in missing})
        written.value += len(missing)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=60)
    arguments = parser.parse_args()
    context = multiprocessing.get_context("fork")
    # One counter each: a process that is killed may hold the lock of a shared one.
    counters: list[list[Any]] = []

    with tempfile.TemporaryDirectory() as folder:

        def start(seed: int) -> Any:
            counters.append([context.RawValue("q", 0) for _ in range(3)])
            process = context.Process(target=work, args=(folder, seed, *counters[-1]))
            process.start()
            return process

        choose = random.Random(0)
        processes = [start(seed) for seed in range(arguments.processes)]
        end, kills, failed = time.monotonic() + arguments.seconds, 0, 0
        while time.monotonic() < end:
            time.sleep(choose.uniform(0.05, 0.4))
            index = choose.randrange(len(processes))
            failed += not processes[index].is_alive()
            processes[index].kill()
            processes[index].join()
            kills += 1
            processes[index] = start(len(counters))
        for process in processes:
            failed += not process.is_alive()
            process.kill()
            process.join()
        cache = FolderCache(folder)
        counts = cache.verify()
        known = cache.get_many([str(n) for n in range(ITEMS)])
        read, written, wrong = np.sum([[c.value for c in row] for row in counters], 0)
        print(f"{kills} kills, {read} embeddings read, {written} written")
        print(f"wrong: {wrong + check(known)}, processes that failed: {failed}")
        print(f"verify: {counts}, readable at the end: {len(known)} of {ITEMS}")


if __name__ == "__main__":
    main()
