"""What is written: where that cannot be, it is said early, and costs nothing else."""

from __future__ import annotations

import builtins
import contextlib
import errno
import inspect
import os
import re
import resource
import shutil
import signal
import struct
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
from PIL import Image
from processes import Forked

from clipad_sklearn import _files
from clipad_sklearn._cli.main import main
from clipad_sklearn._clip.source import TINY

pytestmark = pytest.mark.usefixtures("on_processor")

if not hasattr(os, "fork"):
    pytest.skip("needs processes as on Linux", allow_module_level=True)

PROMPT = ["--clip", "tiny", "--method", "prompt"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with four photos."""
    monkeypatch.chdir(tmp_path)
    os.mkdir("photos")
    rng = np.random.default_rng(0)
    for number in range(4):
        pixels = rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(f"photos/{number}.png")
    return tmp_path


def score(*options: str) -> int:
    detector = [] if "--load" in options else PROMPT
    return main(["score", "photos", *detector, *options])


CACHE = "c/embeddings-v1.sqlite"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--save", "photos/0.png"], "is one of the photos"),
        (["--save", "link.png"], "is one of the photos"),
        (["--good", "photos", "--save", "photos/1.png"], "is one of the photos"),
        (["--out", "a.csv", "--save", "./a.csv"], "is to be written twice"),
        (["--out", "a.csv", "--save", "to_a"], "is to be written twice"),
        (["--save", "pipe"], "is a pipe, not a file"),
        (["--save", "to_pipe"], "is a pipe, not a file"),
        (["--out", "pipe.csv"], "is a pipe, not a file"),
        (["--save", "photos"], "is a folder"),
        (["--load", "pipe"], "--load pipe: is not a file"),
        (["--load", "photos"], "--load photos: is not a file"),
        (["--out", "x" * 300 + ".csv"], "[Ff]ile name too long"),
        (["--method", "sdp", "--maps", "taken"], "regions.csv is there and was not"),
        (["--method", "sdp", "--maps", "listed"], "outputs.json is there and was not"),
        (["--method", "sdp", "--maps", "a_file"], "--maps a_file"),
        (["--maps", "m", "--out", "m/regions.csv"], "is to be written twice"),
        (["--maps", "m", "--save", "m/0.map.png"], "is to be written twice"),
        (["--maps", "m", "--save", "m/.clipad-outputs.json"], "to be written twice"),
        (["--embedding-cache", "c", "--save", CACHE], "is to be written twice"),
        (["--save", "/proc/saved"], "/proc/saved: "),
        (["--dask", "local", "--out", "taken"], "taken is not empty and holds no sc"),
        (["--dask", "local", "--out", "a_file"], "a_file is a file"),
        (["--dask", "local", "--out", "/proc/scores"], "--out /proc/scores: "),
    ],
)
def test_said_before_the_work(
    options: list[str], message: str, folder: Path, capsys: Any
) -> None:
    os.symlink("photos/0.png", "link.png")
    os.symlink("a.csv", "to_a")
    for name in ("pipe", "pipe.csv"):
        os.mkfifo(name)
    os.symlink("pipe", "to_pipe")
    for name in ("taken/regions.csv", "listed/.clipad-outputs.json"):
        os.makedirs(os.path.dirname(name))
        Path(name).write_text("somebody's own")
    Path("a_file").touch()
    if "--dask" in options:
        pytest.importorskip("pyarrow", reason="needs the extra [dask]")
    for name in ("m", "c"):
        os.mkdir(name)
    before = {path: path.lstat().st_mtime_ns for path in folder.rglob("*")}
    assert score(*options) == 2
    captured = capsys.readouterr()
    assert re.search(message, captured.err)
    assert "scoring" not in captured.err
    assert {path: path.lstat().st_mtime_ns for path in folder.rglob("*")} == before


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="root may give links away"
)
def test_links_of_other_users(folder: Path, capsys: Any) -> None:
    Path("kept.csv").write_text("kept")
    os.symlink("kept.csv", "planted.csv")
    os.lchown("planted.csv", 4321, 4321)
    assert score("--out", "planted.csv") == 2
    assert "planted.csv: is a link of another user" in capsys.readouterr().err
    assert Path("kept.csv").read_text() == "kept"
    os.lchown("planted.csv", 0, 0)
    assert score("--out", "planted.csv") == 0
    assert Path("kept.csv").read_text() != "kept"


def test_what_the_run_reads_is_not_written_over(
    folder: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(folder))
    for name in ("good.txt", "bad.txt"):
        Path(name).write_text("{}\n")
    shutil.copytree(TINY, "model")
    words = ["--normal", "good.txt", "--anomalous", "bad.txt"]
    in_model = os.path.join("model", "open_clip_model.safetensors")
    for options in (
        [*words, "--save", "good.txt"],
        [*words, "--save", "./bad.txt"],
        ["--clip", "./model", "--save", in_model],
        ["--clip", "~/model", "--save", in_model],
        ["--clip", f"ViT-S-16-alt/{in_model}", "--save", in_model],
    ):
        before = [path.read_bytes() for path in sorted(folder.rglob("*.*"))]
        with pytest.raises(SystemExit) as caught:
            main(["score", "photos", "--method", "prompt", *options])
        assert caught.value.code == 2
        assert "this run reads that file" in capsys.readouterr().err
        assert [path.read_bytes() for path in sorted(folder.rglob("*.*"))] == before


# -- in a process of its own ---------------------------------------------------------


def in_a_process(
    arguments: list[str],
    before: Callable[[], object] = lambda: None,
) -> tuple[int, str, str]:
    """Run the command; return its exit status, and what it printed."""

    def run() -> int:
        sys.argv = ["clipad", *arguments]
        before()
        sys.stdout, sys.stderr = _stream(1), _stream(2)
        return main()

    process = Forked(run)
    status = process.wait()
    return status, *process.printed


def _stream(number: int) -> Any:
    """As Python has it when a process starts."""
    try:
        return os.fdopen(number, "w")
    except OSError:
        return None


def test_a_full_disk_costs_nothing_else(folder: Path) -> None:
    """A disk with room for small files only."""
    options = ["--out", "scores.csv", "--save", "saved", "--report", "report.html"]
    status, out, error = in_a_process(
        ["score", "photos", *PROMPT, *options],
        lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000)),
    )
    assert status == 2, (out, error)
    assert "report.html was not written: File too large" in error
    assert "Traceback" not in error
    assert "wrote scores.csv" in out
    assert "wrote report.html" not in out
    assert {*os.listdir()} - {"saved"} == {"photos", "scores.csv"}


@pytest.mark.parametrize("options", [[], ["--report", "report.html"]])
def test_the_status_where_nobody_reads(options: list[str], folder: Path) -> None:
    """A photo was not read, and with options the report was not written."""

    def before() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))
        reader, writer = os.pipe()
        os.close(reader)
        os.dup2(writer, 1)

    (folder / "photos" / "broken.png").write_text("no photo")
    status, _, error = in_a_process(["score", "photos", *PROMPT, *options], before)
    assert status == (2 if options else 1)
    assert ("report.html was not written" in error) == bool(options)
    assert "Exception" not in error


def test_a_full_disk_for_temporary_files(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """A spreadsheet needs some, and is not written; all else is."""
    pytest.importorskip("openpyxl")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("openpyxl.worksheet._writer.create_temporary_file", full)
    options = ["--out", "scores.xlsx", "--save", "saved", "--report", "report.html"]
    assert score(*options) == 2
    shown = capsys.readouterr()
    assert "scores.xlsx was not written: No space left on device (there, " in shown.err
    assert "wrote report.html" in shown.out
    assert "wrote saved" in shown.out


def test_broken_metadata_are_said_once(folder: Path, capsys: Any) -> None:
    """Pillow counts each of thousands of entries."""
    n = 500
    entries = b"".join(struct.pack("<HHII", i, 2, 1000, 8) for i in range(n))
    exif = b"II*\0\x08\0\0\0" + struct.pack("<H", n) + entries + bytes(4)
    body = struct.pack(">I", len(exif)) + b"eXIf" + exif
    chunk = body + struct.pack(">I", zlib.crc32(body[4:]))
    photo = folder / "photos" / "0.png"
    content = photo.read_bytes()
    photo.write_bytes(content[:33] + chunk + content[33:])
    assert score() == 0
    assert capsys.readouterr().err.count("Skipping tag") <= 3


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["score", "--help"]])
def test_help_that_cannot_be_written(arguments: list[str], folder: Path) -> None:
    def before() -> None:
        os.dup2(os.open("/dev/full", os.O_WRONLY), 1)

    status, _, error = in_a_process(arguments, before)
    assert status == 2
    assert "No space left on device" in error


def test_more_than_the_memory(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def too_much(*_: Any, **__: Any) -> None:
        raise MemoryError("Unable to allocate 7.28 TiB")

    monkeypatch.setattr("clipad_sklearn._cli.score.obtain_detector", too_much)
    assert score() == 2
    error = capsys.readouterr().err
    assert "clipad: error: not enough memory" in error
    assert "Traceback" not in error


def test_a_full_disk_of_the_demo(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """The error names the file, and what it is the error of is not printed away."""
    save = Image.Image.save

    def full(image: Any, target: Any, *rest: Any) -> None:
        if "1" in str(getattr(target, "name", target)):
            raise OSError(errno.ENOSPC, "No space left on device")
        save(image, target, *rest)

    monkeypatch.setattr(Image.Image, "save", full)
    assert main(["demo", "--n", "4", "--out", "demo1"]) == 2
    shown = capsys.readouterr()
    assert ".png was not written: No space left on device" in shown.err
    print("still printed")
    assert "still printed" in capsys.readouterr().out


@pytest.mark.filterwarnings("always")
def test_warnings_name_the_first_photo(folder: Path, capsys: Any) -> None:
    for name in ("a", "b"):
        pixels = np.full((40, 40), 900, np.uint16)
        Image.fromarray(pixels).save(f"photos/{name}.png")
    assert score() == 0
    error = capsys.readouterr().err
    assert re.search(r"warning: A 16-bit .* \(first: photos/[ab]\.png\)\n", error)
    assert error.count("16-bit") == 1


def test_a_detector_of_another_version(folder: Path, capsys: Any) -> None:
    assert score("--save", "saved", "--no-cache") == 0
    detector = joblib.load("saved")
    del detector[-1].prototypes_
    joblib.dump(detector, "saved", compress=3)
    assert score("--load", "saved") == 2
    assert "--load saved: lacks what is needed to score" in capsys.readouterr().err


@pytest.mark.parametrize("case", ["closed", "full", "too large", "nobody reads"])
@pytest.mark.parametrize("number", [1, 2])
def test_streams_cost_no_result(case: str, number: int, folder: Path) -> None:
    if case == "full" and not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")

    def before() -> None:
        if case == "closed":
            os.close(number)
        elif case == "full":
            os.dup2(os.open("/dev/full", os.O_WRONLY), number)
        elif case == "too large":
            resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))
            log = os.open("log", os.O_WRONLY | os.O_CREAT)
            os.lseek(log, 9000, os.SEEK_SET)
            os.dup2(log, number)
        else:
            reader, writer = os.pipe()
            os.close(reader)
            os.dup2(writer, number)

    arguments = ["score", "photos", *PROMPT, "--out", "scores.csv"]
    status, out, error = in_a_process(arguments, before)
    assert os.path.exists("scores.csv"), (status, out, error)
    assert len(Path("scores.csv").read_text().splitlines()) == 5
    reason = {"full": "No space left on device", "too large": "File too large"}
    is_cut = case in reason and number == 1
    assert status == (2 if is_cut else 0)
    assert "Traceback" not in out + error
    assert (reason.get(case, "clipad: error") in error) == is_cut


def _raising_at(where: str, text: str, number: int) -> None:
    """Have this process sent a signal before a line of a function is run."""
    code = inspect.unwrap(getattr(_files, where)).__code__
    lines, first = inspect.getsourcelines(code)
    [at] = [i + first for i, line in enumerate(lines) if line.strip().startswith(text)]

    def trace(frame: Any, event: str, _: Any) -> Any:
        if frame.f_code is code and event == "line" and frame.f_lineno == at:
            sys.settrace(None)
            os.kill(os.getpid(), number)
        return trace

    sys.settrace(trace)


@pytest.mark.parametrize(
    ("number", "expected"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)],
)
@pytest.mark.parametrize(
    ("where", "text"),
    [
        ("new_file", "return path"),
        ("replacing", "yield temporary"),
        ("replacing", "os.replace("),
        ("replacing", "os.unlink("),
    ],
)
def test_an_interrupt_between_two_lines(
    number: int, expected: int, where: str, text: str, folder: Path
) -> None:
    def before() -> None:
        if number == signal.SIGHUP:  # which these tests may have been told to ignore
            signal.signal(number, signal.SIG_DFL)
        _raising_at(where, text, number)

    arguments = ["score", "photos", *PROMPT, "--out", "scores.csv"]
    status, _, error = in_a_process(arguments, before)
    assert status == expected, error
    assert "Traceback" not in error
    assert {*os.listdir()} <= {"photos", "scores.csv"}


@pytest.mark.parametrize("error", ["ImportError", "SystemError", "ValueError"])
def test_an_interrupt_that_becomes_an_error(
    error: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As code in C makes of one that comes while it is imported."""

    def before() -> None:
        def run(settings: Any) -> int:
            try:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(1)
            except KeyboardInterrupt:
                raise getattr(builtins, error)("initialization failed") from None
            return 0

        signal.signal(signal.SIGINT, signal.default_int_handler)
        monkeypatch.setattr("clipad_sklearn._cli.score.run", run)

    status, _, said = in_a_process(["score", "photos"], before)
    assert status == 130
    assert "initialization failed" not in said
    assert "clipad: interrupted" in said


def test_an_interrupt_in_a_destructor(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python drops the exception there."""

    class Dying:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)

    def before() -> None:
        def run(settings: Any) -> int:
            Dying()
            try:
                time.sleep(20)
            finally:
                Path("ended").touch()
            return 0

        signal.signal(signal.SIGINT, signal.default_int_handler)
        monkeypatch.setattr("clipad_sklearn._cli.main._GRACE_SECONDS", 20)
        monkeypatch.setattr("clipad_sklearn._cli.score.run", run)

    start = time.monotonic()
    status, _, said = in_a_process(["score", "photos"], before)
    assert status == 130
    assert time.monotonic() - start < 15
    assert Path("ended").exists()  # by an exception, not from outside
    assert "Traceback" not in said


def test_a_lost_terminal_that_is_ignored(folder: Path) -> None:
    """As `nohup` has it."""

    def before() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        _raising_at("replacing", "yield temporary", signal.SIGHUP)

    arguments = ["score", "photos", *PROMPT, "--out", "scores.csv"]
    assert in_a_process(arguments, before)[0] == 0
    assert Path("scores.csv").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_after_all_is_written(number: int, folder: Path) -> None:
    """Python itself may take seconds to end."""

    def run() -> None:
        sys.argv = ["clipad", "score", "photos", *PROMPT, "--out", "scores.csv"]
        assert main() == 0
        Path("done").touch()
        while True:
            time.sleep(1)

    process = Forked(run)
    process.wait_for(Path("done").exists)
    os.kill(process.pid, number)
    assert process.wait() == -number
    assert process.printed[1].count("nterrupt") == 0
    assert Path("scores.csv").exists()


def test_an_interrupt_that_gets_nowhere(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The main thread waits in a call that no exception ends."""

    def before() -> None:
        def run(settings: Any) -> int:
            os.kill(os.getpid(), signal.SIGTERM)
            for _ in range(100):
                with contextlib.suppress(KeyboardInterrupt):
                    time.sleep(1)
            return 0

        monkeypatch.setattr("clipad_sklearn._cli.score.run", run)

    start = time.monotonic()
    status, _, error = in_a_process(["score", "photos"], before)
    assert status == 143
    assert error.endswith("clipad: terminated\n")
    assert time.monotonic() - start < 10
