"""``clipad cache``: looks after a folder of embeddings."""

from __future__ import annotations

import os
from typing import Any

from .output import UsageError, as_usage_error, printable


def run(settings: Any) -> int:
    """Run ``clipad cache``."""
    from .._clip.embedding_cache import FolderCache

    if not os.path.isdir(settings.folder):
        raise UsageError(f"{settings.folder}: no such folder")
    with as_usage_error():
        cache = FolderCache(settings.folder)
        if settings.action == "clear":
            cache.clear()
        report = cache.verify() if settings.action == "verify" else cache.info()
    for name, value in report.items():
        print(f"{name}: {printable(str(value))}")
    return 0
