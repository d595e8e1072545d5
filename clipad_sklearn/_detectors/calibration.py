"""Setting the threshold of a fitted detector from data."""

from __future__ import annotations

from numbers import Real
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils.validation import check_is_fitted

from ..metrics import to_outlier_labels
from .class_names import last_step, score_named

_Detector = TypeVar("_Detector")
_STRATEGIES = ("f1", "youden", "max_false_alarm")


def calibrate_threshold(
    detector: _Detector,
    X: Any,
    y: ArrayLike | None = None,
    *,
    strategy: str | None = None,
    max_false_alarm: float = 0.05,
    class_name: Any = None,
) -> _Detector:
    """Set the threshold of a fitted detector from images.

    Text and image embeddings of CLIP live apart, so the scores of a zero-shot
    detector rank images well before their zero means anything. A few images, best
    of the very line that will be inspected, settle where normal ends.

    Parameters
    ----------
    detector : outlier detector
        Fitted, or a fitted Pipeline, search or FrozenEstimator of one. Its
        ``offset_`` is changed in place.
    X : sequence of length n_samples
        What the detector scores, such as images or paths.
    y : array-like of shape (n_samples,) or None, default=None
        Labels in {-1, +1} with -1 for anomalous, or in {0, 1} or bool with 1 for
        anomalous. None: all of `X` are good.
    strategy : {"f1", "youden", "max_false_alarm"} or None, default=None
        ``"f1"`` maximises the F1 score of the anomalies, ``"youden"`` their
        true-positive rate minus the false-positive rate. ``"max_false_alarm"`` flags
        as much as it can while at most the share `max_false_alarm` of the good
        images is flagged. None means ``"f1"`` with labels and
        ``"max_false_alarm"`` without; the others need labels.
    max_false_alarm : float in [0, 1), default=0.05
        Largest share of good images that may be flagged. Used by
        ``strategy="max_false_alarm"`` only. With fewer than ``1 /
        max_false_alarm`` good images, none of them is.
    class_name : str, array-like of shape (n_samples,) or None, default=None
        What the images show, for a detector that takes it; others ignore it.

    Returns
    -------
    object
        The `detector` given.

    Raises
    ------
    NotFittedError
        If the detector is not fitted.
    TypeError
        If the detector has no ``score_samples`` or no ``offset_``.
    ValueError
        If there are no images, not one label per image, other labels or only one
        class, scores that are not finite, or a strategy that does not fit.

    Notes
    -----
    An image is flagged when its score is below ``offset_``. All cuts between scores
    found in `X` are compared. Of equally good ones, ``"f1"`` and ``"youden"`` take
    the one that flags fewest. The threshold is put midway between the scores on
    both sides of the cut, to leave room on either side; below the lowest score
    there is no other side, and it is that score. Both are our choices.

    The rates hold on `X`. On new images they vary as any estimate does: with 20
    good images, an allowed 5 % is one image.

    A detector's ``predict_proba`` does not move with ``offset_``. Detectors of other
    libraries work if their ``predict`` compares with ``offset_``; that of
    :class:`sklearn.svm.OneClassSVM` does not.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.ensemble import IsolationForest
    >>> from clipad_sklearn import calibrate_threshold
    >>> good = np.random.default_rng(0).normal(size=(200, 2))
    >>> detector = IsolationForest(random_state=0).fit(good)
    >>> detector = calibrate_threshold(detector, good, max_false_alarm=0.1)
    >>> float(np.mean(detector.predict(good) == -1))
    0.1
    """
    if strategy is None:
        strategy = "max_false_alarm" if y is None else "f1"
    if strategy not in _STRATEGIES:
        names = ", ".join(map(repr, _STRATEGIES))
        raise ValueError(f"strategy={strategy!r} is not known. Use one of {names}.")
    if y is None and strategy != "max_false_alarm":
        raise ValueError(
            f"strategy={strategy!r} needs labels: pass y, or use "
            "strategy='max_false_alarm' with good images only."
        )
    if not isinstance(max_false_alarm, Real) or not 0 <= max_false_alarm < 1:
        raise ValueError(f"max_false_alarm must be in [0, 1), got {max_false_alarm!r}.")
    last = last_step(detector)
    check_is_fitted(last)
    for attribute in ("score_samples", "offset_"):
        if not hasattr(last, attribute):
            raise TypeError(
                f"{type(last).__name__} has no {attribute}: pass an outlier detector, "
                "or a Pipeline that ends in one."
            )
    if X is None:
        raise ValueError("X is None, but a threshold is set from images: pass some.")

    scores = _score_samples(detector, X, class_name)
    last.offset_ = _choose(scores, _check_y(y, len(scores)), strategy, max_false_alarm)
    return detector


def _score_samples(detector: Any, X: Any, class_name: Any) -> np.ndarray:
    scores = np.asarray(score_named(detector, X, class_name))
    if len(scores) == 0:
        raise ValueError("X is empty: a threshold is set from images, pass some.")
    if scores.dtype.kind != "f":
        scores = scores.astype(np.float64)
    bad = np.flatnonzero(~np.isfinite(scores))
    if len(bad):
        listed = ", ".join(map(str, bad[:10])) + (", ..." if len(bad) > 10 else "")
        raise ValueError(
            f"{len(bad)} of {len(scores)} scores are not finite, at index {listed}. "
            "Leave these samples out of X and y."
        )
    return scores


def _check_y(y: ArrayLike | None, n_samples: int) -> np.ndarray:
    """Return which samples are anomalous."""
    if y is None:
        return np.zeros(n_samples, dtype=bool)
    labels = np.asarray(y)
    if labels.ndim == 1 and len(labels) != n_samples:
        raise ValueError(f"y has {len(labels)} labels, but X has {n_samples} samples.")
    try:
        return to_outlier_labels(labels)
    except ValueError as error:
        if labels.ndim == 1 and len(set(labels.tolist())) == 1:
            raise ValueError(f"{error} If all of X are good, leave y out.") from None
        raise


def _choose(
    scores: np.ndarray,
    is_anomalous: np.ndarray,
    strategy: str,
    max_false_alarm: float,
) -> float:
    # Cut j flags all scores below levels[j]; the last one flags everything.
    levels = np.unique(scores)
    hits = np.searchsorted(np.sort(scores[is_anomalous]), levels)
    false_alarms = np.searchsorted(np.sort(scores[~is_anomalous]), levels)
    n_anomalous = np.count_nonzero(is_anomalous)
    n_good = len(scores) - n_anomalous
    hits = np.append(hits, n_anomalous)
    false_alarms = np.append(false_alarms, n_good)

    if strategy == "max_false_alarm":
        cut = int(np.flatnonzero(false_alarms / n_good <= max_false_alarm)[-1])
    elif strategy == "youden":
        # In whole numbers, so that equal rates are equal.
        cut = int(np.argmax(hits * n_good - false_alarms * n_anomalous))
    else:
        # F1 = 2 TP / (TP + FP + positives)
        cut = int(np.argmax(2 * hits / (hits + false_alarms + n_anomalous)))

    if cut == 0:
        return float(levels[0])
    if cut == len(levels):
        return float(np.nextafter(levels[-1], levels.dtype.type(np.inf)))
    below, above = levels[cut - 1], levels[cut]
    # In the precision of the scores, on NumPy 1 too.
    middle = levels.dtype.type(below / 2 + above / 2)
    # Between neighbouring floats there is no middle.
    return float(middle if below < middle <= above else above)
