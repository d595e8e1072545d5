"""`TiledDetector`: looks at large images tile by tile."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from numbers import Real
from typing import Any, ClassVar

import numpy as np
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline
from sklearn.utils._param_validation import Interval
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted

from .._clip.models import load
from .._clip.settings import check_clip
from .._errors import ImageReadError
from .._validation import all_or_nothing, is_whole
from .calibration import are_references
from .class_names import fit_named, names_of_images, score_named
from .maps import MapDetector, resized
from .reference import ReferenceDetector
from .tiled_references import TiledReferences
from .tiles import Box, Tiles, stitched, tile_boxes


def _has_maps(self: TiledDetector) -> bool:
    detector = getattr(self, "detector_", self.detector)
    if not hasattr(detector, "anomaly_maps"):
        raise AttributeError(
            f"{type(self).__name__} has no anomaly maps, because its detector has none."
        )
    return True


class TiledDetector(MapDetector):
    """Look at images tile by tile, for anomalies that are small in large images.

    A CLIP sees an image at its own input size, often 224 or 240 pixels. A defect of 20
    pixels in an image of 4,000 is gone by then. Here each tile is an image of its own
    to the detector, and an image is as anomalous as the most anomalous of its tiles.

    Parameters
    ----------
    detector : detector on images
        Any detector on images of this library, or a Pipeline of
        :class:`CLIPImageEncoder` and a detector on embeddings. It is cloned; its own
        threshold plays no role.
    tiles : (int, int) or None, default=None
        Rows and columns of a grid of tiles of one size, whatever the size of the image.
    tile_size : int, (int, int) or None, default=None
        Height and width of a tile in pixels, instead of a grid: the last tile of a row
        or column ends where the image does. An image no larger than a tile is one tile.
        None for both means ``tiles=(2, 2)``.
    overlap : float in [0, 1), default=0.25
        The share of a tile's side by which neighbours overlap, at least. A defect on a
        border is whole in one of them if it is smaller than the overlap.
    whole : bool, default=True
        Whether the whole image counts as one more tile, for what is only seen as a
        whole.
    contamination : "auto" or float, default="auto"
        ``"auto"`` sets `offset_` to 0. A number in (0, 0.5] is the share of the images
        given to `fit` that are called anomalous.
    pixel_contamination : "auto" or float, default="auto"
        ``"auto"`` sets `pixel_offset_` to 0.5. A number in (0, 0.5] is the share of the
        pixels of the images given to `fit` that are called anomalous.

    Attributes
    ----------
    detector_ : detector
        The fitted detector.
    offset_ : float
        The threshold on the margin. It may be set after fitting.
    pixel_offset_ : float
        The threshold on anomaly maps: pixels above it are anomalous. It may be set
        after fitting.
    classes_ : ndarray of shape (2,)
        ``[-1, 1]``.

    Raises
    ------
    ImageReadError
        From `fit`, if images cannot be read.
    ValueError
        From `fit`, if a parameter is out of range, or both `tiles` and `tile_size` are
        given.

    See Also
    --------
    WinCLIPDetector : Windows of patches, within one pass at the input size.
    calibrate_threshold : Set the threshold from good images.

    Notes
    -----
    The margin of an image is the lowest margin of its tiles and, with `whole`, of the
    whole image. The lowest of many is lower than each of them, also for normal images,
    so the threshold of the detector would flag too many: 12 tiles, 5 % of which are
    flagged each, flag 46 % of the images if they are independent. So the threshold is
    set here, for images.

    Maps of tiles are laid back at their places, with weights (i + 1/2) / L at pixel i
    from the border of a tile of length L, none at the image's own border; the map of
    the whole image counts where it is higher. With one tile, scores and maps are those
    of the detector. All of this is our choice.

    An image is opened once for all its tiles, batches are filled across tiles and
    images, and what is held at a time does not grow with the number of images. With n
    tiles and the whole, an image costs n + 1 passes.

    Examples
    --------
    >>> import numpy as np
    >>> from clipad_sklearn import SDPDetector, TiledDetector
    >>> photo = np.full((300, 400, 3), 128, np.uint8)
    >>> detector = TiledDetector(SDPDetector("tiny"), tiles=(1, 2)).fit()
    >>> detector.score_samples([photo]).shape
    (1,)
    >>> detector.tile_boxes((300, 400))
    [(0, 0, 300, 229), (0, 171, 300, 400)]
    >>> detector.tile_scores([photo])[0].shape  # two tiles and the whole
    (3,)
    >>> detector.anomaly_maps([photo])[0].shape
    (300, 400)
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "overlap": [Interval(Real, 0, 1, closed="left")],
        "whole": ["boolean"],
    }

    # Stitched maps are finer than the model's input.
    _offset_size = "image"

    def __init__(
        self,
        detector: Any,
        *,
        tiles: tuple[int, int] | None = None,
        tile_size: int | tuple[int, int] | None = None,
        overlap: float = 0.25,
        whole: bool = True,
        contamination: float | str = "auto",
        pixel_contamination: float | str = "auto",
    ) -> None:
        self.detector = detector
        self.tiles = tiles
        self.tile_size = tile_size
        self.overlap = overlap
        self.whole = whole
        self.contamination = contamination
        self.pixel_contamination = pixel_contamination

    @all_or_nothing
    def fit(
        self, X: Any = None, y: Any = None, class_name: Any = None
    ) -> TiledDetector:
        """Fit the detector on the tiles.

        Parameters
        ----------
        X : sequence of images or None, default=None
            The images. None will do where the detector needs none.
        y : None
            Ignored.
        class_name : str, array-like of str of shape (n_images,) or None, default=None
            What the images show; passed on to a detector that takes it.

        Returns
        -------
        TiledDetector
            The fitted detector.
        """
        self._check_fit(X, y)
        self._geometry()
        if not hasattr(self.detector, "score_samples"):
            raise ValueError(
                f"detector={self.detector!r}: expected a detector on images, or a "
                "Pipeline of CLIPImageEncoder and a detector, with score_samples."
            )
        detector = _without_threshold(clone(self.detector))
        if X is None:
            self.detector_ = fit_named(detector, None, class_name)
        else:
            X = self._check_images(X)
            tiles = self._tiles(X)
            if isinstance(detector, ReferenceDetector) and len(tiles) > len(X):
                detector = TiledReferences.like(detector)
            with _naming_images(tiles):
                names = _of_tiles(class_name, tiles)
                self.detector_ = fit_named(detector, tiles, names)
        self._set_offset(X, class_name=class_name)
        return self

    # -- tiles ------------------------------------------------------------------

    def tile_boxes(self, size: tuple[int, int]) -> list[Box]:
        """Return where the tiles of an image lie.

        Parameters
        ----------
        size : (int, int)
            Height and width of the image in pixels.

        Returns
        -------
        list of (int, int, int, int)
            Top, left, bottom and right of each tile, row by row.
        """
        return tile_boxes(size, *self._geometry())

    def tile_scores(self, X: Any, class_name: Any = None) -> list[np.ndarray]:
        """Return the margin of each tile of each image.

        Parameters
        ----------
        X : sequence of path, PIL.Image or array, or one array
            The images.
        class_name : str, array-like of str of shape (n_images,) or None, default=None
            What the images show. None is what `fit` was given.

        Returns
        -------
        list of ndarray of shape (n_tiles,), dtype float64
            In the order of `tile_boxes`; the whole image is the last, if it counts.
            The lowest is the margin of the image, and says where to look.
        """
        check_is_fitted(self)
        tiles = self._tiles(self._check_images(X))
        margins = self._tile_margins(tiles, class_name)
        return np.split(margins, np.flatnonzero(np.diff(tiles.owners)) + 1)

    def _geometry(self) -> tuple[tuple[int, int] | None, tuple[int, int] | None, float]:
        """Return the checked grid or size of tiles, and the overlap."""
        if self.tiles is not None and self.tile_size is not None:
            raise ValueError(
                f"tiles={self.tiles!r} and tile_size={self.tile_size!r}: expected one "
                "of them, a grid of tiles or the size of a tile."
            )
        overlap = float(self.overlap)
        if self.tile_size is not None:
            size = self.tile_size
            whole_number = isinstance(size, (int, np.integer))
            pair = _pair("tile_size", (size, size) if whole_number else size)
            return None, pair, overlap
        return (
            _pair("tiles", (2, 2) if self.tiles is None else self.tiles),
            None,
            overlap,
        )

    def _tiles(self, images: Sequence[Any]) -> Tiles:
        return Tiles(images, *self._geometry(), bool(self.whole))

    def _tile_margins(self, tiles: Tiles, class_name: Any) -> np.ndarray:
        names = _of_tiles(class_name, tiles)
        with _naming_images(tiles):
            return np.asarray(score_named(self.detector_, tiles, names), np.float64)

    def _margins(self, X: Any, class_name: Any = None) -> np.ndarray:
        tiles = self._tiles(self._check_images(X))
        margins = np.full(len(tiles.images), np.inf)
        np.minimum.at(margins, tiles.owners, self._tile_margins(tiles, class_name))
        return margins

    # -- maps -------------------------------------------------------------------

    anomaly_maps = available_if(_has_maps)(MapDetector.anomaly_maps)
    iter_anomaly_maps = available_if(_has_maps)(MapDetector.iter_anomaly_maps)
    predict_masks = available_if(_has_maps)(MapDetector.predict_masks)

    @available_if(lambda self: hasattr(self.detector, "is_reference"))
    def is_reference(self, X: Any) -> np.ndarray:
        """Return which of the images are references of the detector.

        Parameters
        ----------
        X : sequence of path, PIL.Image or array, or one array
            The images.

        Returns
        -------
        ndarray of shape (n_images,), dtype bool
            True for images that are references, pixel by pixel, as the model sees them.
        """
        check_is_fitted(self)
        tiles = self._tiles(self._check_images(X))
        with _naming_images(tiles):
            found = are_references(self.detector_, tiles)
        if isinstance(self.detector_, TiledReferences):
            return found  # of images, not of tiles
        kept = np.ones(len(tiles.images), dtype=bool)
        np.logical_and.at(kept, tiles.owners, found)
        return kept

    @property
    def clip(self) -> Any:
        """The CLIP of the detector."""
        detector = self.detector
        while not hasattr(detector, "clip"):
            if isinstance(detector, Pipeline):
                detector = detector[0]
            elif hasattr(detector, "detectors"):
                members = (member for _, member in detector.detectors)
                detector = next(one for one in members if not isinstance(one, str))
            else:
                detector = getattr(detector, "estimator", None) or detector.detector
        return detector.clip

    def _iter_maps(
        self,
        images: Sequence[Any],
        size: str | tuple[int, int],
        class_name: str | list[str] | None,
    ) -> Iterator[np.ndarray]:
        tiles = self._tiles(images)
        names = _of_tiles(class_name, tiles)
        if len(tiles) == len(images):
            # Nothing to lay back.
            yield from self.detector_.iter_anomaly_maps(
                tiles, size=size, class_name=names
            )
            return
        if size == "model":
            size = load(check_clip(self.clip)).input_size
        maps = self.detector_.iter_anomaly_maps(tiles, class_name=names)
        with _naming_images(tiles):
            for index, count in enumerate(tiles.counts):
                parts = [next(maps) for _ in range(count)]
                anomaly_map = parts[0]
                if count > 1:
                    image_size = tiles.size(index)
                    boxes = self.tile_boxes(image_size)
                    anomaly_map = stitched(parts, boxes, image_size)
                yield (
                    resized(anomaly_map, size)
                    if isinstance(size, tuple)
                    else anomaly_map
                )

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "detector_") and hasattr(self, "offset_")


def _without_threshold(detector: Any) -> Any:
    """Have no threshold set from tiles, which play no role and cost a pass."""
    if not isinstance(detector, FrozenEstimator):
        last = detector[-1] if isinstance(detector, Pipeline) else detector
        for name in ("contamination", "pixel_contamination"):
            if name in last.get_params(deep=False):
                last.set_params(**{name: "auto"})
    return detector


@contextlib.contextmanager
def _naming_images(tiles: Tiles) -> Iterator[None]:
    """Name images that cannot be read, each once, instead of their tiles."""
    try:
        yield
    except ImageReadError as error:
        found = {int(tiles.owners[i]): (name, why) for i, name, why in error.failures}
        failures = [(i, name, why) for i, (name, why) in sorted(found.items())]
        raise ImageReadError(failures) from None


def _of_tiles(class_name: Any, tiles: Tiles) -> Any:
    """Return a class name for each tile where there is one for each image."""
    if class_name is None or isinstance(class_name, str):
        return class_name
    names = names_of_images(class_name, len(tiles.images))
    return [names[owner] for owner in tiles.owners]


def _pair(name: str, value: Any) -> tuple[int, int]:
    """Return two checked integers, of rows and columns."""
    try:
        rows, columns = value
        valid = is_whole(rows) and is_whole(columns)
    except (TypeError, ValueError):
        valid = False
    if isinstance(value, str) or not valid:
        what = "(rows, columns)" if name == "tiles" else "pixels, or (height, width)"
        raise ValueError(f"{name}={value!r}: expected {what} of at least 1 each.")
    return int(rows), int(columns)
