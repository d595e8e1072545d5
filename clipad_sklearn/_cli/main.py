"""The command ``clipad``: runs a command, and what becomes of errors.

Nothing heavy is imported before the arguments are known to be right.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Any

from .arguments import parse
from .output import UsageError, printable, set_quiet, stage


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status.

    Parameters
    ----------
    argv : sequence of str or None, default=None
        The arguments. None: those of the process.

    Returns
    -------
    int
        0, 1, 2, 3 or 130; ``clipad --help`` says which is which.
    """
    for stream in (sys.stdout, sys.stderr):
        # A name that the terminal cannot show must not end the run.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    if argv is None:
        with contextlib.suppress(ValueError):  # not the main thread
            signal.signal(signal.SIGTERM, _terminate)
    command, settings = parse(argv)
    set_quiet(getattr(settings, "quiet", False))
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            if hasattr(settings, "quiet"):
                stage("starting: loading libraries")
            run = importlib.import_module(f".{command}", __package__).run
            status = int(run(settings))
            sys.stdout.flush()
            return status
        except UsageError as error:
            lines = (printable(line) for line in str(error).split("\n"))
            print("clipad: error:", "\n".join(lines), file=sys.stderr)
            return 2
        except KeyboardInterrupt as interrupt:
            terminated = bool(interrupt.args)
            word = "terminated" if terminated else "interrupted"
            print(f"clipad: {word}", file=sys.stderr, flush=True)
            status = 143 if terminated else 130
            if argv is None:
                # A thread may wait for a read that never ends, and Python for it.
                os._exit(status)
            return status
        except BrokenPipeError:
            # The reader of the output, such as `head`, has seen enough. What is
            # still to be flushed goes nowhere.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        except Exception:
            traceback.print_exc()
            print(
                "clipad: this is a bug in clipad; please report it with the traceback "
                "above",
                file=sys.stderr,
            )
            return 3


def _terminate(*_: Any) -> None:
    raise KeyboardInterrupt("terminated")


def _show_warning(
    message: Warning | str, category: type[Warning], *place: Any, **more: Any
) -> None:
    text = " ".join(str(message).split())
    print(f"clipad: warning: {printable(text)}", file=sys.stderr)
