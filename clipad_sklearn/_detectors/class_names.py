"""Class names on their way to the detectors that take them."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
from sklearn import get_config
from sklearn.base import BaseEstimator
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline
from sklearn.utils import get_tags

from .._errors import shown


def names_of_images(class_name: Any, n_images: int | None) -> list[str]:
    """Check class names that are given per image."""
    names = list(class_name)
    for name in names:
        if not isinstance(name, str):
            raise TypeError(
                "class_name: expected a string or one string per image, found "
                f"{shown(name)}."
            )
    if n_images is None:
        raise ValueError("class_name was given per image, but X is None.")
    if len(names) != n_images:
        raise ValueError(
            f"class_name was given for {len(names)} images, but X has {n_images}."
        )
    return [str(name) for name in names]


def fit_named(detector: Any, X: Any, class_name: Any, y: Any = None) -> Any:
    """Fit a detector, or what ends in one, with names if it takes them."""
    # A FrozenEstimator, which is fitted already, asks for y.
    with_y = y is not None or isinstance(detector, FrozenEstimator)
    labels = (y,) if with_y else ()
    return detector.fit(X, *labels, **_fit_keywords(detector, class_name))


def score_named(detector: Any, X: Any, class_name: Any) -> np.ndarray:
    """Score with a detector, or with what ends in one, with names if it takes them."""
    if class_name is None:
        return detector.score_samples(X)
    if isinstance(detector, Pipeline):
        # Pipeline.score_samples passes on no other argument than X.
        X = detector[:-1].transform(X) if len(detector) > 1 else X
        return score_named(detector[-1], X, class_name)
    inner = _inner(detector)
    if inner is not None:
        return score_named(inner, X, class_name)
    return detector.score_samples(X, **keyword_for(detector.score_samples, class_name))


def check_needs_no_labels(role: str, detector: Any) -> None:
    """Refuse a detector that would have to learn from labels inside another one."""
    last = detector
    while isinstance(last, Pipeline):
        last = last.steps[-1][1]
    if isinstance(last, FrozenEstimator) or not isinstance(last, BaseEstimator):
        return
    if get_tags(last).target_tags.required:
        raise ValueError(
            f"{role} {last!r} learns from labelled images: fit it on other products "
            "and freeze it, sklearn.frozen.FrozenEstimator(detector.fit(X, y, "
            "groups))."
        )


def last_step(detector: Any) -> Any:
    """Return the detector inside Pipelines, searches and FrozenEstimators."""
    while True:
        inner = _inner(detector)
        if isinstance(detector, Pipeline):
            inner = detector.steps[-1][1]
        if inner is None:
            return detector
        detector = inner


def first_step(detector: Any) -> Any:
    """Return what takes the input of a detector, or of what ends in one."""
    while True:
        if isinstance(detector, Pipeline):
            detector = detector.steps[0][1]
        elif isinstance(detector, FrozenEstimator) or _is_search(detector):
            detector = detector.estimator
        else:
            return detector


def takes_images(detector: Any) -> bool:
    """Return whether a detector, or what ends in one, takes images, not numbers."""
    first = first_step(detector)
    # Not known to the tags of a Pipeline, nor where its first step is "passthrough".
    known = detector if first is None or isinstance(first, str) else first
    # What scikit-learn knows nothing of is taken at its word.
    has_tags = hasattr(known, "__sklearn_tags__")
    return not has_tags or not get_tags(known).input_tags.two_d_array


def _is_search(detector: Any) -> bool:
    return hasattr(detector, "cv") and hasattr(detector, "estimator")


def _inner(detector: Any) -> Any:
    """Return what a fitted search or a FrozenEstimator wraps, None for others."""
    if isinstance(detector, FrozenEstimator):
        return detector.estimator
    return getattr(detector, "best_estimator_", None)


def _fit_keywords(detector: Any, class_name: Any) -> dict[str, Any]:
    """Return what hands the names to the `fit` of a detector, if it takes them."""
    if class_name is None or isinstance(detector, FrozenEstimator):
        return {}
    if isinstance(detector, Pipeline):
        step, last = detector.steps[-1]
        names = _fit_keywords(last, class_name)
        if get_config()["enable_metadata_routing"]:
            return names
        return {f"{step}__{name}": value for name, value in names.items()}
    if _is_search(detector):
        return _fit_keywords(detector.estimator, class_name)
    return keyword_for(detector.fit, class_name)


def keyword_for(method: Any, class_name: Any) -> dict[str, Any]:
    """Return `class_name` as a keyword for a method that takes it."""
    takes = (
        class_name is not None and "class_name" in inspect.signature(method).parameters
    )
    return {"class_name": class_name} if takes else {}
