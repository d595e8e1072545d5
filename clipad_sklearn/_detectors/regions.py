"""`anomaly_regions`: where on an image the anomalies are, as a table."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .._validation import check_number, is_whole

_TYPES = [
    *((name, np.int64) for name in ("top", "left", "bottom", "right", "area")),
    *((name, np.float32) for name in ("peak", "mean")),
]
REGION_FIELDS = tuple(name for name, _ in _TYPES)


def anomaly_regions(
    anomaly_map: ArrayLike,
    offset: float = 0.5,
    *,
    ignore: Any = None,
    min_area: int = 1,
) -> np.ndarray:
    """List the connected regions of an anomaly map above a threshold.

    Parameters
    ----------
    anomaly_map : array-like of shape (height, width)
        As `anomaly_maps` returns it; higher is more anomalous.
    offset : float, default=0.5
        Pixels above it are anomalous, such as the `pixel_offset_` of a detector.
    ignore : array-like of shape (height, width), sequence of (x, y), or None, \
default=None
        What does not count: a mask of the map's size whose pixels are not zero there,
        or the corners of a polygon in pixels of the map, at least three. Where a serial
        number is printed, for example.
    min_area : int, default=1
        Regions of fewer pixels are left out.

    Returns
    -------
    ndarray of shape (n_regions,)
        One record for each region, the highest peak first: ``top``, ``left``,
        ``bottom`` and ``right``, its box in pixels, the last two exclusive; ``area``,
        its number of pixels; ``peak`` and ``mean``, its highest and mean score. Pixels
        that touch at a corner are connected. ``pandas.DataFrame`` takes it as it is.

    Raises
    ------
    ValueError
        If `anomaly_map` is not of two dimensions or holds NaN, or a parameter is out of
        range or of another shape.

    See Also
    --------
    WinCLIPDetector.anomaly_maps : Maps to take regions from.

    Examples
    --------
    >>> import numpy as np
    >>> from clipad_sklearn import anomaly_regions
    >>> anomaly_map = np.zeros((6, 8), np.float32)
    >>> anomaly_map[1:3, 2:5] = 0.75
    >>> anomaly_map[4, 7] = 1
    >>> regions = anomaly_regions(anomaly_map)
    >>> regions["area"].tolist(), regions["peak"].tolist()
    ([1, 6], [1.0, 0.75])
    >>> regions[["top", "left", "bottom", "right"]][1].item()
    (1, 2, 3, 5)
    >>> len(anomaly_regions(anomaly_map, ignore=[(6, 3), (9, 3), (9, 6), (6, 6)]))
    1
    """
    from scipy import ndimage

    scores = np.asarray(anomaly_map, dtype=np.float32)
    if scores.ndim != 2 or scores.size == 0 or np.isnan(scores).any():
        raise ValueError(
            f"anomaly_map of shape {scores.shape}: expected one map of shape (height, "
            "width) without NaN."
        )
    check_number("offset", offset)
    if not is_whole(min_area):
        raise ValueError(f"min_area={min_area!r}: expected an integer >= 1.")
    above = scores > offset
    if ignore is not None:
        above &= ~ignored_pixels(ignore, scores.shape)
    labels, count = ndimage.label(above, structure=np.ones((3, 3)))
    numbers = np.arange(1, count + 1)
    regions = np.zeros(count, dtype=_TYPES)
    for record, (rows, columns) in zip(
        regions, ndimage.find_objects(labels), strict=True
    ):
        record["top"], record["bottom"] = rows.start, rows.stop
        record["left"], record["right"] = columns.start, columns.stop
    if count:
        regions["area"] = np.bincount(labels.ravel(), minlength=count + 1)[1:]
        regions["peak"] = ndimage.maximum(scores, labels, numbers)
        regions["mean"] = ndimage.mean(scores, labels, numbers)
    regions = regions[regions["area"] >= min_area]
    return regions[np.argsort(-regions["peak"], kind="stable")]


def ignored_pixels(ignore: Any, size: tuple[int, ...]) -> np.ndarray:
    """Return which pixels a mask or polygon leaves out: (height, width), bool."""
    expected = (
        f"expected a mask of shape {tuple(size)} or the corners (x, y) of a polygon, "
        "at least three"
    )
    values = np.asarray(ignore)
    if values.shape == tuple(size):
        return values != 0
    if values.ndim != 2 or values.shape[1] != 2 or len(values) < 3:
        raise ValueError(f"ignore of shape {values.shape}: {expected}.")
    try:
        corners = values.astype(np.float64)
        finite = bool(np.isfinite(corners).all())
    except (OverflowError, TypeError, ValueError):
        finite = False
    if not finite:
        raise ValueError("ignore: expected finite numbers as corners of the polygon.")
    return _inside_polygon(corners, (int(size[0]), int(size[1])))


def _inside_polygon(corners: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return the pixels whose centre lies inside, by the even-odd rule."""
    y, x = (axis + 0.5 for axis in np.ogrid[: size[0], : size[1]])
    inside = np.zeros(size, dtype=bool)
    for (x1, y1), (x2, y2) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        if y1 == y2:
            continue
        crosses = (y1 > y) != (y2 > y)
        inside ^= crosses & (x < x1 + (y - y1) * (x2 - x1) / (y2 - y1))
    return inside
