"""Metrics of anomaly detection, and scorers for model selection.

In this module **scores are anomaly scores: higher means more anomalous**, as the
field has it. Detectors follow scikit-learn, where a higher ``score_samples`` means
more normal: pass ``-detector.score_samples(X)``. `get_scorer` does this for you.

Labels are {-1, +1} with -1 for anomalous (scikit-learn's outlier detectors) or
{0, 1} or bool with 1 for anomalous (the field's data sets).

`error_bounds`, `p_values` and `shift_test` are about thresholds and promises. As
``offset_`` and ``calibration_scores_`` of a detector are, **their scores are those of**
``score_samples``: higher means more normal.

`auroc`, `aupr` and `f1_max` judge pixels instead of images when they are given
masks and anomaly maps in place of labels and scores. `pro` always does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import ndimage
from scipy.stats import binomtest
from sklearn.metrics import (
    average_precision_score,
    precision_recall_curve,
    roc_auc_score,
)

from ._masks import numbered_mask
from ._promises import p_values, shift_test

__all__ = [
    "ErrorRate",
    "aupr",
    "auroc",
    "error_bounds",
    "f1_max",
    "get_scorer",
    "p_values",
    "pro",
    "shift_test",
    "to_outlier_labels",
]

Labels = ArrayLike | Sequence[np.ndarray | None]
Scores = ArrayLike | Sequence[np.ndarray]

_LABELS = (
    "Use -1 for anomalous and +1 for normal (scikit-learn), or 1 or True for "
    "anomalous and 0 or False for normal."
)


def to_outlier_labels(y: ArrayLike) -> np.ndarray:
    """Translate labels of either convention.

    Parameters
    ----------
    y : array-like of shape (n_samples,)
        Labels in {-1, +1} with -1 for anomalous, or in {0, 1} or bool with 1 for
        anomalous. Both classes must occur, as a lone 1 could mean either.

    Returns
    -------
    ndarray of bool of shape (n_samples,)
        True for anomalous samples.

    Raises
    ------
    ValueError
        If there are other labels or NaN, or only one class.

    Examples
    --------
    >>> from clipad_sklearn.metrics import to_outlier_labels
    >>> to_outlier_labels([1, 1, -1])
    array([False, False,  True])
    >>> to_outlier_labels([0, 0, 1])
    array([False, False,  True])
    """
    try:
        labels = np.asarray(y)
    except ValueError:
        raise ValueError(
            "Labels must be one number per sample, got parts of different sizes."
        ) from None
    if labels.ndim != 1:
        raise ValueError(
            f"Labels must be one-dimensional, got an array of shape {labels.shape}."
        )
    if labels.size == 0:
        raise ValueError("There are no labels: y is empty.")
    try:
        # Text such as "1" is refused, and None becomes NaN.
        if labels.dtype.kind in "USO" and any(isinstance(v, str) for v in labels):
            raise ValueError
        values = labels.astype(np.float64)
    except (TypeError, ValueError):
        raise ValueError(
            f"Labels must be numbers, got {labels[:5].tolist()!r}. {_LABELS}"
        ) from None
    if np.isnan(values).any():
        raise ValueError(f"Labels must not be NaN. {_LABELS}")
    found = np.unique(values).tolist()
    shown = ", ".join(f"{value:g}" for value in found[:5])
    if not (set(found) <= {-1, 1} or set(found) <= {0, 1}):
        raise ValueError(f"Labels are {shown}, which is no known convention. {_LABELS}")
    if len(found) == 1:
        raise ValueError(
            f"All labels are {shown}: both normal and anomalous samples are needed. "
            f"{_LABELS}"
        )
    return values == (-1 if -1 in found else 1)


def auroc(y_true: Labels, anomaly_scores: Scores) -> float:
    """Area under the receiver operating characteristic curve.

    Parameters
    ----------
    y_true : array-like of shape (n_samples,), or sequence of masks
        Labels in {-1, +1} with -1 for anomalous, or in {0, 1} or bool with 1 for
        anomalous. For pixels: per image one mask (H, W) of 0 and 1 or bool, the path
        of one in which anomalous pixels are above 0, or None for an image without
        anomaly. Sizes may differ between images.
    anomaly_scores : array-like of shape (n_samples,), or sequence of maps
        Higher means more anomalous: ``-detector.score_samples(X)``. For pixels:
        one map (H, W) per image, of the size of its mask.

    Returns
    -------
    float
        In [0, 1]; 0.5 for uninformative scores.

    Raises
    ------
    ValueError
        If labels, scores or their sizes are not as described, are not finite, or
        only one class occurs.

    Examples
    --------
    >>> from clipad_sklearn.metrics import auroc
    >>> auroc([1, 1, -1, -1], [0.1, 0.6, 0.5, 0.9])
    0.75
    """
    return float(roc_auc_score(*_check_pairs(y_true, anomaly_scores)))


def aupr(y_true: Labels, anomaly_scores: Scores) -> float:
    """Area under the precision-recall curve with anomalies as positives.

    Parameters
    ----------
    y_true : array-like of shape (n_samples,), or sequence of masks
        As for `auroc`.
    anomaly_scores : array-like of shape (n_samples,), or sequence of maps
        As for `auroc`: higher means more anomalous.

    Returns
    -------
    float
        In [0, 1]. Uninformative scores give about the share of anomalies.

    Raises
    ------
    ValueError
        As for `auroc`.

    Notes
    -----
    This is the average precision, a sum over steps without interpolation
    (:func:`sklearn.metrics.average_precision_score`), which published code of the
    field reports under this name.

    Examples
    --------
    >>> from clipad_sklearn.metrics import aupr
    >>> round(aupr([1, 1, -1, -1], [0.1, 0.6, 0.5, 0.9]), 4)
    0.8333
    """
    return float(average_precision_score(*_check_pairs(y_true, anomaly_scores)))


def f1_max(y_true: Labels, anomaly_scores: Scores) -> float:
    """Largest F1 score of the anomalies over all thresholds.

    Parameters
    ----------
    y_true : array-like of shape (n_samples,), or sequence of masks
        As for `auroc`.
    anomaly_scores : array-like of shape (n_samples,), or sequence of maps
        As for `auroc`: higher means more anomalous.

    Returns
    -------
    float
        In (0, 1]. Flagging everything already gives ``2 a / (1 + a)`` where `a` is
        the share of anomalies.

    Raises
    ------
    ValueError
        As for `auroc`.

    Notes
    -----
    The threshold is chosen with the labels that it is judged by, so this is an
    upper bound of what a fixed threshold reaches. `calibrate_threshold` sets one.

    Examples
    --------
    >>> from clipad_sklearn.metrics import f1_max
    >>> f1_max([1, 1, -1, -1], [0.1, 0.6, 0.5, 0.9])
    0.8
    """
    precision, recall, _ = precision_recall_curve(*_check_pairs(y_true, anomaly_scores))
    # Where both are 0, F1 is 0.
    total = np.maximum(precision + recall, np.finfo(np.float64).tiny)
    return float(np.max(2 * precision * recall / total))


def pro(
    masks: Sequence[np.ndarray | None],
    anomaly_maps: Sequence[np.ndarray],
    *,
    max_fpr: float = 0.3,
) -> float:
    """Area under the per-region overlap curve (PRO, also AUPRO).

    The per-region overlap at a threshold is the share of flagged pixels in an
    anomalous region, averaged over all regions of all images, so that small defects
    count as much as large ones. It is integrated over the share of flagged normal
    pixels (false-positive rate) from 0 to `max_fpr` and divided by `max_fpr`.

    Parameters
    ----------
    masks : sequence of array (H, W), path or None
        For each image a mask of 0 and 1 or bool, the path of one in which anomalous
        pixels are above 0, or None for an image without anomaly. Sizes may differ
        between images. Anomalous pixels that touch, corners included, form a region.
    anomaly_maps : sequence of array (H, W)
        Maps of the sizes of the masks. Higher means more anomalous.
    max_fpr : float in (0, 1], default=0.3
        Upper limit of the false-positive rate.

    Returns
    -------
    float
        In [0, 1]; ``max_fpr / 2`` for uninformative maps.

    Raises
    ------
    ValueError
        If masks, maps or their sizes are not as described or not finite, or if
        there are no anomalous or no normal pixels.

    Notes
    -----
    The value is exact. Each anomalous pixel weighs one over the area of its region
    and the number of regions; sorted by score, the running sum of these weights is
    the overlap. The curve is linear between thresholds and cut at `max_fpr`.
    Implementations that step through a fixed number of thresholds differ from this
    where steps are coarse. The metric is from [1]_.

    References
    ----------
    .. [1] P. Bergmann, K. Batzner, M. Fauser, D. Sattlegger, C. Steger, "The MVTec
       Anomaly Detection Dataset: A Comprehensive Real-World Dataset for
       Unsupervised Anomaly Detection", International Journal of Computer Vision,
       2021.

    Examples
    --------
    >>> import numpy as np
    >>> from clipad_sklearn.metrics import pro
    >>> mask = np.zeros((8, 8), dtype=bool)
    >>> mask[2:4, 2:4] = True
    >>> pro([mask, None], [mask.astype(float), np.zeros((8, 8))])
    1.0
    """
    if not 0 < max_fpr <= 1:
        raise ValueError(f"max_fpr must be in (0, 1], got {max_fpr!r}.")
    if not _are_maps(anomaly_maps):
        raise ValueError(
            "anomaly_maps must be a list of maps (H, W). Wrap a single one in a list."
        )
    checked_masks, maps = _check_maps(masks, anomaly_maps)
    area_weights = []
    for mask in checked_masks:
        regions, _ = ndimage.label(mask, structure=np.ones((3, 3)))
        areas = np.bincount(regions.ravel()).astype(np.float64)
        areas[0] = np.inf  # the normal pixels weigh nothing
        area_weights.append(1 / areas[regions.ravel()])
    is_anomalous, scores = _flatten(checked_masks, maps)
    weights = np.concatenate(area_weights)

    order = np.argsort(scores)[::-1]
    scores = scores[order]
    last_of_ties = np.append(scores[:-1] != scores[1:], True)
    overlap = np.cumsum(weights[order])[last_of_ties]
    overlap = np.append(0.0, overlap / overlap[-1])
    false_positives = np.cumsum(~is_anomalous[order])[last_of_ties]
    fpr = np.append(0.0, false_positives / false_positives[-1])

    end = int(np.searchsorted(fpr, max_fpr, side="right"))
    if end < len(fpr):
        at_limit = np.interp(
            max_fpr, fpr[end - 1 : end + 1], overlap[end - 1 : end + 1]
        )
        fpr = np.append(fpr[:end], max_fpr)
        overlap = np.append(overlap[:end], at_limit)
    area = np.sum(np.diff(fpr) * (overlap[1:] + overlap[:-1]) / 2)
    return float(min(area / max_fpr, 1.0))


class ErrorRate(NamedTuple):
    """An error rate with its interval, as `error_bounds` returns two of them.

    Parameters
    ----------
    n_errors : int
        How many samples were judged wrong.
    n_samples : int
        Of how many.
    rate : float
        ``n_errors / n_samples``.
    low : float
        Lower end of the interval.
    high : float
        Upper end of the interval.

    See Also
    --------
    error_bounds : Makes them.

    Examples
    --------
    >>> from clipad_sklearn.metrics import error_bounds
    >>> false_alarms, escapes = error_bounds([1, 1, -1], [3.0, 2.0, 0.5], offset=1.0)
    >>> escapes
    ErrorRate(n_errors=0, n_samples=1, rate=0.0, low=0.0, high=0.975)
    """

    n_errors: int
    n_samples: int
    rate: float
    low: float
    high: float


def error_bounds(
    y_true: ArrayLike, scores: ArrayLike, offset: float, *, confidence: float = 0.95
) -> tuple[ErrorRate, ErrorRate]:
    """Measure false alarms and escapes, with exact intervals.

    Parameters
    ----------
    y_true : array-like of shape (n_samples,)
        Labels in {-1, +1} with -1 for anomalous, or in {0, 1} or bool with 1 for
        anomalous, of images that neither taught the detector nor set its threshold.
    scores : array-like of shape (n_samples,)
        As ``score_samples`` returns them: higher means more normal.
    offset : float
        The threshold, such as ``offset_`` of the detector. Lower scores are flagged.
    confidence : float in (0, 1), default=0.95
        Of each interval.

    Returns
    -------
    false_alarms : ErrorRate
        A named tuple ``(n_errors, n_samples, rate, low, high)``: how many good images
        were flagged, of how many, which rate that is, and the interval in which the
        rate on new images lies.
    escapes : ErrorRate
        The same of the anomalous images that were not flagged.

    Raises
    ------
    ValueError
        If labels or scores are not as described or not finite, only one class
        occurs, or `confidence` is out of range.

    See Also
    --------
    clipad_sklearn.calibrate_threshold : Promises a rate of false alarms.

    Notes
    -----
    The intervals are those of Clopper and Pearson [1]_, which cover the rate at least
    this often, whatever the number of images. Zero escapes among 20 anomalous images
    still leave a rate of 17 % possible.

    Good images that set the threshold by a promise are the wrong ones to measure false
    alarms; anomalous images of the same set, which had no part in it, are right for
    escapes.

    References
    ----------
    .. [1] C. J. Clopper, E. S. Pearson, "The Use of Confidence or Fiducial Limits
       Illustrated in the Case of the Binomial", Biometrika, 1934.

    Examples
    --------
    >>> from clipad_sklearn.metrics import error_bounds
    >>> y, scores = [1] * 30 + [-1] * 20, [2.0] * 29 + [0.5] + [0.1] * 20
    >>> false_alarms, escapes = error_bounds(y, scores, offset=1.0)
    >>> print(f"{false_alarms.rate:.3f} {false_alarms.low:.3f} {false_alarms.high:.3f}")
    0.033 0.001 0.172
    >>> escapes.n_errors, escapes.n_samples, round(escapes.high, 3)
    (0, 20, 0.168)
    """
    number = isinstance(confidence, Real) and not isinstance(confidence, bool)
    if not number or not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence!r}: expected a number in (0, 1).")
    if not isinstance(offset, Real) or np.isnan(offset):
        raise ValueError(f"offset={offset!r}: expected a number.")
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 1:
        raise ValueError(
            f"scores: expected one number per image, got an array of shape "
            f"{values.shape}."
        )
    is_anomalous, values = _check_labels(y_true, values)
    flagged = values < offset
    return (
        _error_rate(flagged[~is_anomalous], confidence),
        _error_rate(~flagged[is_anomalous], confidence),
    )


def _error_rate(errors: np.ndarray, confidence: float) -> ErrorRate:
    n_errors, n_samples = int(np.count_nonzero(errors)), len(errors)
    interval = binomtest(n_errors, n_samples).proportion_ci(confidence, method="exact")
    rate = n_errors / n_samples
    return ErrorRate(
        n_errors, n_samples, rate, float(interval.low), float(interval.high)
    )


def _are_maps(anomaly_scores: Any) -> bool:
    if isinstance(anomaly_scores, np.ndarray) and anomaly_scores.dtype != object:
        return anomaly_scores.ndim == 3
    try:
        return len(anomaly_scores) > 0 and np.ndim(next(iter(anomaly_scores))) == 2
    except (TypeError, ValueError):
        return False


def _check_pairs(y_true: Any, anomaly_scores: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return which samples or pixels are anomalous, and their scores."""
    if _are_maps(anomaly_scores):
        return _flatten(*_check_maps(y_true, anomaly_scores))
    try:
        scores = _as_floats(anomaly_scores)
    except (TypeError, ValueError):
        scores = None
    if scores is None or scores.ndim != 1:
        raise ValueError(
            "anomaly_scores must be one number per sample, or a list of maps (H, W). "
            "Wrap a single map and its mask in lists."
        )
    return _check_labels(y_true, scores)


def _check_labels(y_true: Any, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    is_anomalous = to_outlier_labels(y_true)
    if len(scores) != len(is_anomalous):
        raise ValueError(
            f"There are {len(is_anomalous)} labels but {len(scores)} scores."
        )
    bad = np.flatnonzero(~np.isfinite(scores))
    if len(bad):
        raise ValueError(
            f"{len(bad)} of {len(scores)} scores are not finite (first at index "
            f"{bad[0]}: {scores[bad[0]]}). Leave these samples out; score_images, for "
            "one, gives NaN for images that cannot be read."
        )
    return is_anomalous, scores


def _as_floats(values: Any) -> np.ndarray:
    array = np.asarray(values)
    if array.dtype.kind not in "fiub":
        raise ValueError("not numbers")
    # float32 stays as it is: there can be very many pixels.
    keep = array.dtype in (np.float32, np.float64)
    return array if keep else array.astype(np.float64)


def _check_maps(
    masks: Any, anomaly_maps: Any
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    if masks is None or len(masks) != len(anomaly_maps):
        n_masks = 0 if masks is None else len(masks)
        raise ValueError(
            f"There are {n_masks} masks but {len(anomaly_maps)} maps. Give one mask "
            "per map, None for an image without anomaly."
        )
    checked_masks, maps = [], []
    for index, (mask, anomaly_map) in enumerate(zip(masks, anomaly_maps, strict=True)):
        try:
            anomaly_map = _as_floats(anomaly_map)
        except (TypeError, ValueError):
            raise ValueError(f"Map {index} does not hold numbers.") from None
        if anomaly_map.ndim != 2:
            raise ValueError(
                f"Map {index} must have the shape (H, W), got {anomaly_map.shape}."
            )
        if not np.isfinite(anomaly_map).all():
            raise ValueError(
                f"Map {index} has values that are not finite. Leave out images that "
                "could not be read."
            )
        if mask is None:
            mask = np.zeros(anomaly_map.shape, dtype=bool)
        mask = numbered_mask(index, mask)
        if mask.shape != anomaly_map.shape:
            raise ValueError(
                f"Mask {index} has the shape {mask.shape}, but its map has "
                f"{anomaly_map.shape}."
            )
        checked_masks.append(mask)
        maps.append(anomaly_map)
    n_pixels = sum(mask.size for mask in checked_masks)
    n_anomalous = sum(int(np.count_nonzero(mask)) for mask in checked_masks)
    if n_anomalous in (0, n_pixels):
        kind = "anomalous" if n_anomalous == 0 else "normal"
        raise ValueError(
            f"The masks have no {kind} pixel: both normal and anomalous pixels are "
            "needed."
        )
    return checked_masks, maps


def _flatten(
    masks: list[np.ndarray], maps: list[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    return (
        np.concatenate([mask.ravel() for mask in masks]),
        np.concatenate([anomaly_map.ravel() for anomaly_map in maps]),
    )


IMAGE_METRICS: dict[str, Callable[[Any, Any], float]] = {
    "auroc": auroc,
    "aupr": aupr,
    "f1_max": f1_max,
}
PIXEL_METRICS: dict[str, Callable[[Any, Any], float]] = {
    "pixel_auroc": auroc,
    "pixel_aupr": aupr,
    "pixel_f1_max": f1_max,
    "pro": pro,
}


@dataclass(frozen=True)
class _Scorer:
    """What `get_scorer` returns."""

    metric: str

    def __call__(self, estimator: Any, X: Any, y: Any) -> float:
        if self.metric in PIXEL_METRICS:
            _check_scored(estimator, "anomaly_maps", y, "masks: pass them as y")
            return PIXEL_METRICS[self.metric](y, estimator.anomaly_maps(X))
        _check_scored(estimator, "score_samples", y, "labels: pass y")
        return IMAGE_METRICS[self.metric](y, -np.asarray(estimator.score_samples(X)))

    def __repr__(self) -> str:
        return f"get_scorer({self.metric!r})"


def _check_scored(estimator: Any, method: str, y: Any, needed: str) -> None:
    if y is None:
        raise ValueError(f"Scoring needs {needed}.")
    if not hasattr(estimator, method):
        raise TypeError(
            f"{type(estimator).__name__} has no {method}, which this scorer needs."
        )


def get_scorer(metric: str) -> Callable[[Any, Any, ArrayLike], float]:
    """Make a scorer for `GridSearchCV` and other searches.

    Parameters
    ----------
    metric : str
        A metric of this module: ``"auroc"``, ``"aupr"`` or ``"f1_max"`` of images, or
        ``"pixel_auroc"``, ``"pixel_aupr"``, ``"pixel_f1_max"`` or ``"pro"`` of the
        anomaly maps of a detector that has them.

    Returns
    -------
    callable
        ``scorer(estimator, X, y)`` takes ``estimator.score_samples(X)``, where
        higher means more normal, turns its sign, and returns the metric. Labels of
        both conventions are right. Metrics of pixels take
        ``estimator.anomaly_maps(X)``, and as `y` a list of masks, as for `pro`. It can
        be pickled.

    Raises
    ------
    ValueError
        If there is no such metric.

    Notes
    -----
    scikit-learn's ``scoring="roc_auc"`` takes label 1 for the class with the high
    scores: right for {-1, +1}, but with {0, 1} and 1 for anomalous it silently
    returns one minus the AUROC.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.ensemble import IsolationForest
    >>> from clipad_sklearn.metrics import get_scorer
    >>> X = np.random.default_rng(0).normal(size=(100, 2))
    >>> X[:5] += 10
    >>> y = np.arange(100) < 5
    >>> get_scorer("auroc")(IsolationForest(random_state=0).fit(X), X, y)
    1.0
    """
    if metric not in IMAGE_METRICS and metric not in PIXEL_METRICS:
        names = ", ".join(map(repr, (*IMAGE_METRICS, *PIXEL_METRICS)))
        raise ValueError(f"metric={metric!r}: expected one of {names}.")
    return _Scorer(metric)
