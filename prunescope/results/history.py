"""The history of measurements, as `prunescope history` gives it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from prunescope.analysis.schema import history as schema
from prunescope.results.result import PICTURES, StructResult, TabledResult

if TYPE_CHECKING:
    from prunescope.analysis.report.history_figure import HistoryPlots
    from prunescope.analysis.report.records import Records
    from prunescope.analysis.report.sheet import Sheet


class History(StructResult, TabledResult, schema.History, kw_only=True, dict=True):
    """The series of a history file, and the commits that changed them beyond their noise.

    Examples:
        >>> history = prunescope.history("history.jsonl")
        >>> [change.commit for series in history.series for change in series.changes]
    """

    @classmethod
    def compute(cls, path: Path) -> Self:
        """Read a history and follow its series."""
        from prunescope.analysis.history.history_file import read_lines
        from prunescope.analysis.history.series import series_of
        from prunescope.analysis.wording.sentence import sentence
        from prunescope.taxonomy.scrubbed import scrubbed

        lines, notices = read_lines(path)
        notes = [sentence(notice) for notice in notices]
        return cls.of(scrubbed(schema.History(series=series_of(lines), notes=notes)))

    @property
    def table(self) -> Records:
        """One row per series and commit: the time of a step with its interval, and its change."""
        from prunescope.analysis.report.history_tables import history_records

        return history_records(self)

    @property
    def plot(self) -> HistoryPlots:
        """The figure `history.plot.series()`."""
        from prunescope.analysis.report.history_figure import HistoryPlots

        return HistoryPlots(self)

    def openmetrics(self) -> str:
        """Return the last state of each series as OpenMetrics text."""
        from prunescope.analysis.report.history_tables import openmetrics

        return openmetrics(self)

    def save(
        self,
        folder: Path | str,
        formats: Sequence[str] | str = ("md", "json", "csv", "png"),
        **look: Any,
    ) -> list[Path]:
        """Write history.md, history.json, history.csv and the figure into a folder.

        Args:
            folder: The folder, which is made if it does not exist.
            formats: md, json, csv, and png, pdf, svg and tex for the figure.
            **look: How figures are printed: `width` (column, page, or mm), `font` (sans or serif),
                and `label_prefix`, which every label in LaTeX begins with.

        Returns:
            The paths of the files.

        Raises:
            PrunescopeError: A format is unknown, or the folder cannot be written.
        """
        return self._save(folder, formats, ("md", "json", "csv", "tex", *PICTURES), **look)

    def _render(self, names: Sequence[str]) -> dict[str, bytes]:
        from prunescope.analysis.report.history_figure import history_pictures
        from prunescope.analysis.report.markdown import sheet_text
        from prunescope.analysis.report.picture import files_of_pictures
        from prunescope.analysis.schema.report import TOOL

        files: dict[str, bytes] = {}
        if "md" in names:
            files["history.md"] = sheet_text("History", self.__rich__()).encode()
        if "json" in names:
            files["history.json"] = self.to_json()
        if "csv" in names:
            files["history.csv"] = self._csv()
        return files | files_of_pictures(history_pictures(self), names, TOOL)

    def __repr__(self) -> str:
        changes = sum(len(series.changes) for series in self.series)
        return f"<History: {len(self.series)} series, {changes} changes; show() prints it>"

    def __rich__(self) -> Sheet:
        from prunescope.analysis.report.history_tables import history_sheet

        return history_sheet(self)
