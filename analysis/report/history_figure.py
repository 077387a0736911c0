"""A history as a figure: in, a History; out, one strip for each series, with its changes named."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from prunescope.analysis.report.escape import clean
from prunescope.analysis.report.figure_style import (
    SMALL,
    draw_interval,
    page_strips,
    plotting,
    wrapped,
)
from prunescope.analysis.report.history_tables import change_lines, series_name
from prunescope.analysis.report.looks import PRUNED, SERIES
from prunescope.analysis.report.picture import Picture
from prunescope.analysis.schema.history import History, HistorySeries
from prunescope.taxonomy import numbers

_MOST_SERIES, _MOST_COMMITS, _MOST_NAMES = 4, 60, 20  # of a figure, of a series, of an axis
_TITLE = "Time of a step over commits"

_ROOM = 1.25  # of the longest time: the height of a strip, with the name of a commit above a point


class HistoryPlots:
    """The figure of a history."""

    def __init__(self, history: History) -> None:
        self._history = history

    def series(self) -> Figure | None:
        """Plot the time of a step over the commits, and the commits that changed it.

        The figure shows the first four series. There is none where no measurement is valid.
        """
        with plotting():
            return _plot(self._history.series[:_MOST_SERIES])


def history_pictures(history: History) -> Iterator[Picture]:
    """Yield the figures of a history, each of at most four series."""
    for i in range(0, len(history.series), _MOST_SERIES):
        shown = history.series[i : i + _MOST_SERIES]
        told = "; ".join(
            f"{series_name(series)}: {', '.join(change_lines(series)) or 'not decided'}"
            for series in shown
        )
        newest = (numbers.time(series.level_ns) for series in shown)
        words = "points are means of the valid measurements of a commit, with 95 % intervals"
        yield Picture(
            stem="history" if i == 0 else f"history-{i // _MOST_SERIES + 1}",
            title=_TITLE,
            caption=f"{_TITLE}: {words}; a commit is named where it changed the time beyond its "
            f"noise. {clean(told)}.",
            alt=f"Points of {len(shown)} series, the last levels: {', '.join(newest)}.",
            plot=partial(_plot, shown),
        )


def _plot(shown: Sequence[HistorySeries]) -> Figure | None:
    """Plot a strip for each series; None where no measurement is valid."""
    if not any(point.ns is not None for series in shown for point in series.points):
        return None
    figure, strips = page_strips(0.4 + 1.4 * len(shown), _TITLE, "95 % intervals", len(shown))
    for axes, series in zip(strips, shown, strict=True):
        _plot_series(axes, series)
    return figure


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
    axes.set_title(wrapped(clean(series_name(series)), less=8), loc="left")
