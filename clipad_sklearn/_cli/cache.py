"""``clipad cache``: looks after what the command keeps."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from .output import UsageError, as_usage_error, printable

if TYPE_CHECKING:
    from .arguments import CacheSettings


def cache_folder() -> str:
    """Return the user's folder for what can be made again.

    The environment variable ``CLIPAD_CACHE`` names another one.
    """
    named = os.environ.get("CLIPAD_CACHE")
    if named:
        return os.path.abspath(os.path.expanduser(named))
    import platformdirs

    return platformdirs.user_cache_dir("clipad", appauthor=False)


def run(settings: CacheSettings) -> int:
    """Run ``clipad cache``."""
    from .._clip.embedding_cache import FolderCache

    folder = os.path.expanduser(settings.folder or cache_folder())
    # The user's own folder may not be there yet; one that is named has to be.
    if settings.folder is not None and not os.path.isdir(folder):
        raise UsageError(f"{folder}: no such folder")
    with as_usage_error():
        cache = FolderCache(folder)
        if settings.action == "clear":
            cache.clear()
        report = cache.verify() if settings.action == "verify" else cache.info()
    for name, value in report.items():
        print(f"{name}: {printable(_readable(name, value))}")
    return 0


def _readable(name: str, value: Any) -> str:
    if "bytes" not in name:
        return str(value)
    number = float(value)
    for unit in ("bytes", "kB", "MB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == "bytes" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} GB"
