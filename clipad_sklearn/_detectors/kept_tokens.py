"""Tokens of reference photos, kept beside their embeddings from run to run."""

from __future__ import annotations

import contextlib
import hashlib
import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .._clip.embedding_cache import FolderCache, open_cache
from .._clip.kept_model import packed, unpacked
from .references import photo_ids

if TYPE_CHECKING:
    import torch

    from .._clip.settings import OpenCLIP


class KeptTokens:
    """What a folder of embeddings keeps of references; a cache in memory keeps none.

    Parameters
    ----------
    clip : OpenCLIP
        Says in which folder, if any.
    tower : PatchTower
        What makes the tokens.
    what : object
        All else that they depend on but the pixels: blocks and orientations.
    """

    def __init__(self, clip: OpenCLIP, tower: Any, what: object) -> None:
        cache = open_cache(clip.embedding_cache)
        self._cache = cache if isinstance(cache, FolderCache) else None
        if self._cache is not None:
            model = tower.model
            weights = f"{model.identity} {model.fingerprint(clip.resize)}"
            self._salt = f"{weights} {model.dtype} {what}"

    def tokens(
        self,
        pixels: torch.Tensor,
        encode: Callable[[list[int]], Sequence[np.ndarray]],
    ) -> list[np.ndarray]:
        """Return the tokens of each block of all photos; `encode` makes those of some.

        It gets the rows of `pixels` that are not kept.
        """
        cache = self._cache
        if cache is None:
            return list(encode(list(range(len(pixels)))))
        keys = [self._key(name) for name in photo_ids(pixels)]
        found = {key: _arrays(v) for key, v in cache.get_many(keys).items()}
        missing = [row for row, key in enumerate(keys) if not found.get(key)]
        if missing:
            new = encode(missing)
            for row, *blocks in zip(missing, *new, strict=True):
                found[keys[row]] = blocks
                cache.put_many({keys[row]: packed(_content(blocks))})
        return [np.stack(blocks) for blocks in zip(*map(found.get, keys), strict=True)]

    def _key(self, name: str) -> str:
        return "tokens " + hashlib.sha256(f"{self._salt} {name}".encode()).hexdigest()


# Arrays only: loading them runs no code, whoever wrote the file.


def _content(blocks: Sequence[np.ndarray]) -> bytes:
    buffer = io.BytesIO()
    for block in blocks:
        np.save(buffer, block, allow_pickle=False)
    return buffer.getvalue()


def _arrays(entry: np.ndarray) -> list[np.ndarray]:
    """Return the blocks of an entry, none if it is not as `_content` makes them."""
    content = unpacked(entry)
    buffer = io.BytesIO(content)
    blocks = []
    with contextlib.suppress(ValueError, EOFError):
        while buffer.tell() < len(content):
            blocks.append(np.load(buffer, allow_pickle=False))
        return blocks
    return []
