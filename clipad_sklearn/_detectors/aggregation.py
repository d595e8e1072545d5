"""One representative vector for many text embeddings."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.cluster import DBSCAN
from sklearn.neighbors import KernelDensity

_logger = logging.getLogger(__name__)


def aggregate(embeddings: np.ndarray, method: str, **params: Any) -> np.ndarray:
    """Represent unit vectors by one unit vector.

    Parameters
    ----------
    embeddings : ndarray of shape (n, d)
        L2-normalised embeddings, n >= 1.
    method : str
        A name of `METHODS`; see Notes.
    **params
        Of ``"dbscan"``: `eps` (default 0.5) and `min_samples` (default 15). Of
        ``"kde"``: `bandwidth` (default 0.3). The others have none.

    Returns
    -------
    ndarray of float64 of shape (d,)
        L2-normalised.

    Raises
    ------
    ValueError
        If the method or one of its parameters is unknown or out of range.

    Notes
    -----
    The methods are from CLIP-AD's representative vector selection [1]_, unless marked.

    - ``"mean"``: the mean.
    - ``"dbscan"``: the mean of the largest cluster that DBSCAN finds with Euclidean
      distances. Between unit vectors, a distance of `eps` is a cosine of
      ``1 - eps**2 / 2``. If every point is noise, the mean of all (our choice).
    - ``"mean_shift"``: the same as ``"mean"``. The published bandwidth of 2 is the
      diameter of the unit sphere, so that all points form one cluster.
    - ``"kde"``: the mean weighted by a Gaussian kernel density estimate.
    - ``"pca"``: with each embedding centred over its dimensions, the sum of the
      embeddings weighted by the first principal component, with the sign that
      agrees with the mean.

    References
    ----------
    .. [1] X. Chen et al., "CLIP-AD: A Language-Guided Staged Dual-Path Model for
       Zero-shot Anomaly Detection", 2023, arXiv:2311.00453.
    """
    if method not in METHODS:
        names = ", ".join(map(repr, METHODS))
        raise ValueError(f"aggregation={method!r}: expected one of {names}.")
    represent, defaults = METHODS[method]
    unknown = sorted(params.keys() - defaults.keys())
    if unknown:
        allowed = ", ".join(map(repr, defaults)) or "no parameters"
        raise ValueError(
            f"aggregation_params={params!r}: expected {allowed} with "
            f"aggregation={method!r}."
        )
    vector = represent(np.asarray(embeddings, dtype=np.float64), **defaults | params)
    norm = np.linalg.norm(vector)
    if not norm > 1e-6:
        raise ValueError(
            f"aggregation={method!r}: the {len(embeddings)} embeddings cancel out, so "
            "no direction represents them."
        )
    return vector / norm


def _mean(embeddings: np.ndarray) -> np.ndarray:
    return embeddings.mean(axis=0)


def _dbscan(embeddings: np.ndarray, eps: float, min_samples: int) -> np.ndarray:
    labels = DBSCAN(eps=eps, min_samples=min_samples).fit_predict(embeddings)
    clustered = labels[labels >= 0]
    if len(clustered) == 0:
        _logger.warning(
            "DBSCAN with eps=%g and min_samples=%d finds no cluster among %d "
            "embeddings; their mean is used.",
            eps,
            min_samples,
            len(embeddings),
        )
        return _mean(embeddings)
    return _mean(embeddings[labels == np.bincount(clustered).argmax()])


def _kde(embeddings: np.ndarray, bandwidth: float) -> np.ndarray:
    density = KernelDensity(kernel="gaussian", bandwidth=bandwidth).fit(embeddings)
    log_densities = density.score_samples(embeddings)
    # Densities in hundreds of dimensions are astronomical, their ratios are not.
    return np.exp(log_densities - log_densities.max()) @ embeddings


def _pca(embeddings: np.ndarray) -> np.ndarray:
    centred = embeddings - embeddings.mean(axis=1, keepdims=True)
    # The weighted sum is, up to its length, a singular vector.
    vector = np.linalg.svd(centred, full_matrices=False)[2][0]
    return vector if vector @ _mean(embeddings) >= 0 else -vector


# Functions of unit vectors (n, d) in float64 that return one vector (d,) of any length,
# each with its parameters and their defaults.
METHODS: dict[str, tuple[Callable[..., np.ndarray], dict[str, Any]]] = {
    "mean": (_mean, {}),
    "dbscan": (_dbscan, {"eps": 0.5, "min_samples": 15}),
    "mean_shift": (_mean, {}),
    "kde": (_kde, {"bandwidth": 0.3}),
    "pca": (_pca, {}),
}
