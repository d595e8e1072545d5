"""A default `RandomWordDetector("tiny").fit()` with nothing cached."""

from __future__ import annotations

import time

from clipad_sklearn import OpenCLIP, RandomWordDetector


def main() -> None:
    detector = RandomWordDetector(OpenCLIP("tiny", embedding_cache=None))
    start, cpu = time.perf_counter(), time.process_time()
    detector.fit()
    elapsed, cpu = time.perf_counter() - start, time.process_time() - cpu
    print(f"fit {elapsed:.1f} s, loading included  (to be under 30)")
    print(f"CPU {cpu:.1f} s over all threads")


if __name__ == "__main__":
    main()
