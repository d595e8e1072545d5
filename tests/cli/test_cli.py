"""The command `clipad`, on real files, and in real processes where that matters."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import gzip
import io
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
from PIL import Image
from processes import Forked
from sklearn.pipeline import make_pipeline

from clipad_sklearn import (
    CLIPImageEncoder,
    FusionDetector,
    OpenCLIP,
    PromptDetector,
    PromptSet,
    ReferenceDetector,
    TiledDetector,
    _decoding,
    calibrate_threshold,
)
from clipad_sklearn._cli.arguments import ScoreSettings
from clipad_sklearn._cli.main import main
from clipad_sklearn._cli.methods import METHODS
from clipad_sklearn._cli.output import UsageError, writing
from clipad_sklearn._cli.photos import find_photos
from clipad_sklearn._cli.table import make_rows, write_rows
from clipad_sklearn._clip.embedding_cache import FolderCache
from clipad_sklearn._prompts import PRESETS
from clipad_sklearn.datasets import make_defect_images
from clipad_sklearn.metrics import auroc

COMMAND = [sys.executable, "-m", "clipad_sklearn"]
TINY = ["--clip", "tiny", "--method", "prompt"]
COLUMNS = [
    "path",
    "rank",
    "verdict",
    "margin",
    "threshold",
    "p_value",
    "p_anomaly",
    "error",
]


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], cwd=cwd, capture_output=True, text=True, timeout=600
    )


def read_csv(path: Path) -> list[dict[str, str]]:
    # The mark at the start is for spreadsheets.
    assert path.read_bytes().startswith(b"\xef\xbb\xbf")
    with open(path, encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def score(tmp_path: Path, *arguments: str, status: int = 0) -> dict[str, Any]:
    """Run ``clipad score`` in this process and return its JSON."""
    out = tmp_path / "scores.json"
    assert main(["score", *arguments, "--out", str(out)]) == status
    return json.loads(out.read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 photos: ``good/00.png`` to ``good/11.png``, and so in ``bad``."""
    folder = tmp_path_factory.mktemp("photos")
    data = make_defect_images(24, size=48, random_state=0)
    numbers = {1: 0, -1: 0}
    for pixels, target in zip(data.images, data.target, strict=True):
        kind = folder / ("good" if target == 1 else "bad")
        kind.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(kind / f"{numbers[target]:02d}.png")
        numbers[target] += 1
    return folder


@pytest.fixture
def few(folder: Path, tmp_path: Path) -> Path:
    """A folder of three photos that a test may change."""
    few = tmp_path / "few"
    few.mkdir()
    for i in range(3):
        (few / f"{i}.png").write_bytes((folder / "good" / f"{i:02d}.png").read_bytes())
    return few


# -- the main job --------------------------------------------------------------


def test_three_bad_files_among_fifty(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    data = make_defect_images(47, size=48, random_state=1)
    for i, pixels in enumerate(data.images):
        Image.fromarray(pixels).save(photos / f"{i:02d}.png")
    (photos / "empty.png").touch()
    (photos / "text.png").write_text("no image")
    whole = (photos / "00.png").read_bytes()
    (photos / "truncated.png").write_bytes(whole[: len(whole) // 2])

    saved = ["--save", "detector.joblib"]
    result = run("score", "photos", *TINY, "--out", "scores.csv", *saved, cwd=tmp_path)
    assert result.returncode == 1, result.stderr
    rows = read_csv(tmp_path / "scores.csv")
    assert list(rows[0]) == COLUMNS
    scored, failed = rows[:47], rows[47:]
    assert [row["rank"] for row in scored] == [str(i) for i in range(1, 48)]
    margins = [float(row["margin"]) for row in scored]
    assert margins == sorted(margins)
    assert all(row["verdict"] in ("normal", "anomalous") for row in scored)
    assert {row["error"] for row in scored} == {""}
    assert {row["path"] for row in failed} == {
        os.path.join("photos", f"{name}.png") for name in ("empty", "text", "truncated")
    }
    for row in failed:
        assert row["error"]
        assert row["verdict"] == "unreadable"
        assert {row[name] for name in COLUMNS[1:-1] if name != "verdict"} == {""}
        assert f"not read: {row['path']}: {row['error']}" in result.stderr
    assert result.stderr.count("uncalibrated") == 1
    assert "Traceback" not in result.stderr
    assert "47 scored" in result.stdout
    assert sorted(os.listdir(tmp_path)) == ["detector.joblib", "photos", "scores.csv"]

    # The saved detector gives the same scores in another process.
    arguments = ["score", "photos", "--load", "detector.joblib", "--out", "b.csv"]
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 1
    assert read_csv(tmp_path / "b.csv") == rows


def test_scores_are_those_of_the_library(folder: Path, tmp_path: Path) -> None:
    # With one cache, that of this process: another may hold photos of other batches.
    options = ["--class-name", "thing", "--no-cache"]
    report = score(tmp_path, str(folder), *TINY, *options)
    paths = [row["path"] for row in report["scores"]]
    embeddings = CLIPImageEncoder("tiny").transform(paths)
    detector = PromptDetector("tiny", class_name="thing").fit(embeddings)
    margins = [row["margin"] for row in report["scores"]]
    np.testing.assert_allclose(margins, detector.score_samples(embeddings), atol=1e-6)
    probabilities = [row["p_anomaly"] for row in report["scores"]]
    expected = detector.predict_proba(embeddings)[:, 0]
    np.testing.assert_allclose(probabilities, expected, atol=1e-6)


def test_json_has_the_columns_settings_and_versions(few: Path, tmp_path: Path) -> None:
    (few / "bad.png").touch()
    out = tmp_path / "scores.json"
    assert main(["score", str(few), *TINY, "--out", str(out)]) == 1
    report = json.loads(out.read_text())
    assert set(report) == {"settings", "versions", "scores"}
    assert all(list(row) == COLUMNS for row in report["scores"])
    assert report["scores"][-1]["margin"] is None
    assert report["settings"]["method"] == "prompt"
    assert report["settings"]["clip"]["model_name"] == "tiny"
    assert report["settings"]["threshold_from"] == "none"
    assert "open_clip_torch" in report["versions"]
    assert main(["score", str(few), *TINY, "--out", str(tmp_path / "s.csv")]) == 1
    for row, same in zip(read_csv(tmp_path / "s.csv"), report["scores"], strict=True):
        short = "" if same["margin"] is None else str(float(f"{same['margin']:.6g}"))
        assert row["margin"] == short


def test_table_on_the_terminal(folder: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["score", str(folder), *TINY]) == 0
    out, err = capsys.readouterr()
    assert len([line for line in out.splitlines() if ".png" in line]) == 20
    assert "and 4 more; write all with --out FILE.csv" in out
    assert "verdict" not in out.splitlines()[0]  # without a threshold there is none
    assert err.count("uncalibrated") == 1
    assert "clipad: scoring 24 photos\n" in err
    assert 'the CLIP is "tiny", which is for trying things out' in err
    assert main(["score", str(folder), *TINY, "--threshold", "0", "--quiet"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.splitlines()[0].split() == ["rank", "verdict", "to_threshold", "path"]
    first = out.splitlines()[1].split()
    assert first[1] == ("anomalous" if first[2].startswith("-") else "normal")


@pytest.mark.parametrize("method", [[], ["--method", "fusion"]])
def test_other_methods(method: list[str], few: Path, tmp_path: Path) -> None:
    """The default and another; both learn from the same words, which are kept."""
    report = score(tmp_path, str(few), "--clip", "tiny", *method)
    assert [row["rank"] for row in report["scores"]] == [1, 2, 3]


# -- which images --------------------------------------------------------------


def test_a_file_reached_twice_is_scored_once(few: Path, monkeypatch) -> None:
    monkeypatch.chdir(few.parent)
    (few / "again.png").symlink_to(few / "0.png")
    paths, notes, _ = find_photos(["few/1.png", "few", str(few), "few/*.png", "./few"])
    assert paths == ["few/1.png", "few/0.png", "few/2.png"]
    assert notes == []


def test_globs_that_no_shell_expanded(folder: Path, monkeypatch) -> None:
    monkeypatch.chdir(folder)
    assert len(find_photos(["*"])[0]) == 24
    assert len(find_photos(["**/0*.png"])[0]) == 20
    paths, notes, _ = find_photos(["good/0[12].png", "bad/nothing*.png"])
    assert paths == [os.path.join("good", "01.png"), os.path.join("good", "02.png")]
    assert notes == ["no image found in bad/nothing*.png"]


def test_a_name_that_looks_like_a_glob(few: Path) -> None:
    path = few / "part[1].png"
    (few / "0.png").rename(path)
    assert find_photos([str(path)]) == ([str(path)], [], 0)


def test_a_missing_file_beside_others_is_an_error_row(
    few: Path, tmp_path: Path
) -> None:
    out = tmp_path / "scores.csv"
    missing = str(few / "missing.png")
    assert main(["score", str(few), missing, *TINY, "--out", str(out)]) == 1
    assert read_csv(out)[-1]["path"] == missing
    assert read_csv(out)[-1]["error"] == "no such file"


# -- thresholds ----------------------------------------------------------------


@pytest.fixture
def own_cache(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other processes of the tests keep embeddings from other batches in the shared."""
    monkeypatch.setenv("CLIPAD_CACHE", str(tmp_path_factory.mktemp("cache")))


def verdicts(report: dict[str, Any]) -> list[str]:
    return [row["verdict"] for row in report["scores"]]


def test_threshold(folder: Path, tmp_path: Path) -> None:
    report = score(tmp_path, str(folder), *TINY, "--threshold", "0.1")
    assert {row["threshold"] for row in report["scores"]} == {0.1}
    for row in report["scores"]:
        assert (row["verdict"] == "normal") == (row["margin"] >= 0.1)


@pytest.mark.parametrize("command", ["score", "benchmark"])
def test_help_names_every_method_and_preset(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    said = "".join(capsys.readouterr().out.split())  # words are cut at the line's end
    names = [*METHODS, *(PRESETS if command == "benchmark" else ())]
    assert not [name for name in names if name not in said]


def test_contamination(folder: Path, tmp_path: Path) -> None:
    report = score(tmp_path, str(folder), *TINY, "--contamination", "0.25")
    assert verdicts(report) == ["anomalous"] * 6 + ["normal"] * 18


@pytest.mark.filterwarnings("default:max_false_alarm=:UserWarning")  # too few
def test_calibrate_on_good_images(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    good = str(folder / "good")
    arguments = [good, *TINY, "--calibrate", good, "--max-false-alarm", "0.25"]
    report = score(tmp_path, *arguments)
    # The threshold is the score of rank 3 = floor(0.25 * 13).
    assert verdicts(report) == ["anomalous"] * 2 + ["normal"] * 10
    shown = capsys.readouterr()
    threshold = report["scores"][0]["threshold"]
    assert f"threshold {threshold!r} (--calibrate)" in shown.out
    again = score(tmp_path, good, *TINY, f"--threshold={threshold!r}")
    assert verdicts(again) == verdicts(report)
    capsys.readouterr()
    assert "less than one" not in shown.err
    # For the default of 0.05, twelve are too few.
    report = score(tmp_path, good, *TINY, "--calibrate", good)
    assert set(verdicts(report)) == {"normal"}
    assert "0.05 on average needs 19 good images" in capsys.readouterr().err


@pytest.mark.usefixtures("own_cache")
def test_calibrate_on_good_and_bad_images(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    good, bad = str(folder / "good"), str(folder / "bad")
    report = score(tmp_path, good, bad, *TINY, "--calibrate", good, bad)
    is_bad = [row["path"].startswith(bad) for row in report["scores"]]
    flagged = [verdict == "anomalous" for verdict in verdicts(report)]
    hits = sum(np.logical_and(is_bad, flagged))
    f1 = 2 * hits / (sum(is_bad) + sum(flagged))
    cuts = range(1, len(is_bad) + 1)
    best = max(2 * sum(is_bad[:cut]) / (sum(is_bad) + cut) for cut in cuts)
    assert f1 == pytest.approx(best)
    assert "uncalibrated" not in capsys.readouterr().err
    # Bad photos in two folders are the same as in one.
    first, second = tmp_path / "first", tmp_path / "second"
    shutil.copytree(bad, first)
    second.mkdir()
    for path in sorted(first.iterdir())[::2]:
        path.rename(second / path.name)
    folders = (good, str(first), str(second))
    again = score(tmp_path, good, bad, *TINY, "--calibrate", *folders)
    assert again["scores"] == report["scores"]


@pytest.mark.usefixtures("own_cache")
def test_what_set_the_threshold_is_said(folder: Path, tmp_path: Path, capsys) -> None:
    good, bad = str(folder / "good"), str(folder / "bad")
    saved = str(tmp_path / "detector.joblib")
    options = ["--calibrate", good, "--bad", bad, "--max-false-alarm", "0.2"]
    report = score(tmp_path, good, *TINY, *options, "--save", saved)
    out = capsys.readouterr().out
    n_below = verdicts(report).count("anomalous")
    assert n_below == 1  # the threshold is the score of rank 2 = floor(0.2 * 13)
    assert f"Threshold from 12 good photos ({n_below} below it) and 12 bad" in out
    # 2 / 13, rounded up
    assert "Promise, on average: at most 15.4 % of new good photos" in out
    assert re.search(r"Of the bad photos \d+ of 12 escape: between", out)
    assert "12 of the photos scored here set the threshold: they are not new" in out
    # p-values: the share of good photos that look at least as odd, itself counted.
    p_values = [row["p_value"] for row in report["scores"]]
    np.testing.assert_allclose(p_values, np.arange(2, 14) / 13)
    # All of it is there again the next day.
    options = ["--load", saved, "--shift-test"]
    again = score(tmp_path, good, *options)
    assert again["scores"] == report["scores"]
    out = capsys.readouterr().out
    assert "Threshold of the saved detector: 12 good photos, 1 below it." in out
    assert "above 0.01: no sign of a change" in out
    # At a confidence, the bound is exact: 1 - 0.1 ** (1 / 12) for the lowest of 12.
    options = ["--calibrate", good, "--max-false-alarm", "0.2", "--confidence", "0.9"]
    score(tmp_path, good, *TINY, *options)
    assert "a confidence of 90 %: at most 17.5 % of new" in capsys.readouterr().out
    # Two rates of good and bad photos, and no promise.
    score(tmp_path, good, *TINY, "--calibrate", good, bad)
    assert "promises nothing" in capsys.readouterr().out


def test_folders_that_are_mixed_up(folder: Path, tmp_path: Path, capsys: Any) -> None:
    good, bad = str(folder / "good"), str(folder / "bad")
    score(tmp_path, good, *TINY, "--calibrate", bad, "--bad", good)
    shown = capsys.readouterr()
    assert "are the folders swapped?" in shown.out
    assert f"12 good photos and 12 bad photos of {good}" in shown.err
    score(tmp_path, bad, *TINY, "--calibrate", good, "--bad", bad)
    out = capsys.readouterr().out
    assert "swapped" not in out
    assert "not new" not in out
    both = ["--calibrate", good, "--bad", str(folder)]
    assert main(["score", good, *TINY, *both]) == 2
    said = capsys.readouterr().err
    assert f"12 photos are both good and bad, the first is {good}" in said


@pytest.mark.filterwarnings("default:Fewer than 4 references:UserWarning")
def test_the_only_good_photo_is_among_the_photos(few: Path, tmp_path: Path) -> None:
    """It costs its own row."""
    arguments = [str(few), "--clip", "tiny", "--good", str(few / "1.png")]
    report = score(tmp_path, *arguments, status=1)
    assert [not row["error"] for row in report["scores"]] == [True, True, False]
    row = report["scores"][2]
    assert row["path"] == str(few / "1.png")
    assert "the only reference of the detector" in row["error"]


def test_good_photos_to_compare_with(folder: Path, tmp_path: Path, capsys) -> None:
    good, bad = sorted((folder / "good").iterdir()), str(folder / "bad")
    saved, maps = str(tmp_path / "detector.joblib"), tmp_path / "maps"
    references, others = tmp_path / "references", tmp_path / "others"
    for target, photos in ((references, good[:7]), (others, good[7:])):
        target.mkdir()
        for photo in photos:
            shutil.copy(photo, target)
    (references / "broken.png").write_text("no image")
    arguments = ["--clip", "tiny", "--good", str(references), "--save", saved]
    out = tmp_path / "scores.json"
    arguments += ["--out", str(out), "--maps", str(maps)]
    assert main(["score", bad, *arguments]) == 1  # for the broken one
    shown = capsys.readouterr()
    assert "broken.png: " in shown.err
    assert "learning from 8 good photos" in shown.err
    assert "That is a convention and promises nothing" in shown.out
    detector = ReferenceDetector("tiny", random_state=0).fit(good[:7])
    report = json.loads(out.read_text())
    paths = [row["path"] for row in report["scores"]]
    margins = [row["margin"] for row in report["scores"]]
    np.testing.assert_allclose(margins, detector.score_samples(paths), atol=1e-4)
    assert len(list(maps.glob("*.overlay.png"))) == 12
    # Tomorrow, with a promise from photos that it does not know.
    options = ["--load", saved, "--max-false-alarm", "0.2"]
    score(tmp_path, bad, *options, "--calibrate", str(others))
    assert "Promise, on average: at most 16.7 % of new" in capsys.readouterr().out
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*references of the detector")
        score(tmp_path, bad, *options, "--calibrate", str(references / "0[0-6].png"))
    shown = capsys.readouterr()
    assert "7 photos of these the detector compares with" in shown.out
    assert "Promise" not in shown.out


def test_what_does_not_count(few: Path, tmp_path: Path) -> None:
    mask = np.zeros((48, 48), dtype=bool)
    mask[:, :24] = True
    Image.fromarray(mask).save(tmp_path / "mask.png")
    options = ["--clip", "tiny", "--method", "mutual", "--ignore"]
    maps = tmp_path / "maps"
    options += [str(tmp_path / "mask.png"), "--maps", str(maps), "--map-format", "npy"]
    photos = sorted(map(str, few.iterdir()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of few photos
        report = score(tmp_path, str(few), *options)
        detector = ReferenceDetector(
            "tiny", n_neighbors=0.3, ignore=mask, random_state=0
        )
        expected = detector.fit(photos).score_samples(photos)
    margins = {row["path"]: row["margin"] for row in report["scores"]}
    np.testing.assert_allclose([margins[p] for p in photos], expected, atol=1e-4)
    for path in maps.glob("*.npy"):
        assert not np.load(path)[:, :20].any()


def test_what_does_not_count_has_the_size_of_the_photos(
    few: Path, tmp_path: Path, capsys: Any
) -> None:
    mask = tmp_path / "mask.png"
    Image.new("1", (48, 48)).save(mask)
    Image.new("RGB", (40, 30)).save(few / "other.png")
    options = ["--clip", "tiny", "--method", "mutual", "--ignore", str(mask)]
    assert main(["score", str(few), *options]) == 2
    said = capsys.readouterr().err
    assert f"--ignore {mask}: is 48 x 48 pixels, but {few / 'other.png'} is" in said
    (few / "other.png").unlink()
    assert main(["score", str(few), *options, "--save", str(mask)]) == 2
    assert "is one of the photos" in capsys.readouterr().err


def test_good_photos_and_words_together(folder: Path, tmp_path: Path) -> None:
    good, bad = str(folder / "good"), str(folder / "bad")
    report = score(tmp_path, bad, *TINY, "--good", good)
    members = [
        ("photos", ReferenceDetector("tiny", random_state=0)),
        ("prompt", make_pipeline(CLIPImageEncoder("tiny"), PromptDetector("tiny"))),
    ]
    fusion = FusionDetector(members, method="standardized")
    fusion.fit(sorted((folder / "good").iterdir()))
    paths = [row["path"] for row in report["scores"]]
    margins = [row["margin"] for row in report["scores"]]
    np.testing.assert_allclose(margins, fusion.score_samples(paths), atol=1e-4)


def test_photos_that_judge_each_other(folder: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    options = ["--clip", "tiny", "--method", "mutual", "--report", str(page)]
    report = score(tmp_path, str(folder), *options)
    paths = sorted(row["path"] for row in report["scores"])
    detector = ReferenceDetector("tiny", n_neighbors=0.3, random_state=0).fit(paths)
    expected = dict(zip(paths, detector.score_samples(paths), strict=True))
    for row in report["scores"]:
        assert row["margin"] == pytest.approx(expected[row["path"]], abs=1e-4)
    assert '"map_side": 28' in page.read_text()


@pytest.mark.usefixtures("own_cache")
def test_tiles_and_size_of_the_input(few: Path, tmp_path: Path) -> None:
    paths = sorted(few.iterdir())
    for options, detector in (
        (
            ["--tiles", "2x3"],
            TiledDetector(
                make_pipeline(CLIPImageEncoder("tiny"), PromptDetector("tiny")),
                tiles=(2, 3),
            ),
        ),
        (
            ["--image-size", "70x98"],
            make_pipeline(
                CLIPImageEncoder(OpenCLIP("tiny", image_size=(70, 98))),
                PromptDetector("tiny"),
            ),
        ),
    ):
        saved = str(tmp_path / "detector.joblib")
        report = score(tmp_path, str(few), *TINY, *options, "--save", saved)
        expected = dict(
            zip(map(str, paths), detector.fit(None).score_samples(paths), strict=True)
        )
        for row in report["scores"]:
            assert row["margin"] == pytest.approx(expected[row["path"]], abs=1e-3)
        again = score(tmp_path, str(few), "--load", saved)
        assert again["scores"] == report["scores"]


def test_contamination_of_photos_with_equal_scores(
    few: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    paths = [str(tmp_path / f"{i}.png") for i in range(10)]
    for path in paths:
        shutil.copy(few / "0.png", path)
    report = score(tmp_path, *paths, *TINY, "--contamination", "0.2")
    assert set(verdicts(report)) == {"normal"}
    assert "0 of 10 photos lie below, fewer than 20 %" in capsys.readouterr().out


def test_share_of_less_than_one_photo(few: Path, tmp_path: Path, capsys) -> None:
    report = score(tmp_path, str(few), *TINY, "--contamination", "0.3")
    assert set(verdicts(report)) == {"normal"}
    assert "30 % of 3 photos is less than one" in capsys.readouterr().out


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "cp1252"])
def test_files_of_words(encoding: str, folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "bad.txt"
    path.write_bytes("stained {}\r\n\r\nschäbig  {}\r\n".encode(encoding))
    options = [*TINY, "--normal", "clean {}"]
    from_file = score(tmp_path, str(folder), *options, "--anomalous", str(path))
    given = ["--anomalous", "stained {}", "--anomalous", "schäbig {}"]
    typed = score(tmp_path, str(folder), *options, *given)
    assert from_file["settings"] == typed["settings"]
    assert from_file["scores"] == typed["scores"]


def test_own_words(folder: Path, tmp_path: Path) -> None:
    words = tmp_path / "bad.txt"
    words.write_text("stained {}\nscratched {}\n")
    options = ["--normal", "clean {}", "--anomalous", str(words)]
    report = score(tmp_path, str(folder), *TINY, *options)
    templates = PRESETS["winclip"].templates
    prompts = PromptSet(["clean {}"], ["stained {}", "scratched {}"], templates)
    detector = PromptDetector("tiny", prompts=prompts).fit()
    paths = [row["path"] for row in report["scores"]]
    expected = detector.score_samples(CLIPImageEncoder("tiny").transform(paths))
    margins = [row["margin"] for row in report["scores"]]
    np.testing.assert_allclose(margins, expected, atol=1e-4)
    assert report["settings"]["anomalous"] == ["stained {}", "scratched {}"]


def test_spreadsheet(few: Path, tmp_path: Path) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    (few / "=1+1.png").write_text("no image")
    out = tmp_path / "scores.xlsx"
    assert main(["score", str(few), *TINY, "--out", str(out)]) == 1
    header, *rows = openpyxl.load_workbook(out).active.values
    assert list(header) == COLUMNS
    assert [row[1] for row in rows] == [1, 2, 3, None]
    assert rows[-1][2] == "unreadable"
    cells = openpyxl.load_workbook(out).active["A5"]
    assert cells.data_type == "s"  # and no formula
    assert cells.value.endswith("=1+1.png")


def test_names_in_spreadsheets(tmp_path: Path) -> None:
    """As given where XML can hold them, read as Excel reads them."""
    openpyxl = pytest.importorskip("openpyxl")
    as_given = [
        *(
            "10.00\u202fAM",
            "\u3000",
            " a  b ",
            "a\u00a0b",
            "\U0001f468\u200d\U0001f469",
        ),
        *("soft\u00adhyphen", "\u0641\u0627\u200c\u0631", "\u200e\u05d0", "\u202egnp"),
        *("line\nbreak", "\ttab", "\x7f\x85\u2028", "\uf022\U000e0067", "=1", "<&>"),
        *("_x0041_", "_x000A_x0041_", "_x005F_", "_x00g1_", "__x00ff__"),
    ]
    escaped = {"\rreturn": r"\rreturn", "\x1b[31m": r"\x1b[31m", "\uffff": r"\uffff"}
    escaped |= {"\x00\x0b\ud800": r"\x00\x0b\ud800"}
    paths = [*as_given, *escaped]
    rows = make_rows(paths, np.arange(len(paths), dtype=float), 0.0)
    write_rows(str(tmp_path / "scores.xlsx"), rows)
    sheet = openpyxl.load_workbook(tmp_path / "scores.xlsx").active
    read = [
        re.sub("_x([0-9A-Fa-f]{4})_", lambda code: chr(int(code[1], 16)), cell.value)
        for [cell] in sheet.iter_rows(min_row=2, max_col=1)
    ]
    assert read == [*as_given, *escaped.values()]


def test_names_in_csv(tmp_path: Path) -> None:
    """As given, but for what a terminal would obey."""
    expected = {
        **{name: name for name in ("10.00\u202fAM", "\u3000", "a\u200cb", "\uf022")},
        **{f"{sign}1": f"'{sign}1" for sign in "=+-@'\uff1d\uff0b\uff0d\uff20"},
        **{"\x1b[31m": r"\x1b[31m", "\x85\u2028\x0b": r"\x85\u2028\x0b"},
        **{"\u202egnp": r"\u202egnp", "\udcff": r"\udcff"},
        **{"a\nb": "a\nb", "a\tb": "a\tb", "\tb": "'\tb", "\nb": "'\nb", "\rb": "'\rb"},
    }
    rows = make_rows([*expected], np.arange(len(expected), dtype=float), 0.0)
    write_rows(str(tmp_path / "scores.csv"), rows)
    read = read_csv(tmp_path / "scores.csv")
    assert [row["path"] for row in read] == [*expected.values()]


def test_spreadsheet_has_the_regions(tmp_path: Path) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    rows = make_rows(["a.png", "b.png"], np.array([1.0, 2.0]), 0.0)
    region = {"top": 1, "left": 2, "bottom": 3, "right": 4, "area": 4}
    rows[0]["regions"] = [region | {"peak": 1 / 3, "mean": 0.25}]
    write_rows(str(tmp_path / "scores.xlsx"), rows)
    book = openpyxl.load_workbook(tmp_path / "scores.xlsx")
    assert book.sheetnames == ["scores", "regions"]
    assert list(book["regions"].values)[1:] == [
        ("a.png", 1, 2, 3, 4, 4, 0.333333, 0.25)
    ]


@pytest.mark.filterwarnings("default:max_false_alarm=:UserWarning")  # too few
def test_a_promise_is_saved_for_its_threshold_only(
    folder: Path, few: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    saved = str(tmp_path / "detector.joblib")
    given = ["--calibrate", str(few), "--max-false-alarm", "0.3", "--save", saved]
    assert main(["score", str(folder), *TINY, *given]) == 0
    promise = "Promise, on average: at most 25 % of new good photos"
    assert promise in capsys.readouterr().out
    assert main(["score", str(folder), "--load", saved]) == 0
    assert promise in capsys.readouterr().out
    detector = joblib.load(saved)
    detector[-1].offset_ += 1.0
    joblib.dump(detector, saved)
    assert main(["score", str(folder), "--load", saved]) == 0
    out = capsys.readouterr().out
    assert "Threshold of the saved detector: 3 good photos" in out
    assert "Promise" not in out


@pytest.mark.filterwarnings("default:max_false_alarm=:UserWarning")  # too few
def test_an_unreadable_calibration_image_is_named(
    folder: Path, few: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (few / "bad.png").touch()
    arguments = ["score", str(folder), *TINY, "--calibrate", str(few)]
    assert main(arguments) == 1
    assert "bad.png: the file is empty" in capsys.readouterr().err


@pytest.mark.usefixtures("own_cache")
def test_a_saved_threshold_is_kept(folder: Path, tmp_path: Path, capsys) -> None:
    saved = str(tmp_path / "detector.joblib")
    arguments = ["--threshold", "0.5", "--save", saved]
    first = score(tmp_path, str(folder), *TINY, *arguments)
    capsys.readouterr()
    second = score(tmp_path, str(folder), "--load", saved)
    assert second["scores"] == first["scores"]
    assert second["settings"]["threshold_from"] == "--load"
    assert "uncalibrated" not in capsys.readouterr().err
    third = score(tmp_path, str(folder), "--load", saved, "--contamination", "0.25")
    assert verdicts(third).count("anomalous") == 6


@pytest.mark.parametrize("compress", [0, 3, "gzip", "bz2", "lzma", "xz"])
def test_a_file_of_any_compression_is_loaded(
    compress: Any, few: Path, tmp_path: Path
) -> None:
    detector = calibrated(few)
    saved = str(tmp_path / "detector.joblib")
    joblib.dump(detector, saved, compress=compress)
    report = score(tmp_path, str(few), "--load", saved)
    margins = [row["margin"] for row in report["scores"]]
    expected = detector.score_samples(sorted(map(str, few.iterdir())))
    assert sorted(margins) == pytest.approx(sorted(expected), abs=1e-3)


# -- errors --------------------------------------------------------------------


def calibrated(photos: Path) -> Any:
    paths = sorted(map(str, photos.iterdir()))
    detector = make_pipeline(CLIPImageEncoder("tiny"), PromptDetector("tiny"))
    return calibrate_threshold(detector.fit(None), paths, max_false_alarm=0.25)


@pytest.mark.parametrize("compress", [3, "gzip"])
def test_a_damaged_file_is_not_loaded(
    compress: Any, few: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    saved = tmp_path / "detector.joblib"
    joblib.dump(calibrated(few), saved, compress=compress)
    content = saved.read_bytes()
    middle = len(content) // 2
    flipped = bytes([content[middle] ^ 1])
    for damaged in (
        content[:-1],
        content[:-4],
        content[:middle],
        content + b"\n",
        content + b"\r\n",
        content + bytes(100_000),
        content + content,
        content[:middle] + flipped + content[middle + 1 :],
    ):
        saved.write_bytes(damaged)
        assert main(["score", str(few), "--load", str(saved)]) == 2
        assert (
            f"--load {saved}: is not a file of --save, or is damaged"
            in capsys.readouterr().err
        )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not a file of --save\n"),
        (b"x", "is not a file of --save, or is damaged\n"),
        (b"\x78\x9c", "is not a file of --save, or is damaged\n"),
        (b"import sys; sys\n", "is not a file of --save\n"),
        (gzip.compress(b"photos", mtime=0), "is not a file of --save\n"),
        (
            b"PK\x03\x04" + bytes(100),
            "is not a file of --save: it is an archive, as skops makes",
        ),
    ],
)
def test_a_file_of_another_kind_is_not_loaded(
    content: bytes, message: str, few: Path, capsys: pytest.CaptureFixture
) -> None:
    other = few.parent / "other"
    other.write_bytes(content)
    assert main(["score", str(few), "--load", str(other)]) == 2
    assert f"--load {other}: {message}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("offset_", np.inf, "offset_=inf: expected a finite number"),
        ("calibration_scores_", [np.nan], "calibration_scores: expected finite"),
        ("pixel_offset_", np.nan, "pixel_offset_=nan: expected a number"),
        ("calibration_scores_", [], "calibration_scores: expected finite"),
        ("calibration_scores_", "low", "could not convert"),
        ("promise_", 0.05, "promise_=0.05: expected a dict"),
        ("promise_", {"threshold": 1}, "promise_={'threshold': 1}: expected a dict"),
    ],
)
def test_a_threshold_that_means_nothing_is_not_loaded(
    name: str, value: Any, message: str, few: Path, capsys: pytest.CaptureFixture
) -> None:
    detector = calibrated(few)
    setattr(detector[-1], name, value)
    saved = str(few.parent / "detector.joblib")
    joblib.dump(detector, saved)
    assert main(["score", str(few), "--load", saved]) == 2
    assert f"--load {saved}: {message}" in capsys.readouterr().err


PLUS = ["--method", "sdp-plus"]


def words(anomalous: str) -> list[str]:
    return ["--normal", "clean {}", "--anomalous", anomalous]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "COMMAND"),
        (["score"], "PATH"),
        (["score", "few", "--threshold", "nan"], "is not a finite number"),
        (["score", "few", "--contamination", "0.6"], r"0.6 is not in \(0, 0.5\]"),
        (["score", "few", "--contamination", "0"], "0 is not in"),
        (["score", "few", "--threshold", "inf"], "inf is not a finite number"),
        (["score", "few", "--contamination", "nan"], "nan is not a finite number"),
        (["score", "few", "--contamination", "0.1", "--threshold", "1"], "not allowed"),
        (["score", "few", "--max-false-alarm", "0.1"], "needs --calibrate"),
        (["score", "--calibrate", "a", "b", "c"], "takes all folders that follow it"),
        (["score", "few", "--out", "scores.txt"], "must end in .csv, .xlsx or .json"),
        (["score", "few", "--tiles", "3"], "expected a form such as 3x4"),
        (["score", "few", "--image-size", "0"], "is not in"),
        (["score", "few", "--load", "d", "--tiles", "1x2"], "--tiles has no effect"),
        (["score", "few", "--bad", "b"], "--bad needs --calibrate"),
        (["score", "few", "--confidence", "0.9"], "--confidence needs --calibrate"),
        (["score", "few", "--normal", "clean {}"], "--normal requires --anomalous"),
        (
            ["score", "few", "--normal", os.devnull, "--anomalous", "x"],
            "is a pipe or device, not a file",
        ),
        (["score", "few", "--method", "reference"], "needs --good FOLDER"),
        (["score", "few", "--ignore", "few/0.png"], "--ignore is for the methods"),
        (["score", "few", *TINY, "--good", "g", "--ignore", "m"], "--ignore is for"),
        (["score", "few", "--good", "g", "--ignore", "no.png"], "is not a file"),
        (["score", "few", "--load", "d", "--ignore", "m.png"], "--ignore has no"),
        (["score", "few", "--method", "mutual", "--good", "g"], "leave out --good"),
        (["score", "few", "--no-cache", "--embedding-cache", "c"], "exclude each"),
        (["score", "few", "--title", "t"], "--title needs --report"),
        (["score", "few", "--load", "d", "--clip", "tiny"], "--clip has no effect"),
        (["score", "few", "--load", "d", "--method", "prompt"], "--method has no"),
        (["score", "few", "--load", "d", "--class-name", "x"], "--class-name has no"),
        (["score", "few", "--batch-size", "0"], "0 is not in"),
        (["demo", "--n", "two"], "'two' is not an integer"),
        (["score", "x.png", "--promts"], "--promts\nSee `clipad score --help`"),
        (["cache", "shrink", "few"], "invalid choice"),
        # Shell variables that are not set.
        (["score", "few", "--save", ""], "argument --save: is empty"),
        (["score", "few", "--maps="], "argument --maps: is empty"),
        (["score", "few", "--class-name", ""], "argument --class-name: is empty"),
        (["score", ""], "argument PATH: is empty"),
        (["cache", "clear", ""], "argument FOLDER: is empty"),
        (["models", "--download", ""], "argument --download: is empty"),
        (["score", "few", "--batch-size", "1" + 400 * "0"], "is not in .1, 2147483647"),
        (["demo", "--n", "1" + 400 * "0"], "is not in"),
        (["score", "few", *words("bad.txt")], "--anomalous bad.txt: there is no such"),
        (["score", "few", *PLUS, "--layers", "few"], "--layers few: is not a file"),
        (["score", "few", *PLUS, "--layers", "gone"], "--layers gone: is not a file"),
        (["score", "few", *words("~/bad.lst")], "--anomalous ~/bad.lst: there is no"),
        (["score", "few", *words("./bad")], "--anomalous ./bad: there is no such"),
        (
            ["score", "few", *words("few/0.png")],
            "0.png: cannot be read .*expected text",
        ),
        (["score", "few", *words("a\x1b {}")], "characters that cannot be shown"),
        (["score", "few", *words("a\udce4 {}")], "characters that cannot be shown"),
        (["score", "few", *words("\x1b" + 999 * "a")], r"found '.{50,70} \.\.\. a+', "),
    ],
)
def test_wrong_usage(arguments: list[str], message: str, few, monkeypatch, capsys):
    monkeypatch.chdir(few.parent)
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["score", "nothing.png"], "no image found: nothing.png"),
        (["score", "empty"], "no image found: empty"),
        (["score", "*.png"], "no image found"),
        (["score", "few", "--calibrate", "empty"], "no image found: empty"),
        (["score", "few", "--out", "missing/scores.csv"], "there is no folder"),
        (["score", "few", "--save", "few"], "is a folder"),
        (["score", "few", "--clip", "ViT-B-32"], "expected 'ViT-B-32/TAG'"),
        (["score", "few", "--clip", "ViT-B-23/openai"], "Did you mean"),
        (["score", "few", "--clip", "ViT-B-32/none.pt"], "1. where there is a network"),
        (["score", "few", *TINY, "--class-name", " "], "class_name is blank"),
        (["score", "few", *TINY, "--class-name", "\udce4"], "is not valid Unicode"),
        (["score", "few", *TINY, *words("Clean  {}")], "is one of normal_states too"),
        (["score", "few", *TINY, "--device", "abacus"], "device='abacus'"),
        (["score", "few", "--load", "few/0.png"], "is not a file of --save"),
        (["score", "few", "--load", "nowhere"], "there is no such file"),
        (["score", "few", "--load", "empty.joblib"], "is not a file of --save\n"),
        (["score", "few", *TINY, "--shift-test"], "there are none in this detector"),
        (["score", "few", "--load", "list.joblib"], "found list, which has"),
        (["score", "few", "--load", "unfitted.joblib"], "not fitted"),
        (["models", "no such model"], "no model with"),
        (["models", "--download", "ViT-B-32/none.pt"], "Remedies"),
        (["cache", "info", "nowhere"], "no such folder"),
        (["demo", "--out", "few"], "was not made by an earlier `clipad demo`"),
        (["demo", "--out", "few/0.png"], "is a file"),
    ],
)
def test_what_the_user_can_put_right(
    arguments: list[str], message: str, few, monkeypatch, capsys
):
    monkeypatch.chdir(few.parent)
    Path("empty").mkdir()
    joblib.dump([1], "list.joblib")
    Path("empty.joblib").touch()
    detector = make_pipeline(CLIPImageEncoder("tiny"), PromptDetector("tiny"))
    joblib.dump(detector, "unfitted.joblib")
    before = sorted(os.walk("."))
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert sorted(os.walk(".")) == before


# -- files ---------------------------------------------------------------------


@pytest.fixture
def waiting(few: Path, on_processor: None) -> Iterator[tuple[Forked, int]]:
    """A run that waits for an image, and the other end of the pipe it reads from."""
    if not hasattr(os, "mkfifo"):
        pytest.skip("needs named pipes")
    # Another one each time, or a kept embedding would spare reading it.
    pixels = np.random.default_rng().integers(0, 256, (48, 48, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(few / "slow.png")
    os.mkfifo(few / "pipe")
    (few.parent / "scores.csv").write_text("an earlier result")

    def run_slowly() -> int:
        read = _decoding.read_bytes

        def waiting(path: Any) -> bytes:
            if "slow" not in str(path):
                return read(path)
            with open("few/pipe", "rb") as pipe:  # as if from a slow server
                return pipe.read()

        _decoding.read_bytes = waiting
        sys.argv = ["clipad", "score", "few", *TINY, "--out", "scores.csv"]
        return main()

    process = Forked(run_slowly, few.parent)
    writers: list[int] = []

    def is_reading() -> bool:
        with contextlib.suppress(OSError):
            writers.append(os.open(few / "pipe", os.O_WRONLY | os.O_NONBLOCK))
        return bool(writers)

    process.wait_for(is_reading)
    assert process.status is None, process.printed
    [writer] = writers
    os.set_blocking(writer, True)
    yield process, writer
    process.kill()
    process.wait()


def test_killed_run_leaves_no_partial_output(waiting, few: Path) -> None:
    process, writer = waiting
    process.kill()
    os.close(writer)
    assert process.wait() == -signal.SIGKILL
    assert (few.parent / "scores.csv").read_text() == "an earlier result"
    assert sorted(os.listdir(few.parent)) == ["few", "scores.csv"]


@pytest.mark.parametrize(
    ("number", "status", "word"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")],
)
def test_interrupted_run(waiting, few: Path, number, status, word) -> None:
    """It ends although a read never does."""
    process, writer = waiting
    process.kill(number)
    assert process.wait() == status
    os.close(writer)
    assert process.printed[1].endswith(f"clipad: {word}\n")
    assert (few.parent / "scores.csv").read_text() == "an earlier result"
    assert sorted(os.listdir(few.parent)) == ["few", "scores.csv"]


def test_writing_is_all_or_nothing(tmp_path: Path) -> None:
    target = tmp_path / "scores.csv"
    target.write_text("before")
    target.chmod(0o640)
    with contextlib.suppress(RuntimeError), writing(str(target)) as temporary:
        Path(temporary).write_text("half")
        raise RuntimeError
    assert target.read_text() == "before"
    with writing(str(target)) as temporary:
        Path(temporary).write_text("after")
    assert target.read_text() == "after"
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    assert os.listdir(tmp_path) == ["scores.csv"]
    gone = tmp_path / "gone" / "scores.csv"
    with pytest.raises(UsageError, match="was not written"), writing(str(gone)):
        pass


def test_hostile_names(few: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(few)
    names = [
        "=cmd|' ' !A0.png",
        "+1.png",
        "@sum.png",
        "'quoted.png",
        "-rf.png",
        "line\nbreak.png",
        "\rreturn.png",
        "\ttab.png",
        'a,"b".png',
        "\x1b[31mred.png",
        "\u202egnp.png",
        "\uff1d1+1.png",  # a fullwidth =
        "10.00\u202fAM.png",  # as macOS names screenshots
        "ünï ☃.png",
        "<script>.png",
        os.fsdecode(b"not-unicode-\xff.png"),
    ]
    for name in names:
        try:
            Path(name).write_bytes(Path("0.png").read_bytes())
        except OSError:
            pytest.skip("this file system refuses such names")
    out = tmp_path / "scores"
    for kind in ("csv", "json"):
        arguments = ["score", *TINY, "--out", f"{out}.{kind}", "--", *names]
        assert main(arguments) == 0
    report = json.loads(Path(f"{out}.json").read_text(encoding="ascii"))
    assert {row["path"] for row in report["scores"]} == set(names)

    rows = read_csv(Path(f"{out}.csv"))
    cells = [row["path"] for row in rows]
    assert not any(cell.startswith(tuple("=+-@\t\r\n\uff1d")) for cell in cells)
    plain = [cell[1:] if cell.startswith("'") else cell for cell in cells]
    written = {
        name.replace("\udcff", r"\udcff")
        .replace("\x1b", r"\x1b")
        .replace("\u202e", r"\u202e")
        for name in names
    }
    assert set(plain) == written

    capsys.readouterr()
    assert main(["score", *TINY, "--", *names]) == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "\\x1b[31mred.png" in shown
    assert "ünï ☃.png" in shown


def test_a_terminal_that_cannot_show_the_name(few: Path) -> None:
    (few / "0.png").rename(few / "☃.png")
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    with contextlib.redirect_stdout(terminal):
        assert main(["score", str(few), *TINY]) == 0
    assert b"\\u2603.png" in terminal.buffer.getvalue()


def test_ranks_of_equal_margins_do_not_depend_on_the_order() -> None:
    margins = np.array([0.5, -1.0, 0.5, -1.0, np.nan])
    rows = make_rows(["d", "c", "b", "a", "e"], margins, -1.0, {4: "broken"})
    assert [row["path"] for row in rows] == ["a", "c", "b", "d", "e"]
    # A score equal to the threshold is normal.
    assert {row["verdict"] for row in rows[:4]} == {"normal"}


# -- other commands ------------------------------------------------------------


def test_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "--n", "12"]) == 0
    out, err = capsys.readouterr()
    assert "trying things out" in err
    demo = tmp_path / "clipad-demo"
    rows = read_csv(demo / "scores.csv")
    assert len(rows) == 12
    is_bad = [os.path.basename(os.path.dirname(r["path"])) == "defect" for r in rows]
    value = auroc(is_bad, [-float(row["margin"]) for row in rows])
    assert f"AUROC of all 12: {value:.3f}" in out
    assert os.path.join("clipad-demo", "scores.csv") in out
    for name in ("report.html", "ten-good-photos.html"):
        assert (demo / name).absolute().as_uri() in out
        page = (demo / name).read_text(encoding="utf-8")
        assert page.count('"truth": "good"') == 6
        assert '"map_side": 28' in page
    assert re.search(r"AUROC [\d.]+ with words, [\d.]+ compared with 10", out)
    leading = [line.split()[0] for line in out.splitlines()[1:13]]
    assert leading == [str(rank) for rank in range(1, 13)]


def test_demo_may_be_repeated(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "--n", "4", "--out", "a"]) == 0
    Path("a/mine.png").touch()
    first = Path("a/scores.csv").read_bytes()
    assert main(["demo", "--n", "2", "--out", "a"]) == 0
    assert len(list(Path("a/photos").glob("*/*.png"))) == 2
    assert Path("a/mine.png").exists()
    assert main(["demo", "--n", "4", "--out", "a"]) == 0
    assert Path("a/scores.csv").read_bytes() == first


def test_models(monkeypatch, capsys) -> None:
    assert main(["models", "b-16-PLUS"]) == 0
    assert "ViT-B-16-plus-240/laion400m_e32" in capsys.readouterr().out.splitlines()
    assert main(["models"]) == 0
    names = {line.split("  ")[0] for line in capsys.readouterr().out.splitlines()}
    assert {"tiny", "ViT-B-32-quickgelu/openai"} <= names
    assert "ViT-B-32/openai" not in names  # an error of OpenCLIP
    assert main(["models", "--download", "tiny"]) == 0
    monkeypatch.setattr("clipad_sklearn._cli.models._SECONDS", 0.01)
    assert main(["models", "--time", "tiny", "--batch-size", "2"]) == 0
    out = capsys.readouterr().out
    assert "fp32: " in out
    assert "bf16: " in out
    assert "Recommended: OpenCLIP(..., precision=" in out


@pytest.mark.usefixtures("own_cache")
def test_cache(few: Path, tmp_path: Path, capsys) -> None:
    cache = str(tmp_path / "cache")
    arguments = [str(few), *TINY, "--embedding-cache", cache]
    first = score(tmp_path, *arguments)
    assert score(tmp_path, *arguments)["scores"] == first["scores"]
    capsys.readouterr()
    assert main(["cache", "info", cache]) == 0
    assert re.search(r"entries: \d+\nbytes: [\d.]+ kB\n", capsys.readouterr().out)
    assert main(["cache", "verify", cache]) == 0
    assert main(["cache", "clear", cache]) == 0
    assert "entries: 0\n" in capsys.readouterr().out


def test_damaged_cache(tmp_path: Path, capsys) -> None:
    cache = FolderCache(tmp_path)
    cache.put_many({"key": np.ones(4, np.float32)})
    cache.close()
    path = tmp_path / "embeddings-v1.sqlite"
    path.write_bytes(b"no database" + path.read_bytes()[11:])
    for action in ("info", "verify"):
        assert main(["cache", action, str(tmp_path)]) == 2
        assert "Delete the file" in capsys.readouterr().err
    assert main(["cache", "clear", str(tmp_path)]) == 0
    assert "entries: 0\n" in capsys.readouterr().out


def test_other_files_are_counted(
    few: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for name in ("a.dng", "b.DNG", "notes.txt", "LICENSE", ".hidden"):
        (few / name).write_text("no photo")
    score(tmp_path, str(few), *TINY)
    left_out = "4 other files left out (.dng 2, .txt 1, no extension 1)"
    assert left_out in capsys.readouterr().err
    score(tmp_path, str(few.parent / "fe[w]"), *TINY)
    assert left_out in capsys.readouterr().err
    score(tmp_path, str(few / "*.png"), *TINY)
    assert "left out" not in capsys.readouterr().err


@pytest.mark.usefixtures("on_processor")
def test_precision(few: Path, tmp_path: Path) -> None:
    # A cache that no other process of the tests fills from batches of its own.
    options = [str(few), *TINY, "--embedding-cache", str(tmp_path / "cache")]
    exact, rough = (
        score(tmp_path, *options, "--precision", precision)
        for precision in ("fp32", "bf16")
    )
    margins = [[row["margin"] for row in run["scores"]] for run in (exact, rough)]
    assert margins[0] != margins[1]
    assert exact["scores"] == score(tmp_path, *options)["scores"]


def test_a_report_names_every_setting_that_decides_scores():
    """A new option is added here, or to one of the two groups that decide nothing."""
    decide = {
        "paths", "method", "good", "load", "class_name", "normal", "anomalous",
        "random_state", "scorer", "layers", "tiles", "ignore", "threshold",
        "contamination", "calibrate", "bad", "max_false_alarm", "confidence",
        "shift_test",
    }  # fmt: skip
    names = {field.name for field in dataclasses.fields(ScoreSettings)}
    assert names == decide | {*ScoreSettings.of_outputs, *ScoreSettings.of_clip}
