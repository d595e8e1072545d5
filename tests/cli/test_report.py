"""The page of ``clipad score --report``, in headless Chromium."""

from __future__ import annotations

import csv
import json
import os
import re
import time
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
from pages import open_page, requests
from PIL import Image

from clipad_sklearn._cli.main import main
from clipad_sklearn._cli.report import MAP_SIDE, write_report
from clipad_sklearn._cli.table import make_rows
from clipad_sklearn.datasets import make_defect_images

# Names that would do something if they were taken for anything but names.
EVIL = (
    "<script>document.title='evil'<script>.jpg",
    "<img src=x onerror=document.title='evil'> & \"q\" 100%#?.jpg",
    "=1+1.jpg",
    "{{hash}}.jpg",
    "Grüße 写真.jpg",
)


def write_page(folder: Path, n: int, /, **options: Any) -> list[dict[str, Any]]:
    """Write a page of n photos with made-up margins, the last one unreadable."""
    photos = folder / "photos"
    photos.mkdir(parents=True)
    data = make_defect_images(24, size=64, random_state=0)
    paths = []
    for i in range(n):
        name = EVIL[i] if i < len(EVIL) else f"{i:05d}.jpg"
        pixels = data.images[i % 24][: 64 if i % 3 else 40]
        Image.fromarray(pixels).save(photos / name)
        paths.append(os.path.join(folder, "photos", name))
    margins = np.random.default_rng(0).normal(size=n)
    margins[-1] = np.nan
    rows = make_rows(paths, margins, 0.25, {n - 1: "truncated <b>file</b>"})
    settings = {"threshold_from": "--threshold", "note": "</script><script>alert(1)"}
    defaults = {
        "threshold": 0.25,
        "uncalibrated": False,
        "settings": settings,
        "versions": {"clipad-sklearn": "0"},
    }
    write_report(str(folder / "report.html"), rows, **defaults | options)
    return rows


def data_of(page: Path) -> dict[str, Any]:
    text = page.read_text(encoding="utf-8")
    return json.loads(re.search(r'id="data">(.*?)</script>', text).group(1))


# -- without a browser -----------------------------------------------------------


def test_page_holds_what_the_rows_say(tmp_path: Path) -> None:
    rows = write_page(tmp_path, 12)
    page = data_of(tmp_path / "report.html")
    photos = page["photos"]
    assert [p["path"] for p in photos] == [row["path"] for row in rows]
    assert [p["margin"] for p in photos] == [row["margin"] for row in rows]
    assert page["threshold"] == 0.25
    assert photos[-1]["error"] == "truncated <b>file</b>"
    assert photos[-1]["thumbnail"] is None
    for photo in photos:
        assert photo["href"].startswith("./")
        assert os.path.exists(tmp_path / unquote(photo["href"]))
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert text.count("<script") == 2  # the data and the page's own
    assert "src=x" not in text.replace("\\u003cimg src=x", "")
    assert not re.search(r"(src|href)=\"https?:", text)


def test_thumbnails_are_bounded(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    noise = np.random.default_rng(0).integers(0, 256, (600, 900, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    settings: dict[str, Any] = {"uncalibrated": True, "settings": {}, "versions": {}}
    for n, side in ((1, 640), (121, 384), (401, 192), (1501, 128), (5001, 96)):
        rows = make_rows([str(path)], np.array([0.5]), 0.0)
        # Unreadable photos count, but cost nothing.
        rows += [dict.fromkeys(rows[0]) | {"path": "x", "error": "y"}] * (n - 1)
        write_report(str(tmp_path / "r.html"), rows, threshold=0.0, **settings)
        photo = data_of(tmp_path / "r.html")["photos"][0]
        assert (photo["width"], photo["height"]) == (side, round(side * 2 / 3))


def test_heat_maps_share_one_scale(tmp_path: Path) -> None:
    import base64

    maps = [np.full((MAP_SIDE, MAP_SIDE), value) for value in (0.2, 0.4, 0.6)]
    write_page(tmp_path, 4, anomaly_maps=maps)
    page = data_of(tmp_path / "report.html")
    levels = [base64.b64decode(p["map"])[0] for p in page["photos"][:3]]
    assert levels == [0, 128, 255]
    assert page["map_range"] == pytest.approx([0.2, 0.6], abs=1e-6)


def test_command_writes_the_page(tmp_path: Path) -> None:
    rows = write_page(tmp_path / "made", 6)
    folder = os.path.dirname(rows[0]["path"])
    (Path(folder) / "broken.png").write_text("no image")
    out = tmp_path / "report.html"
    options = ["--clip", "tiny", "--method", "prompt", "--report", str(out)]
    assert main(["score", folder, *options, "--heat-maps"]) == 1
    page = data_of(out)
    assert page["uncalibrated"] is True
    assert page["map_side"] == MAP_SIDE
    assert page["settings"]["method"] == "prompt"
    assert "torch" in page["versions"]
    margins = [p["margin"] for p in page["photos"]]
    assert margins[-1] is None
    assert margins[:-1] == sorted(margins[:-1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--report", "r.pdf"], "the name must end in .html"),
        (["--heat-maps"], "--heat-maps needs --report"),
        (["--report", "nowhere/r.html"], "there is no folder"),
    ],
)
def test_wrong_options(
    options: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8)).save("a.png")
    try:
        status: Any = main(["score", "a.png", "--clip", "tiny", *options])
    except SystemExit as stop:
        status = stop.code
    assert status == 2
    assert message in capsys.readouterr().err


# -- in Chromium -----------------------------------------------------------------


def verdicts(browser: Any) -> dict[str, str]:
    """Verdicts on the cards that are there, by name."""
    pairs = browser.execute_script(
        "return [...document.querySelectorAll('.card')].map((c) => "
        "[c.title, c.querySelector('.verdict').textContent])"
    )
    return dict(pairs)


def set_value(browser: Any, name: str, value: Any) -> None:
    browser.execute_script(
        "const e = document.getElementById(arguments[0]); e.value = arguments[1];"
        "e.dispatchEvent(new Event('input', { bubbles: true }));",
        name,
        str(value),
    )


def exported(browser: Any) -> list[dict[str, str]]:
    target = browser.downloads / "verdicts.csv"
    target.unlink(missing_ok=True)
    browser.find_element("id", "export").click()
    for _ in range(200):
        if target.exists():
            assert target.read_bytes().startswith(b"\xef\xbb\xbf")  # for spreadsheets
            with open(target, encoding="utf-8-sig", newline="") as file:
                return list(csv.DictReader(file))
        time.sleep(0.05)
    raise AssertionError("nothing was saved")


def test_threshold_moves_labels_and_export(browser: Any, tmp_path: Path) -> None:
    rows = write_page(tmp_path, 40)
    browser.set_window_size(1200, 1600)  # so that normal photos can be seen too
    open_page(browser, tmp_path / "report.html")
    by_path = {row["path"]: row for row in rows}
    first = verdicts(browser)
    assert len(first) > 5
    assert first == {path: by_path[path]["verdict"] or "unreadable" for path in first}
    set_value(browser, "slider", 800)
    threshold = float(
        browser.execute_script("return document.getElementById('threshold').value")
    )
    assert threshold > 0.25
    moved = verdicts(browser)
    assert moved != first
    for path, verdict in moved.items():
        margin = by_path[path]["margin"]
        if margin is not None:
            assert verdict == ("normal" if margin >= threshold else "anomalous")

    saved = exported(browser)
    assert len(saved) == 40
    for row, original in zip(saved, rows, strict=True):
        path = row["path"]
        assert path.removeprefix("'") == original["path"]
        if original["margin"] is None:
            assert row["error"] == original["error"]
            assert (row["verdict"], row["margin"]) == ("unreadable", "")
            continue
        assert float(row["margin"]) == pytest.approx(original["margin"], rel=1e-5)
        assert float(row["threshold"]) == pytest.approx(threshold, rel=1e-5)
        assert int(row["rank"]) == original["rank"]
        expected = "normal" if original["margin"] >= threshold else "anomalous"
        assert row["verdict"] == expected
    anomalous = sum(row["verdict"] == "anomalous" for row in saved)
    counts = browser.find_element("id", "counts").text
    assert counts.startswith(f"39 photos scored, {anomalous} called anomalous")

    # A number goes in exactly, and the slider follows.
    set_value(browser, "threshold", -0.123456789)
    assert browser.execute_script("return threshold") == -0.123456789
    assert float(exported(browser)[0]["threshold"]) == -0.123457
    set_value(browser, "threshold", -0.125)  # not -125 where a comma is the sign
    assert exported(browser)[0]["threshold"] == "-0.1250"
    place = float(browser.execute_script("return slider.value"))
    assert 0 < place < 800


def test_what_the_page_says(browser: Any, tmp_path: Path) -> None:
    sentences = ["Threshold from 4 good photos.", "Promise: <b>none</b>."]
    known = np.array([1.0, -2.0, 0.5, 0.0])
    threshold = 0.2512345678901234
    write_page(
        tmp_path,
        12,
        title="Line <3>",
        folder="photos",
        threshold=threshold,
        sentences=sentences,
        calibration_scores=known,
        promise={"bound": 0.043478260869565216, "confidence": 0.95},
    )
    open_page(browser, tmp_path / "report.html")
    assert browser.title == browser.find_element("tag name", "h1").text == "Line <3>"
    header = browser.find_element("tag name", "header").text
    assert all(sentence in header for sentence in sentences)
    assert re.search(r"photos · \d{4}-\d\d-\d\d .* · 12 photos", header)
    assert len(browser.find_elements("css selector", "#histogram .known")) == 4
    labels = [
        float(e.text) for e in browser.find_elements("css selector", "#axis span")
    ]
    assert labels == sorted(labels)
    assert len(labels) == 5
    below = browser.find_element("id", "below")
    assert below.text == "2 of 4 good photos of the calibration lie below"
    # The promise stands for the threshold that was set, and for no other.
    bound = browser.find_element("id", "bound")
    assert bound.text == (
        "Promise for this threshold only: at most 4.35 % of new good photos are called "
        "anomalous, with a confidence of 95 %"
    )
    assert not browser.find_element("id", "back").is_displayed()
    field = browser.find_element("id", "threshold")
    assert field.get_property("value") == "0.2512"
    set_value(browser, "threshold", 0.75)
    assert below.text.startswith("3 of 4 good photos")
    assert bound.text == (
        "No promise here: it holds only for the threshold that was set, 0.2512"
    )
    browser.find_element("id", "back").click()
    assert browser.execute_script("return threshold") == threshold
    assert bound.text.startswith("Promise for this threshold only")
    footer = browser.find_element("tag name", "footer").text
    for word in ("margin", "rank", "threshold", "p-value", "promise", "p_anomaly"):
        assert f"\n{word}" in footer
    assert "dashed frame" not in footer
    assert "heat map\n" not in footer
    # Without maps there is nothing to switch on.
    assert not browser.find_element("id", "heat-label").is_displayed()


def test_threshold_is_rounded_where_no_verdict_changes(
    browser: Any, tmp_path: Path
) -> None:
    rows = write_page(tmp_path, 12)
    margins = [row["margin"] for row in rows if row["margin"] is not None]
    near = float(np.nextafter(margins[4], np.inf))  # one photo is just below it
    write_report(
        str(tmp_path / "near.html"), rows, threshold=near, uncalibrated=False,
        settings={}, versions={},
    )  # fmt: skip
    open_page(browser, tmp_path / "near.html")
    shown = float(browser.find_element("id", "threshold").get_property("value"))
    assert [m < shown for m in margins] == [m < near for m in margins]
    # One that is a photo's own margin reads well too.
    for margin in margins[:4]:
        set_value(browser, "threshold", margin)
        text = browser.execute_script("return String(readable(threshold))")
        assert len(text) <= 7
        assert [m < float(text) for m in margins] == [m < margin for m in margins]
    set_value(browser, "threshold", near)
    assert browser.find_element("id", "counts").text.startswith("11 photos scored, 5")


def test_tile_that_decided_is_framed(browser: Any, tmp_path: Path) -> None:
    rows = write_page(tmp_path, 6)
    tile = {"top": 0, "left": 16, "bottom": 20, "right": 64}
    for row, value in zip(rows, (tile, "whole photo", tile), strict=False):
        row["tile"] = value
    write_report(
        str(tmp_path / "tiles.html"), rows, threshold=0.0, uncalibrated=False,
        settings={}, versions={},
    )  # fmt: skip
    with Image.open(rows[0]["path"]) as image:
        height = image.height
    shares = data_of(tmp_path / "tiles.html")["photos"]
    assert shares[0]["tile"] == [0, 0.25, 20 / height, 1]
    assert shares[1]["tile"] is None
    open_page(browser, tmp_path / "tiles.html")
    frames = browser.find_elements("css selector", ".card .tile")
    assert len(frames) == 2
    photo = frames[0].find_element("xpath", "..").rect
    assert frames[0].rect["x"] - photo["x"] == pytest.approx(photo["width"] / 4, abs=1)
    assert "dashed frame" in browser.find_element("tag name", "footer").text


def test_line_around_what_is_anomalous(browser: Any, tmp_path: Path) -> None:
    maps = [np.zeros((MAP_SIDE, MAP_SIDE)) for _ in range(3)]
    maps[0][10:18, 10:18] = 1
    write_page(tmp_path, 4, anomaly_maps=maps)
    open_page(browser, tmp_path / "report.html")
    colors = browser.execute_script(
        "return [...document.querySelectorAll('.card canvas')].map((canvas) => {"
        "const side = canvas.width, data = canvas.getContext('2d')"
        ".getImageData(0, 0, side, side).data, at = [];"
        "for (let i = 0; i < side * side; i += 1) if (data[4 * i + 1] === 229 &&"
        " data[4 * i + 3] === 255) at.push([i % side, Math.floor(i / side)]"
        ".map((place) => place / side));"
        "return at; })"
    )
    lines = [np.array(found) for found in colors]
    assert len(lines[1]) == len(lines[2]) == 0
    # Around the square, and nowhere else.
    np.testing.assert_allclose(lines[0].min(axis=0), 10 / MAP_SIDE, atol=0.03)
    np.testing.assert_allclose(lines[0].max(axis=0), 18 / MAP_SIDE, atol=0.03)
    inner = np.all(np.abs(lines[0] - 14 / MAP_SIDE) < 3 / MAP_SIDE, axis=1)
    assert not inner.any()


def test_names_do_nothing_and_no_request_leaves(browser: Any, tmp_path: Path) -> None:
    maps = [np.random.default_rng(i).random((MAP_SIDE, MAP_SIDE)) for i in range(11)]
    rows = write_page(tmp_path, 12, anomaly_maps=maps)
    page = tmp_path / "report.html"
    open_page(browser, page)
    browser.execute_script("document.getElementById('heat').click()")
    names = browser.execute_script(
        "return [...document.querySelectorAll('.card .name')].map((e) => e.textContent)"
    )
    assert sorted(names) == sorted(os.path.basename(row["path"]) for row in rows)
    for _ in rows:  # each of them opened, one after the other
        key(browser, "Enter")
        key(browser, "ArrowRight")
    assert browser.title == "Photos by suspicion"
    assert not browser.find_elements("css selector", ".card script, .card .name *")
    assert browser.get_log("browser") == []
    assert requests(browser) == [page.as_uri()]


def key(browser: Any, name: str) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    keys = {
        "Enter": Keys.ENTER,
        "Escape": Keys.ESCAPE,
        "ArrowRight": Keys.ARROW_RIGHT,
        "ArrowDown": Keys.ARROW_DOWN,
        "End": Keys.END,
    }
    ActionChains(browser).send_keys(keys.get(name, name)).perform()


def test_filter_sort_search_and_keys(browser: Any, tmp_path: Path) -> None:
    rows = write_page(tmp_path, 60)
    open_page(browser, tmp_path / "report.html")
    focused = "return Number(document.activeElement.dataset.index)"
    key(browser, "ArrowRight")  # to the first photo
    assert browser.execute_script(focused) == 0
    key(browser, "ArrowRight")
    assert browser.execute_script(focused) == 1
    key(browser, "ArrowDown")
    assert browser.execute_script(focused) > 2
    key(browser, "End")
    assert browser.execute_script(focused) == 59
    key(browser, "Enter")
    dialog = browser.find_element("id", "dialog")
    assert dialog.is_displayed()
    assert "truncated <b>file</b>" in dialog.text
    key(browser, "Escape")
    assert not dialog.is_displayed()
    key(browser, ",")
    assert browser.execute_script("return threshold.valueOf() < 0.25")

    set_value(browser, "filter", "unreadable")
    assert set(verdicts(browser).values()) == {"unreadable"}
    set_value(browser, "filter", "normal")
    assert set(verdicts(browser).values()) == {"normal"}
    set_value(browser, "filter", "all")
    set_value(browser, "search", "00033")
    assert [os.path.basename(path) for path in verdicts(browser)] == ["00033.jpg"]
    set_value(browser, "search", "nothing of this name")
    assert browser.find_element("id", "none").is_displayed()
    set_value(browser, "search", "")
    set_value(browser, "sort", "normal")
    order = list(verdicts(browser))
    assert order[0] == rows[58]["path"]


def test_thousand_photos(browser: Any, tmp_path: Path) -> None:
    write_page(tmp_path, 1000)
    seconds = open_page(browser, tmp_path / "report.html")
    print(f"1,000 photos in {seconds:.2f} s")
    cards = "return document.querySelectorAll('.card').length"
    few = browser.execute_script(cards)
    assert 0 < few < 120
    # Those at the end come when they are looked at, and those at the start go.
    browser.execute_script("goTo(999)")
    assert (
        browser.execute_script("return document.activeElement.dataset.index") == "999"
    )
    assert browser.execute_script(cards) < 120
    assert browser.get_log("browser") == []
