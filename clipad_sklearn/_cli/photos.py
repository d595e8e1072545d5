"""Which photos the arguments of a command name."""

from __future__ import annotations

import fnmatch
import glob
import os
import stat
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from .._files import (
    Walk,
    error_words,
    is_folder,
    is_output,
    is_system_folder,
    outputs_in,
    walk_images,
)
from .output import UsageError

_EMPTY = "no image found in"


class Photos(NamedTuple):
    """What the arguments name."""

    paths: list[str]  # each file once
    notes: list[str]  # what is left out, and arguments that name nothing
    n_unreadable: int  # folders that may not be listed


def find_photos(arguments: Sequence[str]) -> Photos:
    """Return the photos that the arguments name."""
    found: dict[str, str] = {}  # real path -> path as given
    notes: list[str] = []
    n_unreadable = 0
    outputs = _Outputs()
    for argument in arguments:
        walk = _expand(argument, outputs)
        if not walk.images:
            is_there = glob.has_magic(argument) or not _is_absent(argument)
            what = _EMPTY if is_there else "there is no file or folder"
            notes.append(f"{what} {argument}")
        notes += [f"{argument}: {note}" for note in _left_out(walk)]
        n_unreadable += len(walk.unreadable)
        for path in walk.images:
            found.setdefault(os.path.normcase(os.path.realpath(path)), path)
    paths = list(found.values())
    if all(map(_is_absent, paths)):
        reasons = [note for note in notes if not note.startswith(_EMPTY)]
        raise UsageError(
            "; ".join(["no image found: " + ", ".join(arguments), *reasons])
        )
    return Photos(paths, notes, n_unreadable)


def _is_absent(path: str) -> bool:
    """Whether nothing has that name; what may not be read is there."""
    try:
        os.lstat(path)
    except OSError as error:
        return isinstance(error, (FileNotFoundError, NotADirectoryError))
    return False


def _expand(argument: str, outputs: _Outputs) -> Walk:
    """Return what an argument names, and what of it is left out."""
    if os.path.isdir(argument):
        return walk_images(argument)
    if os.path.lexists(argument) or not glob.has_magic(argument):
        return _named([argument], outputs)
    if "**" in argument:
        return _matching(argument)
    walk = Walk()
    matches = sorted(_globbed(argument, walk))
    folders = dict.fromkeys(filter(os.path.isdir, matches))
    named = _named([path for path in matches if path not in folders], outputs)
    return _joined([named, *map(walk_images, folders), walk])


def _globbed(pattern: str, walk: Walk) -> list[str]:
    """Return what a pattern without ``**`` matches, as `glob` does.

    But, as everywhere, no folder is entered twice on one level, nor one of the system
    that is not spelled out, and those that may not be listed are noted in `walk`.
    """
    root, parts = pattern, list[str]()
    while glob.has_magic(root) and root != os.path.dirname(root):  # as of a drive
        root, part = os.path.split(root)
        parts.insert(0, part)
    paths = [root]
    for i, part in enumerate(parts):
        seen: set[tuple[int, int]] = set()
        folders, paths = paths, []
        for folder in folders:
            try:
                status = os.stat(folder or os.curdir)
                identity = status.st_dev, status.st_ino
                if identity not in seen and stat.S_ISDIR(status.st_mode):
                    seen.add(identity)
                    is_last = i == len(parts) - 1
                    paths += _in_folder(folder, part, walk, is_last=is_last)
                    os.stat(os.path.join(folder, os.curdir))
            except (FileNotFoundError, NotADirectoryError):
                pass
            except OSError as error:
                walk.unreadable.append((folder or os.curdir, error_words(error)))
    return paths


def _in_folder(folder: str, part: str, walk: Walk, *, is_last: bool) -> list[str]:
    """Return what of a folder matches a part of a pattern; folders if more follow."""
    if not glob.has_magic(part):
        path = os.path.join(folder, part)
        return [path] if os.path.lexists(path) else []
    with os.scandir(folder or os.curdir) as found:
        entries = {entry.name: entry for entry in found}
    # A name that looks like a pattern matches itself, too.
    names = {*fnmatch.filter(entries, part), part} & entries.keys()
    paths = []
    for name in sorted(names):
        is_hidden = name.startswith(".")
        if is_hidden and not part.startswith("."):
            continue
        path, entry = os.path.join(folder, name), entries[name]
        is_spelled_out = is_hidden or name == part
        if is_system_folder(name) and not is_spelled_out and is_folder(entry):
            walk.system.append(path)
        elif is_last or is_folder(entry):
            paths.append(path)
    return paths


class _Outputs(dict[str, frozenset[str]]):
    """Maps and overlays in each folder, whose list is read once."""

    def __missing__(self, folder: str) -> frozenset[str]:
        self[folder] = outputs_in(folder)
        return self[folder]


def _named(paths: Sequence[str], outputs: _Outputs) -> Walk:
    """Sort out files that were named one by one."""
    walk = Walk()
    for path in paths:
        folder = os.path.dirname(path)
        found = walk.outputs if is_output(path, outputs[folder]) else walk.images
        found.append(path)
    return walk


def _matching(pattern: str) -> Walk:
    """Return what a pattern with ``**`` names: all photos in what matches it."""
    parts = os.path.normpath(pattern).split(os.sep)
    n_plain = next(i for i, part in enumerate(parts) if glob.has_magic(part))
    root = os.sep.join(parts[:n_plain]) or (os.sep if parts[0] == "" else os.curdir)
    if not os.path.isdir(root):
        return Walk()
    walk = walk_images(root)

    def matches(path: str) -> bool:
        names = os.path.relpath(path, root).split(os.sep)
        ends = range(1, len(names) + 1)
        return any(_match(names[:end], parts[n_plain:]) for end in ends)

    def is_named(path: str) -> bool:
        """Whether the file itself matches, and not only a folder above it."""
        return _match(os.path.relpath(path, root).split(os.sep), parts[n_plain:])

    if "." in parts[-1]:  # tried whatever the extension, as in other patterns
        walk.images += filter(is_named, walk.others)
        walk.others = [path for path in walk.others if not is_named(path)]
        walk.images.sort()
    for paths in (walk.images, walk.others, walk.outputs, walk.special):
        paths[:] = [os.path.normpath(path) for path in paths if matches(path)]
    return walk


def _match(names: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether the names of a path match the parts of a pattern."""
    ends = {0}  # how many names the parts so far may have matched
    for part in pattern:
        if part == "**":
            ends = set(range(min(ends, default=len(names) + 1), len(names) + 1))
        else:
            ends = {
                end + 1
                for end in ends
                if end < len(names)
                and (fnmatch.fnmatch(names[end], part) or names[end] == part)
            }
    return len(names) in ends


def _joined(walks: Sequence[Walk]) -> Walk:
    total = Walk()
    for walk in walks:
        for name, values in vars(walk).items():
            getattr(total, name).extend(values)
    return total


def _left_out(walk: Walk) -> list[str]:
    """Say what is left out of an argument, and why."""
    notes = []
    if walk.others:
        notes.append(_other_files(walk.others))
    if walk.outputs:
        notes.append(f"{len(walk.outputs)} maps and overlays of clipad left out")
    if walk.special:
        first = os.path.basename(walk.special[0])
        notes.append(
            f"{len(walk.special)} pipes, sockets or devices left out ({first} ...)"
        )
    if walk.system:
        names = sorted({os.path.basename(path) for path in walk.system})
        more = ", ..." if len(names) > 3 else ""
        notes.append(
            f"{len(walk.system)} folders of the system left out "
            f"({', '.join(names[:3])}{more})"
        )
    notes += [f"not listed: {path}: {reason}" for path, reason in walk.unreadable]
    return notes


def _other_files(others: list[str]) -> str:
    """Count files that are not taken for photos, by their extensions."""
    kinds = Counter(os.path.splitext(p)[1].lower() or "no extension" for p in others)
    ordered = sorted(kinds.items(), key=lambda item: (-item[1], item[0]))
    listed = ", ".join(f"{kind} {count}" for kind, count in ordered[:5])
    more = ", ..." if len(kinds) > 5 else ""
    return f"{len(others)} other files left out ({listed}{more})"
