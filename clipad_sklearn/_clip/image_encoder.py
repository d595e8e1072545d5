"""`CLIPImageEncoder`: images to embeddings."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.exceptions import NotFittedError
from sklearn.utils import Tags

from .kept_model import check_same_clip, fingerprint_without_loading
from .models import n_features
from .settings import OpenCLIP, check_clip


def _pass_none_through(method: Callable[..., Any]) -> Callable[..., Any]:
    """Let ``X=None`` through, outside of scikit-learn's output wrapper."""

    @functools.wraps(method)
    def guarded(self: Any, X: Any = None, *args: Any, **params: Any) -> Any:
        if X is None:
            return None
        return method(self, X, *args, **params)

    return guarded


class CLIPImageEncoder(TransformerMixin, BaseEstimator):
    """Encode images with CLIP's image tower.

    Parameters
    ----------
    clip : OpenCLIP, str, PathLike or None, default=None
        Which CLIP: an :class:`OpenCLIP`, ``"model/pretrained"``,
        ``"hf-hub:organisation/name"``, a folder, ``"model/file"``, or ``"tiny"``. None
        is ``OpenCLIP()``. The detector behind the encoder needs the same one.
    on_error : {"raise", "nan"}, default="raise"
        What to do about images that cannot be read: raise an
        :class:`ImageReadError` that names all of them, or return rows of NaN.

    See Also
    --------
    RandomWordDetector : Detector on embeddings that learns from words only.
    PromptDetector : Detector on embeddings that compares them with prompts.

    Notes
    -----
    Nothing is learned: `fit` does nothing, and ``X=None`` passes through `transform`
    unchanged, so that a Pipeline of encoder and detector can be fitted without
    images. `fit_transform`, which a Pipeline calls, notes the weights and
    preprocessing, and `transform` refuses others from then on: what stands behind the
    encoder has learned from its embeddings.

    Examples
    --------
    >>> from clipad_sklearn import CLIPImageEncoder
    >>> from clipad_sklearn.datasets import make_defect_images
    >>> photos = make_defect_images(4, random_state=0).images
    >>> CLIPImageEncoder("tiny").fit_transform(photos).shape
    (4, 128)
    """

    def __init__(
        self,
        clip: OpenCLIP | str | os.PathLike[str] | None = None,
        *,
        on_error: str = "raise",
    ) -> None:
        self.clip = clip
        self.on_error = on_error

    def fit(self, X: Any = None, y: Any = None) -> CLIPImageEncoder:
        """Do nothing, since nothing is learned.

        Parameters
        ----------
        X : sequence of images or None, default=None
            Ignored.
        y : None
            Ignored.

        Returns
        -------
        CLIPImageEncoder
            The encoder.
        """
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Encode images.

        Parameters
        ----------
        X : sequence of path, PIL.Image or array, one array, or None
            The images, see :meth:`OpenCLIP.encode_image`. None is returned as it is.

        Returns
        -------
        ndarray of shape (n_images, n_features), dtype float32
            L2-normalised rows.

        Raises
        ------
        ImageReadError
            If images cannot be read and ``on_error="raise"``.
        ValueError
            If `X` is empty or a lone image, or `fit_transform` has seen other weights
            or another preprocessing.
        WeightsNotFound
            If the weights cannot be found or downloaded.
        """
        clip = check_clip(self.clip)
        embeddings = clip.encode_image(X, on_error=self.on_error)
        check_same_clip(self, clip)
        return embeddings

    def fit_transform(self, X: Any = None, y: Any = None) -> np.ndarray:
        """Encode images, as `transform` does.

        Parameters
        ----------
        X : sequence of images or None, default=None
            The images. None is returned as it is.
        y : None
            Ignored.

        Returns
        -------
        ndarray of shape (n_images, n_features), dtype float32
            L2-normalised rows.
        """
        self.__dict__.pop("clip_fingerprint_", None)  # of an earlier fit
        embeddings: np.ndarray = self.fit(X).transform(X)
        fingerprint = fingerprint_without_loading(check_clip(self.clip))
        if fingerprint is not None:
            self.clip_fingerprint_ = fingerprint
        return embeddings

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Return the names of the features.

        Parameters
        ----------
        input_features : None
            Ignored.

        Returns
        -------
        ndarray of str
            ``clip000``, ``clip001``, ...

        Raises
        ------
        NotFittedError
            If this process has not encoded anything with this CLIP yet: how many
            features there are is known once the weights are loaded.
        """
        width = n_features(check_clip(self.clip))
        if width is None:
            raise NotFittedError(
                "The number of features is known once the weights are loaded: encode "
                "an image first."
            )
        digits = len(str(width - 1))
        return np.array([f"clip{i:0{digits}d}" for i in range(width)], dtype=object)

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        tags.input_tags.two_d_array = False
        tags.input_tags.string = True
        return tags


CLIPImageEncoder.transform = _pass_none_through(  # type: ignore[method-assign]
    CLIPImageEncoder.transform
)
CLIPImageEncoder.fit_transform = _pass_none_through(  # type: ignore[method-assign]
    CLIPImageEncoder.fit_transform
)
