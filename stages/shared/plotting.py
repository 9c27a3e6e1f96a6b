"""The look of every figure: one palette and one style."""

from collections.abc import Sized
from typing import Any

# In the report's page, each of these colours becomes a CSS variable that follows the light or dark theme.
INK, MUTED, GRID = "#1f2328", "#6a737d", "#e3e6ea"
SERIES = ("#0f6fc5", "#d2601a", "#2b8a57", "#8b4fb5", "#a8931a", "#c23b62")
STYLE: dict[Any, Any] = {  # for matplotlib.rc_context
    "font.size": 10,
    "text.parse_math": False,  # a class may be called "$5"
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
}


def series_colors(series: Sized) -> list[str]:
    """A colour for each, in their order; the seventh is the first again."""
    return [SERIES[index % len(SERIES)] for index in range(len(series))]
