"""What a model makes of a photo and is no number is never a verdict."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clipad_sklearn import ReferenceDetector, SDPDetector
from clipad_sklearn._cli.main import main
from clipad_sklearn._clip.loaded_model import LoadedModel
from clipad_sklearn._score_rows import readable_maps, score_readable

pytestmark = pytest.mark.usefixtures("on_processor")


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Ten photos in the working directory; the last is too bright for the model."""
    monkeypatch.chdir(tmp_path)
    original = LoadedModel.on_device

    def on_device(self: LoadedModel, pixels: Any) -> Any:
        found = original(self, pixels).clone()
        found[found.mean(dim=(1, 2, 3)) > 0.5] = np.inf  # as weights may make it
        return found

    monkeypatch.setattr(LoadedModel, "on_device", on_device)
    rng = np.random.default_rng(0)
    Path("photos").mkdir()
    for number in range(10):
        pixels = rng.integers(115, 119, (64, 128, 3), dtype=np.uint8)
        if number == 9:
            pixels[:, 64:] = 255
        Image.fromarray(pixels).save(f"photos/{number}.png")
    return [f"photos/{number}.png" for number in range(10)]


@pytest.mark.parametrize(
    "options",
    [
        ["--method", "prompt"],
        ["--method", "sdp"],
        ["--method", "winclip"],
        ["--method", "mutual"],
        ["--method", "reference", "--good", "photos"],
        ["--method", "prompt", "--tiles", "1x2"],
        ["--method", "mutual", "--tiles", "1x2"],
        ["--method", "prompt", "--heat-maps", "--report", "report.html"],
        ["--method", "sdp", "--maps", "maps", "--report", "report.html"],
        ["--method", "mutual", "--maps", "maps", "--map-format", "npy"],
    ],
)
def test_only_that_photo_is_lost(
    options: list[str], photos: list[str], capsys: Any
) -> None:
    arguments = ["--clip", "tiny", "--no-cache", "--out", "scores.csv"]
    assert main(["score", "photos", *arguments, *options]) == 1
    with open("scores.csv", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 10
    assert rows[-1]["path"] == photos[9]
    assert "not a number" in rows[-1]["error"]
    assert [row["verdict"] for row in rows].count("unreadable") == 1
    assert "bug" not in capsys.readouterr().err
    if "--maps" in options:
        assert len(list(Path("maps").glob("*.map.*"))) == 9
    if "--report" in options:
        assert Path("report.html").is_file()


@pytest.mark.parametrize("kind", ["sdp", "reference"])
def test_the_library_raises(kind: str, photos: list[str]) -> None:
    detector: Any = SDPDetector("tiny")
    if kind == "reference":
        detector = ReferenceDetector("tiny")
        with pytest.raises(ValueError, match="no numbers"):
            detector.fit(photos)
    detector.fit(photos[:9])
    with pytest.raises(ValueError, match=r"no numbers|contains NaN"):
        detector.predict(photos)
    with pytest.raises(ValueError, match="no numbers"):
        detector.anomaly_maps(photos)
    scores, _, failures = score_readable(detector, photos)
    np.testing.assert_array_equal(np.isnan(scores), np.arange(10) == 9)
    assert [index for index, _, _ in failures] == [9]
    np.testing.assert_allclose(
        scores[:9], detector.score_samples(photos[:9]), rtol=1e-4, atol=1e-4
    )
    maps = {index: found for index, found, _ in readable_maps(detector, photos)}
    assert [index for index, found in maps.items() if found is None] == [9]
    assert len(maps) == 10


def test_nothing_but_such_photos(photos: list[str], capsys: Any) -> None:
    arguments = ["--clip", "tiny", "--no-cache", "--method", "mutual"]
    for number in range(9):
        shutil.copy(photos[9], photos[number])
    assert main(["score", "photos", *arguments]) == 2
    assert "are no numbers" in capsys.readouterr().err


@pytest.mark.parametrize("method", ["prompt", "winclip", "sdp"])
def test_words_have_no_threshold_of_photos(
    method: str, photos: list[str], capsys: Any
) -> None:
    Path(photos[9]).unlink()
    assert main(["score", "photos", "--clip", "tiny", "--method", method]) == 0
    shown = capsys.readouterr()
    assert "spreads" not in shown.out
    assert "verdicts are uncalibrated" in shown.err
