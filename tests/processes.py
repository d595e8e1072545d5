"""Commands in processes that can be killed, without starting Python each time."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

trains_in_a_fork = pytest.mark.skipif(
    torch.cuda.is_available(),
    reason="torch trains in no fork of a process that has trained beside a GPU",
)


class Forked:
    """A fork of this process, with its libraries, that does one thing.

    Its working directory, standard streams and signals are as those of a command.
    """

    def __init__(self, work: Callable[[], object], cwd: Path | None = None) -> None:
        if not hasattr(os, "fork"):
            pytest.skip("needs os.fork")
        self._streams = [tempfile.TemporaryFile("w+") for _ in range(2)]  # noqa: SIM115
        self.status: int | None = None
        self.printed: list[str] = []  # to stdout and to stderr, once it has ended
        self.pid = os.fork()
        if not self.pid:
            status = 99
            try:
                for number, stream in zip((1, 2), self._streams, strict=True):
                    os.dup2(stream.fileno(), number)
                sys.stdout = os.fdopen(1, "w", closefd=False)
                sys.stderr = os.fdopen(2, "w", closefd=False)
                faulthandler.enable(sys.stderr)
                signal.signal(signal.SIGINT, signal.default_int_handler)
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                warnings.resetwarnings()
                if cwd is not None:
                    os.chdir(cwd)
                result = work()
                status = result if isinstance(result, int) else 0
            except BaseException:
                with contextlib.suppress(Exception):
                    traceback.print_exc()
            finally:
                for open_stream in (sys.stdout, sys.stderr):
                    with contextlib.suppress(Exception):  # it may be None, or closed
                        open_stream.flush()
                os._exit(status)

    def poll(self) -> int | None:
        """Return the exit status, None while it runs."""
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
                self._read_streams()
        return self.status

    def wait(self, seconds: float = 300) -> int:
        """Wait for the end; return the exit status, negative for a signal."""
        self.wait_for(lambda: False, seconds)
        assert self.status is not None
        return self.status

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal, if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill_when(self, condition: Callable[[], object]) -> None:
        """Kill it as soon as a condition holds."""
        self.wait_for(condition)
        self.kill()
        self.wait()

    def wait_for(self, condition: Callable[[], object], seconds: float = 300) -> None:
        """Wait until it ends or a condition holds; never leave it behind."""
        end = time.monotonic() + seconds
        try:
            while self.poll() is None and not condition():
                if time.monotonic() > end:
                    self.kill(signal.SIGABRT)  # it says where it is
                    while self.poll() is None:
                        time.sleep(0.002)
                    raise AssertionError(("the process does not end", *self.printed))
                time.sleep(0.002)
        except BaseException:
            self.kill()
            while self.poll() is None:
                time.sleep(0.002)
            raise

    def _read_streams(self) -> None:
        for stream in self._streams:
            stream.seek(0)
            self.printed.append(stream.read())
            stream.close()
