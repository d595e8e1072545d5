from __future__ import annotations

import itertools
import pickle
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from scipy.stats import beta, binom
from sklearn.ensemble import IsolationForest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import (
    auc,
    average_precision_score,
    roc_auc_score,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from clipad_sklearn.metrics import (
    aupr,
    auroc,
    error_bounds,
    f1_max,
    get_scorer,
    pro,
    to_outlier_labels,
)

METRICS = [auroc, aupr, f1_max]

# Labels ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "y",
    [
        [1, -1, 1, 1],
        [0, 1, 0, 0],
        [False, True, False, False],
        [0.0, 1.0, 0.0, 0.0],
        np.array([1, -1, 1, 1], dtype=np.int8),
        np.array([0, 1, 0, 0], dtype=np.uint8),
        np.array([0, 1, 0, 0], dtype=object),
    ],
)
def test_labels_of_both_conventions(y):
    labels = to_outlier_labels(y)
    assert labels.dtype == bool
    np.testing.assert_array_equal(labels, [False, True, False, False])


def test_labels_of_a_series():
    pandas = pytest.importorskip("pandas")
    np.testing.assert_array_equal(
        to_outlier_labels(pandas.Series([1, -1], index=[7, 8])), [False, True]
    )


@pytest.mark.parametrize(
    ("y", "message"),
    [
        ([], "There are no labels"),
        ([0, 0], "All labels are 0: both normal and anomalous samples are needed. Use"),
        ([1, 1], "All labels are 1: both normal"),
        ([-1, -1], "All labels are -1: both normal"),
        ([-1, 0, 1], "Labels are -1, 0, 1, which is no known convention. Use -1 for"),
        ([-1, 0], "Labels are -1, 0, which is no known convention"),
        ([1, 2], "Labels are 1, 2, which"),
        ([0, 0.5, 1], "Labels are 0, 0.5, 1, which"),
        ([0, 255], "Labels are 0, 255, which"),
        (list(range(9)), "Labels are 0, 1, 2, 3, 4, which"),
        ([0, np.inf], "Labels are 0, inf, which"),
        ([0, 1, np.nan], "Labels must not be NaN. Use -1"),
        ([0, 1, None], "Labels must not be NaN"),
        (["good", "bad"], "Labels must be numbers, got ['good', 'bad']. Use -1"),
        (["0", "1"], "Labels must be numbers"),
        (np.array([0, "1"], dtype=object), "Labels must be numbers"),
        ([[0], [1]], "Labels must be one-dimensional, got an array of shape (2, 1)"),
        (1, "Labels must be one-dimensional, got an array of shape ()"),
        (None, "Labels must be one-dimensional, got an array of shape ()"),
        ([np.zeros((2, 2)), np.ones((3, 3))], "got parts of different sizes"),
    ],
)
def test_bad_labels(y, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        to_outlier_labels(y)
    with pytest.raises(ValueError, match=re.escape(message)):
        auroc(y, [0.1, 0.2])


# Image level ----------------------------------------------------------------


def reference_f1_max(is_anomalous, scores):
    best = 0.0
    for level in np.unique(scores):
        flagged = scores >= level
        hits = np.count_nonzero(flagged & is_anomalous)
        total = np.count_nonzero(flagged) + np.count_nonzero(is_anomalous)
        best = max(best, 2 * hits / total)
    return best


def random_case(seed):
    """Labels and scores with many ties, of any balance and size."""
    rng = np.random.default_rng(seed)
    n = rng.integers(2, 60)
    is_anomalous = rng.random(n) < rng.random()
    is_anomalous[rng.permutation(n)[:2]] = [True, False]
    scores = rng.normal(size=n) * 10.0 ** rng.integers(-8, 8) + is_anomalous
    return is_anomalous, np.round(scores, rng.integers(0, 3))


def test_agreement_with_scikit_learn_on_random_cases_with_ties():
    for seed in range(150):
        is_anomalous, scores = random_case(seed)
        expected = {
            auroc: roc_auc_score(is_anomalous, scores),
            aupr: average_precision_score(is_anomalous, scores),
            f1_max: reference_f1_max(is_anomalous, scores),
        }
        for metric, value in expected.items():
            for y in (is_anomalous, is_anomalous * 1, 1 - 2 * is_anomalous):
                found = metric(y, scores)
                assert type(found) is float
                assert found == pytest.approx(value, abs=1e-12)


def test_known_values():
    y = [1, 1, -1, -1]
    assert [metric(y, [0, 1, 2, 3]) for metric in METRICS] == [1, 1, 1]
    assert auroc(y, [3, 2, 1, 0]) == 0
    assert [metric(y, [5, 5, 5, 5]) for metric in METRICS] == [0.5, 0.5, 2 / 3]
    # F1 is not best where precision or recall is.
    assert f1_max([0, 0, 1, 0, 1, 1], [0, 1, 2, 3, 4, 5]) == pytest.approx(6 / 7)


@pytest.mark.parametrize(
    ("y", "scores", "message"),
    [
        ([0, 1], [0.1, 0.2, 0.3], "There are 2 labels but 3 scores"),
        ([0, 1], [0.1], "There are 2 labels but 1 scores"),
        ([0, 1, 1], [0.1, np.nan, np.nan], "2 of 3 scores are not finite (first at in"),
        ([0, 1], [0.1, np.inf], "1 of 2 scores are not finite (first at index 1: inf)"),
        ([0, 1], [[0.1], [0.2]], "must be one number per sample, or a list of maps"),
        ([0, 1], ["a", "b"], "must be one number per sample, or a list of maps"),
        ([0, 1], [0.1, None], "must be one number per sample, or a list of maps"),
        ([0, 1], None, "must be one number per sample, or a list of maps"),
        ([0, 1], 0.1, "must be one number per sample, or a list of maps"),
        ([0, 1], np.zeros((2, 2)), "Wrap a single map and its mask in lists"),
        ([0, 1], [np.zeros(2), np.zeros(3)], "must be one number per sample"),
    ],
)
@pytest.mark.parametrize("metric", METRICS)
def test_bad_scores(metric, y, scores, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        metric(y, scores)


# Pixel level ----------------------------------------------------------------


def random_maps(seed, n_images=3, max_side=8):
    """Masks and maps with ties, sizes that differ, and good images."""
    rng = np.random.default_rng(seed)
    masks, maps = [], []
    for index in range(n_images):
        shape = tuple(rng.integers(3, max_side + 1, size=2))
        mask = rng.random(shape) < rng.choice([0.1, 0.3, 0.6])
        mask.flat[:2] = [True, False]
        anomaly_map = np.round(rng.normal(size=shape) + mask, rng.integers(0, 2))
        good = index > 0 and rng.random() < 0.3
        masks.append(None if good else mask)
        maps.append(anomaly_map)
    return masks, maps


def filled(masks, maps):
    return [
        np.zeros(anomaly_map.shape, dtype=bool) if mask is None else mask
        for mask, anomaly_map in zip(masks, maps, strict=True)
    ]


@pytest.mark.parametrize("metric", METRICS)
def test_pixels_are_pooled_over_all_images(metric):
    for seed in range(50):
        masks, maps = random_maps(seed)
        y = np.concatenate([mask.ravel() for mask in filled(masks, maps)])
        scores = np.concatenate([anomaly_map.ravel() for anomaly_map in maps])
        assert metric(masks, maps) == metric(y, scores)


@pytest.mark.parametrize("metric", [*METRICS, pro])
def test_masks_and_maps_may_come_in_any_form(metric):
    rng = np.random.default_rng(0)
    masks = rng.random((3, 5, 6)) < 0.3
    maps = np.round(rng.normal(size=(3, 5, 6)) + masks, 1)
    expected = metric(list(masks), list(maps))
    assert metric(masks, maps) == expected
    assert metric(tuple(masks.astype(np.uint8)), tuple(maps)) == expected
    assert metric(masks.astype(float), maps.tolist()) == expected
    assert metric(list(masks.astype(int).tolist()), maps) == expected
    assert metric(masks, np.round(10 * maps).astype(int)) == expected
    assert metric(masks, maps.astype(np.float32)) == pytest.approx(expected, abs=1e-12)
    assert metric(masks, maps.astype(np.float16)) == pytest.approx(expected, abs=1e-12)


MASK = np.eye(3, dtype=bool)
MAP = np.arange(9.0).reshape(3, 3)


@pytest.mark.parametrize(
    ("masks", "maps", "message"),
    [
        ([MASK], [MAP, MAP], "There are 1 masks but 2 maps. Give one mask per map"),
        (None, [MAP], "There are 0 masks but 1 maps"),
        ([MASK, MASK], [MAP, MAP[:2]], "Mask 1 has the shape (3, 3), but its map has"),
        ([0, 1], [MAP, MAP], "Mask 0: array of shape (): expected (height, width)"),
        ([MASK * 7], [MAP], "Mask 0: values other than 0 and 1, or 0 and 255; pass"),
        ([MASK * 0.5], [MAP], "Mask 0: values other than 0 and 1"),
        ([MASK, MASK * np.nan], [MAP, MAP], "Mask 1: values other than 0 and 1"),
        ([MASK, MASK], [MAP, MAP * np.nan], "Map 1 has values that are not finite"),
        ([MASK, MASK], [MAP, MAP / np.inf + np.inf], "Map 1 has values that are not"),
        ([MASK, MASK], [MAP, MAP.ravel()], "Map 1 must have the shape (H, W), got (9,"),
        ([MASK, MASK], [MAP, MAP.astype(str)], "Map 1 does not hold numbers"),
        ([None, MASK * 0], [MAP, MAP], "The masks have no anomalous pixel"),
        ([MASK == MASK], [MAP], "The masks have no normal pixel"),
    ],
)
@pytest.mark.parametrize("metric", [*METRICS, pro])
def test_bad_masks_and_maps(metric, masks, maps, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        metric(masks, maps)


# PRO ------------------------------------------------------------------------


def flood_fill_regions(mask):
    """Pixels of each 8-connected region, found without a library."""
    left = {tuple(position) for position in np.argwhere(mask)}
    regions = []
    while left:
        region, edge = [], [left.pop()]
        while edge:
            row, column = edge.pop()
            region.append((row, column))
            for neighbour in [
                (row + i, column + j) for i in (-1, 0, 1) for j in (-1, 0, 1)
            ]:
                if neighbour in left:
                    left.remove(neighbour)
                    edge.append(neighbour)
        regions.append(region)
    return regions


def brute_force_pro(masks, maps, max_fpr):
    """PRO straight from its definition, one threshold at a time."""
    masks = filled(masks, maps)
    regions = [
        [anomaly_map[position] for position in region]
        for mask, anomaly_map in zip(masks, maps, strict=True)
        for region in flood_fill_regions(mask)
    ]
    normal = np.concatenate(
        [anomaly_map[~mask] for mask, anomaly_map in zip(masks, maps, strict=True)]
    )
    levels = np.unique(np.concatenate([m.ravel() for m in maps]))[::-1]
    curve = [(0.0, 0.0)]
    for level in levels:
        overlap = np.mean([np.mean(np.array(r) >= level) for r in regions])
        curve.append((np.mean(normal >= level), overlap))
    area = 0.0
    for (x0, y0), (x1, y1) in itertools.pairwise(curve):
        if x0 >= max_fpr:
            break
        if x1 > max_fpr:
            y1 = y0 + (y1 - y0) * (max_fpr - x0) / (x1 - x0)
            x1 = max_fpr
        area += (x1 - x0) * (y0 + y1) / 2
    return area / max_fpr


def test_pro_agrees_with_brute_force_on_random_cases_with_ties():
    for seed in range(500):
        masks, maps = random_maps(seed)
        max_fpr = [0.3, 1.0, 0.05, 0.5][seed % 4]
        found = pro(masks, maps, max_fpr=max_fpr)
        assert found == pytest.approx(brute_force_pro(masks, maps, max_fpr), abs=1e-6)


def test_pro_of_perfect_useless_and_wrong_maps():
    mask = np.zeros((20, 20), dtype=bool)
    mask[2:5, 2:5] = mask[10:18, 10:18] = True
    assert pro([mask], [mask.astype(float)]) == 1.0
    assert pro([mask], [mask * 1.0], max_fpr=1) == 1.0
    assert pro([mask], [np.zeros(mask.shape)]) == pytest.approx(0.15)
    assert pro([mask], [-1.0 * mask]) == 0.0


def test_regions_count_the_same_whatever_their_size():
    mask = np.zeros((20, 20), dtype=bool)
    mask[0, 0] = mask[10:, 10:] = True
    found_small = np.zeros(mask.shape)
    found_small[0, 0] = 1
    found_large = np.zeros(mask.shape)
    found_large[10:, 10:] = 1
    # Half of the regions is found at no cost; the other comes with everything.
    expected = (0.5 + 0.5 + 0.5 * 0.3) / 2
    assert pro([mask], [found_small]) == pytest.approx(expected)
    assert pro([mask], [found_large]) == pytest.approx(expected)


def test_regions_that_touch_at_a_corner_are_one():
    touching = np.zeros((6, 6), dtype=bool)
    touching[0, 0] = touching[1, 1] = touching[2, 2] = touching[5, 5] = True
    anomaly_map = np.zeros((6, 6))
    anomaly_map[5, 5] = 1
    assert pro([touching], [anomaly_map]) == pytest.approx((0.5 + 0.5 + 0.5 * 0.3) / 2)


def test_pro_over_all_rates_with_regions_of_one_pixel_is_the_pixel_auroc():
    rng = np.random.default_rng(0)
    mask = np.zeros((31, 31), dtype=bool)
    mask[::3, ::3] = rng.random((11, 11)) < 0.5
    maps = [np.round(rng.normal(size=mask.shape) + mask, 1) for _ in range(3)]
    masks = [mask] * 3
    assert pro(masks, maps, max_fpr=1) == pytest.approx(auroc(masks, maps), abs=1e-12)


def test_pro_agrees_with_a_sweep_over_many_thresholds():
    rng = np.random.default_rng(1)
    masks, maps = [], []
    for _ in range(4):
        mask = np.zeros((40, 40), dtype=bool)
        for _ in range(3):
            row, column, height, width = rng.integers(1, 20, size=4)
            mask[row : row + height, column : column + width] = True
        masks.append(mask)
        maps.append(rng.normal(size=mask.shape) + mask)
    levels = np.linspace(6, -6, 3000)
    normal = np.concatenate([m[~mask] for mask, m in zip(masks, maps, strict=True)])
    regions = [
        np.array([m[position] for position in region])
        for mask, m in zip(masks, maps, strict=True)
        for region in flood_fill_regions(mask)
    ]
    fpr = np.array([np.mean(normal >= level) for level in levels])
    overlap = np.array(
        [np.mean([np.mean(r >= level) for r in regions]) for level in levels]
    )
    # Without the rest of the last step, the sweep would be short of 0.3.
    rates = np.append(fpr[fpr < 0.3], 0.3)
    sweep = auc(rates, np.interp(rates, fpr, overlap)) / 0.3
    assert pro(masks, maps) == pytest.approx(sweep, abs=1e-3)


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    max_fpr=st.floats(0.001, 1),
    scale=st.sampled_from([0.001, 1, 1000]),
)
def test_pro_depends_on_the_order_only_and_lies_in_the_unit_interval(
    seed, max_fpr, scale
):
    masks, maps = random_maps(seed, max_side=5)
    value = pro(masks, maps, max_fpr=max_fpr)
    assert 0 <= value <= 1
    stretched = [np.exp(m) * scale for m in maps]
    assert pro(masks, stretched, max_fpr=max_fpr) == pytest.approx(value, abs=1e-12)
    order = np.random.default_rng(seed).permutation(len(maps))
    shuffled = pro([masks[i] for i in order], [maps[i] for i in order], max_fpr=max_fpr)
    assert shuffled == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize("max_fpr", [0, -0.1, 1.1, np.nan])
def test_bad_max_fpr(max_fpr):
    with pytest.raises(ValueError, match=r"max_fpr must be in \(0, 1\]"):
        pro([MASK], [MAP], max_fpr=max_fpr)


@pytest.mark.parametrize("maps", [MAP, [0.1, 0.2], [], None, 3])
def test_pro_needs_maps(maps):
    with pytest.raises(ValueError, match=r"must be a list of maps \(H, W\). Wrap"):
        pro([MASK], maps)


# Scorers --------------------------------------------------------------------


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    is_anomalous = np.arange(60) % 6 == 0
    X = rng.normal(size=(60, 3)) + 1.5 * is_anomalous[:, None]
    return X, is_anomalous


@pytest.mark.parametrize("metric", METRICS)
def test_scorers_turn_the_sign_and_take_both_conventions(metric, data):
    X, is_anomalous = data
    scorer = get_scorer(metric.__name__)
    detector = IsolationForest(random_state=0).fit(X)
    expected = metric(is_anomalous, -detector.score_samples(X))
    assert expected > 1 - expected
    for y in (is_anomalous, is_anomalous * 1, 1 - 2 * is_anomalous):
        assert scorer(detector, X, y) == expected
    pipeline = make_pipeline(StandardScaler(), IsolationForest(random_state=0)).fit(X)
    assert scorer(pipeline, X, is_anomalous) == metric(
        is_anomalous, -pipeline.score_samples(X)
    )


def test_scorers_are_values():
    scorer = get_scorer("aupr")
    assert repr(scorer) == "get_scorer('aupr')"
    assert pickle.loads(pickle.dumps(scorer)) == scorer
    assert scorer != get_scorer("auroc")


def test_bad_scorers(data):
    X, y = data
    with pytest.raises(ValueError, match=r"'roc_auc': expected one of 'auroc'"):
        get_scorer("roc_auc")
    detector = IsolationForest(random_state=0).fit(X)
    with pytest.raises(ValueError, match="Scoring needs labels: pass y"):
        get_scorer("auroc")(detector, X, None)
    with pytest.raises(TypeError, match="LogisticRegression has no score_samples"):
        get_scorer("auroc")(LogisticRegression().fit(X, y), X, y)


@settings(max_examples=100, deadline=None)
@given(
    scores=hnp.arrays(np.float64, 20, elements=st.integers(-5, 5).map(float)),
    n_anomalous=st.integers(1, 19),
)
def test_bounds_and_symmetry(scores, n_anomalous):
    y = np.arange(20) < n_anomalous
    share = n_anomalous / 20
    assert auroc(y, scores) == pytest.approx(1 - auroc(y, -scores), abs=1e-12)
    assert auroc(y, scores) == pytest.approx(auroc(~y, -scores), abs=1e-12)
    assert 0 < aupr(y, scores) <= 1
    assert 2 * share / (1 + share) - 1e-12 <= f1_max(y, scores) <= 1


def test_masks_from_files(tmp_path):
    mask = np.zeros((8, 6), dtype=bool)
    mask[2:4, 1:5] = True
    path = tmp_path / "mask.png"
    Image.fromarray(mask.astype(np.uint8) * 3).save(path)
    maps = [np.random.default_rng(k).random((8, 6)) for k in range(2)]
    for metric in (*METRICS, pro):
        assert metric([str(path), None], maps) == metric([mask, None], maps)
    with pytest.raises(ValueError, match=r"Mask 1, missing.png: no such file"):
        auroc([path, "missing.png"], maps)


# Error rates ------------------------------------------------------------------


@pytest.mark.parametrize("convention", [(1, -1), (0, 1), (False, True)])
def test_error_bounds_count_and_are_those_of_clopper_and_pearson(convention):
    rng = np.random.default_rng(0)
    is_anomalous = np.arange(70) % 3 == 0
    scores = rng.normal(size=70).round(1) - is_anomalous
    y = np.where(is_anomalous, *convention[::-1])
    for offset in (-9.0, -0.5, scores[3], 9.0):
        rates = error_bounds(y, scores, offset, confidence=0.9)
        flagged = scores < offset  # as predict: equal to it is normal
        wrong = flagged[~is_anomalous], ~flagged[is_anomalous]
        for rate, errors in zip(rates, wrong, strict=True):
            k, n = errors.sum(), len(errors)
            assert (rate.n_errors, rate.n_samples, rate.rate) == (k, n, k / n)
            low = beta.ppf(0.05, k, n - k + 1) if k > 0 else 0
            high = beta.ppf(0.95, k + 1, n - k) if k < n else 1
            assert rate[3:] == pytest.approx((low, high), abs=1e-9)


@pytest.mark.parametrize("confidence", [0.5, 0.95])
def test_intervals_cover_as_often_as_they_say(confidence):
    n = 25
    y, params = [1] * n + [-1], {"offset": 0.5, "confidence": confidence}
    found = [
        error_bounds(y, [0.0] * k + [1.0] * (n - k + 1), **params)[0]
        for k in range(n + 1)
    ]
    for rate in np.linspace(0.001, 0.999, 101):
        covers = [interval.low <= rate <= interval.high for interval in found]
        assert binom.pmf(np.arange(n + 1), n, rate)[covers].sum() >= confidence - 1e-9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1, -1], [0.0, 1.0, 2.0], 0.5), "There are 2 labels but 3 scores"),
        (([1, -1], [0.0, np.nan], 0.5), "1 of 2 scores are not finite"),
        (([1, -1], [[0.0, 1.0]], 0.5), "scores: expected one number per image"),
        (([1, 1], [0.0, 1.0], 0.5), "All labels are 1"),
        (([1, -1], [0.0, 1.0], np.nan), "offset=nan: expected a number"),
        (([1, -1], [0.0, 1.0], None), "offset=None: expected a number"),
    ],
)
def test_bad_error_bounds(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        error_bounds(*arguments)


@pytest.mark.parametrize("confidence", [0, 1, 95, True, None, np.nan])
def test_bad_confidence(confidence):
    with pytest.raises(
        ValueError, match=r"confidence=.*: expected a number in \(0, 1\)"
    ):
        error_bounds([1, -1], [0.0, 1.0], 0.5, confidence=confidence)
