"""Families of defects: one function per family, each spoils a good image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from .drawing import (
    UNITS,
    Array,
    Canvas,
    Random,
    box,
    color,
    hsv,
    mix,
    step,
    wander,
)
from .textures import TEXTURES


@dataclass(frozen=True)
class Good:
    """A good image, where the object is (0..1), and what is behind it."""

    image: Array
    mask: Array
    background: Array

    @property
    def fills_image(self) -> bool:
        return bool(self.mask.min() > 0.5)


Spoil = Callable[[Canvas, Random, Good, float], Array]
DEFECTS: dict[str, Spoil | None] = {}
ADJECTIVES: dict[str, tuple[str, ...]] = {}
TROUBLES: dict[str, tuple[str, ...]] = {}


def defect(
    name: str, *, adjectives: tuple[str, ...], nouns: tuple[str, ...]
) -> Callable[[Spoil], Spoil]:
    """Register a family of defects and the words that captions use for it."""

    def register(spoil: Spoil) -> Spoil:
        DEFECTS[name], ADJECTIVES[name], TROUBLES[name] = spoil, adjectives, nouns
        return spoil

    return register


def _structural(name: str, adjectives: tuple[str, ...], nouns: tuple[str, ...]) -> None:
    """Register a defect that the object's own painter draws (see `Change`)."""
    DEFECTS[name], ADJECTIVES[name], TROUBLES[name] = None, adjectives, nouns


# Where, how large, which colour


def _place(rng: Random, mask: Array) -> Array:
    """A random point of the object: (row, column) in units."""
    inside = np.flatnonzero(mask > 0.5)
    if len(inside) < 20:
        return rng.uniform(20, UNITS - 20, 2)
    index = np.unravel_index(inside[rng.integers(len(inside))], mask.shape)
    return np.array(index) * (UNITS / mask.shape[0])


def _edge_place(rng: Random, good: Good) -> Array:
    """A random point of the object's outline, or of the image's border."""
    if not good.fills_image:
        inside = good.mask > 0.5
        outline = inside & ~ndimage.binary_erosion(inside)
        if outline.sum() > 30:
            return _place(rng, outline)
    side, along = rng.choice([0, UNITS]), rng.uniform(0, UNITS)
    return np.array([side, along] if rng.random() < 0.5 else [along, side], float)


def _extent(rng: Random, severity: float) -> float:
    """A radius in units."""
    return 3 + rng.uniform(3, 22) * (0.35 + severity)


def _contrast(rng: Random, good: Good, center: Array, severity: float) -> Array:
    """A colour that stands out from the one at `center`."""
    scale = good.image.shape[0] / UNITS
    row, column = np.clip((center * scale).astype(int), 2, good.image.shape[0] - 3)
    local = good.image[row - 2 : row + 3, column - 2 : column + 3].mean(axis=(0, 1))
    apart = 0.2 + 0.25 * severity
    for _ in range(6):
        kind = rng.random()
        if kind < 0.35:
            tone = local * np.float32(rng.uniform(0, 0.45))
        elif kind < 0.65:
            tone = 1 - (1 - local) * np.float32(rng.uniform(0, 0.45))
        else:
            tone = color(rng)
        if np.abs(tone - local).max() > apart:
            break
    return tone.astype(np.float32)


def _strength(rng: Random, severity: float) -> np.float32:
    return np.float32(np.clip(rng.uniform(0.3, 0.65) + 0.6 * severity, 0, 1))


# The families


@defect("scratch", adjectives=("scratched",), nouns=("scratch", "scratches"))
def scratch(canvas: Canvas, rng: Random, good: Good, severity: float) -> Array:
    center, image = _place(rng, good.mask), good.image
    tone = _contrast(rng, good, center, severity)
    for _ in range(int(rng.integers(1, 2 + int(4 * severity)))):
        start = center + rng.normal(0, 5, 2)
        path = wander(rng, start, rng.uniform(15, 40 + 70 * severity), 0.03)
        share = canvas.stroke(path, rng.uniform(0.7, 1.2 + 1.6 * severity))
        image = mix(image, tone, share * _strength(rng, severity))
    return image


@defect("crack", adjectives=("cracked", "fractured"), nouns=("crack", "cracks"))
def crack(canvas: Canvas, rng: Random, good: Good, severity: float) -> Array:
    center = _place(rng, good.mask)
    path = wander(rng, center, rng.uniform(20, 40 + 70 * severity), 0.35)
    share = canvas.stroke(path, rng.uniform(0.8, 1.4 + 1.8 * severity))
    for _ in range(int(rng.integers(0, 4))):
        branch = wander(rng, path[rng.integers(len(path))], rng.uniform(10, 40), 0.4)
        share = np.maximum(share, canvas.stroke(branch, 1))
    tone = good.image.mean(axis=(0, 1)) * np.float32(rng.uniform(0, 0.35))
    if rng.random() < 0.2:
        tone = np.ones(3, np.float32)
    return mix(good.image, tone, share * _strength(rng, severity))


@defect("hole", adjectives=("punctured", "pierced"), nouns=("hole", "holes"))
def hole(canvas: Canvas, rng: Random, good: Good, severity: float) -> Array:
    center = _place(rng, good.mask)
    depth = canvas.blob(rng, center, _extent(rng, severity) * 0.6, 0.2)
    rim = step(depth + 2, 2) - step(depth, 2)
    image = mix(good.image, float(rng.random() < 0.5), rim * rng.uniform(0, 0.5))
    below = canvas.flat(rng.uniform(0, 0.15))
    if rng.random() < 0.4 and not good.fills_image:
        below = good.background
    return mix(image, below, step(depth, 1.5) * (0.5 + 0.5 * _strength(rng, severity)))


@defect("stain", adjectives=("stained", "dirty", "soiled"), nouns=("stain", "spot"))
def stain(canvas: Canvas, rng: Random, good: Good, severity: float) -> Array:
    center = _place(rng, good.mask)
    depth = canvas.blob(rng, center, _extent(rng, severity) * 1.3, 0.5)
    share = step(depth + 4 * canvas.noise(rng, 2.5), rng.uniform(1.5, 12))
    ink = hsv(rng.random(), rng.uniform(0, 0.9), rng.uniform(0.2, 0.9))
    return good.image * (1 - (share * _strength(rng, severity))[..., None] * (1 - ink))


@defect(
    "paint spot",
    adjectives=("painted over", "spotted"),
    nouns=("paint spot", "color stain"),
)
def paint_spot(canvas: Canvas, rng: Random, good: Good, severity: float) -> Array:
    image, center = good.image, _place(rng, good.mask)
    ink = hsv(rng.random(), rng.uniform(0.3, 1), rng.uniform(0.3, 1))
    if rng.random() < 0.3:
        ink = np.full(3, rng.choice([0.05, 0.95]), np.float32)
    for _ in range(int(rng.integers(1, 3 + int(3 * severity)))):
        spot = center + rng.normal(0, 10, 2)
        depth = canvas.blob(rng, spot, _extent(rng, severity) * 0.6, 0.3)
        share = step(depth, rng.uniform(1, 4)) * (0.4 + 0.6 * _strength(rng, severity))
        image = mix(image, ink * (0.8 + 0.2 * image), share)
    return image


@defect("broken edge", adjectives=("broken", "chipped"), nouns=("broken edge", "chip"))
def broken_edge(canvas: Canvas, rng: Random, good: Good, severity: float) -> Array:
    center = _edge_place(rng, good)
    depth = canvas.blob(rng, center, _extent(rng, severity) * 1.1, 0.6)
    share = step(depth + 2 * canvas.noise(rng, 2), 1.2)
    if good.fills_image:
        dark = rng.random() < 0.6
        return mix(
            good.image, rng.uniform(0, 0.2) if dark else rng.uniform(0.8, 1), share
        )
    return mix(good.image, good.background, share)


@defect("bite", adjectives=("bitten", "nibbled"), nouns=("bite", "bite mark"))
def bite(canvas: Canvas, rng: Random, good: Good, severity: float) -> Array:
    center, image = _edge_place(rng, good), good.image
    radius = 6 + rng.uniform(6, 22) * (0.3 + severity)
    depth = canvas.disk(center, radius)
    for _ in range(int(rng.integers(0, 3))):
        angle = rng.uniform(0, 2 * np.pi)
        beside = center + radius * 0.7 * np.array([np.sin(angle), np.cos(angle)])
        depth = np.maximum(depth, canvas.disk(beside, radius * rng.uniform(0.4, 0.8)))
    below = canvas.flat(rng.uniform(0, 0.2)) if good.fills_image else good.background
    inner = good.mask * step(depth + 3, 1.5) * np.float32(rng.uniform(0, 0.8))
    return mix(mix(image, image * 0.5 + 0.4, inner), below, step(depth, 1.5))


@defect("cut", adjectives=("cut", "torn", "slit"), nouns=("cut", "tear"))
def cut(canvas: Canvas, rng: Random, good: Good, severity: float) -> Array:
    center = _place(rng, good.mask)
    path = wander(rng, center, rng.uniform(14, 28 + 40 * severity), 0.02, 12)
    rim = canvas.stroke(path + 1.5, 1.2) * rng.uniform(0.1, 0.6)
    share = canvas.stroke(path, rng.uniform(1.7, 2.5 + 3 * severity))
    dark = rng.uniform(0, 0.15)
    return mix(
        mix(good.image, 0.95, rim), dark, share * (0.4 + 0.6 * _strength(rng, severity))
    )


@defect(
    "contamination",
    adjectives=("contaminated", "dusty"),
    nouns=("contamination", "particles", "dust"),
)
def contamination(canvas: Canvas, rng: Random, good: Good, severity: float) -> Array:
    center, spread = _place(rng, good.mask), _extent(rng, severity) * 1.2
    depth = np.full_like(good.mask, -9)
    for _ in range(int(rng.integers(2, 7 + int(16 * severity)))):
        spot = center + rng.normal(0, spread * 0.7, 2)
        depth = np.maximum(
            depth, canvas.disk(spot, rng.uniform(0.8, 1.4 + 2.5 * severity))
        )
    tone = _contrast(rng, good, center, severity)
    return mix(good.image, tone, step(depth, 1) * _strength(rng, severity))


@defect(
    "discoloration",
    adjectives=("discolored", "discoloured", "faded"),
    nouns=("discoloration", "color change"),
)
def discoloration(canvas: Canvas, rng: Random, good: Good, severity: float) -> Array:
    center = _place(rng, good.mask)
    depth = canvas.blob(rng, center, _extent(rng, severity), 0.25)
    share = step(depth, rng.uniform(1, 6)) * _strength(rng, severity)
    tint = hsv(rng.random(), rng.uniform(0.4, 1), rng.uniform(0.6, 1))
    changed = good.image[..., rng.permutation(3)] * tint
    if rng.random() < 0.3:
        changed = good.image * 0.3 + 0.65
    return mix(good.image, changed, share * good.mask)


@defect("misprint", adjectives=("misprinted",), nouns=("misprint", "wrong print"))
def misprint(canvas: Canvas, rng: Random, good: Good, severity: float) -> Array:
    center = _place(rng, good.mask)
    pixel = max(1, round((1.2 + 2.0 * severity * rng.random()) * canvas.scale))
    share = np.zeros_like(good.mask)
    top, left = (center * canvas.scale).astype(int)
    top = min(max(top, 0), canvas.size - 6 * pixel)
    for letter in range(int(rng.integers(1, 6))):
        glyph = (rng.random((5, 3)) < 0.55).astype(np.float32)
        glyph = glyph.repeat(pixel, axis=0).repeat(pixel, axis=1)
        start = left + letter * 4 * pixel
        if start + 3 * pixel > canvas.size:
            break
        share[top : top + 5 * pixel, start : start + 3 * pixel] = glyph
    tone = _contrast(rng, good, center, severity)
    return mix(good.image, tone, canvas.blur(share, 0.4) * _strength(rng, severity))


@defect("rust", adjectives=("rusty", "corroded"), nouns=("rust", "corrosion"))
def rust(canvas: Canvas, rng: Random, good: Good, severity: float) -> Array:
    center = _place(rng, good.mask)
    depth = canvas.blob(rng, center, _extent(rng, severity) * 1.3, 0.5)
    grain = np.clip(0.7 + 0.4 * canvas.noise(rng, 1), 0, 1)
    share = step(depth + 5 * canvas.noise(rng, 1.5), 3) * grain * good.mask
    tone = hsv(rng.uniform(0.02, 0.1), rng.uniform(0.5, 0.95), rng.uniform(0.25, 0.7))
    iron = tone * (1 + 0.2 * canvas.noise(rng, 0.8))[..., None]
    return mix(good.image, iron, share * _strength(rng, severity))


@defect(
    "mismatch", adjectives=("mismatched", "misaligned"), nouns=("mismatch", "patch")
)
def mismatch(canvas: Canvas, rng: Random, good: Good, severity: float) -> Array:
    center = _place(rng, good.mask)
    shift = np.round(rng.uniform(-50, 50, 2) * canvas.scale).astype(int)
    other = np.roll(good.image, shift, axis=(0, 1))
    if rng.random() < 0.5:
        other = np.rot90(other, int(rng.integers(1, 4)))
    other = other * np.float32(rng.uniform(0.8, 1.2))
    height, width = _extent(rng, severity) * rng.uniform(0.4, 1, 2) + 2
    column, row = canvas.column - center[1], canvas.row - center[0]
    if rng.random() < 0.6:
        share = step(-box(column, row, width, height), 1.5)
    else:
        depth = canvas.blob(rng, center, max(width, height), 0.4)
        share = step(depth, rng.uniform(1, 5))
    return mix(good.image, other, share)


@defect(
    "foreign material", adjectives=("polluted",), nouns=("foreign material", "debris")
)
def foreign(canvas: Canvas, rng: Random, good: Good, severity: float) -> Array:
    center = _place(rng, good.mask)
    patch = step(canvas.blob(rng, center, _extent(rng, severity) * 1.3, 0.4), 2)
    first = ("plain surface", "paper", "felt", "wood", "mottled surface", "stripes")
    names = (*first, "brushed metal", "fabric", "grid", "concrete")
    stuff = TEXTURES[names[rng.integers(len(names))]](canvas, rng)
    return mix(good.image, stuff, patch * _strength(rng, severity))


@defect("melted spot", adjectives=("melted", "blurred"), nouns=("melted spot", "glue"))
def melted(canvas: Canvas, rng: Random, good: Good, severity: float) -> Array:
    center = _place(rng, good.mask)
    share = step(canvas.blob(rng, center, _extent(rng, severity) * 1.3, 0.3), 4)
    soft = canvas.blur(good.image, 2 + 3 * severity)
    glow = np.float32(1 + rng.choice([-1, 1]) * rng.uniform(0.05, 0.35))
    return mix(good.image, soft * glow, share)


@defect("bubbles", adjectives=("bubbly", "blistered"), nouns=("bubble", "bubbles"))
def bubbles(canvas: Canvas, rng: Random, good: Good, severity: float) -> Array:
    center, image = _place(rng, good.mask), good.image
    for _ in range(int(rng.integers(1, 3 + int(5 * severity)))):
        spot, radius = center + rng.normal(0, 8, 2), rng.uniform(2.5, 4 + 7 * severity)
        rim = np.exp(-((canvas.disk(spot, radius) / 1.2) ** 2))
        glint = canvas.disk(spot - 0.4 * radius, 0.0) / (0.4 * radius)
        image = mix(image, 0.02, rim * rng.uniform(0.3, 0.8))
        image = mix(image, 1.0, np.exp(-(glint**2)) * rng.uniform(0.3, 0.8))
    return image


@defect("burn mark", adjectives=("burnt", "scorched"), nouns=("burn mark", "burn"))
def burn(canvas: Canvas, rng: Random, good: Good, severity: float) -> Array:
    center = _place(rng, good.mask)
    depth = canvas.blob(rng, center, _extent(rng, severity) * 1.3, 0.4)
    share = step(depth + 3 * canvas.noise(rng, 2.5), 12) * _strength(rng, severity)
    return good.image * (1 - share * np.float32(0.95))[..., None]


@defect("pitting", adjectives=("pitted", "worn"), nouns=("pits", "pitting"))
def pitting(canvas: Canvas, rng: Random, good: Good, severity: float) -> Array:
    center, depth = _place(rng, good.mask), np.full_like(good.mask, -9)
    for _ in range(int(rng.integers(2, 5 + int(7 * severity)))):
        spot = center + rng.normal(0, 10, 2)
        pit = canvas.blob(rng, spot, rng.uniform(1.2, 2.8 + 3.5 * severity), 0.4)
        depth = np.maximum(depth, pit)
    share = step(depth, 1.2) * _strength(rng, severity)
    return good.image * (1 - share * np.float32(0.95))[..., None]


@defect(
    "line defect", adjectives=("streaked", "lined"), nouns=("line defect", "streak")
)
def line_defect(canvas: Canvas, rng: Random, good: Good, severity: float) -> Array:
    center, width = _place(rng, good.mask), rng.uniform(1, 2.2 + 5 * severity)
    across = canvas.column - center[1]
    if rng.random() < 0.5:
        across = canvas.row - center[0]
    across = across + (canvas.x + canvas.y) * np.float32(rng.normal(0, 1.5))
    share = step(width / 2 - np.abs(across), 1) * good.mask
    tone = _contrast(rng, good, center, severity)
    return mix(good.image, tone, share * _strength(rng, severity))


@defect("abrasion", adjectives=("scuffed", "abraded"), nouns=("abrasion", "scuff"))
def abrasion(canvas: Canvas, rng: Random, good: Good, severity: float) -> Array:
    center = _place(rng, good.mask)
    share = step(canvas.blob(rng, center, _extent(rng, severity) * 1.3, 0.4), 8)
    hair = canvas.noise(rng, 0.8, stretch=rng.uniform(8, 30), angle=rng.uniform(0, 3))
    share = share * np.clip(0.35 + 0.5 * hair, 0, 1) * good.mask
    tone = _contrast(rng, good, center, severity)
    return mix(good.image, tone, share * _strength(rng, severity))


@defect(
    "crease", adjectives=("creased", "folded", "wrinkled"), nouns=("crease", "wrinkle")
)
def crease(canvas: Canvas, rng: Random, good: Good, severity: float) -> Array:
    center, image = _place(rng, good.mask), good.image
    for _ in range(int(rng.integers(1, 3 + int(2 * severity)))):
        start = center + rng.normal(0, 9, 2)
        path = wander(rng, start, rng.uniform(30, 50 + 60 * severity), 0.06)
        width = rng.uniform(1.5, 2.5 + 3 * severity)
        light = canvas.stroke(path, width, 2) * _strength(rng, severity) * 0.7
        dark = canvas.stroke(path + width * 0.8, width, 2) * _strength(rng, severity)
        image = mix(mix(image, image * 0.35, dark * good.mask), 1.0, light * good.mask)
    return image


@defect(
    "droplets", adjectives=("wet", "splashed"), nouns=("droplets", "drops", "liquid")
)
def droplets(canvas: Canvas, rng: Random, good: Good, severity: float) -> Array:
    center, image = _place(rng, good.mask), good.image
    tint = hsv(rng.random(), rng.uniform(0, 0.5), rng.uniform(0.35, 0.9))
    for _ in range(int(rng.integers(2, 5 + int(6 * severity)))):
        spot = center + rng.normal(0, 10 + 6 * severity, 2)
        radius = rng.uniform(2, 4 + 6 * severity)
        depth = canvas.blob(rng, spot, radius, 0.12)
        image = mix(image, image * tint, step(depth, 1.5) * _strength(rng, severity))
        glint = canvas.disk(spot - 0.3 * radius, radius * 0.25)
        image = mix(image, 1.0, step(glint, 1.5) * 0.8)
    return image


@defect("sticker", adjectives=("labelled wrongly", "taped"), nouns=("sticker", "tape"))
def sticker(canvas: Canvas, rng: Random, good: Good, severity: float) -> Array:
    center, angle = _place(rng, good.mask), rng.uniform(0, np.pi)
    column, row = canvas.column - center[1], canvas.row - center[0]
    c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    height, width = _extent(rng, severity) * rng.uniform(0.35, 0.9, 2) + 1
    u, v = c * column + s * row, c * row - s * column
    share = step(-box(u, v, width, height, 1.0), 1)
    tone = _contrast(rng, good, center, severity)
    stripe = step(np.sin(v * rng.uniform(0.5, 1.2)), 0.3) * rng.choice([0.0, 0.5])
    label = mix(canvas.flat(tone), tone * 0.4, stripe)
    return mix(good.image, label, share * (0.5 + 0.5 * _strength(rng, severity)))


_structural("missing part", ("incomplete",), ("missing part", "missing piece"))
_structural(
    "misplaced part", ("misplaced", "shifted"), ("misplaced part", "wrong position")
)
_structural("wrong part", ("mixed up", "swapped"), ("wrong part", "wrong color"))


# Held out of the training of the embedded model


@defect("thread", adjectives=("threaded",), nouns=("thread", "hair"))
def thread(canvas: Canvas, rng: Random, good: Good, severity: float) -> Array:
    center = _place(rng, good.mask)
    path = wander(rng, center, rng.uniform(40, 140), 0.12, 50)
    image = good.image * (1 - 0.3 * canvas.stroke(path + 2, 2))[..., None]
    share = canvas.stroke(path, rng.uniform(1, 1.5 + 1.3 * severity))
    tone = _contrast(rng, good, center, severity)
    return mix(image, tone, share * (0.5 + 0.5 * _strength(rng, severity)))


@defect("dent", adjectives=("dented",), nouns=("dent", "dimple"))
def dent(canvas: Canvas, rng: Random, good: Good, severity: float) -> Array:
    center, radius = _place(rng, good.mask), _extent(rng, severity)
    bump = np.exp(
        -(canvas.disk(center, 0.0) ** 2) / np.float32(2 * (0.6 * radius) ** 2)
    )
    slope_y, slope_x = np.gradient(bump, np.float32(1 / canvas.scale))
    angle = rng.uniform(0, 2 * np.pi)
    lit = (slope_x * np.cos(angle) + slope_y * np.sin(angle)) * radius
    strength = np.float32(0.6 + 0.9 * severity)
    image = good.image * (1 + strength * np.clip(lit, -1, 1))[..., None]
    reach = np.float32(0.4 * radius**2)
    return canvas.warp(image, slope_y * reach, slope_x * reach)


@defect("bend", adjectives=("bent", "deformed"), nouns=("bend", "deformation"))
def bend(canvas: Canvas, rng: Random, good: Good, severity: float) -> Array:
    center, radius = _place(rng, good.mask), _extent(rng, severity) + 10
    bump = np.exp(-(canvas.disk(center, 0.0) ** 2) / np.float32(2 * radius**2))
    angle, reach = rng.uniform(0, 2 * np.pi), 7 + 14 * severity
    rows, columns = reach * np.sin(angle) * bump, reach * np.cos(angle) * bump
    return canvas.warp(good.image, rows, columns)


@defect("smear", adjectives=("smeared", "smudged"), nouns=("smear", "smudge"))
def smear(canvas: Canvas, rng: Random, good: Good, severity: float) -> Array:
    center = _place(rng, good.mask)
    share = step(canvas.blob(rng, center, _extent(rng, severity) * 1.3, 0.3), 4)
    length = int((6 + 20 * severity) * canvas.scale) | 1
    axis = int(rng.integers(0, 2))
    drawn = ndimage.uniform_filter1d(good.image, length, axis=axis, mode="nearest")
    return mix(good.image, drawn * np.float32(rng.uniform(0.75, 1.25)), share)
