"""Setting the threshold of a fitted detector from data."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from numbers import Real
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import _num_samples, check_is_fitted

from .._promises import n_scores_needed, smallest_promise, threshold_rank
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
    confidence: float | None = None,
    class_name: Any = None,
) -> _Detector:
    """Set the threshold of a fitted detector from images.

    Text and image embeddings of CLIP lie apart, so the scores of a zero-shot detector
    rank images well before a score of zero means anything. A few images, ideally from
    the line to be inspected, show where normal ends.

    Parameters
    ----------
    detector : outlier detector
        Fitted, or a fitted Pipeline, search or FrozenEstimator of one. Its
        ``offset_`` is changed in place, and the sorted scores of the good images are
        left in it as ``calibration_scores_``.
    X : sequence of length n_samples
        What the detector scores, such as images or paths. The good ones should be
        images that the detector did not learn from.
    y : array-like of shape (n_samples,) or None, default=None
        Labels in {-1, +1} with -1 for anomalous, or in {0, 1} or bool with 1 for
        anomalous. None: all of `X` are good.
    strategy : {"f1", "youden", "max_false_alarm"} or None, default=None
        ``"f1"`` maximises the F1 score of the anomalies, ``"youden"`` their
        true-positive rate minus the false-positive rate, both on `X`.
        ``"max_false_alarm"`` flags as much as it can while new good images are flagged
        at the rate `max_false_alarm` at most; of `X`, only the good images matter. None
        means ``"max_false_alarm"`` without labels or with a `confidence`, and ``"f1"``
        otherwise. ``"f1"`` and ``"youden"`` need labels.
    max_false_alarm : float in [0, 1), default=0.05
        Largest rate at which new good images may be flagged. Used by
        ``strategy="max_false_alarm"`` only.
    confidence : float in (0, 1) or None, default=None
        None: the rate is kept on average over sets of calibration images. Otherwise
        the rate is at most `max_false_alarm` with this probability, for the set that
        is given; 0.95 needs about three times as many good images.
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
        class, scores that are not finite, or a strategy that does not fit; with
        `confidence` if there are too few good images, or if some of them are references
        of the detector.

    Warns
    -----
    UserWarning
        If there are too few good images to keep `max_false_alarm` on average. The
        threshold is then the lowest of their scores, and the warning says what that
        promises. Also if good images are references of the detector.

    See Also
    --------
    clipad_sklearn.CalibratedThresholdDetector : Sets the threshold within `fit`.
    clipad_sklearn.metrics.error_bounds : Error rates on labelled images.
    clipad_sklearn.metrics.p_values : How odd an image is among good ones.
    clipad_sklearn.metrics.shift_test : Whether the promise can still hold.

    Notes
    -----
    An image is flagged when its score is below ``offset_``. The promise of
    ``"max_false_alarm"`` is that of conformal prediction [1]_ and of distribution-free
    tolerance limits [2]_. Let good images be exchangeable with those to come, and
    s_(1) <= ... <= s_(n) be the scores of those in `X`. The threshold s_(k) flags a new
    one with probability k / (n + 1) on average over sets of n, and given the set at a
    rate that is distributed as Beta(k, n + 1 - k); with tied scores, less often. The
    largest k is taken that keeps `max_false_alarm`. At a `confidence` of 0.95, the
    rates 10, 5, 2 and 1 % need 29, 59, 149 and 299 good images, and on average 9, 19,
    49 and 99. The 1e-9 by which k may be rounded up is our choice.

    For ``"f1"`` and ``"youden"`` all cuts between scores found in `X` are compared. Of
    equally good ones, the one is taken that flags fewest. The threshold is put midway
    between the scores on both sides of the cut, to leave room on either side; below
    the lowest score there is no other side, and it is that score. Both are our
    choices. Rates that were found on `X` vary on new images as any estimate does.

    References of a detector, whose scores leave out the image itself, give estimates
    and no promise.

    A detector's ``predict_proba`` does not move with ``offset_``. Detectors of other
    libraries work if their ``predict`` compares with ``offset_``; that of
    :class:`sklearn.svm.OneClassSVM` does not.

    References
    ----------
    .. [1] V. Vovk, A. Gammerman, G. Shafer, "Algorithmic Learning in a Random World",
       Springer, 2005.
    .. [2] S. S. Wilks, "Determination of Sample Sizes for Setting Tolerance Limits",
       Annals of Mathematical Statistics, 1941.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.ensemble import IsolationForest
    >>> from clipad_sklearn import calibrate_threshold
    >>> rng = np.random.default_rng(0)
    >>> detector = IsolationForest(random_state=0).fit(rng.normal(size=(200, 2)))
    >>> good, new = rng.normal(size=(199, 2)), rng.normal(size=(5000, 2))
    >>> detector = calibrate_threshold(detector, good, max_false_alarm=0.1)
    >>> bool(np.mean(detector.predict(new) == -1) < 0.12)
    True
    >>> detector = calibrate_threshold(detector, good, confidence=0.95)
    >>> bool(np.mean(detector.predict(new) == -1) < 0.05)
    True
    """
    if strategy is None:
        promised = y is None or confidence is not None
        strategy = "max_false_alarm" if promised else "f1"
    if strategy not in _STRATEGIES:
        names = ", ".join(map(repr, _STRATEGIES))
        raise ValueError(f"strategy={strategy!r} is not known. Use one of {names}.")
    if y is None and strategy != "max_false_alarm":
        raise ValueError(
            f"strategy={strategy!r} needs labels: pass y, or use "
            "strategy='max_false_alarm' with good images only."
        )
    _check_rates(strategy, max_false_alarm, confidence)
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
    if isinstance(X, Iterator):
        X = list(X)  # it is gone through twice

    scores = _score_samples(detector, X, class_name)
    is_anomalous = check_labels(y, len(scores))
    good = np.sort(scores[~is_anomalous])
    if strategy == "max_false_alarm":
        _check_references(detector, X, is_anomalous, confidence)
        offset = _promised(good, max_false_alarm, confidence)
    else:
        offset = _best_cut(scores, is_anomalous, strategy)
    last.offset_ = offset
    last.calibration_scores_ = good
    return detector


def are_references(detector: Any, X: Any) -> np.ndarray:
    """Return which of X a fitted detector keeps as references.

    A detector that keeps some says so in its method ``is_reference(X)``.
    """
    if not hasattr(last_step(detector), "is_reference"):
        return np.zeros(_num_samples(X), dtype=bool)
    if isinstance(detector, Pipeline):
        X = detector[:-1].transform(X) if len(detector) > 1 else X
        return are_references(detector[-1], X)
    if isinstance(detector, FrozenEstimator):
        return are_references(detector.estimator, X)
    if hasattr(detector, "best_estimator_"):
        return are_references(detector.best_estimator_, X)
    return np.asarray(detector.is_reference(X), dtype=bool)


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


def check_labels(y: ArrayLike | None, n_samples: int) -> np.ndarray:
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


def _check_rates(strategy: str, max_false_alarm: Any, confidence: Any) -> None:
    if not _is_number(max_false_alarm) or not 0 <= max_false_alarm < 1:
        raise ValueError(
            f"max_false_alarm={max_false_alarm!r}: expected a number in [0, 1)."
        )
    if confidence is None:
        return
    if not _is_number(confidence) or not 0 < confidence < 1:
        raise ValueError(
            f"confidence={confidence!r}: expected None or a number in (0, 1)."
        )
    if strategy != "max_false_alarm":
        raise ValueError(
            f"confidence={confidence!r} is for strategy='max_false_alarm': "
            f"{strategy!r} promises no rate."
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _check_references(
    detector: Any, X: Any, is_anomalous: np.ndarray, confidence: float | None
) -> None:
    """Refuse a promise on good images that taught the detector, or warn."""
    n_references = int(np.count_nonzero(are_references(detector, X) & ~is_anomalous))
    if n_references == 0:
        return
    message = (
        f"{n_references} of the good images are references of the detector. Scores "
        "that leave out the image itself give an estimate of the false alarms, no "
        "promise: calibrate with other images"
    )
    if confidence is not None:
        raise ValueError(f"{message}, or without confidence.")
    warnings.warn(f"{message}.", UserWarning, stacklevel=3)


def _promised(
    good: np.ndarray, max_false_alarm: float, confidence: float | None
) -> float:
    """Return the highest of the sorted scores that keeps the promise."""
    rank = threshold_rank(len(good), max_false_alarm, confidence)
    if rank == 0:
        # Rounded up, so that it can be promised.
        least = math.ceil(smallest_promise(len(good), confidence) * 1e4) / 1e4
        kept = "on average" if confidence is None else f"with confidence={confidence}"
        if max_false_alarm == 0:
            needs = "cannot be promised by any number of good images"
        else:
            n_needed = n_scores_needed(max_false_alarm, confidence)
            needs = f"{kept} needs {n_needed} good images to calibrate with"
        message = (
            f"max_false_alarm={max_false_alarm} {needs}. There are {len(good)}, "
            f"which can promise {least:.2%} {kept} at best."
        )
        if confidence is not None:
            raise ValueError(message)
        message += " The threshold is the lowest of their scores, which does so."
        warnings.warn(message, UserWarning, stacklevel=3)
        rank = 1
    return float(good[rank - 1])


def _best_cut(scores: np.ndarray, is_anomalous: np.ndarray, strategy: str) -> float:
    # Cut j flags all scores below levels[j]; the last one flags everything.
    levels = np.unique(scores)
    hits = np.searchsorted(np.sort(scores[is_anomalous]), levels)
    false_alarms = np.searchsorted(np.sort(scores[~is_anomalous]), levels)
    n_anomalous = np.count_nonzero(is_anomalous)
    n_good = len(scores) - n_anomalous
    hits = np.append(hits, n_anomalous)
    false_alarms = np.append(false_alarms, n_good)

    if strategy == "youden":
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
