"""Tokens of reference photos, kept beside their embeddings from run to run."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.lib.format import read_array, write_array

from .._clip.embedding_cache import FolderCache, open_cache
from .._clip.kept_model import packed, unpacked
from .references import photo_ids

if TYPE_CHECKING:
    import torch

    from .._clip.settings import OpenCLIP

# Another where tokens are made otherwise.
_LAYOUT = 1


class KeptTokens:
    """What a folder of embeddings keeps of references; a cache in memory keeps none.

    Parameters
    ----------
    clip : OpenCLIP
        Says in which folder, if any.
    tower : PatchTower
        What makes the tokens.
    layers : sequence of int
        Of which blocks.
    orientations : int
        Of each photo.
    """

    def __init__(
        self, clip: OpenCLIP, tower: Any, layers: Sequence[int], orientations: int
    ) -> None:
        cache = open_cache(clip.embedding_cache)
        self._cache = cache if isinstance(cache, FolderCache) else None
        self._shapes = [tower.shapes[block - 1] for block in layers]
        if self._cache is not None:
            model = tower.model
            weights = f"{model.identity} {model.fingerprint(clip.resize)}"
            how = f"{_LAYOUT} {list(layers)} {orientations}"
            self._salt = f"{weights} {model.dtype} {how}"

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
        found = {key: self._blocks(v) for key, v in cache.get_many(keys).items()}
        missing = [row for row, key in enumerate(keys) if not found.get(key)]
        if missing:
            rows = zip(*encode(missing), strict=True)
            new = {keys[i]: blocks for i, blocks in zip(missing, rows, strict=True)}
            cache.put_many({key: packed(_content(b)) for key, b in new.items()})
            found |= new
        return [np.stack(blocks) for blocks in zip(*map(found.get, keys), strict=True)]

    def _key(self, name: str) -> str:
        return "tokens " + hashlib.sha256(f"{self._salt} {name}".encode()).hexdigest()

    def _blocks(self, entry: np.ndarray) -> Sequence[np.ndarray]:
        """Return the blocks of an entry, none if it is not as `_content` makes them."""
        buffer = io.BytesIO(unpacked(entry))
        try:
            # Arrays only: reading them runs no code, whoever wrote the file.
            blocks = [read_array(buffer, allow_pickle=False) for _ in self._shapes]
        except (ValueError, EOFError):
            return []
        right = all(
            block.dtype == np.float16 and block.shape[1:] == shape
            for block, shape in zip(blocks, self._shapes, strict=True)
        )
        return blocks if right else []


def _content(blocks: Sequence[np.ndarray]) -> bytes:
    buffer = io.BytesIO()
    for block in blocks:
        write_array(buffer, block, allow_pickle=False)
    return buffer.getvalue()
