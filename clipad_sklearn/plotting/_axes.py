"""What the displays share: matplotlib, axes to draw on, and colours."""

from __future__ import annotations

from typing import Any

NORMAL, ANOMALOUS, NEUTRAL = "tab:blue", "tab:red", "tab:gray"


def pyplot() -> Any:
    """Import matplotlib's pyplot."""
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ImportError(
            "Plotting needs matplotlib: pip install clipad-sklearn[plot]"
        ) from error
    return pyplot


def axes_of(ax: Any) -> tuple[Any, Any]:
    """Return `ax`, or new axes, and their figure."""
    if ax is None:
        _, ax = pyplot().subplots(layout="constrained")
    return ax, ax.figure
