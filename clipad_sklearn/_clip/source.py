"""Where a CLIP comes from: what `model_name` and `pretrained` stand for."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import stat
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .settings import OpenCLIP

CONFIG = "open_clip_config.json"
DEFAULT_WEIGHTS = "laion400m_e32"
_SAMPLES, _SAMPLE_BYTES = 16, 4096
TINY = str(Path(__file__).parents[1] / "tiny")


@dataclass(frozen=True)
class Source:
    """A model, its weights and the folder for downloads, as they were asked for."""

    model_name: str
    pretrained: str | None
    cache_dir: str | None

    def __str__(self) -> str:
        is_whole = self.pretrained is None or self.is_hub or self.is_folder
        return self.model_name if is_whole else f"{self.model_name}/{self.pretrained}"

    @property
    def built_in(self) -> str:
        """The model name as open_clip spells it."""
        return self.model_name.replace("/", "-")

    @property
    def is_random(self) -> bool:
        """Whether random weights were asked for."""
        return self.pretrained == "random"

    @property
    def is_hub(self) -> bool:
        """Whether it is a repository of the hub."""
        return self.model_name.startswith("hf-hub:")

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder on this machine."""
        return not self.is_hub and is_folder(self.model_name)

    @property
    def checkpoint(self) -> str | None:
        """The checkpoint file, if one is named. A tag of that name wins."""
        name = self.pretrained
        if name is None or self.is_random or self.is_hub or not os.path.isfile(name):
            return None
        import open_clip

        is_tag = bool(open_clip.get_pretrained_cfg(self.built_in, name))
        return None if is_tag or self.is_folder else name

    @property
    def is_local(self) -> bool:
        """Whether nothing has to be downloaded for the weights."""
        return self.is_folder or self.is_random or self.checkpoint is not None

    def stamps(self) -> tuple[Any, ...]:
        """Return what changes when the folder, checkpoint or config is replaced."""
        if self.is_folder:
            return (_stamp(self.model_name),)
        name = self.pretrained or ""
        # No tag has a point or a slash in it.
        is_path = any(letter in name for letter in {".", "/", os.sep})
        if self.is_random or self.is_hub or not is_path or not os.path.isfile(name):
            return ()
        config = os.path.join(os.path.dirname(name), CONFIG)
        return _stamp(name), _stamp(config)


def source_of(clip: OpenCLIP) -> Source:
    """Return where the model of these settings comes from."""
    name, pretrained = os.fspath(clip.model_name), clip.pretrained
    cache_dir = clip.cache_dir
    if cache_dir is not None:
        if not isinstance(cache_dir, (str, os.PathLike)):
            raise ValueError(f"cache_dir={cache_dir!r}: expected a folder or None.")
        cache_dir = os.path.expanduser(os.fspath(cache_dir))
    path = TINY if name == "tiny" else os.path.expanduser(name)
    if pretrained is not None:
        pretrained = os.path.expanduser(os.fspath(pretrained))
    if pretrained != "random" and (path.startswith("hf-hub:") or is_folder(path)):
        if pretrained not in (None, DEFAULT_WEIGHTS):
            raise ValueError(
                f"pretrained={clip.pretrained!r} in '{name}/{clip.pretrained}': "
                f"expected None or 'random', because {name!r} brings its own weights. "
                "Other weights need the model of open_clip that they are of, "
                f"'MODEL/CHECKPOINT-FILE', or a folder of their own with {CONFIG}."
            )
        pretrained = None
    return Source(path, pretrained, cache_dir)


def is_folder(name: str) -> bool:
    """Whether a name stands for a folder: names of open_clip's models never do.

    Whoever means a folder "ViT-B-32" writes "./ViT-B-32". Otherwise whoever wrote
    the photos' folder could also put a model there that is used instead.
    """
    return os.path.isdir(name) and not is_built_in(name)


def is_built_in(name: str) -> bool:
    """Whether open_clip has a model of that name."""
    name = name.replace("/", "-")
    if "open_clip" in sys.modules:
        import open_clip

        return name in open_clip.list_models()
    return name in _configs()  # importing it would take seconds


@functools.cache
def _configs() -> frozenset[str]:
    """Return the names of open_clip's files of models, which are its own names."""
    found = importlib.util.find_spec("open_clip")
    assert found is not None
    assert found.origin is not None
    folder = Path(found.origin).parent / "model_configs"
    return frozenset(path.stem for path in folder.glob("*.json"))


def _stamp(path: str | None) -> tuple[Any, ...] | None:
    if path is None or not os.path.exists(path):
        return None
    path = os.path.abspath(path)
    if os.path.isdir(path):
        names = sorted(os.listdir(path))
        return path, *((name, *_state(os.path.join(path, name))) for name in names)
    return path, *_state(path)


def _state(path: str) -> tuple[Any, ...]:
    """Return what differs between a file and the one that takes its place."""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            return (status.st_mtime_ns,)
        # Where times are set, as in container images, other weights have the same.
        changed = status.st_mtime_ns, status.st_ctime_ns, status.st_size
        return *changed, _sample(path, *changed)
    except OSError:  # a link to nowhere, which is no weights
        return ()


@functools.lru_cache(maxsize=1024)
def _sample(path: str, modified: int, changed: int, size: int) -> str:
    """Return a hash of some of the bytes of a file; read again when it has changed."""
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        for i in range(_SAMPLES):
            file.seek(i * max(0, size - _SAMPLE_BYTES) // (_SAMPLES - 1))
            digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()
