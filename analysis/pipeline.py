"""From a subject to a report: read this file first.

subject → sides (run or trace) → kernels frame per phase → pairs and units → ledger → Report.
Every step is a pass of its own module; this one only puts them in order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from analysis.phase import compare_phase, single_phase
from analysis.report.model import Phase, Report
from analysis.subject import Options, Side, open_side, resolve
from taxonomy.errors import PrunescopeError

TOOL = "prunescope"
__all__ = ["Analysis", "Options", "analyze"]


@dataclass
class Analysis:
    """A report and the kernels frames it was made from, by phase."""

    report: Report
    frames: dict[str, pl.DataFrame] = field(default_factory=dict)


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
        dense = open_side(paths.baseline, options, eager=options.baseline_eager_trace)
    phases: dict[str, Phase] = {}
    frames: dict[str, pl.DataFrame] = {}
    for name in _phases(pruned, dense):
        kernels = pruned.kernels(name)
        if dense is None:
            phases[name] = single_phase(pruned, name, kernels)
        else:
            twin = dense.kernels(name if name in dense.phases else dense.phases[0])
            phases[name] = compare_phase((dense, twin), (pruned, kernels), name, options)
        frames[name] = kernels.frame
    return Analysis(_report(pruned, dense, phases, paths.warnings), frames)


def _phases(pruned: Side, dense: Side | None) -> list[str]:
    """Phases of the subject that the baseline has too; a bare trace stands for the only one."""
    if dense is None or dense.run is None and pruned.run is None:
        return pruned.phases
    if dense.run is None or pruned.run is None:
        if len(pruned.phases) == 1 and len(dense.phases) == 1:
            return pruned.phases
        raise PrunescopeError(
            "a run of several phases cannot be compared with a single trace",
            hint="give the trace of one phase as the subject, e.g. RUN/pruned/prefill.trace.json.gz",
        )
    both = [name for name in pruned.phases if name in dense.phases]
    if not both:
        raise PrunescopeError(
            f"the runs share no phase ({', '.join(pruned.phases)} / {', '.join(dense.phases)})",
            hint="trace both with the same --phase",
        )
    return both


def _report(
    pruned: Side, dense: Side | None, phases: Mapping[str, Phase], warnings: list[str]
) -> Report:
    sides = [s for s in (pruned, dense) if s is not None]
    return Report(
        tool=TOOL,
        subject=pruned.describe(),
        baseline=None if dense is None else dense.describe(),
        device=pruned.device_json(),
        phases=dict(phases),
        warnings=list(dict.fromkeys(warnings + [w for s in sides for w in s.warnings])),
        partial=any(s.partial for s in sides),
    )
