"""A history as a figure: in, a History; out, one strip for each series, with its changes named."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from prunescope.analysis.report.escape import clean
from prunescope.analysis.report.figure_style import (
    COLOURS,
    REALISED,
    page_strips,
    picture_files,
)
from prunescope.analysis.report.history_tables import series_name
from prunescope.analysis.schema.history import History, HistorySeries
from prunescope.taxonomy import numbers

_MOST_SERIES, _MOST_COMMITS = 6, 60  # that are plotted: the first series, the last commits


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
    for place, point in enumerate(points):
        if point.ns is None:
            continue
        colour = COLOURS["loss"] if point.state == "changed" else REALISED
        low, high = point.ci95 or (point.ns, point.ns)
        axes.plot([place, place], [low / unit.per, high / unit.per], color=colour, linewidth=0.9)
        axes.plot(place, point.ns / unit.per, marker="o", markersize=2.5, color=colour)
        if point.state == "changed" and point.commit in changed:
            at = (place, point.ns / unit.per)
            axes.annotate(clean(str(point.commit))[:10], at, fontsize=5, color=colour)
    axes.set_ylim(bottom=0)
    axes.set_xticks(range(len(points)))
    names = [clean(point.commit or point.time)[:8] for point in points]
    axes.set_xticklabels(names, rotation=90, fontsize=4)
    axes.set_ylabel(unit.unit)
    axes.set_title(clean(series_name(series)), fontsize=6, loc="left")
