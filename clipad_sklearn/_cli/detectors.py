"""The fitted detector of ``clipad score``: made, loaded and saved."""

from __future__ import annotations

import contextlib
import io
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.pipeline import Pipeline, make_pipeline

from .. import metrics
from .._clip.image_encoder import CLIPImageEncoder
from .._clip.read_once import given
from .._clip.settings import OpenCLIP, check_clip
from .._detectors.class_names import last_step
from .._errors import ImageReadError, NotNumbersError
from .._images import image_size
from .._masks import mask_pixels
from .._score_rows import check_detector, clips_of, threshold_of
from .._validation import check_number
from .kept import is_kept
from .methods import METHODS, Choices, fitted_detector, kept_words
from .output import UsageError, as_usage_error, counted, say, stage, writing

if TYPE_CHECKING:
    from .arguments import ScoreSettings

# How files begin that joblib takes for these.
_ZLIB_OR_GZIP = (b"\x78", b"\x1f\x8b")


@dataclass
class Fitted:
    """A fitted detector of photos: a Pipeline with an encoder, or one on images."""

    detector: Any
    clip: OpenCLIP
    n_unreadable: int = 0  # photos that it should have learned from

    @property
    def last(self) -> Any:
        """What holds the threshold."""
        return last_step(self.detector)

    @property
    def has_maps(self) -> bool:
        """Whether it says where, without more ado."""
        return self._own_map_detector() is not None

    def _own_map_detector(self) -> Any:
        """Return the detector, or else the member of a fusion, that makes maps."""
        members = getattr(self.detector, "named_detectors_", {}).values()
        for detector in (self.detector, *members):
            if hasattr(detector, "iter_anomaly_maps"):
                return detector
        return None

    def map_detector(self) -> Any:
        """Return what makes maps, or windows that the detector scores."""
        own = self._own_map_detector()
        if own is not None:
            return own
        if not isinstance(self.detector, Pipeline):
            name = type(self.detector).__name__
            raise UsageError(
                f"this {name} makes no anomaly maps: leave out --maps and --heat-maps"
            )
        from .._detectors.winclip import WinCLIPDetector

        # The detector that scored the photos scores their windows: no second fit.
        windows = WinCLIPDetector(self.clip)
        windows.scorer_ = self.detector[1:]
        windows.pixel_offset_ = 0.5
        windows.offset_ = 0.0
        return windows


def obtain_detector(
    settings: ScoreSettings, paths: Sequence[str], good: Sequence[str]
) -> Fitted:
    """Load the detector, or make and fit it."""
    clip_settings = settings.clip_settings
    if settings.load is not None:
        detector = _load(settings.load)
        with as_usage_error():
            clips = list(iter_clips(detector))
            for clip in clips:
                clip.set_params(**clip_settings)
            # Those of a FrozenEstimator are no parameters.
            return Fitted(detector, (clips_of(detector) or clips)[0])
    choices = Choices(
        class_name=settings.class_name,
        random_state=settings.random_state,
        layers=settings.layers,
        ignore=_mask(settings.ignore, [*good, *paths]),
        normal=settings.normal,
        anomalous=settings.anomalous,
    )
    with as_usage_error():
        clip = check_clip(settings.clip).set_params(**clip_settings)
        if not settings.learns_from_photos and settings.tiles is None:
            detector = fitted_detector(settings.method, clip, choices)
            if not METHODS[settings.method].on_images:
                detector = make_pipeline(CLIPImageEncoder(clip), detector)
            return Fitted(detector, clip)
        detector = new_detector(settings.method, clip, choices, bool(good))
        if settings.tiles is not None:
            from .._detectors.tiled import TiledDetector

            detector = TiledDetector(detector, tiles=settings.tiles)
        if not settings.learns_from_photos:
            if METHODS[settings.method].seeded and not is_kept(clip):
                stage("learning from words (not kept)")
            return Fitted(detector.fit(None), clip)
        photos = list(good or paths)
        stage(
            f"learning from {counted(len(photos), 'good photo')}"
            if good
            else f"comparing {counted(len(photos), 'photo')} with each other"
        )
        n_unreadable = _fit_readable(detector, photos, named=bool(good))
    return Fitted(detector, clip, n_unreadable)


def new_detector(method: str, clip: OpenCLIP, choices: Choices, has_good: bool) -> Any:
    """Return an unfitted detector of photos; with good ones, of both together."""
    detector = (
        kept_words(clip, choices)
        if method == "random-word"
        else METHODS[method].make(clip, choices)
    )
    if not METHODS[method].on_images:
        detector = make_pipeline(CLIPImageEncoder(clip), detector)
    if not has_good or method == "reference":
        return detector
    from .._detectors.fusion import FusionDetector

    members = [("photos", METHODS["reference"].make(clip, choices)), (method, detector)]
    return FusionDetector(members, method="standardized")


def _fit_readable(detector: Any, photos: list[str], *, named: bool) -> int:
    """Fit on the photos that can be read; return how many cannot."""
    n_unreadable = 0
    while True:
        try:
            detector.fit(photos)
            return n_unreadable
        except NotNumbersError:
            bad = _without_numbers(detector, photos)
            if not bad or len(bad) == len(photos):
                raise
            n_unreadable += len(bad)
            for path in bad if named else ():
                say(f"left out: {path}: the model does not make numbers of it")
            photos = [path for path in photos if path not in bad]
        except ImageReadError as error:
            failed = {index for index, _, _ in error.failures}
            n_unreadable += len(failed)
            photos = [path for i, path in enumerate(photos) if i not in failed]
            if not failed or not photos:
                raise
            if named:  # else they are named when they are scored
                for _, path, reason in error.failures:
                    say(f"not read: {path}: {reason}")


def _without_numbers(detector: Any, photos: list[str]) -> set[str]:
    """Return the photos of which a model of the detector does not make numbers."""
    bad: set[str] = set()
    for clip in clips_of(detector):
        embeddings = clip.encode_image(photos, on_error="nan")
        finite = np.isfinite(embeddings).all(axis=1)
        bad |= {photos[index] for index in np.flatnonzero(~finite)}
    return bad


# -- scoring -------------------------------------------------------------------


class TileScorer:
    """Scores photos with a `TiledDetector`, and keeps which tile decided."""

    def __init__(self, detector: Any) -> None:
        self.detector = detector
        self.lowest: dict[str, int] = {}

    def score_samples(self, photos: Sequence[Any]) -> np.ndarray:
        scores = self.detector.tile_scores(photos)
        self.lowest |= {
            given(p): int(np.argmin(s)) for p, s in zip(photos, scores, strict=True)
        }
        return np.array([margins.min() for margins in scores])

    def deciding(self) -> dict[str, Any]:
        """Return which tile decided for each photo.

        That is its box in pixels, or the words "whole photo".
        """
        tiles: dict[str, Any] = {}
        for path, index in self.lowest.items():
            with contextlib.suppress(ValueError):  # gone since it was scored
                boxes = self.detector.tile_boxes(image_size(path))
                tiles[path] = "whole photo"
                if len(boxes) > 1 and index < len(boxes):
                    sides = ("top", "left", "bottom", "right")
                    tiles[path] = dict(zip(sides, boxes[index], strict=True))
        return tiles


# -- files ---------------------------------------------------------------------


def _mask(path: str | None, photos: Sequence[str]) -> np.ndarray | None:
    """Return which pixels of the photos do not count."""
    if path is None:
        return None
    try:
        mask = mask_pixels(path)
    except (OSError, ValueError) as error:
        raise UsageError(f"--ignore {path}: {error}") from error
    height, width = mask.shape
    for photo in photos:
        with contextlib.suppress(OSError, ValueError):  # said where it is scored
            if (size := image_size(photo)) != mask.shape:
                raise UsageError(
                    f"--ignore {path}: is {width} x {height} pixels, but {photo} is "
                    f"{size[1]} x {size[0]}; score photos of one size at a time"
                )
    return mask


def _load(path: str) -> Any:
    import joblib

    if not os.path.isfile(path):  # a pipe might never end
        reason = "is not a file" if os.path.lexists(path) else "there is no such file"
        raise UsageError(f"--load {path}: {reason}")
    start, is_pickle = b"", False
    try:
        with open(path, "rb") as file:
            start = file.peek(4)
            packed = start.startswith(_ZLIB_OR_GZIP)
            content = io.BufferedReader(_Unpacked(file)) if packed else file
            is_pickle = content.peek(1).startswith(b"\x80")
            # Any code can be in such a file; --help says so.
            detector = joblib.load(content)
            while content.read(2**16):  # to the end, where the checksum is
                pass
    except Exception as error:
        reason = ""
        if isinstance(error, zlib.error):
            reason = ", or is damaged"
        elif start.startswith(b"PK\x03\x04"):
            reason = ": it is an archive, as skops makes; load that in Python"
        elif isinstance(error, OSError) or (
            is_pickle and str(error) and not isinstance(error, LookupError)
        ):
            # What else is said of a file of another kind is the number of a byte.
            reason = f": {error}"
        raise UsageError(f"--load {path}: is not a file of --save{reason}") from error
    try:
        check_detector(detector)
        _check_thresholds(last_step(detector))
    except (TypeError, ValueError) as error:
        raise UsageError(f"--load {path}: {error}") from error
    return detector


class _Unpacked(io.RawIOBase):
    """The content of a file of zlib or gzip; zlib.error if that is not all of it.

    joblib's own misses a checksum that is cut off, and never ends where more follows.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.stream = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)  # either of both

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        plain = b""
        while not plain and not self.stream.eof:
            packed = self.stream.unconsumed_tail or self.file.read(2**16)
            plain = self.stream.decompress(packed, len(buffer))
            if not packed and not plain and not self.stream.eof:
                raise zlib.error("the file was cut off")
        if not plain and (self.stream.unused_data or self.file.read(1)):
            raise zlib.error("something follows")
        buffer[: len(plain)] = plain
        return len(plain)


def _check_thresholds(detector: Any) -> None:
    """Check what a saved detector knows of its threshold."""
    if not np.isfinite(threshold_of(detector)):
        raise ValueError(f"offset_={detector.offset_!r}: expected a finite number")
    check_number("pixel_offset_", getattr(detector, "pixel_offset_", 0.5))
    scores = getattr(detector, "calibration_scores_", None)
    if scores is not None:
        metrics.p_values([], scores)
    promise = getattr(detector, "promise_", {})
    keys = {"bound", "confidence", "threshold"}
    if not isinstance(promise, dict) or (promise and not keys <= promise.keys()):
        raise ValueError(f"promise_={promise!r}: expected a dict of {sorted(keys)}")


def save_detector(path: str, fitted: Fitted, kept: dict[str, Any]) -> None:
    """Save it; its CLIPs have the settings `kept`, and not those of this run."""
    import joblib

    clips = list(iter_clips(fitted.detector))
    before = [{name: getattr(clip, name) for name in kept} for clip in clips]
    try:
        for clip in clips:
            clip.set_params(**kept)
        with writing(path) as temporary:
            # Compressed, because that comes with a checksum.
            joblib.dump(fitted.detector, temporary, compress=3)
    finally:
        for clip, values in zip(clips, before, strict=True):
            clip.set_params(**values)


def iter_clips(estimator: Any) -> Iterator[OpenCLIP]:
    """Yield every `OpenCLIP` of an estimator and of those within, each once."""
    yield from {id(clip): clip for clip in _clips_within(estimator)}.values()


def _clips_within(value: Any) -> Iterator[OpenCLIP]:
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _clips_within(item)
    elif isinstance(value, OpenCLIP):
        yield value
    elif isinstance(value, BaseEstimator):
        if "clip" in vars(value):
            # One that is a string becomes what it stands for.
            value.clip = check_clip(value.clip)
        for inner in list(vars(value).values()):
            yield from _clips_within(inner)
