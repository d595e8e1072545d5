"""Distances from patches to the nearest patches of reference photos.

Everything is a matrix product over a block of rows and columns and a maximum over the
columns of each photo, so memory is bounded however many photos there are.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any

from .._promises import floor_count

if TYPE_CHECKING:
    from torch import Tensor

# Cosines computed at once.
LARGEST_BLOCK = 2**23
# At most this many cosines of a folder with itself are kept; with more each pair of
# photos is computed twice.
_LARGEST_KEPT = 2**29
# Squared distances below this are rounding errors.
_SMALLEST_SQUARE = 1e-5


def averaged(tokens: Tensor, neighborhood: int) -> Tensor:
    """Average over neighbourhoods of patches.

    From (n, rows, columns, width) to (n, rows, columns, width), dtype float32. Places
    outside the photo count as 0.
    """
    from torch.nn import functional

    features = tokens.float()
    if neighborhood == 1:
        return features
    return functional.avg_pool2d(
        features.permute(0, 3, 1, 2), neighborhood, 1, neighborhood // 2
    ).permute(0, 2, 3, 1)


def patch_features(tokens: Tensor, neighborhood: int) -> Tensor:
    """Average over neighbourhoods of patches; L2-normalise."""
    from torch.nn import functional

    return functional.normalize(averaged(tokens, neighborhood), dim=-1)


def nearest_anywhere(queries: Tensor, references: Tensor, neighborhood: int) -> Tensor:
    """Return the cosine to the nearest patch of each reference photo.

    From features (n_queries, rows, columns, width) and tokens (n_references,
    orientations, rows, columns, width) to (n_queries, n_patches, n_references).
    """
    n_queries, n_patches = queries.shape[0], queries.shape[1] * queries.shape[2]
    rows = queries.flatten(0, 2)
    per_photo = references.shape[1] * n_patches
    step = max(1, LARGEST_BLOCK // (len(rows) * per_photo))
    result = queries.new_empty(len(rows), len(references))
    for start in range(0, len(references), step):
        part = references[start : start + step].flatten(0, 1)
        columns = patch_features(part, neighborhood).flatten(0, 2)
        cosines = (rows @ columns.T).unflatten(1, (-1, per_photo))
        result[:, start : start + step] = cosines.amax(dim=2)
    return result.unflatten(0, (n_queries, n_patches))


def nearest_in_place(queries: Tensor, references: Tensor, radius: int) -> Tensor:
    """Return the cosine to the nearest patch around the same place of each reference.

    From features (n, rows, columns, width) of both to (n_queries, n_patches,
    n_references).
    """
    rows, columns = queries.shape[1:3]
    left = queries.permute(1, 2, 0, 3)
    right = references.permute(1, 2, 3, 0)
    if radius == 0:
        return (left @ right).flatten(0, 1).transpose(0, 1)
    shape = (rows, columns, len(queries), len(references))
    best = queries.new_full(shape, -float("inf"))
    # Farther away there is nothing.
    reach = (min(radius, length - 1) for length in (rows, columns))
    shifts = (range(-most, most + 1) for most in reach)
    for down, across in itertools.product(*shifts):
        here = best[_overlap(rows, -down), _overlap(columns, -across)]
        there = right[_overlap(rows, down), _overlap(columns, across)]
        moved = left[_overlap(rows, -down), _overlap(columns, -across)]
        here.copy_(here.maximum(moved @ there))
    return best.flatten(0, 1).transpose(0, 1)


def _overlap(length: int, shift: int) -> slice:
    """What of a line of patches is left after `shift` of them at its beginning."""
    return slice(max(0, shift), max(0, length + min(0, shift)))


def nearest_of(
    queries: Tensor, patches: Tensor, owners: Tensor, own: Tensor | None
) -> Tensor:
    """Return the cosine to the nearest of some patches, whatever photo it is of.

    From features (n_queries, rows, columns, width) and tokens (n_patches, width) to
    (n_queries, rows x columns, 1). `owners` (n_patches,) are the photos of the patches,
    and `own` (n_queries,) those to be left out for each query.
    """
    from torch.nn import functional

    n_queries, rows = len(queries), queries.flatten(0, 2)
    best = rows.new_full((len(rows),), -float("inf"))
    step = max(1, LARGEST_BLOCK // len(rows))
    for start in range(0, len(patches), step):
        part = slice(start, start + step)
        cosines = rows @ functional.normalize(patches[part].float(), dim=-1).T
        if own is not None:
            same = own.to(owners.device)[:, None] == owners[part]
            of_photos = cosines.view(n_queries, -1, cosines.shape[1])
            of_photos.masked_fill_(same[:, None], -float("inf"))
        best = best.maximum(cosines.amax(dim=1))
    return best.view(n_queries, -1, 1)


def mean_distance(cosines: Tensor, n_neighbors: int) -> Tensor:
    """Return the mean distance to the nearest references, along the last axis."""
    if n_neighbors == 1:
        nearest = cosines.amax(dim=-1, keepdim=True)
    else:
        nearest = cosines.topk(n_neighbors, dim=-1).values
    squares = 2 - 2 * nearest
    return squares.where(squares >= _SMALLEST_SQUARE, 0).sqrt().mean(dim=-1)


def count_neighbors(n_neighbors: int | float, n_references: int) -> int:
    """Return how many of the references count, given as a number or as a share."""
    if isinstance(n_neighbors, Integral):
        return min(int(n_neighbors), n_references)
    return max(1, floor_count(float(n_neighbors), n_references))


class PatchMatcher:
    """Patches compared with those of reference photos.

    Parameters
    ----------
    references : sequence of Tensor
        Standardised tokens of each block, (n_references, orientations, rows, columns,
        width), float16.
    neighborhoods : sequence of int
        Odd sides of the neighbourhoods that are averaged.
    places : sequence of {"anywhere", "same"}
        Which patches of a reference a patch is compared with.
    radius : int
        How far away the same place reaches.
    n_neighbors : int or float
        How many of the references count, or which share of them.
    """

    def __init__(
        self,
        references: Sequence[Tensor],
        neighborhoods: Sequence[int],
        places: Sequence[str],
        radius: int,
        n_neighbors: Any,
    ) -> None:
        self.references = references
        self.neighborhoods = neighborhoods
        self.places = places
        self.radius = radius
        self.n_neighbors = n_neighbors

    def count(self, n_references: int) -> int:
        """Return how many references the distances are averaged over."""
        return count_neighbors(self.n_neighbors, n_references)

    def scores(
        self,
        queries: Sequence[Tensor],
        own: Tensor | None = None,
        views: Sequence[int] | None = None,
    ) -> Tensor:
        """Score the patches of photos: (n_places, n_queries, rows, columns).

        `queries` holds tokens of each block, (n_queries, rows, columns, width). `own`
        are the numbers of the references that the photos are, if they are. The same
        place is looked for in the upright references, or for each query in one of the
        `views`: the number of a tile.
        """

        def distances(tokens: Tensor, block: int, side: int) -> list[Tensor]:
            features, references = patch_features(tokens, side), self.references[block]
            n_compared = len(references) - (own is not None)
            found = []
            for place in self.places:
                if place == "anywhere":
                    cosines = nearest_anywhere(features, references, side)
                else:
                    cosines = self._in_place(features, references, side, views)
                if own is not None:
                    _leave_out(cosines, own)
                found.append(mean_distance(cosines, self.count(n_compared)))
            return found

        return self.mean_over_blocks(queries, distances)

    def _in_place(
        self,
        features: Tensor,
        references: Tensor,
        side: int,
        views: Sequence[int] | None,
    ) -> Tensor:
        import torch

        if views is None:
            upright = patch_features(references[:, 0], side)
            return nearest_in_place(features, upright, self.radius)
        found = []
        for query, view in zip(features.split(1), views, strict=True):
            here = patch_features(references[:, view], side)
            found.append(nearest_in_place(query, here, self.radius))
        return torch.cat(found)

    def leave_one_out(self, batch_size: int) -> Tensor:
        """Score the patches of each reference against all others."""
        import torch

        n, orientations, rows, columns, _ = self.references[0].shape
        upright = [tokens[:, 0] for tokens in self.references]
        kept = n * n * rows * columns if self.count(n - 1) > 1 else 0
        if orientations == 1 and kept <= _LARGEST_KEPT:
            with contextlib.suppress(torch.cuda.OutOfMemoryError):
                return self.mean_over_blocks(upright, self._pair_distances)
            torch.cuda.empty_cache()
        return self.one_by_one(upright, batch_size)

    def one_by_one(self, photos: Sequence[Tensor], batch_size: int) -> Tensor:
        """Score the patches of each reference against all others, in batches.

        `photos` holds the tokens of the references as they are, of each block,
        (n_references, rows, columns, width).
        """
        import torch

        parts = []
        for own in torch.arange(len(photos[0])).split(batch_size):
            parts += self._in_parts(photos, own)
        return torch.cat(parts, dim=1)

    def _in_parts(self, photos: Sequence[Tensor], own: Tensor) -> list[Tensor]:
        """Score some references: fewer at once if the GPU's memory is short."""
        import torch

        try:
            return [self.scores([tokens[own] for tokens in photos], own)]
        except torch.cuda.OutOfMemoryError:
            if len(own) == 1:
                raise
        torch.cuda.empty_cache()
        halves = own.tensor_split(2)
        return [part for half in halves for part in self._in_parts(photos, half)]

    def mean_over_blocks(self, queries: Sequence[Tensor], distances: Any) -> Tensor:
        """Average over neighbourhoods and blocks, on the finest grid.

        ``distances(tokens, block, side)`` returns those at each place, of shape
        (n_queries, n_patches).
        """
        import torch
        from torch.nn import functional

        grids = [tuple(tokens.shape[1:3]) for tokens in queries]
        finest = max(grids, key=lambda grid: grid[0] * grid[1])
        total: Any = 0
        for block, tokens in enumerate(queries):
            for side in self.neighborhoods:
                found = torch.stack(distances(tokens, block, side))
                found = found.unflatten(2, grids[block])
                if grids[block] != finest:
                    found = functional.interpolate(
                        found, finest, mode="bilinear", align_corners=False
                    )
                total = total + found
        return total / (len(queries) * len(self.neighborhoods))

    def _pair_distances(self, tokens: Tensor, block: int, side: int) -> list[Tensor]:
        """Distances of the references among themselves, each pair computed once."""
        n, rows, columns = tokens.shape[:3]
        count = self.count(n - 1)
        # Of the single nearest reference no list of all is needed.
        width = 1 if count == 1 else n
        shape = (len(self.places), n, rows * columns, width)
        kept = tokens.new_full(shape, -float("inf")).float()
        for here, there, found in self._pairs(tokens, side):
            for place, (ours, theirs) in zip(kept, found, strict=True):
                for one, other, cosines in (here, there, ours), (there, here, theirs):
                    if count == 1:
                        nearest = cosines.amax(dim=2, keepdim=True)
                        place[one] = place[one].maximum(nearest)
                    else:
                        place[one, :, other] = cosines
        return [mean_distance(cosines, count) for cosines in kept]

    def _pairs(
        self, tokens: Tensor, side: int
    ) -> Iterator[tuple[slice, slice, list[tuple[Tensor, Tensor]]]]:
        """Yield two ranges of photos, and the cosines of both, each to the other.

        For each place these are (n_here, n_patches, n_there) and (n_there, n_patches,
        n_here).
        """
        n, rows, columns = tokens.shape[:3]
        step = max(1, int((LARGEST_BLOCK**0.5) / (rows * columns)))
        ranges = [slice(i, min(i + step, n)) for i in range(0, n, step)]
        for number, here in enumerate(ranges):
            ours = patch_features(tokens[here], side)
            for there in ranges[number:]:
                theirs = ours
                if there != here:
                    theirs = patch_features(tokens[there], side)
                found = []
                for place in self.places:
                    if place == "anywhere":
                        one, other = _nearest_both_ways(ours, theirs)
                    else:
                        one = nearest_in_place(ours, theirs, self.radius)
                        other = one
                        if there != here:
                            other = nearest_in_place(theirs, ours, self.radius)
                    if there == here:
                        _leave_out(one, _counted(len(one)))
                        other = one
                    found.append((one, other))
                yield here, there, found


def _nearest_both_ways(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Return the cosines (n_left, n_patches, n_right), and those the other way."""
    n_patches = left.shape[1] * left.shape[2]
    cosines = left.flatten(0, 2) @ right.flatten(0, 2).T
    shape = (len(left), n_patches, len(right), n_patches)
    cosines = cosines.view(shape)
    return cosines.amax(dim=3), cosines.amax(dim=1).permute(1, 2, 0)


def _leave_out(cosines: Tensor, own: Tensor) -> None:
    """Set the cosines (n, n_patches, n_references) of photos to themselves."""
    cosines[_counted(len(own)), :, own] = -float("inf")


def _counted(n: int) -> Tensor:
    import torch

    return torch.arange(n)
