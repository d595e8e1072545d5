"""``clipad demo``: generated photos, scored with random words only."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from sklearn.pipeline import make_pipeline

from .._clip.image_encoder import CLIPImageEncoder
from .._clip.settings import check_clip
from ..datasets import make_defect_images
from ..metrics import auroc
from .arguments import DemoSettings
from .methods import Choices, fitted_detector
from .output import UsageError, as_usage_error, printable
from .table import make_rows, print_table, write_rows

_ABOUT = "Made by `clipad demo`, which may overwrite this folder.\n"
_SHOWN = 15


def run(settings: DemoSettings) -> int:
    """Run ``clipad demo``."""
    from PIL import Image

    folder = Path(settings.out)
    _prepare(folder)
    print(
        "tiny is a small CLIP that ships with this package, for trying things out; "
        "it is no substitute for a real one.",
        file=sys.stderr,
    )
    print(f"Generating {settings.n} photos ...", file=sys.stderr)
    data = make_defect_images(settings.n, random_state=0)
    paths = []
    for number, (pixels, family, defect) in enumerate(
        zip(data.images, data.family, data.defect, strict=True)
    ):
        name = f"{number:03d} {family} {defect}".strip().replace(" ", "_") + ".png"
        path = folder / "photos" / ("defect" if defect else "good") / name
        Image.fromarray(pixels).save(path)
        paths.append(str(path))

    print("Learning from random words, then looking at the photos ...", file=sys.stderr)
    clip = check_clip("tiny")
    words = fitted_detector("random-word", clip, Choices())
    detector = make_pipeline(CLIPImageEncoder(clip), words)
    margins = detector.score_samples(paths)
    rows = make_rows(paths, margins, float(detector[-1].offset_))
    scores = folder / "scores.csv"
    write_rows(str(scores), rows)

    truth = dict(zip(paths, data.defect, strict=True))
    shown = [row | {"truth": truth[row["path"]] or "good"} for row in rows[:_SHOWN]]
    print_table(shown, ("rank", "p_anomaly", "truth", "path"))
    if len(rows) > len(shown):
        print(f"... and {len(rows) - len(shown)} more")
    print(f"AUROC of all {len(rows)}: {auroc(data.target, -margins):.3f}")
    print(f"All scores: {printable(str(scores))}")
    print("Your own photos: clipad score FOLDER --clip tiny --report report.html")
    print("With a real CLIP, which is downloaded first: clipad score FOLDER")
    return 0


def _prepare(folder: Path) -> None:
    """Make the folders; refuse one that holds anything but an earlier demo."""
    about = folder / "README.txt"
    earlier = about.is_file() and about.read_text(errors="replace") == _ABOUT
    if os.path.lexists(folder) and not earlier:
        if not folder.is_dir():
            raise UsageError(f"{folder}: is a file; name another folder with --out")
        if any(folder.iterdir()):
            raise UsageError(
                f"{folder}: is not empty and was not made by an earlier `clipad demo`; "
                "name another folder with --out"
            )
    with as_usage_error():
        for kind in ("good", "defect"):
            (folder / "photos" / kind).mkdir(parents=True, exist_ok=True)
            for path in (folder / "photos" / kind).glob("[0-9][0-9][0-9]_*.png"):
                path.unlink()
        about.write_text(_ABOUT)
