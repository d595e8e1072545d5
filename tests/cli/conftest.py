"""Short training for the command, and a browser for the pages that it writes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from clipad_sklearn import FeedForwardClassifier
from clipad_sklearn._cli.methods import Choices


@pytest.fixture(autouse=True)
def short_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the process of the tests, random words are few and train for few steps.

    Commands in processes of their own learn in full.
    """
    defaults = FeedForwardClassifier.__init__.__kwdefaults__
    monkeypatch.setitem(defaults, "n_epochs", 1)
    monkeypatch.setitem(defaults, "min_steps", 10)
    defaults = Choices.__init__.__defaults__
    few = tuple(300 if value == 10_000 else value for value in defaults)
    monkeypatch.setattr(Choices.__init__, "__defaults__", few)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("Chromium or chromedriver is not on this machine")
    downloads = tmp_path_factory.mktemp("downloads")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (
        "headless",
        "no-sandbox",
        "disable-gpu",
        "disable-quic",
        "no-first-run",
        "disable-background-networking",
        "disable-component-update",
        "disable-sync",
        f"user-data-dir={tmp_path_factory.mktemp('profile')}",
        "window-size=1200,900",
    ):
        options.add_argument(f"--{flag}")
    options.add_experimental_option(
        "prefs", {"download.default_directory": str(downloads)}
    )
    options.set_capability(
        "goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"}
    )
    browser = webdriver.Chrome(options, webdriver.ChromeService(driver))
    browser.downloads = downloads
    yield browser
    browser.quit()
