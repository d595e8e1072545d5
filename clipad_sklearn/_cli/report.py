"""``clipad score --report``: one page to look at, with everything inside."""

from __future__ import annotations

import base64
import functools
import hashlib
import io
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np

from .._images import image_size, open_image
from .._progress import progress_bar
from .output import per_cent_at_most, writing

if TYPE_CHECKING:
    from PIL import Image

# Up to this many photos, thumbnails have this many pixels on the longer side: large
# enough to judge a photo of a small set, and some 40 MB at 10,000 photos.
_SIDES = ((120, 640), (400, 384), (1500, 192), (5000, 128), (float("inf"), 96))
MAP_SIDE = 28


def write_report(
    path: str,
    rows: Sequence[dict[str, Any]],
    *,
    threshold: float,
    uncalibrated: bool,
    settings: Any,
    versions: Any,
    anomaly_maps: Iterable[np.ndarray | None] | None = None,
    map_threshold: float = 0.5,
    title: str | None = None,
    folder: str = "",
    sentences: Sequence[str] = (),
    calibration_scores: np.ndarray | None = None,
    promise: dict[str, Any] | None = None,
    truths: dict[str, str] | None = None,
) -> None:
    """Write the page, in one go.

    `rows` are those of `make_rows`. `anomaly_maps` has one map of `MAP_SIDE` pixels
    square for each row without an error, in their order, and `map_threshold` is where
    a pixel counts as anomalous. `sentences` say where the
    threshold comes from, and `promise` is that of `Threshold`. `truths` says of paths
    what the photos really show.
    """
    side = next(side for most, side in _SIDES if len(rows) <= most)
    page_folder = os.path.dirname(os.path.abspath(path))
    scored = [row for row in rows if row["margin"] is not None]
    maps: list[str | None] = []
    scale = (0.0, 1.0)
    if anomaly_maps is not None:
        maps, scale = _encoded_maps(anomaly_maps)
    photos: list[dict[str, Any]] = []
    for row, (thumbnail, width, height) in zip(
        scored, _thumbnails(scored, side), strict=True
    ):
        photos.append(
            {
                "path": row["path"],
                "href": _href(row["path"], page_folder),
                "margin": row["margin"],
                "p_anomaly": row["p_anomaly"],
                "p_value": row["p_value"],
                "truth": (truths or {}).get(row["path"]),
                "error": "",
                "thumbnail": thumbnail,
                "width": width,
                "height": height,
                "map": maps[len(photos)] if maps else None,
                "tile": _shares(row),
            }
        )
    for row in rows[len(scored) :]:
        empty = dict.fromkeys(
            ("margin", "p_anomaly", "p_value", "thumbnail", "map", "tile")
        )
        names = {"path": row["path"], "href": _href(row["path"], page_folder)}
        photos.append(names | empty | {"error": row["error"]})
    data = {
        "photos": photos,
        "threshold": threshold,
        "uncalibrated": uncalibrated,
        "settings": settings,
        "versions": versions,
        "map_side": MAP_SIDE if maps else 0,
        "map_range": scale,
        "map_threshold": map_threshold,
        "map_level": (map_threshold - scale[0]) / (scale[1] - scale[0]),
        "title": title,
        "folder": folder,
        "date": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %z"),
        "sentences": list(sentences),
        "promise": _readable(promise or {}),
        "calibration_scores": (
            None if calibration_scores is None else np.sort(calibration_scores).tolist()
        ),
    }
    page = _page(data)
    with (
        writing(path) as temporary,
        # Line ends as they are, because the script is known by its hash.
        open(temporary, "w", encoding="utf-8", newline="\n") as file,
    ):
        file.write(page)


def _page(data: Any) -> str:
    template = Path(__file__).with_name("report.html").read_text(encoding="utf-8")
    script = template.rpartition("<script>")[2].partition("</script>")[0]
    # The page runs this script only, whatever a file name may hold.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    # As ASCII, and so that no text of it ends the element it stands in.
    text = json.dumps(data, default=str, allow_nan=False).replace("<", "\\u003c")
    return template.replace("{{hash}}", digest).replace("{{data}}", text)


def _thumbnails(
    rows: Sequence[dict[str, Any]], side: int
) -> Iterator[tuple[str | None, int, int]]:
    """Yield the thumbnail of each row, in order."""
    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
    try:
        with progress_bar(len(rows), "Thumbnails") as progress:
            for thumbnail in pool.map(functools.partial(_thumbnail, side=side), rows):
                yield thumbnail
                progress.update()
    finally:
        # After an interrupt nobody waits for a read that may never end.
        pool.shutdown(wait=False, cancel_futures=True)


def _thumbnail(row: dict[str, Any], side: int) -> tuple[str | None, int, int]:
    """Return a JPEG file as text, its width and its height."""

    def smaller(image: Image.Image) -> Image.Image:
        image.thumbnail((side, side))
        return image

    try:
        image = open_image(row["path"], smaller)
    except ValueError:  # gone or changed since it was scored
        return None, 1, 1
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=72, optimize=True)
    return base64.b64encode(buffer.getvalue()).decode(), image.width, image.height


def _readable(promise: dict[str, Any]) -> dict[str, Any]:
    """Add the bound as a text, which is never below what it is."""
    if "bound" in promise:
        return promise | {"text": per_cent_at_most(promise["bound"])}
    return promise


def _shares(row: dict[str, Any]) -> list[float] | None:
    """Return top, left, bottom and right of the tile that decided, as shares."""
    tile = row.get("tile")
    if not isinstance(tile, dict):
        return None
    try:
        height, width = image_size(row["path"])
    except ValueError:  # gone since it was scored
        return None
    return [
        tile["top"] / height,
        tile["left"] / width,
        tile["bottom"] / height,
        tile["right"] / width,
    ]


def _href(path: str, folder: str) -> str:
    """Return the address of a photo, relative to the page where it can be."""
    try:
        relative = os.path.relpath(path, folder)
    except ValueError:  # another drive
        return Path(path).absolute().as_uri()
    # The dot keeps names such as javascript:x from being anything but names.
    return "./" + quote(os.fsencode(relative.replace(os.sep, "/")))


def _encoded_maps(
    anomaly_maps: Iterable[np.ndarray | None],
) -> tuple[list[str | None], tuple[float, float]]:
    """Return maps of 256 levels as text, and what the first and the last mean.

    The scale is the same for all photos, so that they can be compared.
    """
    maps = list(anomaly_maps)
    there = [anomaly_map for anomaly_map in maps if anomaly_map is not None]
    if not there:  # all photos are gone meanwhile
        return [None] * len(maps), (0.0, 1.0)
    low, high = np.quantile(np.stack(there), [0.01, 0.999])
    high = max(high, low + 1e-12)

    def text(anomaly_map: np.ndarray | None) -> str | None:
        if anomaly_map is None:
            return None
        levels = np.rint(255 * np.clip((anomaly_map - low) / (high - low), 0, 1))
        return base64.b64encode(levels.astype(np.uint8).tobytes()).decode()

    texts = [text(anomaly_map) for anomaly_map in maps]
    return texts, (float(low), float(high))
