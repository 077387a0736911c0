"""From what a user named to a report: read this file first.

| room      | in                             | out                                               |
|-----------|--------------------------------|---------------------------------------------------|
| inputs    | paths, options                 | a Side for the candidate, one for the baseline    |
| trace     | a Chrome trace, an nsys export | Trace: its events in columns                      |
| timeline  | Trace                          | which step, op and module every kernel belongs to |
| shapes    | a model's config               | shapes that a trace did not record                |
| kernels   | Trace, timeline                | Kernels: one row a kernel, with work and bound    |
| ledger    | Kernels of both sides          | units, GEMM pairs, rows that sum to the wall      |
| comparison | both sides, GEMM pairs        | whether they compare, and which settings differ   |
| verdict   | GEMM pairs, units, manifests   | the family, and its caveats                       |
| findings  | all of these                   | what is worth saying, and what to change          |
| predict   | manifests, peaks               | what theory expects of the same pruning           |
| schema    | all of these                   | Report: plain values, written by report/          |
| report    | a phase of it                  | its summary in one paragraph                      |

Reading a phase of a side calls trace, timeline, shapes and kernels; `phase.py` calls the rooms
below them. Nothing here changes a side: diagnostics come back with what was read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import polars as pl
from msgspec.structs import replace as replace_fields

from prunescope.analysis.comparison.shared_peaks import with_shared_peaks
from prunescope.analysis.findings.notes import missing_shapes, phase_warnings
from prunescope.analysis.findings.stragglers import with_straggler
from prunescope.analysis.inputs.describe import device_of, facts_of, unique_suffixes
from prunescope.analysis.inputs.open import open_sides
from prunescope.analysis.inputs.options import Options
from prunescope.analysis.inputs.side import Diagnostics, Side
from prunescope.analysis.pool import jobs_for
from prunescope.analysis.rank_jobs import Frames, Outcome, Sides, outcome_of, shared
from prunescope.analysis.replayed import with_replays
from prunescope.analysis.report.summary import summary, waits_for
from prunescope.analysis.schema.notice import warning
from prunescope.analysis.schema.report import Phase, Report
from prunescope.analysis.wording.sentence import sentence
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.formats import scrubbed
from prunescope.taxonomy.replays import read_replays

TOOL = "prunescope"
__all__ = ["Analysis", "Options", "analyze"]


OnDone = Callable[[int, int], None]


@dataclass
class Analysis:
    """A report and the kernels frames it was made from, by phase."""

    report: Report
    frames: Mapping[str, pl.DataFrame] = field(default_factory=dict)
    side: Side | None = None
    names: Mapping[str, str] = field(default_factory=dict)  # of phases in the side, by the report's

    def hosts(self) -> dict[str, pl.DataFrame]:
        """The host's events of each phase, as recorded, and those of the device that are in no step
        of it; the traces are read again for them."""
        from prunescope.analysis.trace.host_events import host_events, outside_steps

        found: dict[str, pl.DataFrame] = {}
        for name, frame in self.frames.items():
            if self.side is not None:
                trace = self.side.trace(self.names.get(name, name))
                outside = outside_steps(trace, frame["event"])
                found[name] = pl.concat([host_events(trace), outside])
        return found


@dataclass(frozen=True)
class _Done:
    """A side, and its diagnostics so far."""

    side: Side
    diagnostics: Diagnostics

    def add(self, diagnostics: Diagnostics) -> _Done:
        return replace(self, diagnostics=self.diagnostics + diagnostics)


def analyze(
    candidate: Path,
    *,
    baseline: Path | None = None,
    options: Options | None = None,
    jobs: int | None = 1,
    engine: str = "local",
    on_done: OnDone | None = None,
) -> Analysis:
    """Analyze a run folder or a trace, against its baseline or `baseline`.

    `jobs`: processes for the ranks of a folder or an archive, None for one a core where that is
    worth it; `engine`: "ray" has them on the workers of a cluster. The report is the same.
    `on_done` is called with the number of phases done, and of all.
    Raises PrunescopeError where the input cannot be analysed; nothing is written.
    """
    options = options or Options()
    pruned, dense = _open(candidate, baseline, options)
    phases: dict[str, Phase] = {}
    frames = Frames()
    names, diagnostics = _phases(pruned.side, dense.side if dense else None)
    pruned = pruned.add(diagnostics)
    sides = Sides(pruned.side, dense.side if dense else None, options)
    outcomes: Iterator[Outcome] | None = None
    count = jobs_for(jobs, sides.sizes() if sides.can_share else (), engine)
    if len(names) > 1 and sides.can_share and (count > 1 or engine != "local"):
        outcomes = shared(sides, names, frames, jobs=count, engine=engine)
    for number, name in enumerate(names):
        done = next(outcomes) if outcomes is not None else None
        if pruned.side.rank_of(name) in pruned.diagnostics.left_out:
            continue
        done = done or outcome_of(sides, name, frames)
        if done.failed is not None and name == names[-1] and not phases:
            raise PrunescopeError(done.failed[0], hint=done.failed[1])
        pruned = pruned.add(done.candidate)
        lost = False
        if dense is not None:
            lost = dense.side.rank_of(sides.baseline_of(name)) in dense.diagnostics.left_out
            dense = dense if lost else dense.add(done.baseline)
        if done.phase is not None and not lost:
            phases[name] = done.phase
        if on_done is not None:
            on_done(number + 1, len(names))
    pruned = pruned.add(pruned.side.final_diagnostics(pruned.diagnostics, "--eager-trace"))
    if dense is not None:
        option = "--baseline-eager-trace"
        dense = dense.add(dense.side.final_diagnostics(dense.diagnostics, option))
    for group in pruned.side.comparable_ranks(pruned.diagnostics):
        ran, warnings = with_straggler({n: phases[n] for n in group if n in phases}, frames)
        phases.update(ran)
        pruned = pruned.add(Diagnostics(tuple(warnings)))
    report = scrubbed(_replayed(_report(pruned, dense, phases), pruned.side, options))
    phase_of = dict(zip(report.phases, phases, strict=True))
    return Analysis(report, frames.renamed(phase_of), pruned.side, phase_of)


def _replayed(report: Report, side: Side, options: Options) -> Report:
    if options.gemm is None:
        return report
    return with_replays(report, read_replays(Path(options.gemm)), side.run)


def _open(candidate: Path, baseline: Path | None, options: Options) -> tuple[_Done, _Done | None]:
    """The candidate, and its baseline where there is one, with equal peaks."""
    opened = open_sides(candidate, baseline, options)
    pruned, dense = opened.candidate, opened.baseline
    if dense is None:
        return _Done(pruned, pruned.diagnostics), None
    pruned, dense = with_shared_peaks(pruned, dense)
    return _Done(pruned, pruned.diagnostics), _Done(dense, dense.diagnostics)


def _phases(pruned: Side, dense: Side | None) -> tuple[list[str], Diagnostics]:
    """Phases of the candidate that the baseline has too; a trace without run.json stands for the
    only one."""
    if (
        dense is None
        or len(pruned.phases) == 1 == len(dense.phases)
        and not _both_runs(pruned, dense)
    ):
        return pruned.phases, Diagnostics()
    if not pruned.ranks and not dense.ranks and (dense.run is None) != (pruned.run is None):
        raise PrunescopeError(
            "a run of several phases cannot be compared with a single trace",
            hint="give the trace of one phase, e.g. RUN/pruned/prefill.trace.json.gz",
        )
    both = [name for name in pruned.phases if name in dense.phases]
    if not both:
        raise PrunescopeError(
            f"the runs share no phase ({', '.join(pruned.phases)} / {', '.join(dense.phases)})",
            hint="trace both with the same --phase, give capture() the same phase= for both, pick "
            "steps with --phase or --phase-pattern, or give the traces of all ranks on both sides",
        )
    alone = [n for n in dict.fromkeys([*pruned.phases, *dense.phases]) if n not in both]
    if alone and not _both_runs(pruned, dense):
        return both, Diagnostics((warning("phases-left-out", phases=alone),))
    return both, Diagnostics()


def _both_runs(pruned: Side, dense: Side) -> bool:
    return pruned.run is not None and dense.run is not None


def _report(pruned: _Done, dense: _Done | None, phases: Mapping[str, Phase]) -> Report:
    sides = [done for done in (pruned, dense) if done is not None]
    described = [facts_of(done.side, done.diagnostics) for done in sides]
    if dense is not None and described[0]["name"] == described[1]["name"]:
        names = unique_suffixes([done.side.path.resolve() for done in sides])
        for facts, name in zip(described, names, strict=True):
            facts["name"] = name
    asked, takes_model = pruned.side.asked_for_shapes, pruned.side.takes_model
    notices = [
        one
        for name, phase in phases.items()
        for one in missing_shapes(
            name, phase, requested=asked, takes_model=takes_model, recorder=pruned.side.recorder
        )
    ]
    notices += pruned.diagnostics.warnings
    for name, phase in phases.items():
        notices += phase_warnings(name, phase)
    of_dense = dense.diagnostics.warnings if dense is not None else ()
    notices += [warning("of-baseline", about=one) for one in of_dense if one not in notices]
    return Report(
        tool=TOOL,
        subject=described[0],
        baseline=None if dense is None else described[1],
        device=device_of(pruned.side, phases.values()),
        phases={
            n: replace_fields(p, summary=summary(p, waits_for(p, phases)))
            for n, p in phases.items()
        },
        warnings=list(dict.fromkeys(map(sentence, notices))),
        partial=any(done.diagnostics.partial for done in sides),
    )
