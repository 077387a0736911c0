"""The comparison of several runs, as `prunescope analyze A B` gives it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Self

import msgspec

from prunescope.analysis.schema import comparison as schema
from prunescope.results.report import Report
from prunescope.results.result import StructResult, TabledResult, format_names, with_fields_of
from prunescope.taxonomy.option import as_path, needed_path

if TYPE_CHECKING:
    from rich.console import RenderableType

    from prunescope.analysis.inputs.options import CompareRequest
    from prunescope.analysis.pipeline import OnDone
    from prunescope.analysis.report.comparison_figure import ComparisonPlots
    from prunescope.analysis.report.records import Records


class Comparison(StructResult, TabledResult, schema.Comparison, kw_only=True, dict=True):
    """Several runs side by side, as `prunescope analyze A B` compares them."""

    @classmethod
    def compute(cls, request: CompareRequest, on_done: OnDone | None = None) -> Self:
        """Analyse the subjects of a request, and the runs in folders that are none themselves.

        Args:
            request: The subjects, their baseline, the options, and who does the work.
            on_done: Called with how many runs are done, and how many there are.
        """
        from prunescope.analysis.compare_runs import compare
        from prunescope.analysis.named_runs import describe_left_out
        from prunescope.taxonomy.scrub import scrub_all

        comparison = compare(
            request.paths,
            baseline=as_path(request.baseline),
            options=request.options,
            jobs=request.jobs,
            engine=request.engine,
            on_done=on_done,
        )
        comparison.warnings[:0] = scrub_all(describe_left_out(request.paths))
        return cls.of(comparison)

    @classmethod
    def of(cls, struct: schema.Comparison) -> Self:
        """Return the comparison with methods, and so its reports."""
        reports = {name: with_fields_of(plain, Report) for name, plain in struct.reports.items()}
        return super().of(msgspec.structs.replace(struct, reports=reports))

    @property
    def table(self) -> Records:
        """One row per run and phase, plain columns; `rows` has ladder, ledger and sparsity too."""
        from prunescope.analysis.report.records import structs

        return structs("comparison", schema.ComparisonRow, self.rows)

    @property
    def plot(self) -> ComparisonPlots:
        """The figures `comparison.plot.speedups()` and `comparison.plot.ledgers()`."""
        from prunescope.analysis.report.comparison_figure import ComparisonPlots

        return ComparisonPlots(self)

    def save(
        self,
        folder: Path | str,
        formats: Sequence[str] | str = ("md", "json", "html"),
        *,
        label_prefix: str = "",
        width: str | float | None = None,
        font: str = "sans",
    ) -> list[Path]:
        """Write the table and the figures into a folder.

        Args:
            folder: The folder, which is made if it does not exist.
            formats: md, json, html, tex, csv, and png, pdf and svg for the figures.
            label_prefix: What every label in LaTeX begins with.
            width: The width that figures are drawn for: column, page, or mm.
            font: Their typeface: sans or serif.

        Returns:
            The paths of the files.

        Raises:
            PrunescopeError: A format is unknown, or the folder cannot be written.
        """
        from prunescope.analysis.report.comparison import write_comparison

        names, look = format_names(formats), {"width": width, "font": font}
        return write_comparison(
            self, needed_path(folder), formats=names, label_prefix=label_prefix, **look
        )

    def to_json(self) -> bytes:
        """Return the UTF-8 JSON of comparison.json, indented by two spaces."""
        return schema.to_json(self)

    def __repr__(self) -> str:
        runs = {row.run for row in self.rows}
        return f"<Comparison of {len(runs)} runs, {len(self.rows)} rows, {len(self.failed)} failed>"

    def __rich__(self) -> RenderableType:
        from prunescope.analysis.report.comparison import comparison_sheet

        return comparison_sheet(self)

    def _repr_html_(self) -> str:
        from prunescope.analysis.report.comparison import render_comparison

        return render_comparison(self)
