"""`FusionDetector`: combines the scores of several detectors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
from scipy.special import expit, log_expit, logit, logsumexp
from sklearn.base import BaseEstimator, clone
from sklearn.utils import Bunch, Tags, get_tags
from sklearn.utils._param_validation import StrOptions
from sklearn.utils.metaestimators import _BaseComposition, available_if
from sklearn.utils.validation import check_is_fitted

from .._clip import read_once
from .._clip.encoding import unreadable
from .._clip.image_encoder import CLIPImageEncoder
from .._clip.read_once import given
from .._clip.settings import check_clip
from .._errors import ImageReadError
from .._images import check_images
from .._validation import all_or_nothing
from .base import ClassNameDetector
from .calibration import are_references
from .class_names import (
    check_needs_no_labels,
    first_step,
    fit_named,
    keyword_for,
    names_of_images,
    score_named,
)
from .maps import MapDetector
from .references import center_and_spread
from .tiles import Tiles

_METHODS = ("mean", "max", "harmonic", "logit_mean", "standardized")
# Maps are kept this far from 0 and 1 before they are combined as probabilities.
_SMALLEST_PROBABILITY = 1e-7


def _has_maps(fusion: FusionDetector) -> bool:
    """Raise AttributeError unless every member gives anomaly maps."""
    for name, detector in fusion._members():
        if not hasattr(detector, "anomaly_maps"):
            raise AttributeError(
                f"The member {name!r} of FusionDetector gives no anomaly maps: all "
                "members must be detectors on images that do."
            )
    return True


class FusionDetector(ClassNameDetector, _BaseComposition):
    """Combine the scores, and the anomaly maps, of several detectors.

    Parameters
    ----------
    detectors : list of (str, detector)
        Names and detectors that take the same input: all embeddings, or all images,
        which detectors on images and Pipelines of :class:`CLIPImageEncoder` and a
        detector do. ``"drop"`` in place of a detector leaves it out. Parameters of a
        member are searched by its name, as in ``fusion__words__n_pairs``. A fitted
        member that is to stay as it is goes in a
        :class:`sklearn.frozen.FrozenEstimator`.
    method : {"mean", "max", "harmonic", "logit_mean", "standardized"}, default="mean"
        How the members' anomaly probabilities become one: their weighted mean, their
        maximum, or their weighted harmonic mean. ``"logit_mean"`` is the weighted mean
        of margins instead, and ``"standardized"`` that of margins on a common scale,
        for members whose margins differ in scale; it needs images in `fit`, mostly
        normal ones.
    weights : array-like of shape (n_detectors,) or None, default=None
        Weights of the members, not negative, in the order of `detectors`. None gives
        all the same. ``"max"`` takes none.
    contamination : "auto" or float, default="auto"
        ``"auto"`` sets `offset_` to 0. A number in (0, 0.5] is the share of the images
        given to `fit` that are called anomalous. That of a member plays no role.

    Attributes
    ----------
    detectors_ : list of detectors
        The fitted members, without dropped ones.
    named_detectors_ : Bunch
        The fitted members by name.
    member_scales_ : ndarray of shape (n_members, 2)
        For ``method="standardized"``: center and spread of the anomaly scores, which
        are minus the margins, that each member gives the images of `fit`.
    pixel_offset_ : float
        The threshold on anomaly maps, 0.5; only if all members give maps. It may be set
        after fitting.
    offset_ : float
        The threshold on the margin. It may be set after fitting.
    classes_ : ndarray of shape (2,)
        ``[-1, 1]``.

    Raises
    ------
    ValueError
        From `fit`, if `detectors` is empty or not of (name, detector), names are not
        unique or clash with parameters, a member would have to learn from labels, or a
        parameter is out of range.

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

    ``"standardized"`` takes the anomaly scores a_i = -m_i of the images of `fit`, with
    their median c_i as center and c_i minus their 16 % quantile as spread s_i, but at
    least 0.01 abs(c_i) + 0.001. The score is 3 - sum w_i (a_i - c_i) / s_i: it is 0
    three spreads above the center. A member that leaves an image out of its own
    references does so here too. This rule is our own choice.

    Anomaly maps are combined by the same rules, pixel by pixel, with the members' maps
    as p_i. ``"standardized"`` combines them as ``"logit_mean"`` does: maps are on a
    fixed scale already.

    To be scored, images are read once for all members that share a CLIP, and through
    its embedding cache encoded once for those that look at embeddings. In `fit`, and
    for members that look at tiles, each reads its own.

    Anomaly maps are there if every member gives them.

    References
    ----------
    .. [1] M. Tamura, "Random Word Data Augmentation with CLIP for Zero-Shot Anomaly
       Detection", British Machine Vision Conference, 2023.

    Examples
    --------
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.pipeline import make_pipeline
    >>> from clipad_sklearn import CLIPImageEncoder, FusionDetector
    >>> from clipad_sklearn import PromptDetector, RandomWordDetector
    >>> from clipad_sklearn.datasets import make_defect_images
    >>> photos = make_defect_images(6, random_state=0).images
    >>> words = RandomWordDetector(
    ...     "tiny", n_pairs=200, classifier=LogisticRegression(), random_state=0
    ... )
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
        if self.method == "standardized" and X is None:
            raise ValueError(
                "method='standardized' takes the scale of each member from the images "
                "given to `fit`, but X is None. Fit with images, or use another method."
            )
        if isinstance(X, Iterator):
            X = list(X)  # every member goes through it
        self.detectors_ = [
            fit_named(clone(detector), X, class_name) for _, detector in self._named()
        ]
        self.__dict__.pop("feature_names_in_", None)
        if hasattr(self.detectors_[0], "feature_names_in_"):
            self.feature_names_in_ = self.detectors_[0].feature_names_in_
        for name in ("member_scales_", "pixel_offset_"):  # of an earlier fit
            self.__dict__.pop(name, None)
        if self.method == "standardized":
            margins = self._member_margins(X, class_name)
            self.member_scales_ = np.stack([center_and_spread(-m) for m in margins])
        if hasattr(self, "anomaly_maps"):
            self.pixel_offset_ = 0.5
        self._set_offset(X, class_name=class_name)
        return self

    def _named(self) -> list[tuple[str, Any]]:
        """Names and detectors, without dropped ones."""
        return [
            (name, detector)
            for name, detector in self.detectors
            if not isinstance(detector, str)
        ]

    def _members(self) -> list[tuple[str, Any]]:
        """Names and members, fitted if there are such."""
        names = [name for name, _ in self._named()]
        fitted = getattr(
            self, "detectors_", [detector for _, detector in self._named()]
        )
        return list(zip(names, fitted, strict=True))

    def _check_members(self) -> None:
        if not self.detectors:
            raise ValueError(
                "detectors is empty: expected a list of (name, detector) such as "
                "[('words', RandomWordDetector()), ('prompts', PromptDetector())]."
            )
        for item in self.detectors:
            named = isinstance(item, (tuple, list)) and len(item) == 2
            if not named or not isinstance(item[0], str):
                raise ValueError(
                    "detectors: expected a list of (name, detector) such as "
                    f"[('words', RandomWordDetector())], found {item!r} in it."
                )
        self._validate_names([name for name, _ in self.detectors])
        for name, detector in self.detectors:
            if isinstance(detector, str) and detector == "drop":
                continue
            if not hasattr(detector, "score_samples"):
                raise ValueError(
                    f"The member {name!r} is not a detector: {detector!r} has no "
                    "score_samples."
                )
            check_needs_no_labels(f"The member {name!r}", detector)
        if not self._named():
            raise ValueError("detectors: expected at least one that is not 'drop'.")

    def _log_weights(self) -> np.ndarray:
        """Logarithms of the weights, which are made to sum to one."""
        kept = [not isinstance(detector, str) for _, detector in self.detectors]
        count = len(kept)
        if self.weights is None:
            return np.full(sum(kept), -np.log(sum(kept)))
        if self.method == "max":
            raise ValueError("method='max' takes no weights.")
        weights = np.asarray(self.weights, dtype=np.float64)
        valid = (
            weights.shape == (count,)
            and np.isfinite(weights).all()
            and (weights >= 0).all()
            and weights[kept].sum() > 0
        )
        if not valid:
            raise ValueError(
                f"weights={self.weights!r}: expected {count} numbers >= 0, not all 0, "
                "one for each member of `detectors`."
            )
        with np.errstate(divide="ignore"):
            return np.log(weights[kept] / weights[kept].sum())

    def _member_margins(self, X: Any, class_name: Any) -> np.ndarray:
        """Return the margins (n_members, n_samples) of all members."""

        def work(some: Any, names: Any) -> Iterator[list[np.ndarray]]:
            yield [
                score_named(one, images_for(one, some), names)
                for one in self.detectors_
            ]

        if get_tags(self).input_tags.two_d_array:
            return np.stack(next(work(X, class_name)))
        margins = self._in_groups(check_images(X), class_name, work)
        return np.concatenate(list(margins), axis=1)

    def _in_groups(
        self,
        images: Sequence[Any],
        class_name: Any,
        work: Callable[[Sequence[Any], Any], Iterator[Any]],
    ) -> Iterator[Any]:
        """Yield what `work` yields for images that are read once for all members.

        Images that cannot be read are named all at once, as one detector does.
        """
        if isinstance(images, Tiles):  # which come one by one, too large to be kept
            yield from work(images, class_name)
            return
        if class_name is not None and not isinstance(class_name, str):
            class_name = names_of_images(class_name, len(images))
        clips = [
            check_clip(value)
            for name, value in self.get_params().items()
            if name.endswith("__clip")
        ]
        batch_size = max((clip.batch_size for clip in clips), default=1)
        for start, some in read_once.groups(images, batch_size):
            end = start + len(some)
            names = (
                class_name[start:end] if isinstance(class_name, list) else class_name
            )
            try:
                yield from work(some, names)
            except ImageReadError as error:
                failures = [(start + i, name, why) for i, name, why in error.failures]
                others = unreadable(clips[0], images[end:]) if clips else []
                failures += [(end + i, name, why) for i, name, why in others]
                raise ImageReadError(failures) from None

    def is_reference(self, X: Any) -> np.ndarray:
        """Return which images a member keeps as references.

        Parameters
        ----------
        X : sequence of path, PIL.Image or array, or one array
            The images.

        Returns
        -------
        ndarray of shape (n_images,), dtype bool
            True for references, which can promise nothing: see
            :func:`calibrate_threshold`.
        """
        check_is_fitted(self)
        kept = [are_references(detector, X) for detector in self.detectors_]
        return np.any(kept, axis=0)

    def _margins(self, X: Any, class_name: Any = None) -> np.ndarray:
        if isinstance(X, Iterator):
            X = list(X)
        margins = self._member_margins(X, class_name)
        if self.method == "standardized":
            if not hasattr(self, "member_scales_"):
                raise ValueError(
                    "method='standardized' was set after fit, which did not take the "
                    "scales of the members: fit again."
                )
            centers, spreads = self.member_scales_.T[:, :, np.newaxis]
            margins = 3 - (-margins - centers) / spreads
        return self._combined(margins)

    def _combined(self, margins: np.ndarray) -> np.ndarray:
        """Combine margins (n_members, ...)."""
        if self.method == "max":
            return margins.min(axis=0)
        log_weights = self._log_weights().reshape(-1, *[1] * (margins.ndim - 1))
        if self.method in ("logit_mean", "standardized"):
            return (np.exp(log_weights) * margins).sum(axis=0)
        if self.method == "harmonic":
            # p = 1 / sum w (1 + e^m), hence (1 - p) / p = sum w e^m
            return logsumexp(log_weights + margins, axis=0)
        return logsumexp(log_weights + log_expit(margins), axis=0) - logsumexp(
            log_weights + log_expit(-margins), axis=0
        )

    # -- maps --------------------------------------------------------------------

    anomaly_maps = available_if(_has_maps)(MapDetector.anomaly_maps)
    iter_anomaly_maps = available_if(_has_maps)(MapDetector.iter_anomaly_maps)
    predict_masks = available_if(_has_maps)(MapDetector.predict_masks)

    def _checked_for_maps(
        self, X: Any, size: Any, class_name: Any
    ) -> tuple[Sequence[Any], Any, Any]:
        X = list(X) if isinstance(X, Iterator) else X
        for detector in self.detectors_:  # members say what they do not take
            method = detector.iter_anomaly_maps
            method(X, size=size, **keyword_for(method, class_name))
        return check_images(X), size, class_name

    def _iter_maps(
        self, images: Sequence[Any], size: Any, class_name: Any
    ) -> Iterator[np.ndarray]:
        def work(some: Any, names: Any) -> Iterator[np.ndarray]:
            iterators = []
            for detector in self.detectors_:
                method = detector.iter_anomaly_maps
                keywords = keyword_for(method, names)
                iterators.append(
                    method(images_for(detector, some), size=size, **keywords)
                )
            for maps in zip(*iterators, strict=True):
                yield self._combined_map(maps)

        return self._in_groups(images, class_name, work)

    def _combined_map(self, maps: Sequence[np.ndarray]) -> np.ndarray:
        if len({anomaly_map.shape for anomaly_map in maps}) > 1:
            raise ValueError(
                "size='model': the models of the members take images of different "
                "sizes. Pass size='image' or size=(height, width)."
            )
        p = np.stack(maps).astype(np.float64)
        p = p.clip(_SMALLEST_PROBABILITY, 1 - _SMALLEST_PROBABILITY)
        return expit(-self._combined(-logit(p))).astype(np.float32)

    # Not stored, because skops does not trust a Bunch unasked.
    @property
    def named_detectors_(self) -> Bunch:
        """The fitted members by name."""
        if not hasattr(self, "detectors_"):
            raise AttributeError(
                f"{type(self).__name__} has no attribute 'named_detectors_' before fit."
            )
        return Bunch(**dict(self._members()))

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
        try:
            first = first_step(self._named()[0][1])
        except (IndexError, TypeError, ValueError):  # `fit` says what is wrong
            return tags
        if isinstance(first, BaseEstimator):
            tags.input_tags = get_tags(first).input_tags
        return tags


def images_for(detector: Any, images: Any) -> Any:
    """Return images as a detector takes them: only ours know those read once."""
    ours = (CLIPImageEncoder, MapDetector, FusionDetector)
    if isinstance(first_step(detector), ours) or not isinstance(images, list):
        return images
    return [given(image) for image in images]
