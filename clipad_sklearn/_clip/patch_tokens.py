"""Patch tokens between the blocks of any vision tower that keeps a grid.

Imported only from inside functions (torch).
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from open_clip.transformer import VisionTransformer
from torch.nn import functional

from .blocks import check_numbers, directions
from .loaded_model import LoadedModel

# Kept out of the variance's reach, as in a layer normalisation.
_EPSILON = 1e-5

_shapes: weakref.WeakKeyDictionary[LoadedModel, list[tuple[int, int, int]]] = (
    weakref.WeakKeyDictionary()
)


class PatchTower:
    """The blocks of a loaded CLIP's vision tower, and the grid of tokens of each.

    Blocks are counted from 1. Those of convolutional towers are their stages, whose
    grids differ.
    """

    def __init__(self, model: LoadedModel) -> None:
        self.model = model
        self.visual = model.model.visual
        if model not in _shapes:
            _shapes[model] = self._find_shapes()
        # Rows, columns and features of each block.
        self.shapes = _shapes[model]

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.shapes)

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of the input in pixels."""
        size = self.visual.image_size
        height, width = (size, size) if isinstance(size, int) else size
        return int(height), int(width)

    def encode(
        self, pixels: torch.Tensor, blocks: Sequence[int]
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Return patch tokens of some blocks, and embeddings, in one pass.

        Tokens have shape (n_images, rows, columns, features) and dtype float16. The
        mean over all patches and features of an image is 0, the standard deviation 1.
        Embeddings are L2-normalised float32.
        """
        with self.model.inference():
            # Some towers do not run on to the embedding without the last block.
            asked = sorted({*blocks, self.depth})
            output = self._forward(pixels, [block - 1 for block in asked])
        tokens = []
        for block in blocks:
            grid = output["image_intermediates"][asked.index(block)].float()
            grid = grid.permute(0, 2, 3, 1).contiguous()
            grid = functional.layer_norm(grid, grid.shape[1:], eps=_EPSILON)
            tokens.append(grid.half())
        embeddings = directions(output["image_features"])
        check_numbers(embeddings, *tokens)
        return tokens, embeddings

    def _forward(self, pixels: torch.Tensor, indices: list[int] | None) -> Any:
        pixels = self.model.on_device(pixels)
        return self.visual.forward_intermediates(pixels, indices=indices)

    def _find_shapes(self) -> list[tuple[int, int, int]]:
        visual = self.visual
        if isinstance(visual, VisionTransformer):
            rows, columns = map(int, visual.grid_size)
            width = int(visual.conv1.out_channels)
            return [(rows, columns, width)] * len(visual.transformer.resblocks)
        # Others are asked with a blank image.
        name = type(getattr(visual, "trunk", visual)).__name__
        try:
            with self.model.inference():
                blank = torch.zeros(1, 3, *self.input_size)
                grids = self._forward(blank, None)["image_intermediates"]
            if any(grid.ndim != 4 for grid in grids):
                raise ValueError("its tokens have no grid")
        except (AttributeError, AssertionError, TypeError, ValueError) as error:
            raise ValueError(
                "References need the patch tokens of a vision tower that keeps a grid "
                f"of patches, but that of this CLIP ({name}) does not give them: "
                f"{error}. Detectors on embeddings work with it."
            ) from error
        return [(grid.shape[2], grid.shape[3], grid.shape[1]) for grid in grids]


def turned(pixels: torch.Tensor, orientations: int) -> list[torch.Tensor]:
    """Return images in 1, 4 (turned) or 8 (also mirrored) orientations, as is first.

    Quarter turns of images that are not square are left out.
    """
    quarters = range(0, 4, 1 if pixels.shape[-1] == pixels.shape[-2] else 2)
    copies = [torch.rot90(pixels, k, (-2, -1)) for k in quarters]
    if orientations == 8:
        copies += [copy.flip(-1) for copy in copies]
    return copies if orientations > 1 else copies[:1]
