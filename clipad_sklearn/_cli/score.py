"""``clipad score``: from paths to a ranked table."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import sys
import threading
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from .._detectors.maps import resized
from .._files import error_words, scratch_folder
from .._score_images import check_out, score_images
from .._score_rows import Failures, has_margins, score_readable, scores_and_maps
from .detectors import Fitted, TileScorer, obtain_detector, save_detector
from .output import (
    UsageError,
    as_usage_error,
    check_writable,
    counted,
    printable,
    reader_may_leave,
    say,
    stage,
)
from .photos import Photos, find_photos
from .table import make_rows, print_table, versions, write_rows
from .threshold import Threshold, say_shift, set_threshold

if TYPE_CHECKING:
    from .arguments import ScoreSettings
    from .maps import Maps

_SHOWN = 20
_PARTITION = 1000  # photos
_CONNECT_SECONDS = 60  # longer than Dask itself tries


def run(settings: ScoreSettings) -> int:
    """Run ``clipad score``."""
    given = (
        settings.paths,
        settings.good,
        settings.calibrate[:1],
        (*settings.calibrate[1:], *settings.bad),
    )
    found = [
        find_photos(folders) if folders else Photos([], [], 0) for folders in given
    ]
    for note in (note for photos in found for note in photos.notes):
        say(note)
    n_unlisted = sum(photos.n_unreadable for photos in found)
    paths, references, good, bad = (photos.paths for photos in found)
    masks = [] if settings.ignore is None else [settings.ignore]
    taken = [*paths, *references, *good, *bad, *masks, *_cache_files(settings)]
    if settings.maps:
        from .maps import check_map_folder, map_files

        taken += map_files(settings.maps, paths, settings.map_format)
    check_writable(settings.files, taken)
    if settings.maps:
        check_map_folder(settings.maps, paths, settings.map_format)
    if settings.dask is not None:
        assert settings.out is not None
        try:
            check_out(settings.out)
        except OSError as error:
            raise UsageError(f"--out {settings.out}: {error_words(error)}") from error
        except ValueError as error:
            raise UsageError(_with_options(error)) from error
    stage(f"found {counted(len(paths), 'photo')}")
    if settings.dask is not None:
        status = _run_on_dask(settings, paths, references, good, bad)
        return max(status, int(n_unlisted > 0))

    fitted = obtain_detector(settings, paths, references)
    if fitted.clip.model_name == "tiny":
        stage('the CLIP is "tiny", which is for trying things out, not for real work')
    stage(f"scoring {counted(len(paths), 'photo')}")
    try:
        scored = _scored(settings, fitted, paths)
    except AttributeError as error:
        if settings.load is None:
            raise
        raise UsageError(
            f"--load {settings.load}: lacks what is needed to score ({error}); was it "
            "saved by another version?"
        ) from error
    margins, failures = scored.margins, scored.failures
    _say_failures(failures)
    threshold = set_threshold(settings, fitted, good, bad, paths, margins)
    errors = {index: reason for index, _, reason in failures}
    rows = make_rows(
        paths,
        margins,
        threshold.value,
        errors,
        is_margin=has_margins(fitted.detector),
        calibration_scores=getattr(fitted.last, "calibration_scores_", None),
    )
    for row in rows:
        if row["path"] in scored.tiles:
            row["tile"] = scored.tiles[row["path"]]
    lost = _write(settings, fitted, threshold, rows, scored)
    with reader_may_leave():
        if not settings.out:
            _print_rows(rows, threshold)
        _print_summary(settings, threshold, *_counts(rows), lost)
    _say_uncalibrated(settings, threshold, *_counts(rows)[:2])
    if settings.shift_test:
        say_shift(fitted, margins[np.isfinite(margins)])
    n_failures = len(failures) + threshold.n_unreadable + fitted.n_unreadable
    if lost:
        raise UsageError(*lost.values())
    return 1 if n_failures + n_unlisted + len(scored.without_map) else 0


def _cache_files(settings: ScoreSettings) -> list[str]:
    """Return what the cache writes."""
    from .._clip.embedding_cache import FolderCache, open_cache

    cache = open_cache(settings.clip_settings["embedding_cache"])
    if not isinstance(cache, FolderCache):
        return []
    return [f"{cache.path}{ending}" for ending in ("", "-wal", "-shm")]


# -- scores, and maps of the same pass ------------------------------------------


@dataclass
class _Scored:
    """What was found on the photos; by path, except margins and failures."""

    margins: np.ndarray
    failures: Failures
    tiles: dict[str, Any] = field(default_factory=dict)  # which decided
    heat_maps: dict[str, np.ndarray] = field(default_factory=dict)  # for the report
    maps: Maps | None = None
    without_map: list[tuple[str, str]] = field(default_factory=list)
    lost: str = ""  # why not all maps could be written


def _scored(settings: ScoreSettings, fitted: Fitted, paths: list[str]) -> _Scored:
    """Score the photos; write their maps, if asked for, while each is at hand."""
    tiled = hasattr(fitted.detector, "tile_scores")
    scorer = TileScorer(fitted.detector) if tiled else None
    if settings.maps or (settings.report and (settings.heat_maps or fitted.has_maps)):
        scored = _scored_with_maps(settings, fitted, paths, scorer)
    else:
        with as_usage_error():
            margins, _, failures = score_readable(scorer or fitted.detector, paths)
        scored = _Scored(margins, failures)
    if scorer is not None:
        scored.tiles = scorer.deciding()
    return scored


def _scored_with_maps(
    settings: ScoreSettings, fitted: Fitted, paths: list[str], scorer: Any
) -> _Scored:
    from .maps import write_maps
    from .report import MAP_SIDE

    mapper = fitted.map_detector()
    if not fitted.has_maps:
        stage("maps are of windows scored one by one, a dozen times as long")
    small = (MAP_SIDE, MAP_SIDE)
    scored = _Scored(np.full(len(paths), np.nan), [])
    at_work = False

    def found() -> Iterator[tuple[int, np.ndarray | None, str]]:
        nonlocal at_work
        at_work = True
        size = "image" if settings.maps else small
        for index, margin, anomaly_map, reason in scores_and_maps(
            fitted.detector, mapper, paths, size, scorer
        ):
            scored.margins[index] = margin
            if np.isnan(margin):
                scored.failures.append((index, paths[index], reason))
            elif anomaly_map is None:
                scored.without_map.append((paths[index], reason))
            elif settings.report:
                scored.heat_maps[paths[index]] = resized(anomaly_map, small)
            at_work = False
            yield index, anomaly_map, reason
            at_work = True
        at_work = False

    maps = found()
    try:
        if settings.maps:
            scored.maps = write_maps(paths, maps, settings.maps, settings.map_format)
    except UsageError as error:
        if at_work:  # it is not the writing that failed
            raise
        scored.lost = str(error)
    with as_usage_error():
        for _ in maps:  # which nobody asked for
            pass
    scored.failures.sort()
    return scored


# -- on a cluster --------------------------------------------------------------


def _run_on_dask(
    settings: ScoreSettings,
    paths: list[str],
    references: list[str],
    good: list[str],
    bad: list[str],
) -> int:
    """Score on a Dask cluster, into a folder of Parquet files."""
    assert settings.dask is not None
    assert settings.out is not None
    with _dask_client(settings.dask) as client:
        fitted = obtain_detector(settings, paths, references)
        threshold = set_threshold(settings, fitted, good, bad, paths, np.empty(0))
        if settings.save:
            save_detector(settings.save, fitted, settings.saved_clip_settings)
        stage(f"scoring {counted(len(paths), 'photo')} on {settings.dask}")
        with as_usage_error(), warnings.catch_warnings():
            # It is said below, in words of the command.
            warnings.filterwarnings("ignore", "All .* images ")
            try:
                done = score_images(
                    fitted.detector,
                    paths,
                    out=settings.out,
                    client=client,
                    partition_size=_partition_size(settings, len(paths)),
                )
            except (ImportError, RuntimeError) as error:
                raise UsageError(f"--dask: {_with_options(error)}") from error
            except ValueError as error:
                raise UsageError(_with_options(error)) from error
    n_scored = done.n_images - done.n_unreadable
    n_before = done.n_partitions - done.n_partitions_run
    if n_before:
        say(f"{n_before} of {done.n_partitions} partitions were already there")
    counts = n_scored, done.n_anomalous, done.n_unreadable
    if done.n_unreadable:
        _say_unreadable(done.folder)
    with reader_may_leave():
        _print_summary(settings, threshold, *counts)
    _say_uncalibrated(settings, threshold, *counts[:2])
    n_failures = done.n_unreadable + threshold.n_unreadable + fitted.n_unreadable
    return 1 if n_failures else 0


def _with_options(error: Exception) -> str:
    """Return the message with the options of the command for the parameters."""
    message = str(error).replace("`out`", "--out")
    return message.replace("`partition_size`", "--partition-size")


def _partition_size(settings: ScoreSettings, n_photos: int) -> int:
    """Return how many photos a worker takes at a time, so that none is idle."""
    if settings.partition_size is not None:
        return settings.partition_size
    if settings.dask != "local":
        return _PARTITION
    return max(1, min(_PARTITION, math.ceil(n_photos / (os.cpu_count() or 1))))


@contextlib.contextmanager
def _dask_client(address: str) -> Iterator[Any]:
    """Connect to a scheduler, or start one with a worker process per core."""
    try:
        from distributed import Client
    except ImportError as error:
        raise UsageError(
            '--dask needs Dask: python -m pip install "clipad-sklearn[dask]"'
        ) from error
    with contextlib.ExitStack() as stack:
        # What they log of a connection that ends, the command says in a line.
        for name in ("distributed", "tornado.application", "asyncio"):
            logger = logging.getLogger(name)
            stack.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.CRITICAL)
        try:
            if address == "local":
                stack.enter_context(_environment_of_workers())
                # That of Dask has a name that anybody can foresee.
                scratch = stack.enter_context(scratch_folder())
                client = _local_client(Client, scratch)
            else:
                client = _connected(Client, address)
        # RuntimeError: such as of a worker that does not start.
        except (ValueError, TypeError, OSError, RuntimeError) as error:
            hint = ""
            if address != "local":
                hint = (
                    " (expected local, or the address of a running scheduler such as "
                    "tcp://HOST:8786)"
                )
            raise UsageError(f"--dask {address}: {error}{hint}") from error
        yield stack.enter_context(client)


def _connected(client: Any, address: str) -> Any:
    """Connect to a scheduler, and not wait for ever for what is none."""
    found: list[Any] = []

    def connect() -> None:
        try:
            found.append(client(address))
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(_CONNECT_SECONDS)
    if not found:
        raise UsageError(
            f"--dask {address}: no scheduler of Dask has answered there for "
            f"{_CONNECT_SECONDS} seconds; is it the address of something else?"
        )
    if isinstance(found[0], Exception):
        raise found[0]
    return found[0]


def _local_client(client: Any, folder: str) -> Any:
    import dask

    # Dask has workers give memory back all the time, which costs torch much.
    trim = "distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_"
    with dask.config.set({trim: None, "temporary-directory": folder}):
        # On the loopback only: nobody else has a say.
        return client(
            threads_per_worker=1,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            silence_logs=logging.CRITICAL,
        )


@contextlib.contextmanager
def _environment_of_workers() -> Iterator[None]:
    """Keep the working directory from where new processes look for modules.

    Photos may lie there, and a file ``struct.py`` among them. Python 3.10 looks there
    all the same, so there must be none. And after an interrupt nobody wants to know
    what Python's process for semaphores had to clear away.
    """
    if sys.version_info < (3, 11) and (names := _modules_here()):
        raise UsageError(
            f"--dask local: with Python 3.10, workers look for modules in this folder, "
            f"which holds {', '.join(names[:3])}; start in another one"
        )
    warned = os.environ.get("PYTHONWARNINGS", "")
    ours = {
        "PYTHONSAFEPATH": "1",
        "PYTHONWARNINGS": f"{warned},ignore:resource_tracker:UserWarning".lstrip(","),
    }
    before = {name: os.environ.get(name) for name in ours}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


# -- results -------------------------------------------------------------------


def _write(
    settings: ScoreSettings,
    fitted: Fitted,
    threshold: Threshold,
    rows: list[dict[str, Any]],
    scored: _Scored,
) -> dict[str, str]:
    """Write all files that were asked for.

    Returns which could not be written, with the errors, as one that cannot costs none
    of the others.
    """
    about = _about(settings, fitted, threshold)

    def overlays(_: str) -> None:
        from .maps import write_overlays

        if scored.maps is None or not scored.maps.targets:
            return
        stage(f"writing overlays of {counted(len(scored.maps.targets), 'photo')}")
        map_threshold = float(fitted.map_detector().pixel_offset_)
        without, regions = write_overlays(scored.maps, map_threshold)
        scored.without_map += without
        if settings.out and settings.out.endswith((".json", ".xlsx")):
            # Once more: without the regions it was there before the overlays were.
            for row in rows:
                row["regions"] = regions.get(row["path"], [])
            write_rows(settings.out, rows, about)

    writers: list[tuple[str | None, Callable[[str], Any]]] = [
        (settings.out, lambda path: write_rows(path, rows, about)),
        (
            settings.save,
            lambda path: save_detector(path, fitted, settings.saved_clip_settings),
        ),
        (
            settings.report,
            lambda _: _write_report(settings, fitted, threshold, rows, about, scored),
        ),
        (settings.maps, overlays),
    ]
    lost: dict[str, str] = {}
    for path, write in writers:
        if path is not None:
            try:
                write(path)
            except UsageError as error:
                lost[path] = str(error)
    if settings.maps and scored.lost:
        lost[settings.maps] = scored.lost
    for path, reason in scored.without_map:
        say(f"no map or overlay: {path}: {reason}")
    return lost


def _about(
    settings: ScoreSettings, fitted: Fitted, threshold: Threshold
) -> dict[str, Any]:
    """Return what decided the scores, to be kept beside them."""
    about = asdict(settings)
    for name in (*settings.of_outputs, *settings.of_clip):
        del about[name]
    if settings.load is not None:
        about |= {"method": None, "random_state": None}
    return about | {
        "clip": fitted.clip.get_params(),
        "threshold_from": threshold.source,
        "summary": list(threshold.sentences),
    }


def _write_report(
    settings: ScoreSettings,
    fitted: Fitted,
    threshold: Threshold,
    rows: list[dict[str, Any]],
    about: dict[str, Any],
    scored: _Scored,
) -> None:
    from .report import write_report

    assert settings.report is not None
    maps, map_threshold = None, 0.5
    readable = [row["path"] for row in rows if row["rank"] is not None]
    if scored.heat_maps:
        maps = [scored.heat_maps.get(path) for path in readable]
        map_threshold = fitted.map_detector().pixel_offset_
    write_report(
        settings.report,
        rows,
        threshold=threshold.value,
        uncalibrated=threshold.source == "none",
        settings=about,
        versions=versions(),
        anomaly_maps=maps,
        map_threshold=map_threshold,
        title=settings.title,
        folder=", ".join(settings.paths),
        sentences=threshold.sentences,
        promise=threshold.promise,
        calibration_scores=getattr(fitted.last, "calibration_scores_", None),
    )


def _say_unreadable(folder: str) -> None:
    """Name the photos of a folder of Parquet files that could not be read."""
    from pyarrow import parquet

    rows = parquet.read_table(
        folder, columns=["path", "error"], filters=[("error", "!=", "")]
    )
    for row in rows.to_pylist():
        say(f"not read: {row['path']}: {row['error']}")


def _say_failures(failures: Sequence[tuple[int, str, str]]) -> None:
    for _, path, reason in failures:
        say(f"not read: {path}: {reason}")


def _counts(rows: list[dict[str, Any]]) -> tuple[int, int, int]:
    """Count the photos scored, those called anomalous, and those not read."""
    n_scored = sum(row["rank"] is not None for row in rows)
    n_anomalous = sum(row["verdict"] == "anomalous" for row in rows)
    return n_scored, n_anomalous, len(rows) - n_scored


def _print_rows(rows: list[dict[str, Any]], threshold: Threshold) -> None:
    scored = [row for row in rows if row["rank"] is not None]
    if not scored:
        return
    columns = ["rank", "margin", "path"]
    if threshold.source != "none":
        # What can be read: on which side of the threshold, and how far from it.
        columns = ["rank", "verdict", "to_threshold", "path"]
        if scored[0]["p_value"] is not None:
            columns.insert(3, "p_value")
    shown = [
        row | {"to_threshold": f"{row['margin'] - threshold.value:+.3f}"}
        for row in scored[:_SHOWN]
    ]
    print_table(shown, columns)
    if len(scored) > _SHOWN:
        print(f"... and {len(scored) - _SHOWN} more; write all with --out FILE.csv")
    else:
        print("Write this to a file with --out FILE.csv")


def _print_summary(
    settings: ScoreSettings,
    threshold: Threshold,
    n_scored: int,
    n_anomalous: int,
    n_unreadable: int,
    lost: Collection[str] = (),
) -> None:
    """Print what can be repeated to others, and what was written."""
    called = f"{n_anomalous} called anomalous, " * (threshold.source != "none")
    print(f"{n_scored} scored, {called}{n_unreadable} unreadable")
    for sentence in threshold.sentences:
        print(sentence)
    if threshold.source != "none":
        # With all digits: given back with --threshold, it gives the same verdicts.
        print(f"threshold {threshold.value!r} ({threshold.source})")
    for path in settings.written:
        if path in lost:
            continue
        print(f"wrote {printable(path)}")


def _modules_here() -> list[str]:
    """Return what Python could import from the working directory."""
    return [
        name
        for name in sorted(os.listdir())
        if name.endswith((".py", ".pyc", ".so", ".pyd"))
        or os.path.isfile(os.path.join(name, "__init__.py"))
    ]


def _say_uncalibrated(
    settings: ScoreSettings, threshold: Threshold, n_scored: int, n_anomalous: int
) -> None:
    if threshold.source == "none":
        one_sided = n_scored >= 20 and n_anomalous in (0, n_scored)
        say(
            "verdicts are uncalibrated"
            + (", and all the same" if one_sided else "")
            + ": only the ranking means something until a threshold is set with "
            + "--good, " * (not settings.good)
            + "--calibrate, --contamination or --threshold"
        )
