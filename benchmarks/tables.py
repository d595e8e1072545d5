"""Make the tables of docs/benchmarks.rst, with the model that ships with the package.

Every method on generated images, and on folders of real images in the layout of
MVTec AD where they are given::

    python benchmarks/tables.py --real "$CLIPAD_SHARED_DATA" hazelnut
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

REPOSITORY = Path(__file__).parents[1]
sys.path.insert(0, str(REPOSITORY))

from clipad_sklearn._cli.benchmark_tables import TITLES  # noqa: E402
from clipad_sklearn._cli.main import main as clipad  # noqa: E402
from clipad_sklearn._cli.methods import METHODS  # noqa: E402
from clipad_sklearn.datasets import (  # noqa: E402
    DEFECT_FAMILIES,
    OBJECT_FAMILIES,
    TEXTURE_FAMILIES,
    make_defect_images,
)
from training.settings import HELD_OUT_DEFECTS, HELD_OUT_FAMILIES  # noqa: E402

TABLES = REPOSITORY / "docs" / "benchmark_tables"
# Good photos that references are drawn from; no more than each real category has.
SHOTS = (1, 4, 8)


def write_generated(root: Path, n: int) -> None:
    """Write four categories: textures and objects, trained and held out."""
    defects = [d for d in DEFECT_FAMILIES if d not in HELD_OUT_DEFECTS]
    for seed, (kind, families) in enumerate(
        (("textures", TEXTURE_FAMILIES), ("objects", OBJECT_FAMILIES))
    ):
        for held_out in (False, True):
            drawn = [f for f in families if (f in HELD_OUT_FAMILIES) == held_out]
            number = 2 * seed + held_out
            data = make_defect_images(
                n,
                families=drawn,
                defects=list(HELD_OUT_DEFECTS) if held_out else defects,
                random_state=4_000 + number,
            )
            folder = root / (f"held-out_{kind}" if held_out else kind)
            references = make_defect_images(
                max(SHOTS),
                families=drawn,
                anomaly_fraction=0,
                random_state=5_000 + number,
            )
            for i, pixels in enumerate(references.images):
                _save(pixels, folder / "train" / "good" / f"{i:03d}.png")
            for i, pixels in enumerate(data.images):
                good = data.target[i] == 1
                name = "good" if good else data.defect[i].replace(" ", "_")
                _save(pixels, folder / "test" / name / f"{i:03d}.png")
                if not good:
                    mask = data.masks[i].astype(np.uint8) * 255
                    _save(mask, folder / "ground_truth" / name / f"{i:03d}_mask.png")


def _save(pixels: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def benchmark(root: Path, name: str, extra: Sequence[str], out: Path) -> None:
    """Run all methods, and write the table of means and the one of categories."""
    arguments = ["--data", "mvtec", "--root", str(root), "--clip", "tiny"]
    methods = ["--methods", ",".join(METHODS), "--shots", ",".join(map(str, SHOTS))]
    TABLES.mkdir(exist_ok=True)
    clipad(["benchmark", *arguments, *methods, "--out", str(out), *extra])
    with open(out / "results.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    means = [row for row in rows if row["category"] == "mean"]
    write_table(
        TABLES / f"{name}.csv",
        ["method", *TITLES.values()],
        [[row["method"], *(cell(row, m) for m in TITLES)] for row in means],
    )
    categories = list(dict.fromkeys(row["category"] for row in rows))
    categories.remove("mean")
    names = list(dict.fromkeys(row["method"] for row in rows))
    by_pair = {(row["category"], row["method"]): row for row in rows}
    write_table(
        TABLES / f"{name}_categories.csv",
        ["method", *categories],
        [[m, *(cell(by_pair[c, m], "auroc") for c in categories)] for m in names],
    )


def cell(row: dict[str, str], metric: str) -> str:
    """Return a value with its spread over seeds and its interval, in per cent."""
    if not row[metric]:
        return "failed" if row["error"] else ""
    text = f"{100 * float(row[metric]):.1f}"
    if row[f"{metric}_std"]:
        text += f" ± {100 * float(row[f'{metric}_std']):.1f}"
    if row.get(f"{metric}_low"):
        low, high = (100 * float(row[f"{metric}_{end}"]) for end in ("low", "high"))
        text += f" [{low:.0f}, {high:.0f}]"
    return text


def write_table(path: Path, header: Sequence[str], body: Sequence[object]) -> None:
    """Write a table for the documentation."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(body)  # type: ignore[arg-type]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=300, help="images per category")
    parser.add_argument("--n-pairs", default="10000", help="pairs of prompts")
    parser.add_argument("--out", type=Path, help="folder to resume from and to keep")
    parser.add_argument("--real", nargs="+", metavar=("ROOT", "CATEGORY"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        out = arguments.out or Path(temporary)
        images = out / "images"
        if not images.exists():
            write_generated(images, arguments.n)
        pairs = ["--n-pairs", arguments.n_pairs]
        benchmark(images, "generated", pairs, out / "generated")
        results = json.loads((out / "generated" / "results.json").read_text())
        settings = results["settings"]
        (TABLES / "settings.txt").write_text(
            f"Weights ``{results['weights'][:16]}``, {settings['n_pairs']:,} pairs of "
            f"random-word prompts, {settings['n_seeds']} seeds; {arguments.n} "
            "images in each generated category.\n"
        )
        if arguments.real:
            root, *categories = arguments.real
            extra = ["--categories", *categories] if categories else []
            benchmark(Path(root), "real", [*pairs, *extra], out / "real")


if __name__ == "__main__":
    main()
