"""Families of textures: one function per family, each draws a whole image."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .drawing import (
    Array,
    Canvas,
    Random,
    color,
    hsv,
    metal,
    mix,
    step,
    two_colors,
)

Texture = Callable[[Canvas, Random], Array]
TEXTURES: dict[str, Texture] = {}
NOUNS: dict[str, tuple[str, ...]] = {}
TURN = np.float32(2 * np.pi)


def texture(name: str, *other_nouns: str) -> Callable[[Texture], Texture]:
    """Register a family of textures and the nouns that captions use for it."""

    def register(draw: Texture) -> Texture:
        TEXTURES[name] = draw
        NOUNS[name] = (name, *other_nouns)
        return draw

    return register


def _grain(canvas: Canvas, rng: Random, low: float, high: float, beta: float) -> Array:
    """A factor around 1 with noise of random strength, for all three channels."""
    strength = np.float32(rng.uniform(low, high))
    return (1 + strength * canvas.noise(rng, beta))[..., None]


@texture("plain surface", "smooth surface", "painted surface", "plastic film")
def plain(canvas: Canvas, rng: Random) -> Array:
    grain = _grain(canvas, rng, 0, 0.03, rng.uniform(0, 2.5))
    return canvas.flat(color(rng)) * grain


@texture("mottled surface", "noisy surface", "cloudy surface")
def mottled(canvas: Canvas, rng: Random) -> Array:
    first, second = two_colors(rng)
    noise = canvas.noise(rng, rng.uniform(0.5, 3))
    return mix(first, second, 0.5 + np.float32(rng.uniform(0.1, 0.3)) * noise)


@texture("wood", "wooden board", "timber", "plank")
def wood(canvas: Canvas, rng: Random) -> Array:
    light = hsv(rng.uniform(0.04, 0.12), rng.uniform(0.2, 0.7), rng.uniform(0.4, 0.9))
    dark = light * np.float32(rng.uniform(0.4, 0.8))
    u, v = canvas.rotated(rng, aligned=True)
    u = u + np.float32(rng.uniform(0.02, 0.15)) * canvas.noise(rng, 3.5)
    u = u + np.float32(rng.uniform(0, 0.06)) * (v - np.float32(rng.uniform(-3, 3))) ** 2
    rings = 0.5 + 0.5 * np.sin(TURN * np.float32(rng.uniform(3, 12)) * u)
    rings = rings ** np.float32(rng.uniform(0.5, 3))
    angle = rng.choice([0, np.pi / 2])
    fibre = canvas.noise(rng, 1.5, stretch=rng.uniform(8, 40), angle=angle)
    return mix(light, dark, 0.7 * rings + 0.15 * fibre)


@texture("weave", "woven fabric", "basket weave", "canvas")
def weave(canvas: Canvas, rng: Random) -> Array:
    warp, weft = two_colors(rng)
    frequency = rng.uniform(5, 16)
    u, v = canvas.rotated(rng, frequency, aligned=True, warp=rng.uniform(0, 0.1))
    over = (np.floor(u) + np.floor(v)) % 2 > 0
    along, across = np.sin(np.pi * (u % 1)), np.sin(np.pi * (v % 1))
    height = np.where(over, along * (0.6 + 0.4 * across), across * (0.6 + 0.4 * along))
    base = np.where(over[..., None], warp, weft)
    return base * (0.35 + 0.65 * height)[..., None] * _grain(canvas, rng, 0, 0.08, 1)


@texture("brick wall", "bricks", "tiles", "tiled wall")
def brick(canvas: Canvas, rng: Random) -> Array:
    stone, mortar = two_colors(rng)
    aspect = np.float32(rng.uniform(1, 2.6))
    u, v = canvas.rotated(rng, rng.uniform(2, 6), aligned=True)
    row = np.floor(v)
    u = u / aspect + (row % 2) * np.float32(0.5 * (rng.random() < 0.7))
    tint = np.sin(row * 127.1 + np.floor(u) * 311.7) * 43758.5
    tint = tint - np.floor(tint)
    gap = np.minimum(
        np.minimum(u % 1, 1 - u % 1) * aspect, np.minimum(v % 1, 1 - v % 1)
    )
    face = step(gap - np.float32(rng.uniform(0.03, 0.12)), 0.05)
    stones = stone * (1 + np.float32(rng.uniform(0, 0.35)) * (tint - 0.5))[..., None]
    return mix(np.broadcast_to(mortar, stones.shape), stones, face) * _grain(
        canvas, rng, 0.02, 0.1, 1.5
    )


@texture("brushed metal", "metal sheet", "steel", "aluminium")
def brushed(canvas: Canvas, rng: Random) -> Array:
    angle = rng.choice([0, np.pi / 2, rng.uniform(0, 3)])
    lines = canvas.noise(rng, 0.8, stretch=rng.uniform(10, 60), angle=angle)
    return metal(rng) * (1 + np.float32(rng.uniform(0.03, 0.15)) * lines)[..., None]


@texture("leather", "hide", "artificial leather")
def leather(canvas: Canvas, rng: Random) -> Array:
    near, far, _ = canvas.cells(rng, int(rng.integers(150, 900)))
    base = color(rng)
    if rng.random() < 0.6:
        base = hsv(rng.uniform(0, 0.15), rng.uniform(0.1, 0.7), rng.uniform(0.2, 0.8))
    gap = far - near
    valley = np.exp(-2 * gap / gap.mean())
    depth = np.float32(rng.uniform(0.15, 0.5))
    return base * (1 - depth * valley + 0.05 * canvas.noise(rng, 2))[..., None]


@texture("granite", "stone", "speckled stone")
def granite(canvas: Canvas, rng: Random) -> Array:
    colors = np.stack([color(rng) for _ in range(3)])
    _, _, index = canvas.cells(rng, int(rng.integers(800, 4000)))
    label = rng.integers(0, 3, index.max() + 1)[index]
    mean = colors.mean(axis=0)
    contrast = np.float32(rng.uniform(0.3, 0.9))
    return (mean + (colors[label] - mean) * contrast) * _grain(canvas, rng, 0, 0.05, 1)


@texture("stripes", "striped pattern", "striped cloth")
def stripes(canvas: Canvas, rng: Random) -> Array:
    first, second = two_colors(rng)
    u, _ = canvas.rotated(rng, rng.uniform(2, 14), aligned=True)
    wave = np.sin(TURN * u) - np.float32(rng.uniform(-0.6, 0.6))
    edge = step(wave, rng.uniform(0.05, 1.5))
    return mix(first, second, edge) * _grain(canvas, rng, 0, 0.05, 1.5)


@texture("grid", "wire mesh", "mesh", "net")
def grid(canvas: Canvas, rng: Random) -> Array:
    ground, wire = two_colors(rng)
    u, v = canvas.rotated(rng, rng.uniform(4, 11), aligned=True)
    width = np.float32(rng.uniform(0.08, 0.3))
    if rng.random() < 0.5:
        u, v = u + 0.6 * v, u - 0.6 * v
    distance = np.minimum(np.abs(u - np.round(u)), np.abs(v - np.round(v)))
    shine = np.clip(1 - 0.5 * distance / width, 0.4, 1)[..., None]
    below = ground * _grain(canvas, rng, 0, 0.06, 3)
    return mix(below, wire * shine, step(width / 2 - distance + 0.02, 0.1))


@texture("paper", "sheet of paper", "cardboard")
def paper(canvas: Canvas, rng: Random) -> Array:
    base = color(rng, 0.35) * 0.4 + 0.55
    fibre = _grain(canvas, rng, 0, 0.05, rng.uniform(1, 2.2))
    return base * _grain(canvas, rng, 0.01, 0.08, rng.uniform(0.3, 1.6)) * fibre


@texture("glass", "glass sheet", "window", "glossy surface")
def glass(canvas: Canvas, rng: Random) -> Array:
    first, second = two_colors(rng)
    u, _ = canvas.rotated(rng, 0.4)
    slope = np.float32(rng.uniform(0.1, 1))
    return mix(first, second, 0.5 + 0.3 * u * slope + 0.03 * canvas.noise(rng, 3))


@texture("circuit traces", "conductor tracks", "printed traces")
def traces(canvas: Canvas, rng: Random) -> Array:
    board = hsv(rng.uniform(0.25, 0.65), rng.uniform(0.4, 0.9), rng.uniform(0.15, 0.5))
    pitch = int(rng.integers(6, 13))
    width, cells = max(1.0, pitch / 4), 128 // pitch
    copper = np.zeros(canvas.row.shape, np.float32)
    pads = np.full(canvas.row.shape, -9, np.float32)
    for _ in range(int(rng.integers(10, 26))):
        row, column = (rng.integers(0, cells, 2) * pitch).astype(float)
        across = bool(rng.integers(0, 2))
        for _ in range(int(rng.integers(1, 4))):
            move = rng.integers(2, 9) * pitch * rng.choice([-1, 1])
            end_row = row if across else np.clip(row + move, 0, 127)
            end_column = np.clip(column + move, 0, 127) if across else column
            top, bottom = sorted((row, end_row))
            left, right = sorted((column, end_column))
            index = np.array([top, bottom + width, left, right + width]) * canvas.scale
            a, b, c, d = index.astype(int)
            copper[a:b, c:d] = 1
            row, column, across = end_row, end_column, not across
        pads = np.maximum(pads, canvas.disk(np.array([row, column]), width + 1))
    share = np.maximum(canvas.blur(copper, 0.5), step(pads, 1))
    ground = board * _grain(canvas, rng, 0, 0.05, 1)
    return mix(ground, color(rng) * 0.6 + 0.35, share)


@texture("solar cell", "solar panel", "photovoltaic cell")
def solar(canvas: Canvas, rng: Random) -> Array:
    base = hsv(rng.uniform(0.55, 0.68), rng.uniform(0, 0.7), rng.uniform(0.15, 0.6))
    u, v = canvas.rotated(rng, aligned=True)
    bars = np.abs((u * rng.integers(2, 5) / 2) % 1 - 0.5)
    fingers = 0.08 * np.sin(TURN * v * np.float32(rng.uniform(12, 28)))
    if rng.random() < 0.5:
        _, _, index = canvas.cells(rng, int(rng.integers(20, 120)))
        crystals = rng.random(index.max() + 1).astype(np.float32)[index]
        tone = 1 + np.float32(rng.uniform(0.1, 0.6)) * (crystals - 0.5)
    else:
        falloff = np.float32(rng.uniform(0, 0.25)) * (canvas.x**2 + canvas.y**2)
        tone = 1 + 0.06 * canvas.noise(rng, 2) - falloff
    bus = color(rng, 0.2) * np.float32(0.3) + 0.5
    edge = step(np.float32(rng.uniform(0.02, 0.05)) - bars, 0.03)
    return mix(base * (tone + fingers)[..., None], bus, edge)


@texture("asphalt", "road", "pavement")
def asphalt(canvas: Canvas, rng: Random) -> Array:
    base = color(rng, 0.15) * 0.5 + 0.2
    coarse = np.float32(rng.uniform(0.07, 0.28)) * canvas.noise(rng, 0.2, lowest=0.05)
    return base * (1 + coarse + 0.08 * canvas.noise(rng, 2.5))[..., None]


@texture("concrete", "cement", "concrete wall")
def concrete(canvas: Canvas, rng: Random) -> Array:
    base = color(rng, 0.2) * 0.4 + 0.4
    pores = (canvas.noise(rng, 0.1) > rng.uniform(2.6, 3.2)).astype(np.float32)
    tone = 1 - 0.3 * canvas.blur(pores, 0.6)
    return base * tone[..., None] * _grain(canvas, rng, 0.03, 0.1, 2.2)


@texture("terrazzo", "mosaic", "flakes")
def terrazzo(canvas: Canvas, rng: Random) -> Array:
    near, far, index = canvas.cells(rng, int(rng.integers(60, 300)))
    colors = np.stack([color(rng) for _ in range(5)])
    label = rng.integers(0, 5, index.max() + 1)[index]
    chips = step(far - near - np.float32(rng.uniform(1, 5)), 1)
    return mix(np.broadcast_to(color(rng), (*index.shape, 3)), colors[label], chips)


@texture("knitwear", "knitted fabric", "sweater", "wool")
def knit(canvas: Canvas, rng: Random) -> Array:
    u, v = canvas.rotated(rng, rng.uniform(5, 11), aligned=True)
    column = np.abs(np.sin(np.pi * u))
    loops = 0.5 + 0.5 * np.sin(TURN * (v + 0.35 * column) * 1.3)
    height = 0.4 + 0.6 * loops * (0.6 + 0.4 * column)
    return color(rng) * height[..., None] * _grain(canvas, rng, 0, 0.08, 1)


@texture("perforated sheet", "dotted pattern", "perforated plate")
def perforated(canvas: Canvas, rng: Random) -> Array:
    sheet, hole = two_colors(rng)
    u, v = canvas.rotated(rng, rng.uniform(3, 9), aligned=True)
    u = u + 0.5 * (np.floor(v) % 2) * (rng.random() < 0.5)
    distance = np.sqrt((u % 1 - 0.5) ** 2 + (v % 1 - 0.5) ** 2)
    dots = step(np.float32(rng.uniform(0.18, 0.38)) - distance, 0.08)
    return mix(sheet * _grain(canvas, rng, 0, 0.05, 1.5), hole * 0.6, dots)


@texture("corrugated sheet", "ribbed surface", "corrugated metal")
def corrugated(canvas: Canvas, rng: Random) -> Array:
    u, _ = canvas.rotated(rng, rng.uniform(2, 9), aligned=True)
    ribs = 0.6 + 0.4 * np.sin(TURN * u) * np.float32(rng.uniform(0.4, 1))
    return color(rng) * ribs[..., None] * _grain(canvas, rng, 0, 0.04, 1)


@texture("foam", "sponge", "bubble wrap")
def foam(canvas: Canvas, rng: Random) -> Array:
    near, _, _ = canvas.cells(rng, int(rng.integers(100, 600)))
    depth = np.float32(rng.uniform(0.3, 0.7))
    return color(rng) * (1.05 - depth * (1 - near / near.max()) ** 3)[..., None]


@texture("fabric", "cloth", "textile")
def fabric(canvas: Canvas, rng: Random) -> Array:
    frequency = rng.uniform(10, 26)
    u, v = canvas.rotated(rng, frequency, aligned=True, warp=rng.uniform(0, 0.2))
    cross = 0.5 * np.sin(TURN * u) + 0.5 * np.sin(TURN * v)
    weft = 1 + np.float32(rng.uniform(0.1, 0.35)) * cross
    return color(rng) * weft[..., None] * _grain(canvas, rng, 0, 0.08, 1.2)


@texture("cork", "pressed cork", "chipboard")
def cork(canvas: Canvas, rng: Random) -> Array:
    near, far, index = canvas.cells(rng, int(rng.integers(200, 1200)))
    base = hsv(rng.uniform(0.06, 0.12), rng.uniform(0.3, 0.6), rng.uniform(0.45, 0.85))
    tint = rng.uniform(0.75, 1.1, index.max() + 1).astype(np.float32)[index]
    gap = step(far - near - 0.5, 1.5)
    return (
        base * (tint * (0.75 + 0.25 * gap))[..., None] * _grain(canvas, rng, 0, 0.06, 1)
    )


@texture("checkerboard", "checked pattern", "chessboard")
def checkerboard(canvas: Canvas, rng: Random) -> Array:
    first, second = two_colors(rng, 0.2)
    u, v = canvas.rotated(rng, rng.uniform(2, 7), aligned=True)
    waves = np.sin(np.pi * u) * np.sin(np.pi * v)
    return mix(first, second, step(waves, 0.1)) * _grain(canvas, rng, 0, 0.06, 1.5)


@texture("tread plate", "diamond plate", "checker plate")
def tread(canvas: Canvas, rng: Random) -> Array:
    u, v = canvas.rotated(rng, rng.uniform(2.5, 6), aligned=True)
    across = (np.floor(u) + np.floor(v)) % 2 > 0
    a, b = u % 1 - 0.5, v % 1 - 0.5
    a, b = np.where(across, a, b), np.where(across, b, a)
    height = np.clip(1 - (a / 0.45) ** 2 - (b / 0.16) ** 2, 0, 1)
    shade = 0.75 + np.float32(rng.uniform(0.3, 0.6)) * height * (1 + np.sign(b) * 0.4)
    return metal(rng) * shade[..., None] * _grain(canvas, rng, 0, 0.05, 1)


@texture("felt", "fleece", "velvet")
def felt(canvas: Canvas, rng: Random) -> Array:
    hair = canvas.noise(rng, 1.0, stretch=6, angle=rng.uniform(0, 3), lowest=0.03)
    return color(rng) * (1 + np.float32(rng.uniform(0.08, 0.22)) * hair)[..., None]


@texture("printed page", "text page", "newspaper")
def page(canvas: Canvas, rng: Random) -> Array:
    sheet, ink = two_colors(rng, 0.35)
    lines = int(rng.integers(7, 16))
    u, v = canvas.rotated(rng, lines, aligned=True)
    letters = np.sin(7.3 * u) + np.sin(12.1 * u + 5 * np.floor(v)) * 0.8
    letters = letters + 0.9 * canvas.noise(rng, 0.3)
    gaps = np.sin(1.9 * u + 17.3 * np.floor(v)) > -0.75
    band = np.abs(v % 1 - 0.5) < 0.28
    dark = step(letters, 1.0) * gaps * band * np.float32(rng.uniform(0.5, 1))
    return mix(sheet * _grain(canvas, rng, 0, 0.03, 1.5), ink, dark)


@texture("gravel", "pebbles", "coffee beans", "grains")
def gravel(canvas: Canvas, rng: Random) -> Array:
    near, far, index = canvas.cells(rng, int(rng.integers(60, 250)))
    tint = rng.uniform(0.6, 1.1, index.max() + 1).astype(np.float32)[index]
    roof = np.clip((far - near) / (far - near).max() * 2.5, 0, 1) ** np.float32(0.6)
    return color(rng, 0.6) * (tint * (0.2 + 0.8 * roof))[..., None]


@texture("display", "screen", "pixel matrix")
def display(canvas: Canvas, rng: Random) -> Array:
    u, v = canvas.rotated(rng, rng.uniform(9, 20), aligned=True)
    dots = np.clip(np.cos(np.pi * u) ** 2 * np.cos(np.pi * v) ** 2 * 1.6, 0, 1)
    first, second = two_colors(rng)
    tone = mix(first, second, 0.5 + 0.4 * canvas.x * np.float32(rng.uniform(-1, 1)))
    return tone * (0.35 + 0.65 * dots)[..., None]


@texture("quilt", "padded cloth", "cushion")
def quilt(canvas: Canvas, rng: Random) -> Array:
    u, v = canvas.rotated(rng, rng.uniform(2, 4.5), aligned=True)
    if rng.random() < 0.6:
        u, v = u + v, u - v
    pillow = np.abs(np.sin(np.pi * u / 1.4) * np.sin(np.pi * v / 1.4))
    height = 0.5 + 0.5 * pillow ** np.float32(rng.uniform(0.25, 0.6))
    return color(rng) * height[..., None] * _grain(canvas, rng, 0.02, 0.06, 1)


# Held out of the training of the embedded model


@texture("marble", "marble slab")
def marble(canvas: Canvas, rng: Random) -> Array:
    base, vein = two_colors(rng)
    u, _ = canvas.rotated(rng)
    swirl = np.float32(rng.uniform(0.15, 0.5)) * canvas.noise(rng, 3)
    ridge = np.abs(np.sin(TURN * (np.float32(rng.uniform(0.5, 2)) * u + swirl)))
    share = ridge ** np.float32(rng.uniform(0.2, 0.6)) + 0.06 * canvas.noise(rng, 1.5)
    return mix(vein, base, share)


@texture("carpet", "rug")
def carpet(canvas: Canvas, rng: Random) -> Array:
    first, second = two_colors(rng)
    u, v = canvas.rotated(rng, aligned=True)
    pile = canvas.noise(rng, 0.4, lowest=0.1)
    a, b = rng.uniform(4, 14, 2)
    motif = np.sin(TURN * u * np.float32(a)) * np.sin(TURN * v * np.float32(b))
    return mix(
        first, second, 0.4 + 0.22 * pile + 0.25 * motif * np.float32(rng.random())
    )


@texture("hexagon tiles", "honeycomb")
def hexagons(canvas: Canvas, rng: Random) -> Array:
    tile, joint = two_colors(rng)
    u, v = canvas.rotated(rng, rng.uniform(3, 9), aligned=True)
    root = np.float32(np.sqrt(3))

    def cell(a: Array, b: Array) -> tuple[Array, Array]:
        return a - np.round(a), b - np.round(b / root) * root

    (a, b), (c, d) = cell(u, v), cell(u - 0.5, v - root / 2)
    nearer = a * a + b * b < c * c + d * d
    a, b = np.abs(np.where(nearer, a, c)), np.abs(np.where(nearer, b, d))
    inside = 0.5 - np.maximum(a, 0.5 * a + root / 2 * b)
    face = step(inside - np.float32(rng.uniform(0.04, 0.15)), 0.06)
    return mix(joint, tile * _grain(canvas, rng, 0, 0.06, 1.5), face)


@texture("ripples", "waves")
def ripples(canvas: Canvas, rng: Random) -> Array:
    first, second = two_colors(rng)
    u, v = canvas.rotated(rng)
    a, b = rng.uniform(-4, 4, 2)
    distance = np.sqrt((u - np.float32(a)) ** 2 + (v - np.float32(b)) ** 2)
    phase = (
        np.float32(rng.uniform(8, 28)) * distance + canvas.noise(rng, 3) * rng.random()
    )
    height = np.float32(rng.uniform(0.18, 0.45)) * np.sin(phase, dtype=np.float32)
    return mix(first, second, 0.5 + height)


def material(canvas: Canvas, rng: Random) -> Array:
    """What a part is made of: mostly clean, sometimes a texture."""
    kind = rng.random()
    if kind < 0.35:
        return canvas.flat(color(rng)) * _grain(canvas, rng, 0, 0.03, 1)
    if kind < 0.6:
        return canvas.flat(metal(rng)) * _grain(canvas, rng, 0, 0.04, 1.5)
    first = ("brushed metal", "paper", "granite", "wood", "leather", "concrete")
    names = (*first, "mottled surface", "asphalt", "foam", "felt")
    return TEXTURES[names[rng.integers(len(names))]](canvas, rng)


def backdrop(canvas: Canvas, rng: Random) -> Array:
    """What an object lies on: mostly clean, sometimes a texture."""
    kind = rng.random()
    if kind < 0.25:
        return canvas.flat(rng.choice([0.03, 0.1, 0.5, 0.9, 0.97]))
    if kind < 0.6:
        first = color(rng, 0.5)
        second = first + np.float32(rng.uniform(-0.15, 0.15))
        slope = 0.5 + 0.5 * (canvas.x if rng.random() < 0.5 else canvas.y)
        return mix(first, second, slope) * _grain(canvas, rng, 0, 0.02, 1)
    base = ("plain surface", "mottled surface", "paper", "brushed metal", "glass")
    names = (
        *base,
        "concrete",
        "asphalt",
        "wood",
        "fabric",
        "felt",
        "corrugated sheet",
    )
    return TEXTURES[names[rng.integers(len(names))]](canvas, rng)
