"""The loaded models of this process: one for each CLIP, shared by all threads."""

from __future__ import annotations

import threading
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np

from .._fork import at_fork, one_thread_in_children
from .source import source_of

if TYPE_CHECKING:
    from .loaded_model import LoadedModel
    from .settings import OpenCLIP

# From this cosine to its embeddings in float32 on, a model may use a lower precision.
LEAST_COSINE = 0.9999

# By settings and input size, None for the native one.
_models: dict[tuple[Any, Any], LoadedModel] = {}
_native_sizes: dict[tuple[Any, ...], tuple[int, int]] = {}
_models_lock = threading.Lock()


def _new_lock() -> None:
    # Another thread of the parent may have held it.
    global _models_lock
    _models_lock = threading.Lock()


at_fork(in_child=_new_lock)
one_thread_in_children()


def load(clip: OpenCLIP) -> LoadedModel:
    """Return the model of these settings, loading it if no one has yet."""
    from .loaded_model import LoadedModel

    check_settings(clip)
    size = image_size(clip)
    with _models_lock:
        key = _key(clip)
        if size == _native_sizes.get(key, ()):
            size = None
        if (key, size) not in _models:
            model = LoadedModel(
                source_of(clip), device=torch_device(clip), precision=clip.precision
            )
            _native_sizes[key] = model.input_size
            if size == model.input_size:
                size = None
            elif size is not None:
                model.resize_input(size)
            _models[key, size] = model
        return _models[key, size]


def n_features(clip: OpenCLIP) -> int | None:
    """Return the width of an embedding, or None while the model is not loaded."""
    # An empty table spares the import of torch.
    model = _loaded(clip) if _models else None
    return None if model is None else model.embedding_width


def fingerprint_if_loaded(clip: OpenCLIP) -> str | None:
    """Return a hash of weights and preprocessing, None while no one has loaded it."""
    model = _loaded(clip) if _models else None
    return None if model is None else model.fingerprint(clip.resize)


def _loaded(clip: OpenCLIP) -> LoadedModel | None:
    key, size = _key(clip), image_size(clip)
    return _models.get((key, None if size == _native_sizes.get(key) else size))


def clear_models() -> None:
    """Free the weights that this process holds.

    The next call that needs a model loads it again. Cached embeddings stay.

    Examples
    --------
    >>> from clipad_sklearn import clear_models
    >>> clear_models()
    """
    with _models_lock:
        _models.clear()


def check_settings(clip: OpenCLIP) -> None:
    """Raise ValueError where a setting is out of range."""
    choices = {
        "precision": ("auto", "fp32", "bf16", "fp16"),
        "resize": ("squash", "crop"),
    }
    for name, allowed in choices.items():
        if getattr(clip, name) not in allowed:
            raise ValueError(
                f"{name}={getattr(clip, name)!r}: expected one of {allowed}."
            )
    for name in ("batch_size", "num_workers"):
        value = getattr(clip, name)
        if value is None and name == "num_workers":
            continue
        is_integer = isinstance(value, (int, np.integer)) and value is not True
        if not is_integer or value < 1:
            raise ValueError(f"{name}={value!r}: expected an integer >= 1.")
    image_size(clip)


def image_size(clip: OpenCLIP) -> tuple[int, int] | None:
    """Return height and width that were asked for, None for the model's own."""
    size = clip.image_size
    if size is None:
        return None
    pair = tuple(size) if isinstance(size, (tuple, list)) else (size, size)
    integers = all(isinstance(v, Integral) and not isinstance(v, bool) for v in pair)
    if len(pair) != 2 or not integers or min(pair) < 1:
        raise ValueError(
            f"image_size={size!r}: expected pixels of one side or (height, width)."
        )
    return int(pair[0]), int(pair[1])


def _key(clip: OpenCLIP) -> tuple[Any, ...]:
    """Key of a loaded model; settings that make no difference make no other key."""
    source = source_of(clip)
    return source, source.stamps(), str(torch_device(clip)), _precision(clip)


def _precision(clip: OpenCLIP) -> str:
    on_cpu = clip.precision == "auto" and str(torch_device(clip)) == "cpu"
    return "fp32" if on_cpu else clip.precision


def why_not_a_number(*clips: OpenCLIP) -> str:
    """Say what may make embeddings of models something else than numbers."""
    if any(_precision(clip) != "fp32" for clip in clips):
        return (
            "the model overflows at this precision, use precision='fp32' "
            "(--precision fp32)"
        )
    return (
        "the model's weights, or mean and std of its preprocess_cfg, are of no use "
        "(precision is 'fp32' already)"
    )


def torch_device(clip: OpenCLIP) -> str:
    """Return the torch device that ``device`` stands for."""
    if clip.device != "auto":
        return clip.device
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
