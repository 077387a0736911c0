"""The command `analyze`: from runs and traces to a report, or a comparison of several.

Either goes into its folder, into JSON and onto the screen. Nothing is written before the whole
analysis is done, and nothing next to a trace file unasked.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from rich.console import RenderableType

from prunescope.analysis.compare_runs import comparison_folder
from prunescope.analysis.history.history_file import check_history
from prunescope.analysis.inputs.options import CompareRequest
from prunescope.analysis.named_runs import describe_left_out, find_runs
from prunescope.analysis.report.escape import clean
from prunescope.analysis.report.formats import FORMATS
from prunescope.analysis.report.printing import printing_of
from prunescope.analysis.report.terminal import TerminalReport
from prunescope.analysis.report.titles import page_link
from prunescope.analysis.report.write import DEFAULT_FORMATS, check_formats
from prunescope.analysis.schema import report as schema
from prunescope.analysis.summary.paragraph import sort_for_reading
from prunescope.measured_history import add_to_history
from prunescope.output import check_target, console_for, progress_bar, write_json
from prunescope.output_options import AnalyzeOutputs
from prunescope.results.comparison import Comparison
from prunescope.results.report import Report
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.runs.run import MANIFEST
from prunescope.taxonomy.scrub import scrub_all
from prunescope.taxonomy.timings import part


@dataclasses.dataclass(frozen=True, kw_only=True)
class Delivery:
    """The outputs of a command.

    Attributes:
        folder: The folder of the files; None: the default one of what is analysed.
        formats: The formats, separated by commas; None: the default ones.
        json: A file for the JSON, or "-" for standard output; None: no JSON.
        look: How figures are printed, and what every label in LaTeX begins with.
        full: Whether every table is printed.
        history: The file that a line of each phase is added to; None: none.
        commit: What was measured; None: the commit that CI or git names.
    """

    folder: Path | None = None
    formats: str | None = None
    json: str | None = None
    look: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    full: bool = False
    history: Path | None = None
    commit: str | None = None

    @classmethod
    def of(cls, outputs: AnalyzeOutputs, json: str | None) -> Delivery:
        """Return the outputs that the options of a command name."""
        return cls(
            folder=outputs.out,
            formats=outputs.formats,
            json=json,
            look=outputs.look,
            full=outputs.full,
            history=outputs.history,
            commit=outputs.commit,
        )

    def remember(self, reports: Iterable[schema.Report], model: str | None) -> None:
        """Add the phases of reports to the history, if one was named."""
        if self.history is not None:
            for report in reports:
                add_to_history(report, self.history, commit=self.commit, model=model)

    def prepare(
        self, known: Collection[str], default: Callable[[], Path | None], *, subject: str
    ) -> tuple[list[str], Path | None]:
        """Refuse, before any work is done, outputs that can never be written.

        Args:
            known: The formats that there are.
            default: A function that returns the folder if none was named; None: nothing is written.
            subject: What has no folder of its own, for the error message.

        Returns:
            The names of the formats, and the folder.

        Raises:
            PrunescopeError: A format is unknown, the file for the JSON cannot be written, or
                formats were named and there is no folder for them.
        """
        check_target(self.json)
        if self.history is not None:
            check_history(self.history)
        names = format_names(self.formats)
        check_formats(names, known)
        printing_of(names, **self.look)
        folder = self.folder or default()
        if self.formats and folder is None:
            raise PrunescopeError(
                f"--format names files, but {subject} has no folder of its own to write them to",
                hint="add --out FOLDER",
            )
        return names, folder

    def hand_over(
        self,
        result: Report | Comparison,
        view: RenderableType,
        names: list[str],
        folder: Path | None,
    ) -> None:
        """Write a result as files and as JSON, and print it."""
        if folder is not None:
            result.save(folder, names, **self.look)
        if self.json is not None:
            write_json(result.to_json(), self.json)
        page = _page(result) if "html" in names else ""
        self.show(view, folder, page)

    @part("write")
    def show(self, view: RenderableType, folder: Path | None, page: str) -> None:
        """Print the result, where it was written, and the link that opens its largest cause."""
        console = console_for(self.json)
        console.print(view, crop=False)  # code of repairs is wider than some terminals
        if folder is not None:
            console.print(f"Written to {clean(str(folder))}", markup=False, soft_wrap=True)
        if folder is not None and page:
            console.print(clean(str(folder / page)), markup=False, soft_wrap=True)


def _page(result: Report | Comparison) -> str:
    """Return the link into the page of a report; empty for a comparison."""
    if isinstance(result, Comparison) or not result.phases:
        return ""
    return page_link(result, next(iter(sort_for_reading(result.phases))))


def deliver_all(request: CompareRequest, to: Delivery) -> bool:
    """Analyse one subject, or compare several (and the runs of a folder that is not itself a run).

    Returns:
        Whether anything is partial: a trace is cut off, or a subject has no row.

    Raises:
        PrunescopeError: Nothing can be analysed, or an output cannot be written.
    """
    runs = find_runs(request.paths)
    if len(runs) == 1:
        for note in scrub_all(describe_left_out(request.paths)):
            console_for("-").print(f"note: {note}", markup=False, soft_wrap=True)
        return deliver(request, runs[0].path, to).partial
    comparison = _deliver_comparison(request, to)
    reports = comparison.reports.values()
    return bool(comparison.failed) or any(report.partial for report in reports)


def deliver(request: CompareRequest, subject: Path, to: Delivery) -> Report:
    """Analyse `subject`, write the report and print it.

    Raises:
        PrunescopeError: The subject cannot be analysed, or an output cannot be written. Nothing is
            written then.
    """
    names, folder = to.prepare(FORMATS, lambda: report_folder(subject), subject="a trace")
    with progress_bar("ranks") as on_done:
        report = Report.compute(subject, request, on_done)
    to.hand_over(report, TerminalReport(report, full=to.full), names, folder)
    to.remember([report], request.model)
    return report


def _deliver_comparison(request: CompareRequest, to: Delivery) -> Comparison:
    """Compare the subjects, write the comparison and print it."""
    from prunescope.analysis.report.comparison import COMPARISON_FORMATS

    names, folder = to.prepare(
        COMPARISON_FORMATS, lambda: comparison_folder(request.paths), subject="a comparison"
    )
    with progress_bar("runs") as on_done:
        comparison = Comparison.compute(request, on_done)
    to.hand_over(comparison, comparison.__rich__(), names, folder)
    to.remember(comparison.reports.values(), request.model)
    return comparison


def format_names(formats: str | None) -> list[str]:
    """Return the names in a list with commas; the default ones for None.

    Raises:
        PrunescopeError: The list names nothing.
    """
    if formats is None:
        return list(DEFAULT_FORMATS)
    names = [name.strip() for name in formats.split(",") if name.strip()]
    if not names:
        hint = f"for example --format {','.join(DEFAULT_FORMATS)}"
        raise PrunescopeError("--format names no format", hint=hint)
    return names


def report_folder(subject: Path) -> Path | None:
    """Return the default folder of the report of `subject`.

    It is F/report for F and F/pruned alike (and for F/dense if that is alone), and `report` inside
    any other run; None for a trace file or a folder of traces.

    Raises:
        PrunescopeError: The folder is a link.
    """
    if not subject.is_dir() or not any(
        (subject / name / MANIFEST).is_file() for name in (".", "pruned", "dense")
    ):
        return None
    name = Path(os.path.abspath(subject)).name  # noqa: PTH100 - Path.absolute() keeps ".."
    is_alone = name == "dense" and not (subject / ".." / "pruned").exists()
    if (subject / MANIFEST).is_file() and (name == "pruned" or is_alone):
        folder = Path(os.path.normpath(subject / ".." / "report"))
    else:
        folder = subject / "report"
    if folder.is_symlink():  # the run may be a stranger's, and the target anything
        raise PrunescopeError(
            f"{subject.name}/report is a link, and nothing is written through it",
            hint="remove the link, or name a folder with --out",
        )
    return folder
