"""``clipad score --maps``."""

from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.pipeline import make_pipeline

from clipad_sklearn import (
    CLIPImageEncoder,
    PromptDetector,
    SDPDetector,
    SDPPlusDetector,
    TiledDetector,
    WinCLIPDetector,
)
from clipad_sklearn._cli.main import main
from clipad_sklearn._cli.maps import write_maps, write_overlays
from clipad_sklearn._score_rows import readable_maps
from clipad_sklearn.datasets import make_defect_images


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """``tree/a.png``, ``tree/a.jpg`` and ``tree/deep/b.png``, of different sizes."""
    (tmp_path / "tree" / "deep").mkdir(parents=True)
    data = make_defect_images(3, size=48, random_state=0)
    for index, name in enumerate(("a.png", "a.jpg", "deep/b.png")):
        pixels = data.images[index][: 40 + index]
        Image.fromarray(pixels).save(tmp_path / "tree" / name)
    return tmp_path / "tree"


def test_each_photo_has_files_of_its_own(tmp_path: Path) -> None:
    """Whatever their names have in common with and without endings."""
    names = ["a.jpg", "a.png", "a.jpg.png", "a.jpg.png.tif", "B.png", "b.jpg"]
    photos = tmp_path / "photos"
    photos.mkdir()
    for i, name in enumerate(names):
        pixels = np.random.default_rng(i).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(photos / name)
    maps, out = tmp_path / "maps", tmp_path / "scores.json"
    options = ["--method", "sdp", "--maps", str(maps), "--out", str(out)]
    assert main(["score", str(photos), "--clip", "tiny", *options]) == 0
    assert len(list(maps.glob("*.map.png"))) == len(names)
    assert len({path.name.casefold() for path in maps.glob("*.png")}) == 13
    detector = SDPDetector("tiny").fit()
    for name in names[:4]:
        with Image.open(maps / f"{name}.map.png") as image:
            written = np.asarray(image) / 65535
        expected = detector.anomaly_maps([photos / name])[0]
        np.testing.assert_allclose(written, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("place", "kind", "message"),
    [
        ("a/1.map.png", "link", "is a link, a pipe or a device"),
        ("a/1.overlay.png", "dangling", "is a link, a pipe or a device"),
        ("a/1.map.png", "pipe", "is a link, a pipe or a device"),
        ("legend.png", "pipe", "is a link, a pipe or a device"),
        ("a/.clipad-outputs.json", "link", "is a link, a pipe or a device"),
        ("a", "folder", "is a link to somewhere else"),
    ],
)
def test_maps_are_not_written_through_links(
    place: str, kind: str, message: str, tmp_path: Path, capsys: Any
) -> None:
    for name in ("a/1.png", "b/2.png"):
        (tmp_path / "photos" / name).parent.mkdir(parents=True)
        Image.new("L", (32, 32), 99).save(tmp_path / "photos" / name)
    other, at = tmp_path / "other", tmp_path / "maps" / place
    at.parent.mkdir(parents=True)
    if kind == "pipe":
        os.mkfifo(at)
    else:
        if kind == "folder":
            other.mkdir()
        elif kind == "link":
            other.write_text("[]")
        at.symlink_to(other)
    options = ["--method", "sdp", "--maps", str(tmp_path / "maps")]
    assert main(["score", str(tmp_path / "photos"), "--clip", "tiny", *options]) == 2
    assert f"{at} {message}" in capsys.readouterr().err
    if kind == "folder":
        assert not list(other.iterdir())
    elif kind == "link":
        assert other.read_text() == "[]"
    else:
        assert not other.exists()


@pytest.mark.parametrize("map_format", ["png", "npy"])
def test_maps_are_known_wherever_they_are(
    map_format: str, tmp_path: Path, capsys: Any
) -> None:
    """Renamed they are no photos; what takes their place is not written over."""
    photos, maps = tmp_path / "photos", tmp_path / "maps"
    photos.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(photos / "1.png")
    score = ["score", str(photos), "--clip", "tiny", "--method", "sdp"]
    options = ["--maps", str(maps), "--map-format", map_format]
    for _ in range(2):
        assert main([*score, *options]) == 0
    for name in sorted(path.name for path in maps.glob("[!.]*")):
        if name.endswith(".png"):
            shutil.copy(maps / name, photos / f"kept-{name}")
    assert main(score) == 1
    n_maps = 3 if map_format == "png" else 2
    error = capsys.readouterr().err
    assert error.count("a map or an overlay that clipad wrote, no photo") == n_maps
    for path in photos.glob("kept-*"):
        path.unlink()
    for name in ("1.overlay.png", "legend.png", "regions.csv", f"1.map.{map_format}"):
        content = (maps / name).read_bytes()
        shutil.copy(photos / "1.png", maps / name)
        assert main([*score, *options]) == 2
        assert f"{name} is there and was not written" in capsys.readouterr().err
        assert (maps / name).read_bytes() == (photos / "1.png").read_bytes()
        (maps / name).write_bytes(content)


def test_a_folder_in_the_place_of_a_map(tmp_path: Path, capsys: Any) -> None:
    Image.new("L", (32, 32), 99).save(tmp_path / "x.png")
    (tmp_path / "maps" / "x.map.png").mkdir(parents=True)
    options = ["--method", "sdp", "--maps", str(tmp_path / "maps")]
    assert main(["score", str(tmp_path / "x.png"), "--clip", "tiny", *options]) == 2
    shown = capsys.readouterr()
    assert "x.map.png" in shown.err
    assert "scored" not in shown.out


@pytest.mark.parametrize("method", ["winclip", "sdp"])
def test_maps_and_overlays(method: str, tree: Path, tmp_path: Path) -> None:
    out, maps = tmp_path / "scores.json", tmp_path / "new" / "maps"
    options = ["--method", method, "--maps", str(maps), "--out", str(out)]
    assert main(["score", str(tree), "--clip", "tiny", *options]) == 0
    paths = sorted(tree.rglob("*.???"))
    detector = (WinCLIPDetector if method == "winclip" else SDPDetector)("tiny").fit()
    expected = detector.anomaly_maps(paths)
    for path, wanted in zip(paths, expected, strict=True):
        target = maps / path.relative_to(tree)
        if path.stem == "b":  # no other image has this name
            target = target.with_suffix("")
        with Image.open(f"{target}.map.png") as image:
            assert image.mode == "I;16"
            written = np.asarray(image) / 65535
        np.testing.assert_allclose(written, wanted, atol=1e-5)
        with Image.open(f"{target}.overlay.png") as image:
            assert image.size == wanted.shape[::-1]
            assert image.mode == "RGB"
    names = {"legend.png", "a.png.map.png", "a.jpg.overlay.png", "deep/b.overlay.png"}
    written = {path.relative_to(maps).as_posix() for path in maps.rglob("[!.]*.*")}
    assert names <= written
    assert len(written) == 8
    with open(maps / "regions.csv", encoding="utf-8-sig", newline="") as file:
        listed = list(csv.DictReader(file))
    areas = {str(path): 0 for path in paths}
    for row in listed:
        areas[row["path"]] += int(row["area"])
        assert float(row["peak"]) > 0.5
    for path, wanted in zip(paths, expected, strict=True):
        # In the files maps have 16 bits.
        above = [(wanted > 0.5 + slack).sum() for slack in (1e-5, -1e-5)]
        assert above[0] <= areas[str(path)] <= above[1]
    report = json.loads(out.read_text())
    assert report["settings"]["method"] == method
    margins = {row["path"]: row["margin"] for row in report["scores"]}
    for path, margin in zip(paths, detector.score_samples(paths), strict=True):
        assert margins[str(path)] == pytest.approx(margin, abs=1e-4)


def test_npy_sdp_plus_and_unreadable_images(tree: Path, tmp_path: Path) -> None:
    data = make_defect_images(4, size=48, random_state=1)
    detector = SDPPlusDetector("tiny", n_epochs=1, random_state=0)
    detector.fit(data.images, data.masks).save_layers(tmp_path / "layers")
    (tree / "broken.png").write_bytes(b"nothing")
    maps = tmp_path / "maps"
    options = ["--method", "sdp+", "--layers", str(tmp_path / "layers")]
    options += ["--maps", str(maps), "--map-format", "npy"]
    assert main(["score", str(tree), "--clip", "tiny", *options]) == 1
    expected = detector.anomaly_maps([tree / "deep" / "b.png"])[0]
    written = np.load(maps / "deep" / "b.map.npy")
    assert written.dtype == np.float32
    np.testing.assert_allclose(written, expected, atol=1e-5)
    assert not list(maps.glob("broken*"))


def test_windows_scored_by_random_words(tree: Path, tmp_path: Path) -> None:
    maps = tmp_path / "maps"
    options = ["--method", "winclip", "--scorer", "random-word", "--maps", str(maps)]
    arguments = ["score", str(tree / "a.jpg"), "--clip", "tiny", *options]
    assert main(arguments) == 0
    assert (maps / "a.overlay.png").is_file()


def test_overlay_shows_the_photo_and_a_line(tmp_path: Path) -> None:
    """The photo where nothing is odd, colour where much is, a line around the mask."""
    photo = tmp_path / "photo.png"
    Image.new("RGB", (60, 40), (100, 120, 140)).save(photo)

    class Half:
        def iter_anomaly_maps(self, paths: list[str], size: str) -> list[np.ndarray]:
            anomaly_map = np.zeros((40, 60), dtype=np.float32)
            anomaly_map[:, 30:] = 1
            return [anomaly_map for _ in paths]

    found = readable_maps(Half(), [str(photo)])
    maps = write_maps([str(photo)], found, str(tmp_path / "maps"), "png")
    failures, regions = write_overlays(maps, 0.5)
    assert not failures
    box = {"top": 0, "left": 30, "bottom": 40, "right": 60}
    whole = box | {"area": 40 * 30, "peak": 1.0, "mean": 1.0}
    assert regions == {str(photo): [whole]}
    with Image.open(tmp_path / "maps" / "photo.overlay.png") as image:
        pixels = np.asarray(image).astype(int)
    assert (pixels[:, :30] == (100, 120, 140)).all()
    assert (pixels[:, 30] == (0, 229, 255)).all()
    assert np.abs(pixels[:, 31:] - (214, 221, 158)).max() <= 1
    assert (tmp_path / "maps" / "legend.png").is_file()


def test_maps_of_a_saved_detector_and_of_words(tree: Path, tmp_path: Path) -> None:
    saved = str(tmp_path / "sdp.joblib")
    options = ["--clip", "tiny", "--method", "sdp", "--contamination", "0.4"]
    first = ["--maps", str(tmp_path / "first"), "--save", saved]
    assert main(["score", str(tree), *options, *first]) == 0
    second = ["--maps", str(tmp_path / "second"), "--load", saved]
    out = tmp_path / "scores.json"
    assert main(["score", str(tree), *second, "--out", str(out)]) == 0
    rows = json.loads(out.read_text())["scores"]
    # The regions of the maps, as regions.csv has them.
    with open(tmp_path / "second" / "regions.csv", encoding="utf-8-sig") as file:
        listed = [
            {n: v if n == "path" else float(v) for n, v in line.items()}
            for line in csv.DictReader(file)
        ]
    regions = [{"path": row["path"]} | r for row in rows for r in row["regions"]]
    assert len(listed) == len(regions)
    for line in listed:
        assert any(line == pytest.approx(region, rel=1e-5) for region in regions)
    verdicts = [row["verdict"] for row in rows]
    assert verdicts == ["anomalous", "normal", "normal"]  # the threshold came along
    names = {
        path.relative_to(tmp_path / "first")
        for path in (tmp_path / "first").rglob("*.png")
    }
    for name in names:
        same = (tmp_path / "second" / name).read_bytes()
        assert same == (tmp_path / "first" / name).read_bytes()
    assert len(names) == 7
    # A method that does not say where scores windows.
    options = [
        "--clip",
        "tiny",
        "--method",
        "prompt",
        "--maps",
        str(tmp_path / "third"),
    ]
    assert main(["score", str(tree / "a.jpg"), *options]) == 0
    with Image.open(tmp_path / "third" / "a.map.png") as image:
        written = np.asarray(image) / 65535
    expected = WinCLIPDetector("tiny").fit().anomaly_maps([tree / "a.jpg"])[0]
    np.testing.assert_allclose(written, expected, atol=1e-5)


def test_tile_that_decided(tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "scores.json"
    options = ["--clip", "tiny", "--method", "prompt", "--tiles", "1x2"]
    assert main(["score", str(tree), *options, "--out", str(out)]) == 0
    rows = json.loads(out.read_text())["scores"]
    detector = make_pipeline(CLIPImageEncoder("tiny"), PromptDetector("tiny"))
    tiled = TiledDetector(detector, tiles=(1, 2)).fit()
    for row in rows:
        scores = tiled.tile_scores([row["path"]])[0]
        assert row["margin"] == pytest.approx(scores.min(), abs=1e-4)
        with Image.open(row["path"]) as image:
            boxes = tiled.tile_boxes(image.size[::-1])
        names = ("top", "left", "bottom", "right")
        sides = [dict(zip(names, box, strict=True)) for box in boxes]
        assert row["tile"] == [*sides, "whole photo"][int(np.argmin(scores))]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--map-format", "npy", "--method", "sdp"], "--map-format needs --maps"),
        (["--scorer", "prompt", "--method", "sdp"], "--scorer needs --method winclip"),
        (["--method", "sdp+"], "sdp-plus requires --layers"),
        (["--method", "sdp", "--layers", "f"], "is for sdp-plus only"),
    ],
)
def test_options_that_do_not_fit(
    options: list[str],
    message: str,
    tree: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["score", str(tree), *options])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_errors_while_running(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    sdp = ["score", str(tree), "--clip", "tiny", "--method", "sdp"]
    assert main([*sdp, "--maps", str(tmp_path / "file")]) == 2
    assert "--maps" in capsys.readouterr().err
    missing = str(tmp_path / "missing")
    plus = ["score", str(tree), "--clip", "tiny", "--method", "sdp+"]
    with pytest.raises(SystemExit):
        main([*plus, "--layers", missing])
    assert "missing: is not a file" in capsys.readouterr().err


def test_what_was_written_is_no_photo_and_what_was_not_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Maps among the photos, a long name, and photos that vanish meanwhile."""
    monkeypatch.chdir(tmp_path)
    photos = Path("photos")
    photos.mkdir()
    long = "x" * 243 + ".png"
    for i, name in enumerate(("a.png", "b.png", "c.png", long)):
        pixels = np.random.default_rng(i).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(photos / name)
    score = ["score", "photos", "--clip", "tiny", "--method", "sdp", "--no-cache"]
    maps = [*score, "--maps", "photos"]
    photos.joinpath("legend.png").write_text("somebody's own, and no photo")
    assert main(maps) == 2
    assert (
        "legend.png is there and was not written by clipad" in capsys.readouterr().err
    )
    photos.joinpath("legend.png").unlink()

    for _ in range(2):
        assert main(maps) == 0
        assert "4 scored" in capsys.readouterr().out
    assert len(list(photos.glob("*.overlay.png"))) == 4

    from clipad_sklearn._cli import score as module

    found = module.scores_and_maps

    def vanishing(*arguments: Any) -> Any:
        yield from found(*arguments)
        for name in "b.png", "c.png":  # before their overlays
            photos.joinpath(name).unlink()

    monkeypatch.setattr(module, "scores_and_maps", vanishing)
    shutil.rmtree(photos / "maps", ignore_errors=True)
    assert main([*score, "--maps", "maps", "--out", "scores.csv"]) == 1
    error = capsys.readouterr().err
    for name in ("b", "c"):
        assert f"no map or overlay: {photos / name}.png: no such" in error
    written = [path.name for path in Path("maps").glob("?.overlay.png")]
    assert written == ["a.overlay.png"]
    assert Path("scores.csv").exists()

    def spoiling(*arguments: Any) -> Any:
        yield from found(*arguments)
        Path("spoilt", "a.map.png").write_bytes(b"\x89PNG\r\n\x1a\n")

    monkeypatch.setattr(module, "scores_and_maps", spoiling)
    assert main([*score, "--maps", "spoilt"]) == 1
    error = capsys.readouterr().err
    assert "a.png: spoilt/a.map.png is gone or has changed" in error
    written = list(Path("spoilt").glob("*.overlay.png"))
    assert len(written) == 1  # of the photo with the long name
    assert Path("spoilt", "regions.csv").exists()
