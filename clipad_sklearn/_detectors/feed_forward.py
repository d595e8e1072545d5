"""A feed-forward network as an ordinary scikit-learn classifier."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from scipy.special import erf, expit, softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from .._fork import one_thread_in_children
from .._progress import progress_bar
from .._validation import all_or_nothing, check_parameters, is_whole

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

one_thread_in_children()

# Rows per matrix product in prediction: bounds the float64 intermediates.
_CHUNK = 1024

_ACTIVATIONS: dict[str, Callable[[NDArray[Any]], NDArray[Any]]] = {
    "relu": lambda x: np.maximum(x, 0.0),
    "gelu": lambda x: 0.5 * x * (1.0 + erf(x / np.sqrt(2.0))),
    "tanh": np.tanh,
}


class FeedForwardClassifier(ClassifierMixin, BaseEstimator):
    """Feed-forward neural network, trained with AdamW for a fixed number of steps.

    With the default three hidden layers and the output layer it is the four-layer
    network that random-word detection trains on text embeddings [1]_. It takes any
    matrix and any number of classes.

    Parameters
    ----------
    hidden_layer_sizes : int or sequence of int, default=(512, 512, 512)
        Width of each hidden layer, each at least 1. An integer means one hidden
        layer; an empty sequence gives logistic regression.
    activation : {"relu", "gelu", "tanh"}, default="relu"
        Function after each hidden layer.
    dropout : float in [0, 1), default=0.0
        Probability of dropping each hidden unit in a training step.
    learning_rate : float > 0, default=3e-4
        Step size of AdamW, constant during training.
    weight_decay : float >= 0, default=1e-2
        Decoupled weight decay of AdamW, on the weights and not on the intercepts.
    batch_size : int >= 1, default=256
        Largest number of samples in a step. Each epoch is cut into batches of equal
        size (to within one sample), so no step sees only a small remainder.
    n_epochs : int >= 1, default=5
        Number of passes over the samples.
    min_steps : int >= 0, default=200
        Least number of optimiser steps: with few samples there are more epochs
        than `n_epochs`.
    verbose : bool, default=False
        Whether to show a progress bar.
    random_state : int, RandomState instance or None, default=None
        Determines initial weights, order of the samples and dropout. Pass an int
        for the same result on every call. One number is drawn from it; as usual in
        scikit-learn, None draws it from numpy's global generator. No other global
        random state is read or changed.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        The classes, sorted.
    coefs_ : list of float32 ndarrays of shape (n_inputs, n_outputs)
        Weights of each layer.
    intercepts_ : list of float32 ndarrays of shape (n_outputs,)
        Intercepts of each layer.
    scale_ : float
        Root mean square of the training data, by which inputs are divided.
    loss_curve_ : list of float
        Mean training loss of each epoch; the last one may be cut short by
        `min_steps`.
    n_steps_ : int
        Number of optimiser steps taken.
    n_features_in_ : int
        Number of features seen in `fit`.
    feature_names_in_ : ndarray of shape (n_features,)
        Names of the features seen in `fit`, only if all are strings.

    See Also
    --------
    sklearn.neural_network.MLPClassifier : Without dropout, with more solvers.

    Notes
    -----
    With :math:`h_0 = x / s` and :math:`h_l = a(h_{l-1} W_l + b_l)` for the hidden
    layers, the output is :math:`h_{L-1} W_L + b_L`. Two classes have one output, the
    logit of ``classes_[1]``, trained with binary cross-entropy; more classes have one
    output each, trained with the cross-entropy of their softmax. `decision_function`
    returns the output itself, which does not saturate as probabilities do.

    That the network has four layers, and what it is for, is reported of the paper on
    random words [1]_, which was not available to us. The rest is our choice: the
    widths, the activation, the optimiser [2]_ and its settings, He's initial weights
    [3]_ with zero intercepts, and the scale :math:`s`, the root mean square of the
    training data, which lets unit-length embeddings of any width train alike. Features
    are not centred. There is no early stopping: when a network trained on text is to
    score images, held-out text does not show when to stop.

    Training is done by torch in float32 on the CPU, with as many threads as torch is
    set to. Another number of threads rounds differently, so repeat a fit with the
    same one. Where other processes keep the cores busy, one thread (environment
    variable ``OMP_NUM_THREADS=1``) is by far the fastest. Prediction is numpy in
    float64 from the float32 weights: a row's output does not depend on the rows
    beside it.

    References
    ----------
    .. [1] M. Tamura, "Random Word Data Augmentation with CLIP for Zero-Shot Anomaly
       Detection", BMVC 2023.
    .. [2] I. Loshchilov and F. Hutter, "Decoupled Weight Decay Regularization",
       ICLR 2019.
    .. [3] K. He, X. Zhang, S. Ren and J. Sun, "Delving Deep into Rectifiers",
       ICCV 2015.

    Examples
    --------
    >>> from sklearn.datasets import make_moons
    >>> from clipad_sklearn import FeedForwardClassifier
    >>> X, y = make_moons(200, noise=0.05, random_state=0)
    >>> classifier = FeedForwardClassifier((32, 32), learning_rate=0.01, random_state=0)
    >>> classifier.fit(X, y).score(X, y)
    1.0
    >>> [W.shape for W in classifier.coefs_]
    [(2, 32), (32, 32), (32, 1)]
    """

    classes_: NDArray[Any]
    coefs_: list[NDArray[np.float32]]
    intercepts_: list[NDArray[np.float32]]
    scale_: float
    loss_curve_: list[float]
    n_steps_: int

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "hidden_layer_sizes": [
            "array-like",
            Interval(Integral, 1, None, closed="left"),
        ],
        "activation": [StrOptions(set(_ACTIVATIONS))],
        "dropout": [Interval(Real, 0, 1, closed="left")],
        "learning_rate": [Interval(Real, 0, None, closed="neither")],
        "weight_decay": [Interval(Real, 0, None, closed="left")],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "n_epochs": [Interval(Integral, 1, None, closed="left")],
        "min_steps": [Interval(Integral, 0, None, closed="left")],
        "verbose": ["boolean"],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        hidden_layer_sizes: Any = (512, 512, 512),
        *,
        activation: str = "relu",
        dropout: float = 0.0,
        learning_rate: float = 3e-4,
        weight_decay: float = 1e-2,
        batch_size: int = 256,
        n_epochs: int = 5,
        min_steps: int = 200,
        verbose: bool = False,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.dropout = dropout
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.batch_size = batch_size
        self.n_epochs = n_epochs
        self.min_steps = min_steps
        self.verbose = verbose
        self.random_state = random_state

    @all_or_nothing
    def fit(self, X: ArrayLike, y: ArrayLike) -> FeedForwardClassifier:
        """Train the network.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Training samples.
        y : array-like of shape (n_samples,)
            Their classes, of at least two kinds.

        Returns
        -------
        FeedForwardClassifier
            The fitted classifier.

        Raises
        ------
        ValueError
            If a parameter is out of range, `X` is not finite, `y` has one class
            only, or training diverges.
        """
        check_parameters(self)
        layer_sizes = _check_layer_sizes(self.hidden_layer_sizes)
        samples, y = validate_data(self, X, y, dtype=[np.float64, np.float32])
        check_classification_targets(y)
        self.classes_, targets = np.unique(y, return_inverse=True)
        n_classes = len(self.classes_)
        if n_classes < 2:
            raise ValueError(
                "FeedForwardClassifier needs samples of at least 2 classes in y, "
                f"got 1 class: {self.classes_[0]!r}."
            )
        data, self.scale_ = _scaled(samples)
        layer_sizes = [data.shape[1], *layer_sizes, n_classes if n_classes > 2 else 1]

        import torch

        # Whatever torch is set to around this call.
        with torch.device("cpu"), torch.inference_mode(False), torch.enable_grad():
            self._train(data, targets, layer_sizes)
        return self

    def _train(
        self, data: NDArray[np.float32], targets: NDArray[Any], layer_sizes: list[int]
    ) -> None:
        import torch
        from torch.nn import functional

        activation: Any = {
            "relu": torch.relu,
            "gelu": functional.gelu,
            "tanh": torch.tanh,
        }[self.activation]
        loss_function: Any = functional.cross_entropy
        inputs = torch.from_numpy(data)
        labels = torch.from_numpy(targets)
        if layer_sizes[-1] == 1:
            labels = labels.to(torch.float32)[:, None]
            loss_function = functional.binary_cross_entropy_with_logits

        # Its own generator, so that torch's global one is left alone.
        seed = check_random_state(self.random_state).randint(np.iinfo(np.int32).max)
        generator = torch.Generator("cpu").manual_seed(int(seed))
        weights, biases = [], []
        for n_inputs, n_outputs in itertools.pairwise(layer_sizes):
            bound = (6 / n_inputs) ** 0.5
            weight = torch.empty(n_inputs, n_outputs, dtype=torch.float32)
            weights.append(weight.uniform_(-bound, bound, generator=generator))
            biases.append(torch.zeros(n_outputs, dtype=torch.float32))

        def forward(hidden: torch.Tensor) -> torch.Tensor:
            for weight, bias in zip(weights[:-1], biases, strict=False):
                hidden = activation(torch.addmm(bias, hidden, weight))
                if self.dropout:
                    kept = torch.empty_like(hidden)
                    kept.bernoulli_(1 - self.dropout, generator=generator)
                    hidden = hidden * kept / (1 - self.dropout)
            return torch.addmm(biases[-1], hidden, weights[-1])

        n_batches = -(-len(data) // self.batch_size)
        n_steps = max(self.n_epochs * n_batches, self.min_steps)
        self.loss_curve_ = []
        self.n_steps_ = 0
        for parameter in weights + biases:
            parameter.requires_grad_()
        optimizer = torch.optim.AdamW(
            [
                {"params": weights, "weight_decay": float(self.weight_decay)},
                {"params": biases, "weight_decay": 0.0},
            ],
            lr=float(self.learning_rate),
        )
        with progress_bar(n_steps, shown=bool(self.verbose), unit="step") as progress:
            while self.n_steps_ < n_steps:
                order = torch.randperm(len(data), generator=generator)
                batches = order.tensor_split(n_batches)[: n_steps - self.n_steps_]
                losses = []
                for batch in batches:
                    loss = loss_function(forward(inputs[batch]), labels[batch])
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    losses.append(loss.item())
                    progress.update()
                self.n_steps_ += len(batches)
                self.loss_curve_.append(float(np.mean(losses)))
                progress.set_postfix(loss=self.loss_curve_[-1])

        # Copies: a view would keep torch's memory alive.
        self.coefs_ = [weight.detach().numpy().copy() for weight in weights]
        self.intercepts_ = [bias.detach().numpy().copy() for bias in biases]
        if not all(np.isfinite(a).all() for a in self.coefs_ + self.intercepts_):
            raise ValueError(
                "Training diverged: the weights are no longer finite. Choose a smaller "
                f"learning_rate than {self.learning_rate}."
            )

    def decision_function(self, X: ArrayLike) -> NDArray[np.float64]:
        """Compute the output of the network before the sigmoid or softmax.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Samples.

        Returns
        -------
        ndarray of shape (n_samples,) or (n_samples, n_classes)
            For two classes the logit of ``classes_[1]``, positive where that class is
            predicted; else one logit per class, the largest for the predicted class.
        """
        check_is_fitted(self)
        samples = validate_data(self, X, dtype=[np.float64, np.float32], reset=False)
        activation = _ACTIVATIONS[self.activation]
        weights = [weight.astype(np.float64) for weight in self.coefs_]
        output = np.empty((len(samples), weights[-1].shape[1]))
        for start in range(0, len(samples), _CHUNK):
            rows = slice(start, start + _CHUNK)
            hidden = samples[rows] / np.float64(self.scale_)
            for weight, bias in zip(weights[:-1], self.intercepts_, strict=False):
                hidden = activation(hidden @ weight + bias)
            output[rows] = hidden @ weights[-1] + self.intercepts_[-1]
        return output[:, 0] if output.shape[1] == 1 else output

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Compute the probability of each class.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Samples.

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
            In the order of `classes_`.
        """
        decision = self.decision_function(X)
        if decision.ndim == 1:
            return np.column_stack([expit(-decision), expit(decision)])
        return softmax(decision, axis=1)

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Predict classes.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Samples.

        Returns
        -------
        ndarray of shape (n_samples,)
            The predicted class of each sample.
        """
        decision = self.decision_function(X)
        if decision.ndim == 1:
            return self.classes_[(decision > 0).astype(np.intp)]
        return self.classes_[decision.argmax(axis=1)]


def _check_layer_sizes(hidden_layer_sizes: Any) -> list[int]:
    """Return the widths of the hidden layers."""
    if isinstance(hidden_layer_sizes, Integral):
        return [int(hidden_layer_sizes)]
    sizes = list(hidden_layer_sizes)
    if not all(is_whole(size) for size in sizes):
        raise ValueError(
            f"hidden_layer_sizes={hidden_layer_sizes!r}: expected integers of at "
            "least 1, one per hidden layer, such as (512, 512, 512)."
        )
    return [int(size) for size in sizes]


def _scaled(X: NDArray[Any]) -> tuple[NDArray[np.float32], float]:
    """Return X divided by its root mean square, as float32, and the divisor.

    The largest value is divided out first, so that no square over- or underflows.
    """
    largest = max(float(X.max()), -float(X.min())) or 1.0
    data = np.empty(X.shape, np.float32)
    np.divide(X, largest, out=data, casting="same_kind")
    mean_square = np.einsum("ij,ij->", data, data, dtype=np.float64) / data.size
    rms = float(np.sqrt(mean_square)) or 1.0
    data /= rms
    return data, max(largest * rms, float(np.finfo(np.float64).tiny))
