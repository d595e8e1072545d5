"""The threshold of ``clipad score``: set as asked for, and explained."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.pipeline import Pipeline

from .. import metrics
from .._detectors.base import BaseDetector, is_uncalibrated, quantile_offset
from .._detectors.calibration import are_references, calibrate_threshold
from .._promises import false_alarm_bound, floor_count
from .._score_rows import score_readable, threshold_of
from .output import (
    UsageError,
    as_usage_error,
    counted,
    per_cent,
    per_cent_at_most,
    say,
    stage,
)

if TYPE_CHECKING:
    from .arguments import ScoreSettings
    from .detectors import Fitted


@dataclass(frozen=True)
class Threshold:
    """A threshold, where it comes from, and what there is to say about it."""

    value: float
    source: str  # the option that set it, or "references" or "none"
    sentences: tuple[str, ...] = ()
    n_unreadable: int = 0
    n_good: int | None = None
    n_bad: int = 0
    promise: dict[str, Any] = field(default_factory=dict)


class _Scored(BaseEstimator):
    """Stands for a detector whose scores of the photos are already known."""

    def __init__(self, detector: Any, scores: np.ndarray) -> None:
        self.detector = detector
        self.scores = scores
        self.offset_ = 0.0

    def fit(self, X: Any, y: Any = None) -> _Scored:
        return self

    def score_samples(self, X: Any) -> np.ndarray:
        return self.scores

    def is_reference(self, X: Any) -> np.ndarray:
        if isinstance(self.detector, Pipeline):
            return np.zeros(len(X), dtype=bool)
        return are_references(self.detector, X)


def set_threshold(
    settings: ScoreSettings,
    fitted: Fitted,
    good: Sequence[str],
    bad: Sequence[str],
    paths: Sequence[str],
    margins: np.ndarray,
) -> Threshold:
    """Set the threshold as asked for; `margins` are those of the photos to score."""
    last = fitted.last
    if good:
        return _calibrated(settings, fitted, good, bad, paths)
    if settings.threshold is not None:
        last.offset_ = settings.threshold
        return Threshold(settings.threshold, "--threshold", ("Threshold as given.",))
    if settings.contamination is not None:
        share = per_cent(settings.contamination)
        finite = margins[np.isfinite(margins)]
        n_below = floor_count(settings.contamination, len(finite))
        if len(finite):
            last.offset_ = quantile_offset(finite, settings.contamination)
        sentence = f"Threshold from --contamination: {share} of these photos lie below."
        if not n_below:
            sentence = (
                f"Threshold from --contamination: {share} of "
                f"{counted(len(finite), 'photo')} is less than one, so none is called "
                "anomalous."
            )
        elif (n_found := int((finite < last.offset_).sum())) < n_below:
            sentence = (
                f"Threshold from --contamination: {n_found} of "
                f"{counted(len(finite), 'photo')} lie below, fewer than {share}, as "
                "photos with equal scores get the same verdict."
            )
        return Threshold(threshold_of(fitted.detector), "--contamination", (sentence,))
    return _as_fitted(settings, fitted)


def _as_fitted(settings: ScoreSettings, fitted: Fitted) -> Threshold:
    """Explain a threshold that this run does not set."""
    value = threshold_of(fitted.detector)
    scores = getattr(fitted.last, "calibration_scores_", None)
    if scores is not None:
        n_below = int(np.searchsorted(scores, value))
        n_good = counted(len(scores), "good photo")
        sentence = f"Threshold of the saved detector: {n_good}, {n_below} below it."
        # Of another threshold, set since, nothing was promised.
        promise = getattr(fitted.last, "promise_", {})
        if promise.get("threshold") != value:
            promise = {}
        sentences = (sentence, _promise_of(promise) + ".") if promise else (sentence,)
        return Threshold(
            value, "--load", sentences, n_good=len(scores), promise=promise
        )
    ours = isinstance(fitted.last, BaseDetector)
    if value == 0 and _is_in_spreads(fitted.detector):
        sentence = (
            "Threshold: the margin 0, three spreads beyond the median of the photos it "
            "learned from. That is a convention and promises nothing; --calibrate "
            "GOOD, with other good photos, sets one that does."
        )
        if settings.method == "mutual":
            sentence += " What most of the photos show counts as normal."
        return Threshold(value, "references", (sentence,))
    if not ours:
        sentence = (
            "Threshold of the saved detector. It promises nothing; --calibrate GOOD "
            "sets one that does."
        )
        return Threshold(value, "--load", (sentence,))
    if not is_uncalibrated(fitted.last):
        return Threshold(value, "--load", ("Threshold of the saved detector.",))
    return Threshold(value, "none")


def _is_in_spreads(detector: Any) -> bool:
    """Whether the margin counts spreads from the median of photos."""
    from .._detectors.fusion import FusionDetector
    from .._detectors.reference import ReferenceDetector
    from .._detectors.tiled import TiledDetector

    if isinstance(detector, TiledDetector):
        return _is_in_spreads(detector.detector_)
    if isinstance(detector, FusionDetector):
        return bool(detector.method == "standardized")
    return isinstance(detector, ReferenceDetector)


def _calibrated(
    settings: ScoreSettings,
    fitted: Fitted,
    good: Sequence[str],
    bad: Sequence[str],
    scored_paths: Sequence[str],
) -> Threshold:
    """Set the threshold from good, or good and bad, photos."""
    paths = [*good, *bad]
    labels = np.repeat([1, -1], [len(good), len(bad)])
    _check_apart(good, bad)
    folders = ", ".join([*settings.calibrate[1:], *settings.bad])
    stage(
        f"setting the threshold from {counted(len(good), 'good photo')}"
        + (f" and {counted(len(bad), 'bad photo')} of {folders}" if bad else "")
    )
    promises = settings.promises or not bad
    share = 0.05 if settings.max_false_alarm is None else settings.max_false_alarm
    with as_usage_error():
        scores, _, failures = score_readable(fitted.detector, paths)
        for _, path, reason in failures:
            say(f"not read: {path}: {reason}")
        readable = np.isfinite(scores)
        scores, labels = scores[readable], labels[readable]
        if len(np.unique(labels)) < (2 if bad else 1):
            raise ValueError("--calibrate: a folder has no photo that can be read")
        known = _Scored(fitted.detector, scores)
        scored = [path for path, seen in zip(paths, readable, strict=True) if seen]
        n_references = int(known.is_reference(scored).sum())
        calibrate_threshold(
            known,
            scored,
            labels if bad else None,
            strategy="max_false_alarm" if promises else None,
            max_false_alarm=share,
            confidence=settings.confidence,
        )
    last = fitted.last
    last.offset_ = known.offset_
    last.calibration_scores_ = known.calibration_scores_
    offset = known.offset_
    good_scores = np.asarray(known.calibration_scores_)
    n_below = int(np.searchsorted(good_scores, offset))
    first = (
        f"Threshold from {counted(len(good_scores), 'good photo')} ({n_below} below it)"
    )
    n_bad = int((labels == -1).sum())
    if n_bad:
        n_caught = int((scores[labels == -1] < offset).sum())
        first += f" and {counted(n_bad, 'bad photo')} ({n_caught} below it)"
    sentences = [first + "."]
    promise: dict[str, Any] = {}
    if promises and n_references:
        sentences.append(
            f"{counted(n_references, 'photo')} of these the detector compares with, so "
            "this is an estimate and no promise; other good photos give one."
        )
    elif promises:
        sentence, promise = _promise(settings, good_scores, offset, share)
        sentences += [sentence, *_not_new(_shared(scored_paths, good))]
    else:
        sentences.append(
            "It is the best F1 score on these photos and promises nothing; "
            "--max-false-alarm does."
        )
    # For a later run that loads the detector.
    last.promise_ = promise
    if n_bad and np.median(scores[labels == -1]) > np.median(good_scores):
        sentences.append(
            "To this detector most of the bad photos look better than the good ones: "
            "are the folders swapped?"
        )
    if n_bad and promises:
        _, escapes = metrics.error_bounds(labels, scores, offset)
        sentences.append(
            f"Of the bad photos {escapes.n_errors} of {escapes.n_samples} escape: "
            f"between {per_cent(escapes.low)} and {per_cent(escapes.high)} of such "
            "photos (95 % interval)."
        )
    elif promise:
        sentences.append(
            "That is about false alarms; --bad measures how many anomalies escape."
        )
    return Threshold(
        offset,
        "--calibrate",
        tuple(sentences),
        n_unreadable=len(failures),
        n_good=len(good_scores),
        n_bad=n_bad,
        promise=promise,
    )


def _check_apart(good: Sequence[str], bad: Sequence[str]) -> None:
    """Raise UsageError where photos are both good and bad."""
    in_both = _shared(good, bad)
    if in_both:
        raise UsageError(
            f"{counted(len(in_both), 'photo')} are both good and bad, the first is "
            f"{in_both[0]}: give other folders to --calibrate and --bad"
        )


def _not_new(photos: Sequence[str]) -> list[str]:
    if not photos:
        return []
    return [
        f"{len(photos)} of the photos scored here set the threshold: they are not new, "
        "so nothing is promised of them."
    ]


def _shared(some: Sequence[str], others: Sequence[str]) -> list[str]:
    """Return those of some photos that are among others."""
    known = set(map(os.path.realpath, others))
    return [path for path in some if os.path.realpath(path) in known]


def _promise(
    settings: ScoreSettings, good_scores: np.ndarray, offset: float, share: float
) -> tuple[str, dict[str, Any]]:
    """Return what the threshold promises, to read and to keep."""
    bound = false_alarm_bound(good_scores, offset, settings.confidence)
    promise = {
        "bound": bound, "confidence": settings.confidence, "threshold": float(offset)
    }  # fmt: skip
    asked = f"{per_cent(share)} was asked for."
    if bound > share:
        asked = f"for {per_cent(share)} there are too few photos."
    return f"{_promise_of(promise)}; {asked}", promise


def _promise_of(promise: dict[str, Any]) -> str:
    kept = "on average"
    if promise["confidence"] is not None:
        kept = f"with a confidence of {per_cent(promise['confidence'])}"
    return (
        f"Promise, {kept}: at most {per_cent_at_most(promise['bound'])} of new good "
        "photos (same camera, light and product) are called anomalous"
    )


def say_shift(fitted: Fitted, margins: np.ndarray) -> None:
    """Say whether the photos still look like those that set the threshold."""
    scores = getattr(fitted.last, "calibration_scores_", None)
    if scores is None:
        raise UsageError(
            "--shift-test compares with the good photos of --calibrate, and there are "
            "none in this detector"
        )
    p_value = metrics.shift_test(margins, scores)
    if p_value <= 0.01:
        say(
            f"these photos do not look like those of the calibration (p = {p_value:.2g}"
            "): many anomalies, or camera, light or product have changed. What was "
            "promised may not hold: look at the photos and, if they are good, "
            "--calibrate with good photos of now"
        )
    else:
        print(f"Shift test: p = {p_value:.2g}, above 0.01: no sign of a change.")
