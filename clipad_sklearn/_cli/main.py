"""The command ``clipad``: runs a command, and what becomes of errors.

Nothing heavy is imported before the arguments are known to be right.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import importlib
import os
import re
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Sequence
from typing import Any

from .._files import remove_unfinished
from .._fork import at_fork
from .arguments import parse
from .output import (
    UsageError,
    close_output,
    print_error,
    printable,
    reader_may_leave,
    set_quiet,
    stage,
)

# What becomes of stdout: a full disk, a limit of sizes, a terminal that is gone.
_OF_OUTPUT = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
# Of a process that is to end, or whose terminal is gone.
_TERMINATING = [
    getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)
]
# Signals to end that have come.
_received: list[int] = []
# From an interrupt to the end of the process, whatever it does.
_GRACE_SECONDS = 1.2
_BUG = "clipad: this is a bug in clipad; please report it with the traceback above"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status.

    Parameters
    ----------
    argv : sequence of str or None, default=None
        The arguments. None: those of the process.

    Returns
    -------
    int
        0, 1, 2, 3, or 128 and the number of a signal; ``clipad --help`` says which is
        which.
    """
    for stream in (sys.stdout, sys.stderr):
        # A name that the terminal cannot show must not end the run.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    if argv is None:
        with contextlib.suppress(ValueError):  # not the main thread
            for number in (signal.SIGINT, *_TERMINATING):
                if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
                    signal.signal(number, _interrupt)
            sys.unraisablehook = _unraisable
            _end_in_time()
    try:
        status = _run(argv)
        if argv is None:
            # All is written, and Python may take seconds to end.
            with contextlib.suppress(ValueError):
                for number in (signal.SIGINT, *_TERMINATING):
                    if signal.getsignal(number) is not signal.SIG_IGN:
                        signal.signal(number, signal.SIG_DFL)
        return status
    except KeyboardInterrupt:
        by = _received[0] if _received else signal.SIGINT
        if argv is None:
            for number in (signal.SIGINT, *_TERMINATING):
                signal.signal(number, signal.SIG_IGN)
        status = _say_end(by)
        if argv is None:
            # A thread may wait for a read that never ends, and Python for it.
            os._exit(status)
        return status


def _run(argv: Sequence[str] | None) -> int:
    with warnings.catch_warnings():
        warnings.showwarning = functools.partial(_show_warning, set())
        try:
            command, settings = parse(argv)
            set_quiet(getattr(settings, "quiet", False))
            if hasattr(settings, "quiet"):
                stage("starting: loading libraries")
            run = importlib.import_module(f".{command}", __package__).run
            status = int(run(settings))
            if _received:  # and lost on the way
                raise KeyboardInterrupt
            with reader_may_leave():
                return status
        except Exception as error:
            if _received:
                # Code in C may have made an error of its own of an interrupt.
                raise KeyboardInterrupt from error
            return _failed(error)


def _failed(error: Exception) -> int:
    """Say what went wrong; return the exit status."""
    if isinstance(error, UsageError):
        print_error("clipad: error: " + "\n".join(map(printable, error.args)))
        return 2
    if isinstance(error, BrokenPipeError):
        # What is printed as it is found, and not needed any more.
        close_output()
        return 0
    if isinstance(error, MemoryError):
        reason = " ".join(str(error).split())
        print_error(f"clipad: error: not enough memory {printable(reason)}".strip())
        return 2
    if isinstance(error, OSError) and error.errno in _OF_OUTPUT:
        if error.filename is None:
            close_output()
        print_error(f"clipad: error: {printable(str(error))}")
        return 2
    print_error("".join(traceback.format_exception(error)) + _BUG)
    return 3


def _say_end(number: int) -> int:
    """Clean up after a signal; return the exit status."""
    remove_unfinished()
    how = "interrupted" if number == signal.SIGINT else "terminated"
    print_error(f"clipad: {how}")
    return 128 + number


def _end_in_time() -> None:
    """End this process soon after an interrupt, should that get nowhere.

    The main thread may wait for a file server or compute; the exception may come where
    Python ignores it, such as in a destructor.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    at_fork(in_child=lambda: signal.set_wakeup_fd(-1))

    def watch() -> None:
        number = 0
        while number not in (signal.SIGINT, *_TERMINATING):
            number = os.read(reader, 1)[0]
        time.sleep(_GRACE_SECONDS)
        os._exit(_say_end(number))

    threading.Thread(target=watch, daemon=True).start()


def _interrupt(number: int, _: Any) -> None:
    _received.append(number)
    raise KeyboardInterrupt


def _unraisable(lost: Any) -> None:
    """Send a signal again whose exception came where Python drops it: a destructor."""
    if not isinstance(lost.exc_value, KeyboardInterrupt):
        sys.__unraisablehook__(lost)
    elif _received:
        again = threading.Timer(0.05, os.kill, (os.getpid(), _received[0]))
        again.daemon = True
        again.start()


def _show_warning(
    shown: set[str],
    message: Warning | str,
    category: type[Warning],
    *place: Any,
    **more: Any,
) -> None:
    text = " ".join(str(message).split())
    # Of another photo; or of Pillow, which counts what is broken in one.
    is_of_pillow = f"{os.sep}PIL{os.sep}" in str(place[0])
    kind = re.sub(r"\d+", "N", text) if is_of_pillow else text
    if kind in shown:
        return
    shown.add(kind)
    image = getattr(message, "image", "")
    of_which = f" (first: {image})" if image else ""
    print_error(f"clipad: warning: {printable(text + of_which)}")
