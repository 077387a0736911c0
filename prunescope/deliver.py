"""The command `analyze`: from a run or a trace to a report in its folder, in JSON and on screen.

Nothing is written before the whole analysis is done, and nothing beside a trace file unasked.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

from prunescope.analysis.pipeline import Options, analyze
from prunescope.analysis.report.escape import clean
from prunescope.analysis.report.formats import shows_hosts
from prunescope.analysis.report.terminal import print_report
from prunescope.analysis.report.write import DEFAULT_FORMATS, check_formats, write_report
from prunescope.analysis.schema.report import Report, to_json
from prunescope.output import check_target, console_for, counting, emit_json
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.run import MANIFEST

FORMATS = ",".join(DEFAULT_FORMATS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Delivery:
    """`folder`: where the files go, None for the default; `formats`: comma-separated, None for the
    default; `json`: a file or "-"; `label_prefix`: of labels in LaTeX; `quiet`: nothing for
    people; `jobs`: processes, None for one a core, of `engine`."""

    folder: Path | None = None
    formats: str | None = None
    json: str | None = None
    label_prefix: str = ""
    quiet: bool = False
    jobs: int | None = None
    engine: str = "local"

    @property
    def processes(self) -> dict[str, Any]:
        """Who analyses, as `analyze` and `compare` take it."""
        return {"jobs": self.jobs, "engine": self.engine}

    def check_folder(self, folder: Path | None, *, unasked: str) -> None:
        """Raises PrunescopeError where formats were named and there is no folder for them;
        `unasked`: of what nothing is written."""
        if self.formats and folder is None:
            raise PrunescopeError(
                f"--format names files, but {unasked} nothing is written unasked",
                hint="add --out FOLDER",
            )


def deliver(
    subject: Path, to: Delivery, *, options: Options, baseline: Path | None = None
) -> Report:
    """Analyze `subject`, write and show the report. Raises PrunescopeError before any writing."""
    check_target(to.json)
    names = format_names(to.formats)
    check_formats(names)
    folder = to.folder or report_folder(subject)
    to.check_folder(folder, unasked="beside a trace")
    with counting("ranks") as on_done:
        done = analyze(subject, baseline=baseline, options=options, on_done=on_done, **to.processes)
    if folder is not None:
        hosts = done.hosts() if shows_hosts(names) else None
        write_report(
            done.report,
            folder,
            formats=names,
            frames=done.frames,
            label_prefix=to.label_prefix,
            hosts=hosts,
        )
    emit_json(to_json(done.report), to.json)
    if not to.quiet:
        console = console_for(to.json)
        print_report(done.report, console)
        if folder is not None:
            console.print(f"Written to {clean(str(folder))}", markup=False, soft_wrap=True)
    return done.report


def format_names(formats: str | None) -> list[str]:
    """The names in a comma-separated list; the usual ones for None.

    Raises PrunescopeError where the list names nothing.
    """
    names = [name.strip() for name in (FORMATS if formats is None else formats).split(",")]
    names = [name for name in names if name]
    if not names:
        raise PrunescopeError("--format names no format", hint=f"for example --format {FORMATS}")
    return names


def report_folder(subject: Path) -> Path | None:
    """Where the report of `subject` goes by default.

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
        place = Path(os.path.normpath(subject / ".." / "report"))
    else:
        place = subject / "report"
    if place.is_symlink():  # the run may be a stranger's, and the target anything
        raise PrunescopeError(
            f"{subject.name}/report is a link, and nothing is written through it",
            hint="remove the link, or name a folder with --out",
        )
    return place
