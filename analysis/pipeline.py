"""From what a user named to a report: read this file first.

| room      | in                             | out                                               |
|-----------|--------------------------------|---------------------------------------------------|
| inputs    | paths, options                 | a Side for the subject, one for the baseline      |
| trace     | a Chrome trace                 | Trace: its events in columns                      |
| timeline  | Trace                          | which step, op and module every kernel belongs to |
| shapes    | a model's config               | shapes that a trace did not record                |
| kernels   | Trace, timeline                | Kernels: a row a kernel, with its work and bound  |
| ledger    | Kernels of both sides          | units, GEMM pairs, rows that sum to the wall      |
| verdict   | GEMM pairs, units, manifests   | the family, and what makes it doubtful            |
| findings  | all of these                   | what is worth saying, and what to change          |
| predict   | manifests, peaks               | what theory expects of the same pruning           |
| schema    | all of these                   | Report: plain values, written by report/          |

Reading a phase of a side calls trace, timeline, shapes and kernels; `phase.py` calls the rooms
below them. Nothing here changes a side: what was noticed comes back with what was read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import polars as pl

from prunescope.analysis.findings.headline_doubts import missing_shapes, phase_warnings
from prunescope.analysis.findings.stragglers import with_straggler
from prunescope.analysis.inputs.describe import device_of, subject_of
from prunescope.analysis.inputs.names import ends_apart
from prunescope.analysis.inputs.open import open_side
from prunescope.analysis.inputs.resolve import of_the, resolve
from prunescope.analysis.inputs.subject import Noticed, Options, Side, SidePhase, rank_left_out
from prunescope.analysis.ledger.comparable import comparable
from prunescope.analysis.phase import compare_phase, single_phase
from prunescope.analysis.schema.report import Phase, Report, SecondOpinion
from prunescope.taxonomy.errors import PrunescopeError

TOOL = "prunescope"
__all__ = ["Analysis", "Options", "analyze"]


@dataclass
class Analysis:
    """A report and the kernels frames it was made from, by phase."""

    report: Report
    frames: dict[str, pl.DataFrame] = field(default_factory=dict)
    side: Side | None = None

    def hosts(self) -> dict[str, pl.DataFrame]:
        """The host's events of each phase, as recorded; the traces are read again for them."""
        from prunescope.analysis.trace.host_events import host_events

        return (
            {} if self.side is None else {n: host_events(self.side.trace(n)) for n in self.frames}
        )


@dataclass(frozen=True)
class _Done:
    """A side, and all that was noticed of it so far."""

    side: Side
    noticed: Noticed

    def add(self, noticed: Noticed) -> _Done:
        return replace(self, noticed=self.noticed + noticed)


def analyze(
    subject: Path, *, baseline: Path | None = None, options: Options | None = None
) -> Analysis:
    """Analyze a run folder or a trace, against its twin or `baseline`.

    Raises PrunescopeError where the input cannot be analysed; nothing is written.
    """
    options = options or Options()
    paths = resolve(subject, baseline)
    pruned, dense = _open(paths.subject, paths.baseline, options)
    phases: dict[str, Phase] = {}
    frames: dict[str, pl.DataFrame] = {}
    names, noticed = _phases(pruned.side, dense.side if dense else None)
    pruned = pruned.add(noticed)
    for name in names:
        last = name == names[-1] and not phases
        own, pruned = _read(pruned, name, last=last)
        if own is None:
            continue
        hta = _second_opinion(pruned.side, name) if options.hta else None
        if dense is None:
            pruned = pruned.add(own.noticed)
            phases[name] = single_phase(own, hta=hta)
        else:
            with of_the("baseline"):
                twin, dense = _read(dense, _twin(name, dense.side), last=last)
            if twin is None:
                pruned = pruned.add(own.noticed)
                continue
            twin, own = comparable(twin, own)
            pruned, dense = pruned.add(own.noticed), dense.add(twin.noticed)
            phases[name] = compare_phase(twin, own, sparsity=options.sparsity, hta=hta)
        frames[name] = own.kernels.frame
    pruned = pruned.add(pruned.side.noticed_at_the_end(pruned.noticed, "--eager-trace"))
    if dense is not None:
        option = "--baseline-eager-trace"
        dense = dense.add(dense.side.noticed_at_the_end(dense.noticed, option))
    for group in pruned.side.comparable_ranks(pruned.noticed):
        ran, said = with_straggler({n: phases[n] for n in group if n in phases}, frames)
        phases.update(ran)
        pruned = pruned.add(Noticed(tuple(said)))
    return Analysis(_report(pruned, dense, phases, paths.warnings), frames, pruned.side)


def _open(subject: Path, baseline: Path | None, options: Options) -> tuple[_Done, _Done | None]:
    """The subject, and the baseline where there is one."""
    pruned = open_side(subject, options, eager=options.eager_trace, model=options.model)
    if baseline is None:
        if options.baseline_eager_trace is not None:
            raise PrunescopeError(
                "--baseline-eager-trace is given and there is no baseline",
                hint="name the dense side with --baseline, or use --eager-trace",
            )
        return _Done(pruned, pruned.noticed), None
    with of_the("baseline"):
        dense = open_side(
            baseline,
            options,
            eager=options.baseline_eager_trace,
            model=options.baseline_model or options.model,
        )
    return _Done(pruned, pruned.noticed), _Done(dense, dense.noticed)


def _read(done: _Done, name: str, *, last: bool) -> tuple[SidePhase | None, _Done]:
    """A phase of a side. None where the trace of its rank cannot be analysed, and is not the last
    hope."""
    rank = done.side.rank_of(name)
    if rank in done.noticed.left_out:
        return None, done
    try:
        return done.side.read(name), done
    except PrunescopeError as error:
        if last or rank is None:
            raise
        return None, done.add(rank_left_out(rank, error))


def _twin(name: str, dense: Side) -> str:
    """The phase of the baseline that a phase is compared with."""
    return name if name in dense.phases else dense.phases[0]


def _second_opinion(side: Side, name: str) -> SecondOpinion:
    from prunescope.analysis.hta import second_opinion

    return second_opinion(side.trace(name))


def _phases(pruned: Side, dense: Side | None) -> tuple[list[str], Noticed]:
    """Phases of the subject that the baseline has too; a bare trace stands for the only one."""
    if (
        dense is None
        or len(pruned.phases) == 1 == len(dense.phases)
        and not _both_runs(pruned, dense)
    ):
        return pruned.phases, Noticed()
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
            "steps with --phase-pattern, or give the traces of all ranks on both sides",
        )
    alone = [n for n in dict.fromkeys([*pruned.phases, *dense.phases]) if n not in both]
    if alone and not _both_runs(pruned, dense):
        return both, Noticed((f"{', '.join(alone)}: on one side only, left out",))
    return both, Noticed()


def _both_runs(pruned: Side, dense: Side) -> bool:
    return pruned.run is not None and dense.run is not None


def _report(
    pruned: _Done, dense: _Done | None, phases: Mapping[str, Phase], given: list[str]
) -> Report:
    sides = [done for done in (pruned, dense) if done is not None]
    described = [subject_of(done.side, done.noticed) for done in sides]
    if dense is not None and described[0]["name"] == described[1]["name"]:
        names = ends_apart([done.side.path.resolve() for done in sides])
        for subject, name in zip(described, names, strict=True):
            subject["name"] = name
    asked = pruned.side.asked_for_shapes
    own = [
        said for name, phase in phases.items() for said in missing_shapes(name, phase, asked=asked)
    ]
    own += [*given, *pruned.noticed.warnings]
    own += [said for name, phase in phases.items() for said in phase_warnings(name, phase)]
    of_dense = dense.noticed.warnings if dense is not None else ()
    return Report(
        tool=TOOL,
        subject=described[0],
        baseline=None if dense is None else described[1],
        device=device_of(pruned.side),
        phases=dict(phases),
        warnings=list(dict.fromkeys([*own, *(f"baseline: {w}" for w in of_dense if w not in own)])),
        partial=any(done.noticed.partial for done in sides),
    )
