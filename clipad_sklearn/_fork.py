"""What has to be done in processes that are forked from one that used torch."""

from __future__ import annotations

import os
import sys


def _use_one_thread() -> None:
    # The OpenMP threads of torch do not survive a fork, and waiting for them would
    # never end. With one thread there is nothing to wait for.
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_use_one_thread)
