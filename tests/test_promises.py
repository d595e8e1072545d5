"""The closed forms of false alarms, against exact arithmetic and plain counting."""

from __future__ import annotations

from fractions import Fraction
from math import comb

import numpy as np
import pytest

from clipad_sklearn._promises import (
    bound_of_rank,
    false_alarm_bound,
    floor_count,
    n_scores_needed,
    p_values,
    shift_test,
    smallest_promise,
    threshold_rank,
)

RATES = ("0.001", "0.01", "0.02", "0.05", "0.1", "0.29", "0.5", "0.9", "0.99")


def confidence_of(rank, n_scores, rate):
    """Exact probability that the rank-th of n uniform scores is at most `rate`."""
    return sum(
        comb(n_scores, j) * rate**j * (1 - rate) ** (n_scores - j)
        for j in range(rank, n_scores + 1)
    )


def test_a_share_of_a_total_is_what_it_reads_as():
    for total in range(1, 400):
        for count in range(total + 1):
            assert floor_count(count / total, total) == count
    assert floor_count(0.29, 100) == 29


def test_a_share_in_single_precision_or_with_8_digits_is_what_it_reads_as():
    for total in (*range(1, 101), 997, 1499, 99_999):
        for count in range(0, total + 1, max(1, total // 300)):
            share = count / total
            assert floor_count(np.float32(share), total) == count
            assert floor_count(float(np.float32(share)), total) == count
            for n_digits in (8, 9, 10):
                assert floor_count(round(share, n_digits), total) == count


def test_a_smaller_share_is_not_rounded_up():
    assert floor_count(0.333, 3) == 0
    assert floor_count(0.33333, 3) == 0
    generator = np.random.default_rng(0)
    for n_digits in range(1, 6):
        whole = 10**n_digits
        numbers = generator.integers(whole + 1, size=2000).tolist()
        totals = generator.integers(1, 10**5, size=2000).tolist()
        for number, total in zip(numbers, totals, strict=True):
            assert floor_count(number / whole, total) == number * total // whole
    assert floor_count(0.49, 99_951) == 48_975
    assert floor_count(0.4999, 99_999) == 49_989


@pytest.mark.parametrize("rate", RATES)
def test_on_average_the_rank_is_the_highest_that_keeps_the_rate(rate):
    for n_scores in range(1, 500):
        rank = threshold_rank(n_scores, float(rate))
        # Probability rank / (n + 1), exactly, and not one more.
        assert Fraction(rank, n_scores + 1) <= Fraction(rate)
        assert rank == n_scores or Fraction(rank + 1, n_scores + 1) > Fraction(rate)


@pytest.mark.parametrize("confidence", ["0.5", "0.9", "0.95", "0.99"])
@pytest.mark.parametrize("rate", RATES)
def test_with_confidence_the_rank_is_the_highest_that_keeps_it(rate, confidence):
    for n_scores in (1, 2, 7, 28, 29, 58, 59, 93, 149):
        rank = threshold_rank(n_scores, float(rate), float(confidence))
        if rank > 0:
            kept = confidence_of(rank, n_scores, Fraction(rate))
            assert kept >= Fraction(confidence)
        if rank < n_scores:
            kept = confidence_of(rank + 1, n_scores, Fraction(rate))
            assert kept < Fraction(confidence)


@pytest.mark.parametrize(
    ("rate", "on_average", "at_95"),
    [(0.1, 9, 29), (0.05, 19, 59), (0.02, 49, 149), (0.01, 99, 299)],
)
def test_numbers_of_images_needed(rate, on_average, at_95):
    assert n_scores_needed(rate) == on_average
    assert n_scores_needed(rate, 0.95) == at_95


def test_needed_numbers_are_the_smallest_and_promises_can_be_kept():
    for rate in np.linspace(0.003, 0.997, 120):
        for confidence in (None, 0.3, 0.9, 0.95, 0.999):
            needed = n_scores_needed(rate, confidence)
            assert threshold_rank(needed, rate, confidence) >= 1
            assert needed == 1 or threshold_rank(needed - 1, rate, confidence) == 0
    for n_scores in range(1, 200):
        for confidence in (None, 0.5, 0.95):
            least = smallest_promise(n_scores, confidence)
            assert threshold_rank(n_scores, least * (1 + 1e-7), confidence) == 1
            assert threshold_rank(n_scores, least * (1 - 1e-7), confidence) == 0
    assert smallest_promise(20) == pytest.approx(1 / 21)
    assert smallest_promise(40, 0.95) == pytest.approx(1 - 0.05 ** (1 / 40))
    assert n_scores_needed(1e-9, 0.95) == pytest.approx(np.log(20) * 1e9, rel=1e-6)


def test_bound_of_a_threshold():
    scores = np.array([1.0, 2.0, 2.0, 5.0])
    for offset, n_below in [(0, 0), (1, 0), (1.5, 1), (2, 1), (3, 3), (5, 3)]:
        assert false_alarm_bound(scores, offset) == (n_below + 1) / 5
        bound = false_alarm_bound(scores, offset, 0.9)
        assert bound == bound_of_rank(n_below + 1, 4, 0.9)
        exact = confidence_of(n_below + 1, 4, Fraction(bound))
        assert float(exact) == pytest.approx(0.9, abs=1e-12)
    assert false_alarm_bound(scores, 6) == false_alarm_bound(scores, 6, 0.9) == 1


# Ties come with rounding: then promised rates are upper bounds.
DRAWS = {
    "normal": lambda rng, size: rng.standard_normal(size),
    "log-normal": lambda rng, size: -rng.lognormal(0, 1.5, size),
    "student": lambda rng, size: rng.standard_t(2, size),
    "ties": lambda rng, size: np.round(rng.standard_normal(size) * 3),
}


@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize(
    ("n_scores", "rate", "confidence"),
    [(20, 0.05, None), (40, 0.1, None), (60, 0.05, 0.95), (93, 0.05, 0.9)],
)
def test_promises_are_kept(name, n_scores, rate, confidence):
    rng = np.random.default_rng(0)
    n_sets = 2000
    rank = threshold_rank(n_scores, rate, confidence)
    sets = np.sort(DRAWS[name](rng, (n_sets, n_scores)), axis=1)
    offsets = sets[:, rank - 1]
    new = np.sort(DRAWS[name](rng, 200_000))
    rates = np.searchsorted(new, offsets) / len(new)  # below it: flagged
    expected = rank / (n_scores + 1)
    error = 3 * rates.std() / np.sqrt(n_sets) + 3 * np.sqrt(expected / len(new))
    broken = np.mean(rates > rate)
    if confidence is None:
        assert rates.mean() <= rate + error
    else:
        assert broken <= 1 - confidence + 3 * np.sqrt(
            confidence * (1 - confidence) / n_sets
        )
    if name != "ties":
        assert rates.mean() == pytest.approx(expected, abs=error)
        exact = 1 - float(confidence_of(rank, n_scores, Fraction(str(rate))))
        noise = 3 * np.sqrt(exact * (1 - exact) / n_sets) + 0.01
        assert broken == pytest.approx(exact, abs=noise)


# p-values -------------------------------------------------------------------


def test_p_values_count():
    rng = np.random.default_rng(0)
    calibration = rng.integers(0, 30, 50).astype(float)
    scores = np.append(rng.integers(-2, 33, 200).astype(float), np.nan)
    expected = [(1 + sum(c <= s for c in calibration)) / 51 for s in scores[:-1]]
    found = p_values(scores, calibration)
    np.testing.assert_allclose(found[:-1], expected, rtol=1e-15)
    assert np.isnan(found[-1])
    # Flagged by the threshold of rank k: the p-value is at most k / (n + 1).
    calibration = np.sort(rng.standard_normal(50))
    scores = rng.standard_normal(300)
    for rank in (1, 2, 17, 50):
        flagged = scores < calibration[rank - 1]
        at_most = p_values(scores, calibration) <= rank / 51 + 1e-12
        np.testing.assert_array_equal(flagged, at_most)


@pytest.mark.parametrize("name", DRAWS)
def test_p_values_of_good_images_are_uniform_or_larger(name):
    rng = np.random.default_rng(1)
    found = [
        p_values(DRAWS[name](rng, 1), DRAWS[name](rng, 19))[0] for _ in range(4000)
    ]
    for level in (0.05, 0.1, 0.25, 0.5, 0.9):
        error = 3 * np.sqrt(level * (1 - level) / len(found))
        share = np.mean(np.array(found) <= level + 1e-12)
        assert share <= level + error
        assert name == "ties" or share >= level - error


# The test of a day -----------------------------------------------------------


def test_the_shift_test_is_a_permutation_test():
    rng = np.random.default_rng(2)
    calibration, day = rng.standard_normal(12), rng.standard_normal(30) - 0.4
    found = shift_test(day, calibration)

    # In sorted order, the distance is the largest partial sum of signed weights.
    weights = np.append(np.full(12, 1 / 12), np.full(30, -1 / 30))
    weights = weights[np.argsort(np.append(calibration, day))]
    observed = np.abs(weights.cumsum()).max()
    mixed = rng.permuted(np.tile(weights, (10_000, 1)), axis=1)
    hits = np.abs(mixed.cumsum(axis=1)).max(axis=1) >= observed - 1e-12
    assert 0.01 < found < 0.9
    assert found == pytest.approx(hits.mean(), abs=3 * np.sqrt(found / 10_000))
    assert shift_test(np.append(day, [np.nan]), calibration) == found


@pytest.mark.parametrize("name", ["normal", "ties"])
@pytest.mark.parametrize(("n_scores", "n_day"), [(40, 40), (150, 40), (40, 1000)])
def test_good_days_are_rejected_no_more_often_than_said(name, n_scores, n_day):
    rng = np.random.default_rng(3)
    found = np.array(
        [
            shift_test(DRAWS[name](rng, n_day), DRAWS[name](rng, n_scores))
            for _ in range(300)
        ]
    )
    for level in (0.01, 0.05, 0.2):
        assert np.mean(found <= level) <= level + 3 * np.sqrt(level / len(found))
    if name == "normal":  # and it is no empty promise
        assert np.mean(found <= 0.2) >= 0.1
        worse = DRAWS[name](rng, n_day) - 1
        assert shift_test(worse, DRAWS[name](rng, n_scores)) < 0.01


@pytest.mark.parametrize(
    ("scores", "calibration", "message"),
    [
        ([[1.0]], [1.0], "scores: expected one number per image, got an array of"),
        (1.0, [1.0], "scores: expected one number per image"),
        ([1.0], [[1.0]], "calibration_scores: expected one number per image"),
        ([1.0], [], "calibration_scores: expected finite scores of at least one"),
        ([1.0], [1.0, np.nan], "calibration_scores: expected finite scores"),
    ],
)
def test_bad_scores(scores, calibration, message):
    for function in (p_values, shift_test):
        with pytest.raises(ValueError, match=message):
            function(scores, calibration)


def test_no_score_to_test():
    for scores in ([], [np.nan, np.nan]):
        with pytest.raises(ValueError, match="no score to test"):
            shift_test(scores, [1.0, 2.0])
    assert len(p_values([], [1.0])) == 0
