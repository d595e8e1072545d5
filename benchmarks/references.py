"""Good photos, folders that judge themselves, and old products, on real photos.

For each category of a folder in the layout of MVTec AD, with the embedded CLIP:

images
    AUROC of `ReferenceDetector` with 1, 4, 8 and all of its good photos, the mean of
    several draws, and of the test photos compared with each other; beside words
    (`PromptDetector`) and the largest deviation of a grey value from the photo's mean.
maps
    Pixel AUROC and PRO where there are masks, beside `SDPDetector`, `WinCLIPDetector`
    and the maps of naive_maps.py.
sizes
    AUROC of words and of references at two input sizes.
directions
    AUROC of `DamageDirectionDetector`, learned from the other categories, and from
    those of other sources alone (the first folder of a category's path).

The figures are kept in docs/benchmark_tables/references.json, category by category, and
the tables of docs/benchmarks.rst are made from it::

    python benchmarks/references.py --root "$CLIPAD_SHARED_DATA" alien dobot_cubes
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

REPOSITORY = Path(__file__).parents[1]
sys.path.insert(0, str(REPOSITORY))

from naive_maps import naive_maps  # noqa: E402
from tables import TABLES, write_table  # noqa: E402

from clipad_sklearn import (  # noqa: E402
    CLIPImageEncoder,
    DamageDirectionDetector,
    OpenCLIP,
    PromptDetector,
    ReferenceDetector,
    SDPDetector,
    WinCLIPDetector,
    list_images,
)
from clipad_sklearn._cli.benchmark_run import read_mask  # noqa: E402
from clipad_sklearn._cli.methods import MUTUAL_SHARE  # noqa: E402
from clipad_sklearn._clip.patch_tokens import PatchTower  # noqa: E402
from clipad_sklearn._images import open_image  # noqa: E402
from clipad_sklearn.datasets import load_image_folder, load_mvtec_ad  # noqa: E402
from clipad_sklearn.metrics import auroc, pro  # noqa: E402

FIGURES = TABLES / "references.json"
PARTS = ("images", "maps", "sizes", "directions")
PLACES = {"both": "", "anywhere": ", anywhere", "same": ", same place"}
SIZES = (112, 224)
N_DRAWS = 3

Figures = dict[str, list[float]]


class Category:
    """The photos of a category, read once."""

    def __init__(self, root: str, name: str) -> None:
        self.data = tested(root, name)
        self.images = opened(self.data.images)
        self.y = self.data.target
        self.good = opened(list_images(Path(root) / name / "train" / "good"))

    def drawn(self, n: int, draw: int) -> list[np.ndarray]:
        """Return `n` of the good photos."""
        order = np.random.default_rng(draw).permutation(len(self.good))[:n]
        return [self.good[i] for i in order]


def tested(root: str, name: str) -> Any:
    """List the test photos of a category; some have no masks."""
    if (Path(root) / name / "ground_truth").is_dir():
        return load_mvtec_ad(root, name)
    return load_image_folder(Path(root) / name / "test")


def opened(paths: list[str]) -> list[np.ndarray]:
    return [np.asarray(open_image(path)) for path in paths]


def encode_once() -> None:
    """Let a photo go through the vision tower once, however often it is compared."""
    kept: dict[tuple[bytes, tuple[int, ...]], tuple[list[Any], Any]] = {}
    encode = PatchTower.encode

    def encode_new(tower: Any, pixels: Any, blocks: Any) -> Any:
        keys = [(photo.numpy().tobytes(), tuple(blocks)) for photo in pixels]
        new = [i for i, key in enumerate(keys) if key not in kept]
        if new:
            tokens, embeddings = encode(tower, pixels[new], blocks)
            for row, i in enumerate(new):
                kept[keys[i]] = [block[row] for block in tokens], embeddings[row]
        rows = [kept[key] for key in keys]
        tokens = [
            torch.stack(block) for block in zip(*(r[0] for r in rows), strict=True)
        ]
        return tokens, torch.stack([row[1] for row in rows])

    PatchTower.encode = encode_new  # type: ignore[method-assign]


def of_images(category: Category) -> Figures:
    figures: Figures = {}

    def add(title: str, photos: list[Any], **parameters: Any) -> None:
        detector = ReferenceDetector("tiny", **parameters).fit(photos)
        auroc_ = 100 * detector.score(category.images, category.y)
        figures.setdefault(title, []).append(auroc_)

    words = PromptDetector("tiny").fit(None)
    embeddings = CLIPImageEncoder("tiny").fit_transform(category.images)
    figures["words"] = [100 * words.score(embeddings, category.y)]
    grey = [np.abs(x.mean(axis=2) - x.mean()).max() for x in category.images]
    figures["grey-level deviation"] = [100 * auroc(category.y, grey)]
    for n, title in (1, "1 good photo"), (4, "4 good photos"), (8, "8 good photos"):
        for place, suffix in PLACES.items():
            if n == 8 or place == "both":
                for draw in range(N_DRAWS):
                    photos = category.drawn(n, draw)
                    add(title + suffix, photos, location=place)
    for place, suffix in PLACES.items():
        add(f"all good photos{suffix}", category.good, location=place)
    for place, suffix in PLACES.items():
        share = {"n_neighbors": MUTUAL_SHARE, "location": place}
        add(f"the photos themselves{suffix}", category.images, **share)
    return figures


def of_maps(category: Category) -> Figures:
    size = (112, 112)
    data, images = category.data, category.images
    if data.masks is None:
        return {}
    masks = [
        None if mask is None else read_mask(mask, image, size)
        for mask, image in zip(data.masks, data.images, strict=True)
    ]
    fitted = {
        "8 good photos": ReferenceDetector("tiny").fit(category.drawn(8, 0)),
        "all good photos": ReferenceDetector("tiny").fit(category.good),
        "the photos themselves": ReferenceDetector(
            "tiny", n_neighbors=MUTUAL_SHARE
        ).fit(images),
        "WinCLIP with 8 good photos": WinCLIPDetector("tiny", references=True).fit(
            category.drawn(8, 0)
        ),
        "WinCLIP": WinCLIPDetector("tiny").fit(None),
        "SDP": SDPDetector("tiny").fit(None),
    }
    maps = {name: d.anomaly_maps(images, size=size) for name, d in fitted.items()}
    maps["naive maps"] = naive_maps(OpenCLIP("tiny"), images)
    return {
        name: [100 * auroc(masks, some), 100 * pro(masks, some)]
        for name, some in maps.items()
    }


def of_sizes(category: Category) -> Figures:
    figures: Figures = {}
    for side in SIZES:
        clip = OpenCLIP("tiny", image_size=side)
        embeddings = CLIPImageEncoder(clip).fit_transform(category.images)
        words = PromptDetector(clip).fit(None)
        pixels = f"{side} pixels"
        figures[f"words, {pixels}"] = [100 * words.score(embeddings, category.y)]
        figures[f"8 good photos, {pixels}"] = [
            100
            * ReferenceDetector(clip)
            .fit(category.drawn(8, draw))
            .score(category.images, category.y)
            for draw in range(N_DRAWS)
        ]
    return figures


def of_directions(root: str, names: list[str]) -> dict[str, Figures]:
    """Return the figures of all categories, which are learned from together."""
    clip = OpenCLIP("tiny")
    data = [tested(root, name) for name in names]
    embeddings = [CLIPImageEncoder(clip).fit_transform(part.images) for part in data]
    sources = [name.split("/")[0] for name in names]
    words = PromptDetector(clip).fit(None)

    def learned_from(used: list[int], tested: int) -> list[float]:
        detector = DamageDirectionDetector().fit(
            np.vstack([embeddings[i] for i in used]),
            np.concatenate([data[i].target for i in used]),
            groups=np.repeat(used, [len(embeddings[i]) for i in used]),
        )
        return [100 * detector.score(embeddings[tested], data[tested].target)]

    numbers = range(len(names))
    return {
        name: {
            "words": [100 * words.score(embeddings[tested], data[tested].target)],
            "the other categories": learned_from(
                [i for i in numbers if i != tested], tested
            ),
            "other sources alone": learned_from(
                [i for i in numbers if sources[i] != sources[tested]], tested
            ),
        }
        for tested, name in enumerate(names)
    }


def write_tables(figures: dict[str, dict[str, Figures]]) -> None:
    """Make the tables of the documentation from the figures."""
    for part, categories in figures.items():
        known = {name: rows for name, rows in sorted(categories.items()) if rows}
        titles = list(dict.fromkeys(t for rows in known.values() for t in rows))
        body = [
            [t, *(cell(part, rows.get(t)) for rows in known.values())] for t in titles
        ]
        header = ["AUROC / PRO" if part == "maps" else "AUROC", *known]
        write_table(TABLES / f"references_{part}.csv", header, body)


def cell(part: str, values: list[float] | None) -> str:
    if not values:
        return ""
    if part == "maps":
        return " / ".join(f"{value:.1f}" for value in values)
    spread = f" ± {np.std(values):.1f}" if len(values) > 1 else ""
    return f"{np.mean(values):.1f}{spread}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", required=True, help="in the layout of MVTec AD")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("categories", nargs="*", help="by default those known already")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)
    encode_once()
    figures = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
    names = arguments.categories or sorted(figures["images"])
    measure = {"images": of_images, "maps": of_maps, "sizes": of_sizes}
    for part in arguments.parts:
        found: dict[str, Figures] = {}
        if part == "directions":
            found = of_directions(arguments.root, names)
        for name in names:
            if part != "directions":
                found[name] = measure[part](Category(arguments.root, name))
            print(
                part, name, *(f"| {t} {cell(part, v)}" for t, v in found[name].items())
            )
            sys.stdout.flush()
            figures.setdefault(part, {})[name] = {
                title: [round(value, 2) for value in values]
                for title, values in found[name].items()
            }
            FIGURES.write_text(json.dumps(figures, indent=1) + "\n")
    write_tables(figures)


if __name__ == "__main__":
    main()
