"""Rows of scores, as `score_images` and ``clipad score`` write them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from scipy.special import expit
from sklearn.base import BaseEstimator
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted

from . import metrics
from ._clip.encoding import encode_images
from ._clip.image_encoder import CLIPImageEncoder
from ._clip.kept_model import check_same_clip
from ._clip.models import why_not_a_number
from ._clip.read_once import given, groups
from ._clip.settings import OpenCLIP, check_clip
from ._detectors.base import BaseDetector
from ._detectors.class_names import last_step, takes_images
from ._detectors.fusion import images_for
from ._errors import ImageReadError, NotNumbersError
from ._images import image_name

SCORE_COLUMNS = (
    "path",
    "p_anomaly",
    "p_value",
    "margin",
    "threshold",
    "verdict",
    "error",
)

# Images that a detector on images scores at a time: these are scored again when one
# of them cannot be read.
_CHUNK = 256

Failures = list[tuple[int, str, str]]


def check_detector(detector: Any) -> None:
    """Check that it is fitted and makes scores of images.

    That is: a Pipeline that begins with a `CLIPImageEncoder`, or a detector on images.
    The detector, or the last step, has `score_samples` and `offset_`.
    """
    if isinstance(detector, Pipeline):
        if len(detector) < 2 or not isinstance(detector[0], CLIPImageEncoder):
            raise TypeError(
                "expected a Pipeline that begins with a CLIPImageEncoder and ends in "
                f"a detector, found the steps {_kinds(detector)}"
            )
        found = f"a Pipeline whose last step is {type(detector[-1]).__name__}"
    else:
        found = type(detector).__name__
        if hasattr(detector, "best_estimator_"):
            raise TypeError(f"{found} is a search: pass its best_estimator_")
    last = last_step(detector)
    if not hasattr(last, "score_samples"):
        raise TypeError(
            "expected a detector with score_samples and offset_, or a Pipeline from a "
            f"CLIPImageEncoder to one, found {found}, which has no score_samples"
        )
    if not isinstance(detector, Pipeline) and not takes_images(detector):
        raise TypeError(
            f"{found} takes embeddings: put it behind an encoder, "
            "make_pipeline(CLIPImageEncoder(clip), detector)"
        )
    if not hasattr(last, "offset_"):
        if isinstance(last, BaseEstimator) and not isinstance(last, BaseDetector):
            check_is_fitted(last)
            raise TypeError(
                f"found {found}, which has no threshold offset_: choose an outlier "
                "detector that has score_samples and offset_"
            )
        raise NotFittedError("the detector is not fitted: call fit first")
    try:
        is_number = not np.isnan(threshold_of(detector))
    except (TypeError, ValueError):
        is_number = False
    if not is_number:
        raise ValueError(f"offset_={last.offset_!r}: expected a number, the threshold")


def threshold_of(detector: Any) -> float:
    """Return the threshold on the scores of a fitted detector or Pipeline."""
    # OneClassSVM keeps it as an array of one number.
    return float(np.squeeze(last_step(detector).offset_))


def p_values_of(detector: Any, scores: np.ndarray) -> list[float | None]:
    """Return p-values of scores, None where the detector is not calibrated."""
    known = getattr(last_step(detector), "calibration_scores_", None)
    if known is None:
        return [None] * len(scores)
    found = metrics.p_values(scores, known).tolist()
    return [None if np.isnan(value) else value for value in found]


def has_margins(detector: Any) -> bool:
    """Whether scores are margins, of which the sigmoid is a probability."""
    return isinstance(last_step(detector), BaseDetector)


def clips_of(detector: Any) -> list[OpenCLIP]:
    """Return the CLIPs that encode images for a detector or Pipeline."""
    if isinstance(detector, Pipeline):
        return [check_clip(detector[0].clip)]
    if hasattr(detector, "clip"):
        return [check_clip(detector.clip)]
    parameters: dict[str, Any] = getattr(detector, "get_params", dict)()
    return [
        check_clip(value)
        for name, value in parameters.items()
        if name.endswith("__clip")
    ]


def score_readable(
    detector: Any, images: Sequence[Any]
) -> tuple[np.ndarray, Any, Failures]:
    """Score the images that can be read.

    Returns the scores, NaN where there is none; what the last step saw of the others:
    features, or the images; and position, name and reason of the failures. A score that
    is not a number is a failure too.
    """
    if isinstance(detector, Pipeline):
        return _score_embedded(detector, images)
    scores, failures = _score_images(detector, images)
    failed = {index for index, _, _ in failures}
    seen = [image for i, image in enumerate(images) if i not in failed]
    return scores, seen, failures


def _score_embedded(
    detector: Pipeline, images: Sequence[Any]
) -> tuple[np.ndarray, np.ndarray, Failures]:
    clip = check_clip(detector[0].clip)
    embeddings, failures = encode_images(clip, images, "nan")
    check_same_clip(detector[0], clip)
    failures = _with_not_a_number(detector, embeddings, images, failures)
    readable = np.isfinite(embeddings).all(axis=1)
    scores = np.full(len(embeddings), np.nan)
    features = embeddings[readable]
    if len(features):
        if len(detector) > 2:
            features = detector[1:-1].transform(features)
        scores[readable] = detector[-1].score_samples(features)
    return scores, features, _with_not_a_number(detector, scores, images, failures)


def _score_images(detector: Any, images: Sequence[Any]) -> tuple[np.ndarray, Failures]:
    """Score images chunk by chunk, without those that cannot be read."""
    scores = np.full(len(images), np.nan)
    failures: Failures = []
    for start in range(0, len(images), _CHUNK):
        parts = [list(range(start, min(start + _CHUNK, len(images))))]
        while parts:
            left = parts.pop()
            try:
                if left:
                    scores[left] = detector.score_samples([images[i] for i in left])
            except NotNumbersError:
                # One of them; alone it keeps its score of NaN.
                half = len(left) // 2
                parts += [left[:half], left[half:]] * (half > 0)
            except ImageReadError as error:
                if not error.failures:
                    raise
                failed = [(left[i], name, why) for i, name, why in error.failures]
                failures += failed
                gone = {index for index, _, _ in failed}
                parts.append([index for index in left if index not in gone])
    return scores, _with_not_a_number(detector, scores, images, sorted(failures))


def readable_maps(
    detector: Any, images: Sequence[Any], size: Any = "image"
) -> Iterator[tuple[int, np.ndarray | None, str]]:
    """Yield position and map of each image, or None and the reason why there is none.

    In order, except that images without a map come as they are noticed.
    """
    left = list(range(len(images)))
    n_alone = 0  # images to be tried one by one
    while left:
        n_done = 0
        try:
            some = [images[i] for i in (left[:1] if n_alone else left)]
            for anomaly_map in detector.iter_anomaly_maps(some, size=size):
                yield left[n_done], anomaly_map, ""
                n_done += 1
            failed: dict[int, str] = {}
        except NotNumbersError:
            failed = {left[0]: "its map is not made of numbers"} if n_alone else {}
            # It was one of a batch.
            n_alone = n_alone or 1 + max(
                (c.batch_size for c in clips_of(detector)), default=1
            )
        except ImageReadError as error:
            if not error.failures:
                raise
            failed = {left[i]: reason for i, _, reason in error.failures}
        except MemoryError:
            failed = {left[n_done]: "its map needs more memory than there is"}
        for index, reason in failed.items():
            yield index, None, reason
        left = [index for index in left[n_done:] if index not in failed]
        n_alone = max(0, n_alone - 1)


def scores_and_maps(
    detector: Any,
    mapper: Any,
    images: Sequence[Any],
    size: Any = "image",
    scorer: Any = None,
) -> Iterator[tuple[int, float, np.ndarray | None, str]]:
    """Yield position, score and map of each image, or why one of these is missing.

    As `score_readable` and `readable_maps` find them, but each image is read once, and
    what the detector found for the score makes the map. A `scorer` stands for the
    detector, if there is one. In order, except that images without a map come as they
    are noticed.
    """
    batch_size = max((clip.batch_size for clip in clips_of(detector)), default=1)
    for start, some in groups(images, batch_size):
        given_images = images_for(detector, some)
        scores, _, failures = score_readable(scorer or detector, given_images)
        for index, _, reason in failures:
            yield start + index, np.nan, None, reason
        failed = {index for index, _, _ in failures}
        left = [index for index in range(len(some)) if index not in failed]
        readable = images_for(mapper, [some[index] for index in left])
        for position, anomaly_map, reason in readable_maps(mapper, readable, size):
            index = left[position]
            yield start + index, float(scores[index]), anomaly_map, reason


def _with_not_a_number(
    detector: Any, values: np.ndarray, images: Sequence[Any], failures: Failures
) -> Failures:
    """Add a failure for every row that is not a number and has none yet."""
    finite = np.isfinite(values)
    bad = np.flatnonzero(~(finite if values.ndim == 1 else finite.all(axis=1)))
    known = {index for index, _, _ in failures}
    if known.issuperset(bad.tolist()):
        return failures
    clips = clips_of(detector)
    why = f": {why_not_a_number(*clips)}" if clips else ""
    reason = f"its score is not a number{why}"
    added = [
        (i, image_name(given(images[i])), reason)
        for i in bad.tolist()
        if i not in known
    ]
    return sorted([*failures, *added])


def score_row(
    path: str,
    margin: float,
    threshold: float,
    *,
    is_margin: bool = True,
    p_value: float | None = None,
) -> dict[str, Any]:
    """Return the row of an image that was read.

    There is no probability where the score is no margin, that of a detector that is
    not ours, and no p-value where no good images have set the threshold.
    """
    verdict = "normal" if margin >= threshold else "anomalous"
    probability = float(expit(-margin)) if is_margin else None
    values = (path, probability, p_value, margin, threshold, verdict, "")
    return dict(zip(SCORE_COLUMNS, values, strict=True))


def error_row(path: str, reason: str) -> dict[str, Any]:
    """Return the row of an image that could not be read."""
    return dict.fromkeys(SCORE_COLUMNS) | {"path": path, "error": reason}


def _kinds(pipeline: Pipeline) -> str:
    return ", ".join(type(step).__name__ for _, step in pipeline.steps)
