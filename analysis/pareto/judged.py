"""The results of a sweep as points of speed against loss.

In: what a sweep planned, what came of it, and the reports of its runs. Out: a Pareto, which tells
who wins where. The loss of a run is the `quality` of its manifest, measured on the same model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import msgspec

from prunescope.analysis.pareto.cells import recompute
from prunescope.analysis.pareto.points import point_of
from prunescope.analysis.schema.pareto import (
    FailedResult,
    Pareto,
    ParetoPhase,
    SweepCell,
    SweepPoint,
    SweepSubject,
    TextLoss,
)
from prunescope.analysis.schema.report import TOOL, Report
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.families import families
from prunescope.taxonomy.formats import plain
from prunescope.taxonomy.runs.run import Run, read_run
from prunescope.taxonomy.runs.run_blocks import Recovered
from prunescope.taxonomy.runs.run_setting import RunSetting
from prunescope.taxonomy.runs.sweep_files import (
    DONE,
    FAILED,
    PENDING,
    RUNNING,
    SweepFile,
    SweepResult,
)
from prunescope.taxonomy.scrubbed import scrubbed

_AnyLoss = TypeVar("_AnyLoss", bound=TextLoss)


class _Measured(msgspec.Struct, kw_only=True):
    """The measurement of one run: its point, and the time of its dense baseline for the cell."""

    point: SweepPoint
    dense_ns: float | None
    subject: SweepSubject
    busy: bool  # the machine had other work, or the times vary too much


def judge_sweep(
    folder: Path,
    sweep: SweepFile,
    controls: Sequence[Recovered],
    report_of: Callable[[Path], Report],
    *,
    on_result: Callable[[str], None] | None = None,
) -> Pareto:
    """Compare the results of a sweep whose file was read.

    Args:
        folder: The folder that the runs of its results are relative to.
        sweep: What was planned, and what came of it.
        controls: The trainings of the dense model.
        report_of: Gives the report of a run's folder.
        on_result: The function to call with the id of each result before it is analysed, or None.

    Returns:
        The comparison, without secrets and paths.

    Raises:
        PrunescopeError: No result is done.
    """
    measured: dict[str, list[_Measured]] = {}
    failed = [
        FailedResult(id=e.id, error=e.error or "unknown")
        for e in sweep.results
        if e.state == FAILED
    ]
    for entry in sweep.results:
        if entry.state != DONE:
            continue
        if on_result is not None:
            on_result(entry.id)
        try:
            run_folder = _run_folder(folder, entry)
            run, report = read_run(run_folder), report_of(run_folder)
            name = sweep.names.get(entry.family)
            result = _measure(entry, run, report, controls, name)
            measured.setdefault(entry.phase, []).append(result)
        except PrunescopeError as error:
            failed.append(FailedResult(id=entry.id, error=error.problem))
    if not measured:
        first = f" ({failed[0].id}: {failed[0].error})" if failed else ""
        raise PrunescopeError(
            f"{folder} has no result that is done{first}",
            hint="run the same `prunescope sweep` again; sweep.json lists its errors",
        )
    subject = next(iter(measured.values()))[0].subject
    phases = {phase: _collect_phase(runs) for phase, runs in measured.items()}
    return scrubbed(
        recompute(
            Pareto(
                tool=TOOL,
                subject=msgspec.structs.replace(
                    subject, select=sweep.config.get("select"), config=sweep.config
                ),
                phases=phases,
                failed=failed,
                pending=sum(e.state in (PENDING, RUNNING) for e in sweep.results),
                notes=[
                    *sweep.notes,
                    *_busy_note([m for runs in measured.values() for m in runs]),
                    *_retried_note(sweep),
                ],
            )
        )
    )


def _busy_note(runs: list[_Measured]) -> list[str]:
    busy = sum(run.busy for run in runs)
    if not busy:
        return []
    return [
        f"{busy} of {len(runs)} results were timed while other work ran, or vary too much: their "
        "times are not valid"
    ]


def _retried_note(sweep: SweepFile) -> list[str]:
    """Return a note on the results that were measured again, as their times were not valid."""
    retried = [entry.id for entry in sweep.results if entry.retried]
    if not retried:
        return []
    return [f"measured again, as their times were not valid: {', '.join(retried)}"]


def _measure(
    entry: SweepResult,
    run: Run,
    report: Report,
    controls: Sequence[Recovered],
    display_name: str | None,
) -> _Measured:
    phase = report.phases.get(entry.phase)
    if phase is None or phase.ladder is None:
        raise PrunescopeError(
            f"{entry.id} has no dense baseline in {entry.phase}",
            hint="remove the run and sweep again",
        )
    if wrong := next(_not_of_run(entry, run), None):
        raise PrunescopeError(
            f"{entry.id} is planned with {wrong}", hint="restore sweep.json, or sweep again"
        )
    dense = phase.baseline.unprofiled_ns if phase.baseline else None
    subject = SweepSubject(
        model=run.model.id,
        device=report.device.get("name"),
        dtype=run.dtype,
        threads=run.device.threads,
        versions=run.versions,
        text=plain(run.quality.text) if run.quality else None,
        command=" ".join(["prunescope", *run.argv]) if run.argv else None,
    )
    return _Measured(
        point=point_of(entry, run, phase, controls, display_name),
        dense_ns=None if dense is None else dense.median,
        subject=subject,
        busy=bool(phase.invalid_times) or _was_loaded(run, entry.phase),
    )


def _not_of_run(entry: SweepResult, run: Run) -> Iterator[str]:
    """Yield what sweep.json says of a result and its run.json contradicts; nothing of a function.

    The least of equal sparsities is the one that a sweep prunes by; a composite states none.
    """
    timed, pruning = run.phases.get(entry.phase), run.pruning
    for name in RunSetting.__struct_fields__:
        planned, measured = getattr(entry, name), getattr(timed, name, None)
        if measured is not None and measured != planned:
            yield f"{name} {planned}, and its run has {measured}"
    if pruning is None:
        return
    if pruning.sparsity is not None and entry.sparsity not in (None, pruning.sparsity):
        yield f"sparsity {entry.sparsity:g}, and its run has {pruning.sparsity:g}"
    known = {family.id for family in families()}
    if {entry.family, pruning.method} <= known and entry.family != pruning.method:
        yield f"family {entry.family}, and its run has {pruning.method}"


def _was_loaded(run: Run, phase: str) -> bool:
    """Return whether the load average of an older run was high.

    Limitations: the load average is a guess. It counts only if nothing was measured around each
    sample.
    """
    timed = run.phases.get(phase)
    measured = timed is not None and bool(timed.placements)
    return not measured and bool(run.timing and run.timing.notes)


def _run_folder(folder: Path, entry: SweepResult) -> Path:
    """Return the folder of a run.

    It must lie in the folder of the sweep, as sweep.json is untrusted.
    """
    path = (folder / (entry.run or "")).resolve()
    if entry.run is None or folder.resolve() not in path.parents:
        raise PrunescopeError(
            f"{entry.id}: its run lies outside the sweep", hint="restore sweep.json"
        )
    return path


def _collect_phase(runs: Sequence[_Measured]) -> ParetoPhase:
    """Return the points of a phase, not compared yet, and its dense times by cell."""
    cells: dict[RunSetting, list[_Measured]] = {}
    for run in runs:
        cells.setdefault(run.point.setting, []).append(run)
    points: list[SweepPoint] = []
    timed: list[SweepCell] = []
    for setting, in_cell in sorted(cells.items()):
        points += _merge_samples(run.point for run in in_cell)
        dense_ns = _spread([run.dense_ns for run in in_cell if run.dense_ns is not None])
        timed.append(SweepCell(**msgspec.structs.asdict(setting), dense_ns=dense_ns))
    return ParetoPhase(points=points, cells=timed)


def _merge_samples(points: Iterable[SweepPoint]) -> list[SweepPoint]:
    """Merge the points of one model's random selections into one point.

    It has their medians, and intervals from the lowest to the highest. Kept apart, the luckiest
    sample would be on the frontier.
    """
    groups: dict[Any, list[SweepPoint]] = {}
    for point in points:
        groups.setdefault((point.label, point.sparsity), []).append(point)
    return [samples[0] if len(samples) == 1 else _merge(samples) for samples in groups.values()]


def _merge(samples: list[SweepPoint]) -> SweepPoint:
    losses = [p.loss for p in samples if p.loss is not None]
    loss = _merge_losses(losses) if len(losses) == len(samples) else None
    return msgspec.structs.replace(
        samples[0],
        draws=[p.id for p in samples],
        realised=median(p.realised for p in samples),
        realised_ci95=_hull([p.realised_ci95 for p in samples]),
        bounds={name: _median([p.bounds[name] for p in samples]) for name in samples[0].bounds},
        shares={name: _median([p.shares[name] for p in samples]) for name in samples[0].shares},
        loss=loss,
        flop_sparsity=_median([p.flop_sparsity for p in samples]),
        training_stopped=next((p.training_stopped for p in samples if p.training_stopped), None),
        timing_valid=all(p.timing_valid for p in samples),
    )


def _merge_losses(losses: Sequence[_AnyLoss]) -> _AnyLoss:
    """Merge losses field by field. A field that is absent in the first is absent in the result."""
    merged: dict[str, Any] = {}
    for name in losses[0].__struct_fields__:
        values = [getattr(loss, name) for loss in losses]
        if isinstance(values[0], TextLoss):
            merged[name] = _merge_losses([value or TextLoss() for value in values])
        elif values[0] is not msgspec.UNSET:
            known = [None if value is msgspec.UNSET else value for value in values]
            merged[name] = (_hull if name.endswith("ci95") else _median)(known)
    return msgspec.structs.replace(losses[0], **merged)


def _median(values: list[Any]) -> Any:
    """Return the median of numbers, whether any boolean is true, or the first of anything else.

    Returns:
        The value; None if any value is unknown.
    """
    if any(value is None for value in values):
        return None
    if isinstance(values[0], bool):
        return any(values)
    return median(values) if all(isinstance(v, int | float) for v in values) else values[0]


def _hull(intervals: list[Any]) -> list[float] | None:
    if None in intervals:
        return None
    return [min(low for low, _ in intervals), max(high for _, high in intervals)]


def _spread(values: list[float]) -> dict[str, float]:
    if not values:
        return {}
    middle, low, high = median(values), min(values), max(values)
    return {"median": middle, "low": low, "high": high, "spread": (high - low) / middle}
