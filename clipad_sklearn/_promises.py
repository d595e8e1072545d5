"""What the scores of n good images promise about new ones.

Here scores are those of ``score_samples``: higher is more normal. An image is flagged
when its score is below the threshold. The scores of the good images are exchangeable
with those to come.

With the k-th lowest of n scores as threshold, a new good image is flagged with
probability k / (n + 1) on average over sets of n images (less with ties). Given the
set, the rate is distributed as Beta(k, n + 1 - k).
"""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import betainc, betaincinv
from scipy.stats import ks_2samp

# 0.29 * 100 is 28.999... in floating point.
_ROUNDING = 1e-9
# A share of fewer decimals than this is meant as it reads: 0.333 of 3 is less than 1.
_SHORTEST = 6


def floor_count(share: float, total: int) -> int:
    """Return how many of `total` are at most this share of them."""
    share = float(share)
    count = _floor(share, total)
    return count + _is_rounded(share, count + 1, total)


def _floor(share: float, total: int) -> int:
    return math.floor(share * total + _ROUNDING)


def _is_rounded(share: float, count: int, total: int) -> bool:
    """Return whether a share is count / total in single precision or many digits."""
    n_decimals = -int(Decimal(repr(share)).as_tuple().exponent)
    if count > total or n_decimals < _SHORTEST:
        return False
    exact = count / total
    return share in (float(np.float32(exact)), round(exact, max(n_decimals, 8)))


def threshold_rank(
    n_scores: int, max_false_alarm: float, confidence: float | None = None
) -> int:
    """Return which of the sorted scores to use as the threshold, counted from 1.

    It is the highest that keeps the rate of false alarms on new good images at most
    `max_false_alarm`: on average, or at this confidence. 0: there is none.
    """
    if confidence is None:
        return min(_floor(max_false_alarm, n_scores + 1), n_scores)
    ranks = np.arange(1, n_scores + 1)
    # The probability that the rate is at most max_false_alarm falls with the rank.
    probabilities = betainc(ranks, n_scores + 1 - ranks, max_false_alarm)
    return int(np.count_nonzero(_at_least(probabilities, confidence)))


def smallest_promise(n_scores: int, confidence: float | None = None) -> float:
    """Return the smallest rate of false alarms that this many scores can promise."""
    return bound_of_rank(1, n_scores, confidence)


def bound_of_rank(rank: int, n_scores: int, confidence: float | None = None) -> float:
    """Return the rate of false alarms that the score of this rank promises."""
    if rank > n_scores:
        return 1.0
    if confidence is None:
        return rank / (n_scores + 1)
    return float(betaincinv(rank, n_scores + 1 - rank, confidence))


def false_alarm_bound(
    calibration_scores: np.ndarray, offset: float, confidence: float | None = None
) -> float:
    """Return the rate of false alarms that a threshold promises.

    It holds for one threshold, which was chosen by its rank or without looking at
    these scores; not for all thresholds at once.
    """
    n_below = int(np.searchsorted(calibration_scores, offset))  # they are sorted
    return bound_of_rank(n_below + 1, len(calibration_scores), confidence)


def n_scores_needed(max_false_alarm: float, confidence: float | None = None) -> int:
    """Return the smallest number of scores that can promise this rate."""
    if confidence is None:
        guess = 1 / max_false_alarm - 1
    else:
        guess = math.log1p(-confidence) / math.log1p(-max_false_alarm)
    n_scores = max(math.floor(guess), 1)
    while not _lowest_keeps(n_scores, max_false_alarm, confidence):
        n_scores += 1
    return n_scores


def _lowest_keeps(
    n_scores: int, max_false_alarm: float, confidence: float | None
) -> bool:
    if confidence is None:
        return _floor(max_false_alarm, n_scores + 1) >= 1
    return bool(_at_least(betainc(1, n_scores, max_false_alarm), confidence))


def _at_least(probabilities: Any, confidence: float) -> Any:
    # Some probabilities are equal to a round confidence.
    return probabilities >= confidence - 1e-12


def p_values(scores: ArrayLike, calibration_scores: ArrayLike) -> np.ndarray:
    """Share of good images that look at least as odd.

    Parameters
    ----------
    scores : array-like of shape (n_samples,)
        As ``score_samples`` returns them: higher means more normal. NaN, for images
        that could not be read, gives NaN.
    calibration_scores : array-like of shape (n_good,)
        Scores of good images that the detector did not learn from, such as
        ``calibration_scores_`` of a detector that `calibrate_threshold` has set.

    Returns
    -------
    ndarray of shape (n_samples,)
        In [1 / (n_good + 1), 1]. Small for images that look odd.

    Raises
    ------
    ValueError
        If scores are not one-dimensional, or there is no calibration score, or one
        that is not finite.

    See Also
    --------
    shift_test : Whether the scores of a day still are like those of the calibration.

    Notes
    -----
    The p-value of a score s is (1 + #{s_i <= s}) / (n + 1) with the n calibration
    scores s_i, the conformal p-value of [1]_. Where good images are exchangeable with
    those of the calibration, it is at most t with probability t at most, for each t,
    on average over calibrations.

    All p-values of a day share their calibration images and so depend on each other: a
    test that they are uniform rejects good days far too often. For a list of images
    of which a known share may be false alarms, give them to
    :func:`scipy.stats.false_discovery_control` (Benjamini and Hochberg).

    References
    ----------
    .. [1] V. Vovk, A. Gammerman, G. Shafer, "Algorithmic Learning in a Random World",
       Springer, 2005.

    Examples
    --------
    >>> from clipad_sklearn.metrics import p_values
    >>> p_values([0.5, 2.5, 9.0], [1, 2, 3, 4])
    array([0.2, 0.6, 1. ])
    """
    values, calibration = _check_scores(scores, calibration_scores)
    n_at_least_as_odd = np.searchsorted(np.sort(calibration), values, side="right")
    shares = (1 + n_at_least_as_odd) / (len(calibration) + 1)
    return np.where(np.isnan(values), np.nan, shares)


def shift_test(scores: ArrayLike, calibration_scores: ArrayLike) -> float:
    """Test whether new scores are still like those of the calibration.

    What `calibrate_threshold` promises holds as long as good images stay exchangeable
    with those of the calibration: same camera, light and product. Test a day's scores
    to notice that they no longer are.

    Parameters
    ----------
    scores : array-like of shape (n_samples,)
        Scores of a day, as ``score_samples`` returns them. Most of the images should
        be good: many bad ones are a difference too. NaN are left out.
    calibration_scores : array-like of shape (n_good,)
        Scores of good images that the detector did not learn from, such as
        ``calibration_scores_``.

    Returns
    -------
    float
        The p-value. Taking it for a warning when it is at most 0.01 gives a false
        warning on at most one good day in a hundred, on average over calibrations.

    Raises
    ------
    ValueError
        If scores are not one-dimensional, none is left, or a calibration score is not
        finite.

    See Also
    --------
    p_values : How odd each image is.

    Notes
    -----
    The two-sample Kolmogorov-Smirnov test, whose p-value is exact: among all ways to
    share out the pooled scores, the share in which the two empirical distributions
    lie at least as far apart. With tied scores it is too large rather than too small,
    and with more than 10,000 scores on either side the asymptotic distribution is
    used. Days that are tested with the same calibration depend on each other.

    Examples
    --------
    >>> import numpy as np
    >>> from clipad_sklearn.metrics import shift_test
    >>> rng = np.random.default_rng(0)
    >>> calibration_scores = rng.normal(size=60)
    >>> bool(shift_test(rng.normal(size=200), calibration_scores) > 0.01)
    True
    >>> bool(shift_test(rng.normal(-1, size=200), calibration_scores) > 0.01)
    False
    """
    values, calibration = _check_scores(scores, calibration_scores)
    values = values[~np.isnan(values)]
    if len(values) == 0:
        raise ValueError("There is no score to test: all are NaN, or there are none.")
    return float(ks_2samp(values, calibration).pvalue)


def _check_scores(
    scores: ArrayLike, calibration_scores: ArrayLike
) -> tuple[np.ndarray, np.ndarray]:
    values = np.asarray(scores, dtype=np.float64)
    calibration = np.asarray(calibration_scores, dtype=np.float64)
    for name, array in (("scores", values), ("calibration_scores", calibration)):
        if array.ndim != 1:
            raise ValueError(
                f"{name}: expected one number per image, got an array of shape "
                f"{array.shape}."
            )
    if len(calibration) == 0 or not np.isfinite(calibration).all():
        raise ValueError(
            "calibration_scores: expected finite scores of at least one good image."
        )
    return values, calibration
