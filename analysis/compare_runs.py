"""Several runs side by side: runs, traces and folders of runs give a Comparison.

Each run is analysed as `analyze` does it, and nothing is computed anew. Times are ns per step.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from prunescope.taxonomy.scrubbed import scrubbed
from prunescope.taxonomy.timings import part

_PHASES = ("prefill", "decode", BARE)


@part("analyze")
def compare(
    subjects: Sequence[Path | NamedRun],
    *,
    baseline: Path | None = None,
    options: Options | None = None,
    jobs: int | None = 1,
    engine: str = "local",
    on_done: OnDone | None = None,
) -> Comparison:
    """Analyse every run against `baseline`, or each against its own.

    Args:
        subjects: Runs, traces and folders of runs.
        baseline: The dense run that all are compared with; None: each run's own.
        options: Options of each analysis.
        jobs: Processes that analyse a run each; None: one per core where that is worth it.
        engine: "local", or "ray" to run them on the workers of a cluster.
        on_done: Called with how many runs are done, and how many there are.

    Returns:
        The comparison, which lists a run that cannot be analysed in `failed`.

    Raises:
        PrunescopeError: No run can be analysed, or there is none.
    """
    runs = [s for s in subjects if isinstance(s, NamedRun)]
    runs += find_runs(s for s in subjects if isinstance(s, Path))
    options = options or Options()
    if not runs:
        raise PrunescopeError(
            "no run and no trace to compare", hint="name run folders, traces, or folders of runs"
        )
    if len(runs) > 1 and (options.eager_trace or options.baseline_eager_trace):
        raise PrunescopeError(
            "--eager-trace belongs to one trace, and several were given",
            hint="analyze that trace alone, or capture with `prunescope trace --mode graph`",
        )
    reports: dict[str, Report] = {}
    rows: list[ComparisonRow] = []
    failed: list[FailedCandidate] = []
    error: PrunescopeError | None = None
    count = jobs_for(jobs, (_file_bytes(run.path) for run in runs), engine)
    analyses = _analyses(runs, baseline, options, count, engine)
    for number, run in enumerate(runs):
        if on_done is not None:
            on_done(number, len(runs))
        try:
            report = next(analyses)()
        except PrunescopeError as problem:
            error = problem
            failed.append(FailedCandidate(run=run.name, why=problem.problem))
            continue
        reports[run.name] = report
        rows += [_row(run.name, report, phase) for phase in report.phases]
    if error is not None and not rows:
        with errors_about(failed[-1].run) if len(runs) > 1 else nullcontext():
            raise error
    first = next(iter(reports.values()), None)
    compared = Comparison(
        tool=TOOL,
        baseline=first.baseline if first and baseline is not None else None,
        rows=sorted(rows, key=_sort_key),
        failed=failed,
        warnings=_said_once({name: report.warnings for name, report in reports.items()}),
        reports=reports,
    )
    return scrubbed(compared)


def _said_once(warnings: Mapping[str, list[str]]) -> list[str]:
    """Return the warnings of all runs, each once behind the names of those that it is about."""
    about: dict[str, list[str]] = {}
    for name, texts in warnings.items():
        for text in texts:
            about.setdefault(text, []).append(name)
    every = len(warnings) > 1
    return [
        f"{'all runs' if every and len(names) == len(warnings) else ', '.join(names)}: {text}"
        for text, names in about.items()
    ]


def _file_bytes(path: Path) -> int:
    """Return the bytes of a trace, or of the files of a run and its baseline."""
    if not path.is_dir():
        return path.stat().st_size if path.is_file() else 0
    return sum(file.stat().st_size for file in path.rglob("*.json*") if file.is_file())


def _analyses(
    runs: Sequence[NamedRun], baseline: Path | None, options: Options, jobs: int, engine: str
) -> Iterator[Callable[[], Report]]:
    """Yield a call for each run, in order, that gives its report or raises its error."""
    if len(runs) < 2 or (jobs < 2 and engine == "local"):
        for run in runs:
            yield partial(_analyse, run.path, baseline, options)
        return
    dense = None if baseline is None else str(baseline)
    plain = plain_options(options)
    tasks = [RunTask(str(run.path), dense, plain) for run in runs]
    for result in run_tasks(run_task, tasks, Report, jobs=jobs, engine=engine):
        yield partial(_result_or_raise, result)


def _analyse(path: Path, baseline: Path | None, options: Options) -> Report:
    """Analyse one run in this process."""
    return analyze(path, baseline=baseline, options=options).report


def _result_or_raise(result: Report | PrunescopeError) -> Report:
    """Return the result of a task, or raise its error."""
    if isinstance(result, PrunescopeError):
        raise result
    return result


class RunTask(msgspec.Struct):
    """A run to be analysed in another process."""

    path: str
    baseline: str | None
    options: dict[str, Any]


def run_task(task: RunTask) -> Report:
    """Analyse a run in another process."""
    baseline = None if task.baseline is None else Path(task.baseline)
    return _analyse(Path(task.path), baseline, Options(**task.options))


def _row(name: str, report: Report, phase_name: str) -> ComparisonRow:
    """Return the row of one phase of a run.

    Dense and pruned are shown in the same time base: unprofiled where both sides have samples, else
    profiled.
    """
    phase = report.phases[phase_name]
    workload = phase.workload or None
    dense = phase.baseline
    wall, interval, timed = phase.wall_ns, None, "profiled"
    wall_dense = dense.wall_ns if dense else None
    # Dense and pruned are shown in the same time base, or the two would be no ratio.
    if phase.unprofiled_ns and (dense is None or dense.unprofiled_ns):
        wall, interval, timed = phase.unprofiled_ns.median, phase.unprofiled_ns.ci95, "unprofiled"
        wall_dense = dense.unprofiled_ns.median if dense and dense.unprofiled_ns else None
    return ComparisonRow(
        run=name,
        model=_text_or_none(report.subject.get("model")),
        method=_text_or_none(report.subject.get("method")),
        display_name=_text_or_none(report.subject.get("display_name")),
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


def _text_or_none(value: object) -> str | None:
    """Return a value that is a text; None for any other."""
    return value if isinstance(value, str) else None


def _sort_key(row: ComparisonRow) -> tuple[object, ...]:
    """Return the key by which rows are sorted: model, phase, sizes, method, sparsity, name."""
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
    """Return the default folder of a comparison, inside the one folder that was named.

    Returns None where several paths were named, or no folder.
    """
    if len(subjects) == 1 and subjects[0].is_dir():
        return Path(os.path.normpath(subjects[0])) / "comparison"
    return None
