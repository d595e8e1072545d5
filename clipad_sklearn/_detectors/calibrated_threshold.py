"""`CalibratedThresholdDetector`: a threshold from images held out within `fit`."""

from __future__ import annotations

from numbers import Real
from typing import Any, ClassVar

import numpy as np
from sklearn.base import clone
from sklearn.model_selection import train_test_split
from sklearn.utils import Tags, _safe_indexing, get_tags, indexable
from sklearn.utils._param_validation import Interval
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import _num_samples

from .._images import check_images
from .._validation import all_or_nothing, check_value
from .base import ClassNameDetector, with_class_name
from .calibration import are_references, calibrate_threshold, check_labels
from .class_names import (
    fit_named,
    last_step,
    names_of_images,
    score_named,
    takes_images,
)


def _has_probabilities(self: CalibratedThresholdDetector) -> bool:
    return hasattr(last_step(self.detector), "predict_proba")


class CalibratedThresholdDetector(ClassNameDetector):
    """Detector whose `fit` sets the threshold from good images that it holds out.

    `fit` splits the good images at random: with one part the detector is fitted, with
    the other `calibrate_threshold` sets the threshold, so that it keeps its promise
    in cross-validation, in searches and in clones.

    Parameters
    ----------
    detector : outlier detector
        An estimator with ``score_samples``, or a Pipeline that ends in one. It is
        cloned; a FrozenEstimator of a fitted one stays as it is.
    max_false_alarm : float in [0, 1), default=0.05
        Largest rate at which new good images may be flagged.
    confidence : float in (0, 1) or None, default=None
        None keeps the rate on average, a number with this probability: see
        :func:`calibrate_threshold`.
    calibration_size : float in (0, 1], default=0.5
        Share of the good images that is held out for the threshold. 1.0 holds out all
        of them: the detector is fitted with ``X=None``, for one that learns from
        words only or is frozen.
    random_state : int, RandomState instance or None, default=None
        Chooses which images are held out.

    Attributes
    ----------
    detector_ : outlier detector
        The fitted detector. Its own threshold plays no role.
    offset_ : float
        The threshold on ``score_samples``. It may be set after fitting.
    calibration_scores_ : ndarray of shape (n_held_out,)
        Sorted scores of the images that were held out.
    classes_ : ndarray of shape (2,)
        ``[-1, 1]``.

    Raises
    ------
    ValueError
        From `fit`, if a parameter is out of range or no detector, if labels are not as
        described, or if too few images are held out for the `confidence`.

    See Also
    --------
    calibrate_threshold : The same for a fitted detector, with images of your choice.
    sklearn.model_selection.TunedThresholdClassifierCV : Maximises a metric of
        labelled samples, for classifiers; it promises no rate.

    Notes
    -----
    With labels `y`, only the good images are split, and those that are anomalous are
    left out, except for a detector that requires labels: it gets every image that is
    not held out, with its label. Without `y`, all images are good.

    The promise holds for images that are exchangeable with those held out. Several
    photos of one part are not, if they end up on both sides of the split: then split
    by part and use :func:`calibrate_threshold`.

    The detector's `fit` sees `calibration_size` fewer images than it could. Fitting
    it again with all of them would change the scores, to which the threshold then
    would no longer belong.

    Examples
    --------
    >>> from sklearn.pipeline import make_pipeline
    >>> from clipad_sklearn import CalibratedThresholdDetector, CLIPImageEncoder
    >>> from clipad_sklearn import PromptDetector
    >>> from clipad_sklearn.datasets import make_defect_images
    >>> good = make_defect_images(20, anomaly_fraction=0, size=64, random_state=0)
    >>> words = make_pipeline(CLIPImageEncoder("tiny"), PromptDetector("tiny"))
    >>> detector = CalibratedThresholdDetector(
    ...     words, max_false_alarm=0.1, calibration_size=1.0
    ... )
    >>> detector.fit(good.images).predict(good.images).shape
    (20,)
    >>> len(detector.calibration_scores_)
    20
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "max_false_alarm": [Interval(Real, 0, 1, closed="left")],
        "confidence": [None, Interval(Real, 0, 1, closed="neither")],
        "calibration_size": [Interval(Real, 0, 1, closed="right")],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        detector: Any,
        *,
        max_false_alarm: float = 0.05,
        confidence: float | None = None,
        calibration_size: float = 0.5,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.detector = detector
        self.max_false_alarm = max_false_alarm
        self.confidence = confidence
        self.calibration_size = calibration_size
        self.random_state = random_state

    @all_or_nothing
    def fit(
        self, X: Any = None, y: Any = None, class_name: Any = None
    ) -> CalibratedThresholdDetector:
        """Fit the detector, and set the threshold from images held out.

        Parameters
        ----------
        X : {array-like, sequence of images}
            What the detector takes.
        y : array-like of shape (n_samples,) or None, default=None
            Labels in {-1, +1} with -1 for anomalous, or in {0, 1} or bool with 1 for
            anomalous. None: all of `X` are good.
        class_name : str, array-like of str of shape (n_samples,) or None, default=None
            What the images show, for a detector that takes it.

        Returns
        -------
        CalibratedThresholdDetector
            The fitted detector.
        """
        for name, constraints in self._parameter_constraints.items():
            check_value(name, getattr(self, name), constraints)
        if X is None:
            raise ValueError(
                "X is None, but a threshold is set from images: pass some."
            )
        if not hasattr(self.detector, "score_samples"):
            raise ValueError(
                f"detector={self.detector!r}: expected a detector, or a Pipeline that "
                "ends in one, with score_samples; a LocalOutlierFactor has it with "
                "novelty=True, a classifier has not."
            )
        X = check_images(X) if takes_images(self.detector) else indexable(X)[0]
        n_samples = _num_samples(X)
        if class_name is not None and not isinstance(class_name, str):
            class_name = names_of_images(class_name, n_samples)

        def part(values: Any, indices: np.ndarray) -> Any:
            whole = values is None or isinstance(values, str)
            return values if whole else _safe_indexing(values, indices)

        good = np.flatnonzero(~check_labels(y, n_samples))
        if self.calibration_size == 1:
            self.detector_ = fit_named(clone(self.detector), None, None)
            held_out = good
        else:
            taught, held_out = train_test_split(
                good, test_size=self.calibration_size, random_state=self.random_state
            )
            y_taught = None
            if _needs_labels(self.detector):
                taught = np.setdiff1d(np.arange(n_samples), held_out)
                y_taught = part(y, taught)
            self.detector_ = fit_named(
                clone(self.detector),
                part(X, taught),
                part(class_name, taught),
                y_taught,
            )
        self.__dict__.pop("feature_names_in_", None)
        if hasattr(self.detector_, "feature_names_in_"):
            self.feature_names_in_ = self.detector_.feature_names_in_
        self.classes_ = np.array([-1, 1])
        self.offset_ = 0.0
        return calibrate_threshold(
            self,
            part(X, held_out),
            max_false_alarm=self.max_false_alarm,
            confidence=self.confidence,
            class_name=part(class_name, held_out),
        )

    def _margins(self, X: Any, class_name: Any = None) -> np.ndarray:
        return score_named(self.detector_, X, class_name)

    @available_if(_has_probabilities)
    @with_class_name
    def predict_proba(self, X: Any, class_name: Any = None) -> np.ndarray:
        return super().predict_proba(X, class_name=class_name)

    def is_reference(self, X: Any) -> np.ndarray:
        """Return which images the detector keeps as references.

        Parameters
        ----------
        X : {array-like, sequence of images}
            The samples, of the kind that `fit` takes.

        Returns
        -------
        ndarray of shape (n_samples,), dtype bool
            True for references, which can promise nothing. All False if the detector
            keeps none.
        """
        return are_references(self.detector_, X)

    @property
    def n_features_in_(self) -> int:
        """Number of features of a sample, if the detector knows it."""
        if not hasattr(self, "detector_"):
            raise AttributeError(
                f"{type(self).__name__} has no attribute 'n_features_in_' before fit."
            )
        return self.detector_.n_features_in_

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "detector_") and hasattr(self, "offset_")

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        inner = get_tags(self.detector)
        tags.input_tags = inner.input_tags
        tags.input_tags.two_d_array = not takes_images(self.detector)
        tags.target_tags.required = _needs_labels(self.detector)
        return tags


def _needs_labels(detector: Any) -> bool:
    # The tags of a Pipeline do not say so.
    return bool(get_tags(last_step(detector)).target_tags.required)
