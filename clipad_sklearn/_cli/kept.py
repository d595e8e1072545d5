"""Learned words, kept between runs beside the embeddings."""

from __future__ import annotations

import hashlib
import io
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from .._clip.embedding_cache import FolderCache, open_cache
from .._clip.kept_model import (
    TextNames,
    keep_names,
    known_names,
    packed,
    text_names,
    unpacked,
)
from .._clip.models import load
from .._detectors.feed_forward import FeedForwardClassifier
from .._version import __version__
from .output import stage

if TYPE_CHECKING:
    from .._clip.settings import OpenCLIP
    from .._detectors.random_word import RandomWordDetector


def is_kept(clip: OpenCLIP) -> bool:
    """Whether there is a folder to keep what is learned."""
    return isinstance(open_cache(clip.embedding_cache), FolderCache)


def learned_words(detector: RandomWordDetector, clip: OpenCLIP) -> RandomWordDetector:
    """Return the detector, fitted without images, or as an earlier run left it."""
    cache = open_cache(clip.embedding_cache)
    n_prompts = 2 * int(detector.n_pairs)
    if not isinstance(cache, FolderCache):
        stage(f"learning from {n_prompts:,} prompts (not kept)")
        return detector.fit(None)
    names = known_names(TextNames, clip, cache) or keep_names(
        text_names(load(clip), clip.resize), clip, cache
    )
    params = {
        name: value for name, value in detector.get_params().items() if name != "clip"
    }
    text = f"{__version__} {names.salt} {sorted(params.items())!r}"
    key = "words " + hashlib.sha256(text.encode()).hexdigest()
    found = cache.get_many([key]).get(key)
    if found is not None:
        _restore(detector, unpacked(found))
        detector.clip_fingerprint_ = names.fingerprint
        return detector
    stage(
        f"learning from {n_prompts:,} prompts; this is kept, so that the next run need "
        "not do it"
    )
    start = time.perf_counter()
    detector.fit(None)
    stage(f"learned in {time.perf_counter() - start:.0f} s")
    cache.put_many({key: packed(_state(detector))})
    return detector


# Arrays only: loading them runs no code, whoever wrote the file.


def _state(detector: RandomWordDetector) -> bytes:
    network = detector.classifier_
    arrays: dict[str, Any] = {
        "random_state": network.random_state,
        "scale": network.scale_,
        "classes": network.classes_,
        "n_steps": network.n_steps_,
        "loss_curve": network.loss_curve_,
        "text_mean": detector.text_mean_,
    }
    for number, weights in enumerate(network.coefs_):
        arrays[f"weights{number}"] = weights
        arrays[f"biases{number}"] = network.intercepts_[number]
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def _restore(detector: RandomWordDetector, content: bytes) -> None:
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        network = FeedForwardClassifier(random_state=int(arrays["random_state"]))
        n_layers = sum(name.startswith("weights") for name in arrays.files)
        network.coefs_ = [arrays[f"weights{i}"] for i in range(n_layers)]
        network.intercepts_ = [arrays[f"biases{i}"] for i in range(n_layers)]
        network.scale_ = float(arrays["scale"])
        network.classes_ = arrays["classes"]
        network.n_steps_ = int(arrays["n_steps"])
        network.loss_curve_ = arrays["loss_curve"].tolist()
        detector.text_mean_ = arrays["text_mean"]
    network.n_features_in_ = len(detector.text_mean_)
    detector.image_mean_ = detector.text_mean_
    detector.n_features_in_ = network.n_features_in_
    detector.classifier_ = network
    detector.classes_ = np.array([-1, 1])
    detector.offset_ = 0.0
