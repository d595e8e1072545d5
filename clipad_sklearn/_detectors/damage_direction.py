"""`DamageDirectionDetector`: learns damage from labelled images of other products."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from sklearn.utils import Tags
from sklearn.utils.validation import check_consistent_length

from .. import metrics
from .._validation import all_or_nothing
from .base import BaseDetector, EmbeddingMixin, is_uncalibrated


class DamageDirectionDetector(EmbeddingMixin, BaseDetector):
    """Detect anomalies along the direction that damage takes on other products.

    Labelled images of old products show in which direction the embedding of a normal
    one moves when it is damaged. A new product is scored along that direction: its
    own images are needed for the threshold only.

    Parameters
    ----------
    contamination : "auto" or float, default="auto"
        ``"auto"`` sets `offset_` to 0. A number in (0, 0.5] is the share of the images
        given to `fit` that are called anomalous; these show the old products.

    Attributes
    ----------
    direction_ : ndarray of shape (n_features,)
        The direction from normal to anomalous, of length 1.
    center_, scale_ : float
        Where normal images of the products lie along it, and how far they spread.
    products_ : list
        The groups that were learned from, sorted.
    product_auroc_ : ndarray of shape (n_products,)
        For each of `products_` the area under the ROC curve along a direction learned
        from the others alone: what to expect of a new one. Empty with one product.
    offset_ : float
        The threshold on the margin. It may be set after fitting.
    classes_ : ndarray of shape (2,)
        ``[-1, 1]``.
    n_features_in_ : int
        Number of features of an embedding.

    Raises
    ------
    ValueError
        From `fit`, if there are no embeddings or no labels, no product has labels of
        both kinds, or the mean differences of the products cancel out.

    Warns
    -----
    UserWarning
        From `fit`, if products are left out because they have labels of one kind, or
        if only one is left: a direction from one product may be about anything that
        sets its two kinds of images apart. From `predict`, while no threshold was set
        for the new product.

    See Also
    --------
    calibrate_threshold : Sets the threshold from images of the new product.
    FusionDetector : Combines it, frozen, with other detectors.

    Notes
    -----
    Over the products that have both kinds, the direction w is the mean of (mean of
    anomalous - mean of normal embeddings), scaled to length 1; the center b is the mean
    of the medians of x . w of normal images; the scale s is the standard deviation of
    x . w of normal images around the mean of their product, pooled. The score is
    -(x . w - b) / s. Every product counts the same.

    Adding a constant to all embeddings of a product changes neither w nor s, nor any
    ranking within a product, but shifts all margins of it by one number: so a new
    product needs a threshold of its own, by `calibrate_threshold`. The embeddings are
    not whitened, which was worse where we measured it. The method is our own choice.

    As a member of :class:`FusionDetector` or as the scorer of
    :class:`WinCLIPDetector` it is fitted beforehand and wrapped in
    :class:`sklearn.frozen.FrozenEstimator`.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.model_selection import LeaveOneGroupOut, cross_val_score
    >>> from clipad_sklearn import DamageDirectionDetector
    >>> rng = np.random.default_rng(0)
    >>> products, y = np.repeat(["bolt", "nut", "lid"], 40), np.tile([1, -1], 60)
    >>> X = rng.normal(size=(120, 16)) + 3 * (products == "lid")[:, np.newaxis]
    >>> X[y == -1, 0] += 2
    >>> detector = DamageDirectionDetector().fit(X, y, products)
    >>> bool(detector.direction_[0] > 0.9)
    True
    >>> bool((detector.product_auroc_ > 0.8).all())
    True

    Across products, with the groups of each split's training part:

    >>> import sklearn
    >>> with sklearn.config_context(enable_metadata_routing=True):
    ...     scores = cross_val_score(
    ...         DamageDirectionDetector().set_fit_request(groups=True),
    ...         X,
    ...         y,
    ...         cv=LeaveOneGroupOut(),
    ...         params={"groups": products},
    ...     )
    >>> np.allclose(scores, detector.product_auroc_[[0, 1, 2]])
    True
    """

    def __init__(self, *, contamination: float | str = "auto") -> None:
        self.contamination = contamination

    @all_or_nothing
    def fit(
        self, X: Any = None, y: Any = None, groups: Any = None
    ) -> DamageDirectionDetector:
        """Learn the direction.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Embeddings of images of old products. They are needed.
        y : array-like of shape (n_samples,)
            Labels, which are needed: {-1, +1} with -1 anomalous, or {0, 1} or bool
            with 1 anomalous.
        groups : array-like of shape (n_samples,) or None, default=None
            The product that each image shows. None: all show the same.

        Returns
        -------
        DamageDirectionDetector
            The fitted detector.
        """
        self._check_fit(X, y)
        if X is None:
            raise ValueError(
                "X is None, but DamageDirectionDetector learns from labelled "
                "embeddings of other products: pass fit(X, y, groups)."
            )
        if y is None:
            raise ValueError(
                "DamageDirectionDetector requires y to be passed, but the target y is "
                "None: it learns from labelled images of other products."
            )
        X = self._check_embeddings(X, reset=True)
        y = np.asarray(y)
        check_consistent_length(X, y)
        is_anomalous = metrics.to_outlier_labels(y)
        groups = np.zeros(len(X), dtype=int) if groups is None else np.asarray(groups)
        check_consistent_length(X, groups)
        self._learn(X.astype(np.float64), is_anomalous, groups)
        self._set_offset(X)
        return self

    def _learn(
        self, X: np.ndarray, is_anomalous: np.ndarray, groups: np.ndarray
    ) -> None:
        differences, left_out = {}, []
        for group in np.unique(groups).tolist():
            normal = X[(groups == group) & ~is_anomalous]
            anomalous = X[(groups == group) & is_anomalous]
            if len(normal) and len(anomalous):
                differences[group] = anomalous.mean(axis=0) - normal.mean(axis=0)
            else:
                left_out.append(group)
        self._warn_about_products(list(differences), left_out)
        self.products_ = list(differences)
        self.direction_ = _unit(np.mean(list(differences.values()), axis=0))

        centers, squares, n_normal = [], 0.0, 0
        for group in self.products_:
            along = X[(groups == group) & ~is_anomalous] @ self.direction_
            centers.append(np.median(along))
            squares += float(np.sum((along - along.mean()) ** 2))
            n_normal += len(along)
        self.center_ = float(np.mean(centers))
        spread = np.sqrt(squares / max(n_normal - len(self.products_), 1))
        # One normal image for each product, or copies: there is no spread.
        self.scale_ = float(spread) if spread > 0 else 1.0

        self.product_auroc_ = np.array(
            [
                metrics.auroc(
                    is_anomalous[groups == group],
                    X[groups == group] @ np.mean(others, axis=0),
                )
                for group in self.products_
                if (others := [d for g, d in differences.items() if g != group])
            ]
        )

    def _warn_about_products(self, learned: list[Any], left_out: list[Any]) -> None:
        if not learned:
            raise ValueError(
                "No product has both normal and anomalous images, so no direction "
                "leads from one kind to the other. Found only one kind in each of: "
                f"{', '.join(map(repr, left_out[:10]))}."
            )
        if left_out:
            warnings.warn(
                f"{len(left_out)} products are left out, because their images are all "
                f"of one kind: {', '.join(map(repr, left_out[:10]))}.",
                UserWarning,
                stacklevel=5,
            )
        if len(learned) == 1:
            warnings.warn(
                "The direction is learned from one product, so it may be about "
                "anything that sets its normal and anomalous images apart. Pass "
                "images of several products, and `groups`.",
                UserWarning,
                stacklevel=5,
            )

    def _margins(self, X: Any) -> np.ndarray:
        X = self._check_embeddings(X, reset=False)
        # Row by row, so that a score does not depend on the rows beside it.
        along = (X * self.direction_).sum(axis=1)
        return (self.center_ - along) / self.scale_

    def _verdicts(self, decision: np.ndarray) -> np.ndarray:
        if is_uncalibrated(self):
            warnings.warn(
                "The threshold 0 is that of the products learned from. Margins of a "
                "new product are shifted by a number of their own: set its threshold "
                "with `calibrate_threshold`.",
                UserWarning,
                stacklevel=3,
            )
        return np.where(decision >= 0, 1, -1)

    def fit_predict(self, X: Any, y: Any = None, groups: Any = None) -> np.ndarray:
        """Learn the direction, and return the verdict for each sample.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Embeddings.
        y : array-like of shape (n_samples,)
            Labels, which are needed.
        groups : array-like of shape (n_samples,) or None, default=None
            The product that each image shows.

        Returns
        -------
        ndarray of shape (n_samples,), dtype int
            +1 for normal, -1 for anomalous.
        """
        return self.fit(X, y, groups).predict(X)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        return tags


def _unit(vector: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(vector)
    if not length > 1e-9:
        raise ValueError(
            "The differences between anomalous and normal images cancel out over the "
            "products, so they have no direction in common."
        )
    return vector / length
