"""The figure of a history: what it draws, by the objects of matplotlib."""

from __future__ import annotations

from prunescope.analysis.history.series import series_of
from prunescope.analysis.report.history_figure import HistoryPlots
from prunescope.analysis.schema.history import History
from tests.analysis.history.test_series import line


def test_every_point_and_name_is_within_its_strip() -> None:
    """The slowest commit, which the figure is there for, was cut off at the top."""
    history = History(
        series=series_of(
            [line("a", 10), line("b", 11), line("c", 3, device="h100-sxm", valid=False)]
        )
    )
    figure = HistoryPlots(history).series()
    assert figure is not None
    figure.draw_without_rendering()
    first = figure.axes[0]
    frame, top = first.get_window_extent(), first.get_ylim()[1]
    assert top > 11.1 and [text.get_text() for text in first.texts] == ["b"]
    for text in first.texts:
        assert text.get_window_extent().y1 <= frame.y1
