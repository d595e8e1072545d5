"""`score_images`: more images than one machine scores, on Dask, safe when killed."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import json
import numbers
import os
import pickle
import socket
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import joblib
from sklearn.utils import Bunch

from ._clip.models import load
from ._detectors.base import BaseDetector, warn_if_one_sided
from ._detectors.class_names import last_step
from ._files import (
    UNFINISHED,
    check_can_write,
    check_not_special,
    parsed_json,
    replacing,
)
from ._images import check_images
from ._score_rows import (
    SCORE_COLUMNS,
    check_detector,
    clips_of,
    error_row,
    has_margins,
    p_values_of,
    score_readable,
    score_row,
    threshold_of,
)
from ._version import __version__

if TYPE_CHECKING:
    from distributed import Client

# Readers of data sets pass over names that begin with a dot or an underscore.
_MANIFEST = "_manifest.json"
# How often Dask runs a partition again that raised an error, elsewhere if it can.
_RETRIES = 2
# Partitions sent ahead for each thread, so that none waits and the scheduler need not
# hold the whole list of images.
_AHEAD = 4
# Seconds after which a look is taken at whether there are workers, and a scheduler.
_PATIENCE = 5
# More images than this in one partition are not what workers die of.
_MOST_DEADLY = 8


def score_images(
    detector: Any,
    images: Sequence[str | os.PathLike[str]],
    *,
    out: str | os.PathLike[str],
    client: Client | None = None,
    partition_size: int = 1000,
) -> Bunch:
    """Score any number of images into a folder of Parquet files, and resume there.

    The list of images is cut into partitions. Each is scored by one thread of one Dask
    worker, which writes one file, complete or not at all. Called again with the same
    arguments, after whatever ended it, the function runs what is not finished.

    Parameters
    ----------
    detector : estimator
        Fitted: a Pipeline that begins with a :class:`CLIPImageEncoder` and ends in a
        detector on embeddings, or a detector on images. A detector is anything with
        `score_samples`, where higher means more normal, and `offset_`.
    images : sequence of path
        The images, see :func:`list_images`. Workers read them, from the same paths;
        relative ones start at the working directory of the caller.
    out : str or PathLike
        Folder for the files: new, empty, or of an earlier call with the same
        detector, images and `partition_size`. All workers must be able to write
        there.
    client : dask.distributed.Client or None, default=None
        The cluster to run on. None: this process, one partition after another, for
        which Dask need not be installed.
    partition_size : int, default=1000
        Number of images of a partition: at most this many per thread are lost with
        a worker. A few minutes of work each are a good size.

    Returns
    -------
    Bunch
        ``folder``, where the files are; the numbers ``n_images``, ``n_anomalous`` (by
        verdict), ``n_unreadable`` and ``n_partitions``; and ``n_partitions_run``, how
        many of these were run now.

    Raises
    ------
    TypeError
        If `detector`, `images` or `client` has another type, or if `detector`
        cannot be pickled.
    ValueError
        If `images` is empty or a lone path, if `partition_size` is less than 1, if
        `out` holds anything else, or if workers have different weights or another
        version of this package.
    NotFittedError
        If `detector` is not fitted.
    OSError
        If the weights cannot be found, or a worker cannot write to `out`.
    ImportError
        If pyarrow is not installed, or a worker lacks this package.
    RuntimeError
        If workers died of a partition again and again, and of no single image in it;
        or if the scheduler is gone.

    Warns
    -----
    UserWarning
        If 20 or more images all get the same verdict from a threshold that was never
        set from data, or if the cluster has no worker yet.

    See Also
    --------
    calibrate_threshold : Set the threshold of a detector, before.

    Notes
    -----
    The data set has the columns of ``clipad score`` except the rank, which no part
    knows: ``path``, ``p_anomaly``, ``p_value``, ``margin``, ``threshold``, ``verdict``
    and ``error``. There are p-values once `calibrate_threshold` was given good images.
    An image that cannot be read is a row with the reason as its ``error``,
    which is empty otherwise, and no numbers; so is an image whose score is not a
    number. ``p_anomaly`` is empty for detectors of other libraries, whose scores are
    no margins. Rows in the order of the files' names
    are in the order of `images`. What is not valid Unicode in a path becomes a
    backslash escape.

    What a folder belongs to is kept in ``_manifest.json``: hashes of the fitted
    detector, of the weights and of the list of images. A partition counts as finished
    if its file belongs to this manifest, and none of its images has changed size or
    modification time since.

    Weights are loaded once in a worker process and shared by its threads, and so is
    the detector, which is sent once to each worker. A partition whose worker dies
    runs again on another, up to the limit that Dask's setting
    ``distributed.scheduler.allowed-failures`` sets. Then the images are sought of which
    workers die: each gets a row with an error, and the others their scores.

    Examples
    --------
    >>> import os, tempfile
    >>> import pandas as pd
    >>> from PIL import Image
    >>> from sklearn.pipeline import make_pipeline
    >>> from clipad_sklearn import CLIPImageEncoder, PromptDetector, score_images
    >>> from clipad_sklearn.datasets import make_defect_images
    >>> detector = make_pipeline(CLIPImageEncoder("tiny"), PromptDetector("tiny"))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     paths = [os.path.join(folder, f"{i}.png") for i in range(6)]
    ...     for path, pixels in zip(paths, make_defect_images(6).images):
    ...         Image.fromarray(pixels).save(path)
    ...     out = os.path.join(folder, "scores")
    ...     done = score_images(detector.fit(None), paths, out=out, partition_size=4)
    ...     sorted(os.listdir(out)), pd.read_parquet(out).shape
    (['_manifest.json', 'part-00000000.parquet', 'part-00000001.parquet'], (6, 7))
    >>> done.n_images, done.n_partitions_run
    (6, 2)
    """
    check_detector(detector)
    paths = _check_paths(images)
    integer = isinstance(partition_size, numbers.Integral)
    if not integer or isinstance(partition_size, bool) or partition_size < 1:
        raise ValueError(
            f"partition_size={partition_size!r}: expected an integer >= 1."
        )
    _check_packages(client)
    folder = os.path.abspath(os.path.expanduser(os.fspath(out)))
    starts = range(0, len(paths), int(partition_size))
    directory = os.getcwd()
    manifest = {
        "version": __version__,
        "detector": _hash_of(detector),
        "settings": repr(detector),
        "images": _digest(os.path.join(directory, path) for path in paths),
        "n_images": len(paths),
        "partition_size": int(partition_size),
        "n_partitions": len(starts),
    }
    _check_folder(folder, manifest)
    run = _Here(detector) if client is None else _OnDask(client, detector)
    manifest["weights"] = run.weights()
    job = _claim(folder, manifest, directory)

    n_anomalous = n_unreadable = n_run = 0
    parts = ((i, paths[s : s + int(partition_size)]) for i, s in enumerate(starts))
    for done in run.partitions(job, parts):
        n_anomalous += done.n_anomalous
        n_unreadable += done.n_unreadable
        n_run += done.is_new
    last = last_step(detector)
    if isinstance(last, BaseDetector):
        n_scored = len(paths) - n_unreadable
        warn_if_one_sided(last, n_anomalous, n_scored, stacklevel=2)
    return Bunch(
        folder=folder,
        n_images=len(paths),
        n_anomalous=n_anomalous,
        n_unreadable=n_unreadable,
        n_partitions=len(starts),
        n_partitions_run=n_run,
    )


# -- arguments -----------------------------------------------------------------


def _check_paths(images: Any) -> list[str]:
    images = check_images(images)
    for index, image in enumerate(images):
        if not isinstance(image, (str, os.PathLike)):
            raise TypeError(
                f"images[{index}] is a {type(image).__name__}: expected paths, which "
                "the workers read. Write other images to files first."
            )
    return [os.fsdecode(image) for image in images]


def _check_packages(client: Any) -> None:
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "score_images writes Parquet files with pyarrow, which is not installed: "
            'python -m pip install "clipad-sklearn[dask]"'
        ) from error
    if client is None:
        return
    try:
        from distributed import Client
    except ImportError:
        right = False
    else:
        right = isinstance(client, Client) and not client.asynchronous
    if not right:
        raise TypeError(
            f"client={client!r}: expected a dask.distributed.Client that is not "
            "asynchronous, such as Client('tcp://scheduler:8786'), or None."
        )


def _hash_of(detector: Any) -> str:
    try:
        # Through a pickle and back, as a saved detector has been.
        return str(joblib.hash(pickle.loads(pickle.dumps(detector)), "sha1"))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise TypeError(
            f"the detector cannot be sent to workers ({error}): its parameters must "
            "be of kinds that pickle takes, so functions of a module, not lambdas"
        ) from error


# -- which job a folder belongs to --------------------------------------------------

# What has to be the same for a folder to be resumed.
_COMPARED = ("version", "detector", "images", "partition_size", "weights")


@dataclass(frozen=True)
class _Job:
    """What all partitions have in common, beside the detector."""

    folder: str
    directory: str  # where relative paths start
    weights: str
    digest: str  # of the manifest


def check_out(out: str) -> None:
    """Say what can be said of a folder for scores before the work begins."""
    folder = os.path.abspath(os.path.expanduser(out))
    _found_in(folder)
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    check_can_write(folder)


def _check_folder(folder: str, manifest: dict[str, Any]) -> bool:
    """Check that `folder` is free or this job's; return whether it is claimed."""
    found = _found_in(folder)
    if found is None:
        return False
    texts = _differences(found, manifest)
    differences = [
        texts[name]
        for name in _COMPARED
        if name in manifest and found.get(name) != manifest[name]
    ]
    if differences:
        raise ValueError(
            f"{folder} holds scores of something else: {'; '.join(differences)}. To "
            "resume it, pass what it was begun with; else pass another `out`, or "
            "delete the folder"
        )
    return True


def _found_in(folder: str) -> dict[str, Any] | None:
    """Return the manifest of a folder, None if the folder is free."""
    try:
        found = _manifest_in(folder)
        if not isinstance(found, dict):
            raise ValueError
        return found
    except FileNotFoundError:
        if os.path.isdir(folder) and all(
            name.startswith(UNFINISHED) for name in os.listdir(folder)
        ):
            return None
        if os.path.lexists(folder):
            raise ValueError(
                f"{folder} is not empty and holds no scores of score_images; pass "
                "another `out`"
            ) from None
        return None
    except NotADirectoryError:
        raise ValueError(f"{folder} is a file; pass a folder as `out`") from None
    except (ValueError, IsADirectoryError):
        raise ValueError(
            f"{folder}: {_MANIFEST} is damaged, so nobody knows what the other "
            "files belong to; delete the folder, or pass another `out`"
        ) from None


def _manifest_in(folder: str) -> Any:
    path = os.path.join(folder, _MANIFEST)
    check_not_special(path)  # which would be waited for
    with open(path, encoding="utf-8") as file:
        return parsed_json(file.read())


def _differences(found: dict[str, Any], now: dict[str, Any]) -> dict[str, str]:
    """What to say about each entry of the manifest, if it differs."""

    def both(name: str) -> str:
        return f"{found.get(name)} there, {now[name]} now"

    detector = "another detector of the same settings (another fit or threshold)"
    if found.get("settings") != now["settings"]:
        detector = f"another detector ({both('settings')})"
    images = "as many images, but other paths or in another order"
    if found.get("n_images") != now["n_images"]:
        images = f"another list of images ({both('n_images')})"
    return {
        "version": f"another version of clipad-sklearn ({both('version')})",
        "detector": detector,
        "images": images,
        "partition_size": f"another `partition_size` ({both('partition_size')})",
        "weights": "other weights of CLIP, or another version of torch or open_clip",
    }


def _claim(folder: str, manifest: dict[str, Any], directory: str) -> _Job:
    """Claim the folder for this job."""
    digest = _digest_of(manifest)
    if not _check_folder(folder, manifest):
        os.makedirs(folder, exist_ok=True)
        content = json.dumps({**manifest, "job": digest}, indent=1) + "\n"
        _write(os.path.join(folder, _MANIFEST), content.encode(), digest)
    for name in os.listdir(folder):
        if name.startswith(_temporary(digest)):  # of a call that was killed
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(folder, name))
    return _Job(folder, directory, manifest["weights"], digest)


def _check_claimed(job: _Job) -> None:
    """Check, on a worker, that the folder is there and still of this job.

    A worker may outlive its client, whose folder may meanwhile be used for another.
    """
    path = os.path.join(job.folder, _MANIFEST)
    try:
        found = _manifest_in(job.folder).get("job")
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{path} is not there on {socket.gethostname()}: `out` has to be a folder "
            "that the caller and all workers share, and stay there"
        ) from None
    if found != job.digest:
        raise ValueError(f"{job.folder} was taken by another call of score_images")


def _digest(lines: Any) -> str:
    digest = hashlib.sha256()
    for line in lines:
        # No path holds a zero byte.
        digest.update(line.encode("utf-8", "surrogatepass") + b"\0")
    return digest.hexdigest()


def _digest_of(manifest: dict[str, Any]) -> str:
    return _digest(f"{name}={manifest[name]}" for name in _COMPARED)


def _temporary(digest: str) -> str:
    """What names of unfinished files of a job begin with: no one else's do."""
    return f"{UNFINISHED}{digest[:20]}-"


# -- one partition -------------------------------------------------------------


@dataclass(frozen=True)
class _Done:
    """Summary of a finished partition."""

    n_anomalous: int
    n_unreadable: int
    is_new: bool


def _score_partition(
    detector: Any,
    job: _Job,
    number: int,
    paths: list[str],
    deadly: frozenset[str] = frozenset(),
) -> _Done:
    """Score some images and write their file, unless it is there.

    Those that are `deadly` to a worker are not read.
    """
    _check_claimed(job)
    files = [os.path.join(job.directory, path) for path in paths]
    # Before the images are read: what changes meanwhile is seen the next time.
    metadata = {b"job": job.digest.encode(), b"files": _state(files).encode()}
    target = os.path.join(job.folder, f"part-{number:08d}.parquet")
    verdicts = _finished(target, metadata)
    is_new = verdicts is None
    if verdicts is None:
        if _weights(detector) != job.weights:
            names = ", ".join(repr(clip) for clip in clips_of(detector))
            raise ValueError(
                f"{socket.gethostname()} has other weights of {names} than this job "
                "was begun with, or another version of torch or open_clip: give all "
                "workers the same"
            )
        rows = _rows(detector, paths, files, deadly)
        content = _parquet(rows, metadata)
        _check_claimed(job)
        _write(target, content, job.digest)
        verdicts = [row["verdict"] for row in rows]
    return _Done(verdicts.count("anomalous"), verdicts.count(None), is_new)


def _rows(
    detector: Any, paths: list[str], files: list[str], deadly: frozenset[str]
) -> list[dict[str, Any]]:
    threshold, is_margin = threshold_of(detector), has_margins(detector)
    living = [i for i, path in enumerate(paths) if path not in deadly]
    rows = {
        i: error_row(path, "a worker died of it, perhaps of too little memory")
        for i, path in enumerate(paths)
        if path in deadly
    }
    if living:
        margins, _, failures = score_readable(detector, [files[i] for i in living])
        errors = {living[index]: reason for index, _, reason in failures}
        p_values = p_values_of(detector, margins)
        for i, margin, p_value in zip(living, margins, p_values, strict=True):
            if i in errors:
                rows[i] = error_row(paths[i], errors[i])
                continue
            rows[i] = score_row(
                paths[i],
                float(margin),
                threshold,
                is_margin=is_margin,
                p_value=p_value,
            )
    return [rows[i] for i in range(len(paths))]


def _try_out(detector: Any, job: _Job, paths: list[str]) -> None:
    """Score images and keep nothing, to see whether a worker survives it."""
    score_readable(detector, [os.path.join(job.directory, path) for path in paths])


def _weights(detector: Any) -> str:
    return " ".join(sorted({load(clip).identity for clip in clips_of(detector)}))


def _state(files: list[str]) -> str:
    """Return what changes when one of the files is rewritten, added or removed."""

    def of(file: str) -> str:
        try:
            status = os.stat(file)
        except (OSError, ValueError):
            return f"{file}\0"
        return f"{file}\0{status.st_size}\0{status.st_mtime_ns}"

    return _digest(map(of, files))


def _finished(target: str, metadata: dict[bytes, bytes]) -> list[str | None] | None:
    """Return the verdicts of a file, None if it is not there or of something else."""
    import pyarrow
    from pyarrow import parquet

    try:
        with open(target, "rb") as file:
            found = parquet.ParquetFile(file)
            if found.schema_arrow.metadata != metadata:
                return None
            return found.read(["verdict"])["verdict"].to_pylist()
    except (OSError, pyarrow.ArrowException):
        return None


def _parquet(rows: list[dict[str, Any]], metadata: dict[bytes, bytes]) -> bytes:
    import pyarrow
    from pyarrow import parquet

    # What is not valid Unicode becomes an escape, as in the CSV of `clipad score`.
    for row in rows:
        for name in ("path", "error"):
            row[name] = row[name].encode("utf-8", "backslashreplace").decode()
    number, text = pyarrow.float64(), pyarrow.string()
    types = [text, number, number, number, number, text, text]
    schema = pyarrow.schema(zip(SCORE_COLUMNS, types, strict=True), metadata=metadata)
    buffer = pyarrow.BufferOutputStream()
    parquet.write_table(pyarrow.Table.from_pylist(rows, schema), buffer)
    return buffer.getvalue().to_pybytes()


def _write(target: str, content: bytes, digest: str) -> None:
    """Write a file of a job in one go."""
    try:
        # Processes of several machines may write the same partition.
        with (
            replacing(target, _temporary(digest), is_ours=True) as temporary,
            open(temporary, "wb") as file,
        ):
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        # Which file it is, is not known to all of them.
        raise OSError(error.errno, error.strerror, target) from error


# -- where partitions run ------------------------------------------------------


class _Here:
    """Runs partitions one after another in this process."""

    def __init__(self, detector: Any) -> None:
        self.detector = detector

    def weights(self) -> str:
        return _weights(self.detector)

    def partitions(
        self, job: _Job, parts: Iterator[tuple[int, list[str]]]
    ) -> Iterator[_Done]:
        return itertools.starmap(
            functools.partial(_score_partition, self.detector, job), parts
        )


class _OnDask:
    """Runs partitions on a Dask cluster."""

    def __init__(self, client: Client, detector: Any) -> None:
        self.client = client
        _check_workers(client)
        # A task, where `scatter` would do: Dask makes its result again when the
        # workers that hold it are lost. Each worker process gets it once.
        self.detector = client.submit(_itself, detector, pure=False)
        self.has_warned = False

    def weights(self) -> str:
        """Return the weights that one of the workers has: the client may have none."""
        future = self.client.submit(
            _weights, self.detector, pure=False, retries=_RETRIES
        )
        self._first_of([future])
        return future.result()

    def partitions(
        self, job: _Job, parts: Iterator[tuple[int, list[str]]]
    ) -> Iterator[_Done]:
        from distributed import KilledWorker

        running: dict[Any, tuple[int, list[str]]] = {}
        lost: dict[int, list[str]] = {}
        try:
            while True:
                n_threads = max(1, sum(self.client.nthreads().values()))
                room = max(0, _AHEAD * n_threads - len(running))
                for number, paths in itertools.islice(parts, room):
                    future = self._submit(_score_partition, job, number, paths)
                    running[future] = number, paths
                if not running:
                    break
                for future in self._first_of(running):
                    number, paths = running.pop(future)
                    try:
                        yield future.result()
                    except KilledWorker:
                        # Some image may be the death of every worker. The others are
                        # scored first.
                        lost[number] = paths
        finally:
            self.client.cancel(list(running))
        for number, paths in sorted(lost.items()):
            yield self._without_deadly(job, number, paths)

    def _submit(self, function: Any, *arguments: Any) -> Any:
        return self.client.submit(
            function, self.detector, *arguments, pure=False, retries=_RETRIES
        )

    def _first_of(self, futures: Iterable[Any]) -> list[Any]:
        """Wait until some of the futures are done; say what it waits for."""
        from distributed import CancelledError, TimeoutError, wait

        futures = list(futures)
        while True:
            try:
                done = wait(futures, timeout=_PATIENCE, return_when="FIRST_COMPLETED")
            except TimeoutError:
                pass
            except CancelledError as error:
                raise self._gone() from error
            else:
                if any(future.status in ("cancelled", "lost") for future in done.done):
                    raise self._gone()
                return list(done.done)
            if self.client.status not in ("running", "connecting"):
                raise self._gone()
            if self.client.nthreads():
                self.has_warned = False
            elif not self.has_warned:
                self.has_warned = True
                warnings.warn(
                    "The Dask cluster has no worker left: waiting for one. If there "
                    "should be some, look at their logs.",
                    UserWarning,
                    stacklevel=4,
                )

    @staticmethod
    def _gone() -> RuntimeError:
        return RuntimeError(
            "the Dask scheduler is gone, or forgot this work. Finished partitions are "
            "kept: call again with a scheduler to score the rest"
        )

    def _without_deadly(self, job: _Job, number: int, paths: list[str]) -> _Done:
        """Score a partition of which workers died, without the images at fault."""
        from distributed import KilledWorker

        deadly = self._deadly(job, paths)
        future = self._submit(_score_partition, job, number, paths, frozenset(deadly))
        self._first_of([future])
        try:
            return future.result()
        except KilledWorker as error:
            raise RuntimeError(
                f"Partition {number} (counted from 0, of `partition_size` images each) "
                "was not scored: each worker that tried died, perhaps of too little "
                "memory, and of no single image. All others that were begun are "
                "finished. Look at the workers' logs, then call again, which runs only "
                "the rest"
            ) from error

    def _deadly(self, job: _Job, paths: list[str]) -> list[str]:
        """Return the images of which a worker dies, of some of which one died."""
        from distributed import KilledWorker

        if len(paths) == 1:
            return paths
        middle = len(paths) // 2
        deadly: list[str] = []
        for half in (paths[:middle], paths[middle:]):
            if len(deadly) >= _MOST_DEADLY:  # then it is not the images
                break
            future = self._submit(_try_out, job, half)
            self._first_of([future])
            try:
                future.result()
            except KilledWorker:
                deadly += self._deadly(job, half)
        return deadly


def _check_workers(client: Client) -> None:
    """Check that all workers have this package, in this version."""

    # Inside of a function, so that it reaches a worker that lacks the package.
    def version() -> str:
        import importlib

        return str(importlib.import_module("clipad_sklearn").__version__)

    found = client.run(version, on_error="return")
    if not found:
        warnings.warn(
            "The Dask cluster has no worker yet: waiting for one.",
            UserWarning,
            stacklevel=4,
        )
    for address, answer in found.items():
        if isinstance(answer, ImportError):
            raise ImportError(
                f"the Dask worker {address} cannot import clipad_sklearn ({answer}): "
                f"install clipad-sklearn {__version__} where the workers run"
            )
        if answer != __version__:
            raise ValueError(
                f"the Dask worker {address} has clipad-sklearn {answer}, but this "
                f"process has {__version__}: give all the same version"
            )


def _itself(detector: Any) -> Any:
    return detector
