"""Reference photos that are compared tile by tile."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .._clip import read_once
from .._clip.encoding import pixel_batches
from .._clip.settings import check_clip
from .patch_distances import LARGEST_BLOCK
from .reference import SPREADS, ReferenceDetector, check_layers, deviation_of, scale_of
from .references import Photo, References, photo_ids
from .tiles import Tiles

if TYPE_CHECKING:
    import torch

    from .patch_distances import PatchMatcher

_TILES = "tiles to compare"


class TiledReferences(ReferenceDetector):
    """A `ReferenceDetector` to which the tiles of a photo belong together.

    It takes `Tiles`, and scores each of them. A photo is one reference with all its
    tiles and its whole, which are left out together and count as one neighbour. What
    `reference_tokens_` has for each orientation, it has here for each tile of each
    orientation, and ``"same"`` compares with the same tile.
    """

    n_tiles_: np.ndarray

    @classmethod
    def like(cls, detector: ReferenceDetector) -> TiledReferences:
        """Return one with the parameters of a detector."""
        return cls(**detector.get_params(deep=False))

    def _check_images(self, X: Any) -> Sequence[Any]:
        return X if isinstance(X, Tiles) else super()._check_images(X)

    # -- fit ------------------------------------------------------------------------

    def _learn(self, X: Any, references: References) -> None:
        if self.ignore is not None or self.on_error != "raise":
            raise ValueError(
                f"on_error={self.on_error!r}, ignore={self.ignore!r}: expected 'raise' "
                "and None inside a TiledDetector, whose tiles are no whole photos."
            )
        tower = self._tower()
        self.layers_ = check_layers(self.layers, tower.shapes)
        self.input_size_ = tower.input_size
        for tiles, sizes in self._photos(X):

            def encode(rows: list[int], tiles: Any = tiles) -> list[np.ndarray]:
                tokens = self._kept_or_new(
                    tower, tiles, lambda some: self._encode(tower, tiles[some])[0]
                )
                # Of each orientation all tiles, so that those as they are come first.
                return [
                    np.moveaxis(block, 1, 0).reshape(1, -1, *block.shape[2:])
                    for block in tokens
                ]

            references.add(tiles.flatten(0, 1)[np.newaxis], sizes[-1:], encode)
        self._pad(references.photos)
        self._keep(references)
        n = len(self.reference_ids_)
        if n < 2:
            raise ValueError(
                "A TiledDetector compares references with each other, but there is "
                "only one: fit at least 2 photos."
            )
        self._set_location(n)
        self._warn_about_references(len(X.images))
        tokens = self.reference_tokens_
        if self.max_patches is not None:
            self._thin(references.order(), tower.model.device)
        self._set_scales(tower, tokens, tiles)
        self._set_thresholds()

    def _pad(self, photos: dict[str, Photo]) -> None:
        """Repeat tiles until all photos have as many, which changes no distance."""
        import torch

        from .._clip.patch_tokens import turned

        counts = [len(photo.tokens[0]) for photo in photos.values()]
        blank = torch.zeros(1, 3, *self.input_size_)
        self.n_tiles_ = np.array(counts) // len(turned(blank, self.orientations))
        for name, photo in photos.items():
            rows = np.resize(np.arange(len(photo.tokens[0])), max(counts))
            photos[name] = Photo(photo.size, [block[rows] for block in photo.tokens])

    def _set_location(self, n: int) -> None:
        super()._set_location(n)
        if self.location_ != "anywhere" and len(set(self.n_tiles_.tolist())) > 1:
            raise ValueError(
                f"location={self.location!r}: expected 'anywhere' for tiles of photos "
                "of different sizes, which have no common places. A grid, `tiles`, has."
            )

    def _set_scales(
        self, tower: Any, tokens: list[np.ndarray], first: torch.Tensor
    ) -> None:
        import torch

        device = tower.model.device
        matcher = self._matcher(device)
        found = []
        for own in range(len(self.reference_ids_)):

            def scores(part: slice, own: int = own) -> np.ndarray:
                queries = [
                    torch.from_numpy(block[own, part]).to(device) for block in tokens
                ]
                photo = torch.tensor([own])
                return self._scored_tiles(matcher, queries, part.start, photo)

            n_tiles = int(self.n_tiles_[own])
            found.append(tower.model.within_memory(_TILES, n_tiles, scores))
        self.patch_scale_ = scale_of(np.concatenate(found))
        worst = np.stack(
            [
                self._image_scores(scores, [(0, 0)] * len(scores)).max(axis=0)
                for scores in found
            ]
        )
        self.image_scale_ = scale_of(worst)
        self.reference_scores_ = SPREADS - deviation_of(worst, self.image_scale_)
        most = max(map(len, found))
        self.reference_patch_scores_ = np.stack(
            [scores[np.resize(np.arange(len(scores)), most)] for scores in found]
        )

    # -- scores -----------------------------------------------------------------------

    def is_reference(self, X: Any) -> np.ndarray:
        """Return which of the photos are references."""
        ids = [photo_ids(t.flatten(0, 1)[np.newaxis])[0] for t, _ in self._photos(X)]
        self._check_same_clip()
        return np.isin(ids, self.reference_ids_)

    def _photos(
        self, tiles: Tiles
    ) -> Iterator[tuple[torch.Tensor, list[tuple[int, int]]]]:
        """Yield the pixels of all tiles of a photo, and their heights and widths."""
        import torch

        pixels: list[torch.Tensor] = []
        sizes: list[tuple[int, int]] = []
        counts = iter(tiles.counts)
        count = next(counts)
        for batch, batch_sizes in pixel_batches(check_clip(self.clip), tiles):
            for one, size in zip(batch, batch_sizes, strict=True):
                pixels.append(one)
                sizes.append(size)
                if len(pixels) == count:
                    yield torch.stack(pixels), sizes
                    pixels, sizes, count = [], [], next(counts, 0)

    def _iter_patch_scores(
        self, images: Any
    ) -> Iterator[tuple[np.ndarray, list[tuple[int, int]]]]:
        """Yield the patch scores of the tiles of a photo, and their sizes."""
        photos = images.images
        found = read_once.kept(photos, self)
        if found is not None:
            yield from found
            return
        for number, scores_and_sizes in enumerate(self._new_patch_scores(images)):
            read_once.keep(photos, number, self, [scores_and_sizes])
            yield scores_and_sizes

    def _new_patch_scores(
        self, images: Any
    ) -> Iterator[tuple[np.ndarray, list[tuple[int, int]]]]:

        tower = self._tower()
        self._check_same_clip()
        matcher = self._matcher(tower.model.device)
        numbers = {name: i for i, name in enumerate(self.reference_ids_.tolist())}
        for tiles, sizes in self._photos(images):
            own = numbers.get(photo_ids(tiles.flatten(0, 1)[np.newaxis])[0])
            if own is not None:
                yield self.reference_patch_scores_[own, : len(tiles)], sizes
                continue
            if self.location_ != "anywhere" and len(tiles) != self.n_tiles_[0]:
                raise ValueError(
                    f"A photo has {len(tiles)} tiles, but the references have "
                    f"{self.n_tiles_[0]}, and location={self.location!r} compares tile "
                    "with tile: use location='anywhere', or a grid, `tiles`."
                )
            step = check_clip(self.clip).batch_size
            found = [
                self._batch_scores(tower, matcher, tiles[start : start + step], start)
                for start in range(0, len(tiles), step)
            ]
            yield np.concatenate(found), sizes

    def _batch_scores(
        self, tower: Any, matcher: PatchMatcher, tiles: torch.Tensor, first: int
    ) -> np.ndarray:
        """Encode and score a batch of the tiles of one photo, from the `first` on."""

        def scores(part: slice) -> np.ndarray:
            queries = tower.encode(tiles[part], self.layers_)[0]
            return self._scored_tiles(matcher, queries, first + part.start)

        found: np.ndarray = tower.model.within_memory(_TILES, len(tiles), scores)
        return found

    def _scored_tiles(
        self,
        matcher: PatchMatcher,
        queries: Sequence[torch.Tensor],
        first: int,
        own: torch.Tensor | None = None,
    ) -> np.ndarray:
        """Return patch scores (n_tiles, n_places, rows, columns) of some tiles.

        They are tiles of one photo, from the `first` on.
        """
        n_tiles = len(queries[0])
        n_patches = max(block.shape[1] * block.shape[2] for block in queries)
        # So many that their cosines to a reference photo fit a block.
        of_photo = int(self.n_tiles_.max()) * self.orientations * n_patches
        step = max(1, LARGEST_BLOCK // (n_patches * of_photo))
        found = []
        for start in range(0, n_tiles, step):
            tiles = [block[start : start + step] for block in queries]
            views = range(first + start, first + start + len(tiles[0]))
            photo = None if own is None else own.expand(len(views))
            scores = matcher.scores(tiles, photo, views)
            found.append(scores.movedim(1, 0).cpu().numpy())
        return np.concatenate(found)
