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
| summary   | a phase of the report          | its answer in one paragraph                       |
| schema    | all of these                   | Report: plain values, written by report/          |

Reading a phase of a side calls trace, timeline, shapes and kernels, each once; `phase.py` calls the
rooms below them. Nothing here changes a side: diagnostics come back with what was read.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path, PurePath

import polars as pl
from msgspec import Struct, field
from msgspec.structs import replace

from prunescope.analysis.comparison.shared_peaks import with_shared_peaks
from prunescope.analysis.findings.notes import missing_shapes, phase_warnings
from prunescope.analysis.findings.stragglers import with_straggler
from prunescope.analysis.inputs.describe import device_of, facts_of, unique_suffixes
from prunescope.analysis.inputs.open import open_sides
from prunescope.analysis.inputs.options import Options
from prunescope.analysis.inputs.side import Diagnostics, Side
from prunescope.analysis.pool import jobs_for
from prunescope.analysis.rank_jobs import Outcome, SideFrames, Sides, outcome_of, shared
from prunescope.analysis.replayed import with_replays
from prunescope.analysis.schema.notice import Notice, warning
from prunescope.analysis.schema.report import TOOL as TOOL
from prunescope.analysis.schema.report import Phase, Report
from prunescope.analysis.summary.answer import answer_phase, summary_of
from prunescope.analysis.summary.paper_words import paper_sentence
from prunescope.analysis.summary.paragraph import waits_for
from prunescope.analysis.wording.sentence import sentence
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.replays import read_replays
from prunescope.taxonomy.scrubbed import scrubbed
from prunescope.taxonomy.timings import part

__all__ = ["Analysis", "Options", "analyze"]


OnDone = Callable[[int, int], None]


class Analysis(Struct):
    """A report and the kernels frames that it was made from.

    Attributes:
        report: The report.
        held: The frames of both sides.
        side: The candidate.
        dense: The baseline; None without one.
        names: The name of each phase in the candidate, by its name in the report.
    """

    report: Report
    held: SideFrames = field(default_factory=SideFrames)
    side: Side | None = None
    dense: Side | None = None
    names: Mapping[str, str] = field(default_factory=dict)

    @property
    def frames(self) -> Mapping[str, pl.DataFrame]:
        """The kernels frame of each phase."""
        return self.held.pruned

    @property
    def dense_frames(self) -> Mapping[str, pl.DataFrame]:
        """The kernels frame of the dense side of each phase."""
        return self.held.dense

    def hosts(self) -> dict[str, pl.DataFrame]:
        """Return the host's events of each phase, and the device's events outside of its steps.

        The traces are read again for them: a report needs neither.
        """
        from prunescope.analysis.trace.host_events import host_events, outside_steps

        events: dict[str, pl.DataFrame] = {}
        for name, frame in self.frames.items():
            if self.side is not None:
                trace = self.side.trace(self.names.get(name, name))
                outside = outside_steps(trace, frame["event"])
                events[name] = pl.concat([host_events(trace), outside])
        return events


class _Collected(Struct):
    """What the phases of both sides gave, as they are analysed one after the other.

    Attributes:
        sides: The candidate and its baseline.
        pruned: The diagnostics of the candidate.
        dense: Those of the baseline.
        phases: The phases of the report, by their name in the candidate.
        frames: Their frames.
    """

    sides: Sides
    pruned: Diagnostics
    dense: Diagnostics
    phases: dict[str, Phase] = field(default_factory=dict)
    frames: SideFrames = field(default_factory=SideFrames)

    def add(self, name: str, outcome: Outcome) -> None:
        """Add the outcome of a phase, unless its rank was left out of the baseline."""
        self.pruned += outcome.candidate
        dense = self.sides.dense
        if dense is not None:
            if dense.rank_of(self.sides.baseline_of(name)) in self.dense.left_out:
                return
            self.dense += outcome.baseline
        if outcome.phase is not None:
            self.phases[name] = outcome.phase


@part("analyze")
def analyze(
    candidate: Path,
    *,
    baseline: Path | None = None,
    options: Options | None = None,
    jobs: int | None = 1,
    engine: str = "local",
    on_done: OnDone | None = None,
) -> Analysis:
    """Analyze a run folder or a trace, alone or against its baseline; nothing is written.

    Args:
        candidate: A run folder, a trace, or a folder or an archive of traces.
        baseline: The dense side; None takes the one that the candidate's manifest names.
        options: What the trace does not record.
        jobs: Processes for the ranks of a folder or an archive; None for one per core where that is
            worth it. The report is the same.
        engine: "local", or "ray" for processes on the workers of a cluster.
        on_done: Called with the number of phases done, and of all.

    Returns:
        The report and its kernels frames.

    Raises:
        PrunescopeError: The input cannot be analysed.
    """
    opened = _open(candidate, baseline, options or Options())
    collected = _analyze_phases(opened, jobs, engine, on_done)
    _add_final_diagnostics(collected)
    _add_stragglers(collected)
    report = scrubbed(_with_replays(_answered(_report(collected)), opened))
    names = dict(zip(report.phases, collected.phases, strict=True))
    collected.frames.rename(names)
    return Analysis(report, collected.frames, opened.pruned, opened.dense, names)


def with_commands(done: Analysis) -> Analysis:
    """Return an analysis whose answers hold commands, with the path of the dense run.

    That path is from the working directory; there is no command where the run is elsewhere, as no
    file that is written holds a path of a machine.
    """
    if done.dense is None or done.dense.run is None:
        return done
    path = os.path.relpath(done.dense.path)
    if path.startswith(os.pardir) and done.dense.path.is_absolute():
        return done
    return replace(done, report=_answered(done.report, dense=PurePath(path).as_posix()))


def _open(candidate: Path, baseline: Path | None, options: Options) -> Sides:
    """Open the candidate and its baseline where there is one, with equal peaks."""
    opened = open_sides(candidate, baseline, options)
    pruned, dense = opened.candidate, opened.baseline
    if dense is not None:
        pruned, dense = with_shared_peaks(pruned, dense)
    return Sides(pruned, dense, options)


def _analyze_phases(
    sides: Sides, jobs: int | None, engine: str, on_done: OnDone | None
) -> _Collected:
    """Analyze the phases that both sides have, one after the other or in processes."""
    names, diagnostics = _shared_phases(sides.pruned, sides.dense)
    of_dense = sides.dense.diagnostics if sides.dense is not None else Diagnostics()
    collected = _Collected(sides, sides.pruned.diagnostics + diagnostics, of_dense)
    outcomes: Iterator[Outcome] | None = None
    count = jobs_for(jobs, sides.sizes() if sides.can_share else (), engine)
    if len(names) > 1 and sides.can_share and (count > 1 or engine != "local"):
        outcomes = shared(sides, names, collected.frames, jobs=count, engine=engine)
    for number, name in enumerate(names):
        outcome = next(outcomes) if outcomes is not None else None
        if sides.pruned.rank_of(name) in collected.pruned.left_out:
            continue
        outcome = outcome or outcome_of(sides, name, collected.frames)
        if outcome.failed is not None and name == names[-1] and not collected.phases:
            raise PrunescopeError(outcome.failed[0], hint=outcome.failed[1])
        collected.add(name, outcome)
        if on_done is not None:
            on_done(number + 1, len(names))
    return collected


def _shared_phases(pruned: Side, dense: Side | None) -> tuple[list[str], Diagnostics]:
    """Return the phases of the candidate that the baseline has too.

    A trace without run.json stands for the only phase.
    """
    if dense is None:
        return pruned.phases, Diagnostics()
    are_runs = pruned.run is not None and dense.run is not None
    if len(pruned.phases) == 1 == len(dense.phases) and not are_runs:
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
    if alone and not are_runs:
        return both, Diagnostics((warning("phases-left-out", phases=alone),))
    return both, Diagnostics()


def _add_final_diagnostics(collected: _Collected) -> None:
    """Add the diagnostics that need those of all phases."""
    pruned, dense = collected.sides.pruned, collected.sides.dense
    collected.pruned += pruned.final_diagnostics(collected.pruned, "--eager-trace")
    if dense is not None:
        option = "--baseline-eager-trace"
        collected.dense += dense.final_diagnostics(collected.dense, option)


def _add_stragglers(collected: _Collected) -> None:
    """Add the finding on the rank that the others wait for, in each group of ranks."""
    for group in collected.sides.pruned.comparable_ranks(collected.pruned):
        ranks = {name: collected.phases[name] for name in group if name in collected.phases}
        phases, warnings = with_straggler(ranks, collected.frames.pruned)
        collected.phases.update(phases)
        collected.pruned += Diagnostics(tuple(warnings))


def _answered(report: Report, *, dense: str | None = None) -> Report:
    """Return a report with the answer of each phase, which tells the rank that it waits for.

    Args:
        report: The report.
        dense: The path of the dense run, for commands; None: no answer has one.
    """
    answers = {
        name: replace(
            answer_phase(phase, waits_for(phase, report.phases), dense=dense),
            sentence=paper_sentence(name, phase, report.subject, report.device),
        )
        for name, phase in report.phases.items()
    }
    phases = {
        name: replace(phase, answer=answers[name], summary=summary_of(answers[name]))
        for name, phase in report.phases.items()
    }
    return replace(report, phases=phases)


def _report(collected: _Collected) -> Report:
    """Put the report together: its sides, its device, its phases and its warnings."""
    pruned, dense, phases = collected.sides.pruned, collected.sides.dense, collected.phases
    subject, reference = facts_of(pruned, collected.pruned), None
    if dense is not None:
        reference = facts_of(dense, collected.dense)
        if subject["name"] == reference["name"]:
            names = unique_suffixes([side.path.resolve() for side in (pruned, dense)])
            subject["name"], reference["name"] = names
    return Report(
        tool=TOOL,
        subject=subject,
        baseline=reference,
        device=device_of(pruned, phases.values()),
        phases=phases,
        warnings=_sentences(_warnings(collected)),
        partial=collected.pruned.partial or collected.dense.partial,
        caveats=_sentences(filter(_is_caveat, _warnings(collected))),
    )


# Warnings that stand beside the numbers: a capture is of another step, or ranks are missing.
_CAVEATS = frozenset({
    "ranks-missing", "ranks-twice", "config-refused", "unused-eager-trace",
    "eager-pass-of-another-step", "eager-pass-of-another-batch", "eager-pass-without-names",
})  # fmt: skip


def _is_caveat(notice: Notice) -> bool:
    """Return whether a warning stands beside the numbers."""
    about = notice.numbers.get("about")
    return (about if isinstance(about, Notice) else notice).kind in _CAVEATS


def _sentences(notices: Iterable[Notice]) -> list[str]:
    """Return the sentences of notices, each once."""
    return list(dict.fromkeys(map(sentence, notices)))


def _warnings(collected: _Collected) -> list[Notice]:
    """Return the warnings of both sides and of all phases."""
    side, phases = collected.sides.pruned, collected.phases
    asked, takes_model = side.asked_for_shapes, side.takes_model
    notices = [
        notice
        for name, phase in phases.items()
        for notice in missing_shapes(
            name, phase, requested=asked, takes_model=takes_model, recorder=side.recorder
        )
    ]
    notices += collected.pruned.warnings
    for name, phase in phases.items():
        notices += phase_warnings(name, phase)
    dense_alone = [notice for notice in collected.dense.warnings if notice not in notices]
    notices += [warning("of-baseline", about=notice) for notice in dense_alone]
    return notices


def _with_replays(report: Report, sides: Sides) -> Report:
    """Return the report with the replayed GEMMs of --gemm, where that is given."""
    if sides.options.gemm is None:
        return report
    return with_replays(report, read_replays(Path(sides.options.gemm)), sides.pruned.run)
