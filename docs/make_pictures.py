"""Make the picture with which README and documentation open: a page of ``clipad demo``.

It needs Chromium and chromedriver::

    python docs/make_pictures.py
"""

from __future__ import annotations

import io
import shutil
import tempfile
from pathlib import Path

from PIL import Image
from selenium import webdriver

from clipad_sklearn._cli.main import main as clipad

PICTURE = Path(__file__).parent / "pictures" / "report.jpg"
PAGE = "report.html"


def screenshot(page: Path, width: int, height: int) -> Image.Image:
    """Show the page, with its heat maps, in a browser without a window."""
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
    """Run the demo, and keep the picture of its first page."""
    with tempfile.TemporaryDirectory() as temporary:
        demo = Path(temporary) / "clipad-demo"
        if clipad(["demo", "--out", str(demo)]) != 0:
            raise SystemExit(1)
        picture = screenshot(demo / PAGE, 1180, 1000)
    picture.save(PICTURE, quality=85, optimize=True)
    print(f"{PICTURE}: {PICTURE.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
