"""`PromptDetector`: compares images with prompts."""

from __future__ import annotations

import os
from collections.abc import Mapping
from numbers import Real
from typing import Any, ClassVar

import numpy as np
from sklearn.preprocessing import normalize
from sklearn.utils._param_validation import Interval, StrOptions

from .._clip.encoding import check_pairs
from .._clip.settings import OpenCLIP, check_clip
from .._prompts import PromptSet, check_class_name, check_prompts
from .._validation import all_or_nothing
from .aggregation import METHODS, aggregate
from .base import ClassNameDetector, EmbeddingMixin
from .class_names import names_of_images


class PromptDetector(EmbeddingMixin, ClassNameDetector):
    """Detect anomalies by comparing images with normal and anomalous prompts.

    Prompt-guided CLIP: the prompts of each state are encoded and represented by one
    vector per state. An image is as normal as it is closer to the normal one.

    Parameters
    ----------
    clip : OpenCLIP, str, PathLike or None, default=None
        Which CLIP, the same as the encoder's: an :class:`OpenCLIP`,
        ``"model/pretrained"``, ``"hf-hub:organisation/name"``, a folder,
        ``"model/file"``, or ``"tiny"``. None is ``OpenCLIP()``.
    prompts : {"clip-ac", "winclip", "clip-ad"} or PromptSet, default="winclip"
        States and templates: one normal and one anomalous prompt, the ensemble of
        WinCLIP (7 and 4 states, 22 templates), or that of CLIP-AD (9 and 10 states, 22
        templates).
    class_name : str, default="object"
        What the images show; used as it is. ``"object"`` is the unknown-object set-up.
    aggregation : {"mean", "dbscan", "mean_shift", "kde", "pca"}, default="mean"
        How the embeddings of a state's prompts become one vector: their mean, or
        CLIP-AD's representative vector selection.
    aggregation_params : mapping or None, default=None
        ``eps`` and ``min_samples`` of ``"dbscan"``; ``bandwidth`` of ``"kde"``.
    temperature : float, default=0.01
        What cosines are divided by. It changes no ranking, but what fusion makes of the
        margin.
    contamination : "auto" or float, default="auto"
        ``"auto"`` sets `offset_` to 0. A number in (0, 0.5] is the share of the images
        given to `fit` that are called anomalous.

    Attributes
    ----------
    class_names_ : list of str
        The class names whose prompts are known. The first is used where none is given.
    prototypes_ : ndarray of shape (n_class_names, 2, n_features)
        For each class name the vectors of the anomalous and of the normal state.
    offset_ : float
        The threshold on the margin. It may be set after fitting.
    classes_ : ndarray of shape (2,)
        ``[-1, 1]``.
    n_features_in_ : int
        Number of features of an embedding.

    Raises
    ------
    ValueError
        From `fit`, if a parameter is out of range, or if embeddings of images and
        prompts differ in width.

    See Also
    --------
    RandomWordDetector : Learns from random words.
    FusionDetector : Combines both.

    Notes
    -----
    With the unit vectors f of an image and t_n, t_a of the two states, the score is
    (f . t_n - f . t_a) / temperature, the log-odds of CLIP's softmax over two classes.
    The prompt ensemble is WinCLIP's [1]_ and the selection of representative vectors
    CLIP-AD's [2]_, both as their public implementations have them. CLIP-AD chooses
    ``eps`` by the name of the data set; here it is a parameter, 0.5 by default. The
    temperature is 0.01 in CLIP-AD; ports of WinCLIP use 0.01 or 0.07.

    ``class_name`` may also be given to `fit`, `predict`, `decision_function`,
    `predict_proba` and `score_samples`, as one string or as one per image.

    References
    ----------
    .. [1] J. Jeong et al., "WinCLIP: Zero-/Few-Shot Anomaly Classification and
       Segmentation", CVPR, 2023.
    .. [2] X. Chen et al., "CLIP-AD: A Language-Guided Staged Dual-Path Model for
       Zero-shot Anomaly Detection", arXiv:2311.00453, 2023.

    Examples
    --------
    >>> from sklearn.pipeline import make_pipeline
    >>> from clipad_sklearn import CLIPImageEncoder, PromptDetector
    >>> from clipad_sklearn.datasets import make_defect_images
    >>> photos = make_defect_images(6, random_state=0).images
    >>> detector = make_pipeline(CLIPImageEncoder("tiny"), PromptDetector("tiny"))
    >>> detector.fit(None).score_samples(photos).shape
    (6,)
    """

    _learns = False
    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "aggregation": [StrOptions(set(METHODS))],
        "aggregation_params": [Mapping, None],
        "temperature": [Interval(Real, 0, None, closed="neither")],
    }

    def __init__(
        self,
        clip: OpenCLIP | str | os.PathLike[str] | None = None,
        *,
        prompts: str | PromptSet = "winclip",
        class_name: str = "object",
        aggregation: str = "mean",
        aggregation_params: Mapping[str, Any] | None = None,
        temperature: float = 0.01,
        contamination: float | str = "auto",
    ) -> None:
        self.clip = clip
        self.prompts = prompts
        self.class_name = class_name
        self.aggregation = aggregation
        self.aggregation_params = aggregation_params
        self.temperature = temperature
        self.contamination = contamination

    @all_or_nothing
    def fit(
        self, X: Any = None, y: Any = None, class_name: Any = None
    ) -> PromptDetector:
        """Encode the prompts.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or None, default=None
            Embeddings of images. They give the width, and the threshold for a numeric
            `contamination`; otherwise None will do.
        y : None
            Ignored.
        class_name : str, array-like of str of shape (n_samples,) or None, default=None
            What the images show. None is the parameter of that name. One string is
            also the default of later calls.

        Returns
        -------
        PromptDetector
            The fitted detector.
        """
        self._check_fit(X, y)
        X = self._check_embeddings(X, reset=True)
        default = class_name if isinstance(class_name, str) else self.class_name
        names = [check_class_name(default)]
        if class_name is not None and not isinstance(class_name, str):
            names += names_of_images(class_name, None if X is None else len(X))
        self.class_names_ = list(dict.fromkeys(names))
        width = None if X is None else X.shape[1]
        self.prototypes_ = self._encode_class_names(self.class_names_, width)
        self.n_features_in_ = self.prototypes_.shape[2]
        self._set_offset(X, class_name=class_name)
        return self

    def _encode_class_names(self, names: list[str], width: int | None) -> np.ndarray:
        prompt_set = check_prompts(self.prompts)
        prompts: list[str] = []
        ends = []
        for name in names:
            normal, anomalous = prompt_set.format(name)
            check_pairs(check_clip(self.clip), normal, anomalous)
            for state_prompts in (anomalous, normal):
                prompts += state_prompts
                ends.append(len(prompts))
        embeddings = self._encode_prompts(prompts, width)
        params = dict(self.aggregation_params or {})
        vectors = [
            aggregate(group, self.aggregation, **params)
            for group in np.split(embeddings, ends[:-1])
        ]
        return np.stack(vectors).reshape(len(names), 2, -1)

    def _margins(self, X: Any, class_name: Any = None) -> np.ndarray:
        X = normalize(self._check_embeddings(X, reset=False).astype(np.float64))
        if class_name is None:
            names = self.class_names_[:1]
        elif isinstance(class_name, str):
            names = [class_name]
        else:
            names = names_of_images(class_name, len(X))
        prototypes = self._prototypes_of(names)
        directions = (prototypes[:, 1] - prototypes[:, 0]).astype(np.float64)
        # One name for all images broadcasts.
        return (X * directions).sum(axis=1) / self.temperature

    def _prototypes_of(self, names: list[str]) -> np.ndarray:
        known, prototypes = self.class_names_, self.prototypes_
        new = list(dict.fromkeys(name for name in names if name not in set(known)))
        if new:
            # Not kept: scoring does not change a fitted detector.
            more = self._encode_class_names(new, self.n_features_in_)
            known, prototypes = known + new, np.concatenate([prototypes, more])
        position = {name: i for i, name in enumerate(known)}
        return prototypes[[position[name] for name in names]]


def prototypes_of(detector: PromptDetector, names: list[str]) -> np.ndarray:
    """Return the vectors of both states for each name, as (n_names, 2, n_features).

    Prompts of names that the fitted detector does not know are encoded, and not kept.
    """
    return detector._prototypes_of(names)
