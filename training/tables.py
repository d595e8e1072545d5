"""Write the figures of the model card: ``python -m training.tables``.

They are what ``python -m training.evaluate --output docs/model_card_figures.json``
measured.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .settings import HELD_OUT_FAMILIES, HERE, TRAINED_FAMILIES

FIGURES = HERE.parent / "docs" / "model_card_figures.json"
TARGET = FIGURES.with_suffix(".inc")
SET_TITLES = {
    "HH": "Families and defects held out",
    "HT": "Families held out, defects trained",
    "TH": "Families trained, defects held out",
    "TT": "Families and defects trained, new images",
}
SCORES = {
    "random words, seed 0": "random words, seed 0",
    "random words, seed 1": "random words, seed 1",
    "random words, seed 2": "random words, seed 2",
    "random words, vocabulary": "random words of the vocabulary",
    "clip-ac": "one prompt per state",
    "winclip": "prompts of WinCLIP",
    "clip-ad": "prompts of CLIP-AD",
    "mean": "*mean grey level*",
    "deviation": "*deviation of grey level*",
    "high-pass": "*high-pass energy*",
}
GROUPS = ("mean of textures", "mean of objects", "mean of families",
          "pooled textures", "pooled objects")  # fmt: skip
FIRST = "random words, seed 0"


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A simple table of reStructuredText."""
    cells = [
        [f"{cell:.1f}" if isinstance(cell, float) else str(cell) for cell in row]
        for row in (header, *rows)
    ]
    widths = [max(len(row[k]) for row in cells) for k in range(len(header))]
    rule = " ".join("=" * width for width in widths)
    lines = [
        " ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in cells
    ]
    return "\n".join(
        [rule, lines[0].rstrip(), rule, *(x.rstrip() for x in lines[1:]), rule]
    )


def image_tables(report: dict[str, Any]) -> list[str]:
    parts, poor = [], []
    for name, title in SET_TITLES.items():
        scores = report[f"images {name}"]
        header = ("score", *(group.replace(" of", ",") for group in GROUPS))
        rows = [
            (label, *(float(scores[key][group]) for group in GROUPS))
            for key, label in SCORES.items()
        ]
        parts += [f"**{title}**", table(header, rows)]
        poor += [
            f"{family} {value:.1f} ({name})"
            for family, value in scores[FIRST].items()
            if value < 50
        ]
    held_out = report["images HH"]
    columns = (FIRST, "winclip", "deviation", "high-pass")
    rows = [
        (family, *(float(held_out[column][family]) for column in columns))
        for family in HELD_OUT_FAMILIES
    ]
    header = ("family", FIRST, "WinCLIP", "*deviation*", "*high-pass*")
    defects = [
        (defect, float(row["textures"]), float(row["objects"]))
        for defect, row in report["defects HH"].items()
    ]
    parts += [
        "**Single held-out families**, held-out defects",
        table(header, rows),
        "**Single held-out defects**, held-out families, random words, seed 0, pooled",
        table(("defect", "textures", "objects"), defects),
        "Families under 50 (random words, seed 0; 8 pairs per trained family and set, "
        f"so single values are rough): {', '.join(poor) or 'none'}.",
    ]
    return parts


def naming_tables(report: dict[str, Any]) -> list[str]:
    naming, names = report["naming"], report["names in prompts"]
    rows: list[tuple[object, ...]] = [
        (
            f"family ({len(TRAINED_FAMILIES)})",
            float(naming["families, top-1"]),
            f"chance {naming['families, chance']:.1f}; "
            f"top-5 {naming['families, top-5']:.1f}",
        )
    ]
    for key, label in (("colors", "colour"), ("counts", "count of parts")):
        rows.append(
            (
                f"{label} ({naming[f'{key}, images']} images)",
                float(naming[f"{key}, top-1"]),
                f"most frequent {naming[f'{key}, most frequent']:.1f}",
            )
        )
    return [
        "**Naming**, zero-shot, good images of trained families",
        table(("what", "top-1", "to compare with"), rows),
        'The similarity of such an image to "a photo of a flawless ...", averaged, is '
        f"{names['similarity, right name']:.2f} with the right name and "
        f"{names['similarity, wrong names']:.2f} with the name of another family; the "
        "right one is above a wrong one in "
        f"{names['right name above a wrong one, %']:.1f} % of all pairs. Scores of "
        "defects hardly know the name: with the right one in WinCLIP's prompts the "
        f"mean AUROC of trained families is {names['AUROC, right name']:.1f}, with "
        f"another one {names['AUROC, wrong name']:.1f}, and a wrong name moves a score "
        f"by {names['mean change / deviation of scores']:.2f} of the deviation of all "
        "scores on average.",
    ]


def map_and_text_tables(report: dict[str, Any]) -> list[str]:
    maps, text, seeds = (
        report[key] for key in ("maps HH", "text accuracy", "ten word seeds HH")
    )
    rows = [
        (
            name,
            float(maps[f"{name}, pooled per family"]),
            float(maps[f"{name}, per image"]),
        )
        for name in ("patches", "2 x 2 windows")
    ]
    ranges = " and ".join(
        f"from {ends['lowest']:.1f} to {ends['highest']:.1f} with {name} of prompts"
        for name, ends in seeds.items()
    )
    return [
        "**Maps**, pixel AUROC on held-out families and defects, one normal and one "
        "damaged prompt",
        table(("map", "pooled in each family", "mean of single images"), rows),
        "**Texts.** A random-word classifier classifies "
        f"{text['held-out words']:.1f} % of 4,000 prompts with held-out words and "
        f"{text['letters']:.1f} % with random letters correctly. Ten "
        "detectors of ten seeds give on the same images (held out, mean of families) "
        f"AUROCs {ranges}.",
    ]


def real_table(report: dict[str, Any]) -> list[str]:
    real = report["real images"]
    scores = (
        "random words, seed 1", "random words, seed 2", "winclip",
        "mean", "deviation", "high-pass",
    )  # fmt: skip
    rows = [
        (
            category,
            row["good"],
            row["defective"],
            float(row[FIRST]),
            "{:.1f} - {:.1f}".format(*row["95 % interval"]),
            *(float(row[score]) for score in scores),
        )
        for category, row in real.items()
    ]
    header = (
        "category", "good", "bad", "seed 0", "95 % interval", "seed 1", "seed 2",
        "WinCLIP", "*mean*", "*deviation*", "*high-pass*",
    )  # fmt: skip
    paper = [row for name, row in real.items() if name.startswith("PA_")]
    mean = {
        score: statistics.mean(float(row[score]) for row in paper)
        for score in (FIRST, *scores)
    }
    return [
        "**Real images**, random words. PIPED is paper of 128 pixels with impurities, "
        "hazelnut has colour stains (6 good images, so it says little). They chose "
        f"nothing. The mean of the {len(paper)} kinds of PIPED is {mean[FIRST]:.1f}, "
        f"{mean[scores[0]]:.1f} and {mean[scores[1]]:.1f} for the three seeds, "
        f"{mean['winclip']:.1f} for WinCLIP's prompts and {mean['deviation']:.1f} for "
        "the deviation of the grey level.",
        table(header, rows),
    ]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--figures", type=Path, default=FIGURES)
    parser.add_argument("--target", type=Path, default=TARGET)
    options = parser.parse_args(argv)
    report = json.loads(options.figures.read_text())
    parts = [".. Written by training/tables.py", *image_tables(report)]
    parts += naming_tables(report) + map_and_text_tables(report)
    if "real images" in report:
        parts += real_table(report)
    options.target.write_text("\n\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
