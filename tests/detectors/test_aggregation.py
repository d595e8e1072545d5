from __future__ import annotations

import inspect
import logging
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipad_sklearn import PromptDetector
from clipad_sklearn._detectors.aggregation import METHODS, aggregate
from clipad_sklearn._prompts import PRESETS


def unit(vectors):
    vectors = np.asarray(vectors, dtype=np.float64)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def cloud(n, d=32, *, spread=0.3, centre=0, seed=0):
    """Unit vectors around one axis."""
    vectors = np.random.default_rng(seed).normal(size=(n, d)) * spread / np.sqrt(d)
    vectors[:, centre] += 1
    return unit(vectors)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_representative_is_a_unit_vector_near_the_embeddings(method, dtype):
    embeddings = cloud(60).astype(dtype)
    before = embeddings.copy()
    vector = aggregate(embeddings, method)
    assert vector.shape == (32,)
    assert vector.dtype == np.float64
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-12)
    assert vector @ unit(embeddings.mean(axis=0)) > 0.98
    np.testing.assert_array_equal(embeddings, before)


@pytest.mark.parametrize("method", METHODS)
def test_order_of_the_embeddings_does_not_matter(method):
    embeddings = cloud(60)
    shuffled = np.random.default_rng(1).permutation(embeddings)
    np.testing.assert_allclose(
        aggregate(embeddings, method), aggregate(shuffled, method), atol=1e-12
    )


@pytest.mark.parametrize("method", METHODS)
def test_one_embedding_represents_itself(method):
    embedding = cloud(1)
    params = {"min_samples": 1} if method == "dbscan" else {}
    vector = aggregate(embedding, method, **params)
    expected = embedding[0]
    if method == "pca":
        expected = unit(expected - expected.mean())
    np.testing.assert_allclose(vector, expected, atol=1e-12)


def test_mean_and_mean_shift():
    embeddings = cloud(20)
    expected = unit(embeddings.sum(axis=0))
    np.testing.assert_allclose(aggregate(embeddings, "mean"), expected, atol=1e-12)
    np.testing.assert_array_equal(
        aggregate(embeddings, "mean_shift"), aggregate(embeddings, "mean")
    )


def test_mean_shift_with_the_published_bandwidth_is_the_mean():
    from sklearn.cluster import MeanShift

    embeddings = np.vstack([cloud(20), cloud(10, centre=1), cloud(5, centre=2)])
    labels = MeanShift(bandwidth=2).fit_predict(embeddings)
    assert set(labels) == {0}


def test_dbscan_keeps_the_largest_cluster():
    small, large = cloud(16, centre=0), cloud(40, centre=1, seed=1)
    outlier = -small[:1]
    embeddings = np.vstack([small, large, outlier])
    np.testing.assert_allclose(
        aggregate(embeddings, "dbscan"), unit(large.mean(axis=0)), atol=1e-12
    )


def test_dbscan_takes_the_first_of_equal_clusters():
    first, second = cloud(20, centre=0), cloud(20, centre=1, seed=1)
    np.testing.assert_allclose(
        aggregate(np.vstack([first, second]), "dbscan"),
        unit(first.mean(axis=0)),
        atol=1e-12,
    )


def test_dbscan_with_a_wide_radius_is_the_mean():
    embeddings = np.vstack([cloud(20), cloud(20, centre=1, seed=1)])
    np.testing.assert_allclose(
        aggregate(embeddings, "dbscan", eps=1.5, min_samples=25),
        aggregate(embeddings, "mean"),
        atol=1e-12,
    )


def test_dbscan_without_a_cluster_is_the_mean_and_says_so(caplog):
    embeddings = cloud(14)  # fewer than min_samples
    with caplog.at_level(logging.WARNING, logger="clipad_sklearn"):
        vector = aggregate(embeddings, "dbscan")
    np.testing.assert_array_equal(vector, aggregate(embeddings, "mean"))
    assert "eps=0.5 and min_samples=15 finds no cluster among 14" in caplog.text


def test_kde_weighs_by_density():
    embeddings = cloud(30, d=5)
    squared = ((embeddings[:, None] - embeddings[None]) ** 2).sum(axis=2)
    weights = np.exp(-squared / (2 * 0.3**2)).sum(axis=1)
    np.testing.assert_allclose(
        aggregate(embeddings, "kde"), unit(weights @ embeddings), atol=1e-12
    )


def test_kde_is_finite_in_many_dimensions():
    embeddings = cloud(200, d=640)
    vector = aggregate(embeddings, "kde", bandwidth=0.05)
    assert np.isfinite(vector).all()


def test_pca_is_the_published_one():
    from sklearn.decomposition import PCA

    embeddings = cloud(30)
    component = PCA(n_components=1).fit_transform(embeddings.T)[:, 0]
    expected = unit(component)
    if expected @ embeddings.mean(axis=0) < 0:
        expected = -expected
    np.testing.assert_allclose(aggregate(embeddings, "pca"), expected, atol=1e-9)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), centre=st.integers(0, 31))
def test_pca_agrees_in_sign_with_the_mean(seed, centre):
    embeddings = cloud(20, seed=seed, centre=centre)
    embeddings *= np.random.default_rng(seed).choice([-1, 1])
    assert aggregate(embeddings, "pca") @ embeddings.mean(axis=0) > 0


@pytest.mark.parametrize(
    ("method", "params", "message"),
    [
        ("no-such", {}, "aggregation='no-such': expected one of 'mean', 'dbsca"),
        (
            "mean",
            {"eps": 1},
            "{'eps': 1}: expected no parameters with aggregation='mean'",
        ),
        (
            "mean_shift",
            {"bandwidth": 2},
            "expected no parameters with aggregation='mean_shift'",
        ),
        (
            "dbscan",
            {"bandwidth": 2},
            "{'bandwidth': 2}: expected 'eps', 'min_samples' with",
        ),
        ("kde", {"eps": 1, "a": 2}, "{'eps': 1, 'a': 2}: expected 'bandwidth' with"),
        ("dbscan", {"eps": -1}, "The 'eps' parameter of DBSCAN must be a float in"),
        ("dbscan", {"min_samples": 0}, "The 'min_samples' parameter of DBSCAN must"),
        ("kde", {"bandwidth": 0}, "The 'bandwidth' parameter of KernelDensity must"),
    ],
)
def test_bad_parameters(method, params, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        aggregate(cloud(20), method, **params)


def test_opposite_embeddings_have_no_mean():
    with pytest.raises(ValueError, match="the 2 embeddings cancel out"):
        aggregate(np.array([[1.0, 0.0], [-1.0, 0.0]]), "mean")


def test_docstring_names_every_method_and_preset():
    # Other detectors refer to this one.
    text = inspect.getdoc(PromptDetector)
    for parameter, names in (("aggregation", METHODS), ("prompts", PRESETS)):
        # From its line to the next parameter.
        entry = re.search(rf"\n{parameter} : .*?(?=\n\w)", text, re.DOTALL)
        assert all(f'"{name}"' in entry[0] for name in names), entry[0]
