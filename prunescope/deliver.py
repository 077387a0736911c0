"""The command `analyze`: from runs and traces to a report, or a comparison of several, in its
folder, in JSON and on screen.

Nothing is written before the whole analysis is done, and nothing next to a trace file unasked.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

from rich.console import RenderableType

from prunescope.analysis.compare_runs import compare, comparison_folder
from prunescope.analysis.inputs.options import CompareRequest
from prunescope.analysis.named_runs import NamedRun, describe_left_out, find_runs
from prunescope.analysis.pipeline import analyze
from prunescope.analysis.report.escape import clean
from prunescope.analysis.report.formats import shows_hosts
from prunescope.analysis.report.terminal import TerminalReport
from prunescope.analysis.report.write import DEFAULT_FORMATS, check_formats, write_report
from prunescope.analysis.schema import comparison as comparison_schema
from prunescope.analysis.schema.comparison import Comparison
from prunescope.analysis.schema.report import Report, to_json
from prunescope.output import check_target, console_for, progress_bar, write_json
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.option import as_path
from prunescope.taxonomy.runs.run import MANIFEST
from prunescope.taxonomy.scrub import scrub_all

FORMATS = ",".join(DEFAULT_FORMATS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Delivery:
    """The outputs of a command. `folder`: of the files, None for the default; `formats`:
    comma-separated, None for the default; `json`: a file or "-"; `label_prefix`: of labels in
    LaTeX; `full`: every table on screen; `quiet`: nothing there."""

    folder: Path | None = None
    formats: str | None = None
    json: str | None = None
    label_prefix: str = ""
    full: bool = False
    quiet: bool = False

    def check_folder(self, folder: Path | None, *, subject: str) -> None:
        """Raises PrunescopeError where formats were named and there is no folder for them."""
        if self.formats and folder is None:
            raise PrunescopeError(
                f"--format names files, but {subject} has no folder of its own to write them to",
                hint="add --out FOLDER",
            )

    def show(self, view: RenderableType, folder: Path | None) -> None:
        """Print the result, and where it was written."""
        if self.quiet:
            return
        console = console_for(self.json)
        console.print(view)
        if folder is not None:
            console.print(f"Written to {clean(str(folder))}", markup=False, soft_wrap=True)


def deliver_all(request: CompareRequest, to: Delivery) -> bool:
    """Analyze one subject, or compare several (and the runs of a folder that is none itself).

    Returns whether anything is partial: a trace that is cut off, a subject without a row.
    """
    found = find_runs(request.paths)
    if len(found) == 1:
        for note in scrub_all(describe_left_out(request.paths)):
            console_for("-").print(f"note: {note}", markup=False, soft_wrap=True)
        return deliver(request, found[0].path, to).partial
    done = deliver_comparison(request, found, to)
    return bool(done.failed) or any(report.partial for report in done.reports.values())


def deliver(request: CompareRequest, subject: Path, to: Delivery) -> Report:
    """Analyze `subject`, write and show the report. Raises PrunescopeError before any writing."""
    check_target(to.json)
    names = format_names(to.formats)
    check_formats(names)
    folder = to.folder or report_folder(subject)
    to.check_folder(folder, subject="a trace")
    with progress_bar("ranks") as on_done:
        done = analyze(
            subject,
            baseline=as_path(request.baseline),
            options=request.options,
            jobs=request.jobs,
            engine=request.engine,
            on_done=on_done,
        )
    if folder is not None:
        write_report(
            done.report,
            folder,
            formats=names,
            frames=done.frames,
            label_prefix=to.label_prefix,
            hosts=done.hosts() if shows_hosts(names) else None,
        )
    write_json(to_json(done.report), to.json)
    to.show(TerminalReport(done.report, full=to.full), folder)
    return done.report


def answers(folder: Path) -> dict[str, str]:
    """The summary of each phase of a capture; none where it cannot be analysed."""
    try:
        return {name: phase.summary for name, phase in analyze(folder).report.phases.items()}
    except PrunescopeError:
        return {}


def deliver_comparison(
    request: CompareRequest, found: Sequence[NamedRun], to: Delivery
) -> Comparison:
    """Compare the runs `found` among the subjects, write and show the comparison.

    Raises PrunescopeError before any writing.
    """
    from prunescope.analysis.report.comparison import (
        COMPARISON_FORMATS,
        comparison_sheet,
        write_comparison,
    )

    check_target(to.json)
    names = format_names(to.formats)
    check_formats(names, COMPARISON_FORMATS)
    folder = to.folder or comparison_folder(request.paths)
    to.check_folder(folder, subject="a comparison")
    with progress_bar("runs") as on_done:
        done = compare(
            found,
            baseline=as_path(request.baseline),
            options=request.options,
            jobs=request.jobs,
            engine=request.engine,
            on_done=on_done,
        )
    done.warnings[:0] = scrub_all(describe_left_out(request.paths))
    if folder is not None:
        write_comparison(done, folder, formats=names, label_prefix=to.label_prefix)
    write_json(comparison_schema.to_json(done), to.json)
    to.show(comparison_sheet(done), folder)
    return done


def format_names(formats: str | None) -> list[str]:
    """The names in a comma-separated list; the default ones for None.

    Raises PrunescopeError where the list names nothing.
    """
    names = [name.strip() for name in (FORMATS if formats is None else formats).split(",")]
    names = [name for name in names if name]
    if not names:
        raise PrunescopeError("--format names no format", hint=f"for example --format {FORMATS}")
    return names


def report_folder(subject: Path) -> Path | None:
    """The default folder of the report of `subject`.

    F/report for F and F/pruned alike (and F/dense where it is alone); `report` inside any other
    run; None for a trace file or a folder of them.
    """
    if not subject.is_dir() or not any(
        (subject / name / MANIFEST).is_file() for name in (".", "pruned", "dense")
    ):
        return None
    name = Path(os.path.abspath(subject)).name  # noqa: PTH100 - Path.absolute() keeps ".."
    alone = name == "dense" and not (subject / ".." / "pruned").exists()
    if (subject / MANIFEST).is_file() and (name == "pruned" or alone):
        folder = Path(os.path.normpath(subject / ".." / "report"))
    else:
        folder = subject / "report"
    if folder.is_symlink():  # the run may be a stranger's, and the target anything
        raise PrunescopeError(
            f"{subject.name}/report is a link, and nothing is written through it",
            hint="remove the link, or name a folder with --out",
        )
    return folder
