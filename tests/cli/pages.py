"""Looks at pages in the browser of conftest.py."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any


def open_page(browser: Any, page: Path) -> float:
    """Open a page and return the seconds until its photos were there."""
    browser.get("about:blank")
    browser.get_log("browser")
    browser.get_log("performance")
    start = time.perf_counter()
    browser.get(page.as_uri())
    browser.execute_script("return document.querySelector('.card').offsetHeight")
    return time.perf_counter() - start


def requests(browser: Any) -> list[str]:
    """Addresses that the page asked for, but for what it holds itself."""
    messages = [
        json.loads(e["message"])["message"] for e in browser.get_log("performance")
    ]
    return [
        message["params"]["request"]["url"]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
        and not message["params"]["request"]["url"].startswith(("data:", "blob:"))
    ]
