"""`RandomWordDetector`: learns normal and anomalous from random words."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from sklearn.base import clone
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import StrOptions

from .._clip.encoding import check_pairs
from .._clip.settings import OpenCLIP, check_clip
from .._prompts import (
    DEFAULT_ANOMALOUS_STATES,
    DEFAULT_NORMAL_STATES,
    DEFAULT_TEMPLATES,
    random_word_prompts,
)
from .._validation import all_or_nothing
from .base import BaseDetector, EmbeddingMixin
from .feed_forward import FeedForwardClassifier

# Keeps the margin of a classifier that only gives probabilities finite.
_SMALLEST_PROBABILITY = 1e-12


class RandomWordDetector(EmbeddingMixin, BaseDetector):
    """Detect anomalies with a classifier trained on words only.

    CLIP puts texts and images into one space. So pairs of prompts that say normal and
    anomalous about random words are encoded by its text tower, a classifier learns to
    separate the two, and then scores the embeddings of images. It needs no image to
    learn from, it does not need to know what the object is, and one detector serves
    every category.

    Parameters
    ----------
    clip : OpenCLIP, str, PathLike or None, default=None
        Which CLIP, the same as the encoder's: an :class:`OpenCLIP`,
        ``"model/pretrained"``, ``"hf-hub:organisation/name"``, a folder,
        ``"model/file"``, or ``"tiny"``. None is ``OpenCLIP()``.
    n_pairs : int, default=10_000
        Number of pairs of prompts.
    n_words : int or (int, int), default=(1, 5)
        Number of random words in a pair, or its smallest and largest value.
    word_source : {"letters", "vocabulary"} or sequence of str, default="letters"
        Random letters, whole words of CLIP's vocabulary, or these words.
    word_length : int or (int, int), default=(3, 10)
        Number of letters of a word, or its smallest and largest value.
    templates : sequence of str
        Sentences with one ``{}``, the place of the state and the words.
    normal_states, anomalous_states : sequence of str
        States with one ``{}``, the place of the words.
    class_name : str or None, default=None
        Name of the object, put after the random words (the known-object set-up; our
        extension). None leaves the object unknown.
    classifier : classifier or None, default=None
        Any scikit-learn classifier that has `decision_function` or `predict_proba`. It
        is fitted on labels -1 and +1. None is ``FeedForwardClassifier()``.
    center : {"text", "modality"} or None, default=None
        Embeddings of texts and of images lie apart. ``"text"`` subtracts the mean of
        the prompts from both; ``"modality"`` subtracts from the prompts their mean and
        from images the mean of the images given to `fit`, which needs images that
        are mostly normal. None leaves embeddings as they are.
    contamination : "auto" or float, default="auto"
        ``"auto"`` sets `offset_` to 0. A number in (0, 0.5] is the share of the images
        given to `fit` that are called anomalous.
    random_state : int, RandomState instance or None, default=None
        Seed of the prompts and of the classifier.

    Attributes
    ----------
    classifier_ : classifier
        The fitted classifier.
    text_mean_, image_mean_ : ndarray of shape (n_features,)
        What was subtracted from the embeddings of prompts and of images.
    offset_ : float
        The threshold on the margin. It may be set after fitting.
    classes_ : ndarray of shape (2,)
        ``[-1, 1]``.
    n_features_in_ : int
        Number of features of an embedding.

    Raises
    ------
    ValueError
        From `fit`, if a parameter is out of range, if embeddings of images and prompts
        differ in width, or if the classifier gives neither decisions nor
        probabilities.

    See Also
    --------
    random_word_prompts : The prompts.
    PromptDetector : Compares images with prompts directly.
    FusionDetector : Combines both.
    calibrate_threshold : Sets the threshold from images.

    Notes
    -----
    The score is the classifier's margin log p(normal) - log p(anomalous) of the
    embedding of an image.

    The idea is that of Tamura [1]_: CLIP as the source of the training data, prompts
    with words for normal and anomalous and several random words. The text of the paper
    was not available to us beyond its abstract. The pairs, their number near 10,000 and
    the four layers of the network are reported of it. Templates, states, the kind and
    number of words, that both prompts of a pair share them, centering, `class_name`,
    and the network's widths and training are our choices. All but the shared words are
    parameters.

    Scores rank without any image, but the threshold 0 is uncalibrated.

    References
    ----------
    .. [1] M. Tamura, "Random Word Data Augmentation with CLIP for Zero-Shot Anomaly
       Detection", British Machine Vision Conference, 2023.

    Examples
    --------
    >>> from sklearn.pipeline import make_pipeline
    >>> from clipad_sklearn import CLIPImageEncoder, RandomWordDetector
    >>> from clipad_sklearn.datasets import make_defect_images
    >>> photos = make_defect_images(6, random_state=0).images
    >>> detector = make_pipeline(
    ...     CLIPImageEncoder("tiny"),
    ...     RandomWordDetector("tiny", n_pairs=200, random_state=0),
    ... )
    >>> detector.fit(None).score_samples(photos).shape
    (6,)
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "center": [None, StrOptions({"text", "modality"})],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        clip: OpenCLIP | str | os.PathLike[str] | None = None,
        *,
        n_pairs: int = 10_000,
        n_words: int | tuple[int, int] = (1, 5),
        word_source: str | Sequence[str] = "letters",
        word_length: int | tuple[int, int] = (3, 10),
        templates: Sequence[str] = DEFAULT_TEMPLATES,
        normal_states: Sequence[str] = DEFAULT_NORMAL_STATES,
        anomalous_states: Sequence[str] = DEFAULT_ANOMALOUS_STATES,
        class_name: str | None = None,
        classifier: Any = None,
        center: str | None = None,
        contamination: float | str = "auto",
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.clip = clip
        self.n_pairs = n_pairs
        self.n_words = n_words
        self.word_source = word_source
        self.word_length = word_length
        self.templates = templates
        self.normal_states = normal_states
        self.anomalous_states = anomalous_states
        self.class_name = class_name
        self.classifier = classifier
        self.center = center
        self.contamination = contamination
        self.random_state = random_state

    @all_or_nothing
    def fit(self, X: Any = None, y: Any = None) -> RandomWordDetector:
        """Learn from random words.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or None, default=None
            Embeddings of images. They give the width, the mean for
            ``center="modality"`` and the threshold for a numeric `contamination`;
            otherwise None will do.
        y : None
            Ignored.

        Returns
        -------
        RandomWordDetector
            The fitted detector.
        """
        self._check_fit(X, y)
        if self.center == "modality" and X is None:
            raise ValueError(
                "center='modality' needs images for their mean, but X is None."
            )
        classifier = self._new_classifier()
        X = self._check_embeddings(X, reset=True)
        random_state = check_random_state(self.random_state)
        normal, anomalous = random_word_prompts(
            self.n_pairs,
            n_words=self.n_words,
            word_source=self.word_source,
            word_length=self.word_length,
            templates=self.templates,
            normal_states=self.normal_states,
            anomalous_states=self.anomalous_states,
            class_name=self.class_name,
            random_state=random_state,
        )
        check_pairs(check_clip(self.clip), normal, anomalous)
        texts = self._encode_prompts(
            normal + anomalous, None if X is None else X.shape[1]
        )
        self.n_features_in_ = texts.shape[1]
        zeros = np.zeros(texts.shape[1], dtype=texts.dtype)
        self.text_mean_ = zeros if self.center is None else texts.mean(axis=0)
        self.image_mean_ = self.text_mean_
        if self.center == "modality":
            self.image_mean_ = X.mean(axis=0)

        _seed(classifier, random_state)
        labels = np.repeat([1, -1], [len(normal), len(anomalous)])
        self.classifier_ = classifier.fit(texts - self.text_mean_, labels)
        self._set_offset(X)
        return self

    def _new_classifier(self) -> Any:
        if self.classifier is None:
            return FeedForwardClassifier()
        classifier = clone(self.classifier)
        if not any(
            hasattr(classifier, method)
            for method in ("decision_function", "predict_proba")
        ):
            raise ValueError(
                f"classifier={classifier!r} has neither decision_function nor "
                "predict_proba, so it cannot be scored. Choose one that has either "
                "(SVC always does; for a hard-voting ensemble use soft voting)."
            )
        return classifier

    def _margins(self, X: Any) -> np.ndarray:
        X = self._check_embeddings(X, reset=False) - self.image_mean_
        if hasattr(self.classifier_, "decision_function"):
            return self.classifier_.decision_function(X)
        probabilities = self.classifier_.predict_proba(X)
        anomalous, normal = np.log(
            np.clip(probabilities, _SMALLEST_PROBABILITY, 1 - _SMALLEST_PROBABILITY)
        ).T
        return normal - anomalous


def _seed(estimator: Any, random_state: np.random.RandomState) -> None:
    """Seed every `random_state` of an estimator that was left at None."""
    seeds = {
        name: int(random_state.randint(np.iinfo(np.int32).max))
        for name, value in sorted(estimator.get_params(deep=True).items())
        if name.split("__")[-1] == "random_state" and value is None
    }
    estimator.set_params(**seeds)
