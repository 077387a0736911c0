"""The report of one run or trace, as `prunescope analyze` gives it."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Self

from prunescope.analysis.schema import report as schema
from prunescope.output import console_for
from prunescope.results.result import Result, format_names, with_fields_of
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.option import as_path, needed_path

if TYPE_CHECKING:
    from rich.console import RenderableType

    from prunescope.analysis.inputs.options import AnalyzeRequest, CompareRequest
    from prunescope.analysis.pipeline import Analysis, OnDone
    from prunescope.analysis.report.figures import Plots
    from prunescope.analysis.report.records import Records


class Report(Result, schema.Report, kw_only=True, dict=True):
    """The report of `analyze`.

    `report.phases["prefill"]` holds everything that is known of a phase. `report.gemms` and the
    other tables span all phases and become data frames.

    Examples:
        >>> report = prunescope.analyze("traces/first")
        >>> report.show()
        >>> report.ledger.to_polars()
        >>> report.save("first", formats=["md", "tex", "pdf"])
    """

    @classmethod
    def compute(
        cls, subject: Path, request: AnalyzeRequest | CompareRequest, on_done: OnDone | None = None
    ) -> Self:
        """Analyse one run or trace.

        Args:
            subject: The run or trace.
            request: The baseline, the options, and who does the work.
            on_done: Called with how many ranks are done, and how many there are.
        """
        from prunescope.analysis.pipeline import analyze, with_commands

        analysis = analyze(
            subject,
            baseline=as_path(request.baseline),
            options=request.options,
            jobs=request.jobs,
            engine=request.engine,
            on_done=on_done,
        )
        return cls.of(with_commands(analysis))

    @classmethod
    def of(cls, done: Analysis) -> Self:
        """Return the report of an analysis, which keeps the kernels frames for csv and parquet."""
        report = with_fields_of(done.report, cls)
        report.__dict__["_done"] = done
        return report

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read a report.json back.

        Args:
            path: The file.

        Raises:
            PrunescopeError: There is no such file, or it is not a report of this version.
        """
        file = needed_path(path)
        if not file.is_file():
            raise PrunescopeError(
                f"no such file: {file.name}", hint="give the report.json that analyze wrote"
            )
        return with_fields_of(schema.from_json(file.read_bytes(), where=file.name), cls)

    def append_to_history(
        self, path: Path | str, *, commit: str | None = None, model: str | None = None
    ) -> None:
        """Add a line for each phase to a history file, as `--history` does.

        Args:
            path: The file, which is made if it does not exist.
            commit: What was measured; None: the commit that CI or git names.
            model: The name of the model of a trace, which its file does not say.

        Raises:
            PrunescopeError: The file is no history, or cannot be written.
        """
        from prunescope.measured_history import add_to_history

        add_to_history(self, needed_path(path), commit=commit, model=model)

    def show(self, *, full: bool = False) -> None:
        """Print what `prunescope analyze` prints.

        Args:
            full: Whether every table and what was measured is printed, as with --full.
        """
        from prunescope.analysis.report.terminal import TerminalReport

        console_for(None).print(TerminalReport(self, full=full), crop=False)

    def save(
        self,
        folder: Path | str,
        formats: Sequence[str] | str = ("md", "json", "html"),
        *,
        label_prefix: str = "",
        width: str | float | None = None,
        font: str = "sans",
    ) -> list[Path]:
        """Write the report into a folder.

        Args:
            folder: The folder, which is made if it does not exist.
            formats: Formats as `--format` takes them, such as tex or csv.
            label_prefix: What every label in LaTeX begins with, so that several reports fit into
                one paper.
            width: The width that figures are drawn for: column, page, or mm.
            font: Their typeface: sans or serif.

        Returns:
            The paths of the files.

        Raises:
            PrunescopeError: A format is unknown, parquet or perfetto is asked of a report that was
                loaded, or the folder cannot be written.
        """
        from prunescope.analysis.report.formats import PhaseFrames, shows_hosts
        from prunescope.analysis.report.write import write_report

        names = format_names(formats)
        prefix: object = label_prefix
        if not isinstance(prefix, str):
            raise PrunescopeError(
                f"label_prefix is {reprlib.repr(prefix)}", hint="accepted: a text"
            )
        done: Analysis | None = self.__dict__.get("_done")
        frames = None
        if done is not None:
            hosts = done.hosts() if shows_hosts(names) else None
            held = done.held
            frames = PhaseFrames(
                held.pruned,
                held.dense,
                hosts,
                held.pruned_host,
                held.dense_host,
                held.dense_layers,
            )
        return write_report(
            self,
            needed_path(folder),
            formats=names,
            frames=frames,
            label_prefix=label_prefix,
            width=width,
            font=font,
        )

    def to_json(self) -> bytes:
        """Return the UTF-8 JSON of report.json, indented by two spaces."""
        return schema.to_json(self)

    @property
    def gemms(self) -> Records:
        """One row per GEMM: role, axis, M, N, K, times in ns per step."""
        return self._records("gemms")

    @property
    def ledger(self) -> Records:
        """One row per row of the ledger, and one for each of its parts, in ns per step."""
        return self._records("ledger")

    @property
    def ladder(self) -> Records:
        """One row per bound of the ladder."""
        return self._records("ladder")

    @property
    def kernels(self) -> Records:
        """One row per kernel name, largest first."""
        return self._records("kernels")

    @property
    def findings(self) -> Records:
        """One row per finding."""
        return self._records("findings")

    @property
    def roofline(self) -> Records:
        """One row per point of the roofline plot."""
        return self._records("roofline")

    @property
    def plot(self) -> Plots:
        """The figures.

        They are `report.plot.ledger()`, `.ladder()`, `.roofline()`, `.bounds()`, `.layers()`,
        `.waves()`, `.kinds()` and `.experts()`.
        """
        from prunescope.analysis.report.figures import Plots

        return Plots(self)

    def _records(self, name: str) -> Records:
        from prunescope.analysis.report import records

        table: Records = getattr(records, name)(self)
        return table

    def __repr__(self) -> str:
        from prunescope.analysis.report.notebook import brief

        return f"<Report {brief(self)}>"

    def __rich__(self) -> RenderableType:
        from prunescope.analysis.report.terminal import TerminalReport

        return TerminalReport(self)

    def _repr_html_(self) -> str:
        from prunescope.analysis.report.notebook import render_notebook

        return render_notebook(self)
