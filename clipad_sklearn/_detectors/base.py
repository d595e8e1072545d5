"""What all detectors share: scikit-learn's outlier-detection contract."""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Callable, Iterator
from numbers import Real
from typing import Any, ClassVar, TypeVar

import numpy as np
from scipy.special import expit
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.metrics import roc_auc_score
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted, validate_data

from .. import metrics
from .._clip.kept_model import check_same_clip, fingerprint_without_loading
from .._clip.settings import check_clip
from .._errors import NotNumbersError, shown
from .._promises import floor_count
from .._validation import check_parameters


class BaseDetector(OutlierMixin, BaseEstimator):
    """Base of all detectors.

    A subclass has `fit`, which begins with `_check_fit` and ends with `_set_offset`,
    and ``_margins(X, **params)``, which returns the margins
    log p(normal) - log p(anomalous) of a fitted detector.
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "contamination": [StrOptions({"auto"}), Interval(Real, 0, 0.5, closed="right")],
    }

    # Whether `fit` learns more than what words mean to a CLIP.
    _learns: ClassVar[bool] = True
    classes_: np.ndarray
    offset_: float
    calibration_scores_: np.ndarray
    contamination: float | str

    # -- from margins to everything else ----------------------------------------

    def _margins(self, *args: Any, **params: Any) -> np.ndarray:
        raise NotImplementedError(f"{type(self).__name__} has no _margins")

    def _checked_margins(self, X: Any, **params: Any) -> np.ndarray:
        check_is_fitted(self)
        if X is None:
            raise ValueError(
                f"{type(self).__name__} has nothing to score: X is None. X=None is "
                "accepted by `fit` only."
            )
        margins = np.asarray(self._margins(X, **params), dtype=np.float64)
        self._check_same_clip()  # by now its model is loaded or known, if it was needed
        return margins

    def _check_same_clip(self) -> None:
        """Raise if the CLIP has other weights or preprocessing than in `fit`.

        Only warn where neither the detector nor its threshold learned anything.
        """
        if hasattr(self, "clip"):
            can_do = not self._learns and is_uncalibrated(self)
            check_same_clip(self, check_clip(self.clip), warn=can_do)

    def _decision(self, margins: np.ndarray) -> np.ndarray:
        """Return margins above the threshold, which may have been set by hand."""
        offset = np.asarray(self.offset_)
        if offset.dtype.kind not in "iuf" or not np.isfinite(offset).all():
            raise ValueError(
                f"offset_={self.offset_!r}: expected a finite number, the threshold."
            )
        return margins - self.offset_

    def _verdicts(self, decision: np.ndarray) -> np.ndarray:
        verdicts = np.where(decision >= 0, 1, -1)
        n_anomalous = int((verdicts == -1).sum())
        warn_if_one_sided(self, n_anomalous, len(verdicts), stacklevel=3)
        return verdicts

    @staticmethod
    def _probabilities(margins: np.ndarray) -> np.ndarray:
        return np.column_stack([expit(-margins), expit(margins)])

    # -- for the `fit` of a subclass ----------------------------------------------

    def _check_fit(self, X: Any, y: Any = None) -> None:
        """Check the parameters, and what `fit` is given for them; its first step."""
        check_parameters(self)
        if self.contamination != "auto" and X is None:
            raise ValueError(
                f"contamination={self.contamination!r} is a quantile of the scores of "
                "the images given to `fit`, but X is None. Fit with images, or use "
                "contamination='auto'."
            )

    def _set_offset(self, X: Any, **params: Any) -> None:
        """Set `offset_` and `classes_`; the last step of every `fit`."""
        self._reset_offset()
        if self.contamination != "auto":
            margins = self._checked_margins(X, **params)
            self.offset_ = quantile_offset(margins, float(self.contamination))

    def _reset_offset(self) -> None:
        """Set `offset_` and `classes_` without data, and note the CLIP."""
        self.__dict__.pop("calibration_scores_", None)  # of an earlier fit
        self.__dict__.pop("clip_fingerprint_", None)
        if hasattr(self, "clip"):
            fingerprint = fingerprint_without_loading(check_clip(self.clip))
            if fingerprint is not None:
                self.clip_fingerprint_ = fingerprint
        self.classes_ = np.array([-1, 1])
        self.offset_ = 0.0

    # -- public -----------------------------------------------------------------

    def fit(self, X: Any = None, y: Any = None) -> Any:
        """Fit the detector."""
        raise NotImplementedError

    def score_samples(self, X: Any) -> np.ndarray:
        """Return the margin of each sample; higher is more normal.

        Parameters
        ----------
        X : {array-like, sequence of images}
            The samples, of the kind that `fit` takes.

        Returns
        -------
        ndarray of shape (n_samples,), dtype float64
            The margins log p(normal) - log p(anomalous), unsaturated.
        """
        return self._checked_margins(X)

    def decision_function(self, X: Any) -> np.ndarray:
        """Return the margin of each sample above the threshold.

        Parameters
        ----------
        X : {array-like, sequence of images}
            The samples, of the kind that `fit` takes.

        Returns
        -------
        ndarray of shape (n_samples,), dtype float64
            ``score_samples(X) - offset_``; not negative for normal samples.
        """
        return self._decision(self._checked_margins(X))

    def predict(self, X: Any) -> np.ndarray:
        """Return the verdict for each sample.

        Parameters
        ----------
        X : {array-like, sequence of images}
            The samples, of the kind that `fit` takes.

        Returns
        -------
        ndarray of shape (n_samples,), dtype int
            +1 for normal, -1 for anomalous.

        Warns
        -----
        UserWarning
            If 20 or more samples all get the same verdict from a threshold that was
            never set from data.
        """
        return self._verdicts(self._decision(self._checked_margins(X)))

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return the probabilities of anomaly and normality.

        Parameters
        ----------
        X : {array-like, sequence of images}
            The samples, of the kind that `fit` takes.

        Returns
        -------
        ndarray of shape (n_samples, 2), dtype float64
            Columns in the order of `classes_`: anomalous, normal. The logistic
            function of the margin, which does not move with `offset_`: once a
            threshold is set, one half is not the boundary of the verdicts.
        """
        return self._probabilities(self._checked_margins(X))

    def p_values(self, X: Any) -> np.ndarray:
        """Return for each sample the share of good ones that look at least as odd.

        Parameters
        ----------
        X : {array-like, sequence of images}
            The samples, of the kind that `fit` takes.

        Returns
        -------
        ndarray of shape (n_samples,), dtype float64
            The p-values, in (0, 1], from the good images that
            :func:`calibrate_threshold` was given. See
            :func:`clipad_sklearn.metrics.p_values`.

        Raises
        ------
        NotFittedError
            If the detector is not calibrated.
        """
        return self._p_values(self._checked_margins(X))

    def _p_values(self, margins: np.ndarray) -> np.ndarray:
        check_is_fitted(
            self,
            "calibration_scores_",
            msg="This %(name)s is not calibrated: call calibrate_threshold with good "
            "images before p_values.",
        )
        return metrics.p_values(margins, self.calibration_scores_)

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Return the area under the ROC curve.

        Parameters
        ----------
        X : {array-like, sequence of images}
            The samples, of the kind that `fit` takes.
        y : array-like of shape (n_samples,) or None, default=None
            Labels: {-1, +1} with -1 anomalous, or {0, 1} or bool with 1 anomalous.
            None is an error that says so.
        sample_weight : array-like of shape (n_samples,) or None, default=None
            Weights of the samples.

        Returns
        -------
        float
            In [0, 1].

        Raises
        ------
        ValueError
            If there are no labels, or other ones.
        """
        return _auroc(y, self._checked_margins(X), sample_weight)

    def fit_predict(self, X: Any, y: Any = None) -> np.ndarray:
        """Fit, and return the verdict for each sample.

        Parameters
        ----------
        X : {array-like, sequence of images}
            The samples, of the kind that `fit` takes.
        y : None, or what `fit` takes, default=None
            The second argument of `fit`.

        Returns
        -------
        ndarray of shape (n_samples,), dtype int
            +1 for normal, -1 for anomalous.
        """
        if isinstance(X, Iterator):
            X = list(X)  # it is gone through twice
        return self.fit(X, y).predict(X)


_CLASS_NAME = """
class_name : str, array-like of str of shape (n_samples,) or None, default=None
    What the images show. None is what `fit` was given.
"""
_Method = TypeVar("_Method", bound=Callable[..., Any])


def with_class_name(method: _Method) -> _Method:
    """Document a method as that of `BaseDetector`, with one more parameter."""
    documented = getattr(BaseDetector, method.__name__).__doc__
    parameters, returns, rest = inspect.cleandoc(documented).partition("\n\nReturns")
    method.__doc__ = parameters + _CLASS_NAME + returns.removeprefix("\n") + rest + "\n"
    return method


class ClassNameDetector(BaseDetector):
    """Base of detectors to which a class name per call or per image can be given."""

    def fit(self, X: Any = None, y: Any = None, class_name: Any = None) -> Any:
        """Fit the detector."""
        raise NotImplementedError

    @with_class_name
    def score_samples(self, X: Any, class_name: Any = None) -> np.ndarray:
        return self._checked_margins(X, class_name=class_name)

    @with_class_name
    def decision_function(self, X: Any, class_name: Any = None) -> np.ndarray:
        return self._decision(self._checked_margins(X, class_name=class_name))

    @with_class_name
    def predict(self, X: Any, class_name: Any = None) -> np.ndarray:
        margins = self._checked_margins(X, class_name=class_name)
        return self._verdicts(self._decision(margins))

    @with_class_name
    def predict_proba(self, X: Any, class_name: Any = None) -> np.ndarray:
        return self._probabilities(self._checked_margins(X, class_name=class_name))

    @with_class_name
    def p_values(self, X: Any, class_name: Any = None) -> np.ndarray:
        return self._p_values(self._checked_margins(X, class_name=class_name))

    @with_class_name
    def score(
        self,
        X: Any,
        y: Any = None,
        sample_weight: Any = None,
        class_name: Any = None,
    ) -> float:
        margins = self._checked_margins(X, class_name=class_name)
        return _auroc(y, margins, sample_weight)

    @with_class_name
    def fit_predict(self, X: Any, y: Any = None, class_name: Any = None) -> np.ndarray:
        if isinstance(X, Iterator):
            X = list(X)  # it is gone through twice
        self.fit(X, y, class_name=class_name)
        return self.predict(X, class_name=class_name)


# -- what others ask of a detector -------------------------------------------------


def is_uncalibrated(detector: BaseDetector) -> bool:
    """Return whether the threshold was never set from data."""
    if hasattr(detector, "reference_scores_"):
        return False  # its zero comes from the scores of the references
    # A detector that always sets it in `fit` has no such parameter.
    contamination = getattr(detector, "contamination", None)
    return contamination == "auto" and detector.offset_ == 0


def warn_if_one_sided(
    detector: BaseDetector, n_anomalous: int, n: int, stacklevel: int
) -> None:
    """Warn if a threshold that was never set from data gives one verdict only."""
    if n >= 20 and n_anomalous in (0, n) and is_uncalibrated(detector):
        verdict = "anomalous" if n_anomalous else "normal"
        warnings.warn(
            f"All {n} images were classified as {verdict}. The default threshold is "
            "uncalibrated (CLIP's text and image embeddings are offset); the ranking "
            "is still meaningful. Set a threshold with `contamination` or "
            "`calibrate_threshold`.",
            UserWarning,
            stacklevel=stacklevel + 1,
        )


def quantile_offset(margins: np.ndarray, contamination: float) -> float:
    """Return the threshold below which the share `contamination` of the margins lies.

    A margin equal to it is normal.
    """
    return float(np.sort(margins)[floor_count(contamination, len(margins))])


def _auroc(y: Any, margins: np.ndarray, sample_weight: Any) -> float:
    if y is None:
        raise ValueError(
            "y is None, but the score is the area under the ROC curve of labelled "
            "samples: pass y, to searches and cross-validation too."
        )
    if sample_weight is None:
        return metrics.auroc(y, -margins)
    is_anomalous = metrics.to_outlier_labels(y)
    return float(roc_auc_score(is_anomalous, -margins, sample_weight=sample_weight))


class EmbeddingMixin:
    """For detectors whose samples are embeddings of images."""

    clip: Any
    n_features_in_: int

    def _check_fit(self, X: Any, y: Any = None) -> None:
        super()._check_fit(X, y)  # type: ignore[misc]
        # y is ignored, but such labels would spoil the scores of a search later. To
        # detectors on images, strings are files of masks.
        labels = [] if y is None else np.asarray(y).ravel().tolist()
        names = [name for name in labels if isinstance(name, str)]
        if names:
            found = ", ".join(map(shown, sorted(set(names))[:3]))
            raise ValueError(
                f"y holds strings ({found}): expected labels in {{-1, +1}} with -1 "
                "anomalous, or in {0, 1} or bool with 1 anomalous."
            )

    def _check_embeddings(self, X: Any, *, reset: bool) -> Any:
        if X is None:  # in `fit`: nothing is known of an earlier one's features
            self.__dict__.pop("feature_names_in_", None)
            return None
        if _are_images(X):
            name = type(self).__name__
            example = f"{name}({'clip' if hasattr(self, 'clip') else ''})"
            raise ValueError(
                f"{name} takes embeddings of images, but X holds images: put "
                "CLIPImageEncoder(clip) before it, as in "
                f"make_pipeline(CLIPImageEncoder(clip), {example})."
            )
        if not reset and not hasattr(self, "feature_names_in_"):
            # Fitted without names, or without images: names of X mean nothing then.
            X = np.asarray(X) if hasattr(X, "columns") else X
        try:
            return validate_data(self, X, reset=reset, dtype=[np.float64, np.float32])
        except ValueError as error:
            if "contains NaN" not in str(error):
                raise
            rows = np.flatnonzero(np.isnan(np.asarray(X, np.float64)).any(axis=1))
            listed = ", ".join(map(str, rows[:10])) + (
                ", ..." if len(rows) > 10 else ""
            )
            raise NotNumbersError(
                f"Input X contains NaN, in {len(rows)} of {len(X)} rows: {listed}. "
                "Images that could not be read give such rows with on_error='nan'. "
                "Leave them out: X[np.isfinite(X).all(axis=1)]."
            ) from None

    def _encode_prompts(self, prompts: list[str], n_features: int | None) -> np.ndarray:
        """Encode prompts for embeddings of images that have `n_features`, if known."""
        embeddings = check_clip(self.clip).encode_text(prompts)
        width = embeddings.shape[1]
        if n_features is not None and n_features != width:
            raise ValueError(
                f"X has {n_features} features, but {type(self).__name__}'s clip "
                f"{self.clip!r} makes embeddings of {width} features. Encoder and "
                "detector need the same clip."
            )
        return embeddings


def _are_images(X: Any) -> bool:
    """Return whether `X` is what an encoder takes: paths, pictures or pixels."""
    if len(getattr(X, "shape", (0,))) != 1:
        return isinstance(X, np.ndarray) and X.ndim > 2
    if isinstance(X, (str, os.PathLike)):
        return True
    if not hasattr(X, "__len__") or len(X) == 0:
        return False
    first = next(iter(X))
    pixels = isinstance(first, np.ndarray) and first.ndim > 1
    picture = hasattr(first, "convert") and hasattr(first, "size")
    return pixels or picture or isinstance(first, (str, bytes, os.PathLike))
