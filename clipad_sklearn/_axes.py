"""What the displays share: axes to draw on, and colours."""

from __future__ import annotations

from typing import Any

NORMAL, ANOMALOUS, NEUTRAL = "tab:blue", "tab:red", "tab:gray"


def axes_of(ax: Any) -> tuple[Any, Any]:
    """Return `ax`, or new axes, and their figure."""
    try:
        from matplotlib import pyplot as plt
    except ImportError as error:
        raise ImportError(
            "Plotting needs matplotlib: pip install clipad-sklearn[plot]"
        ) from error
    if ax is None:
        _, ax = plt.subplots(layout="constrained")
    return ax, ax.figure
