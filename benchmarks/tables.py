"""Make the tables of docs/benchmarks.rst, with the model that ships with the package.

Every method on generated images, and on folders of real images in the layout of
MVTec AD where they are given::

    python benchmarks/tables.py --real "$CLIPAD_SHARED_DATA" hazelnut

With ``--methods`` only the rows of these are made, and the others stay as they are.
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


def benchmark(
    root: Path, name: str, methods: Sequence[str], extra: Sequence[str], out: Path
) -> None:
    """Run methods, and write the table of means and the one of categories."""
    arguments = ["--data", "mvtec", "--root", str(root), "--clip", "tiny"]
    arguments += ["--methods", ",".join(methods), *extra]
    if "reference" in methods:
        arguments += ["--shots", ",".join(map(str, SHOTS))]
    TABLES.mkdir(exist_ok=True)
    clipad(["benchmark", *arguments, "--out", str(out)])
    with open(out / "results.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    means = [row for row in rows if row["category"] == "mean"]
    update_table(
        TABLES / f"{name}.csv",
        ["method", *TITLES.values()],
        [[row["method"], *(cell(row, m) for m in TITLES)] for row in means],
    )
    categories = list(dict.fromkeys(row["category"] for row in rows))
    categories.remove("mean")
    names = list(dict.fromkeys(row["method"] for row in rows))
    by_pair = {(row["category"], row["method"]): row for row in rows}
    update_table(
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


def update_table(path: Path, header: list[str], body: list[list[str]]) -> None:
    """Put rows of methods into a table, in the order of all methods."""
    rows = {row[0]: row for row in body}
    if path.exists():
        with open(path, newline="", encoding="utf-8") as file:
            known, *old = csv.reader(file)
        if known != header:
            raise SystemExit(f"{path.name} has other columns: delete it, make all rows")
        rows = {row[0]: row for row in old} | rows
    order = list(METHODS)

    def place(name: str) -> tuple[int, str]:
        base = name if name in METHODS else name.rpartition("-")[0]
        return order.index(base), name

    write_table(path, header, [rows[name] for name in sorted(rows, key=place)])


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
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--no-generated", action="store_true")
    parser.add_argument("--real", nargs="+", metavar=("ROOT", "CATEGORY"))
    arguments = parser.parse_args()
    methods = arguments.methods
    pairs = ["--n-pairs", arguments.n_pairs]
    with tempfile.TemporaryDirectory() as temporary:
        out = arguments.out or Path(temporary)
        images = out / "images"
        if not arguments.no_generated:
            if not images.exists():
                write_generated(images, arguments.n)
            benchmark(images, "generated", methods, pairs, out / "generated")
            write_settings(out / "generated", arguments.n)
        if arguments.real:
            root, *categories = arguments.real
            extra = ["--categories", *categories] if categories else []
            benchmark(Path(root), "real", methods, [*pairs, *extra], out / "real")


def write_settings(out: Path, n: int) -> None:
    results = json.loads((out / "results.json").read_text())
    settings = results["settings"]
    text = (
        f"Weights ``{results['weights'][:16]}``, {settings['n_pairs']:,} pairs of "
        f"random-word prompts, {settings['n_seeds']} seeds; {n} images in each "
        "generated category.\n"
    )
    path = TABLES / "settings.txt"
    if path.exists() and path.read_text() != text:
        print(f"Rows of other methods were made with: {path.read_text()}")
    path.write_text(text)


if __name__ == "__main__":
    main()
