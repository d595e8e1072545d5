"""``clipad demo``: generated photos, scored with words, then with ten good photos."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.pipeline import make_pipeline

from .._clip.image_encoder import CLIPImageEncoder
from .._clip.settings import OpenCLIP
from ..datasets import make_defect_images
from ..metrics import auroc
from .cache import cache_folder
from .detectors import Fitted
from .methods import Choices, fitted_detector
from .output import (
    UsageError,
    as_usage_error,
    printable,
    say,
    stage,
    write_text,
    writing,
)
from .report import MAP_SIDE, write_report
from .table import make_rows, print_table, versions, write_rows

if TYPE_CHECKING:
    from .arguments import DemoSettings

_ABOUT = "Made by `clipad demo`, which may overwrite this folder.\n"
_WRITTEN = "files.txt"  # what a later demo may delete
_SHOWN = 15
_PRODUCT = "wood"
_N_OF_PRODUCT = 24
_N_GOOD = 10


def run(settings: DemoSettings) -> int:
    """Run ``clipad demo``."""
    folder = Path(settings.out)
    _prepare(folder)
    say(
        "tiny is a small CLIP that ships with this package, for trying things out; "
        "it is no substitute for a real one."
    )
    written: list[str] = []
    clip = OpenCLIP("tiny", embedding_cache=cache_folder())
    stage(f"drawing {settings.n} photos of many things, half of them with a defect")
    data = make_defect_images(settings.n, random_state=0)
    paths = _save(folder, "photos", data, written)
    truths = dict(zip(paths, _truths(data), strict=True))

    words = fitted_detector("random-word", clip, Choices())
    fitted = Fitted(make_pipeline(CLIPImageEncoder(clip), words), clip)
    stage("scoring them with words alone, window by window for the heat maps")
    margins = fitted.detector.score_samples(paths)
    rows = make_rows(paths, margins, 0.0)
    scores = folder / "scores.csv"
    write_rows(str(scores), rows)
    shown = [row | {"truth": truths[row["path"]]} for row in rows[:_SHOWN]]
    print_table(shown, ("rank", "margin", "truth", "path"))
    if len(rows) > len(shown):
        print(f"... and {len(rows) - len(shown)} more")
    print(f"AUROC of all {len(rows)}: {auroc(data.target, -margins):.3f}")
    pages = [str(folder / "report.html")]
    _write_page(
        pages[0], fitted, rows, truths,
        title="clipad demo: drawn photos, scored with words alone",
        sentences=["No photo was needed. The order means something, the verdicts do "
                   "not: no good photo has set the threshold."],
    )  # fmt: skip
    pages.append(
        _ten_good_photos(folder, clip, words, min(settings.n, _N_OF_PRODUCT), written)
    )
    write_text(folder / _WRITTEN, "".join(f"{path}\n" for path in written))
    print(f"All scores: {printable(str(scores))}")
    for page in pages:
        print(f"Page to open in a browser: {printable(Path(page).absolute().as_uri())}")
    print("Your own photos: clipad score FOLDER --clip tiny --report report.html")
    print("With good photos: clipad score FOLDER --good GOOD --clip tiny")
    print("With a real CLIP, which is downloaded first: clipad score FOLDER")
    return 0


def _ten_good_photos(
    folder: Path, clip: OpenCLIP, words: Any, n: int, written: list[str]
) -> str:
    """Show what good photos of one product change; return the page."""
    from .._detectors.reference import ReferenceDetector

    stage(f"drawing {n} photos of {_PRODUCT}, and {_N_GOOD} good ones to compare with")
    data = make_defect_images(n, families=_PRODUCT, random_state=0)
    good = make_defect_images(
        _N_GOOD, families=_PRODUCT, anomaly_fraction=0, random_state=1
    )
    paths = _save(folder, _PRODUCT, data, written)
    references = _save(folder, f"{_PRODUCT}-references", good, written)
    by_words = auroc(data.target, -words.score_samples(clip.encode_image(paths)))
    detector = ReferenceDetector(clip).fit(references)
    margins = detector.score_samples(paths)
    by_photos = auroc(data.target, -margins)
    sentence = (
        f"{n} photos of {_PRODUCT}: AUROC {by_words:.3f} with words, {by_photos:.3f} "
        f"compared with {_N_GOOD} good photos."
    )
    print(sentence)
    page = str(folder / "ten-good-photos.html")
    _write_page(
        page,
        Fitted(detector, clip),
        make_rows(paths, margins, 0.0),
        dict(zip(paths, _truths(data), strict=True)),
        title=f"clipad demo: drawn photos of {_PRODUCT}, and ten good ones",
        sentences=[
            sentence,
            "Each photo is compared with the good ones, patch by patch. The threshold "
            "lies three spreads from their median, a convention; --calibrate with "
            "further good photos promises a rate of false alarms. How much good photos "
            "help depends on the product: measure it on yours.",
        ],
        uncalibrated=False,
    )
    return page


def _write_page(
    path: str,
    fitted: Fitted,
    rows: Sequence[dict[str, Any]],
    truths: dict[str, str],
    *,
    title: str,
    sentences: Sequence[str],
    uncalibrated: bool = True,
) -> None:
    mapper = fitted.map_detector()
    ranked = [row["path"] for row in rows]
    maps: list[np.ndarray] = list(
        mapper.iter_anomaly_maps(ranked, size=(MAP_SIDE, MAP_SIDE))
    )
    write_report(
        path,
        rows,
        threshold=0.0,
        uncalibrated=uncalibrated,
        settings={"clip": "tiny"},
        versions=versions(),
        anomaly_maps=maps,
        map_threshold=float(mapper.pixel_offset_),
        title=title,
        sentences=sentences,
        truths=truths,
    )


def _truths(data: Any) -> list[str]:
    return [defect or "good" for defect in data.defect]


def _save(folder: Path, name: str, data: Any, written: list[str]) -> list[str]:
    """Write photos, those with a defect apart; return their paths."""
    from PIL import Image

    paths = []
    for number, (pixels, family, defect) in enumerate(
        zip(data.images, data.family, data.defect, strict=True)
    ):
        text = f"{number:03d} {family} {defect}".strip().replace(" ", "_") + ".png"
        path = folder / name / ("defect" if defect else "good") / text
        path.parent.mkdir(parents=True, exist_ok=True)
        with (
            writing(str(path), is_ours=True) as temporary,
            open(temporary, "wb") as file,
        ):
            Image.fromarray(pixels).save(file, "PNG")
        written.append(path.relative_to(folder).as_posix())
        paths.append(str(path))
    return paths


def _prepare(folder: Path) -> None:
    """Make the folder; refuse one that holds anything but an earlier demo."""
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
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / _WRITTEN).is_file():
            for line in (folder / _WRITTEN).read_text("utf-8").splitlines():
                path = folder / line
                if path.suffix == ".png" and folder.resolve() in path.resolve().parents:
                    path.unlink(missing_ok=True)
        write_text(about, _ABOUT, is_ours=True)
