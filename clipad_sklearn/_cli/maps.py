"""Files of anomaly maps and overlays, for ``clipad score --maps``."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence

import numpy as np

from .._detectors.maps import MapDetector
from .._images import open_image
from .output import UsageError, as_usage_error, writing

# Colours from the smallest to the largest score; the photo shows through, and less so
# the larger the score.
_COLORS = np.array(
    [[0, 0, 4], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]]
)
_LARGEST_OPACITY = 0.75
_CONTOUR = (0, 229, 255)


def check_map_folder(folder: str) -> None:
    """Make the folder; say at once if it cannot be."""
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--maps {folder}: {error.strerror}") from error
    if not os.access(folder, os.W_OK):
        raise UsageError(f"--maps {folder}: no permission to write there")


def write_maps(
    detector: MapDetector, paths: Sequence[str], folder: str, map_format: str
) -> None:
    """Write a map and an overlay for each image, at its size, and a legend.

    The overlays of one call share their colours: the smallest score of all images has
    the first, the largest the last. A line goes around what is above the threshold of
    the detector's maps.
    """
    if not paths:
        return
    targets = _targets(paths, folder)
    lowest, highest = np.inf, -np.inf
    threshold = float(detector.pixel_offset_)
    with as_usage_error():
        maps = detector.iter_anomaly_maps(paths)
        for target, anomaly_map in zip(targets, maps, strict=True):
            os.makedirs(os.path.dirname(target), exist_ok=True)
            _write_map(f"{target}.map.{map_format}", anomaly_map)
            lowest = min(lowest, float(anomaly_map.min()))
            highest = max(highest, float(anomaly_map.max()))
        for target, path in zip(targets, paths, strict=True):
            anomaly_map = _read_map(f"{target}.map.{map_format}")
            shade = (anomaly_map - lowest) / max(highest - lowest, 1e-12)
            mask = anomaly_map > threshold
            _write_overlay(f"{target}.overlay.png", path, shade.clip(0, 1), mask)
    _write_legend(os.path.join(folder, "legend.png"), lowest, highest, threshold)


def _targets(paths: Sequence[str], folder: str) -> list[str]:
    """Where the files of each image go: the tree of the images, under `folder`.

    Without the ending of the image's name, where no other image has the same name.
    """
    absolute = [os.path.abspath(path) for path in paths]
    try:
        root = os.path.commonpath([os.path.dirname(path) for path in absolute])
    except ValueError as error:
        raise UsageError(f"--maps: {error}; score one drive at a time") from error
    stems = [os.path.splitext(path)[0] for path in absolute]
    counts = Counter(os.path.normcase(stem) for stem in stems)
    return [
        os.path.join(
            folder,
            os.path.relpath(
                stem if counts[os.path.normcase(stem)] == 1 else path, root
            ),
        )
        for path, stem in zip(absolute, stems, strict=True)
    ]


def _write_map(path: str, anomaly_map: np.ndarray) -> None:
    from PIL import Image

    with writing(path) as temporary, open(temporary, "wb") as file:
        if path.endswith(".npy"):
            np.save(file, anomaly_map)
        else:
            levels = np.rint(anomaly_map * np.float32(65535)).astype(np.uint16)
            Image.fromarray(levels).save(file, "PNG")


def _read_map(path: str) -> np.ndarray:
    from PIL import Image

    if path.endswith(".npy"):
        return np.load(path)
    # Written by this command, of an image that was opened: as large as that may be.
    with open(path, "rb") as file, Image.open(file) as image:
        return np.asarray(image).astype(np.float32) / np.float32(65535)


def _colors(shade: np.ndarray) -> np.ndarray:
    """Return the colours of scores from 0 to 1."""
    steps = np.linspace(0, 1, 256)
    places = np.linspace(0, 1, len(_COLORS))
    table = np.stack(
        [np.interp(steps, places, channel) for channel in _COLORS.T], axis=1
    )
    return table.astype(np.float32)[np.rint(shade * 255).astype(np.uint8)]


def _contour(mask: np.ndarray) -> np.ndarray:
    """Return the border of a mask, thicker in larger images, within it."""
    from scipy import ndimage

    width = max(1, round(max(mask.shape) / 250))
    inside = ndimage.binary_erosion(
        mask, np.ones((3, 3), dtype=bool), width, border_value=1
    )
    return mask & ~inside


def _write_overlay(path: str, image: str, shade: np.ndarray, mask: np.ndarray) -> None:
    from PIL import Image

    photo = np.asarray(open_image(image))
    opacity = (_LARGEST_OPACITY * shade.astype(np.float32))[..., np.newaxis]
    mixed = photo * (1 - opacity) + _colors(shade) * opacity
    mixed[_contour(mask)] = _CONTOUR
    with writing(path) as temporary, open(temporary, "wb") as file:
        Image.fromarray(np.rint(mixed).astype(np.uint8)).save(file, "PNG")


def _write_legend(path: str, lowest: float, highest: float, threshold: float) -> None:
    from PIL import Image, ImageDraw

    width, left = 420, 30
    legend = Image.new("RGB", (width + 2 * left, 100), "white")
    bar = np.repeat(_colors(np.linspace(0, 1, width))[np.newaxis], 24, axis=0)
    legend.paste(Image.fromarray(np.rint(bar).astype(np.uint8)), (left, 26))
    draw = ImageDraw.Draw(legend)
    draw.text((left, 6), "anomaly score of a pixel, the same on all overlays", "black")
    draw.text((left, 54), f"{lowest:.3f}", "black")
    draw.text((left + width - 32, 54), f"{highest:.3f}", "black")
    draw.rectangle((left, 78, left + 12, 90), outline=_CONTOUR, width=3)
    where = (
        "all of it" if lowest > threshold else "none" if highest <= threshold else ""
    )
    text = f"line: around what is above {threshold:.3f}"
    draw.text((left + 20, 77), text + (f" (here {where})" if where else ""), "black")
    with writing(path) as temporary, open(temporary, "wb") as file:
        legend.save(file, "PNG")
