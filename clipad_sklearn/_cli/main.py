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
        0, 1, 2, 3, 130 or 143; ``clipad --help`` says which is which.
    """
    for stream in (sys.stdout, sys.stderr):
        # A name that the terminal cannot show must not end the run.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    if argv is None:
        with contextlib.suppress(ValueError):  # not the main thread
            signal.signal(signal.SIGTERM, _terminate)
            _end_in_time()
    try:
        status = _run(argv)
        if argv is None:
            # All is written, and Python may take seconds to end.
            with contextlib.suppress(ValueError):
                for number in (signal.SIGINT, signal.SIGTERM):
                    signal.signal(number, signal.SIG_DFL)
        return status
    except KeyboardInterrupt as interrupt:
        terminated = bool(interrupt.args)
        if argv is None:
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)
        status = _say_end(terminated)
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
            with reader_may_leave():
                return status
        except UsageError as error:
            lines = (printable(line) for line in str(error).split("\n"))
            print_error("clipad: error: " + "\n".join(lines))
            return 2
        except BrokenPipeError:
            # What is printed as it is found, and not needed any more.
            close_output()
            return 0
        except Exception as error:
            if isinstance(error, OSError) and error.errno in _OF_OUTPUT:
                close_output()
                print_error(f"clipad: error: {printable(str(error))}")
                return 2
            print_error(traceback.format_exc() + _BUG)
            return 3


def _say_end(terminated: bool) -> int:
    """Clean up after an interrupt; return the exit status."""
    remove_unfinished()
    print_error(f"clipad: {'terminated' if terminated else 'interrupted'}")
    return 143 if terminated else 130


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
        while number not in (signal.SIGINT, signal.SIGTERM):
            number = os.read(reader, 1)[0]
        time.sleep(_GRACE_SECONDS)
        os._exit(_say_end(number == signal.SIGTERM))

    threading.Thread(target=watch, daemon=True).start()


def _terminate(*_: Any) -> None:
    raise KeyboardInterrupt("terminated")


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
    print_error(f"clipad: warning: {printable(text)}")
