"""How families look in the figures of a sweep: a marker and a colour each, the same in all of them.

In: points, axes. Out: marks by label, dots with intervals. Markers differ, for print without
colour; lightness differs too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from prunescope.analysis.schema.pareto import SweepPoint

# Okabe-Ito, dark and light in turns.
_COLOURS = ("#0072B2", "#E69F00", "#000000", "#56B4E9", "#D55E00", "#CC79A7", "#009E73", "#888888")
_MARKERS = "osD^vP*X<>hpd8"
Marks = dict[str, tuple[str, str]]


def marks_of(points: Iterable[SweepPoint]) -> Marks:
    """Colour and marker of each label, in the order in which they come."""
    labels = dict.fromkeys(p.label for p in points)
    return {
        label: (_COLOURS[i % len(_COLOURS)], _MARKERS[i % len(_MARKERS)])
        for i, label in enumerate(labels)
    }


def dot(  # noqa: PLR0913
    axes: Axes,
    at: tuple[float, float],
    spreads: tuple[Any, Any],
    colour: str,
    marker: str,
    *,
    full: bool,
    label: str | None,
) -> None:
    """A point with its intervals across and up; open where it is not `full`."""
    (x, y), (across, up) = at, spreads
    if across is not None:
        axes.plot(across, [y, y], color=colour, linewidth=0.7)
    if up is not None:
        axes.plot([x, x], up, color=colour, linewidth=0.7)
    axes.plot(
        x,
        y,
        color=colour,
        marker=marker,
        markersize=5,
        linestyle="none",
        markerfacecolor=colour if full else "white",
        markeredgewidth=0.8,
        label=label,
    )


def legend_below(figure: Figure, handles: Sequence[Any], *, columns: int) -> int:
    """Put one legend under the panels, in as many columns, `columns` at most, as are no wider than
    the figure; gives its number of rows."""
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    while True:
        legend = figure.legend(
            handles=handles, loc="outside lower center", ncols=columns, frameon=False
        )
        wide = legend.get_window_extent(renderer).width
        if columns == 1 or wide <= figure.bbox.width:
            return -(-len(handles) // columns)
        legend.remove()
        columns -= 1
