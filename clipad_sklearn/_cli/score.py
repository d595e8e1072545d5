"""``clipad score``: from paths to a ranked table."""

from __future__ import annotations

import argparse
import contextlib
import csv
import glob
import importlib.metadata
import io
import json
import os
import platform
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.pipeline import Pipeline, make_pipeline

from .._clip.encoding import encode_images
from .._clip.image_encoder import CLIPImageEncoder
from .._clip.settings import check_clip
from .._detectors.base import BaseDetector
from .._detectors.calibration import calibrate_threshold
from .._detectors.fusion import FusionDetector
from .._detectors.prompt import PromptDetector
from .._detectors.random_word import RandomWordDetector
from .._images import list_files
from .._score_images import score_images
from .._score_rows import (
    SCORE_COLUMNS,
    check_detector,
    error_row,
    score_readable,
    score_row,
)
from .._version import __version__
from .output import (
    UsageError,
    as_usage_error,
    check_writable,
    no_formula,
    printable,
    writing,
)

if TYPE_CHECKING:
    from .._clip.settings import OpenCLIP
    from .._detectors.maps import MapDetector

COLUMNS = ("path", "rank", *SCORE_COLUMNS[1:])
_SHOWN = 20
_VERSIONS = ("open_clip_torch", "torch", "scikit-learn", "numpy", "pillow")


def run(arguments: argparse.Namespace) -> int:
    """Run ``clipad score``."""
    paths, notes = find_images(arguments.paths)
    for note in notes:
        _say(note)
    calibration = [find_images([folder])[0] for folder in arguments.calibrate or ()]
    files = [arguments.report, arguments.save]
    if arguments.dask is None:
        files.append(arguments.out)
    for path in files:
        if path is not None:
            check_writable(path)
    if arguments.dask is not None:
        return _run_on_dask(arguments, paths, calibration)
    detector, clip, mapper = _fitted_detector(arguments)
    with as_usage_error():
        margins, features, failures = score_readable(detector, paths)
    _say_failures(failures)
    threshold, n_failures = _set_threshold(
        arguments, detector, clip, calibration, features
    )
    n_failures += len(failures)
    errors = {index: reason for index, _, reason in failures}
    rows = make_rows(paths, margins, float(detector[-1].offset_), errors)

    settings = _settings(arguments, clip, threshold)
    if arguments.out:
        write(arguments.out, rows, settings)
    if arguments.report:
        _write_report(arguments, rows, detector, mapper, clip, settings)
    if mapper is not None and arguments.maps:
        from .maps import write_maps

        images = [path for i, path in enumerate(paths) if i not in errors]
        write_maps(mapper, images, arguments.maps, arguments.map_format or "png")
    _save(arguments, detector)
    _report(rows, arguments, threshold, float(detector[-1].offset_))
    return 1 if n_failures else 0


def _run_on_dask(
    arguments: argparse.Namespace, paths: list[str], calibration: Sequence[list[str]]
) -> int:
    """Score on a Dask cluster, into a folder of Parquet files."""
    with _dask_client(arguments.dask) as client:
        detector, clip, _ = _fitted_detector(arguments)
        threshold, n_failures = _set_threshold(arguments, detector, clip, calibration)
        _save(arguments, detector)
        with as_usage_error(), warnings.catch_warnings():
            # It is said below, in words of the command.
            warnings.filterwarnings("ignore", "All .* images are called")
            done = score_images(detector, paths, out=arguments.out, client=client)
    n_scored = done.n_images - done.n_unreadable
    n_before = done.n_partitions - done.n_partitions_run
    if n_before:
        _say(f"{n_before} of {done.n_partitions} partitions were already there")
    counts = (n_scored, done.n_anomalous, done.n_unreadable)
    _say_result(arguments, threshold, float(detector[-1].offset_), *counts)
    return 1 if n_failures + done.n_unreadable else 0


@contextlib.contextmanager
def _dask_client(address: str) -> Iterator[Any]:
    """Connect to a scheduler, or start one with a worker process per core."""
    try:
        import dask
        from distributed import Client
    except ImportError as error:
        raise UsageError(
            '--dask needs Dask: python -m pip install "clipad-sklearn[dask]"'
        ) from error
    with as_usage_error():
        if address == "local":
            # Dask has workers give memory back all the time, which costs torch much.
            trim = "distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_"
            with dask.config.set({trim: None}):
                client = Client(threads_per_worker=1, dashboard_address=":0")
        else:
            client = Client(address)
    with client:
        yield client


def _save(arguments: argparse.Namespace, detector: Pipeline) -> None:
    if arguments.save:
        import joblib

        with writing(arguments.save) as temporary:
            # Compressed, because that comes with a checksum.
            joblib.dump(detector, temporary, compress=3)


def _say(message: str) -> None:
    print(f"clipad: {printable(message)}", file=sys.stderr)


def _say_failures(failures: Sequence[tuple[int, str, str]]) -> None:
    for _, path, reason in failures:
        _say(f"not read: {path}: {reason}")


# -- which images --------------------------------------------------------------


def find_images(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the paths of the images that the arguments name, each file once.

    Also returns remarks on arguments that name none.
    """
    found: dict[str, str] = {}  # real path -> path as given
    notes = []
    for argument in arguments:
        paths, others = _expand(argument)
        if not paths:
            notes.append(f"no image found in {argument}")
        if others:
            notes.append(f"{argument}: {_left_out(others)}")
        for path in paths:
            found.setdefault(os.path.normcase(os.path.realpath(path)), path)
    paths = list(found.values())
    if not any(os.path.exists(path) for path in paths):
        raise UsageError("no image found: " + ", ".join(arguments))
    return paths, notes


def _expand(argument: str) -> tuple[list[str], list[str]]:
    """Return what an argument names, and files of folders that are no images."""
    if os.path.isdir(argument):
        return list_files(argument)
    if os.path.lexists(argument) or not glob.has_magic(argument):
        return [argument], []
    paths: list[str] = []
    others: list[str] = []
    for match in sorted(glob.glob(argument, recursive=True)):
        images, rest = list_files(match) if os.path.isdir(match) else ([match], [])
        paths += images
        others += rest
    return paths, others


def _left_out(others: list[str]) -> str:
    """Count files that are not taken for images, by their endings."""
    kinds = Counter(os.path.splitext(p)[1].lower() or "no ending" for p in others)
    ordered = sorted(kinds.items(), key=lambda item: (-item[1], item[0]))
    listed = ", ".join(f"{kind} {count}" for kind, count in ordered[:5])
    more = ", ..." if len(kinds) > 5 else ""
    return f"{len(others)} other files left out ({listed}{more})"


# -- the detector --------------------------------------------------------------


def new_detector(
    method: str, clip: Any, *, class_name: str | None = None, random_state: int = 0
) -> Pipeline:
    """Return the unfitted detector that ``--method`` stands for."""

    def words() -> RandomWordDetector:
        return RandomWordDetector(
            clip, class_name=class_name, random_state=random_state
        )

    def prompts() -> PromptDetector:
        return PromptDetector(clip, class_name=class_name or "object")

    detector: BaseDetector
    if method == "random-word":
        detector = words()
    elif method == "prompt":
        detector = prompts()
    else:
        detector = FusionDetector([("words", words()), ("prompts", prompts())])
    return make_pipeline(CLIPImageEncoder(clip), detector)


def _fitted_detector(
    arguments: argparse.Namespace,
) -> tuple[Pipeline, OpenCLIP, MapDetector | None]:
    """Return what scores the images, its CLIP, and what makes maps, if asked for."""
    mapper = None
    if arguments.method in ("winclip", "sdp", "sdp+"):
        mapper = _new_map_detector(arguments)
        # Its image score is that of a detector on embeddings.
        encoder = CLIPImageEncoder(mapper.clip)
        detector = make_pipeline(encoder, mapper._embedding_detector)
    else:
        detector = _load(arguments.load) if arguments.load else _new_detector(arguments)
    clip = _set_clip(detector[0], arguments)
    if mapper is None and not arguments.load:
        with as_usage_error():
            detector.fit(None)
    return detector, clip, mapper


def _new_detector(arguments: argparse.Namespace) -> Pipeline:
    with as_usage_error():
        clip = _with_settings(check_clip(arguments.clip), arguments)
    return new_detector(
        arguments.method or "random-word",
        clip,
        class_name=arguments.class_name,
        random_state=arguments.random_state or 0,
    )


def _new_map_detector(arguments: argparse.Namespace) -> MapDetector:
    from .maps import check_map_folder, fitted_map_detector

    if arguments.maps:
        check_map_folder(arguments.maps)
    with as_usage_error():
        clip = _with_settings(check_clip(arguments.clip), arguments)
    scorer = new_detector(
        arguments.scorer or "prompt",
        clip,
        class_name=arguments.class_name,
        random_state=arguments.random_state or 0,
    )[-1]
    return fitted_map_detector(
        arguments.method, clip, scorer, arguments.class_name, arguments.layers
    )


def _load(path: str) -> Pipeline:
    import joblib

    _say(f"{path}: a joblib file can run any code; load only what you trust")
    try:
        detector = joblib.load(path)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise UsageError(f"--load {path}: cannot be loaded ({reason})") from error
    try:
        check_detector(detector)
    except (TypeError, ValueError) as error:
        raise UsageError(f"--load {path}: {error}") from error
    return detector


def _set_clip(encoder: CLIPImageEncoder, arguments: argparse.Namespace) -> OpenCLIP:
    """Give the encoder the settings that were asked for, and return its CLIP."""
    with as_usage_error():
        encoder.clip = _with_settings(check_clip(encoder.clip), arguments)
    return encoder.clip


def _with_settings(clip: OpenCLIP, arguments: argparse.Namespace) -> OpenCLIP:
    names = ("device", "batch_size", "precision", "embedding_cache")
    given = {name: getattr(arguments, name) for name in names}
    return clip.set_params(**{k: v for k, v in given.items() if v is not None})


def _set_threshold(
    arguments: argparse.Namespace,
    detector: Pipeline,
    clip: OpenCLIP,
    calibration: Sequence[list[str]],
    features: Any = (),
) -> tuple[str, int]:
    """Set the threshold as asked for; `features` are what its last step scored.

    Returns where it comes from, and how many images for it could not be read.
    """
    last = detector[-1]
    if calibration:
        scorer = detector[1:]
        n_failures = _calibrate(scorer, clip, calibration, arguments.max_false_alarm)
        return "--calibrate", n_failures
    if arguments.threshold is not None:
        last.offset_ = arguments.threshold
        return "--threshold", 0
    if arguments.contamination is not None:
        last.set_params(contamination=arguments.contamination)
        if len(features):
            last._set_offset(features)
        return "--contamination", 0
    return "none" if last._is_uncalibrated else "--load", 0


def _calibrate(
    scorer: Pipeline,
    clip: OpenCLIP,
    folders: Sequence[list[str]],
    max_false_alarm: float | None,
) -> int:
    """Set the threshold from good, or good and bad, images.

    Returns how many of them could not be read.
    """
    paths = [path for folder in folders for path in folder]
    of_folder = [1, *[-1] * (len(folders) - 1)]
    labels = np.repeat(of_folder, [len(folder) for folder in folders])
    with as_usage_error():
        embeddings, failures = encode_images(clip, paths, "nan")
        _say_failures(failures)
        readable = np.isfinite(embeddings).all(axis=1)
        if len(np.unique(labels[readable])) < min(len(folders), 2):
            raise ValueError("--calibrate: a folder has no image that can be read")
        share = 0.05 if max_false_alarm is None else max_false_alarm
        calibrate_threshold(
            scorer,
            embeddings[readable],
            labels[readable] if len(folders) > 1 else None,
            strategy=None if max_false_alarm is None else "max_false_alarm",
            max_false_alarm=share,
        )
    n_good = int((labels[readable] == 1).sum())
    bounded = max_false_alarm is not None or len(folders) == 1
    if bounded and 0 < share * n_good < 1:
        _say(
            f"{share:g} of {n_good} good photos is less than one: the threshold is set "
            "so that none of them is called anomalous; more good photos make it finer"
        )
    return len(failures)


# -- results -------------------------------------------------------------------


def make_rows(
    paths: Sequence[str],
    margins: np.ndarray,
    threshold: float,
    errors: dict[int, str] | None = None,
) -> list[dict[str, Any]]:
    """Return the rows of the table, most suspicious first, unreadable images last.

    Equal margins are ranked by path.
    """
    rows = []
    # NaN has no place in an order: it would spoil that of the others.
    readable = np.flatnonzero(np.isfinite(margins)).tolist()
    order = sorted(readable, key=lambda i: (margins[i], paths[i]))
    for rank, i in enumerate(order, start=1):
        row = score_row(paths[i], float(margins[i]), threshold)
        rows.append({"path": None, "rank": rank} | row)
    for i, reason in sorted((errors or {}).items()):
        rows.append({"path": None, "rank": None} | error_row(paths[i], reason))
    return rows


def write(path: str, rows: list[dict[str, Any]], settings: Any = None) -> None:
    """Write the rows to a CSV file, or with the settings to a JSON file, in one go."""
    if path.endswith(".json"):
        report = {"settings": settings, "versions": versions(), "scores": rows}
        # ASCII keeps even names that are not valid Unicode, and can be read back.
        text = json.dumps(report, indent=1, default=str, allow_nan=False) + "\n"
    else:
        text = _csv(rows)
    # What is not valid Unicode in a name becomes a backslash escape.
    content = text.encode("utf-8", "backslashreplace")
    with writing(path) as temporary, open(temporary, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def versions() -> dict[str, str]:
    """Return what ran: this package, Python, and the packages that matter."""
    return {
        "clipad-sklearn": __version__,
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in _VERSIONS},
    }


def _write_report(
    arguments: argparse.Namespace,
    rows: list[dict[str, Any]],
    detector: Pipeline,
    mapper: MapDetector | None,
    clip: OpenCLIP,
    settings: dict[str, Any],
) -> None:
    from .report import MAP_SIDE, write_report

    maps = None
    readable = [row["path"] for row in rows if row["rank"] is not None]
    if arguments.heat_maps and readable:
        if mapper is None:
            from .._detectors.winclip import WinCLIPDetector

            # The detector that scored the photos scores their windows: no second fit.
            mapper = WinCLIPDetector(clip)
            mapper.scorer_ = detector[1:]
        with as_usage_error():
            maps = list(mapper.iter_anomaly_maps(readable, size=(MAP_SIDE, MAP_SIDE)))
    write_report(
        arguments.report,
        rows,
        threshold=float(detector[-1].offset_),
        uncalibrated=settings["threshold_from"] == "none",
        settings=settings,
        versions=versions(),
        anomaly_maps=maps,
    )


def _csv(rows: list[dict[str, Any]]) -> str:
    buffer = io.StringIO(newline="")
    # Only so are line breaks of both kinds quoted, wherever they stand.
    writer = csv.DictWriter(
        buffer, COLUMNS, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC
    )
    writer.writeheader()
    for row in rows:
        writer.writerow(row | {"path": no_formula(row["path"])})
    return buffer.getvalue()


def _settings(
    arguments: argparse.Namespace, clip: OpenCLIP, threshold: str
) -> dict[str, Any]:
    names = (
        "paths", "method", "class_name", "random_state", "load",
        "scorer", "layers", "maps", "map_format",
    )  # fmt: skip
    settings = {name: getattr(arguments, name) for name in names}
    if not arguments.load:
        settings["method"] = arguments.method or "random-word"
        settings["random_state"] = arguments.random_state or 0
    return {
        **settings,
        "clip": clip.get_params(),
        "threshold_from": threshold,
        "contamination": arguments.contamination,
        "calibrate": arguments.calibrate,
        "max_false_alarm": arguments.max_false_alarm,
    }


def _report(
    rows: list[dict[str, Any]],
    arguments: argparse.Namespace,
    threshold: str,
    offset: float,
) -> None:
    scored = [row for row in rows if row["rank"] is not None]
    anomalous = sum(row["verdict"] == "anomalous" for row in scored)
    if arguments.out is None and scored:
        print_table(scored[:_SHOWN], ("rank", "p_anomaly", "margin", "verdict", "path"))
        if len(scored) > _SHOWN:
            print(f"... and {len(scored) - _SHOWN} more; write all with --out FILE.csv")
        else:
            print("Write this to a file with --out FILE.csv")
    n_unreadable = len(rows) - len(scored)
    counts = (len(scored), anomalous, n_unreadable)
    _say_result(arguments, threshold, offset, *counts)


def _say_result(
    arguments: argparse.Namespace,
    threshold: str,
    offset: float,
    n_scored: int,
    n_anomalous: int,
    n_unreadable: int,
) -> None:
    print(
        f"{n_scored} scored, {n_anomalous} called anomalous, {n_unreadable} unreadable"
    )
    if threshold != "none":
        # With all digits: given back with --threshold, it gives the same verdicts.
        print(f"threshold {float(offset)!r} ({threshold})")
    written = (arguments.out, arguments.report, arguments.save, arguments.maps)
    for path in written:
        if path is not None:
            print(f"wrote {printable(path)}")
    if threshold == "none":
        one_sided = n_scored >= 20 and n_anomalous in (0, n_scored)
        _say(
            "verdicts are uncalibrated"
            + (", and all the same" if one_sided else "")
            + ": only the ranking means something until a threshold is set with "
            "--calibrate, --contamination or --threshold"
        )


def print_table(rows: list[dict[str, Any]], columns: Sequence[str]) -> None:
    """Print rows in aligned columns; the last one, a path, may be of any length."""
    table = [list(columns)]
    for row in rows:
        values = [row[name] for name in columns]
        table.append(
            [f"{v:.3f}" if isinstance(v, float) else printable(str(v)) for v in values]
        )
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    widths[-1] = 0
    for line in table:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        print("  ".join(cells).rstrip())
