"""Progress bars, silent when not a terminal."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Any

_hidden = False


def set_hidden(hidden: bool) -> None:
    """Show no bar from now on, or again where there is a terminal."""
    global _hidden
    _hidden = hidden


class _Silent:
    """The part of a bar that is used here, without a bar."""

    def update(self, n: int = 1) -> None:
        pass

    def set_postfix(self, **values: Any) -> None:
        pass


def progress_bar(
    total: int,
    description: str | None = None,
    *,
    shown: bool | None = None,
    **kwargs: Any,
) -> AbstractContextManager[Any]:
    """A bar for what takes over a second; `shown` None asks whether it is a terminal.

    A bar of tqdm takes a lock of the whole process, even one that is disabled. An
    interrupt in the wrong moment leaves that lock taken, and then other threads wait
    for ever. So there is no bar where nobody would see it.
    """
    if shown is None:
        shown = sys.stderr is not None and sys.stderr.isatty()
        kwargs["delay"] = 1
    if _hidden or not shown:
        return nullcontext(_Silent())
    from tqdm.auto import tqdm

    bar: AbstractContextManager[Any] = tqdm(total=total, desc=description, **kwargs)
    return bar
