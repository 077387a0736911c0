"""From a subject to a report: read this file first.

subject → sides (run or trace) → kernels frame per phase → pairs and units → ledger → Report.
Every step is a pass of its own module; this one only puts them in order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from analysis.names import ends_apart
from analysis.phase import compare_phase, single_phase
from analysis.report.model import Phase, Report, SecondOpinion
from analysis.stragglers import add_straggler
from analysis.subject import Options, Side, of_the, open_side, resolve
from taxonomy.errors import PrunescopeError

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
        from analysis.host_events import host_events

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
    pruned = open_side(paths.subject, options, eager=options.eager_trace)
    dense = None
    if paths.baseline is not None:
        with of_the("baseline"):
            dense = open_side(paths.baseline, options, eager=options.baseline_eager_trace)
    phases: dict[str, Phase] = {}
    frames: dict[str, pl.DataFrame] = {}
    for name in _phases(pruned, dense):
        kernels = pruned.kernels(name)
        if dense is None:
            phases[name] = single_phase(pruned, name, kernels)
        else:
            with of_the("baseline"):
                twin = dense.kernels(_twin(name, dense))
            phases[name] = compare_phase((dense, twin), (pruned, kernels), name, options)
        frames[name] = kernels.frame
        if options.hta:
            phases[name].hta = _hta(pruned, name)
    for group in pruned.comparable_ranks:
        add_straggler({name: phases[name] for name in group if name in phases}, frames)
    return Analysis(_report(pruned, dense, phases, paths.warnings), frames, pruned)


def _twin(name: str, dense: Side) -> str:
    """The phase of the baseline that a phase is compared with."""
    return name if name in dense.phases else dense.phases[0]


def _hta(side: Side, name: str) -> SecondOpinion:
    from analysis.hta_bridge import second_opinion

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
            hint="trace both with the same --phase, pick steps with --phase-pattern, or give the "
            "traces of all ranks on both sides",
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
    if dense is not None and described[0]["name"] == described[1]["name"]:
        names = ends_apart([s.path.resolve() for s in sides])
        for said, name in zip(described, names, strict=True):
            said["name"] = name
    return Report(
        tool=TOOL,
        subject=described[0],
        baseline=None if dense is None else described[1],
        device=pruned.device_json(),
        phases=dict(phases),
        warnings=list(dict.fromkeys(warnings + [w for s in sides for w in s.warnings])),
        partial=any(s.partial for s in sides),
    )
