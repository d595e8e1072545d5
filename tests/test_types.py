"""What the package promises to type checkers with its ``py.typed``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mypy")

ROOT = Path(__file__).parents[1]
CONSUMER = ROOT / "tests" / "downstream" / "typed_consumer.py"
MISSPELT = """
import clipad_sklearn
from clipad_sklearn import RandomWrodDetector

clipad_sklearn.PromtDetector("tiny")
clipad_sklearn.RandomWordDetector("tiny", n_pair=10)
"""


def mypy(path: Path, cache: Path) -> str:
    """Check one file strictly, and nothing of what other packages say."""
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent"]
    command += ["--no-site-packages", "--ignore-missing-imports"]
    command += ["--config-file=", "--cache-dir", str(cache), str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return done.stdout


def test_consumer_and_misspelt_names(tmp_path: Path) -> None:
    # One test, so that the second check finds the cache of the first.
    found = mypy(CONSUMER, tmp_path / "cache")
    assert found.startswith("Success"), found
    misspelt = tmp_path / "misspelt.py"
    misspelt.write_text(MISSPELT)
    found = mypy(misspelt, tmp_path / "cache")
    for name in ("RandomWrodDetector", "PromtDetector", "n_pair"):
        assert f'"{name}"' in found, found
