"""Tests of FeedForwardClassifier; scikit-learn's own checks are in test_common."""

from __future__ import annotations

import pickle
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.datasets import make_blobs
from sklearn.exceptions import NotFittedError

from clipad_sklearn import FeedForwardClassifier

SMALL: dict[str, Any] = {
    "hidden_layer_sizes": (16, 16),
    "learning_rate": 3e-3,
    "batch_size": 32,
    "n_epochs": 3,
    "min_steps": 60,
    "random_state": 0,
}


def _embeddings(
    n_samples: int, n_features: int, separation: float = 0.2
) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors of two classes that differ in one direction among stronger ones."""
    rng = np.random.default_rng(0)
    axes = np.linalg.qr(rng.normal(size=(n_features, 22)))[0].T
    y = np.tile([-1, 1], n_samples // 2)
    nuisance = rng.normal(size=(n_samples, 20)) * np.linspace(1, 0.2, 20)
    shift = separation * y * (1 + 0.3 * rng.normal(size=n_samples))
    X = 2 * axes[0] + np.outer(shift, axes[1]) + nuisance @ axes[2:]
    X += rng.normal(size=X.shape) * 0.5 / np.sqrt(n_features)
    X /= np.linalg.norm(X, axis=1, keepdims=True)
    return X.astype(np.float32), y


@pytest.fixture(scope="module")
def blobs() -> tuple[np.ndarray, np.ndarray]:
    X, y = make_blobs(120, n_features=5, centers=2, cluster_std=2.0, random_state=3)
    return X, y


def _same_network(a: FeedForwardClassifier, b: FeedForwardClassifier) -> bool:
    return all(
        np.array_equal(left, right)
        for left, right in zip(
            a.coefs_ + a.intercepts_, b.coefs_ + b.intercepts_, strict=True
        )
    )


def test_defaults_separate_embeddings() -> None:
    X, y = _embeddings(5000, 640)  # as wide as those of the default CLIP
    classifier = FeedForwardClassifier(random_state=0).fit(X[:3000], y[:3000])
    assert classifier.score(X[3000:], y[3000:]) > 0.98
    assert len(pickle.dumps(classifier)) < 8e6


def test_fitted_attributes(blobs: tuple[np.ndarray, np.ndarray]) -> None:
    X, y = blobs
    names = np.array(["bad", "good"])
    classifier = FeedForwardClassifier(**SMALL).fit(X, names[y])
    assert classifier.classes_.tolist() == ["bad", "good"]
    assert [W.shape for W in classifier.coefs_] == [(5, 16), (16, 16), (16, 1)]
    assert [b.shape for b in classifier.intercepts_] == [(16,), (16,), (1,)]
    assert {a.dtype for a in classifier.coefs_ + classifier.intercepts_} == {
        np.dtype(np.float32)
    }
    assert classifier.scale_ == pytest.approx(np.sqrt(np.mean(X**2)), rel=1e-6)
    assert classifier.n_steps_ == 60  # 4 steps an epoch
    assert len(classifier.loss_curve_) == 15
    assert classifier.n_features_in_ == 5


def test_loss_falls(blobs: tuple[np.ndarray, np.ndarray]) -> None:
    losses = FeedForwardClassifier(**SMALL).fit(*blobs).loss_curve_
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize(
    ("n_epochs", "min_steps", "n_steps", "n_losses"),
    [(3, 0, 12, 3), (3, 12, 12, 3), (3, 13, 13, 4), (1, 0, 4, 1), (1, 10, 10, 3)],
)
def test_training_length(
    blobs: tuple[np.ndarray, np.ndarray],
    n_epochs: int,
    min_steps: int,
    n_steps: int,
    n_losses: int,
) -> None:
    classifier = FeedForwardClassifier(**SMALL)
    classifier.set_params(n_epochs=n_epochs, min_steps=min_steps).fit(*blobs)
    assert classifier.n_steps_ == n_steps
    assert len(classifier.loss_curve_) == n_losses


def test_longer_training_continues_the_shorter(
    blobs: tuple[np.ndarray, np.ndarray],
) -> None:
    short = FeedForwardClassifier(**{**SMALL, "n_epochs": 2, "min_steps": 0})
    long = clone(short).set_params(n_epochs=5)
    short_losses = short.fit(*blobs).loss_curve_
    assert long.fit(*blobs).loss_curve_[:2] == short_losses


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_reproducible(blobs: tuple[np.ndarray, np.ndarray], dropout: float) -> None:
    classifier = FeedForwardClassifier(**SMALL).set_params(dropout=dropout)
    first, second = clone(classifier).fit(*blobs), clone(classifier).fit(*blobs)
    assert _same_network(first, second)
    assert first.loss_curve_ == second.loss_curve_
    other = clone(classifier).set_params(random_state=1).fit(*blobs)
    assert not _same_network(first, other)


def test_random_state_none_follows_the_global_seed(
    blobs: tuple[np.ndarray, np.ndarray],
) -> None:
    classifier = FeedForwardClassifier(**SMALL).set_params(random_state=None)
    before = np.random.get_state()  # noqa: NPY002
    try:
        fits = []
        for _ in range(2):
            np.random.seed(5)  # noqa: NPY002
            fits.append(clone(classifier).fit(*blobs))
    finally:
        np.random.set_state(before)  # noqa: NPY002
    assert _same_network(*fits)


def test_global_state_is_left_alone(blobs: tuple[np.ndarray, np.ndarray]) -> None:
    torch_before = torch.get_rng_state()
    numpy_before = np.random.get_state()[1].copy()  # type: ignore[index] # noqa: NPY002
    threads = torch.get_num_threads()
    FeedForwardClassifier(**SMALL).set_params(dropout=0.2).fit(*blobs)
    assert torch.equal(torch.get_rng_state(), torch_before)
    numpy_after = np.random.get_state()[1]  # type: ignore[index] # noqa: NPY002
    np.testing.assert_array_equal(numpy_after, numpy_before)
    assert torch.get_num_threads() == threads


def test_torch_settings_around_fit_do_not_matter(
    blobs: tuple[np.ndarray, np.ndarray],
) -> None:
    expected = FeedForwardClassifier(**SMALL).fit(*blobs)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"), torch.inference_mode():
            found = FeedForwardClassifier(**SMALL).fit(*blobs)
    finally:
        torch.set_default_dtype(torch.float32)
    assert _same_network(found, expected)


def test_number_of_threads_hardly_matters() -> None:
    X, y = _embeddings(600, 32)
    threads = torch.get_num_threads()
    try:
        decisions = []
        for n_threads in (1, 2):
            torch.set_num_threads(n_threads)
            classifier = FeedForwardClassifier((64, 64), min_steps=30, random_state=0)
            decisions.append(classifier.fit(X, y).decision_function(X))
            assert torch.get_num_threads() == n_threads
    finally:
        torch.set_num_threads(threads)
    np.testing.assert_allclose(decisions[0], decisions[1], atol=1e-4)


@pytest.mark.parametrize("activation", ["relu", "gelu", "tanh"])
@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("hidden", [(16, 8), 12, ()])
def test_prediction_equals_torch(activation: str, n_classes: int, hidden: Any) -> None:
    X, y = make_blobs(1500, n_features=4, centers=n_classes, random_state=0)
    classifier = FeedForwardClassifier(hidden, activation=activation, random_state=0)
    classifier.set_params(n_epochs=1, min_steps=5).fit(X, y)

    function = {"relu": torch.nn.ReLU, "gelu": torch.nn.GELU, "tanh": torch.nn.Tanh}
    layers: list[torch.nn.Module] = []
    for W, b in zip(classifier.coefs_, classifier.intercepts_, strict=True):
        layer = torch.nn.Linear(*W.shape)
        layer.weight.data, layer.bias.data = torch.tensor(W.T), torch.tensor(b)
        layers += [layer, function[activation]()]
    network = torch.nn.Sequential(*layers[:-1])
    with torch.no_grad():
        outputs = network(torch.tensor(X / classifier.scale_, dtype=torch.float32))

    decision = classifier.decision_function(X)
    expected = outputs[:, 0] if n_classes == 2 else outputs
    np.testing.assert_allclose(decision, expected.numpy(), atol=1e-5)
    if n_classes == 2:
        probabilities = torch.sigmoid(outputs)[:, 0].numpy()
        np.testing.assert_allclose(
            classifier.predict_proba(X)[:, 1], probabilities, atol=1e-5
        )
        np.testing.assert_array_equal(classifier.predict(X), decision > 0)
    else:
        probabilities = torch.softmax(outputs, dim=1).numpy()
        np.testing.assert_allclose(
            classifier.predict_proba(X), probabilities, atol=1e-5
        )
        np.testing.assert_array_equal(classifier.predict(X), decision.argmax(axis=1))


def test_three_classes_are_learned() -> None:
    X, y = make_blobs(300, n_features=4, centers=3, random_state=0)
    classifier = FeedForwardClassifier(**SMALL).fit(X, y)
    assert classifier.decision_function(X).shape == (300, 3)
    assert classifier.score(X, y) > 0.95


def test_logit_does_not_saturate(blobs: tuple[np.ndarray, np.ndarray]) -> None:
    X, y = blobs
    classifier = FeedForwardClassifier(**SMALL).fit(X, y)
    far = np.outer([1e3, 1e4, 1e5], X[y == 1].mean(axis=0) - X[y == 0].mean(axis=0))
    decision = classifier.decision_function(far)
    assert np.isfinite(decision).all()
    assert len(np.unique(decision)) == 3
    assert np.isfinite(classifier.predict_proba(far)).all()


def test_a_row_does_not_depend_on_the_others() -> None:
    X, y = _embeddings(1500, 48)
    classifier = FeedForwardClassifier((64, 64), min_steps=20, random_state=0).fit(X, y)
    whole = classifier.decision_function(X)
    np.testing.assert_allclose(classifier.decision_function(X[::-1])[::-1], whole)
    alone = [classifier.decision_function(X[i : i + 1])[0] for i in (0, 700, 1499)]
    np.testing.assert_allclose(alone, whole[[0, 700, 1499]], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_float_types_agree(dtype: type) -> None:
    X, y = _embeddings(200, 24)
    X = X.astype(np.float16)  # the same numbers in every type
    expected = FeedForwardClassifier(**SMALL).fit(X.astype(np.float32), y)
    found = FeedForwardClassifier(**SMALL).fit(X.astype(dtype), y)
    np.testing.assert_allclose(
        found.decision_function(X), expected.decision_function(X), atol=1e-3
    )


@settings(max_examples=15, deadline=None)
@given(exponent=st.integers(-300, 290))
def test_scale_of_the_data_does_not_matter(exponent: int) -> None:
    X, y = make_blobs(40, n_features=3, centers=2, random_state=1)
    factor = 2.0**exponent if abs(exponent) < 30 else 10.0**exponent
    classifier = FeedForwardClassifier(**SMALL).set_params(min_steps=5, n_epochs=1)
    plain = clone(classifier).fit(X, y)
    scaled = clone(classifier).fit(X * factor, y)
    assert scaled.scale_ == pytest.approx(plain.scale_ * factor)
    np.testing.assert_allclose(
        scaled.decision_function(X * factor), plain.decision_function(X), atol=1e-4
    )


def test_all_zeros_can_be_fitted() -> None:
    classifier = FeedForwardClassifier(**SMALL).fit(np.zeros((6, 2)), [0, 1] * 3)
    assert np.isfinite(classifier.decision_function(np.ones((2, 2)))).all()


def test_read_only_input(blobs: tuple[np.ndarray, np.ndarray]) -> None:
    X = blobs[0].astype(np.float32)
    before = X.copy()
    X.setflags(write=False)
    FeedForwardClassifier(**SMALL).fit(X, blobs[1]).predict(X)
    np.testing.assert_array_equal(X, before)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"hidden_layer_sizes": (8, 0)}, "expected integers of at least 1"),
        ({"hidden_layer_sizes": (8, 2.5)}, "expected integers of at least 1"),
        ({"hidden_layer_sizes": (8, True)}, "expected integers of at least 1"),
        ({"hidden_layer_sizes": 0}, "hidden_layer_sizes=.*: expected"),
        ({"hidden_layer_sizes": None}, "hidden_layer_sizes=.*: expected"),
        ({"activation": "swish"}, "activation=.*: expected"),
        ({"dropout": 1.0}, "dropout=.*: expected"),
        ({"dropout": -0.1}, "dropout=.*: expected"),
        ({"learning_rate": 0.0}, "learning_rate=.*: expected"),
        ({"weight_decay": -1.0}, "weight_decay=.*: expected"),
        ({"batch_size": 0}, "batch_size=.*: expected"),
        ({"n_epochs": 0}, "n_epochs=.*: expected"),
        ({"min_steps": -1}, "min_steps=.*: expected"),
        ({"verbose": "yes"}, "verbose=.*: expected"),
        ({"random_state": "seed"}, "random_state=.*: expected"),
        ({"learning_rate": 1e30}, "Training diverged.*smaller learning_rate"),
    ],
)
def test_bad_parameters(
    blobs: tuple[np.ndarray, np.ndarray], parameters: dict[str, Any], message: str
) -> None:
    classifier = FeedForwardClassifier(**{**SMALL, **parameters})
    with pytest.raises(ValueError, match=message):
        classifier.fit(*blobs)
    assert not hasattr(classifier, "coefs_")


@pytest.mark.parametrize(
    ("X", "y", "message"),
    [
        ([[0.0], [np.nan]], [0, 1], "contains NaN"),
        ([[0.0], [np.inf]], [0, 1], "contains infinity"),
        ([[0.0], [1.0]], [1, 1], "at least 2 classes"),
        ([[0.0], [1.0]], [0.5, 1.7], "Unknown label type"),
        ([[0.0], [1.0]], [0, 1, 1], "inconsistent numbers of samples"),
        ([0.0, 1.0], [0, 1], "Expected 2D array"),
        (np.empty((0, 2)), [], "0 sample"),
    ],
)
def test_bad_data(X: Any, y: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FeedForwardClassifier(**SMALL).fit(X, y)


def test_bad_data_for_prediction(blobs: tuple[np.ndarray, np.ndarray]) -> None:
    X, y = blobs
    with pytest.raises(NotFittedError):
        FeedForwardClassifier().predict(X)
    classifier = FeedForwardClassifier(**SMALL).fit(X, y)
    with pytest.raises(ValueError, match=r"has 4 features, but .* expecting 5"):
        classifier.predict(X[:, :4])
    with pytest.raises(ValueError, match="contains NaN"):
        classifier.decision_function(X * np.nan)


@pytest.mark.skipif(sys.platform == "win32", reason="needs signal.setitimer")
@pytest.mark.parametrize("refit", [False, True])
def test_interrupted_fit_leaves_nothing_half_done(
    blobs: tuple[np.ndarray, np.ndarray], refit: bool
) -> None:
    X, y = blobs
    classifier = FeedForwardClassifier(**SMALL)
    if refit:
        classifier.fit(X[:, :3], y)
    before = dict(vars(classifier))
    classifier.n_epochs = 10**6

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    handler = signal.signal(signal.SIGALRM, interrupt)
    try:
        # More than once: where Python runs a destructor, it ignores what is raised.
        signal.setitimer(signal.ITIMER_REAL, 0.3, 1)
        with pytest.raises(KeyboardInterrupt):
            classifier.fit(X, y)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
    assert vars(classifier) == {**before, "n_epochs": 10**6}
    if refit:
        assert classifier.predict(X[:, :3]).shape == y.shape


def test_progress_only_when_verbose(
    blobs: tuple[np.ndarray, np.ndarray], capsys: pytest.CaptureFixture[str]
) -> None:
    FeedForwardClassifier(**SMALL).fit(*blobs)
    assert capsys.readouterr() == ("", "")
    FeedForwardClassifier(**SMALL, verbose=True).fit(*blobs)
    assert "60/60" in capsys.readouterr().err


def test_torch_is_needed_for_fit_only(
    blobs: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    X, y = blobs
    classifier = FeedForwardClassifier(**SMALL).fit(X, y)
    content = pickle.dumps(classifier)
    assert b"torch" not in content
    (tmp_path / "fitted.pickle").write_bytes(content)
    np.save(tmp_path / "X.npy", X)
    script = """
import pickle, sys
import numpy as np
from sklearn.base import clone
from clipad_sklearn import FeedForwardClassifier
repr(clone(FeedForwardClassifier()))
classifier = pickle.loads(open("fitted.pickle", "rb").read())
np.save("decision.npy", classifier.decision_function(np.load("X.npy")))
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)
    decision = np.load(tmp_path / "decision.npy")
    np.testing.assert_array_equal(decision, classifier.decision_function(X))
