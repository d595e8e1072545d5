"""The steps of one transformer block of open_clip, with its own submodules.

The towers need what happens between these steps. Imported only from inside functions
(torch).
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from .._errors import NotNumbersError


def directions(features: torch.Tensor) -> torch.Tensor:
    """Rows of length 1 in float32; NaN where one has no direction, as of zero weights.

    `functional.normalize` would make zeros of these, which look like embeddings.
    """
    features = features.float()
    return features / features.norm(dim=-1, keepdim=True)


def check_numbers(*found: torch.Tensor) -> None:
    """Raise NotNumbersError for what a comparison could take for something normal."""
    if not all(bool(torch.isfinite(values).all()) for values in found):
        raise NotNumbersError(
            "What the image tower makes of at least one of the images are no numbers: "
            "use precision='fp32', or other weights if it is 'fp32' already."
        )


def project(block: Any, x: torch.Tensor, which: str = "qkv") -> torch.Tensor:
    """Queries, keys and values of tokens, or some of them, side by side."""
    attention = block.attn
    width = attention.embed_dim
    start = "qkv".index(which)
    rows = slice(start * width, (start + len(which)) * width)
    return functional.linear(
        block.ln_1(x), attention.in_proj_weight[rows], attention.in_proj_bias[rows]
    )


def heads(block: Any, projected: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Each of the parts that lie side by side, as (n, heads, length, head width)."""
    attention = block.attn
    parts = projected.shape[-1] // attention.embed_dim
    split = projected.unflatten(-1, (parts, attention.num_heads, -1))
    return split.permute(2, 0, 3, 1, 4).unbind(0)


def attend(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, **options: Any
) -> torch.Tensor:
    """Attention of all heads, side by side again: (n, length, width)."""
    attended = functional.scaled_dot_product_attention(queries, keys, values, **options)
    return attended.transpose(1, 2).flatten(2)


def out(block: Any, attended: torch.Tensor) -> torch.Tensor:
    """What attention adds to the tokens."""
    return block.ls_1(block.attn.out_proj(attended))


def add_mlp(block: Any, x: torch.Tensor) -> torch.Tensor:
    """The tokens after the second half of the block."""
    return x + block.ls_2(block.mlp(block.ln_2(x)))
