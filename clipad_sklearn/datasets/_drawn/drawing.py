"""Drawing helpers of the generated images.

Everything is drawn in a frame of 128 units (`Canvas.row`, `Canvas.column`) or in
centred coordinates from -1 to 1 (`Canvas.x`, `Canvas.y`), whatever the number of
pixels. Images are float32 of shape (size, size, 3) with values near 0..1. A shape is
a field of signed distances: negative inside, positive outside.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from scipy import fft, ndimage
from scipy.spatial import cKDTree

UNITS = 128
Array = np.ndarray
Random = np.random.Generator


class Canvas:
    """Coordinates and frequencies of a square image of `size` pixels."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.scale = size / UNITS
        axis = (np.arange(size, dtype=np.float32) + 0.5) / self.scale
        self.row, self.column = np.meshgrid(axis, axis, indexing="ij")
        self.x = self.column / (UNITS / 2) - 1
        self.y = self.row / (UNITS / 2) - 1
        # Cycles per unit, so that noise looks alike at every size.
        self._fy = (fft.fftfreq(size)[:, None] * self.scale).astype(np.float32)
        self._fx = (fft.rfftfreq(size)[None] * self.scale).astype(np.float32)
        self._log_frequency = self._log(self._fx, self._fy)

    @staticmethod
    def _log(fx: Array, fy: Array) -> Array:
        frequency = np.sqrt(fx**2 + fy**2)
        frequency[0, 0] = 1e9
        return np.log(frequency)

    def noise(
        self,
        rng: Random,
        beta: float = 2.0,
        *,
        stretch: float = 1.0,
        angle: float = 0.0,
        lowest: float = 0.0,
    ) -> Array:
        """Noise of mean 0 and deviation 1 whose power falls with frequency^-beta.

        `stretch` above 1 draws it out along `angle`; `lowest` drops the frequencies
        below that many cycles per unit.
        """
        if stretch == 1.0:
            logarithm = self._log_frequency
        else:
            c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
            along = (c * self._fx + s * self._fy) * np.float32(np.sqrt(stretch))
            across = (c * self._fy - s * self._fx) / np.float32(np.sqrt(stretch))
            logarithm = self._log(along, across)
        weight = np.exp(logarithm * np.float32(-beta / 2))
        if lowest > 0:
            weight = weight * (logarithm > np.log(lowest))
        shape = (self.size, self.size // 2 + 1)
        real = rng.standard_normal(shape, dtype=np.float32)
        imaginary = rng.standard_normal(shape, dtype=np.float32)
        field = fft.irfft2((real + 1j * imaginary) * weight, s=(self.size, self.size))
        field -= field.mean()
        return (field / (field.std() + 1e-6)).astype(np.float32)

    def cells(self, rng: Random, count: int) -> tuple[Array, Array, Array]:
        """Voronoi cells: distances to the two nearest seeds, number of the nearest."""
        seeds = rng.uniform(-8, UNITS + 8, (count, 2)).astype(np.float32)
        points = np.stack([self.row.ravel(), self.column.ravel()], axis=1)
        found = cKDTree(seeds).query(points, k=2)
        distance = np.asarray(found[0], np.float32).reshape(self.size, self.size, 2)
        index = np.asarray(found[1])[:, 0].reshape(self.size, self.size)
        return distance[..., 0], distance[..., 1], index

    def rotated(
        self, rng: Random, scale: float = 1.0, *, aligned: bool = False, warp: float = 0
    ) -> tuple[Array, Array]:
        """Turned, shifted and slightly warped coordinates for a pattern."""
        angle = small_turn(rng) if aligned else rng.uniform(0, 2 * np.pi)
        c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
        u = (c * self.x + s * self.y) * np.float32(scale) + np.float32(
            rng.uniform(-3, 3)
        )
        v = (c * self.y - s * self.x) * np.float32(scale) + np.float32(
            rng.uniform(-3, 3)
        )
        if warp:
            u = u + np.float32(warp) * self.noise(rng, 3.5)
            v = v + np.float32(warp) * self.noise(rng, 3.5)
        return u, v

    def frame(
        self, rng: Random, smallest: float, largest: float
    ) -> tuple[Array, Array]:
        """Coordinates of an object that fills about -1..1 of its own frame."""
        angle = small_turn(rng, free=0.4)
        size = rng.uniform(smallest, largest)
        room = max(0.0, 1 - size) * 0.7
        shift_x, shift_y = rng.uniform(-room, room, 2)
        x, y = self.x - np.float32(shift_x), self.y - np.float32(shift_y)
        c, s = np.float32(np.cos(angle) / size), np.float32(np.sin(angle) / size)
        return c * x + s * y, c * y - s * x

    def blur(self, image: Array, width: float) -> Array:
        """Gaussian blur; `width` is the standard deviation in units."""
        sigma = width * self.scale
        if image.ndim == 3:
            return ndimage.gaussian_filter(image, (sigma, sigma, 0), truncate=3.0)
        return ndimage.gaussian_filter(image, sigma, truncate=3.0)

    def flat(self, color: Array | float) -> Array:
        """An image of one colour."""
        return np.ones((self.size, self.size, 3), np.float32) * np.float32(color)

    def warp(self, image: Array, rows: Array, columns: Array) -> Array:
        """Move the content by a field of offsets in units."""
        top = (self.row + rows) * self.scale - 0.5
        left = (self.column + columns) * self.scale - 0.5
        channels = [
            ndimage.map_coordinates(image[..., k], [top, left], order=1, mode="nearest")
            for k in range(3)
        ]
        return np.stack(channels, axis=-1)

    def stroke(self, points: Array, width: float, softness: float = 1.0) -> Array:
        """Coverage (0..1) of a polyline given as (row, column) points in units."""
        index = _dense(points * self.scale).astype(np.int64)
        inside = ((index >= 0) & (index < self.size)).all(axis=1)
        index = index[inside]
        coverage = np.zeros((self.size, self.size), np.float32)
        if not len(index):
            return coverage
        margin = int((width / 2 + softness) * self.scale + 3)
        top, left = np.maximum(index.min(axis=0) - margin, 0)
        bottom, right = index.max(axis=0) + margin
        empty = np.ones((self.size, self.size), bool)
        empty[index[:, 0], index[:, 1]] = False
        part = slice(top, bottom + 1), slice(left, right + 1)
        distance = ndimage.distance_transform_edt(empty[part]) / self.scale
        coverage[part] = step(width / 2 - distance, softness)
        return coverage

    def blob(self, rng: Random, center: Array, radius: float, rough: float) -> Array:
        """Depth (positive inside, in units) of an irregular round patch."""
        row, column = (
            self.row - np.float32(center[0]),
            self.column - np.float32(center[1]),
        )
        angle = np.arctan2(row, column)
        outline = np.ones_like(angle)
        for k in range(2, 6):
            swing = np.float32(rough / k * rng.normal())
            outline += swing * np.cos(k * angle + np.float32(rng.uniform(0, 2 * np.pi)))
        aspect, turn = rng.uniform(0.5, 1), rng.uniform(0, np.pi)
        across = np.float32(np.cos(turn)) * column + np.float32(np.sin(turn)) * row
        squeeze = np.float32(1 / aspect**2 - 1)
        distance = np.sqrt(row**2 + column**2 + squeeze * across**2)
        return np.float32(radius) * np.maximum(outline, 0.3) - distance

    def disk(self, center: Array, radius: float) -> Array:
        """Depth (positive inside, in units) of a disk."""
        row, column = (
            self.row - np.float32(center[0]),
            self.column - np.float32(center[1]),
        )
        return np.float32(radius) - np.sqrt(row**2 + column**2)


@lru_cache(maxsize=4)
def canvas_of(size: int) -> Canvas:
    return Canvas(size)


def _dense(points: Array) -> Array:
    """Points every half pixel along a polyline."""
    steps = np.sqrt((np.diff(points, axis=0) ** 2).sum(axis=1))
    length = np.concatenate([[0.0], np.cumsum(steps)])
    at = np.linspace(0, length[-1], max(2, int(length[-1] * 2)))
    return np.stack([np.interp(at, length, points[:, k]) for k in range(2)], axis=1)


def wander(
    rng: Random, center: Array, length: float, bend: float, count: int = 40
) -> Array:
    """A curved line through `center`: (count, 2) points in units."""
    heading = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0, bend, count))
    path = np.cumsum(np.stack([np.sin(heading), np.cos(heading)], axis=1), axis=0)
    return (path - path[count // 2]) * (length / count) + center


def small_turn(rng: Random, free: float = 0.3) -> float:
    """An angle: mostly upright or across, sometimes free."""
    upright = 0.65 * (1 - free)
    kinds = [0.0, np.pi / 2, rng.uniform(0, 2 * np.pi)]
    angle = kinds[rng.choice(3, p=[upright, 1 - free - upright, free])]
    return float(angle + rng.normal(0, 0.03))


def step(distance: Array, softness: float) -> Array:
    """0 below, 1 above zero, with a linear edge of width `softness`."""
    edge = distance * np.float32(1 / softness) + np.float32(0.5)
    return np.clip(edge, 0, 1, dtype=np.float32)


def mix(below: Array, above: Array | float, share: Array) -> Array:
    """`above` over `below`, with the 2-D coverage `share`."""
    return below + (above - below) * np.clip(share, 0, 1)[..., None]


# Colours


def hsv(hue: float, saturation: float, value: float) -> Array:
    """One RGB colour."""
    sector, part = int(hue * 6) % 6, hue * 6 - int(hue * 6)
    p = value * (1 - saturation)
    q = value * (1 - part * saturation)
    t = value * (1 - (1 - part) * saturation)
    rgb = [(value, t, p), (q, value, p), (p, value, t)]
    rgb += [(p, q, value), (t, p, value), (value, p, q)]
    return np.array(rgb[sector], np.float32)


def color(rng: Random, saturation: float = 0.9) -> Array:
    """Any colour; often a dull one."""
    return hsv(rng.random(), rng.random() ** 1.2 * saturation, rng.uniform(0.12, 0.98))


def two_colors(rng: Random, apart: float = 0.15) -> tuple[Array, Array]:
    """Two colours that differ visibly."""
    first = second = color(rng)
    for _ in range(6):
        second = color(rng)
        if np.abs(first - second).mean() > apart:
            break
    return first, second


def metal(rng: Random) -> Array:
    """Steel, brass or copper."""
    if rng.random() < 0.7:
        return hsv(rng.uniform(0.5, 0.68), rng.uniform(0, 0.12), rng.uniform(0.4, 0.9))
    return hsv(rng.uniform(0.05, 0.14), rng.uniform(0.3, 0.65), rng.uniform(0.5, 0.85))


_HUES = (
    (0.03, "red"),
    (0.105, "orange"),
    (0.19, "yellow"),
    (0.44, "green"),
    (0.53, "cyan"),
    (0.71, "blue"),
    (0.82, "purple"),
    (0.95, "pink"),
    (1.01, "red"),
)
COLORS = (
    "red", "orange", "brown", "yellow", "green", "cyan", "blue", "purple", "pink",
    "white", "gray", "black",
)  # fmt: skip


def color_name(rgb: Sequence[float]) -> str:
    """Name of a colour, or "" where people would not agree on one."""
    high, low = max(rgb), min(rgb)
    spread = high - low
    if spread < 0.06 or spread < 0.13 * high:
        if high < 0.2:
            return "black"
        if low > 0.82:
            return "white"
        return "gray" if 0.32 < high < 0.68 else ""
    if high < 0.18 or spread < 0.3 * high:
        return ""
    red, green, blue = rgb
    if high == red:
        hue = ((green - blue) / spread / 6) % 1
    elif high == green:
        hue = ((blue - red) / spread + 2) / 6
    else:
        hue = ((red - green) / spread + 4) / 6
    name = next(name for limit, name in _HUES if hue < limit)
    return "brown" if name == "orange" and high < 0.6 else name


# Shapes (signed distances in the object's own frame)


def circle(x: Array, y: Array, radius: float) -> Array:
    return np.sqrt(x * x + y * y) - np.float32(radius)


def ellipse(x: Array, y: Array, width: float, height: float) -> Array:
    stretched = np.sqrt((x / np.float32(width)) ** 2 + (y / np.float32(height)) ** 2)
    return (stretched - 1) * np.float32(min(width, height))


def box(x: Array, y: Array, width: float, height: float, corner: float = 0.0) -> Array:
    across = np.abs(x) - np.float32(width - corner)
    along = np.abs(y) - np.float32(height - corner)
    outside = np.sqrt(np.maximum(across, 0) ** 2 + np.maximum(along, 0) ** 2)
    return outside + np.minimum(np.maximum(across, along), 0) - np.float32(corner)


def polygon(x: Array, y: Array, radius: float, corners: int) -> Array:
    sector = 2 * np.pi / corners
    angle = (np.arctan2(y, x) + 10 * np.pi) % np.float32(sector) - np.float32(
        sector / 2
    )
    return np.sqrt(x * x + y * y) * np.cos(angle) - np.float32(radius)


def segment(x: Array, y: Array, start: Sequence[float], end: Sequence[float]) -> Array:
    """Distance to a line segment."""
    dx, dy = end[0] - start[0], end[1] - start[1]
    along = ((x - start[0]) * dx + (y - start[1]) * dy) / (dx * dx + dy * dy + 1e-9)
    along = np.clip(along, 0, 1)
    return np.sqrt((x - start[0] - along * dx) ** 2 + (y - start[1] - along * dy) ** 2)


def ring(count: int, radius: float, turn: float = 0.0) -> list[tuple[float, float]]:
    """Centres evenly spaced on a circle."""
    angles = turn + 2 * np.pi * np.arange(count) / count
    return [(float(radius * np.cos(a)), float(radius * np.sin(a))) for a in angles]


def lattice(
    columns: int, rows: int, width: float, height: float
) -> list[tuple[float, float]]:
    """Centres on a regular grid from -width..width and -height..height."""
    across = np.linspace(-width, width, columns) if columns > 1 else [0.0]
    along = np.linspace(-height, height, rows) if rows > 1 else [0.0]
    return [(float(x), float(y)) for y in along for x in across]
