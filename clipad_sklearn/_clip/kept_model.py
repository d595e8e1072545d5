"""What a cache in a folder knows of a model, so that it need not be loaded.

Where every embedding that is asked for is kept, torch and the weights would be loaded
only to learn by which names. Those names are kept too, for weights that lie on this
machine and have not been replaced.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from .._version import __version__
from .embedding_cache import EmbeddingCache, FolderCache, open_cache
from .models import fingerprint_if_loaded, n_features, torch_device
from .source import source_of

if TYPE_CHECKING:
    from .loaded_model import LoadedModel
    from .settings import OpenCLIP

# Another where names or fingerprints are made otherwise.
_LAYOUT = 2
_GPU_FILES = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/kfd", "/dev/dxg")


@dataclass(frozen=True)
class ImageNames:
    """What has to be known of a model to find its embeddings of images."""

    salt: str
    fingerprint: str
    embedding_width: int


@dataclass(frozen=True)
class TextNames:
    """What has to be known of a model to find its embeddings of texts."""

    salt: str
    fingerprint: str
    context_length: int


Names = TypeVar("Names", ImageNames, TextNames)


def image_names(model: LoadedModel, resize: str) -> ImageNames:
    """Return what keeps embeddings of images apart from those of other models."""
    salt = f"image {model.identity} {model.dtype} {model.transform(resize)}"
    return ImageNames(salt, model.fingerprint(resize), int(model.embedding_width))


def text_names(model: LoadedModel, resize: str) -> TextNames:
    """Return what keeps embeddings of texts apart from those of other models."""
    # Only this needs the tokenizer.
    salt = f"text {model.text_identity} {model.dtype}"
    return TextNames(salt, model.fingerprint(resize), model.context_length)


def may_fill_context(texts: Sequence[str], context_length: int) -> list[str]:
    """Return the texts that are perhaps longer than the context.

    No token is shorter than one byte, and white space is none.
    """
    room = context_length - 2
    return [text for text in texts if len("".join(text.split()).encode()) >= room]


def known_names(
    kind: type[Names], clip: OpenCLIP, cache: EmbeddingCache | None
) -> Names | None:
    """Return what the folder knows of a model that this process has not loaded."""
    if not isinstance(cache, FolderCache) or n_features(clip) is not None:
        return None
    key = _key(kind, clip)
    found = None if key is None else cache.get_many([key]).get(key)
    return None if found is None else kind(**json.loads(unpacked(found)))


def keep_names(names: Names, clip: OpenCLIP, cache: EmbeddingCache | None) -> Names:
    """Let the folder know the model, where it may be taken at its word later."""
    if isinstance(cache, FolderCache):
        key = _key(type(names), clip)
        if key is not None and not cache.get_many([key]):
            cache.put_many({key: packed(json.dumps(asdict(names)).encode())})
    return names


def fingerprint_without_loading(clip: OpenCLIP) -> str | None:
    """Return a hash of weights and preprocessing, None where only loading tells.

    Who has embeddings has loaded the model to make them, or found them by its names.
    """
    loaded = fingerprint_if_loaded(clip)
    if loaded is not None:
        return loaded
    cache = open_cache(clip.embedding_cache)
    names = known_names(TextNames, clip, cache) or known_names(ImageNames, clip, cache)
    return None if names is None else names.fingerprint


def check_same_clip(estimator: Any, clip: OpenCLIP, *, warn: bool = False) -> None:
    """Raise, or warn, if a CLIP is another than the one noted when fitting.

    What was fitted by 0.1.0, or without a CLIP, has noted none.
    """
    known = getattr(estimator, "clip_fingerprint_", None)
    if known is None or fingerprint_without_loading(clip) in (None, known):
        return
    message = (
        f"This {type(estimator).__name__} was fitted with other weights or "
        f"preprocessing than clip={estimator.clip!r} has now, so its scores and "
        "threshold mean nothing. Fit it again, or bring the CLIP back that it was "
        "fitted with."
    )
    if not warn:
        raise ValueError(message)
    warnings.warn(message, UserWarning, stacklevel=5)


def packed(content: bytes) -> np.ndarray:
    """Return bytes as an entry of a cache."""
    whole = len(content).to_bytes(8, "little") + content
    return np.frombuffer(whole + bytes(-len(whole) % 4), "<f4")


def unpacked(entry: np.ndarray) -> bytes:
    """Return the bytes of an entry that `packed` made."""
    whole = entry.astype("<f4", copy=False).tobytes()
    return whole[8 : 8 + int.from_bytes(whole[:8], "little")]


def _key(kind: type, clip: OpenCLIP) -> str | None:
    """Return what changes when another model may be meant; None if unknown."""
    source = source_of(clip)
    stamps = source.stamps()
    if not any(stamps):
        return None
    settings = [
        kind.__name__,
        _LAYOUT,
        *(field.name for field in fields(kind)),
        __version__,
        *(importlib.metadata.version(name) for name in ("torch", "open_clip_torch")),
        *asdict(source).values(),
        *stamps,
        *(_device(clip), clip.precision, clip.resize, clip.image_size),
    ]
    return "model " + hashlib.sha256(repr(settings).encode()).hexdigest()


def _device(clip: OpenCLIP) -> str:
    """Return the device; with its name where the precision "auto" depends on it."""
    if clip.device != "auto":
        return str(clip.device)
    if os.name != "nt" and not any(map(os.path.exists, _GPU_FILES)):
        return "cpu"
    device = torch_device(clip)  # only torch knows which one that is
    if device != "cuda":
        return device
    import torch

    return f"{device} {torch.cuda.get_device_name()}"
