"""From a subject to a report: read this file first.

subject → sides (run or trace) → kernels frame per phase → pairs and units → ledger → Report.
Every step is a pass of its own module; this one only puts them in order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from prunescope.analysis.findings.headline_doubts import phase_warnings
from prunescope.analysis.findings.stragglers import add_straggler
from prunescope.analysis.inputs.names import ends_apart
from prunescope.analysis.inputs.resolve import of_the, resolve
from prunescope.analysis.inputs.subject import Options, Side, open_side
from prunescope.analysis.kernels.frame import Kernels
from prunescope.analysis.ledger.comparable import alike, fold_layers
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


def analyze(
    subject: Path, *, baseline: Path | None = None, options: Options | None = None
) -> Analysis:
    """Analyze a run folder or a trace, against its twin or `baseline`.

    Raises PrunescopeError where the input cannot be analysed; nothing is written.
    """
    options = options or Options()
    paths = resolve(subject, baseline)
    pruned = open_side(paths.subject, options, eager=options.eager_trace, model=options.model)
    dense = None
    if paths.baseline is None and options.baseline_eager_trace is not None:
        raise PrunescopeError(
            "--baseline-eager-trace is given and there is no baseline",
            hint="name the dense side with --baseline, or use --eager-trace",
        )
    if paths.baseline is not None:
        with of_the("baseline"):
            dense = open_side(
                paths.baseline, options, eager=options.baseline_eager_trace,
                model=options.baseline_model or options.model,
            )  # fmt: skip
    phases: dict[str, Phase] = {}
    frames: dict[str, pl.DataFrame] = {}
    names = _phases(pruned, dense)
    for name in names:
        last = name == names[-1] and not phases
        kernels = _kernels(pruned, name, last=last)
        if kernels is None:
            continue
        if dense is None:
            phases[name] = single_phase(pruned, name, kernels)
        else:
            with of_the("baseline"):
                twin = _kernels(dense, _twin(name, dense), last=last)
            if twin is None:
                continue
            twin, kernels = alike((dense, twin, _twin(name, dense)), (pruned, kernels, name))
            twin, kernels = fold_layers(twin, kernels)
            phases[name] = compare_phase((dense, twin), (pruned, kernels), name, options)
        frames[name] = kernels.frame
        if options.hta:
            phases[name].hta = _hta(pruned, name)
    pruned.note_unused_eager("--eager-trace")
    pruned.note_ranks()
    if dense is not None:
        dense.note_unused_eager("--baseline-eager-trace")
        dense.note_ranks()
    for group in pruned.comparable_ranks:
        ran = {name: phases[name] for name in group if name in phases}
        pruned.warnings += add_straggler(ran, frames)
    return Analysis(_report(pruned, dense, phases, paths.warnings), frames, pruned)


def _kernels(side: Side, name: str, *, last: bool) -> Kernels | None:
    """The kernels of a phase. None where the trace of its rank cannot be analysed, and is not the
    last hope."""
    try:
        return side.kernels(name)
    except PrunescopeError as error:
        if last or not side.ranks:
            raise
        side.leave_out(name, error)
        return None


def _twin(name: str, dense: Side) -> str:
    """The phase of the baseline that a phase is compared with."""
    return name if name in dense.phases else dense.phases[0]


def _hta(side: Side, name: str) -> SecondOpinion:
    from prunescope.analysis.hta import second_opinion

    return second_opinion(side.trace(name))


def _phases(pruned: Side, dense: Side | None) -> list[str]:
    """Phases of the subject that the baseline has too; a bare trace stands for the only one."""
    if (
        dense is None
        or len(pruned.phases) == 1 == len(dense.phases)
        and not _both_runs(pruned, dense)
    ):
        return pruned.phases
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
        pruned.warnings.append(f"{', '.join(alone)}: on one side only, left out")
    return both


def _both_runs(pruned: Side, dense: Side) -> bool:
    return pruned.run is not None and dense.run is not None


def _report(
    pruned: Side, dense: Side | None, phases: Mapping[str, Phase], warnings: list[str]
) -> Report:
    sides = [s for s in (pruned, dense) if s is not None]
    described = [s.describe() for s in sides]
    said = [w for name, phase in phases.items() for w in phase_warnings(name, phase)]
    own = [*warnings, *pruned.warnings, *said]
    of_dense = [f"baseline: {w}" for w in (dense.warnings if dense else ()) if w not in own]
    if dense is not None and described[0]["name"] == described[1]["name"]:
        names = ends_apart([s.path.resolve() for s in sides])
        for side, name in zip(described, names, strict=True):
            side["name"] = name
    return Report(
        tool=TOOL,
        subject=described[0],
        baseline=None if dense is None else described[1],
        device=pruned.device_json(),
        phases=dict(phases),
        warnings=list(dict.fromkeys(own + of_dense)),
        partial=any(s.partial for s in sides),
    )
