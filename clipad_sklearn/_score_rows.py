"""Rows of scores, as `score_images` and ``clipad score`` write them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import expit
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import Pipeline

from ._clip.encoding import encode_images
from ._clip.image_encoder import CLIPImageEncoder
from ._clip.settings import check_clip
from ._detectors.base import BaseDetector

SCORE_COLUMNS = ("path", "p_anomaly", "margin", "threshold", "verdict", "error")


def check_detector(detector: Any) -> None:
    """Check that it is a fitted Pipeline from images to scores."""
    if (
        not isinstance(detector, Pipeline)
        or len(detector) < 2
        or not isinstance(detector[0], CLIPImageEncoder)
        or not isinstance(detector[-1], BaseDetector)
    ):
        raise TypeError(
            "expected a Pipeline that begins with a CLIPImageEncoder and ends in a "
            f"detector of clipad_sklearn, found {type(detector).__name__}"
        )
    if not hasattr(detector[-1], "offset_"):
        raise NotFittedError("the detector is not fitted: call fit, fit(None) will do")


def score_readable(
    detector: Pipeline, images: Sequence[Any]
) -> tuple[np.ndarray, np.ndarray, list[tuple[int, str, str]]]:
    """Score the images that can be read.

    Returns the margins, NaN where an image could not be read; what the last step saw
    of the others; and position, name and reason of the failures.
    """
    clip = check_clip(detector[0].clip)
    embeddings, failures = encode_images(clip, images, "nan")
    readable = np.isfinite(embeddings).all(axis=1)
    margins = np.full(len(embeddings), np.nan)
    features = embeddings[readable]
    if len(features):
        if len(detector) > 2:
            features = detector[1:-1].transform(features)
        margins[readable] = detector[-1].score_samples(features)
    return margins, features, failures


def score_row(path: str, margin: float, threshold: float) -> dict[str, Any]:
    """Return the row of an image that was read."""
    verdict = "normal" if margin >= threshold else "anomalous"
    values = (path, float(expit(-margin)), margin, threshold, verdict, "")
    return dict(zip(SCORE_COLUMNS, values, strict=True))


def error_row(path: str, reason: str) -> dict[str, Any]:
    """Return the row of an image that could not be read."""
    return dict.fromkeys(SCORE_COLUMNS) | {"path": path, "error": reason}
