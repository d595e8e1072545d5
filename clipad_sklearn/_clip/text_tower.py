"""A causal text tower of open_clip, run without padding and without repetition.

No token of such a tower sees what follows it. So the padding after the end token can
be left out, and tokens with which many prompts begin are run once for all of them.
Both are exact.
Imported only from inside functions (torch).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from open_clip.transformer import ResidualAttentionBlock

from .blocks import add_mlp, attend, heads, out, project


def text_tower(model: Any) -> TextTower | None:
    """Return the causal text tower of a model, or None if it has no such tower."""
    tower = getattr(model, "text", model)
    blocks = getattr(getattr(tower, "transformer", None), "resblocks", ())
    pooling = getattr(tower, "pool_type", getattr(tower, "text_pool_type", None))
    works = (
        pooling == "argmax"
        and len(blocks) > 0
        and all(type(block) is ResidualAttentionBlock for block in blocks)
        and isinstance(getattr(tower, "attn_mask", None), torch.Tensor)
        and getattr(tower, "cls_emb", None) is None
        and not getattr(tower, "use_pad_mask", False)
    )
    return TextTower(tower, list(blocks)) if works else None


class TextTower:
    """A text tower that pools at the end token, the one with the largest number."""

    def __init__(self, tower: Any, blocks: list[Any]) -> None:
        self.tower = tower
        self.blocks = blocks

    def encode(self, tokens: torch.Tensor, n_shared: int) -> torch.Tensor:
        """Return features (n, n_features) of prompts.

        The first `n_shared` tokens are the same in all rows, and none of them is an
        end token.
        """
        tower = self.tower
        ends = tokens.argmax(dim=1)
        tokens = tokens[:, : int(ends.max()) + 1]
        n, length = tokens.shape
        x = tower.token_embedding(tokens) + tower.positional_embedding[:length]
        places = torch.arange(length, device=tokens.device)
        # Row by row, what a token sees: itself and what is before it.
        seen = places <= places[n_shared:, None]
        # Only attention needs rows of one length; all else runs on the real tokens.
        real = places[n_shared:] <= ends[:, None]
        last = real.sum(dim=1).cumsum(0) - 1  # the end tokens among them
        shared, x = x[:1, :n_shared], x[:, n_shared:][real]

        def in_rows(packed: torch.Tensor) -> torch.Tensor:
            rows = packed.new_zeros(*real.shape, packed.shape[-1])
            rows[real] = packed
            return rows

        for block in self.blocks:
            is_last = block is self.blocks[-1]
            if is_last:
                # Only the end token makes the embedding.
                keys, values = heads(block, in_rows(project(block, x, "kv")))
                x = x[last]
                (queries,) = heads(block, project(block, x, "q")[:, None])
                seen = (places <= ends[:, None])[:, None, None]
            else:
                queries, keys, values = heads(block, in_rows(project(block, x)))
            if n_shared:
                shared, shared_keys, shared_values = _run_shared(block, shared)
                keys = torch.cat([shared_keys.expand(n, -1, -1, -1), keys], dim=2)
                values = torch.cat([shared_values.expand(n, -1, -1, -1), values], dim=2)
            attended = attend(queries, keys, values, attn_mask=seen)
            attended = attended[:, 0] if is_last else attended[real]
            x = add_mlp(block, x + out(block, attended))
        x = tower.ln_final(x)
        projection = tower.text_projection
        if projection is None:
            return x
        linear = isinstance(projection, torch.nn.Linear)
        return projection(x) if linear else x @ projection


def group_by_prefix(
    tokens: np.ndarray, least: int, max_tokens: int
) -> list[tuple[np.ndarray, int]]:
    """Split prompts into batches of similar length that begin alike.

    Returns the rows of each batch, and with how many equal tokens they begin. A
    beginning counts if at least `least` prompts have it. What follows it in a batch are
    at most `max_tokens` tokens, or one prompt.
    """
    lengths = tokens.argmax(axis=1) + 1
    batches = []
    waiting = [(np.arange(len(tokens)), 0)]
    while waiting:
        rows, depth = waiting.pop()
        # The end token stays with the row.
        longer = rows[lengths[rows] > depth + 1]
        _, kind, count = np.unique(
            tokens[longer, depth], return_inverse=True, return_counts=True
        )
        for number in np.flatnonzero(count >= least):
            waiting.append((longer[kind == number], depth + 1))
        alone = np.setdiff1d(rows, longer[count[kind] >= least])
        alone = alone[np.argsort(lengths[alone], kind="stable")]
        while len(alone):
            fitting = np.cumsum(lengths[alone] - depth) <= max_tokens
            size = max(1, int(fitting.sum()))
            batches.append((alone[:size], depth))
            alone = alone[size:]
    return batches


def _run_shared(
    block: Any, x: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Run the common beginning; return it with its keys and values."""
    queries, keys, values = heads(block, project(block, x))
    attended = attend(queries, keys, values, is_causal=True)
    return add_mlp(block, x + out(block, attended)), keys, values
