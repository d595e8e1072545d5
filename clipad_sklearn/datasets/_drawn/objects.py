"""Families of objects: one function per family, each draws a scene."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .drawing import (
    Array,
    Canvas,
    Random,
    box,
    circle,
    color,
    ellipse,
    hsv,
    lattice,
    metal,
    mix,
    polygon,
    ring,
    segment,
    step,
    two_colors,
)
from .textures import NOUNS, TEXTURES, backdrop, material

EDGE = 0.03


@dataclass(frozen=True)
class Change:
    """A structural defect: what happens to one part of the object."""

    kind: str  # "missing part", "misplaced part" or "wrong part"
    seed: int


class Scene:
    """An image while it is painted, and where the object is in it."""

    def __init__(
        self,
        canvas: Canvas,
        rng: Random,
        change: Change | None = None,
        *,
        smallest: float = 0.65,
        largest: float = 0.97,
    ) -> None:
        self.canvas = canvas
        self.rng = rng
        self.change = change
        self.x, self.y = canvas.frame(rng, smallest, largest)
        self.image = backdrop(canvas, rng)
        self.background = self.image
        self.mask = np.zeros(canvas.row.shape, np.float32)
        self.count: int | None = None
        self.light = rng.uniform(0, 2 * np.pi)

    def body(
        self, distance: Array, surface: Array | None = None, bevel: float | None = None
    ) -> Array:
        """Paint the object itself, with its shadow; returns its coverage."""
        rng = self.rng
        surface = material(self.canvas, rng) if surface is None else surface
        bevel = rng.uniform(0, 0.6) if bevel is None else bevel
        if rng.random() < 0.5:
            shift = np.round(rng.uniform(-6, 6, 2) * self.canvas.scale).astype(int)
            dark = step(-np.roll(distance, shift, axis=(0, 1)), EDGE)
            dark = self.canvas.blur(dark, rng.uniform(1, 4)) * np.float32(
                rng.uniform(0.1, 0.6)
            )
            self.image = self.image * (1 - dark)[..., None]
            self.background = self.image
        coverage = self.paint(distance, surface, bevel)
        self.mask = np.maximum(self.mask, coverage)
        return coverage

    def paint(
        self,
        distance: Array,
        surface: Array,
        bevel: float = 0.0,
        softness: float = EDGE,
        strength: float = 1.0,
    ) -> Array:
        """Paint a shape over what is there; returns its coverage."""
        coverage = step(-distance, softness)
        if bevel > 0.05:
            height = np.clip(-distance / 0.15, 0, 1) * np.float32(
                10 * self.canvas.scale
            )
            slope_y, slope_x = np.gradient(height)
            lit = slope_x * np.cos(self.light) + slope_y * np.sin(self.light)
            lit = np.clip(lit, -1, 1).astype(np.float32)
            surface = surface * (1 + np.float32(0.6 * bevel) * lit)[..., None]
        self.image = mix(self.image, surface, coverage * np.float32(strength))
        return coverage

    def shade(self, factor: Array, coverage: Array | None = None) -> None:
        """Multiply the brightness inside a coverage (default: the object)."""
        inside = self.mask if coverage is None else coverage
        self.image = self.image * (1 + (factor - 1) * inside)[..., None]

    def ball(self, u: Array, v: Array, gloss: float | None = None) -> None:
        """Shade the object like a ball; u, v are -1..1 across it."""
        rng = self.rng
        height = np.sqrt(np.clip(1 - u * u - v * v, 0, 1))
        a, b = (
            np.float32(np.cos(self.light) * 0.5),
            np.float32(np.sin(self.light) * 0.5),
        )
        lit = np.clip(0.8 * height + a * u + b * v, 0, 1)
        dark = np.float32(rng.uniform(0.25, 0.6))
        self.shade(dark + (1.1 - dark) * lit)
        gloss = rng.uniform(0, 0.7) if gloss is None else gloss
        spot = np.exp(
            -((u - a) ** 2 + (v - b) ** 2) / np.float32(rng.uniform(0.01, 0.06))
        )
        glow = (spot * np.float32(gloss) * self.mask)[..., None]
        self.image = self.image + (1 - self.image) * glow

    def tube(self, across: Array, coverage: Array | None = None) -> None:
        """Shade like a cylinder; `across` is -1..1 over its width."""
        side = np.float32(0.4 * np.cos(self.light))
        lit = 0.4 + 0.65 * np.cos(np.clip((across - side) * 1.25, -1.5, 1.5))
        self.shade(lit, coverage)

    def parts(
        self,
        centers: Sequence[tuple[float, float]],
        reach: float,
        paint: Callable[[Array, Array, Any], None],
        colors: Sequence[Array | None],
    ) -> None:
        """Paint one part per centre; a structural defect changes one of them."""
        self.count = len(centers)
        chosen = -1
        if self.change is not None:
            other = np.random.default_rng(self.change.seed)
            chosen = int(other.integers(len(centers)))
        for k, (at_x, at_y) in enumerate(centers):
            tone = colors[k % len(colors)]
            if k == chosen and self.change is not None:
                if self.change.kind == "missing part":
                    continue
                if self.change.kind == "misplaced part":
                    angle = other.uniform(0, 2 * np.pi)
                    move = reach * other.uniform(0.6, 1.3)
                    at_x, at_y = (
                        at_x + move * np.cos(angle),
                        at_y + move * np.sin(angle),
                    )
                else:
                    shown = tone
                    for _ in range(9):
                        tone = color(other)
                        if shown is None or np.abs(tone - shown).max() > 0.3:
                            break
            paint(self.x - np.float32(at_x), self.y - np.float32(at_y), tone)

    def hole(self, filling: Array | None) -> Array:
        """What is seen through a hole, or what fills it by mistake."""
        if filling is None:
            return self.background * np.float32(0.6)
        return self.canvas.flat(filling)

    def flat(self, tone: Array | float) -> Array:
        return self.canvas.flat(tone)

    def grain(self, strength: float, beta: float) -> Array:
        return (1 + np.float32(strength) * self.canvas.noise(self.rng, beta))[..., None]


Draw = Callable[[Canvas, Random, "Change | None"], Scene]
OBJECTS: dict[str, Draw] = {}
WITH_PARTS: set[str] = set()


def thing(name: str, *other_nouns: str, parts: bool = False) -> Callable[[Draw], Draw]:
    """Register a family of objects and the nouns that captions use for it."""

    def register(function: Draw) -> Draw:
        OBJECTS[name] = function
        NOUNS[name] = (name, *other_nouns)
        if parts:
            WITH_PARTS.add(name)
        return function

    return register


# Hardware


@thing("washer", "ring", "gasket")
def washer(canvas: Canvas, rng: Random, change: Change | None) -> Scene:
    scene = Scene(canvas, rng, change)
    hole = rng.uniform(0.3, 0.65)
    outer, inner = circle(scene.x, scene.y, 0.9), circle(scene.x, scene.y, hole)
    scene.body(np.maximum(outer, -inner))
    return scene


@thing("hex nut", "metal nut")
def hex_nut(canvas: Canvas, rng: Random, change: Change | None) -> Scene:
    scene = Scene(canvas, rng, change)
    hole = rng.uniform(0.3, 0.5)
    radius = circle(scene.x, scene.y, 0)
    scene.body(np.maximum(polygon(scene.x, scene.y, 0.8, 6), hole - radius))
    scene.shade(1 - 0.35 * np.exp(-(((radius - hole - 0.08) / 0.03) ** 2)))
    return scene


@thing("bottle mouth", "bottle top", "cap", "lid")
def bottle_mouth(canvas: Canvas, rng: Random, change: Change | None) -> Scene:
    scene = Scene(canvas, rng, change, smallest=0.75, largest=1.0)
    radius = circle(scene.x, scene.y, 0)
    scene.body(radius - 0.92, scene.flat(color(rng)) * scene.grain(0.06, 3))
    for _ in range(int(rng.integers(2, 6))):
        at, width = rng.uniform(0.1, 0.88), rng.uniform(0.02, 0.12)
        bright = np.float32(rng.uniform(-0.7, 0.9))
        scene.shade(1 + bright * np.exp(-(((radius - at) / width) ** 2)))
    return scene


@thing("screw", "bolt", "wood screw")
def screw(canvas: Canvas, rng: Random, change: Change | None) -> Scene:
    scene = Scene(canvas, rng, change, smallest=0.75)
    x, y = scene.x, scene.y
    width, pitch = rng.uniform(0.14, 0.26), rng.uniform(7, 14)
    ridge = width * 0.2 * np.abs(np.sin(np.pi * y * pitch)) * (y > -0.3)
    shaft = box(x, y - 0.15, width, 0.75) - ridge
    head = box(x, y + 0.75, width * rng.uniform(1.6, 2.4), 0.14, 0.05)
    outline = np.maximum(np.minimum(shaft, head), np.abs(x) * 1.2 + y - 1.0)
    scene.body(outline, scene.flat(metal(rng)) * scene.grain(0.03, 1), bevel=0.2)
    scene.tube(x / width)
    scene.shade(1 - 0.35 * (np.sin(2 * np.pi * y * pitch) > 0.2) * (y > -0.3))
    return scene


@thing("nail", "pin", "spike")
def nail(canvas: Canvas, rng: Random, change: Change | None) -> Scene:
    scene = Scene(canvas, rng, change, smallest=0.8)
    x, y = scene.x, scene.y
    width = rng.uniform(0.07, 0.14)
    shaft = np.maximum(box(x, y, width, 0.92), np.abs(x) * 3 + y - 1.0)
    head = box(x, y + 0.88, width * 3, 0.06, 0.03)
    scene.body(np.minimum(shaft, head), scene.flat(metal(rng)), bevel=0.2)
    scene.tube(x / width)
    return scene


@thing("drilled plate", "metal plate", "panel", "cover plate", parts=True)
def plate(canvas: Canvas, rng: Random, change: Change | None) -> Scene:
    scene = Scene(canvas, rng, change, smallest=0.75)
    height = rng.uniform(0.5, 0.88)
    scene.body(box(scene.x, scene.y, 0.88, height, 0.1))
    size = rng.uniform(0.08, 0.16)
    columns, rows = int(rng.integers(1, 4)), int(rng.integers(1, 3))

    def hole(u: Array, v: Array, tone: Array | None) -> None:
        scene.paint(circle(u, v, size), scene.hole(tone))

    centers = lattice(columns, rows, 0.6, height * 0.6)
    scene.parts(centers, size, hole, [None])
    return scene


@thing("flange", "bolted plate", "bolted disc", parts=True)
def flange(canvas: Canvas, rng: Random, change: Change | None) -> Scene:
    scene = Scene(canvas, rng, change, smallest=0.75)
    x, y = scene.x, scene.y
    square = rng.random() < 0.4
    scene.body(box(x, y, 0.9, 0.9, 0.15) if square else circle(x, y, 0.92))
    if rng.random() < 0.6:
        scene.paint(circle(x, y, rng.uniform(0.2, 0.38)), scene.background * 0.7)
    size, bolts = rng.uniform(0.1, 0.17), int(rng.integers(3, 9))

    def bolt(u: Array, v: Array, tone: Array) -> None:
        scene.paint(polygon(u, v, size, 6), scene.flat(tone), bevel=0.5)

    scene.parts(ring(bolts, 0.62, rng.uniform(0, 6)), size * 1.5, bolt, [metal(rng)])
    return scene


@thing("bracket", "angle bracket", "corner bracket", parts=True)
def bracket(canvas: Canvas, rng: Random, change: Change | None) -> Scene:
    scene = Scene(canvas, rng, change, smallest=0.75)
    x, y = scene.x, scene.y
    width = rng.uniform(0.18, 0.35)
    upright = box(x + 0.85 - width, y, width, 0.85, 0.05)
    scene.body(np.minimum(upright, box(x, y - 0.85 + width, 0.85, width, 0.05)))

    def hole(u: Array, v: Array, tone: Array | None) -> None:
        scene.paint(circle(u, v, width * 0.4), scene.hole(tone))

    centers = [(-0.85 + width, -0.5), (0.5, 0.85 - width)]
    scene.parts(centers, width * 0.5, hole, [None])
    return scene


@thing("ball bearing", "bearing", "roller bearing", parts=True)
def bearing(canvas: Canvas, rng: Random, change: Change | None) -> Scene:
    scene = Scene(canvas, rng, change, smallest=0.75)
    x, y = scene.x, scene.y
    hole = rng.uniform(0.25, 0.38)
    outline = np.maximum(circle(x, y, 0.92), -circle(x, y, hole))
    scene.body(outline, scene.flat(metal(rng)) * scene.grain(0.04, 1))
    groove = np.abs(circle(x, y, 0.64)) - 0.16
    scene.paint(groove, scene.flat(metal(rng) * 0.35))
    balls, tone = int(rng.integers(6, 13)), metal(rng)

    def ball(u: Array, v: Array, shown: Array) -> None:
        glow = 0.6 + 0.6 * np.exp(-((u + 0.05) ** 2 + (v + 0.05) ** 2) / 0.006)
        scene.paint(circle(u, v, 0.135), shown * glow[..., None])

    scene.parts(ring(balls, 0.64, rng.uniform(0, 6)), 0.15, ball, [tone])
    return scene


@thing("pipe", "tube", "rod", "steel pipe")
def pipe(canvas: Canvas, rng: Random, change: Change | None) -> Scene:
    scene = Scene(canvas, rng, change, smallest=0.8, largest=1.1)
    width = rng.uniform(0.25, 0.55)
    scene.body(np.abs(scene.y) - np.float32(width), bevel=0)
    scene.tube(scene.y / width)
    return scene


@thing("spring", "coil spring", "steel coil")
def spring(canvas: Canvas, rng: Random, change: Change | None) -> Scene:
    scene = Scene(canvas, rng, change, smallest=0.8)
    x, y = scene.x, scene.y
    turns, width = rng.uniform(3.5, 7.5), rng.uniform(0.25, 0.45)
    slope = np.float32(2 * width * turns * np.pi / 1.7)
    wave = np.float32(width) * np.sin(np.pi * turns * y / 0.85)
    distance = np.abs(x - wave) / np.sqrt(
        1 + (slope * np.cos(np.pi * turns * y / 0.85)) ** 2
    )
    outline = np.maximum(distance - rng.uniform(0.05, 0.09), np.abs(y) - 0.88)
    scene.body(outline, scene.flat(metal(rng)), bevel=0.4)
    return scene


@thing("key", "door key")
def key(canvas: Canvas, rng: Random, change: Change | None) -> Scene:
    scene = Scene(canvas, rng, change, smallest=0.8)
    x, y = scene.x, scene.y
    bow = np.maximum(
        circle(x, y + 0.55, 0.36), -circle(x, y + 0.65, rng.uniform(0.1, 0.18))
    )
    outline = np.minimum(bow, box(x, y - 0.3, 0.1, 0.62, 0.02))
    for k in range(int(rng.integers(2, 5))):
        tooth = box(x - 0.14, y - 0.8 + 0.16 * k, rng.uniform(0.04, 0.12), 0.05)
        outline = np.minimum(outline, tooth)
    scene.body(outline, scene.flat(metal(rng)) * scene.grain(0.03, 1), bevel=0.4)
    return scene


@thing("coin", "medal", "token")
def coin(canvas: Canvas, rng: Random, change: Change | None) -> Scene:
    scene = Scene(canvas, rng, change)
    x, y = scene.x, scene.y
    radius = circle(x, y, 0)
    scene.body(radius - 0.9, scene.flat(metal(rng)) * scene.grain(0.03, 1), bevel=0.3)
    scene.shade(1 + 0.3 * np.exp(-(((radius - 0.8) / 0.03) ** 2)))
    corners, size = int(rng.integers(3, 9)), rng.uniform(0.25, 0.5)
    star = (
        polygon(x, y, size, corners) if rng.random() < 0.5 else ellipse(x, y, size, 0.5)
    )
    coverage = scene.paint(star, scene.image * np.float32(rng.uniform(0.75, 1.3)), 0.6)
    scene.shade(1 + 0.1 * np.sin(20 * x), coverage)
    return scene


# Electrical parts


@thing("cable", "wires", "cable cross section", parts=True)
def cable(canvas: Canvas, rng: Random, change: Change | None) -> Scene:
    scene = Scene(canvas, rng, change, smallest=0.75, largest=1.0)
    scene.body(circle(scene.x, scene.y, 0.92))
    wires = int(rng.integers(2, 6))
    size = 0.5 * np.sin(np.pi / wires) * 0.9 if wires > 2 else 0.38
    copper = hsv(0.08, 0.5, 0.85)

    def wire(u: Array, v: Array, tone: Array) -> None:
        scene.paint(circle(u, v, size), scene.flat(tone), bevel=0.4)
        strands = 0.65 + 0.35 * np.sin(u * 28) * np.sin(v * 28)
        scene.paint(circle(u, v, size * 0.62), copper * strands[..., None])

    colors = [color(rng) for _ in range(wires)]
    scene.parts(ring(wires, 0.5, rng.uniform(0, 6)), size, wire, colors)
    return scene


@thing("printed circuit board", "circuit board", "electronics board", parts=True)
def circuit_board(canvas: Canvas, rng: Random, change: Change | None) -> Scene:
    scene = Scene(canvas, rng, change, smallest=0.95, largest=1.0)
    scene.image = TEXTURES["circuit traces"](canvas, rng)
    scene.background, scene.mask = scene.image, np.ones_like(scene.mask)
    parts = int(rng.integers(3, 9))
    places = lattice(3, 3, 0.6, 0.6)
    chosen = [places[k] for k in rng.permutation(9)[:parts]]
    centers = [(a + rng.uniform(-0.06, 0.06), b) for a, b in chosen]
    kind, width, height = int(rng.integers(3)), *rng.uniform(0.1, 0.22, 2)

    def chip(u: Array, v: Array, tone: Array) -> None:
        if kind == 0:
            scene.paint(circle(u, v, min(width, height)), scene.flat(tone), bevel=0.6)
            return
        if kind == 1:
            pins = step(-box(u, v, width, height + 0.06), EDGE) * (np.sin(u * 60) > 0)
            scene.image = mix(scene.image, np.float32(0.8), pins)
        scene.paint(box(u, v, width, height, 0.02), scene.flat(tone), bevel=0.4)

    scene.parts(centers, 0.14, chip, [color(rng, 0.6) * 0.8 for _ in centers])
    return scene


@thing("connector", "plug", "socket", "pin header", parts=True)
def connector(canvas: Canvas, rng: Random, change: Change | None) -> Scene:
    scene = Scene(canvas, rng, change, smallest=0.75)
    scene.body(box(scene.x, scene.y, 0.9, rng.uniform(0.35, 0.6), 0.05))
    pins, height, tone = int(rng.integers(3, 9)), rng.uniform(0.15, 0.25), metal(rng)

    def pin(u: Array, v: Array, shown: Array) -> None:
        scene.paint(box(u, v, 0.05, height), scene.flat(shown), bevel=0.3)

    scene.parts(lattice(pins, 1, 0.72, 0), 0.09, pin, [tone])
    return scene


@thing("transistor", "three legged part", "electronic component", parts=True)
def transistor(canvas: Canvas, rng: Random, change: Change | None) -> Scene:
    scene = Scene(canvas, rng, change, smallest=0.8)
    x, y = scene.x, scene.y
    legs, tone = int(rng.integers(2, 5)), metal(rng)

    def leg(u: Array, v: Array, shown: Array) -> None:
        scene.paint(box(u, v - 0.5, 0.06, 0.42), scene.flat(shown), bevel=0.4)

    scene.parts(lattice(legs, 1, 0.34, 0), 0.2, leg, [tone])
    top = box(x, y + 0.35, 0.55, 0.5, 0.06)
    scene.body(
        top, scene.flat(color(rng, 0.3) * 0.45) * scene.grain(0.05, 1), bevel=0.5
    )
    if rng.random() < 0.6:
        scene.paint(circle(x, y + 0.6, 0.12), scene.background * 0.8)
    return scene


@thing("battery", "cell", "accumulator")
def battery(canvas: Canvas, rng: Random, change: Change | None) -> Scene:
    scene = Scene(canvas, rng, change, smallest=0.8)
    x, y = scene.x, scene.y
    width = rng.uniform(0.28, 0.42)
    first, second = two_colors(rng)
    split = np.float32(rng.uniform(-0.5, 0.3))
    surface = mix(scene.flat(first), second, step(y - split, EDGE))
    outline = np.minimum(
        box(x, y, width, 0.82, 0.06), box(x, y + 0.87, 0.12, 0.07, 0.02)
    )
    scene.body(outline, surface, bevel=0)
    scene.tube(x / width)
    return scene


@thing("light bulb", "bulb", "lamp")
def light_bulb(canvas: Canvas, rng: Random, change: Change | None) -> Scene:
    scene = Scene(canvas, rng, change, smallest=0.8)
    x, y = scene.x, scene.y
    base = box(x, y - 0.62, 0.24, 0.3, 0.05)
    thread = metal(rng) * (0.7 + 0.3 * np.sin(y * 40))[..., None]
    scene.body(base, thread, bevel=0.3)
    glass = np.minimum(circle(x, y + 0.25, 0.62), box(x, y - 0.25, 0.3, 0.2, 0.1))
    scene.body(glass, scene.flat(color(rng, 0.4) * 0.4 + 0.6), bevel=0.2)
    scene.ball(x / 0.65, (y + 0.25) / 0.65, gloss=0.8)
    return scene


@thing("coiled cable", "rope", "wire coil")
def coiled_cable(canvas: Canvas, rng: Random, change: Change | None) -> Scene:
    scene = Scene(canvas, rng, change, smallest=0.8, largest=1.0)
    x, y = scene.x, scene.y
    radius, angle = circle(x, y, 0), np.arctan2(y, x)
    loops, hole = int(rng.integers(3, 8)), rng.uniform(0.25, 0.4)
    phase = (radius - hole) / (0.92 - hole) * loops - angle / (2 * np.pi)
    height = np.abs(np.sin(np.pi * phase)) ** np.float32(0.6)
    tone = scene.flat(color(rng))
    if rng.random() < 0.5:
        tone = tone * (1 + 0.2 * np.sin(angle * 60 + phase * 6))[..., None]
    outline = np.maximum(radius - 0.92, hole - radius)
    scene.body(outline, tone * (0.3 + 0.7 * height)[..., None], bevel=0)
    return scene


# Household things and toys


@thing("bottle", "flask", "glass bottle", "plastic bottle")
def bottle(canvas: Canvas, rng: Random, change: Change | None) -> Scene:
    scene = Scene(canvas, rng, change, smallest=0.85, largest=1.0)
    x, y = scene.x, scene.y
    width = rng.uniform(0.3, 0.45)
    trunk = box(x, y - 0.3, width, 0.62, 0.12)
    neck = box(x, y + 0.6, width * rng.uniform(0.3, 0.5), 0.34, 0.02)
    scene.body(np.minimum(trunk, neck), scene.flat(color(rng)), bevel=0.1)
    scene.tube(x / width)
    scene.paint(box(x, y + 0.86, width * 0.5, 0.09, 0.03), scene.flat(color(rng)), 0.3)
    if rng.random() < 0.7:
        label = np.maximum(np.abs(y - 0.3) - rng.uniform(0.15, 0.3), np.abs(x) - width)
        coverage = scene.paint(label, scene.flat(color(rng)))
        scene.tube(x / width, coverage)
    return scene


@thing("can", "tin", "drink can")
def can(canvas: Canvas, rng: Random, change: Change | None) -> Scene:
    scene = Scene(canvas, rng, change, smallest=0.75)
    x, y = scene.x, scene.y
    width, height = rng.uniform(0.42, 0.6), rng.uniform(0.65, 0.85)
    first, second = two_colors(rng)
    wave = (
        y
        - np.float32(rng.uniform(-0.3, 0.3))
        - 0.12 * np.sin(x * rng.uniform(1, 6) + rng.uniform(0, 6))
    )
    scene.body(
        box(x, y, width, height, 0.06),
        mix(scene.flat(first), second, step(wave, EDGE)),
        0,
    )
    rims = np.maximum(np.abs(np.abs(y) - height + 0.05) - 0.05, np.abs(x) - width)
    scene.paint(rims, scene.flat(metal(rng)))
    scene.tube(x / width)
    return scene


@thing("cup", "mug", "coffee cup")
def cup(canvas: Canvas, rng: Random, change: Change | None) -> Scene:
    scene = Scene(canvas, rng, change, smallest=0.75)
    x, y = scene.x + 0.12, scene.y
    handle = np.abs(ellipse(x - 0.6, y, 0.34, 0.4)) - 0.07
    trunk = box(x, y, 0.6, 0.7, 0.1)
    tone = scene.flat(color(rng)) * scene.grain(0.01, 2)
    scene.body(np.minimum(trunk, handle), tone, bevel=0.2)
    scene.tube(x / 0.7)
    scene.paint(ellipse(x, y + 0.62, 0.55, 0.12), scene.flat(color(rng) * 0.5))
    return scene


@thing("ball", "sphere", "rubber ball")
def ball(canvas: Canvas, rng: Random, change: Change | None) -> Scene:
    scene = Scene(canvas, rng, change)
    x, y = scene.x, scene.y
    surface = scene.flat(color(rng))
    if rng.random() < 0.5:
        bands = np.sin(x * rng.uniform(2, 5) + 0.8 * y * y)
        surface = mix(surface, color(rng), step(bands, 0.1))
    scene.body(circle(x, y, 0.9), surface, bevel=0)
    scene.ball(x / 0.9, y / 0.9)
    return scene


@thing("toy brick", "building block", "studded block", parts=True)
def toy_brick(canvas: Canvas, rng: Random, change: Change | None) -> Scene:
    scene = Scene(canvas, rng, change, smallest=0.75)
    columns, rows = int(rng.integers(2, 5)), int(rng.integers(1, 3))
    height = 0.45 * rows if columns > 2 else 0.9 / 2 * rows
    tone = color(rng)
    scene.body(box(scene.x, scene.y, 0.9, height, 0.04), scene.flat(tone), bevel=0.4)
    size = 0.55 / max(columns, 2)

    def stud(u: Array, v: Array, shown: Array) -> None:
        dark = scene.image * np.float32(0.6)
        scene.paint(circle(u - 0.03, v - 0.03, size), dark)
        scene.paint(circle(u, v, size), scene.flat(shown * 1.08), bevel=0.3)

    centers = lattice(columns, rows, 0.9 - 0.9 / columns, height - height / rows)
    scene.parts(centers, size * 0.9, stud, [tone])
    return scene


@thing("toy car", "car", "vehicle", parts=True)
def toy_car(canvas: Canvas, rng: Random, change: Change | None) -> Scene:
    scene = Scene(canvas, rng, change, smallest=0.8)
    x, y = scene.x, scene.y
    cabin_at, cabin = rng.uniform(-0.2, 0.2), rng.uniform(0.3, 0.5)
    cabin_shape = box(x - cabin_at, y + 0.25, cabin, 0.28, 0.12)
    outline = np.minimum(box(x, y - 0.12, 0.92, 0.25, 0.1), cabin_shape)
    scene.body(outline, scene.flat(color(rng)), bevel=0.4)
    window = box(x - cabin_at, y + 0.27, cabin * 0.8, 0.16, 0.05)
    scene.paint(window, scene.flat(rng.uniform(0.1, 0.85)))
    rubber, hub = rng.uniform(0.05, 0.2), color(rng)

    def wheel(u: Array, v: Array, shown: Array) -> None:
        scene.paint(circle(u, v, 0.24), scene.flat(rubber), bevel=0.3)
        scene.paint(circle(u, v, 0.13), scene.flat(shown))

    scene.parts([(-0.5, 0.36), (0.5, 0.36)], 0.3, wheel, [hub])
    return scene


@thing("tire", "wheel", "tyre", parts=True)
def tire(canvas: Canvas, rng: Random, change: Change | None) -> Scene:
    scene = Scene(canvas, rng, change, smallest=0.75)
    x, y = scene.x, scene.y
    angle, radius = np.arctan2(y, x), circle(x, y, 0)
    tread = 0.02 * np.sign(np.sin(angle * int(rng.integers(18, 40))))
    scene.body(radius - 0.9 - tread, scene.flat(rng.uniform(0.08, 0.25)), bevel=0.4)
    scene.paint(radius - 0.6, scene.flat(metal(rng)), bevel=0.3)
    spokes, tone = int(rng.integers(3, 8)), color(rng, 0.3) * 0.3

    def opening(u: Array, v: Array, shown: Array) -> None:
        scene.paint(circle(u, v, 0.8 / (spokes + 2)), scene.flat(shown), bevel=0.2)

    scene.parts(ring(spokes, 0.38, rng.uniform(0, 6)), 0.12, opening, [tone])
    scene.paint(radius - 0.1, scene.flat(metal(rng) * 0.7), bevel=0.4)
    return scene


@thing("pencil", "crayon", "pen")
def pencil(canvas: Canvas, rng: Random, change: Change | None) -> Scene:
    scene = Scene(canvas, rng, change, smallest=0.85, largest=1.0)
    x, y = scene.x, scene.y
    width = rng.uniform(0.1, 0.17)
    outline = np.maximum(box(x, y, width, 0.95), np.abs(x) * 2.6 - (y + 0.95))
    tone = color(rng)
    surface = mix(scene.flat(tone), hsv(0.1, 0.4, 0.85), step(-0.6 - y, EDGE))
    surface = mix(surface, tone * 0.6, step(-0.85 - y, EDGE))
    if rng.random() < 0.6:
        surface = mix(surface, metal(rng), step(y - 0.68, EDGE))
        surface = mix(surface, color(rng), step(y - 0.8, EDGE))
    scene.body(outline, surface, bevel=0)
    scene.tube(x / width)
    return scene


@thing("spoon", "ladle", "cutlery")
def spoon(canvas: Canvas, rng: Random, change: Change | None) -> Scene:
    scene = Scene(canvas, rng, change, smallest=0.85, largest=1.0)
    x, y = scene.x, scene.y
    width = rng.uniform(0.24, 0.34)
    bowl = ellipse(x, y + 0.58, width, 0.38)
    handle = box(x, y - 0.4, 0.07, 0.58, 0.04)
    scene.body(np.minimum(bowl, handle), scene.flat(metal(rng)), bevel=0.5)
    inner = ellipse(x, y + 0.58, width * 0.8, 0.31)
    scene.paint(inner, scene.image * (0.9 + 0.5 * x / width)[..., None])
    return scene


@thing("gauge", "dial", "pressure gauge", "clock", parts=True)
def gauge(canvas: Canvas, rng: Random, change: Change | None) -> Scene:
    scene = Scene(canvas, rng, change, smallest=0.8)
    x, y = scene.x, scene.y
    face = rng.choice([0.95, 0.9, 0.1])
    scene.body(circle(x, y, 0.92), scene.flat(metal(rng)), bevel=0.5)
    scene.paint(circle(x, y, 0.78), scene.flat(face))
    ticks, ink = int(rng.integers(6, 13)), np.full(3, 1 - face, np.float32)

    def tick(u: Array, v: Array, shown: Array) -> None:
        scene.paint(circle(u, v, 0.06), scene.flat(shown))

    scene.parts(ring(ticks, 0.62, rng.uniform(0, 6)), 0.14, tick, [ink])
    angle = rng.uniform(0, 2 * np.pi)
    tip = (0.55 * np.cos(angle), 0.55 * np.sin(angle))
    scene.paint(segment(x, y, (0.0, 0.0), tip) - 0.035, scene.flat(color(rng)))
    scene.paint(circle(x, y, 0.09), scene.flat(1 - face))
    return scene


@thing("clothes peg", "clip", "clamp")
def clothes_peg(canvas: Canvas, rng: Random, change: Change | None) -> Scene:
    scene = Scene(canvas, rng, change, smallest=0.85)
    x, y = scene.x, scene.y
    lean, width = rng.uniform(0.05, 0.14), rng.uniform(0.1, 0.15)
    tone = material(canvas, rng)
    outline = np.minimum(
        segment(x, y, (-width - lean, 0.9), (-width * 0.9, -0.85)),
        segment(x, y, (width + lean, 0.9), (width * 0.9, -0.85)),
    )
    scene.body(outline - width * 0.85, tone, bevel=0.4)
    coil = np.abs(circle(x, y + 0.05, 0.16)) - 0.04
    scene.paint(coil, scene.flat(metal(rng)), bevel=0.4)
    return scene


# Food, medicine and natural things


@thing("pill", "tablet")
def pill(canvas: Canvas, rng: Random, change: Change | None) -> Scene:
    scene = Scene(canvas, rng, change, smallest=0.6, largest=0.95)
    height = rng.uniform(0.5, 0.9)
    tone = color(rng, 0.6) * 0.5 + 0.5
    outline = ellipse(scene.x, scene.y, 0.9, height)
    scene.body(outline, scene.flat(tone) * scene.grain(0.03, 0.5), bevel=0.5)
    if rng.random() < 0.5:
        scene.shade(1 - 0.4 * np.exp(-((scene.x / 0.04) ** 2)))
    return scene


@thing("blister pack", "tray of pills", "pill pack", parts=True)
def blister(canvas: Canvas, rng: Random, change: Change | None) -> Scene:
    scene = Scene(canvas, rng, change, smallest=0.8, largest=1.0)
    foil = scene.flat(metal(rng)) * scene.grain(0.04, 1)
    scene.body(box(scene.x, scene.y, 0.92, 0.7, 0.08), foil, bevel=0.3)
    columns, rows = int(rng.integers(2, 5)), int(rng.integers(2, 4))
    size = min(0.2, 0.36 / rows)

    def pocket(u: Array, v: Array, tone: Array) -> None:
        scene.paint(circle(u, v, size), scene.flat(tone), bevel=0.6)

    tone = color(rng)
    scene.parts(lattice(columns, rows, 0.63, 0.42), size, pocket, [tone])
    return scene


@thing("apple", "cherry", "fruit")
def apple(canvas: Canvas, rng: Random, change: Change | None) -> Scene:
    scene = Scene(canvas, rng, change, smallest=0.75)
    x, y = scene.x, scene.y + 0.02
    hue = rng.choice([rng.uniform(0.95, 1.03) % 1, rng.uniform(0.16, 0.3)])
    skin = scene.flat(hsv(hue, rng.uniform(0.6, 0.9), rng.uniform(0.5, 0.9)))
    blush = hsv(rng.uniform(0, 0.15), 0.7, 0.85)
    skin = mix(skin, blush, 0.4 + 0.3 * canvas.noise(rng, 3)) * scene.grain(0.03, 1)
    outline = circle(x, y + 0.14 * np.abs(x) ** 2 - 0.05, 0.82)
    outline = np.maximum(outline, 0.09 - circle(x, y + 0.85, 0))
    scene.body(outline, skin, bevel=0)
    scene.ball(x / 0.88, y / 0.88)
    if rng.random() < 0.7:
        stem = segment(x, y, (0.0, -0.65), (rng.uniform(-0.1, 0.1), -0.95)) - 0.035
        scene.paint(stem, scene.flat(hsv(0.08, 0.6, 0.3)))
    return scene


@thing("orange", "mandarin", "citrus")
def orange(canvas: Canvas, rng: Random, change: Change | None) -> Scene:
    scene = Scene(canvas, rng, change, smallest=0.7)
    x, y = scene.x, scene.y
    peel = hsv(
        rng.uniform(0.06, 0.12), rng.uniform(0.75, 0.98), rng.uniform(0.75, 0.98)
    )
    near, _, _ = canvas.cells(rng, int(rng.integers(300, 900)))
    pores = 1 - 0.2 * np.exp(-(near**2) / 2)
    scene.body(circle(x, y, 0.88), scene.flat(peel) * pores[..., None], bevel=0)
    scene.ball(x / 0.88, y / 0.88)
    return scene


@thing("banana", "plantain")
def banana(canvas: Canvas, rng: Random, change: Change | None) -> Scene:
    scene = Scene(canvas, rng, change, smallest=0.85, largest=1.05)
    x, y = scene.x, scene.y - 0.55
    angle, radius = np.arctan2(x, -y), circle(x, y, 0)
    width = rng.uniform(0.18, 0.28) * np.clip(1.1 - (angle / 1.1) ** 4, 0.15, 1)
    outline = np.maximum(np.abs(radius - 0.75) - width, (np.abs(angle) - 1.15) * 0.7)
    hue = rng.uniform(0.12, 0.2)
    peel = scene.flat(hsv(hue, rng.uniform(0.5, 0.8), rng.uniform(0.7, 0.95)))
    scene.body(outline, peel * scene.grain(0.03, 2), bevel=0)
    scene.tube((radius - 0.75) / 0.25)
    tips = (np.abs(angle) - 1.0) * 0.7
    scene.paint(np.maximum(outline, -tips), scene.flat(hsv(0.09, 0.6, 0.3)))
    return scene


@thing("egg", "chicken egg")
def egg(canvas: Canvas, rng: Random, change: Change | None) -> Scene:
    scene = Scene(canvas, rng, change, smallest=0.7)
    x, y = scene.x, scene.y
    wide = 0.68 * (1 + 0.14 * y)
    shell = hsv(rng.uniform(0.04, 0.12), rng.uniform(0, 0.45), rng.uniform(0.7, 0.98))
    surface = scene.flat(shell) * scene.grain(0.02, 1)
    if rng.random() < 0.3:
        spots = step(canvas.noise(rng, 1.5) - 1.6, 0.4)
        surface = mix(surface, shell * 0.6, spots)
    scene.body(ellipse(x / wide, y, 1.0, 0.9) * 0.7, surface, bevel=0)
    scene.ball(x / wide, y / 0.9)
    return scene


@thing("chestnut", "nut", "kernel", "acorn")
def chestnut(canvas: Canvas, rng: Random, change: Change | None) -> Scene:
    scene = Scene(canvas, rng, change, smallest=0.7)
    x, y = scene.x, scene.y
    tone = hsv(rng.uniform(0.03, 0.1), rng.uniform(0.4, 0.8), rng.uniform(0.35, 0.8))
    corners = rng.uniform(0.02, 0.12)
    fibre = canvas.noise(rng, 2, stretch=rng.uniform(2, 8), angle=rng.uniform(0, 3))
    surface = (
        scene.flat(tone) * (1 + np.float32(rng.uniform(0.05, 0.14)) * fibre)[..., None]
    )
    angle = np.arctan2(y, x)
    outline = circle(x, y, 0) - 0.86 * (1 - corners * np.cos(3 * angle + 0.5 * np.pi))
    scene.body(outline, surface, bevel=0)
    if rng.random() < 0.7:
        cap = y - rng.uniform(0.3, 0.7) - 0.2 * x * x + 0.02 * canvas.noise(rng, 2)
        pale = tone * 0.45 + 0.4
        scene.paint(
            np.maximum(outline, -cap),
            scene.flat(pale) * scene.grain(0.08, 1.2),
            0,
            0.08,
        )
    scene.ball(x / 0.9, y / 0.9)
    return scene


@thing("almond", "seed", "walnut", "bean")
def almond(canvas: Canvas, rng: Random, change: Change | None) -> Scene:
    scene = Scene(canvas, rng, change, smallest=0.75)
    x, y = scene.x, scene.y
    wide = rng.uniform(0.45, 0.65) * (1 + 0.25 * y)
    tone = hsv(rng.uniform(0.05, 0.1), rng.uniform(0.4, 0.75), rng.uniform(0.4, 0.8))
    grooves = np.sin(x / wide * rng.uniform(8, 18) + 0.7 * canvas.noise(rng, 3))
    surface = scene.flat(tone) * (1 + 0.12 * grooves)[..., None] * scene.grain(0.05, 1)
    outline = ellipse(x / wide, y, 1.0, 0.92) * 0.6
    scene.body(outline, surface, bevel=0)
    scene.ball(x / wide, y / 0.92, gloss=0.1)
    return scene


@thing("potato", "tuber", "vegetable")
def potato(canvas: Canvas, rng: Random, change: Change | None) -> Scene:
    scene = Scene(canvas, rng, change, smallest=0.75)
    x, y = scene.x, scene.y
    tone = hsv(rng.uniform(0.08, 0.13), rng.uniform(0.25, 0.6), rng.uniform(0.5, 0.85))
    outline = ellipse(x, y, 0.9, rng.uniform(0.55, 0.8)) + 0.05 * canvas.noise(rng, 4)
    scene.body(outline, scene.flat(tone) * scene.grain(0.08, 1.5), bevel=0)
    scene.ball(x / 0.95, y / 0.8, gloss=0.0)
    return scene


@thing("leaf", "foliage", "plant leaf")
def leaf(canvas: Canvas, rng: Random, change: Change | None) -> Scene:
    scene = Scene(canvas, rng, change, smallest=0.8, largest=1.0)
    x, y = scene.x, scene.y
    hue = rng.uniform(0.18, 0.4) if rng.random() < 0.8 else rng.uniform(0.02, 0.12)
    tone = hsv(hue, rng.uniform(0.4, 0.8), rng.uniform(0.3, 0.75))
    wide = rng.uniform(0.35, 0.6)
    outline = (np.abs(x) - wide * np.cos(np.clip(y * 1.62, -1.57, 1.57))) * 0.7
    outline = np.maximum(outline, np.abs(y) - 0.95)
    scene.body(outline, scene.flat(tone) * scene.grain(0.06, 2), bevel=0)
    veins = np.abs(np.sin((y + np.abs(x)) * rng.uniform(7, 13)))
    scene.shade(1 + 0.3 * np.exp(-((x / 0.025) ** 2)) + 0.15 * (veins < 0.12))
    return scene


@thing("bread", "toast", "slice of bread")
def bread(canvas: Canvas, rng: Random, change: Change | None) -> Scene:
    scene = Scene(canvas, rng, change, smallest=0.75)
    x, y = scene.x, scene.y
    loaf = np.minimum(
        box(x, y - 0.12, 0.72, 0.7, 0.1), box(x, y + 0.5, 0.85, 0.3, 0.28)
    )
    crust = hsv(rng.uniform(0.05, 0.09), rng.uniform(0.5, 0.8), rng.uniform(0.35, 0.65))
    scene.body(loaf, scene.flat(crust), bevel=0.2)
    crumb = hsv(rng.uniform(0.08, 0.12), rng.uniform(0.15, 0.4), rng.uniform(0.7, 0.95))
    pores = 1 - 0.25 * step(canvas.noise(rng, 1.2) - 1.2, 0.5)
    scene.paint(loaf + 0.08, scene.flat(crumb) * pores[..., None], 0, 0.06)
    return scene


@thing("donut", "doughnut", "bagel")
def donut(canvas: Canvas, rng: Random, change: Change | None) -> Scene:
    scene = Scene(canvas, rng, change, smallest=0.75)
    x, y = scene.x, scene.y
    hole = rng.uniform(0.2, 0.32)
    middle = (0.9 + hole) / 2
    outline = np.abs(circle(x, y, middle)) - (0.9 - hole) / 2
    dough = hsv(rng.uniform(0.06, 0.1), rng.uniform(0.5, 0.75), rng.uniform(0.5, 0.85))
    scene.body(outline, scene.flat(dough) * scene.grain(0.05, 1.5), bevel=0.5)
    wave = 0.04 * np.sin(np.arctan2(y, x) * int(rng.integers(5, 11)))
    scene.paint(outline + 0.1 + wave, scene.flat(color(rng)), bevel=0.4)
    tones = [color(rng) for _ in range(4)]
    for k in range(int(rng.integers(0, 28))):
        angle, at = rng.uniform(0, 2 * np.pi), middle + rng.uniform(-0.15, 0.15)
        u, v = x - at * np.cos(angle), y - at * np.sin(angle)
        scene.paint(box(u, v, 0.05, 0.02), scene.flat(tones[k % 4]))
    return scene


@thing("pizza", "pie", "tart", parts=True)
def pizza(canvas: Canvas, rng: Random, change: Change | None) -> Scene:
    scene = Scene(canvas, rng, change, smallest=0.8, largest=1.0)
    x, y = scene.x, scene.y
    crust = hsv(rng.uniform(0.07, 0.11), rng.uniform(0.4, 0.7), rng.uniform(0.6, 0.9))
    scene.body(
        circle(x, y, 0.93), scene.flat(crust) * scene.grain(0.07, 1.5), bevel=0.4
    )
    first = hsv(rng.uniform(0, 0.05), 0.8, rng.uniform(0.6, 0.8))
    cheese = hsv(rng.uniform(0.11, 0.15), 0.5, 0.9)
    sauce = mix(scene.flat(first), cheese, 0.5 + 0.4 * canvas.noise(rng, 2.5))
    scene.paint(circle(x, y, 0.78), sauce)
    slices, tone = int(rng.integers(4, 9)), hsv(rng.uniform(0.96, 1.0) % 1, 0.75, 0.6)

    def topping(u: Array, v: Array, shown: Array) -> None:
        scene.paint(circle(u, v, 0.14), scene.flat(shown), bevel=0.3)

    scene.parts(ring(slices, 0.48, rng.uniform(0, 6)), 0.17, topping, [tone])
    return scene


@thing("candy", "sweet", "gummy", "lozenge")
def candy(canvas: Canvas, rng: Random, change: Change | None) -> Scene:
    scene = Scene(canvas, rng, change, smallest=0.7)
    x, y = scene.x, scene.y
    corners = int(rng.integers(3, 9))
    outline = (
        polygon(x, y, 0.72, corners) - 0.08 if rng.random() < 0.5 else circle(x, y, 0.8)
    )
    surface = scene.flat(color(rng))
    if rng.random() < 0.6:
        swirl = np.sin(np.arctan2(y, x) * int(rng.integers(3, 8)) + circle(x, y, 0) * 7)
        surface = mix(surface, color(rng), step(swirl, 0.15))
    scene.body(outline, surface, bevel=0.6)
    scene.ball(x, y, gloss=0.7)
    return scene


@thing("candle", "wax candle")
def candle(canvas: Canvas, rng: Random, change: Change | None) -> Scene:
    scene = Scene(canvas, rng, change, smallest=0.75)
    x, y = scene.x, scene.y
    width, height = rng.uniform(0.25, 0.5), rng.uniform(0.6, 0.78)
    wax = scene.flat(color(rng, 0.6) * 0.5 + 0.48) * scene.grain(0.01, 2)
    scene.body(box(x, y - 0.12, width, height, 0.06), wax, bevel=0.1)
    scene.tube(x / width)
    scene.paint(box(x, y + height - 0.02, 0.025, 0.14), scene.flat(0.1))
    return scene


@thing("block", "cube", "wooden block")
def block(canvas: Canvas, rng: Random, change: Change | None) -> Scene:
    scene = Scene(canvas, rng, change)
    x, y = scene.x, scene.y
    scene.body(box(x, y, 0.8, 0.8, 0.04))
    scene.shade(0.85 + 0.3 * step(-box(x - 0.1, y - 0.1, 0.55, 0.55, 0.02), 0.05))
    return scene


@thing("vial", "ampoule", "syringe", "test tube")
def vial(canvas: Canvas, rng: Random, change: Change | None) -> Scene:
    scene = Scene(canvas, rng, change, smallest=0.85, largest=1.0)
    x, y = scene.x, scene.y
    width, level = rng.uniform(0.2, 0.34), rng.uniform(-0.5, 0.4)
    glass = scene.background * 0.6 + 0.35
    scene.body(box(x, y - 0.05, width, 0.82, width * 0.9), glass, bevel=0.3)
    fluid = np.maximum(box(x, y - 0.05, width - 0.05, 0.77, width * 0.8), level - y)
    scene.paint(fluid, scene.flat(color(rng)))
    scene.paint(box(x, y + 0.82, width * 0.8, 0.12, 0.02), scene.flat(color(rng)), 0.3)
    scene.tube(x / width)
    return scene


# Held out of the training of the embedded model


@thing("capsule", "softgel")
def capsule(canvas: Canvas, rng: Random, change: Change | None) -> Scene:
    scene = Scene(canvas, rng, change)
    width = rng.uniform(0.25, 0.42)
    first, second = two_colors(rng)
    surface = mix(scene.flat(first), second, step(scene.x, EDGE))
    scene.body(box(scene.x, scene.y, 0.92, width, width), surface, bevel=0)
    scene.tube(scene.y / width)
    return scene


@thing("gear", "cogwheel")
def gear(canvas: Canvas, rng: Random, change: Change | None) -> Scene:
    scene = Scene(canvas, rng, change, smallest=0.75)
    x, y = scene.x, scene.y
    radius, teeth = circle(x, y, 0), int(rng.integers(10, 24))
    edge = 0.12 * np.clip(3 * np.sin(teeth * np.arctan2(y, x)), -1, 1)
    outline = np.maximum(radius - 0.78 - edge, rng.uniform(0.15, 0.35) - radius)
    scene.body(outline * np.float32(0.6))
    return scene


@thing("cookie", "biscuit")
def cookie(canvas: Canvas, rng: Random, change: Change | None) -> Scene:
    scene = Scene(canvas, rng, change, smallest=0.7)
    x, y = scene.x, scene.y
    dough = hsv(rng.uniform(0.05, 0.11), rng.uniform(0.4, 0.7), rng.uniform(0.4, 0.85))
    outline = circle(x, y, 0.88) + 0.03 * canvas.noise(rng, 3)
    scene.body(outline, scene.flat(dough) * scene.grain(0.1, 1.6))
    for _ in range(int(rng.integers(3, 12))):
        u, v = rng.uniform(-0.55, 0.55, 2)
        scene.paint(
            circle(x - u, y - v, rng.uniform(0.05, 0.13)), scene.flat(0.12), 0.2
        )
    return scene


@thing("zipper", "zip fastener")
def zipper(canvas: Canvas, rng: Random, change: Change | None) -> Scene:
    scene = Scene(canvas, rng, change, smallest=0.95, largest=1.05)
    scene.image = scene.background = TEXTURES["fabric"](canvas, rng)
    scene.mask = np.ones_like(scene.mask)
    x, y = scene.x, scene.y
    wave = np.sin(np.pi * y * rng.uniform(8, 14))
    outline = np.maximum(np.abs(x - 0.05 * np.sign(wave)) - 0.16, 0.18 - np.abs(wave))
    scene.paint(outline * np.float32(0.5), scene.flat(color(rng, 0.4)), bevel=0.4)
    return scene


@thing("button", "shirt button", parts=True)
def button(canvas: Canvas, rng: Random, change: Change | None) -> Scene:
    scene = Scene(canvas, rng, change)
    x, y = scene.x, scene.y
    tone = color(rng)
    scene.body(circle(x, y, 0.9), scene.flat(tone) * scene.grain(0.02, 2), bevel=0.5)
    scene.paint(circle(x, y, 0.62), scene.flat(tone * 0.9), bevel=-0.5)

    def hole(u: Array, v: Array, tone: Array | None) -> None:
        scene.paint(circle(u, v, 0.11), scene.hole(tone))

    holes = ring(int(rng.choice([2, 4])), 0.26, rng.uniform(0, 3))
    scene.parts(holes, 0.14, hole, [None])
    return scene


@thing("lemon", "lime")
def lemon(canvas: Canvas, rng: Random, change: Change | None) -> Scene:
    scene = Scene(canvas, rng, change, smallest=0.75)
    x, y = scene.x, scene.y
    hue = rng.uniform(0.13, 0.18) if rng.random() < 0.6 else rng.uniform(0.22, 0.3)
    peel = scene.flat(hsv(hue, rng.uniform(0.6, 0.9), rng.uniform(0.7, 0.95)))
    outline = np.minimum(ellipse(x, y, 0.8, 0.62), ellipse(x, y, 0.95, 0.2))
    scene.body(outline, peel * scene.grain(0.05, 0.6), bevel=0)
    scene.ball(x / 0.9, y / 0.66)
    return scene
