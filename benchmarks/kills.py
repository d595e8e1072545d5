"""The command, killed at random moments while it writes each kind of output.

Every run is a process of its own, forked from one that has imported the libraries, and
gets SIGKILL, SIGTERM or SIGINT: half of them at a random moment of the run, half while
a file is being written. Afterwards every output has to be complete, as it was before or
not there; runs that could clean up must have left no unfinished file and ended within
two seconds; and the same command, run once more, has to give what an undisturbed run
gives. `benchmarks/cache_kills.py` does the same to the cache alone, with eight
processes at once.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import sklearn.linear_model  # noqa: F401  so that forked runs need not import it
import torch  # noqa: F401
from PIL import Image

from clipad_sklearn import _score_images  # noqa: F401
from clipad_sklearn._cli import benchmark, demo, maps, report, score  # noqa: F401
from clipad_sklearn._cli.main import main as command
from clipad_sklearn._clip import loaded_model  # noqa: F401
from clipad_sklearn._clip.embedding_cache import FolderCache
from clipad_sklearn.datasets import make_defect_images

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
PROMPT = "score photos --clip tiny --method prompt"
# Kind of output -> arguments that write it, and what it is called.
OUTPUTS = {
    "out": (f"{PROMPT} --out scores.csv", "scores.csv"),
    "save": (f"{PROMPT} --save detector.joblib", "detector.joblib"),
    "report": (f"{PROMPT} --report report.html", "report.html"),
    "maps": ("score photos/good --clip tiny --method sdp --maps maps", "maps"),
    "benchmark": (
        "benchmark --data folder --root photos --clip tiny --methods prompt,sdp "
        "--draws 100 --out results",
        "results",
    ),
    "dask": (f"{PROMPT} --dask local --out parts", "parts"),
    "cache": (f"{PROMPT} --out cached.csv", "cached.csv"),
}
# Killed runs of these begin without a cache, and the runs that resume them have one.
WITHOUT_CACHE = ("dask", "cache")


# -- one run -------------------------------------------------------------------------


def start(arguments: str, folder: Path) -> int:
    """Start a run in a folder and return its process."""
    process = os.fork()
    if process:
        return process
    os.setsid()
    os.chdir(folder)
    os.environ["CLIPAD_CACHE"] = str(folder / "cache")
    log = os.open("log", os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
    os.dup2(log, 1)
    os.dup2(log, 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = ["clipad", *arguments.split()]
    sys.exit(command())


def start_alone(arguments: str, folder: Path) -> int:
    """As `start`, for runs that start processes of their own."""
    with open(folder / "log", "w") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "clipad_sklearn", *arguments.split()],
            cwd=folder,
            env=os.environ | {"CLIPAD_CACHE": str(folder / "cache")},
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        ).pid


def wait(process: int, seconds: float) -> int | None:
    """Return the exit status, negative after a signal, or None if it runs longer."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found, status = os.waitpid(process, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    return None


def unfinished(folder: Path) -> list[Path]:
    """List the unfinished files of runs."""
    return [path for path in folder.rglob(".clipad-*") if path.suffix != ".json"]


def left_alone(session: int, seconds: float = 10) -> list[int]:
    """List the processes of a session that outlive it."""
    end = time.monotonic() + seconds
    while True:
        left = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == session and fields[0] != "Z":
                left.append(int(stat.parent.name))
        if not left or time.monotonic() > end:
            return left
        time.sleep(0.1)


# -- what outputs have to be ---------------------------------------------------------


def content(path: Path) -> Any:
    """Return what has to be the same in every complete output; fail for others."""
    if path.is_dir():
        return {
            p.relative_to(path).as_posix(): content(p)
            for p in sorted(path.rglob("*"))
            if p.is_file() and p not in unfinished(path)
        }
    if path.suffix == ".joblib":
        return float(joblib.load(path)[-1].offset_)
    if path.suffix == ".html":
        text = path.read_text("utf-8")
        assert text.rstrip().endswith("</html>")
        data = text.partition('id="data">')[2].partition("</script>")[0]
        return {photo["path"] for photo in json.loads(data)["photos"]}
    if path.suffix == ".png":
        return np.asarray(Image.open(path)).tobytes()
    if path.suffix == ".parquet":
        import pyarrow.parquet

        return pyarrow.parquet.read_table(path).to_pylist()
    if path.suffix == ".json":
        found = json.loads(path.read_text())
        if isinstance(found, dict):
            # All but the first depend on where the folder and its cache are.
            for name in ("times", "images", "job", "detector", "settings"):
                found.pop(name, None)
        return found
    return "" if path.name == "times.csv" else path.read_text("utf-8")


def is_part_of(found: Any, whole: Any) -> bool:
    """Whether a folder holds nothing but what it will hold."""
    if isinstance(whole, dict) and isinstance(found, dict):
        return all(name in whole for name in found)
    return bool(found == whole)


# -- all of them -----------------------------------------------------------------------


def write_photos(folder: Path, n: int) -> None:
    data = make_defect_images(n, size=96, random_state=0)
    for number, (pixels, target) in enumerate(
        zip(data.images, data.target, strict=True)
    ):
        path = folder / ("good" if target == 1 else "bad") / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)


def killed(
    kind: str, number: signal.Signals, folder: Path, seconds: float, choose: Any
) -> tuple[list[str], float]:
    """Kill one run; return what is wrong, and how long the run took to end."""
    arguments, _ = OUTPUTS[kind]
    begin: Callable[..., int] = start_alone if kind == "dask" else start
    process = begin(arguments, folder)
    status = None
    if choose.random() < 0.5:
        status = wait(process, choose.uniform(0, 1.1 * seconds))
    else:
        end = time.monotonic() + 2 * seconds
        while status is None and time.monotonic() < end and not unfinished(folder):
            status = wait(process, 0.0005)
        status = wait(process, choose.uniform(0, 0.004)) if status is None else status
    start_of_end = time.monotonic()
    if status is None:
        os.kill(process, number)
        status = wait(process, 30)
    took = time.monotonic() - start_of_end
    wrong = []
    if status is None:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        wrong.append("it went on for 30 s")
    log = (folder / "log").read_text()
    # Without a word: before the command had begun, or after it had ended.
    is_silent = number == signal.SIGKILL or "terrupt" not in log
    expected = {0, -number} if is_silent else {0, 128 + number}
    if status is not None and status not in {*expected, 128 + number}:
        wrong.append(f"exit status {status}, {log[-300:]!r}")
    if number != signal.SIGKILL and (left := unfinished(folder)):
        wrong.append(f"left {[path.name for path in left]}")
    if kind == "dask" and (alive := left_alone(process)):
        wrong.append(f"{len(alive)} processes outlive it")
    return wrong, took


def try_all(kind: str, n: int, root: Path, choose: Any) -> None:
    arguments, name = OUTPUTS[kind]
    begin: Callable[..., int] = start_alone if kind == "dask" else start
    shutil.copytree(root / "photos", root / "whole" / "photos", dirs_exist_ok=True)
    whole = root / "whole"
    begun = time.monotonic()
    status = wait(begin(arguments, whole), 600)
    seconds = time.monotonic() - begun
    assert status == 0, (whole / "log").read_text()
    (whole / "cache").mkdir(exist_ok=True)
    if kind not in WITHOUT_CACHE:
        begun = time.monotonic()
        wait(begin(arguments, whole), 600)
        seconds = time.monotonic() - begun
    expected = content(whole / name)
    for number in SIGNALS:
        faults: list[str] = []
        longest = 0.0
        for turn in range(n):
            folder = root / f"{kind}-{number.name}-{turn}"
            folder.mkdir()
            (folder / "photos").symlink_to(root / "photos")
            if kind not in WITHOUT_CACHE:  # what is known need not be computed again
                shutil.copytree(whole / "cache", folder / "cache")
            has_earlier = turn % 2 and (whole / name).is_file()
            if has_earlier:
                shutil.copy(whole / name, folder / name)
            wrong, took = killed(kind, number, folder, seconds, choose)
            longest = max(longest, took)
            try:
                there = (folder / name).exists()
                if there and not is_part_of(content(folder / name), expected):
                    wrong.append("torn, or other than an undisturbed one")
                if has_earlier and not there:
                    wrong.append("the earlier output is gone")
                if kind in WITHOUT_CACHE and (folder / "cache").is_dir():
                    assert FolderCache(folder / "cache").verify()["damaged"] == 0
                if wait(begin(arguments, folder), 600) != 0:
                    wrong.append("a second run failed: " + (folder / "log").read_text())
                elif content(folder / name) != expected:
                    wrong.append("a second run gives something else")
            except Exception as error:
                wrong.append(repr(error))
            faults += [f"{kind}, {number.name}, {turn}: {text}" for text in wrong]
            shutil.rmtree(folder)
        print(
            f"{kind}, {number.name}: {n} kills, run of {seconds:.1f} s, ended after at "
            f"most {longest:.2f} s, faults: {len(faults)}",
            *faults,
            sep="\n  ",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=10, help="of each signal")
    parser.add_argument("--outputs", nargs="+", choices=OUTPUTS, default=[*OUTPUTS])
    parser.add_argument("--photos", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    settings = parser.parse_args()
    root = Path(tempfile.mkdtemp())
    write_photos(root / "photos", settings.photos)
    for kind in settings.outputs:
        try_all(kind, settings.kills, root, random.Random(settings.seed))
    shutil.rmtree(root)


if __name__ == "__main__":
    main()
