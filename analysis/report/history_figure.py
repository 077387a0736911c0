"""A history as a figure: in, a History; out, one strip for each series, with its changes named."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from prunescope.analysis.report.escape import clean
from prunescope.analysis.report.figure_style import (
    SMALL,
    draw_interval,
    page_strips,
    picture_files,
)
from prunescope.analysis.report.history_tables import series_name
from prunescope.analysis.report.looks import PRUNED, SERIES
from prunescope.analysis.schema.history import History, HistorySeries
from prunescope.taxonomy import numbers

_MOST_SERIES, _MOST_COMMITS, _MOST_NAMES = 4, 60, 20  # series, the last commits, names on an axis

_ROOM = 1.25  # of the longest time: the height of a strip, with the name of a commit above a point


class HistoryPlots:
    """The figure of a history."""

    def __init__(self, history: History) -> None:
        self._history = history

    def series(self) -> Figure | None:
        """Plot the time of a step over the commits, and the commits that changed it.

        There is no figure where no measurement is valid.
        """
        shown = self._history.series[:_MOST_SERIES]
        if not any(point.ns is not None for series in shown for point in series.points):
            return None
        title = "time of a step over commits"
        figure, strips = page_strips(0.4 + 1.4 * len(shown), title, "95 % intervals", len(shown))
        for axes, series in zip(strips, shown, strict=True):
            _plot_series(axes, series)
        return figure

    def files(self, endings: Sequence[str]) -> dict[str, bytes]:
        """Return the figure in files of some formats."""
        return picture_files("history.{}".format, self.series, endings)


def _plot_series(axes: Axes, series: HistorySeries) -> None:
    """Plot one series."""
    points = series.points[-_MOST_COMMITS:]
    unit = numbers.scale(point.ns for point in points)
    changed = {change.commit for change in series.changes}
    highest = 0.0
    for place, point in enumerate(points):
        if point.ns is None:
            continue
        colour = SERIES[1].colour if point.state == "changed" else PRUNED.colour
        low, high = point.ci95 or (point.ns, point.ns)
        draw_interval(axes, place, [low / unit.per, high / unit.per], color=colour, linewidth=0.9)
        highest = max(highest, high)
        axes.plot(place, point.ns / unit.per, marker="o", markersize=2.5, color=colour)
        if point.state == "changed" and point.commit in changed:
            name, at = clean(str(point.commit))[:10], (place, high / unit.per)
            axes.annotate(
                name,
                at,
                (0, 3),
                textcoords="offset points",
                ha="center",
                fontsize=SMALL,
                color=colour,
            )
    axes.set_ylim(0, _ROOM * highest / unit.per if highest else 1)
    step = max(1, -(-len(points) // _MOST_NAMES))
    places = range(0, len(points), step)
    names = [clean(points[place].commit or points[place].time)[:8] for place in places]
    axes.set_xticks(places, names, rotation=90)
    axes.set_ylabel(unit.unit)
    axes.set_title(clean(series_name(series)), loc="left")
