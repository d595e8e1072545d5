"""Make the picture of the report page with which README and documentation open.

It needs Chromium and chromedriver::

    python docs/make_pictures.py
"""

from __future__ import annotations

import io
import os
import shutil
import tempfile
from pathlib import Path

from PIL import Image
from selenium import webdriver

from clipad_sklearn._cli.main import main as clipad
from clipad_sklearn.datasets import make_defect_images

PICTURE = Path(__file__).parent / "pictures" / "report.jpg"
FAMILY, DEFECTS = "wood", ["crack", "stain", "hole", "scratch"]


def write_photos(folder: str, n: int, share: float, random_state: int) -> None:
    """Write photos of one product, of which this share has a defect."""
    data = make_defect_images(
        n,
        families=[FAMILY],
        defects=DEFECTS,
        anomaly_fraction=share,
        severity=(0.5, 1),
        random_state=random_state,
    )
    os.mkdir(folder)
    for number, pixels in enumerate(data.images):
        Image.fromarray(pixels).save(f"{folder}/{number:03d}.png")


def screenshot(page: Path, width: int, height: int) -> Image.Image:
    """Show the page in a browser without a window."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome")
    for flag in ("headless", "no-sandbox", "disable-gpu", "hide-scrollbars"):
        options.add_argument(f"--{flag}")
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    browser = webdriver.Chrome(options, service)
    try:
        browser.set_window_size(width, height)
        browser.get(page.as_uri())
        browser.find_element("id", "heat").click()
        return Image.open(io.BytesIO(browser.get_screenshot_as_png())).convert("RGB")
    finally:
        browser.quit()


def main() -> None:
    """Score photos of one product, and keep the picture of the page."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as temporary:
        os.chdir(temporary)
        try:
            write_photos("photos", 24, 0.4, 0)
            write_photos("good", 30, 0.0, 1)
            page = ["--report", "report.html", "--heat-maps"]
            page += ["--title", "Generated photos of wood"]
            given = ["--method", "winclip-random-word", "--calibrate", "good"]
            clipad(["score", "photos", "--clip", "tiny", "--no-cache", *given, *page])
            picture = screenshot(Path("report.html").resolve(), 1180, 860)
        finally:
            os.chdir(before)
    picture.save(PICTURE, quality=85, optimize=True)
    print(f"{PICTURE}: {PICTURE.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
