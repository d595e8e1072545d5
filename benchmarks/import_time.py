"""What importing this package costs, against importing scikit-learn.

Prints ratios of medians; each import in a fresh process, by turns.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

_RUNS = 7
_IMPORTS = {
    "import sklearn": "import clipad_sklearn",
    "from sklearn.ensemble import IsolationForest": (
        "from clipad_sklearn import CLIPImageEncoder, RandomWordDetector"
    ),
}


def seconds(code: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - start


def main() -> None:
    for theirs, ours in _IMPORTS.items():
        times = [(seconds(theirs), seconds(ours)) for _ in range(_RUNS)]
        base, cost = map(statistics.median, zip(*times, strict=True))
        print(f"{base * 1000:5.0f} ms  {theirs}")
        print(f"{cost * 1000:5.0f} ms  {ours}")
        print(f"  ratio {cost / base:.2f}  (to be at most 1.3)")


if __name__ == "__main__":
    main()
