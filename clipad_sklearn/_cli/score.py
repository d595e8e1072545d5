"""``clipad score``: from paths to a ranked table."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.pipeline import Pipeline, make_pipeline

from .._clip.encoding import encode_images
from .._clip.image_encoder import CLIPImageEncoder
from .._clip.settings import check_clip
from .._detectors.base import is_uncalibrated, quantile_offset
from .._detectors.calibration import calibrate_threshold
from .._detectors.maps import embedding_detector
from .._score_images import score_images
from .._score_rows import check_detector, score_readable
from .methods import METHODS, Choices, fitted_detector
from .output import (
    UsageError,
    as_usage_error,
    check_writable,
    given_settings,
    printable,
    say,
    writing,
)
from .photos import find_photos
from .table import make_rows, print_table, versions, write_rows

if TYPE_CHECKING:
    from .._clip.settings import OpenCLIP
    from .._detectors.maps import MapDetector
    from .arguments import ScoreSettings

_SHOWN = 20


def run(settings: ScoreSettings) -> int:
    """Run ``clipad score``."""
    paths, notes = find_photos(settings.paths)
    for note in notes:
        say(note)
    calibration = [find_photos([folder])[0] for folder in settings.calibrate]
    files = [settings.report, settings.save]
    if settings.dask is None:
        files.append(settings.out)
    for path in files:
        if path is not None:
            check_writable(path)
    if settings.dask is not None:
        return _run_on_dask(settings, paths, calibration)
    detector, clip, mapper = _fitted_detector(settings)
    with as_usage_error():
        margins, features, failures = score_readable(detector, paths)
    _say_failures(failures)
    source, n_failures = _set_threshold(settings, detector, clip, calibration, features)
    n_failures += len(failures)
    errors = {index: reason for index, _, reason in failures}
    rows = make_rows(paths, margins, float(detector[-1].offset_), errors)

    about = _about(settings, clip, source)
    if settings.out:
        write_rows(settings.out, rows, about)
    if settings.report:
        _write_report(settings, rows, detector, mapper, clip, about)
    if mapper is not None and settings.maps:
        from .maps import write_maps

        images = [path for i, path in enumerate(paths) if i not in errors]
        write_maps(mapper, images, settings.maps, settings.map_format)
    _save(settings, detector)
    _print_rows(settings, rows)
    scored = [row for row in rows if row["rank"] is not None]
    n_anomalous = sum(row["verdict"] == "anomalous" for row in scored)
    counts = (len(scored), n_anomalous, len(rows) - len(scored))
    _print_result(settings, source, float(detector[-1].offset_), *counts)
    return 1 if n_failures else 0


# -- on a cluster --------------------------------------------------------------


def _run_on_dask(
    settings: ScoreSettings, paths: list[str], calibration: Sequence[list[str]]
) -> int:
    """Score on a Dask cluster, into a folder of Parquet files."""
    assert settings.dask is not None
    assert settings.out is not None
    with _dask_client(settings.dask) as client:
        detector, clip, _ = _fitted_detector(settings)
        source, n_failures = _set_threshold(settings, detector, clip, calibration)
        _save(settings, detector)
        with as_usage_error(), warnings.catch_warnings():
            # It is said below, in words of the command.
            warnings.filterwarnings("ignore", "All .* images ")
            done = score_images(detector, paths, out=settings.out, client=client)
    n_scored = done.n_images - done.n_unreadable
    n_before = done.n_partitions - done.n_partitions_run
    if n_before:
        say(f"{n_before} of {done.n_partitions} partitions were already there")
    counts = (n_scored, done.n_anomalous, done.n_unreadable)
    _print_result(settings, source, float(detector[-1].offset_), *counts)
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


# -- the detector --------------------------------------------------------------


def _fitted_detector(
    settings: ScoreSettings,
) -> tuple[Pipeline, OpenCLIP, MapDetector | None]:
    """Return what scores the photos, its CLIP, and what makes maps, if asked for."""
    if settings.load is not None:
        detector = _load(settings.load)
        with as_usage_error():
            clip = check_clip(detector[0].clip).set_params(**given_settings(settings))
        detector[0].clip = clip
        return detector, clip, None
    on_images = METHODS[settings.method].on_images
    if on_images and settings.maps:
        from .maps import check_map_folder

        check_map_folder(settings.maps)
    choices = Choices(
        class_name=settings.class_name,
        random_state=settings.random_state,
        layers=settings.layers,
    )
    with as_usage_error():
        clip = check_clip(settings.clip).set_params(**given_settings(settings))
        fitted = fitted_detector(settings.method, clip, choices)
    mapper = fitted if on_images else None
    # The image score of a detector on images is that of one on embeddings.
    last = embedding_detector(fitted) if on_images else fitted
    return make_pipeline(CLIPImageEncoder(clip), last), clip, mapper


def _load(path: str) -> Pipeline:
    import joblib

    say(f"{path}: a joblib file can run any code; load only what you trust")
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


def _save(settings: ScoreSettings, detector: Pipeline) -> None:
    if settings.save:
        import joblib

        with writing(settings.save) as temporary:
            # Compressed, because that comes with a checksum.
            joblib.dump(detector, temporary, compress=3)


# -- the threshold -------------------------------------------------------------


def _set_threshold(
    settings: ScoreSettings,
    detector: Pipeline,
    clip: OpenCLIP,
    calibration: Sequence[list[str]],
    features: Any = (),
) -> tuple[str, int]:
    """Set the threshold as asked for; `features` are what its last step scored.

    Returns where it comes from, and how many photos for it could not be read.
    """
    last = detector[-1]
    if calibration:
        scorer = detector[1:]
        return "--calibrate", _calibrate(settings, scorer, clip, calibration)
    if settings.threshold is not None:
        last.offset_ = settings.threshold
        return "--threshold", 0
    if settings.contamination is not None:
        last.set_params(contamination=settings.contamination)
        if len(features):
            scores = last.score_samples(features)
            last.offset_ = quantile_offset(scores, settings.contamination)
        return "--contamination", 0
    return "none" if is_uncalibrated(last) else "--load", 0


def _calibrate(
    settings: ScoreSettings,
    scorer: Pipeline,
    clip: OpenCLIP,
    folders: Sequence[list[str]],
) -> int:
    """Set the threshold from good, or good and bad, photos.

    Returns how many of them could not be read.
    """
    paths = [path for folder in folders for path in folder]
    label_of_folder = [1, *[-1] * (len(folders) - 1)]
    labels = np.repeat(label_of_folder, [len(folder) for folder in folders])
    bounded = settings.max_false_alarm is not None or len(folders) == 1
    share = 0.05 if settings.max_false_alarm is None else settings.max_false_alarm
    with as_usage_error():
        embeddings, failures = encode_images(clip, paths, "nan")
        _say_failures(failures)
        readable = np.isfinite(embeddings).all(axis=1)
        if len(np.unique(labels[readable])) < min(len(folders), 2):
            raise ValueError("--calibrate: a folder has no photo that can be read")
        calibrate_threshold(
            scorer,
            embeddings[readable],
            labels[readable] if len(folders) > 1 else None,
            strategy="max_false_alarm" if bounded else None,
            max_false_alarm=share,
        )
    n_good = int((labels[readable] == 1).sum())
    if bounded and 0 < share * n_good < 1:
        say(
            f"{share:g} of {n_good} good photos is less than one: the threshold is set "
            "so that none of them is called anomalous; more good photos make it finer"
        )
    return len(failures)


# -- results -------------------------------------------------------------------


def _about(settings: ScoreSettings, clip: OpenCLIP, source: str) -> dict[str, Any]:
    """Return what decided the scores, to be kept beside them."""
    about = asdict(settings)
    for name in ("out", "dask", "report", "heat_maps", "save", *given_settings(clip)):
        about.pop(name, None)
    if settings.load is not None:
        about |= {"method": None, "random_state": None}
    return about | {"clip": clip.get_params(), "threshold_from": source}


def _write_report(
    settings: ScoreSettings,
    rows: list[dict[str, Any]],
    detector: Pipeline,
    mapper: MapDetector | None,
    clip: OpenCLIP,
    about: dict[str, Any],
) -> None:
    from .report import MAP_SIDE, write_report

    assert settings.report is not None
    maps = None
    readable = [row["path"] for row in rows if row["rank"] is not None]
    if settings.heat_maps and readable:
        if mapper is None:
            from .._detectors.winclip import WinCLIPDetector

            # The detector that scored the photos scores their windows: no second fit.
            mapper = WinCLIPDetector(clip)
            mapper.scorer_ = detector[1:]
        with as_usage_error():
            maps = list(mapper.iter_anomaly_maps(readable, size=(MAP_SIDE, MAP_SIDE)))
    write_report(
        settings.report,
        rows,
        threshold=float(detector[-1].offset_),
        uncalibrated=about["threshold_from"] == "none",
        settings=about,
        versions=versions(),
        anomaly_maps=maps,
    )


def _say_failures(failures: Sequence[tuple[int, str, str]]) -> None:
    for _, path, reason in failures:
        say(f"not read: {path}: {reason}")


def _print_rows(settings: ScoreSettings, rows: list[dict[str, Any]]) -> None:
    scored = [row for row in rows if row["rank"] is not None]
    if settings.out is not None or not scored:
        return
    print_table(scored[:_SHOWN], ("rank", "p_anomaly", "margin", "verdict", "path"))
    if len(scored) > _SHOWN:
        print(f"... and {len(scored) - _SHOWN} more; write all with --out FILE.csv")
    else:
        print("Write this to a file with --out FILE.csv")


def _print_result(
    settings: ScoreSettings,
    source: str,
    offset: float,
    n_scored: int,
    n_anomalous: int,
    n_unreadable: int,
) -> None:
    print(
        f"{n_scored} scored, {n_anomalous} called anomalous, {n_unreadable} unreadable"
    )
    if source != "none":
        # With all digits: given back with --threshold, it gives the same verdicts.
        print(f"threshold {offset!r} ({source})")
    for path in (settings.out, settings.report, settings.save, settings.maps):
        if path is not None:
            print(f"wrote {printable(path)}")
    if source == "none":
        one_sided = n_scored >= 20 and n_anomalous in (0, n_scored)
        say(
            "verdicts are uncalibrated"
            + (", and all the same" if one_sided else "")
            + ": only the ranking means something until a threshold is set with "
            "--calibrate, --contamination or --threshold"
        )
