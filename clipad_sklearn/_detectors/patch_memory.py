"""Patches of reference photos, thinned to those that lie far from each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from .patch_distances import (
    PatchMatcher,
    averaged,
    mean_distance,
    nearest_of,
    patch_features,
)

if TYPE_CHECKING:
    from torch import Tensor


class Kept(NamedTuple):
    """What is kept of one block and neighbourhood."""

    patches: Tensor  # (n_patches, width), float16
    owners: Tensor  # (n_patches,), the number of the photo of each


def thinned(
    tokens: Sequence[Tensor],
    neighborhoods: Sequence[int],
    most: int,
    order: Sequence[int],
) -> list[Kept]:
    """Keep at most `most` patches of each block and neighbourhood.

    `tokens` are those of each block, (n_references, orientations, rows, columns,
    width). The first patch of the photo that `order` begins with is kept, and then
    again and again the one that is farthest from all that are: the greedy k-centre.
    """
    import torch

    kept = []
    for block in tokens:
        for side in neighborhoods:
            pooled = averaged(block[list(order)].flatten(0, 1), side)
            rows = pooled.half().flatten(0, 2)
            numbers = torch.tensor(list(order), device=rows.device)
            owners = numbers.repeat_interleave(len(rows) // len(numbers))
            chosen = farthest_rows(rows, min(most, len(rows)))
            kept.append(Kept(rows[chosen], owners[chosen]))
    return kept


def farthest_rows(rows: Tensor, count: int) -> Tensor:
    """Return which rows are kept, in the order of the greedy choice."""
    import torch
    from torch.nn import functional

    features = functional.normalize(rows.float(), dim=-1)
    # The cosine of each row to the nearest one that is kept.
    nearest = features.new_full((len(features),), -float("inf"))
    chosen, row = [], 0
    for _ in range(count):
        chosen.append(row)
        torch.maximum(nearest, features @ features[row], out=nearest)
        nearest[row] = float("inf")
        row = int(nearest.argmin())
    return torch.tensor(chosen, device=rows.device)


class ThinnedMatcher(PatchMatcher):
    """Patches compared with those that are kept of reference photos.

    Parameters
    ----------
    kept : sequence of Kept
        What is kept of each block and neighbourhood.
    neighborhoods : sequence of int
        Odd sides of the neighbourhoods that are averaged.
    """

    def __init__(self, kept: Sequence[Kept], neighborhoods: Sequence[int]) -> None:
        super().__init__([], neighborhoods, ("anywhere",), 0, 1)
        self.kept = kept

    def scores(
        self,
        queries: Sequence[Tensor],
        own: Tensor | None = None,
        views: Sequence[int] | None = None,
    ) -> Tensor:
        """Score the patches of photos: (1, n_queries, rows, columns).

        `queries` holds tokens of each block, (n_queries, rows, columns, width). `own`
        are the numbers of the references that the photos are, if they are: of these
        photos no patch counts. `views` play no role.
        """
        kept = iter(self.kept)

        def distances(tokens: Tensor, block: int, side: int) -> list[Tensor]:
            features = patch_features(tokens, side)
            return [mean_distance(nearest_of(features, *next(kept), own), 1)]

        return self.mean_over_blocks(queries, distances)
