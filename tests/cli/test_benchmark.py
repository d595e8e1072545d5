"""``clipad benchmark`` on miniature trees, in real processes where that matters."""

from __future__ import annotations

import csv
import json
import os
import random
import shutil
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from processes import Forked, trains_in_a_fork
from trees import write_mvtec_ad, write_sewer_ml, write_visa, write_visa_one_class

from clipad_sklearn import (
    FusionDetector,
    OpenCLIP,
    PromptDetector,
    PromptSet,
    RandomWordDetector,
    ReferenceDetector,
    calibrate_threshold,
    metrics,
)
from clipad_sklearn._cli.benchmark_run import read_mask
from clipad_sklearn._cli.benchmark_tables import bootstrap
from clipad_sklearn._cli.main import main
from clipad_sklearn.datasets import load_mvtec_ad, make_defect_images
from clipad_sklearn.metrics import IMAGE_METRICS, PIXEL_METRICS

FAST = ["--clip", "tiny", "--draws", "100"]
TABLES = ("results.json", "results.csv", "results.md")


def arguments(data: str, root: Path, out: Path, methods: str) -> list[str]:
    given = ["--data", data, "--root", str(root), "--out", str(out)]
    return ["benchmark", *given, "--methods", methods, *FAST]


def rows_of(out: Path) -> dict[tuple[str, str], dict[str, str]]:
    with open(out / "results.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {(row["category"], row["method"]): row for row in rows}


# -- end to end ------------------------------------------------------------------


def test_mvtec_ad_with_every_kind_of_method(tmp_path: Path) -> None:
    root = write_mvtec_ad(tmp_path / "mvtec")
    methods = "prompt,random-word,fusion,sdp,winclip-random-word"
    out = tmp_path / "out"
    given = [*arguments("mvtec", root, out, methods), "--seeds", "2", "--n-pairs", "50"]
    assert main(given) == 0
    rows = rows_of(out)
    assert len(rows) == 3 * 5
    results = json.loads((out / "results.json").read_text())
    for (category, method), row in rows.items():
        seeded = method in ("random-word", "fusion", "winclip-random-word")
        assert row["error"] == ""
        assert int(row["n_seeds"]) == 1 + seeded
        assert (row["auroc_std"] != "") == seeded
        low, value, high = (
            float(row[f"auroc{suffix}"]) for suffix in ("_low", "", "_high")
        )
        assert 0 <= low <= value <= high <= 1
        assert (row["pro"] != "") == (method in ("sdp", "winclip-random-word"))
        if category == "mean":
            pair = [float(rows[c, method]["auroc"]) for c in ("bottle", "wood")]
            assert value == pytest.approx(np.mean(pair))
            assert int(row["n_images"]) == 16
            continue
        part = results["categories"][category]
        for name, metric in IMAGE_METRICS.items():
            found = [
                metric(part["data"]["is_anomalous"], scores)
                for scores in part["methods"][method]["scores"]
            ]
            assert float(row[name]) == pytest.approx(np.mean(found))
    assert results["versions"]["torch"]
    assert len(results["weights"]) == 64
    assert str(tmp_path) not in json.dumps(results["categories"])
    text = (out / "results.md").read_text()
    assert text.startswith("# Benchmark: photos laid out as in MVTec AD, unknown")
    assert "## PRO by category" in text
    with open(out / "times.csv", newline="") as file:
        times = list(csv.DictReader(file))
    assert len(times) == 2 * 5
    assert all(float(row["score_ms_per_image"]) > 0 for row in times)

    # Nothing is done again, and the tables stay as they are.
    before = {name: (out / name).read_bytes() for name in (*TABLES, "times.csv")}
    assert main(given) == 0
    assert {name: (out / name).read_bytes() for name in before} == before


def new_training(root: Path, categories: tuple[str, ...]) -> None:
    """Put other good photos than are tested into the training split."""
    for category in categories:
        folder = root / category / "train" / "good"
        for path in folder.glob("*.png"):
            path.unlink()
        new = make_defect_images(4, size=48, anomaly_fraction=0, random_state=9)
        for number, pixels in enumerate(new.images):
            Image.fromarray(pixels).save(folder / f"n{number}.png")


@pytest.mark.filterwarnings("ignore:Fewer than 4 references")
def test_good_photos_and_photos_that_judge_each_other(tmp_path: Path) -> None:
    root, out = write_mvtec_ad(tmp_path / "mvtec", ("wood",)), tmp_path / "out"
    new_training(root, ("wood",))
    given = arguments("mvtec", root, out, "prompt,reference,mutual")
    assert main([*given, "--shots", "1,3,5", "--seeds", "2"]) == 1
    rows = rows_of(out)
    methods = ["prompt", "reference-1", "reference-3", "reference-5", "mutual"]
    assert [method for category, method in rows if category == "wood"] == methods
    part = json.loads((out / "results.json").read_text())["categories"]["wood"]
    train = load_mvtec_ad(root, "wood", split="train").images
    test = load_mvtec_ad(root, "wood").images
    assert "asks for 5" in rows["wood", "reference-5"]["error"]
    assert rows["wood", "reference-3"]["error"] == ""
    found = part["methods"]["reference-1"]
    assert len(found["scores"]) == len(found["pixels"]) == 2
    rng = np.random.default_rng(1)
    drawn = [train[i] for i in sorted(rng.choice(len(train), 1, replace=False))]
    expected = -ReferenceDetector("tiny").fit(drawn).score_samples(test)
    np.testing.assert_allclose(found["scores"][1], expected, atol=1e-4)
    mutual = ReferenceDetector("tiny", n_neighbors=0.3).fit(test)
    scores = part["methods"]["mutual"]["scores"]
    np.testing.assert_allclose(scores, [-mutual.score_samples(test)], atol=1e-4)


@pytest.mark.parametrize("layout", ["visa", "1cls", "sewer-ml", "folder"])
def test_other_layouts(layout: str, tmp_path: Path) -> None:
    root, out, data = tmp_path / "data", tmp_path / "out", layout
    methods = "prompt,sdp"
    if layout == "visa":
        write_visa(root)
    elif layout == "1cls":
        write_visa_one_class(root)
        data = "visa"
    elif layout == "sewer-ml":
        write_sewer_ml(root)
        methods = "prompt"
    else:
        write_mvtec_ad(root)
        root = root / "wood"
        shutil.rmtree(root / "train")
        for folder in (root / "test").iterdir():
            folder.rename(root / folder.name)
        (root / "test").rmdir()
    given = arguments(data, root, out, methods)
    assert main([*given, "--known-object"]) == 0
    rows = rows_of(out)
    categories = {
        "visa": {"candle", "pcb1"},
        "1cls": {"candle", "pcb1"},
        "sewer-ml": {"sewer pipe"},
        "folder": {"."},
    }[layout]
    assert {category for category, _ in rows} == {"mean", *categories}
    if methods != "prompt":
        assert all(row["pixel_auroc"] for key, row in rows.items() if key[1] == "sdp")
    assert "known object" in (out / "results.md").read_text()


def test_image_scores_are_those_of_the_library(tmp_path: Path) -> None:
    root = write_mvtec_ad(tmp_path / "mvtec", ("metal_nut",))
    out = tmp_path / "out"
    assert main([*arguments("mvtec", root, out, "prompt"), "--known-object"]) == 0
    data = load_mvtec_ad(root, "metal_nut")
    embeddings = OpenCLIP("tiny").encode_image(data.images)
    detector = PromptDetector("tiny", class_name="metal nut").fit()
    expected = metrics.auroc(data.target, -detector.score_samples(embeddings))
    assert float(rows_of(out)["metal_nut", "prompt"]["auroc"]) == expected


def test_options_of_the_protocol_reach_the_methods(tmp_path: Path) -> None:
    root, out = write_mvtec_ad(tmp_path / "mvtec", ("wood",)), tmp_path / "out"
    (tmp_path / "words.txt").write_text("stone\nriver\n", encoding="utf-8")
    protocol = ["--prompts", "clip-ad", "--template", "a view of a {}."]
    protocol += ["--normal", "clean {}", "--anomalous", "soiled {}", "--n-pairs", "20"]
    protocol += ["--n-words", "1-2", "--word-source", str(tmp_path / "words.txt")]
    protocol += ["--center", "text", "--fusion", "harmonic"]
    protocol += ["--fusion-weights", "2", "1"]
    given = arguments("mvtec", root, out, "prompt,random-word,fusion")
    assert main([*given, *protocol, "--seeds", "1"]) == 0
    embeddings = OpenCLIP("tiny").encode_image(load_mvtec_ad(root, "wood").images)
    words = RandomWordDetector(
        "tiny",
        n_pairs=20,
        n_words=(1, 2),
        word_source=("stone", "river"),
        templates=("a view of a {}.",),
        normal_states=("clean {}",),
        anomalous_states=("soiled {}",),
        center="text",
        random_state=0,
    )
    prompts = PromptSet(("clean {}",), ("soiled {}",), ("a view of a {}.",))
    prompt = PromptDetector("tiny", prompts=prompts, class_name="object")
    members = [("words", words), ("prompts", prompt)]
    fusion = FusionDetector(members, method="harmonic", weights=(2, 1))
    found = json.loads((out / "results.json").read_text())["categories"]["wood"]
    for name, detector in (
        ("prompt", prompt), ("random-word", words), ("fusion", fusion)
    ):  # fmt: skip
        expected = -detector.fit(None).score_samples(embeddings)
        scores = found["methods"][name]["scores"]
        np.testing.assert_allclose(scores, [expected], atol=1e-4)
    settings = json.loads((out / "results.json").read_text())["settings"]
    assert settings["word_source"] == ["stone", "river"]  # not the name of a file


def test_false_alarms_and_escapes(tmp_path: Path) -> None:
    root, out = write_mvtec_ad(tmp_path / "mvtec"), tmp_path / "out"
    new_training(root, ("bottle", "wood"))
    assert main(arguments("mvtec", root, out, "prompt")) == 0
    promised = tmp_path / "promised"
    given = [*arguments("mvtec", root, promised, "prompt"), "--max-false-alarm", "0.4"]
    assert main(given) == 0
    detector = PromptDetector("tiny", class_name="object").fit()
    above: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    for category in ("bottle", "wood"):
        data = load_mvtec_ad(root, category)
        scores = detector.score_samples(OpenCLIP("tiny").encode_image(data.images))
        check_errors(rows_of(out)[category, "prompt"], data.target, scores, 0.0)
        good = load_mvtec_ad(root, category, split="train").images
        calibrate_threshold(
            detector,
            OpenCLIP("tiny").encode_image(good),
            strategy="max_false_alarm",
            max_false_alarm=0.4,
        )
        offset = detector.offset_
        check_errors(rows_of(promised)[category, "prompt"], data.target, scores, offset)
        above.append(scores - offset)
        labels.append(data.target)
    mean = rows_of(promised)["mean", "prompt"]
    check_errors(mean, np.concatenate(labels), np.concatenate(above), 0.0)
    text = (promised / "results.md").read_text()
    assert "a threshold set for at most 40 % false alarms" in text
    assert "## false alarms by category" in text


def check_errors(
    row: dict[str, str], labels: np.ndarray, scores: np.ndarray, offset: float
) -> None:
    rates = metrics.error_bounds(labels, scores, offset)
    for name, rate in zip(("false_alarms", "escapes"), rates, strict=True):
        found = [float(row[name + end]) for end in ("", "_low", "_high")]
        assert found == pytest.approx([rate.rate, rate.low, rate.high])


# -- what is wrong becomes a row ---------------------------------------------------


def unreadable(root: Path) -> None:
    (root / "wood" / "test" / "good" / "000.png").write_bytes(b"no image")


def missing_mask(root: Path) -> None:
    (root / "wood" / "ground_truth" / "hole" / "003_mask.png").unlink()


def mask_of_another_size(root: Path) -> None:
    path = root / "wood" / "ground_truth" / "hole" / "003_mask.png"
    Image.new("L", (20, 30), 255).save(path)


def broken_mask(root: Path) -> None:
    (root / "wood" / "ground_truth" / "hole" / "003_mask.png").write_bytes(b"x")


def empty_category(root: Path) -> None:
    shutil.rmtree(root / "wood" / "test")
    (root / "wood" / "test" / "good").mkdir(parents=True)


def only_good(root: Path) -> None:
    for kind in ("hole", "scratch"):
        shutil.rmtree(root / "wood" / "test" / kind)


@pytest.mark.parametrize(
    ("spoil", "methods", "message"),
    [
        (unreadable, ("prompt", "sdp"), "1 image could not be read"),
        (missing_mask, ("prompt", "sdp"), "have no mask"),
        (mask_of_another_size, ("sdp",), "has 20 x 30 pixels, but its image 48 x 48"),
        (broken_mask, ("sdp",), "003_mask.png cannot be read"),
        (empty_category, ("prompt", "sdp"), "is empty"),
        (only_good, ("prompt", "sdp"), "needs both good and anomalous images"),
    ],
)
def test_failing_category_becomes_a_row(
    spoil: Callable[[Path], None],
    methods: tuple[str, ...],
    message: str,
    tmp_path: Path,
) -> None:
    root, out = write_mvtec_ad(tmp_path / "mvtec"), tmp_path / "out"
    shutil.copytree(root, tmp_path / "whole")
    spoil(root)
    given = arguments("mvtec", root, out, "prompt,sdp")
    assert main(given) == 1
    rows = rows_of(out)
    for method in ("prompt", "sdp"):
        assert rows["bottle", method]["auroc"] != ""
        failed = method in methods
        assert (message in rows["wood", method]["error"]) == failed
        assert (rows["wood", method]["auroc"] == "") == failed
        mean = rows["mean", method]
        assert mean["error"] == ("1 of 2 categories failed" if failed else "")
        assert mean["auroc"] != ""
    assert "## Failures" in (out / "results.md").read_text()

    # Put right, it is tried again.
    shutil.rmtree(root)
    shutil.copytree(tmp_path / "whole", root)
    assert main(given) == 0
    assert all(row["error"] == "" for row in rows_of(out).values())


MVTEC = "--data mvtec --root . --out out --clip tiny"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("", "--data is required"),
        ("--data mvtec --root .", "--out is required"),
        (f"{MVTEC} --methods prompt,magic", "--methods: unknown 'magic'; expected"),
        (f"{MVTEC} --methods prompt,prompt", "--methods: 'prompt' is listed twice"),
        (f"{MVTEC} --categories a a", "--categories: 'a' is listed twice"),
        (MVTEC, "has no folder of a category"),
        (f"{MVTEC} --root nowhere", "no such folder"),
        (
            f"{MVTEC} --categories nope no",
            "has no folder 'nope', 'no'; there are: none",
        ),
        (f"{MVTEC} --normal clean", "--normal requires --anomalous"),
        (f"{MVTEC} --template x", "'x'"),
        (f"{MVTEC} --prompts nice", "prompts='nice': expected one of 'clip-ac'"),
        (f"{MVTEC} --n-words 5-1", "expected a form such as 1-5"),
        (
            f"{MVTEC} --word-source nowhere.txt",
            "expected letters, vocabulary or",
        ),
        (f"{MVTEC} --fusion-weights 0 0", "one must be above 0"),
        (f"{MVTEC} --fusion max --fusion-weights 1 2", "takes no --fusion-weights"),
        (f"{MVTEC} --data folder --max-false-alarm 0.1", "needs a training split"),
        (f"{MVTEC} --shots 0", "expected whole numbers from 1 on"),
        (f"{MVTEC} --data folder --methods reference", "needs a training split"),
        (f"{MVTEC} --data sewer-ml --categories x", "Sewer-ML has only one"),
        (f"{MVTEC} --clip nothing", "no such path"),
        ("compare a.json", "required: B.json"),
        ("--data mvtec compare a.json b.json", "compare takes two files and no --data"),
        ("compere a.json b.json", "invalid choice: 'compere'"),
        ("compare a.json b.json", "is not the results.json of a benchmark"),
    ],
)
def test_wrong_usage(
    given: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        status: Any = main(["benchmark", *given.split()])
    except SystemExit as stop:
        status = stop.code
    assert status == 2
    assert message in capsys.readouterr().err
    assert not os.listdir(tmp_path)


def test_category_of_another_layout_is_wrong_usage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = write_mvtec_ad(tmp_path / "mvtec"), tmp_path / "out"
    only_good(root)
    given = arguments("mvtec", root, out, "prompt")
    assert main([*given, "--categories", "bottle", "wood"]) == 2
    said = capsys.readouterr().err
    assert "--categories wood: needs both good and anomalous images" in said
    for data in ("mvtec", "folder"):
        assert main([*arguments(data, root / "bottle", out, "prompt")]) == 2
        said = capsys.readouterr().err
        right = f"--data mvtec --root {root} --categories bottle"
        assert f"is the folder of one category; write {right}" in said
    assert not out.exists()


def test_methods_and_categories_are_added(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = write_mvtec_ad(tmp_path / "mvtec"), tmp_path / "out"
    whole = tmp_path / "whole"
    assert main(arguments("mvtec", root, whole, "clip-ac,prompt")) == 0
    first = [*arguments("mvtec", root, out, "clip-ac"), "--categories", "wood"]
    assert main(first) == 0
    before = rows_of(out)["wood", "clip-ac"]
    capsys.readouterr()
    # Only what lacks is computed, whatever is asked for this time.
    assert main([*arguments("mvtec", root, out, "prompt"), "--categories", "wood"]) == 0
    said = capsys.readouterr().err
    assert "[1/2] wood, clip-ac: already there" in said
    assert "[2/2] wood, prompt: AUROC" in said
    assert rows_of(out)["wood", "clip-ac"] == before
    assert main(arguments("mvtec", root, out, "prompt")) == 0
    assert "bottle, clip-ac: AUROC" in capsys.readouterr().err
    for name in TABLES:
        assert (out / name).read_bytes() == (whole / name).read_bytes()
    # The first command, once more, takes nothing away.
    assert main(first) == 0
    assert capsys.readouterr().err.count("already there") == 4
    assert len(rows_of(out)) == 3 * 2
    assert [row[0] for row in rows_of(out)][-2:] == ["mean", "mean"]


def test_changed_training_photos_are_drawn_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = write_mvtec_ad(tmp_path / "mvtec", ("wood",)), tmp_path / "out"
    given = [*arguments("mvtec", root, out, "clip-ac,reference"), "--shots", "2"]
    given += ["--seeds", "1"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert main(given) == 0
        path = next((root / "wood" / "train" / "good").iterdir())
        Image.new("RGB", (48, 48), "red").save(path)
        capsys.readouterr()
        assert main(given) == 0
    said = capsys.readouterr().err
    assert "wood, clip-ac: already there" in said
    assert "wood, reference-2: AUROC" in said


def test_folder_of_other_settings_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = write_mvtec_ad(tmp_path / "mvtec", ("wood",)), tmp_path / "out"
    assert main(arguments("mvtec", root, out, "clip-ac")) == 0
    before = (out / "results.json").read_bytes()
    given = arguments("mvtec", root, out, "prompt")
    assert main([*given, "--prompts", "clip-ad"]) == 2
    assert "prompts: None there, 'clip-ad' now" in capsys.readouterr().err
    assert (out / "results.json").read_bytes() == before
    other = tmp_path / "mine"
    other.mkdir()
    (other / "thesis.txt").touch()
    assert main(arguments("mvtec", root, other, "prompt")) == 2
    assert "is not empty" in capsys.readouterr().err
    # As a kill leaves it that comes before anything is written.
    os.rename(other / "thesis.txt", other / ".clipad-0123456789abcdef")
    assert main(arguments("mvtec", root, other, "prompt")) == 0


@pytest.mark.parametrize("name", ["results.json", "results.md", "parts"])
def test_links_in_the_folder_are_replaced(name: str, tmp_path: Path) -> None:
    """Nobody asked for them, and what they lead to is somebody's own."""
    root, out = write_mvtec_ad(tmp_path / "mvtec", ("wood",)), tmp_path / "out"
    given = arguments("mvtec", root, out, "clip-ac")
    assert main(given) == 0
    path = next((out / name).iterdir()) if name == "parts" else out / name
    before = path.read_bytes()
    (tmp_path / "mine.txt").write_text("somebody's own")
    path.unlink()
    path.symlink_to(tmp_path / "mine.txt")
    assert main(given) == 0
    assert (tmp_path / "mine.txt").read_text() == "somebody's own"
    assert name == "parts" or path.read_bytes() == before
    assert not path.is_symlink()


@pytest.mark.parametrize(
    "change",
    [
        {"methods": "clip-ac"},
        {"methods": None},
        {"methods": [1]},
        {"methods": [["clip-ac"]]},
        {"categories": 0},
        {"categories": "wood"},
        {"categories": [None]},
    ],
)
def test_settings_of_another_shape(
    change: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = write_mvtec_ad(tmp_path / "mvtec", ("wood",)), tmp_path / "out"
    given = [*arguments("mvtec", root, out, "clip-ac"), "--categories", "wood"]
    assert main(given) == 0
    settings = json.loads((out / "settings.json").read_text())
    settings["settings"] |= change
    (out / "settings.json").write_text(json.dumps(settings))
    assert main(given) == 2
    said = capsys.readouterr().err
    assert "settings.json: was not written by `clipad benchmark`" in said


@pytest.mark.parametrize(
    "change",
    [
        {"scores": None},
        {"scores": [["high"] * 8]},
        {"scores": [[0.5] * 7]},
        {"scores": [[0.5] * 8] * 2},
        {"thresholds": [None]},
        {"thresholds": 0.5},
        {"pixels": None},
        {"pixels": [{"pro": 1.0}]},
        {"times": [1.0]},
        {"times": {"hours": 1.0}},
    ],
)
def test_a_finished_part_of_another_shape_is_run_again(
    change: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = write_mvtec_ad(tmp_path / "mvtec", ("wood",)), tmp_path / "out"
    given = arguments("mvtec", root, out, "clip-ac")
    assert main(given) == 0
    [path] = (out / "parts").iterdir()
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    before = (out / "results.csv").read_bytes()
    capsys.readouterr()
    assert main(given) == 0
    assert "already there" not in capsys.readouterr().err
    assert (out / "results.csv").read_bytes() == before
    assert main(given) == 0
    assert "already there" in capsys.readouterr().err


def test_a_file_in_the_place_of_the_parts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = write_mvtec_ad(tmp_path / "mvtec", ("wood",)), tmp_path / "out"
    given = arguments("mvtec", root, out, "clip-ac")
    assert main(given) == 0
    shutil.rmtree(out / "parts")
    (out / "parts").touch()
    assert main(given) == 2
    assert f"--out {out / 'parts'}: file exists" in capsys.readouterr().err


def test_changed_data_are_scored_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = write_mvtec_ad(tmp_path / "mvtec"), tmp_path / "out"
    given = arguments("mvtec", root, out, "clip-ac")
    assert main(given) == 0
    assert "already there" not in capsys.readouterr().err
    Image.new("RGB", (48, 48)).save(root / "wood" / "test" / "good" / "000.png")
    assert main(given) == 0
    said = capsys.readouterr().err
    assert "bottle, clip-ac: already there" in said
    assert "wood, clip-ac: AUROC" in said


# -- killed ----------------------------------------------------------------------


@trains_in_a_fork
@pytest.mark.usefixtures("on_processor")
def test_killed_and_resumed_gives_the_same_tables(tmp_path: Path) -> None:
    root = write_mvtec_ad(tmp_path / "mvtec")
    methods = "prompt,random-word"
    options = ["--n-pairs", "50"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    resumed = [*arguments("mvtec", root, killed, methods), *options]
    # All in children, which have one thread: more would round differently.
    undisturbed = [*arguments("mvtec", root, whole, methods), *options]
    assert Forked(lambda: main(undisturbed)).wait() == 0
    rng = random.Random(0)
    for _ in range(2):
        before = {*killed.glob("parts/*.json")}
        process = Forked(lambda: main(resumed))
        process.wait_for(lambda old=before: {*killed.glob("parts/*.json")} - old)
        time.sleep(rng.uniform(0, 0.5))
        process.kill()
        process.wait()
    assert Forked(lambda: main(resumed)).wait() == 0
    for name in TABLES:
        assert (killed / name).read_bytes() == (whole / name).read_bytes()
    # Results among the categories are none of them.
    shutil.move(killed, root / "results")
    resumed[resumed.index(str(killed))] = str(root / "results")
    assert main(resumed) == 0
    killed = root / "results"
    for name in TABLES:
        assert (killed / name).read_bytes() == (whole / name).read_bytes()
    visible = [sorted(f.name for f in d.rglob("[!.]*")) for d in (whole, killed)]
    assert visible[0] == visible[1]


# -- metrics and intervals -----------------------------------------------------------


def test_bootstrap_is_that_of_resampled_images(rng: np.random.Generator) -> None:
    truth = np.arange(30) % 3 == 0
    scores = rng.integers(0, 8, (2, 30)) / 3 + truth
    draws = bootstrap(truth, scores, 40, seed=5)
    assert draws.shape == (40, 3)
    # The same draws, taken as resampled images.
    generator = np.random.default_rng(5)
    counts = np.empty((40, 30), dtype=int)
    for kind in (False, True):
        chosen = truth == kind
        size = chosen.sum()
        counts[:, chosen] = generator.multinomial(size, np.full(size, 1 / size), 40)
    for draw, count in zip(draws, counts, strict=True):
        picked = np.repeat(np.arange(30), count)
        for value, metric in zip(draw, IMAGE_METRICS.values(), strict=True):
            expected = np.mean([metric(truth[picked], s[picked]) for s in scores])
            assert abs(value - expected) < 1e-12


def test_masks_are_reduced_and_checked(tmp_path: Path) -> None:
    mask = np.zeros((40, 60), dtype=np.uint8)
    mask[:20, :30] = 3  # as in VisA, masks hold the number of the defect
    Image.fromarray(mask).save(tmp_path / "mask.png")
    Image.new("RGB", (60, 40)).save(tmp_path / "image.png")
    reduced = read_mask(str(tmp_path / "mask.png"), str(tmp_path / "image.png"), (4, 6))
    expected = np.zeros((4, 6), dtype=bool)
    expected[:2, :3] = True
    np.testing.assert_array_equal(reduced, expected)
    # A photo on its side has the mask of the upright one.
    upright = Image.new("RGB", (40, 60))
    exif = Image.Exif()
    exif[0x0112] = 6
    upright.save(tmp_path / "side.jpg", exif=exif)
    read_mask(str(tmp_path / "mask.png"), str(tmp_path / "side.jpg"), (4, 6))


# -- compare ---------------------------------------------------------------------


def test_compare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_mvtec_ad(tmp_path / "mvtec", n=16)
    for out, extra in (("a", []), ("b", ["--known-object"])):
        given = arguments("mvtec", root, tmp_path / out, "prompt,clip-ac")
        assert main([*given, *extra]) == 0
    capsys.readouterr()
    first, second = (str(tmp_path / out / "results.json") for out in "ab")
    assert main(["benchmark", "compare", first, first]) == 0
    same = capsys.readouterr().out
    assert same.count("+0.0 [+0.0, +0.0]") == 3 * 2 * 3
    assert main(["benchmark", "compare", first, second]) == 0
    text = capsys.readouterr().out
    assert f"First: {first}\nSecond: {second}\nDifferent:\n" in text
    assert "\n  known_object: False, then True\n" in text
    assert "methods:" not in text  # it is the same
    lines = [line for line in text.splitlines() if line.startswith("| mean | prompt")]
    assert (
        text.index("| wood | clip-ac") < text.index("Means over") < text.index(lines[0])
    )
    a, b = (float(rows_of(tmp_path / out)["mean", "prompt"]["auroc"]) for out in "ab")
    assert f"{100 * a:.1f}, {100 * b:.1f}: {100 * (b - a):+.1f} [" in lines[0]

    # What only one of them has is said.
    fewer = json.loads(Path(second).read_text())
    del fewer["categories"]["wood"]
    fewer["settings"]["methods"] = ["prompt"]
    (tmp_path / "fewer.json").write_text(json.dumps(fewer))
    for given, which in (
        ([first, str(tmp_path / "fewer.json")], "first"),
        ([str(tmp_path / "fewer.json"), first], "second"),
    ):
        assert main(["benchmark", "compare", *given]) == 0
        text = capsys.readouterr().out
        for name in ("category wood", "method clip-ac"):
            assert f"{name}: left out, only the {which} has it." in text

    # Other images cannot be paired.
    changed = json.loads(Path(second).read_text())
    for part in changed["categories"].values():
        part["data"]["images"][0] = "another.png"
    (tmp_path / "c.json").write_text(json.dumps(changed))
    assert main(["benchmark", "compare", first, str(tmp_path / "c.json")]) == 2
    assert "wood: left out, the images are not the same" in capsys.readouterr().err


COMPARABLE = {
    "settings": {"methods": ["prompt"], "n_draws": 10},
    "categories": {
        "wood": {
            "data": {"images": ["1.png", "2.png"], "is_anomalous": [0, 1]},
            "methods": {"prompt": {"scores": [[0.1, 0.2]]}},
        }
    },
}


@pytest.mark.parametrize(
    ("place", "value"),
    [
        *(((), value) for value in (None, 1, [], "settings categories", {})),
        *((("settings",), value) for value in (None, "methods", [], {}, 1)),
        *((("settings", "methods"), value) for value in (None, "prompt", [["a"]], 1)),
        *((("settings", "n_draws"), value) for value in (None, "10", 0, 1.5)),
        *((("clip",), value) for value in (None, "ViT-B-32", [])),
        *((("categories",), value) for value in (None, "wood", [], {"\ud800": {}})),
        *((("categories", "wood"), value) for value in (None, "data", [], {})),
        *((("categories", "wood", "data"), value) for value in (None, "x", [], {})),
        *(
            (("categories", "wood", "data", "is_anomalous"), value)
            for value in (None, 1, [0, 0], [1, 2], ["0", "1"], [[0], [1]], [0, 1, 1])
        ),
        *((("categories", "wood", "methods"), value) for value in (None, [], {})),
        *(
            (("categories", "wood", "methods", "prompt"), value)
            for value in (None, 1, [], {}, {"scores": None})
        ),
        *(
            (("categories", "wood", "methods", "prompt", "scores"), value)
            for value in ([], [0.1, 0.2], [["a", "b"]], [[0.1]], [[0.1, float("nan")]])
        ),
    ],
)
def test_compare_with_what_is_no_result(
    place: tuple[str, ...],
    value: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Such as a file of another tool."""
    monkeypatch.chdir(tmp_path)
    Path("a.json").write_text(json.dumps(COMPARABLE))
    assert main(["benchmark", "compare", "a.json", "a.json"]) == 0
    changed: Any = {"": json.loads(json.dumps(COMPARABLE))}
    inner = changed
    *above, last = ("", *place)
    for name in above:
        inner = inner[name]
    inner[last] = value
    Path("b.json").write_text(json.dumps(changed[""]))
    for names in (("a.json", "b.json"), ("b.json", "a.json")):
        assert main(["benchmark", "compare", *names]) == 2
        said = capsys.readouterr().err
        assert "b.json: is not the results.json of a benchmark" in said


def test_compare_of_folders_and_of_hostile_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("out").mkdir()
    assert main(["benchmark", "compare", "out", "out"]) == 2
    assert "out: is a folder; name the results.json in it" in capsys.readouterr().err
    changed = json.loads(json.dumps(COMPARABLE))
    changed["categories"]["\x1b[31m\nwood"] = changed["categories"]["wood"]
    changed["versions"] = {"\x1b[31mtorch": "\x1b[0m"}
    Path("a.json").write_text(json.dumps(COMPARABLE))
    Path("b.json").write_text(json.dumps(changed))
    assert main(["benchmark", "compare", "a.json", "b.json"]) == 0
    text = capsys.readouterr().out
    assert text.replace("\n", "").isprintable()
    assert "category \\x1b[31m\\nwood: left out, only the second has it." in text


def test_pixel_metrics_have_their_titles() -> None:
    from clipad_sklearn._cli.benchmark_tables import TITLES

    assert set(TITLES) == {*IMAGE_METRICS, *PIXEL_METRICS}


@pytest.mark.parametrize("place", ["x" * 300, "a_file/out", "/proc/out"])
def test_a_folder_that_cannot_be_made(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a_file").touch()
    given = arguments(
        "mvtec", write_mvtec_ad(tmp_path / "mvtec"), Path(place), "prompt"
    )
    assert main(given) == 2
    assert f"clipad: error: --out {place}: " in capsys.readouterr().err


@pytest.mark.parametrize("kind", [os.mkfifo, os.mkdir])
def test_settings_that_are_no_file(kind: Any, tmp_path: Path, capsys: Any) -> None:
    """A pipe would be waited for, for ever."""
    out = tmp_path / "out"
    out.mkdir()
    kind(out / "settings.json")
    given = arguments("mvtec", write_mvtec_ad(tmp_path / "mvtec"), out, "prompt")
    assert main(given) == 2
    assert "was not written by `clipad benchmark`" in capsys.readouterr().err
