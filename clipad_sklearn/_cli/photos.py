"""Which photos the arguments of a command name."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Sequence

from .._images import list_files
from .output import UsageError


def find_photos(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the paths of the photos that the arguments name, each file once.

    Also returns remarks on arguments that name none.
    """
    found: dict[str, str] = {}  # real path -> path as given
    notes = []
    for argument in arguments:
        paths, others = _expand(argument)
        if not paths:
            notes.append(f"no image found in {argument}")
        if others:
            notes.append(f"{argument}: {_left_out(others)}")
        for path in paths:
            found.setdefault(os.path.normcase(os.path.realpath(path)), path)
    paths = list(found.values())
    if not any(os.path.exists(path) for path in paths):
        raise UsageError("no image found: " + ", ".join(arguments))
    return paths, notes


def _expand(argument: str) -> tuple[list[str], list[str]]:
    """Return what an argument names, and files of folders that are no photos."""
    if os.path.isdir(argument):
        return list_files(argument)
    if os.path.lexists(argument) or not glob.has_magic(argument):
        return [argument], []
    paths: list[str] = []
    others: list[str] = []
    for match in sorted(glob.glob(argument, recursive=True)):
        images, rest = list_files(match) if os.path.isdir(match) else ([match], [])
        paths += images
        others += rest
    return paths, others


def _left_out(others: list[str]) -> str:
    """Count files that are not taken for photos, by their extensions."""
    kinds = Counter(os.path.splitext(p)[1].lower() or "no extension" for p in others)
    ordered = sorted(kinds.items(), key=lambda item: (-item[1], item[0]))
    listed = ", ".join(f"{kind} {count}" for kind, count in ordered[:5])
    more = ", ..." if len(kinds) > 5 else ""
    return f"{len(others)} other files left out ({listed}{more})"
