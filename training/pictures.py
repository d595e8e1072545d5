"""Draw every family into docs/pictures: ``python -m training.pictures``."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from clipad_sklearn.datasets import (
    DEFECT_FAMILIES,
    OBJECT_FAMILIES,
    TEXTURE_FAMILIES,
)
from clipad_sklearn.datasets._defect_images import STRUCTURAL, WITH_PARTS, draw_sample

TARGET = Path(__file__).parent.parent / "docs" / "pictures"
SIZE, LABEL, COLUMNS = 96, 14, 10


def sheet(tiles: list[tuple[str, np.ndarray]], columns: int) -> Image.Image:
    """Labelled pictures in rows."""
    width, height = tiles[0][1].shape[1], SIZE + LABEL
    rows = math.ceil(len(tiles) / columns)
    page = Image.new("RGB", (columns * width, rows * height), "white")
    pen = ImageDraw.Draw(page)
    for k, (name, image) in enumerate(tiles):
        left, top = k % columns * width, k // columns * height
        page.paste(Image.fromarray(image), (left, top + LABEL))
        pen.text((left + 2, top + 1), name, fill="black")
    return page


def main() -> None:
    TARGET.mkdir(parents=True, exist_ok=True)
    every = TEXTURE_FAMILIES + OBJECT_FAMILIES
    for group, names in (("textures", TEXTURE_FAMILIES), ("objects", OBJECT_FAMILIES)):
        tiles = []
        for name in names:
            rng = np.random.default_rng([5, every.index(name)])
            sample = draw_sample(rng, SIZE, [name], ["stain"], (1, 1), spoiled=False)
            tiles.append((name, sample.good))
        sheet(tiles, COLUMNS).save(TARGET / f"{group}.jpg", quality=85)
    tiles = []
    for name in DEFECT_FAMILIES:
        families = sorted(WITH_PARTS) if name in STRUCTURAL else every
        rng = np.random.default_rng([6, DEFECT_FAMILIES.index(name)])
        sample = draw_sample(rng, SIZE, families, [name], (0.7, 0.9))
        pair = np.concatenate([sample.good, sample.bad], axis=1)
        tiles.append((name, pair))
    sheet(tiles, COLUMNS // 2).save(TARGET / "defects.jpg", quality=85)


if __name__ == "__main__":
    main()
