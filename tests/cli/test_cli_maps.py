"""``clipad score --maps``."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipad_sklearn import SDPDetector, SDPPlusDetector, WinCLIPDetector
from clipad_sklearn._cli.main import main
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
        with Image.open(f"{target}.map.png") as image:
            assert image.mode == "I;16"
            written = np.asarray(image) / 65535
        np.testing.assert_allclose(written, wanted, atol=1e-5)
        with Image.open(f"{target}.overlay.png") as image:
            assert image.size == wanted.shape[::-1]
            assert image.mode == "RGB"
    assert len([path for path in maps.rglob("*") if path.is_file()]) == 6
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
    written = np.load(maps / "deep" / "b.png.map.npy")
    assert written.dtype == np.float32
    np.testing.assert_allclose(written, expected, atol=1e-5)
    assert not list(maps.glob("broken*"))


def test_windows_scored_by_random_words(tree: Path, tmp_path: Path) -> None:
    maps = tmp_path / "maps"
    options = ["--method", "winclip", "--scorer", "random-word", "--maps", str(maps)]
    arguments = ["score", str(tree / "a.jpg"), "--clip", "tiny", *options]
    assert main(arguments) == 0
    assert (maps / "a.jpg.overlay.png").is_file()


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
    assert main([*plus, "--layers", missing]) == 2
    assert "missing" in capsys.readouterr().err
