"""What has to be done when a process forks: the one place that registers it."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable


def at_fork(
    *,
    before: Callable[[], object] | None = None,
    in_parent: Callable[[], object] | None = None,
    in_child: Callable[[], object] | None = None,
) -> None:
    """Call these before and after this process forks, where processes can."""
    if hasattr(os, "register_at_fork"):
        given = {
            "before": before,
            "after_in_parent": in_parent,
            "after_in_child": in_child,
        }
        os.register_at_fork(**{k: v for k, v in given.items() if v is not None})


@functools.cache
def one_thread_in_children() -> None:
    """Let torch compute with one thread in processes forked from this one."""
    at_fork(in_child=_use_one_thread)


def _use_one_thread() -> None:
    # The OpenMP threads of torch do not survive a fork, and waiting for them would
    # never end. With one thread there is nothing to wait for.
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(1)
