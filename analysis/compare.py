"""Several runs side by side: in, runs, traces and folders of runs; out, a Comparison.

Each run is analysed as `analyze` does it; nothing is computed anew. Times are ns a step.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from prunescope.analysis.inputs.options import Options
from prunescope.analysis.inputs.side import BARE
from prunescope.analysis.named_runs import NamedRun, find_runs
from prunescope.analysis.pipeline import TOOL, OnDone, analyze
from prunescope.analysis.pool import jobs_for, run_tasks
from prunescope.analysis.rank_jobs import plain_options
from prunescope.analysis.schema.comparison import Comparison, ComparisonRow, FailedCandidate
from prunescope.analysis.schema.report import Report, is_beyond_noise
from prunescope.taxonomy.errors import PrunescopeError, errors_about
from prunescope.taxonomy.formats import scrubbed
from prunescope.taxonomy.run import PhaseRun

_PHASES = ("prefill", "decode", BARE)


def compare(
    subjects: Sequence[Path | NamedRun],
    *,
    baseline: Path | None = None,
    options: Options | None = None,
    jobs: int | None = 1,
    engine: str = "local",
    on_done: OnDone | None = None,
) -> Comparison:
    """Analyze every run against `baseline`, or each against its own where that is None.

    `jobs`: processes that analyse a run each, None for one a core where that is worth it; `engine`:
    "ray" has them on the workers of a cluster; `on_done` is called with how many are done, of all.

    A run that cannot be analysed is listed in `failed`. Raises PrunescopeError where none can.
    """
    found = [s for s in subjects if isinstance(s, NamedRun)]
    found += find_runs(s for s in subjects if isinstance(s, Path))
    options = options or Options()
    if not found:
        raise PrunescopeError(
            "no run and no trace to compare", hint="name run folders, traces, or folders of runs"
        )
    if len(found) > 1 and (options.eager_trace or options.baseline_eager_trace):
        raise PrunescopeError(
            "--eager-trace belongs to one trace, and several were given",
            hint="analyze that trace alone, or capture with `prunescope trace --mode graph`",
        )
    reports: dict[str, Report] = {}
    rows: list[ComparisonRow] = []
    failed: list[FailedCandidate] = []
    error: PrunescopeError | None = None
    count = jobs_for(jobs, (_size(one.path) for one in found), engine)
    done = _reports(found, baseline, options, count, engine)
    for number, one in enumerate(found):
        if on_done is not None:
            on_done(number, len(found))
        try:
            analysed = next(done)()
        except PrunescopeError as problem:
            error = problem
            failed.append(FailedCandidate(run=one.name, why=problem.problem))
            continue
        reports[one.name] = analysed.report
        rows += [_row(one.name, analysed, phase) for phase in analysed.report.phases]
    if error is not None and not rows:
        with errors_about(failed[-1].run) if len(found) > 1 else nullcontext():
            raise error
    first = next(iter(reports.values()), None)
    compared = Comparison(
        tool=TOOL,
        baseline=first.baseline if first and baseline is not None else None,
        rows=sorted(rows, key=_order),
        failed=failed,
        warnings=[f"{name}: {w}" for name, report in reports.items() for w in report.warnings],
        reports=reports,
    )
    return scrubbed(compared)


def _size(path: Path) -> int:
    """Bytes of a trace, or of the files of a run and its baseline."""
    if not path.is_dir():
        return path.stat().st_size if path.is_file() else 0
    return sum(file.stat().st_size for file in path.rglob("*.json*") if file.is_file())


def _reports(
    found: Sequence[NamedRun], baseline: Path | None, options: Options, jobs: int, engine: str
) -> Iterator[Callable[[], AnalysedRun]]:
    """A call for each run, in order, that gives its report or raises its error."""
    if len(found) < 2 or (jobs < 2 and engine == "local"):
        for one in found:
            yield partial(_report, one.path, baseline, options)
        return
    against = None if baseline is None else str(baseline)
    plain = plain_options(options)
    tasks = [RunTask(str(one.path), against, plain) for one in found]
    for result in run_tasks(run_task, tasks, AnalysedRun, jobs=jobs, engine=engine):
        yield partial(_report_or_raise, result)


class _Workload(msgspec.Struct):
    """Inputs of a phase as its manifest has them."""

    batch: int
    prompt_len: int
    context: int


class AnalysedRun(msgspec.Struct):
    """A report, and the workload of each phase of a run with a manifest."""

    report: Report
    workloads: dict[str, _Workload]


def _report(path: Path, baseline: Path | None, options: Options) -> AnalysedRun:
    found = analyze(path, baseline=baseline, options=options)
    run = found.side.run if found.side is not None else None
    phases: dict[str, PhaseRun] = {} if run is None else run.phases
    workloads = {
        name: _Workload(phase.batch, phase.prompt_len, phase.context)
        for name, phase in phases.items()
    }
    return AnalysedRun(found.report, workloads)


def _report_or_raise(result: AnalysedRun | PrunescopeError) -> AnalysedRun:
    if isinstance(result, PrunescopeError):
        raise result
    return result


class RunTask(msgspec.Struct):
    """A run to be analysed in another process."""

    path: str
    baseline: str | None
    options: dict[str, Any]


def run_task(task: RunTask) -> AnalysedRun:
    """The report of a run, in another process."""
    baseline = None if task.baseline is None else Path(task.baseline)
    return _report(Path(task.path), baseline, Options(**task.options))


def _row(name: str, analysed: AnalysedRun, phase_name: str) -> ComparisonRow:
    report, workload = analysed.report, analysed.workloads.get(phase_name)
    phase = report.phases[phase_name]
    dense = phase.baseline
    wall, interval, timed = phase.wall_ns, None, "profiled"
    wall_dense = dense.wall_ns if dense else None
    # Dense and pruned are shown in the same time base, or the two would be no ratio.
    if phase.unprofiled_ns and (dense is None or dense.unprofiled_ns):
        wall, interval, timed = phase.unprofiled_ns.median, phase.unprofiled_ns.ci95, "unprofiled"
        wall_dense = dense.unprofiled_ns.median if dense and dense.unprofiled_ns else None
    return ComparisonRow(
        run=name,
        model=_text(report.subject.get("model")),
        method=_text(report.subject.get("method")),
        family=phase.family.id if phase.family else None,
        phase=phase_name,
        batch=workload.batch if workload else None,
        prompt_len=workload.prompt_len if workload else None,
        context=workload.context if workload else None,
        sparsity=phase.sparsity,
        timed=timed,
        wall_ns=wall,
        wall_ci95=interval,
        dense_wall_ns=wall_dense,
        tokens_per_s=phase.tokens_per_s,
        dense_tokens_per_s=dense.tokens_per_s if dense else None,
        items_per_s=phase.items_per_s,
        dense_items_per_s=dense.items_per_s if dense else None,
        pass_kind=phase.pass_kind,
        weight_bytes=phase.weight_bytes,
        dense_weight_bytes=dense.weight_bytes if dense else None,
        kv_bytes=phase.kv_bytes,
        dense_kv_bytes=dense.kv_bytes if dense else None,
        peak_memory_bytes=phase.peak_memory_bytes,
        dense_peak_memory_bytes=dense.peak_memory_bytes if dense else None,
        ladder=phase.ladder,
        ledger={r.row: r.ns for r in phase.ledger if r.ns is not None} if phase.ledger else None,
        critical=[f.id for f in phase.findings if f.severity == "critical"],
        comparable=phase.is_speedup,
        no_evidence=[r.row for r in phase.ledger or () if r.ns and not is_beyond_noise(r)],
        token_ids=phase.token_ids,
    )


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _order(row: ComparisonRow) -> tuple[object, ...]:
    phase = _PHASES.index(row.phase) if row.phase in _PHASES else len(_PHASES)
    nominal = row.sparsity.get("nominal")
    return (
        row.model or "",
        phase,
        row.phase,
        row.batch or 0,
        row.prompt_len or 0,
        row.method or row.family or "",
        nominal if nominal is not None else -1.0,
        row.run,
    )


def comparison_folder(subjects: Sequence[Path]) -> Path | None:
    """The default folder of a comparison: the one folder that was named."""
    if len(subjects) == 1 and subjects[0].is_dir():
        return Path(os.path.normpath(subjects[0])) / "comparison"
    return None
