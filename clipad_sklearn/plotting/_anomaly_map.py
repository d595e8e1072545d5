"""`AnomalyMapDisplay`: maps laid over their images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .._errors import printable
from .._images import check_images, image_name, open_image
from .._masks import numbered_mask
from ._axes import pyplot

# More pixels than this on a side do not show in a figure.
_LARGEST_SIDE = 1024


class AnomalyMapDisplay:
    """Anomaly maps laid over their images.

    All maps share one colour scale, so that images can be compared. Make one with
    `from_estimator` or `from_predictions`.

    Parameters
    ----------
    images : list of ndarray of shape (height, width, 3), dtype uint8
        The images.
    anomaly_maps : list of ndarray of shape (rows, columns)
        Their maps, each stretched over its image.
    masks : list of ndarray of shape (rows, columns) or None; or None, default=None
        True masks, whose outlines are drawn.
    titles : list of str or None, default=None
        Titles of the images.

    Attributes
    ----------
    axes_ : ndarray of Axes of shape (n_images,)
        Where the images are drawn.
    figure_ : Figure
        The figure of the axes.
    colorbar_ : Colorbar or None
        The colour bar.

    See Also
    --------
    clipad_sklearn.WinCLIPDetector : Anomaly maps from windows.
    clipad_sklearn.SDPDetector : Anomaly maps from patch tokens.

    Examples
    --------
    >>> import matplotlib
    >>> matplotlib.use("Agg")
    >>> from clipad_sklearn import SDPDetector
    >>> from clipad_sklearn.datasets import make_defect_images
    >>> from clipad_sklearn.plotting import AnomalyMapDisplay
    >>> data = make_defect_images(2, size=96, random_state=0)
    >>> detector = SDPDetector("tiny", sigma=4).fit()
    >>> display = AnomalyMapDisplay.from_estimator(
    ...     detector, data.images, masks=data.masks
    ... )
    >>> display.axes_.shape
    (2,)
    """

    def __init__(
        self,
        images: Sequence[np.ndarray],
        anomaly_maps: Sequence[np.ndarray],
        *,
        masks: Sequence[np.ndarray | None] | None = None,
        titles: Sequence[str] | None = None,
    ) -> None:
        self.images = images
        self.anomaly_maps = anomaly_maps
        self.masks = masks
        self.titles = titles

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        *,
        masks: Sequence[Any] | None = None,
        class_name: Any = None,
        titles: Sequence[str] | None = None,
        ax: Any = None,
        **plot_params: Any,
    ) -> AnomalyMapDisplay:
        """Draw the anomaly maps of a fitted detector.

        Parameters
        ----------
        estimator : WinCLIPDetector, SDPDetector or SDPPlusDetector
            A fitted detector with `anomaly_maps`.
        X : sequence of path, PIL.Image or array, or one array
            The images.
        masks : sequence of path, array or None; or None, default=None
            True masks, whose outlines are drawn. Arrays hold 0 and 1, 0 and 255, or
            bool; in files anomalous pixels are above 0.
        class_name : str, array-like of str of shape (n_images,) or None, default=None
            What the images show.
        titles : sequence of str or None, default=None
            Titles of the images.
        ax : Axes, array-like of Axes or None, default=None
            Where to draw, one for each image. None makes a figure.
        **plot_params : dict
            Passed on to `plot`.

        Returns
        -------
        AnomalyMapDisplay
            The display.
        """
        if not hasattr(estimator, "anomaly_maps"):
            raise TypeError(
                f"{type(estimator).__name__} has no anomaly_maps. Use WinCLIPDetector, "
                "SDPDetector or SDPPlusDetector."
            )
        X = check_images(X)
        # Maps at the model's size: stretching them is the figure's work.
        maps = estimator.anomaly_maps(X, size="model", class_name=class_name)
        return cls.from_predictions(
            X, maps, masks=masks, titles=titles, ax=ax, **plot_params
        )

    @classmethod
    def from_predictions(
        cls,
        X: Any,
        anomaly_maps: Sequence[np.ndarray],
        *,
        masks: Sequence[Any] | None = None,
        titles: Sequence[str] | None = None,
        ax: Any = None,
        **plot_params: Any,
    ) -> AnomalyMapDisplay:
        """Draw given anomaly maps.

        Parameters
        ----------
        X : sequence of path, PIL.Image or array, or one array
            The images.
        anomaly_maps : sequence of array of shape (rows, columns)
            Their maps, of any size.
        masks : sequence of path, array or None; or None, default=None
            True masks, whose outlines are drawn. Arrays hold 0 and 1, 0 and 255, or
            bool; in files anomalous pixels are above 0.
        titles : sequence of str or None, default=None
            Titles of the images.
        ax : Axes, array-like of Axes or None, default=None
            Where to draw, one for each image. None makes a figure.
        **plot_params : dict
            Passed on to `plot`.

        Returns
        -------
        AnomalyMapDisplay
            The display.

        Raises
        ------
        ValueError
            If the numbers of images, maps, masks or titles differ, or an image or a
            mask cannot be read.
        """
        X = check_images(X)
        for name, values in (
            ("anomaly_maps", anomaly_maps),
            ("masks", masks),
            ("titles", titles),
        ):
            if values is not None and len(values) != len(X):
                raise ValueError(
                    f"There are {len(X)} images, but {len(values)} {name}: expected "
                    "one for each image."
                )
        images = [_small_image(image) for image in X]
        if masks is not None:
            masks = [
                None if mask is None else numbered_mask(index, mask)
                for index, mask in enumerate(masks)
            ]
        display = cls(images, list(anomaly_maps), masks=masks, titles=titles)
        return display.plot(ax=ax, **plot_params)

    def plot(
        self,
        ax: Any = None,
        *,
        n_columns: int = 5,
        vmin: float | None = None,
        vmax: float | None = None,
        cmap: Any = "inferno",
        alpha: float = 0.55,
        colorbar: bool = True,
    ) -> AnomalyMapDisplay:
        """Draw.

        Parameters
        ----------
        ax : Axes, array-like of Axes or None, default=None
            Where to draw, one for each image. None makes a figure.
        n_columns : int, default=5
            Largest number of images in a row of a new figure.
        vmin, vmax : float or None, default=None
            Ends of the colour scale. None is the smallest and the largest value of all
            maps.
        cmap : str or Colormap, default="inferno"
            The colours.
        alpha : float, default=0.55
            Opacity of the maps, from 0 to 1.
        colorbar : bool, default=True
            Whether to draw a colour bar.

        Returns
        -------
        AnomalyMapDisplay
            The display.
        """
        axes = self._axes(ax, n_columns)
        if vmin is None:
            vmin = min(float(np.min(m)) for m in self.anomaly_maps)
        if vmax is None:
            vmax = max(float(np.max(m)) for m in self.anomaly_maps)
        for index, axis in enumerate(axes):
            height, width = self.images[index].shape[:2]
            extent = (0, width, height, 0)
            axis.imshow(self.images[index], extent=extent)
            drawn = axis.imshow(
                self.anomaly_maps[index],
                extent=extent,
                vmin=vmin,
                vmax=vmax,
                cmap=cmap,
                alpha=alpha,
                interpolation="bilinear",
            )
            mask = None if self.masks is None else self.masks[index]
            if mask is not None and np.any(mask):
                _outline(axis, mask, height, width)
                axis.set(xlim=(0, width), ylim=(height, 0))
            axis.set(xticks=[], yticks=[])
            if self.titles is not None:
                axis.set_title(self.titles[index], fontsize="small")
        self.axes_ = axes
        self.figure_ = axes[0].figure
        self.colorbar_ = None
        if colorbar:
            drawn.set_alpha(alpha)
            self.colorbar_ = self.figure_.colorbar(
                drawn, ax=list(axes), label="anomaly score", shrink=0.8
            )
        return self

    def _axes(self, ax: Any, n_columns: int) -> np.ndarray:
        """Return one Axes for each image: those given, or new ones."""
        n_images = len(self.images)
        if ax is not None:
            axes = np.atleast_1d(np.asarray(ax, dtype=object)).ravel()
            if len(axes) != n_images:
                raise ValueError(
                    f"ax: expected one Axes for each of the {n_images} images, got "
                    f"{len(axes)}."
                )
            return axes
        columns = min(n_images, n_columns)
        rows = -(-n_images // columns)
        heights = [image.shape[0] / image.shape[1] for image in self.images]
        titled = 0.3 if self.titles is not None else 0.0
        _, grid = pyplot().subplots(
            rows,
            columns,
            figsize=(2.4 * columns + 0.8, (2.4 * max(heights) + titled) * rows),
            squeeze=False,
            layout="constrained",
        )
        axes = grid.ravel()
        for unused in axes[n_images:]:
            unused.remove()
        return axes[:n_images]


def _outline(axis: Any, mask: np.ndarray, height: int, width: int) -> None:
    """Draw the outline of a mask over an image of this size."""
    rows, columns = mask.shape
    # A margin closes outlines at the border of the image.
    padded = np.pad(np.asarray(mask, dtype=float), 1)
    axis.contour(
        (np.arange(-1, columns + 1) + 0.5) * width / columns,
        (np.arange(-1, rows + 1) + 0.5) * height / rows,
        padded,
        levels=[0.5],
        colors="cyan",
        linewidths=1,
    )


def _small_image(image: Any) -> np.ndarray:
    try:
        opened = open_image(image)
    except ValueError as error:
        raise ValueError(f"{printable(image_name(image))}: {error}") from error
    opened.thumbnail((_LARGEST_SIDE, _LARGEST_SIDE))
    return np.asarray(opened)
