"""The command `analyze`: one subject gives its report, several give one table and one figure.

Nothing is written before every subject was analysed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from prunescope.analysis.compare import NamedRun, compare, comparison_folder, find_runs, left_out
from prunescope.analysis.inputs.side import Options
from prunescope.analysis.report.escape import clean
from prunescope.analysis.report.write import check_formats
from prunescope.analysis.schema.comparison import Comparison, to_json
from prunescope.deliver import Delivery, deliver, format_names
from prunescope.output import check_target, console_for, counting, emit_json
from prunescope.taxonomy.errors import PrunescopeError


def deliver_all(
    subjects: Sequence[Path], to: Delivery, *, options: Options, baseline: Path | None = None
) -> bool:
    """Analyze one subject, or compare several (and the runs of a folder that is none itself).

    Returns whether anything is partial: a trace that is cut off, a subject without a row.
    """
    found = find_runs(subjects)
    if len(found) == 1:
        for note in left_out(subjects):
            console_for("-").print(f"note: {note}", markup=False, soft_wrap=True)
        return deliver(found[0].path, to, options=options, baseline=baseline).partial
    done = deliver_comparison(subjects, found, to, options=options, baseline=baseline)
    return bool(done.failed) or any(report.partial for report in done.reports.values())


def deliver_comparison(
    subjects: Sequence[Path],
    found: Sequence[NamedRun],
    to: Delivery,
    *,
    options: Options,
    baseline: Path | None = None,
) -> Comparison:
    """Compare the runs `found` in `subjects`, write and show the comparison.

    Raises PrunescopeError before any writing.
    """
    from prunescope.analysis.report.comparison import (
        COMPARISON_FORMATS,
        comparison_sheet,
        write_comparison,
    )

    check_target(to.json)
    if options.eager_trace or options.baseline_eager_trace:
        raise PrunescopeError(
            "--eager-trace names the pass of one trace, and several subjects were given",
            hint="analyze that trace alone, or capture with `prunescope trace --mode graph`",
        )
    names = format_names(to.formats)
    check_formats(names, COMPARISON_FORMATS)
    folder = to.folder or comparison_folder(subjects)
    to.check_folder(folder, unasked="of several subjects")
    with counting("runs") as on_done:
        done = compare(found, baseline=baseline, options=options, on_done=on_done, **to.processes)
    done.warnings[:0] = left_out(subjects)
    if folder is not None:
        write_comparison(done, folder, formats=names, label_prefix=to.label_prefix)
    emit_json(to_json(done), to.json)
    if not to.quiet:
        console = console_for(to.json)
        console.print(comparison_sheet(done))
        if folder is not None:
            console.print(f"Written to {clean(str(folder))}", markup=False, soft_wrap=True)
    return done
