"""Files of anomaly maps and overlays, for ``clipad score --maps``."""

from __future__ import annotations

import hashlib
import io
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .._detectors.regions import REGION_FIELDS, anomaly_regions
from .._files import (
    MADE_HERE,
    OUTPUT_LIST,
    claim_outputs,
    error_words,
    is_plain_file,
    read_bytes,
)
from .._images import open_image
from .output import UsageError, as_usage_error, writing
from .table import REGION_COLUMNS, region_rows, write_csv

# Colours from the smallest to the largest score; the photo shows through, and less so
# the larger the score.
_COLORS = np.array(
    [[0, 0, 4], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]]
)
_LARGEST_OPACITY = 0.75
_CONTOUR = (0, 229, 255)
_STRIP = 256  # rows
# Bytes of a name, so that endings fit into the 255 that file systems allow.
_LONGEST_NAME = 230


def map_files(folder: str, paths: Sequence[str], map_format: str) -> list[str]:
    """Return what will be written into the folder."""
    return [
        os.path.join(parent, name)
        for parent, names in _written(folder, _targets(paths, folder), map_format)
        for name in (OUTPUT_LIST, *names)
    ]


def check_map_folder(folder: str, paths: Sequence[str], map_format: str) -> None:
    """Make the folder and note what will be there; say at once if that cannot be."""
    try:
        os.makedirs(folder, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise UsageError(f"--maps {folder}: no permission to write there")
        _claim(folder, _targets(paths, folder), map_format)
    except FileExistsError as error:
        reason = error.strerror or str(error)
        raise UsageError(f"--maps {folder}: {reason}") from error
    except OSError as error:
        raise UsageError(f"--maps {folder}: {error_words(error)}") from error


@dataclass
class Maps:
    """The maps that were written, each beside the place of its overlay."""

    folder: str
    map_format: str
    targets: dict[str, str] = field(default_factory=dict)  # by path, without ending
    lowest: float = np.inf
    highest: float = -np.inf


def write_maps(
    paths: Sequence[str],
    found: Iterable[tuple[int, np.ndarray | None, str]],
    folder: str,
    map_format: str,
) -> Maps:
    """Write a map for each image, at its size.

    `found` has position and map of each, or None where there is none.
    """
    targets = _targets(paths, folder)
    maps = Maps(folder, map_format)
    with as_usage_error():
        _claim(folder, targets, map_format)
        for index, anomaly_map, _ in found:
            if anomaly_map is not None:
                _write_map(f"{targets[index]}.map.{map_format}", anomaly_map)
                maps.targets[paths[index]] = targets[index]
                maps.lowest = min(maps.lowest, float(anomaly_map.min()))
                maps.highest = max(maps.highest, float(anomaly_map.max()))
    return maps


def write_overlays(
    maps: Maps, threshold: float
) -> tuple[list[tuple[str, str]], dict[str, list[dict[str, Any]]]]:
    """Write an overlay for each map, a legend, and the regions above a threshold.

    The overlays share their colours: the smallest score of all images has the first,
    the largest the last. A line goes around what is above the threshold, and
    ``regions.csv`` lists it. Returns paths and reasons of images that have no overlay,
    and the regions of each path.
    """
    failures: dict[str, str] = {}
    regions: dict[str, list[dict[str, Any]]] = {}
    with as_usage_error():
        for path, target in maps.targets.items():
            try:
                anomaly_map = _read_map(f"{target}.map.{maps.map_format}")
                spread = max(maps.highest - maps.lowest, 1e-12)
                shade = (anomaly_map - maps.lowest) / spread
                overlay = _overlay(path, shade.clip(0, 1), anomaly_map > threshold)
            except MemoryError:
                failures[path] = "its overlay needs more memory than there is"
            except ValueError as error:  # gone or changed since it was scored
                failures[path] = str(error)
            else:
                _write_png(f"{target}.overlay.png", overlay)
                regions[path] = [
                    dict(zip(REGION_FIELDS, region, strict=True))
                    for region in anomaly_regions(anomaly_map, threshold).tolist()
                ]
    if regions:
        legend = os.path.join(maps.folder, "legend.png")
        _write_legend(legend, maps.lowest, maps.highest, threshold)
        rows = [{"path": path, "regions": found} for path, found in regions.items()]
        listed = os.path.join(maps.folder, "regions.csv")
        write_csv(listed, region_rows(rows), REGION_COLUMNS)
    return list(failures.items()), regions


def _claim(folder: str, targets: Sequence[str], map_format: str) -> None:
    """Make the folders, and note in each what is about to be written there."""
    for parent, listed in _written(folder, targets, map_format):
        _check_no_link(folder, parent)
        os.makedirs(parent, exist_ok=True)
        for name in (OUTPUT_LIST, *listed):
            path = os.path.join(parent, name)
            if os.path.isdir(path):
                raise UsageError(f"--maps: {path} is a folder")
            if os.path.lexists(path) and not is_plain_file(path):
                raise UsageError(f"--maps: {path} is a link, a pipe or a device")
        claim_outputs(parent, listed)
        for name in listed:
            path = os.path.join(parent, name)
            if os.path.exists(path) and not _is_made_here(path):
                # In the place of one that was deleted.
                raise FileExistsError(f"{path} is there and was not written by clipad")


def _written(
    folder: str, targets: Sequence[str], map_format: str
) -> list[tuple[str, list[str]]]:
    """Return each folder and the names of what will be there."""
    names: dict[str, list[str]] = {folder: ["legend.png", "regions.csv"]}
    for target in targets:
        parent, name = os.path.split(target)
        written = [f"{name}.map.{map_format}", f"{name}.overlay.png"]
        names.setdefault(parent, []).extend(written)
    return list(names.items())


def _check_no_link(folder: str, parent: str) -> None:
    """Check that what lies below a folder is not somewhere else."""
    way = folder
    for part in Path(os.path.relpath(parent, folder)).parts:
        way = os.path.join(way, part)
        if os.path.islink(way):
            raise UsageError(f"--maps: {way} is a link to somewhere else")


def _is_made_here(path: str) -> bool:
    """Whether the beginning of a file is that of our own."""
    with open(path, "rb") as file:
        head = file.read(200)
    if path.endswith(".png"):
        return MADE_HERE.encode() in head
    if path.endswith(".npy"):
        return head.startswith(b"\x93NUMPY") and b"'<f4'" in head
    return ",".join(f'"{name}"' for name in REGION_COLUMNS).encode() in head


def _targets(paths: Sequence[str], folder: str) -> list[str]:
    """Where the files of each image go: the tree of the images, under `folder`.

    Without the ending of the image's name, where no other image has that name.
    """
    absolute = [os.path.abspath(path) for path in paths]
    try:
        root = os.path.commonpath([os.path.dirname(path) for path in absolute])
    except ValueError as error:
        raise UsageError(f"--maps: {error}; score one drive at a time") from error
    names = _shortest_names(absolute)
    return [os.path.join(folder, _short(os.path.relpath(name, root))) for name in names]


def _shortest_names(paths: list[str]) -> list[str]:
    """Leave out endings as long as names differ, also in capitals only."""
    names = [os.path.splitext(path)[0] for path in paths]
    while True:
        counts = Counter(name.casefold() for name in names)
        # "a.jpg" may be the whole name of one and, without ".png", that of another.
        longer = [
            path if counts[name.casefold()] > 1 else name
            for path, name in zip(paths, names, strict=True)
        ]
        if longer == names:
            return names
        names = longer


def _short(path: str) -> str:
    """Shorten the name of a file to which no ending could be added."""
    parent, name = os.path.split(path)
    encoded = os.fsencode(name)
    if len(encoded) > _LONGEST_NAME:
        digest = hashlib.sha256(encoded).hexdigest()[:12]
        short = encoded[: _LONGEST_NAME - 13].decode("utf-8", "ignore")
        name = f"{short}-{digest}"
    return os.path.join(parent, name)


def _write_map(path: str, anomaly_map: np.ndarray) -> None:
    from PIL import Image

    with writing(path, is_ours=True) as temporary, open(temporary, "wb") as file:
        if path.endswith(".npy"):
            np.save(file, anomaly_map)
        else:
            levels = np.rint(anomaly_map * np.float32(65535)).astype(np.uint16)
            _save(Image.fromarray(levels), file)


def _read_map(path: str) -> np.ndarray:
    from PIL import Image

    try:
        content = io.BytesIO(read_bytes(path))
        if path.endswith(".npy"):
            return np.load(content)
        # Written by this command, of an image that was opened: as large as that may be.
        with Image.open(content, formats=["PNG"]) as image:
            return np.asarray(image).astype(np.float32) / np.float32(65535)
    except Exception as error:  # of a damaged file, readers raise all kinds
        raise ValueError(f"{path} is gone or has changed") from error


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

    size = 2 * max(1, round(max(mask.shape) / 250)) + 1
    inside = mask.astype(np.uint8)
    for axis in (0, 1):
        ndimage.minimum_filter1d(
            inside, size, axis, output=inside, mode="constant", cval=1
        )
    return mask & (inside == 0)


def _overlay(image: str, shade: np.ndarray, mask: np.ndarray) -> np.ndarray:
    photo = open_image(image)
    if photo.size != shade.shape[::-1]:
        raise ValueError("it has changed since its map was made")
    result = np.array(photo)
    for top in range(0, len(shade), _STRIP):  # a large image needs no second copy
        rows = slice(top, top + _STRIP)
        opacity = _LARGEST_OPACITY * shade[rows, :, np.newaxis].astype(np.float32)
        mixed = result[rows] * (1 - opacity) + _colors(shade[rows]) * opacity
        result[rows] = np.rint(mixed)
    result[_contour(mask)] = _CONTOUR
    return result


def _write_png(path: str, pixels: np.ndarray) -> None:
    from PIL import Image

    with writing(path, is_ours=True) as temporary, open(temporary, "wb") as file:
        _save(Image.fromarray(pixels), file)


def _save(image: Any, file: Any) -> None:
    """Write a PNG that says whose it is, so that it is never taken for a photo."""
    from PIL.PngImagePlugin import PngInfo

    about = PngInfo()
    about.add_text("Software", MADE_HERE)
    # More compression takes several times as long, for little.
    image.save(file, "PNG", compress_level=1, pnginfo=about)


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
    with writing(path, is_ours=True) as temporary, open(temporary, "wb") as file:
        _save(legend, file)
