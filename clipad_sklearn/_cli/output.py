"""What all commands share: usage errors, safe printing, complete files."""

from __future__ import annotations

import contextlib
import math
import os
import sys
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from .._errors import printable
from .._files import check_can_write, check_replaceable, replacing
from .._progress import set_hidden


class UsageError(Exception):
    """An error the user can fix; shown without a traceback.

    Each argument is a line: a line break within one is that of a name.
    """

    def __str__(self) -> str:
        return "\n".join(map(str, self.args))


@contextlib.contextmanager
def as_usage_error() -> Iterator[None]:
    """Show the library's own errors about settings, files and weights as such."""
    try:
        yield
    except (ValueError, TypeError, OSError, ImportError) as error:
        if isinstance(error, BrokenPipeError):
            raise
        raise UsageError(*str(error).split("\n")) from error


# -- printing ------------------------------------------------------------------


_quiet = False


def set_quiet(quiet: bool) -> None:
    """Leave out what `stage` says, and progress bars."""
    global _quiet
    _quiet = quiet
    set_hidden(quiet)


def say(message: str) -> None:
    """Print a remark beside the results."""
    print_error(f"clipad: {printable(message)}")


def print_error(line: str) -> None:
    """Print to stderr; where nobody reads that any more, the work still goes on."""
    if sys.stderr is None:
        return
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115


@contextlib.contextmanager
def reader_may_leave() -> Iterator[None]:
    """Print to stdout as long as somebody reads it, as `head` does not for long."""
    try:
        yield
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        close_output()


def close_output() -> None:
    """Let what is still to be flushed go nowhere."""
    with contextlib.suppress(OSError):  # in a notebook it is no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def stage(message: str) -> None:
    """Say what is being done, unless the user wants it quiet."""
    if not _quiet:
        say(message)


def counted(n: int, what: str) -> str:
    """Return a number with its noun, such as ``"1 photo"``."""
    return f"{n:,} {what}" + ("" if n == 1 else "s")


def per_cent(share: float) -> str:
    """Return a share to read."""
    return f"{100 * share:.3g} %"


def per_cent_at_most(share: float) -> str:
    """Return a bound to read, never below what it is."""
    digits = 2 - math.floor(math.log10(100 * share)) if share > 0 else 0
    unit = 10.0 ** -min(digits, 6)
    return f"{math.ceil(100 * share / unit - 1e-9) * unit:.3g} %"


def no_formula(text: str) -> str:
    """Put an apostrophe before what a spreadsheet would run as a formula.

    Also before an apostrophe, so that taking one away always gives the text back.
    """
    signs = "=+-@'\t\r\n" + "\uff1d\uff0b\uff0d\uff20"  # the latter are fullwidth
    return f"'{text}" if text.startswith(tuple(signs)) else text


# -- settings of CLIP ----------------------------------------------------------


def given_settings(settings: Any) -> dict[str, Any]:
    """Return the parameters of `OpenCLIP` that were given to a command."""
    names = ("device", "batch_size", "precision", "image_size", "embedding_cache")
    values = {name: getattr(settings, name, None) for name in names}
    return {name: value for name, value in values.items() if value is not None}


# -- files ---------------------------------------------------------------------


def check_writable(paths: Sequence[str], inputs: Collection[str] = ()) -> None:
    """Say at once, not after an hour of work, that a file cannot be written.

    Nor are two outputs one file, or one of the `inputs`.
    """
    known = {os.path.realpath(path) for path in inputs}
    for path in paths:
        target = os.path.realpath(path)
        folder = os.path.dirname(target)
        if not path or os.path.isdir(target):
            raise UsageError(f"{path}: is a folder")
        if not os.path.isdir(folder):
            raise UsageError(f"{path}: there is no folder {folder}")
        if not os.access(folder, os.W_OK):
            raise UsageError(f"{path}: no permission to write there")
        if os.path.exists(target) and not os.access(target, os.W_OK):
            raise UsageError(f"{path}: is there and write-protected")
        if target in known:
            raise UsageError(
                f"{path}: is one of the photos, or is to be written twice; name "
                "another file"
            )
        known.add(target)
        try:
            check_replaceable(path)  # also what /dev/stdout leads to
            check_can_write(folder)
        except OSError as error:
            raise UsageError(f"{path}: {error.strerror or error}") from error


@contextlib.contextmanager
def writing(path: str, *, is_ours: bool = False) -> Iterator[str]:
    """As `replacing`, with an error that the user can fix."""
    try:
        with replacing(path, is_ours=is_ours) as temporary:
            yield temporary
    except OSError as error:
        raise UsageError(
            f"{path} was not written: {error.strerror or error}"
        ) from error


def write_text(
    path: str | os.PathLike[str], text: str, *, is_ours: bool = False
) -> None:
    """Write a file in one go; what is not valid Unicode becomes an escape."""
    with (
        writing(os.fspath(path), is_ours=is_ours) as temporary,
        open(temporary, "wb") as file,
    ):
        file.write(text.encode("utf-8", "backslashreplace"))
        file.flush()
        os.fsync(file.fileno())
