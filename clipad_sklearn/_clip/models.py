"""The loaded models of this process: one for each CLIP, shared by all threads."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .._fork import at_fork, one_thread_in_children

if TYPE_CHECKING:
    from .loaded_model import LoadedModel
    from .settings import OpenCLIP

TINY = str(Path(__file__).parents[1] / "tiny")

# From this cosine to its embeddings in float32 on, a model may use a lower precision.
LEAST_COSINE = 0.9999

_models: dict[tuple[Any, ...], LoadedModel] = {}
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
    key = _key(clip)
    with _models_lock:
        if key not in _models:
            model_name, pretrained = _source(clip)
            _models[key] = LoadedModel(
                model_name,
                pretrained,
                device=_device(clip),
                precision=clip.precision,
                cache_dir=clip.cache_dir,
            )
        return _models[key]


def n_features(clip: OpenCLIP) -> int | None:
    """Return the width of an embedding, or None while the model is not loaded."""
    # An empty table spares the import of torch.
    model = _models.get(_key(clip)) if _models else None
    return None if model is None else model.embedding_width


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
        if not isinstance(value, (int, np.integer)) or value < 1:
            raise ValueError(f"{name}={value!r}: expected an integer >= 1.")


def _key(clip: OpenCLIP) -> tuple[Any, ...]:
    """Key of a loaded model; settings that make no difference make no other key."""
    source = _source(clip)
    stamps = tuple(_stamp(path) for path in source)
    device, precision = str(_device(clip)), clip.precision
    if precision == "auto" and device == "cpu":
        precision = "fp32"
    return *source, *stamps, device, precision, clip.cache_dir


def _device(clip: OpenCLIP) -> str:
    """Return the torch device that ``device`` stands for."""
    if clip.device != "auto":
        return clip.device
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _source(clip: OpenCLIP) -> tuple[str, str | None]:
    """Return where the model comes from; a folder wins over any name but tiny."""
    name = os.fspath(clip.model_name)
    if name == "tiny":
        return TINY, None
    if os.path.isdir(name) or name.startswith("hf-hub:"):
        return name, "random" if clip.pretrained == "random" else None
    pretrained = clip.pretrained
    return name, None if pretrained is None else os.fspath(pretrained)


def _stamp(path: str | None) -> tuple[Any, ...] | None:
    """Return what changes when the file or folder at `path` is written again."""
    if path is None or not os.path.exists(path):
        return None
    if os.path.isdir(path):
        return tuple(
            (entry.name, entry.stat().st_mtime_ns, entry.stat().st_size)
            for entry in sorted(os.scandir(path), key=lambda entry: entry.name)
        )
    status = os.stat(path)
    return status.st_mtime_ns, status.st_size
