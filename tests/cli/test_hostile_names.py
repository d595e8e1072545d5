"""Names of files that would do something if they were taken for more than names.

tests/test_cli.py has ``score`` with CSV and JSON; tests/test_report.py made-up rows.
"""

from __future__ import annotations

import csv
import json
import os
import re
import sys
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import numpy as np
import pytest
from pages import open_page, requests
from PIL import Image

from clipad_sklearn._cli.main import main
from clipad_sklearn._errors import printable
from clipad_sklearn.datasets import make_defect_images

NAMES = [
    "=cmd|' !A0.png",
    "+1.png",
    "-1.png",
    "@sum(1).png",
    "\ttab.png",
    "\rreturn.png",
    "line\nbreak.png",
    "'quoted'.png",
    'a,"b";c.png',
    "<script>document.title='evil'<script><!--.png",
    "<img src=x onerror=document.title='evil'>.png",
    "{{data}}{{hash}}.png",
    "%2e%2e%2f #?&amp;.png",
    "javascript:alert(1).png",
    "\x1b[31mred\x07.png",
    "\u202etxt.png",
    "ünï ☃ 写真.png",
    os.fsdecode(b"not-unicode-\xff\xfe.png"),
    "x" * 240 + ".png",
]
FORMULA = tuple("=+-@\t\r\n")


def write_names(folder: Path, names: list[str]) -> None:
    folder.mkdir(parents=True)
    data = make_defect_images(len(names), size=32, random_state=0)
    for name, pixels in zip(names, data.images, strict=True):
        Image.fromarray(np.asarray(pixels)).save(folder / "plain.png")
        os.rename(folder / "plain.png", folder / name)


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of photos with such names, one of them unreadable."""
    if sys.platform == "win32":
        pytest.skip("Windows refuses such names")
    monkeypatch.chdir(tmp_path)
    write_names(tmp_path / "photos", NAMES)
    (tmp_path / "photos" / "=broken<b>.png").write_text("no image")
    return tmp_path / "photos"


def score(*options: str) -> int:
    return main(["score", "photos", "--clip", "tiny", "--method", "prompt", *options])


def test_report_of_the_command(photos: Path, tmp_path: Path, browser: Any) -> None:
    assert score("--report", "report.html") == 1
    page = tmp_path / "report.html"
    text = page.read_text(encoding="utf-8")
    assert text.count("<script") == 2  # the data, and the page's own
    data = json.loads(re.search(r'id="data">(.*?)</script>', text).group(1))
    listed = {os.path.basename(photo["path"]) for photo in data["photos"]}
    assert listed == {*NAMES, "=broken<b>.png"}
    for photo in data["photos"]:
        address = unquote_to_bytes(photo["href"])
        assert address.startswith(b"./")
        assert os.path.exists(os.path.join(os.fsencode(tmp_path), address))

    open_page(browser, page)
    browser.execute_script("goTo(report.photos.length - 1)")
    assert browser.title == "Photos by suspicion"
    assert browser.get_log("browser") == []
    assert requests(browser) == [page.as_uri()]


def test_maps_of_the_command(photos: Path, tmp_path: Path) -> None:
    options = ["--clip", "tiny", "--method", "sdp", "--maps", "maps"]
    assert main(["score", "photos", *options, "--out", "scores.csv"]) == 1
    written = {*os.listdir(tmp_path / "maps")}
    expected: set[str] = set()
    for name in NAMES[:-1]:
        stem = os.path.splitext(name)[0]
        expected |= {f"{stem}.map.png", f"{stem}.overlay.png"}
    assert expected <= written
    others = written - expected
    # The last name has no room for an ending, and is shortened.
    shortened = {name for name in others if name.startswith("xxx")}
    assert len(shortened) == 2
    assert "legend.png" in others
    assert len(others - shortened) <= 3  # and lists of what was written and found
    assert not [name for name in written if name.endswith(".tmp")]


@pytest.mark.parametrize("name", [name for name in NAMES[:-1] if name[0] != "-"])
def test_nothing_reaches_the_terminal_raw(
    name: str, tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not in the table, not in a remark, and not in an error."""
    monkeypatch.chdir(tmp_path)
    for arguments in (["score", name], ["score", ".", "--load", name]):
        Path("photo.png").write_text("no image")
        assert main(arguments) == 2
        Path("photo.png").unlink()
    captured = capsys.readouterr()
    lines = (captured.out + captured.err).splitlines()
    assert all(line.startswith("clipad: ") for line in lines)
    shown = (captured.out + captured.err).replace("\n", "")
    assert shown.isprintable()


@pytest.mark.parametrize(
    "arguments",
    [
        ["score", "photos", "--\x1b[31mred"],
        ["score", "photos", "--method", "\x1b]0;title\x07"],
        ["\x1b[2J"],
        ["cache", "\u202einfo"],
        ["benchmark", "--root", "photos", "--out", "r", "--methods", "\x9b31m"],
    ],
)
def test_nothing_reaches_the_terminal_from_the_parser(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(arguments)
    captured = capsys.readouterr()
    assert (captured.out + captured.err).replace("\n", "").isprintable()


CATEGORIES = [name.removesuffix(".png") for name in NAMES if len(name) < 200]


def test_benchmark_with_hostile_categories(photos: Path, tmp_path: Path) -> None:
    for category in CATEGORIES:
        for kind, value in (("good", 0), ("bad", 200)):
            folder = tmp_path / "data" / category / kind
            folder.mkdir(parents=True)
            Image.new("RGB", (8, 8), (value, 9, 9)).save(folder / "1.png")
    options = ["--root", "data", "--methods", "prompt", "--draws", "100"]
    categories = ["--categories", *(c for c in CATEGORIES if not c.startswith("-"))]
    arguments = ["benchmark", "--data", "folder", *options, "--clip", "tiny"]
    assert main([*arguments, "--out", "results", *categories]) == 0
    for name in ("results.csv", "times.csv"):
        with open(tmp_path / "results" / name, encoding="utf-8", newline="") as file:
            cells = [row["category"] for row in csv.DictReader(file)]
        assert not any(cell.startswith(FORMULA) for cell in cells)
        kept = str.maketrans("", "", "\t\r\n")
        assert all(cell.translate(kept).isprintable() for cell in cells)
        plain = {cell.removeprefix("'") for cell in cells} - {"mean"}
        assert {cell.removeprefix("'") for cell in plain} == {
            "".join(c if c in "\t\r\n" else printable(c) for c in name).removeprefix(
                "'"
            )
            for name in categories[1:]
        }
    table = (tmp_path / "results" / "results.md").read_text(encoding="utf-8")
    assert "<script" not in table
    assert "<img" not in table
    lines = [line for line in table.split("\n") if line.startswith("|")]
    assert all(line.endswith("|") for line in lines)
    results = json.loads((tmp_path / "results" / "results.json").read_text())
    assert [*results["categories"]] == categories[1:]
