"""Vision towers of open_clip at other input sizes than their own.

Imported only from inside functions (torch).
"""

from __future__ import annotations

from typing import Any

import torch
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from torch.nn import functional


def set_image_size(visual: Any, size: tuple[int, int]) -> None:
    """Let a tower take images of another height and width.

    Positions are interpolated as open_clip does (``force_image_size``).
    """
    patch = _patch_size(visual)
    if any(side % step for side, step in zip(size, patch, strict=True)):
        down = tuple(
            max(1, side // step) * step for side, step in zip(size, patch, strict=True)
        )
        up = tuple(
            -(-side // step) * step for side, step in zip(size, patch, strict=True)
        )
        raise ValueError(
            f"image_size={size}: expected multiples of the patches of {patch[0]} x "
            f"{patch[1]} pixels of this tower, such as {down} or {up}; what is left "
            "over would not be seen."
        )
    if not isinstance(visual, (VisionTransformer, TimmModel)):
        raise unfit_size(visual, size, "its positions cannot be interpolated")
    try:
        if isinstance(visual, TimmModel):
            visual.set_input_size(size)
        else:
            _interpolate_positions(visual, (size[0] // patch[0], size[1] // patch[1]))
            visual.image_size = size
    except Exception as error:
        raise unfit_size(visual, size, str(error)) from error


def unfit_size(visual: Any, size: tuple[int, int], reason: str) -> ValueError:
    """Return the error for a tower that cannot take this size."""
    kind = type(getattr(visual, "trunk", visual)).__name__
    reason = (reason.splitlines() or ["no reason given"])[0]
    if "tried to allocate" in reason.lower():
        reason = "it needs more memory than there is"
    return ValueError(
        f"image_size={size}: the vision tower of this CLIP ({kind}) cannot take images "
        f"of that size ({reason}). image_size=None is its own."
    )


def _patch_size(visual: Any) -> tuple[int, int]:
    """Return height and width of a patch, (1, 1) where there are none."""
    size = getattr(visual, "patch_size", None)
    if size is None:
        trunk = getattr(visual, "trunk", None)
        size = getattr(getattr(trunk, "patch_embed", None), "patch_size", None) or 1
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width)


def _interpolate_positions(visual: Any, grid: tuple[int, int]) -> None:
    positions = visual.positional_embedding
    first, of_patches = positions[:1], positions[1:]
    of_grid = of_patches.T.reshape(1, -1, *visual.grid_size)
    resized = functional.interpolate(
        of_grid.float(), size=grid, mode="bicubic", antialias=True, align_corners=False
    )
    of_patches = resized.flatten(2)[0].T.to(positions.dtype)
    visual.positional_embedding = torch.nn.Parameter(
        torch.cat([first, of_patches]), requires_grad=False
    )
    visual.grid_size = grid
