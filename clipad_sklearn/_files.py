"""Folders walked by one rule, files that are read, and files that are complete."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

EXTENSIONS = frozenset(
    {
        *(".avif", ".bmp", ".dib", ".gif", ".heic", ".heif", ".j2k", ".jfif", ".jp2"),
        *(".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tga"),
        *(".tif", ".tiff", ".webp"),
    }
)
# What servers, systems and archives keep beside photos: thumbnails, deleted files.
_SYSTEM_FOLDERS = frozenset(
    {
        *("@eadir", "@recycle", "@recently-snapshot", "#recycle", "#snapshot"),
        *("$recycle.bin", "recycler", "system volume information", "lost+found"),
        *("__macosx", "$windows.~bt", "recycled", "~snapshot"),
        *("network trash folder", "lost.dir", "found.000", "trashbox"),
        *("@__thumb", "$extend", "temporary items"),
    }
)
# What maps and overlays say near their beginning.
MADE_HERE = "clipad score --maps"
# The list of maps and overlays in a folder.
OUTPUT_LIST = ".clipad-outputs.json"
# What names of unfinished files begin with: a kill leaves them.
UNFINISHED = ".clipad-"
# Linux takes a lease of a file back after this time.
_LEASE_SECONDS = 50
# An uncompressed photo of 16 bits at Pillow's limit of pixels.
_LARGEST_FILE = 2**30
# How spreadsheets, and archives, which some of them are, begin.
_NO_TEXT = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0", b"\x1f\x8b", b"%PDF")


# -- looking for files -------------------------------------------------------------


@dataclass
class Walk:
    """What a walk found, and what it left out; folders are filled in as it goes."""

    images: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)  # files that are no images
    outputs: list[str] = field(default_factory=list)  # maps and overlays of ours
    special: list[str] = field(default_factory=list)  # pipes, sockets, devices
    system: list[str] = field(default_factory=list)  # folders that are not entered
    unreadable: list[tuple[str, str]] = field(default_factory=list)  # with reasons


def walk_images(folder: str) -> Walk:
    """Look for images in a folder and its subfolders; all lists are sorted."""
    walk = Walk()
    for parent, names in walk_files(folder, walk):
        ours = outputs_in(parent)
        for name in names:
            path = os.path.join(parent, name)
            if not is_image_name(name):
                walk.others.append(path)
            elif is_output(path, ours):
                walk.outputs.append(path)
            else:
                walk.images.append(path)
    for found in (walk.images, walk.others, walk.outputs, walk.special, walk.system):
        found.sort()
    return walk


def walk_files(folder: str, walk: Walk) -> Iterator[tuple[str, list[str]]]:
    """Yield each folder and the names of its files; the one walk of this package.

    Links to folders are followed, after all folders that need none, and no folder is
    entered twice, nor one that `folder` lies in. Hidden files and folders, and those of
    the system, are left out. What is left out is noted in `walk`.
    """
    seen = set(_with_parents(folder))
    folders, links = [folder], list[str]()
    while folders or links:
        is_link = not folders
        parent = links.pop(0) if is_link else folders.pop()
        try:
            identity = _identity(os.stat(parent))
            if identity in seen and parent != folder:
                continue
            seen.add(identity)
            with os.scandir(parent) as entries:
                files, inner, linked = _sorted_out(entries, walk)
        except OSError as error:
            walk.unreadable.append((parent, error_words(error)))
            continue
        folders += inner[::-1]
        links += linked
        yield parent, files


def is_output(path: str, ours: Collection[str]) -> bool:
    """Whether a file is a map or overlay of ``--maps``; `ours` is `outputs_in`.

    A photo that has taken the name of one is none.
    """
    name = os.path.basename(path)
    return _is_old_output(name) or (name in ours and _says_so(path))


def _says_so(path: str) -> bool:
    """Whether an image says that it is an output, if it can be read at all."""
    if not os.path.isfile(path):  # a pipe is not even opened
        return True
    try:
        with open(path, "rb") as file:
            return MADE_HERE.encode() in file.read(200)
    except OSError:
        return True


def _is_old_output(name: str) -> bool:
    """Whether it is called as version 0.1.0, which kept no list, called its maps."""
    photo, ending = os.path.splitext(name.lower())
    photo, kind = os.path.splitext(photo)
    is_ours = ending == ".png" and kind in (".map", ".overlay")
    return is_ours and os.path.splitext(photo)[1] in EXTENSIONS


def outputs_in(folder: str) -> frozenset[str]:
    """Return the names of the maps and overlays that were written into a folder."""
    try:
        return _listed(os.path.join(folder, OUTPUT_LIST))
    except (FileNotFoundError, ValueError):  # there is none, or it is not ours
        return frozenset()


def _listed(path: str) -> frozenset[str]:
    """Return the names in a list of outputs."""
    if not os.path.lexists(path):
        raise FileNotFoundError(path)
    names = parsed_json(read_bytes(path))
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
        raise ValueError("not a list of names")
    return frozenset(names)


def claim_outputs(folder: str, names: Iterable[str]) -> None:
    """Note what is about to be written, so that it is never taken for photos.

    Raises FileExistsError for a file there that is not ours.
    """
    names = set(names)
    try:
        known = _listed(os.path.join(folder, OUTPUT_LIST))
    except FileNotFoundError:
        known = frozenset()
    except ValueError:
        raise FileExistsError(
            f"{os.path.join(folder, OUTPUT_LIST)} is there and was not written by "
            "clipad"
        ) from None
    for name in sorted(names - known):
        path = os.path.join(folder, name)
        if os.path.lexists(path) and not _is_old_output(name):
            raise FileExistsError(f"{path} is there and was not written by clipad")
    if not names <= known:
        with (
            replacing(os.path.join(folder, OUTPUT_LIST), is_ours=True) as temporary,
            open(temporary, "w", encoding="ascii") as file,
        ):
            json.dump(sorted(names | known), file)


def parsed_json(text: str | bytes) -> Any:
    """Parse JSON; raise ValueError for all that is not, or is nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def is_image_name(name: str) -> bool:
    """Whether a name has the extension of an image."""
    return os.path.splitext(name)[1].lower() in EXTENSIONS


def is_system_folder(name: str) -> bool:
    """Whether a folder of this name is hidden, or one of the system."""
    return name.startswith(".") or name.lower() in _SYSTEM_FOLDERS


def _sorted_out(
    entries: Iterator[os.DirEntry[str]], walk: Walk
) -> tuple[list[str], list[str], list[str]]:
    """Return names of files, folders, and links to folders, sorted."""
    files, folders, links = list[str](), list[str](), list[str]()
    for entry in sorted(entries, key=lambda entry: entry.name):
        if is_folder(entry):
            if is_system_folder(entry.name):
                walk.system.append(entry.path)
            else:
                (links if entry.is_symlink() else folders).append(entry.path)
        elif entry.name.startswith("."):
            continue
        elif reason := _why_lost(entry):
            walk.unreadable.append((entry.path, reason))
        elif _is_file(entry):
            files.append(entry.name)
        else:
            walk.special.append(entry.path)
    return files, folders, links


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder, or a link to one that can be followed."""
    with contextlib.suppress(OSError):
        return entry.is_dir()
    return False


def _why_lost(entry: os.DirEntry[str]) -> str:
    """Why a link cannot be followed, which may be one to a folder; "" if it can."""
    if entry.is_symlink() and not is_image_name(entry.name):
        try:
            entry.stat()
        except OSError as error:
            return error_words(error)
    return ""


def is_plain_file(path: str) -> bool:
    """Whether it is a regular file, and no link to one."""
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except OSError:
        return False


def error_words(error: OSError) -> str:
    """Return the reason of an error as it is put after a colon."""
    return (error.strerror or str(error)).lower()


def _is_file(entry: os.DirEntry[str]) -> bool:
    """Whether it is a regular file, or a link that leads nowhere."""
    try:
        if not entry.is_file():
            entry.stat()
            return False
    except OSError:
        pass
    return True


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _with_parents(folder: str) -> Iterator[tuple[int, int]]:
    """Yield the identities of a folder and of all folders that it lies in."""
    path = os.path.realpath(folder)
    while True:
        with contextlib.suppress(OSError):
            yield _identity(os.stat(path))
        parent = os.path.dirname(path)
        if parent == path:
            return
        path = parent


# -- reading -----------------------------------------------------------------------


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """Return a regular file's content; the errors say what a user can act on."""
    try:
        # Pipes and devices are not even opened, which could wait or set one going.
        _check_regular(os.stat(path))
        with open(_opened(path), "rb") as file:
            status = os.fstat(file.fileno())
            _check_regular(status)
            content = file.read(status.st_size + 1)
    except FileNotFoundError:
        is_link = os.path.islink(path)
        reason = "a link to a file that is not there" if is_link else "no such file"
        raise ValueError(reason) from None
    except MemoryError:
        raise ValueError("the file needs more memory than there is") from None
    except OSError as error:
        raise ValueError((error.strerror or str(error)).lower()) from error
    if not content:
        raise ValueError("the file is empty")
    return content


def _opened(path: str | os.PathLike[str]) -> int:
    """Open a file without waiting for the other end, should it be a pipe by now."""
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    end = time.monotonic() + _LEASE_SECONDS
    while True:
        try:
            return os.open(path, flags)
        except BlockingIOError:
            # A file server had lent it to somebody, and now asks for it back.
            if time.monotonic() > end:
                raise
            time.sleep(0.05)


def check_not_special(path: str | os.PathLike[str]) -> None:
    """Raise ValueError for a pipe, socket or device, which others would wait for."""
    try:
        mode = os.stat(path).st_mode
    except OSError:  # said by whoever opens it
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise ValueError(f"{os.fspath(path)!r} is {_kind(mode)}, not a file")


def _check_regular(status: os.stat_result) -> None:
    mode = status.st_mode
    if stat.S_ISDIR(mode):
        raise ValueError("is a folder, not an image; see list_images")
    if not stat.S_ISREG(mode):
        raise ValueError(f"is {_kind(mode)}, not a file")
    if status.st_size > _LARGEST_FILE:
        raise ValueError(
            f"the file has {status.st_size / 2**30:.1f} GB; at most 1 GB is read"
        )


def _kind(mode: int) -> str:
    """Say what something is that is no regular file."""
    if stat.S_ISDIR(mode):
        return "a folder"
    if stat.S_ISSOCK(mode):
        return "a socket"
    return "a pipe" if stat.S_ISFIFO(mode) else "a device"


def read_text(path: str) -> str:
    """Return a text as spreadsheets and other systems leave it, with line feeds.

    Raises ValueError, with file and line, where it is in none of their encodings.
    """
    with open(path, "rb") as file:
        return _with_line_feeds(_decoded(file.read(), path))


def _with_line_feeds(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _decoded(content: bytes, path: str) -> str:
    if content.startswith(_NO_TEXT):
        raise ValueError(
            f"{path!r} is a spreadsheet, an archive or a document, not a text: save "
            "a table as CSV."
        )
    if content.startswith((b"\xff\xfe\0\0", b"\0\0\xfe\xff")):
        encodings = ["utf-32"]
    elif b"\0\0\0" in content[:4]:
        encodings = ["utf-32-be" if content[0] == 0 else "utf-32-le"]
    elif content.startswith((b"\xff\xfe", b"\xfe\xff")):
        encodings = ["utf-16"]
    elif b"\0" in content[:4]:
        encodings = ["utf-16-be" if content[0] == 0 else "utf-16-le"]
    else:
        encodings = ["utf-8-sig", "cp1252"]
    for encoding in encodings:
        try:
            text = content.decode(encoding)
        except UnicodeDecodeError as error:
            before = content[: error.start].decode(encoding, "replace")
            reason = error.reason
            continue
        # Such as the mark by which DOS ends a file, and those between joined files.
        text = text.rstrip("\x1a\0").replace("\ufeff", "")
        before, is_no_text, _ = text.partition("\0")
        if not is_no_text:
            return text
        reason = "NUL"
        break
    line = _with_line_feeds(before).count("\n") + 1
    raise ValueError(
        f"{path!r}, line {line}: expected text in UTF-8, UTF-16 or Windows-1252, "
        f"found bytes that are none of these ({reason})."
    )


# -- writing -----------------------------------------------------------------------


# Names of files that this process is writing and that nobody has heard of yet.
_unfinished: set[str] = set()


@contextlib.contextmanager
def replacing(
    path: str | os.PathLike[str], prefix: str = UNFINISHED, *, is_ours: bool = False
) -> Iterator[str]:
    """Give the name of a file that takes the place of `path` when it is complete.

    A link that the user names stands for what it leads to; where the name `is_ours`,
    nobody asked for a link, and it is replaced itself.
    """
    target = os.fspath(path)
    if not (is_ours and os.path.islink(target)):
        check_replaceable(target)
        target = os.path.realpath(target)
    temporary = new_file(os.path.dirname(target), prefix)
    try:
        yield temporary
        if os.path.exists(target):
            shutil.copymode(target, temporary)
        os.replace(temporary, target)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        _unfinished.discard(temporary)


def check_replaceable(target: str) -> None:
    """Raise OSError for what is there and no regular file: root could replace it.

    Nor is a link of somebody else followed, who would choose what is replaced.
    """
    us = {0, os.geteuid()} if hasattr(os, "geteuid") else set[int]()
    if us and os.path.islink(target) and os.lstat(target).st_uid not in us:
        raise OSError(errno.EPERM, "is a link of another user", target)
    try:
        mode = os.stat(target).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, f"is {_kind(mode)}, not a file", target)


def new_file(folder: str, prefix: str) -> str:
    """Make an empty file under a name that nobody can foresee; return its path."""
    while True:
        path = os.path.join(folder, prefix + secrets.token_hex(8))
        _unfinished.add(path)
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
            return path
        except FileExistsError:
            _unfinished.discard(path)
        except OSError:
            _unfinished.discard(path)
            raise


def check_can_write(folder: str) -> None:
    """Raise OSError if no file can be made in a folder."""
    path = new_file(folder, UNFINISHED)
    os.unlink(path)
    _unfinished.discard(path)


@contextlib.contextmanager
def scratch_folder() -> Iterator[str]:
    """Make a folder under a name that nobody can foresee; delete it in the end."""
    folder = tempfile.mkdtemp(prefix="clipad-")
    _unfinished.add(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _unfinished.discard(folder)


def remove_unfinished() -> None:
    """Delete what an interrupt between lines, or the end of patience, has left."""
    for path in list(_unfinished):
        if os.path.isdir(path):
            shutil.rmtree(path, ignore_errors=True)
        with contextlib.suppress(OSError):
            os.unlink(path)
