"""`FusionDetector`: combines the scores of several detectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from scipy.special import log_expit, logsumexp
from sklearn.base import clone
from sklearn.utils import Bunch, Tags, get_tags
from sklearn.utils._param_validation import StrOptions
from sklearn.utils.metaestimators import _BaseComposition

from .._validation import all_or_nothing
from .base import ClassNameDetector
from .class_names import fit_named, score_named

_METHODS = ("mean", "max", "harmonic", "logit_mean")


class FusionDetector(ClassNameDetector, _BaseComposition):
    """Combine the anomaly probabilities of several detectors.

    Parameters
    ----------
    detectors : list of (str, detector)
        Names and detectors that take the same input. Parameters of a member are
        searched by its name, as in ``fusion__words__n_pairs``.
    method : {"mean", "max", "harmonic", "logit_mean"}, default="mean"
        How the members' anomaly probabilities become one: their weighted mean, their
        maximum, or their weighted harmonic mean. ``"logit_mean"`` is the weighted mean
        of margins instead.
    weights : array-like of shape (n_detectors,) or None, default=None
        Weights of the members, not negative, in the order of `detectors`. None gives
        all the same. ``"max"`` takes none.
    contamination : "auto" or float, default="auto"
        ``"auto"`` sets `offset_` to 0. A number in (0, 0.5] is the share of the images
        given to `fit` that are called anomalous. That of a member plays no role.

    Attributes
    ----------
    detectors_ : list of detectors
        The fitted members.
    named_detectors_ : Bunch
        The fitted members by name.
    offset_ : float
        The threshold on the margin. It may be set after fitting.
    classes_ : ndarray of shape (2,)
        ``[-1, 1]``.

    Raises
    ------
    ValueError
        From `fit`, if `detectors` is empty, names are not unique or clash with
        parameters, or a parameter is out of range.

    See Also
    --------
    RandomWordDetector : Learns from random words.
    PromptDetector : Compares images with prompts.

    Notes
    -----
    With margins m_i, anomaly probabilities p_i = 1 / (1 + exp(m_i)) and weights w_i
    that sum to one, the combined probability p is sum w_i p_i, max p_i or
    1 / sum (w_i / p_i). The score is log(1 - p) - log p, computed from the margins in
    log space, so that it does not saturate. ``"mean"`` ranks as the sum of the scores
    of prompts and network does, which is our reading of the combination "CLIP + ours"
    that is reported of random word data augmentation [1]_; the paper's text was not
    available to us.

    References
    ----------
    .. [1] M. Tamura, "Random Word Data Augmentation with CLIP for Zero-Shot Anomaly
       Detection", British Machine Vision Conference, 2023.

    Examples
    --------
    >>> from sklearn.pipeline import make_pipeline
    >>> from clipad_sklearn import CLIPImageEncoder, FusionDetector
    >>> from clipad_sklearn import PromptDetector, RandomWordDetector
    >>> from clipad_sklearn.datasets import make_defect_images
    >>> photos = make_defect_images(6, random_state=0).images
    >>> words = RandomWordDetector("tiny", n_pairs=200, random_state=0)
    >>> fusion = FusionDetector([("words", words), ("prompts", PromptDetector("tiny"))])
    >>> detector = make_pipeline(CLIPImageEncoder("tiny"), fusion)
    >>> detector.fit(None).score_samples(photos).shape
    (6,)
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "method": [StrOptions(set(_METHODS))],
    }

    def __init__(
        self,
        detectors: Sequence[tuple[str, Any]],
        *,
        method: str = "mean",
        weights: Sequence[float] | None = None,
        contamination: float | str = "auto",
    ) -> None:
        self.detectors = detectors
        self.method = method
        self.weights = weights
        self.contamination = contamination

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the parameters, and with `deep` those of the members.

        Parameters
        ----------
        deep : bool, default=True
            Whether to return the members and their parameters too.

        Returns
        -------
        dict
            Values by name.
        """
        return self._get_params("detectors", deep=deep)

    def set_params(self, **params: Any) -> FusionDetector:
        """Set parameters, whole members, or parameters of members.

        Parameters
        ----------
        **params : dict
            Values by name.

        Returns
        -------
        FusionDetector
            The detector.
        """
        self._set_params("detectors", **params)
        return self

    @all_or_nothing
    def fit(
        self, X: Any = None, y: Any = None, class_name: Any = None
    ) -> FusionDetector:
        """Fit the members.

        Parameters
        ----------
        X : what the members take, or None, default=None
            Passed on to the members. A numeric `contamination` needs it.
        y : None
            Ignored.
        class_name : str, array-like of str of shape (n_samples,) or None, default=None
            Passed on to the members that take it.

        Returns
        -------
        FusionDetector
            The fitted detector.
        """
        self._check_fit(X, y)
        self._check_members()
        self._log_weights()
        self.detectors_ = [
            fit_named(clone(detector), X, class_name) for _, detector in self.detectors
        ]
        self.__dict__.pop("feature_names_in_", None)
        if hasattr(self.detectors_[0], "feature_names_in_"):
            self.feature_names_in_ = self.detectors_[0].feature_names_in_
        self._set_offset(X, class_name=class_name)
        return self

    def _check_members(self) -> None:
        if not self.detectors:
            raise ValueError(
                "detectors is empty: expected a list of (name, detector) such as "
                "[('words', RandomWordDetector()), ('prompts', PromptDetector())]."
            )
        self._validate_names([name for name, _ in self.detectors])
        for name, detector in self.detectors:
            if not hasattr(detector, "score_samples"):
                raise ValueError(
                    f"The member {name!r} is not a detector: {detector!r} has no "
                    "score_samples."
                )

    def _log_weights(self) -> np.ndarray:
        """Logarithms of the weights, which are made to sum to one."""
        count = len(self.detectors)
        if self.weights is None:
            return np.full(count, -np.log(count))
        if self.method == "max":
            raise ValueError("method='max' takes no weights.")
        weights = np.asarray(self.weights, dtype=np.float64)
        valid = (
            weights.shape == (count,)
            and np.isfinite(weights).all()
            and (weights >= 0).all()
            and weights.sum() > 0
        )
        if not valid:
            raise ValueError(
                f"weights={self.weights!r}: expected {count} numbers >= 0, not all 0, "
                "one for each member of `detectors`."
            )
        with np.errstate(divide="ignore"):
            return np.log(weights / weights.sum())

    def _margins(self, X: Any, class_name: Any = None) -> np.ndarray:
        margins = np.stack(
            [score_named(detector, X, class_name) for detector in self.detectors_]
        )
        if self.method == "max":
            return margins.min(axis=0)
        log_weights = self._log_weights()[:, np.newaxis]
        if self.method == "logit_mean":
            return (np.exp(log_weights) * margins).sum(axis=0)
        if self.method == "harmonic":
            # p = 1 / sum w (1 + e^m), hence (1 - p) / p = sum w e^m
            return logsumexp(log_weights + margins, axis=0)
        return logsumexp(log_weights + log_expit(margins), axis=0) - logsumexp(
            log_weights + log_expit(-margins), axis=0
        )

    # Not stored, because skops does not trust a Bunch unasked.
    @property
    def named_detectors_(self) -> Bunch:
        """The fitted members by name."""
        if not hasattr(self, "detectors_"):
            raise AttributeError(
                f"{type(self).__name__} has no attribute 'named_detectors_' before fit."
            )
        names = [name for name, _ in self.detectors]
        return Bunch(**dict(zip(names, self.detectors_, strict=True)))

    @property
    def n_features_in_(self) -> int:
        """Number of features of an embedding."""
        if not hasattr(self, "detectors_"):
            raise AttributeError(
                f"{type(self).__name__} has no attribute 'n_features_in_' before fit."
            )
        return self.detectors_[0].n_features_in_

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "detectors_") and hasattr(self, "offset_")

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        if self.detectors:
            tags.input_tags = get_tags(self.detectors[0][1]).input_tags
        return tags
