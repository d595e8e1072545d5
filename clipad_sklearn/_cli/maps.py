"""Files of anomaly maps and overlays, for ``clipad score --maps``."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from .._detectors.maps import MapDetector
from .._images import open_image
from .output import UsageError, as_usage_error, writing

# Colours from the smallest to the largest score, and their opacity.
_COLORS = np.array(
    [[0, 0, 4], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]]
)
_OPACITY = 0.55


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
    """Write a map and an overlay for each image, at its size.

    The overlays of one call share their colours: the smallest score of all images has
    the first, the largest the last.
    """
    if not paths:
        return
    targets = _targets(paths, folder)
    lowest, highest = np.inf, -np.inf
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
            _write_overlay(f"{target}.overlay.png", path, shade.clip(0, 1))


def _targets(paths: Sequence[str], folder: str) -> list[str]:
    """Where the files of each image go: the tree of the images, under `folder`."""
    absolute = [os.path.abspath(path) for path in paths]
    try:
        root = os.path.commonpath([os.path.dirname(path) for path in absolute])
    except ValueError as error:
        raise UsageError(f"--maps: {error}; score one drive at a time") from error
    return [os.path.join(folder, os.path.relpath(path, root)) for path in absolute]


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


def _write_overlay(path: str, image: str, shade: np.ndarray) -> None:
    from PIL import Image

    photo = np.asarray(open_image(image))
    steps = np.linspace(0, 1, 256)
    places = np.linspace(0, 1, len(_COLORS))
    table = np.stack(
        [np.interp(steps, places, channel) for channel in _COLORS.T], axis=1
    )
    colors = table.astype(np.float32)[np.rint(shade * 255).astype(np.uint8)]
    mixed = photo * np.float32(1 - _OPACITY) + colors * np.float32(_OPACITY)
    with writing(path) as temporary, open(temporary, "wb") as file:
        Image.fromarray(np.rint(mixed).astype(np.uint8)).save(file, "PNG")
