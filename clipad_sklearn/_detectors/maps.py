"""What the detectors share that say where the anomaly is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from scipy import ndimage
from sklearn.utils import Tags
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from .._clip.encoding import pixel_batches
from .._clip.models import check_settings, load
from .._clip.settings import OpenCLIP, check_clip
from .._images import check_images
from .._promises import floor_count
from .._validation import check_number, is_whole
from .base import ClassNameDetector
from .class_names import names_of_images

if TYPE_CHECKING:
    import torch

# Thresholds of maps are found to one part in this.
_N_BINS = 2**20
# Of one map that is asked for: 4 GB. No more than Pillow can resize, either.
_MOST_PIXELS = 2**30


class MapDetector(ClassNameDetector):
    """Base of detectors on images that say where the anomaly is.

    A subclass has `fit`, ``_margins``, ``_embedding_detector``, the detector on
    embeddings from which image scores come, and ``_model_maps(pixels, class_names)``,
    which returns the maps of a batch of resized pixels at the size of these, as
    (n, height, width) in [0, 1] with 0.5 where neither state is nearer.
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "pixel_contamination": [
            StrOptions({"auto"}),
            Interval(Real, 0, 0.5, closed="right"),
        ],
    }

    # At which size `pixel_offset_` is found: maps of this are enlarged to any other.
    _offset_size = "model"

    clip: Any
    pixel_contamination: float | str
    pixel_offset_: float

    @property
    def _embedding_detector(self) -> Any:
        raise NotImplementedError

    def _model_maps(
        self, pixels: torch.Tensor, class_names: str | list[str] | None
    ) -> np.ndarray:
        raise NotImplementedError

    def _check_images(self, X: Any) -> Sequence[Any]:
        if getattr(X, "ndim", 0) == 2 and np.asarray(X).dtype.kind == "f":
            raise ValueError(
                f"{type(self).__name__} takes images, but X is a matrix, as "
                "embeddings are: leave the encoder out. (If it is a single grey image, "
                "wrap it in a list: [image].)"
            )
        return check_images(X)

    # -- public -----------------------------------------------------------------

    def anomaly_maps(
        self,
        X: Any,
        *,
        size: str | tuple[int, int] = "image",
        class_name: Any = None,
    ) -> list[np.ndarray] | np.ndarray:
        """Return a map of anomaly scores for each image.

        Parameters
        ----------
        X : sequence of path, PIL.Image or array, or one array
            The images, see :meth:`OpenCLIP.encode_image`.
        size : "image", "model" or (int, int), default="image"
            Height and width of the maps: those of each image, those of the model's
            input, or these.
        class_name : str, array-like of str of shape (n_images,) or None, default=None
            What the images show. None is what `fit` was given.

        Returns
        -------
        list of ndarray, or ndarray of shape (n_images, height, width)
            A list for ``size="image"``. Of dtype float32, in [0, 1] on a scale that
            does not depend on the image; higher is more anomalous.

        Raises
        ------
        ImageReadError
            If images cannot be read.
        ValueError
            If `X` is empty or a lone image, if `size` is none of these, or if the
            vision tower of the CLIP has no patch tokens that can be used.
        """
        maps = list(self.iter_anomaly_maps(X, size=size, class_name=class_name))
        return maps if isinstance(size, str) and size == "image" else np.stack(maps)

    def iter_anomaly_maps(
        self,
        X: Any,
        *,
        size: str | tuple[int, int] = "image",
        class_name: Any = None,
    ) -> Iterator[np.ndarray]:
        """Yield a map of anomaly scores for each image, in order.

        As `anomaly_maps`, for more images than maps fit in memory: what is held at a
        time depends on the batch size of `clip` alone.

        Parameters
        ----------
        X : sequence of path, PIL.Image or array, or one array
            The images.
        size : "image", "model" or (int, int), default="image"
            Height and width of the maps.
        class_name : str, array-like of str of shape (n_images,) or None, default=None
            What the images show. None is what `fit` was given.

        Returns
        -------
        iterator of ndarray of shape (height, width), dtype float32
            Maps in [0, 1]; higher is more anomalous.

        Raises
        ------
        ImageReadError
            If images cannot be read; after the maps of the images before the first
            of them.
        ValueError
            As `anomaly_maps`.
        """
        check_is_fitted(self)
        return self._iter_maps(*self._checked_for_maps(X, size, class_name))

    def _checked_for_maps(
        self, X: Any, size: Any, class_name: Any
    ) -> tuple[Sequence[Any], Any, Any]:
        images = self._check_images(X)
        clip = check_clip(self.clip)
        check_settings(clip)
        size = check_size(size, clip)
        if class_name is not None and not isinstance(class_name, str):
            class_name = names_of_images(class_name, len(images))
        return images, size, class_name

    def predict_masks(
        self,
        X: Any,
        *,
        size: str | tuple[int, int] = "image",
        class_name: Any = None,
    ) -> list[np.ndarray] | np.ndarray:
        """Return for each image which pixels are anomalous.

        Parameters
        ----------
        X : sequence of path, PIL.Image or array, or one array
            The images.
        size : "image", "model" or (int, int), default="image"
            Height and width of the masks.
        class_name : str, array-like of str of shape (n_images,) or None, default=None
            What the images show. None is what `fit` was given.

        Returns
        -------
        list of ndarray, or ndarray of shape (n_images, height, width)
            Of dtype bool, True where the anomaly map is above `pixel_offset_`. A list
            for ``size="image"``.
        """
        check_is_fitted(self)
        check_number("pixel_offset_", self.pixel_offset_)
        maps = self.iter_anomaly_maps(X, size=size, class_name=class_name)
        masks = [anomaly_map > self.pixel_offset_ for anomaly_map in maps]
        return masks if isinstance(size, str) and size == "image" else np.stack(masks)

    # -- streaming ----------------------------------------------------------------

    def _iter_maps(
        self,
        images: Sequence[Any],
        size: str | tuple[int, int],
        class_name: str | list[str] | None,
    ) -> Iterator[np.ndarray]:
        clip = check_clip(self.clip)
        load(clip)
        self._check_same_clip()
        for maps, image_sizes in batches(clip, images, class_name, self._model_maps):
            for anomaly_map, image_size in zip(maps, image_sizes, strict=True):
                yield sized(anomaly_map, size, image_size)

    # -- threshold of maps ----------------------------------------------------------

    def _check_fit(self, X: Any, y: Any = None) -> None:
        super()._check_fit(X, y)
        if self.pixel_contamination != "auto" and X is None:
            raise ValueError(
                f"pixel_contamination={self.pixel_contamination!r} is a quantile of "
                "the anomaly maps of the images given to `fit`, but X is None. Fit "
                "with images, or use pixel_contamination='auto'."
            )

    def _set_offset(self, X: Any, **params: Any) -> None:
        """Set `offset_`, `pixel_offset_` and `classes_`; the last step of `fit`."""
        super()._set_offset(X, **params)
        if self.pixel_contamination == "auto":
            return
        maps = self.iter_anomaly_maps(X, size=self._offset_size, **params)
        self.pixel_offset_ = pixel_quantile(maps, float(self.pixel_contamination))

    def _reset_offset(self) -> None:
        super()._reset_offset()
        self.pixel_offset_ = 0.5

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.string = True
        return tags


def embedding_detector(detector: MapDetector) -> Any:
    """Return the detector on embeddings that gives a fitted one its image scores."""
    return detector._embedding_detector


def pixel_quantile(maps: Iterable[np.ndarray], share: float) -> float:
    """Return the threshold above which at most `share` of all pixels lie."""
    # Counts per bin need no more memory for more images, unlike sorting.
    counts = np.zeros(_N_BINS + 1, dtype=np.int64)
    for anomaly_map in maps:
        bins = np.rint(anomaly_map.astype(np.float64) * _N_BINS).astype(np.int64)
        counts += np.bincount(bins.ravel(), minlength=_N_BINS + 1)
    above = counts[::-1].cumsum()[::-1] - counts
    allowed = floor_count(share, int(counts.sum()))
    return (int(np.argmax(above <= allowed)) + 0.5) / _N_BINS


def batches(
    clip: OpenCLIP,
    images: Sequence[Any],
    class_name: str | list[str] | None,
    work: Callable[[torch.Tensor, str | list[str] | None], np.ndarray],
) -> Iterator[tuple[np.ndarray, list[tuple[int, int]]]]:
    """Yield what `work` makes of the pixels and names of each batch, and the sizes."""
    start = 0
    for pixels, image_sizes in pixel_batches(clip, images):
        names = class_name
        if isinstance(class_name, list):
            names = class_name[start : start + len(image_sizes)]
        start += len(image_sizes)

        def work_on(part: slice, pixels: Any = pixels, names: Any = names) -> Any:
            some = names[part] if isinstance(names, list) else names
            return work(pixels[part], some)

        yield load(clip).within_memory("maps", len(pixels), work_on), image_sizes


def upsampled(
    maps: np.ndarray,
    size: tuple[int, int],
    *,
    align_corners: bool = False,
    sigma: float = 0,
) -> np.ndarray:
    """Enlarge maps (..., rows, columns) to `size`, bilinearly; then smooth them.

    `sigma` is the standard deviation of a Gaussian in pixels.
    """
    rows = interpolation(maps.shape[-2], size[0], align_corners)
    columns = interpolation(maps.shape[-1], size[1], align_corners)
    if sigma > 0:
        # Linear too, so the few rows and columns are smoothed once for all maps.
        rows, columns = (
            ndimage.gaussian_filter1d(weights, sigma, axis=0)
            for weights in (rows, columns)
        )
    return rows @ maps @ columns.T


def interpolation(n_in: int, n_out: int, align_corners: bool) -> np.ndarray:
    """Return the matrix (n_out, n_in) of linear interpolation."""
    if align_corners:
        positions = np.linspace(0, n_in - 1, n_out)
    else:
        positions = (np.arange(n_out) + 0.5) * n_in / n_out - 0.5
        positions = positions.clip(0, n_in - 1)
    distances = np.abs(positions[:, np.newaxis] - np.arange(n_in))
    return np.maximum(1 - distances, 0)


def check_size(size: Any, clip: OpenCLIP) -> str | tuple[int, int]:
    if isinstance(size, str) and size in ("image", "model"):
        if size == "image" and clip.resize == "crop":
            raise ValueError(
                "With resize='crop' the model sees only the centre of an image, so "
                "there is no map of all of it. Use OpenCLIP(..., resize='squash'), or "
                "size='model' for a map of the centre."
            )
        return size
    try:
        height, width = size
        valid = is_whole(height) and is_whole(width)
    except (TypeError, ValueError):
        valid = False
    if isinstance(size, str) or not valid:
        raise ValueError(
            f"size={size!r}: expected 'image', 'model' or (height, width) of at least "
            "1 each."
        )
    if int(height) * int(width) > _MOST_PIXELS:
        raise ValueError(f"size={size!r}: expected at most {_MOST_PIXELS:,} pixels.")
    return int(height), int(width)


def sized(
    anomaly_map: np.ndarray,
    size: str | tuple[int, int],
    image_size: tuple[int, int],
) -> np.ndarray:
    """Bring a map of the model's size to the size that was asked for."""
    if size == "model":
        return anomaly_map.astype(np.float32)
    return resized(anomaly_map, image_size if isinstance(size, str) else size)


def resized(anomaly_map: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize one map, bilinearly, and with antialiasing where it shrinks."""
    from PIL import Image

    image = Image.fromarray(anomaly_map.astype(np.float32))
    image = image.resize(size[::-1], Image.Resampling.BILINEAR)
    return np.clip(np.asarray(image), 0, 1)
