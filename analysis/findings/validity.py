"""Whether the traces are evidence at all.

They are not where runs do not compare, launches were captured into a CUDA graph, or a trace lacks
kernels.

In: a Context. Out: Found, or None.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from prunescope.analysis.comparison.other_inputs import batch_ratio
from prunescope.analysis.findings.context import Context
from prunescope.analysis.findings.registry import Found, finding
from prunescope.analysis.schema.pair_comparison import (
    CUT,
    DTYPE,
    FIRST_CALLS,
    GRAPHS,
    UNREADABLE,
    Difference,
)
from prunescope.analysis.schema.report import CUT_OFF, NOT_COMPARABLE
from prunescope.analysis.verdict.caveats import MISSING_KERNELS
from prunescope.analysis.wording.comparison import cut_text, difference_text
from prunescope.analysis.wording.sentence import sentence
from prunescope.taxonomy.dtypes import QUANTISED, dtype
from prunescope.taxonomy.numbers import brief_time
from prunescope.taxonomy.words import ms

_CHANGE = (
    "trace a replay of the graph (this trace, given as --eager-trace, names its ops), or trace "
    "before the capture"
)


@finding(CUT_OFF, "critical")
def truncated_trace(c: Context) -> Found | None:
    """Report that the trace file is truncated, so its times do not cover whole steps."""
    sides = [("pruned", c.kernels)]
    sides += [] if c.baseline_kernels is None else [("dense", c.baseline_kernels)]
    lines = _lines(c, "cut-off")
    if not lines:
        return None
    cut = ["cut off" if kernels.linked.cut else "whole" for _, kernels in reversed(sides)]
    return Found(
        text=cut_text(*cut) if len(cut) > 1 else "the trace is cut off",
        evidence=lines,
        change="copy the file again: it is cut off in the middle of an event",
    )


@finding(NOT_COMPARABLE, "critical")
def not_comparable(c: Context) -> Found | None:
    """Report that the dense run had other inputs or settings, or only one run has first calls."""
    differences = c.phase.comparison.differences if c.phase.comparison else ()
    # The finding truncated-trace says that a trace is cut off.
    differences = [difference for difference in differences if difference.kind != CUT]
    if not differences:
        return None
    evidence = [
        *map(difference_text, differences),
        *_without_first_calls(c, differences),
        *_scaled_to_batch(c, differences),
    ]
    kinds = {difference.kind for difference in differences}
    text = "the dense baseline is not comparable"
    change = "trace the dense model again with the settings of the pruned one"
    if kinds == {FIRST_CALLS}:
        both = all(difference.dense and difference.pruned for difference in differences)
        which = "both are cold, one of them more" if both else "one is cold"
        text = f"the two runs are not comparable: {which}"
        change = "run the step a few times before the profiler starts, and trace again"
    elif kinds == {GRAPHS}:
        text = "the two runs are not comparable: CUDA graphs of one side hide their kernels"
        change = "record both sides with nsys profile --cuda-graph-trace=node"
    elif kinds == {DTYPE}:
        text = "the dense baseline is not comparable: it ran in another number format"
        name = dtype(str(differences[0].pruned)) or str(differences[0].pruned)
        change = f"compare with a dense model that runs in {name}"
        if name in QUANTISED:
            change = f"quantise the dense model too, to {name}, and compare with that"
    elif not kinds <= set(UNREADABLE):
        text = "the dense baseline is not comparable: it ran with other settings"
    return Found(text=text, evidence=evidence, change=change)


def _without_first_calls(c: Context, differences: Sequence[Difference]) -> Iterator[str]:
    """Give both times without first calls, and their ratio, where one side is cold."""
    old, new = c.phase.baseline, c.phase
    if old is None or all(difference.kind != FIRST_CALLS for difference in differences):
        return
    dense, pruned = (side.wall_ns - side.first_call_ns for side in (old, new))
    yield (
        f"without first calls a step takes {brief_time(dense)} in the dense run and "
        f"{brief_time(pruned)} in the pruned one, {dense / pruned:.2f}×"
    )


def _scaled_to_batch(c: Context, differences: Sequence[Difference]) -> Iterator[str]:
    """Give both busy times at the dense run's batch, where no other input differs.

    Idle time stays: the host makes as many calls, and first ones, for any batch.
    """
    ratio = batch_ratio(differences)
    old, new = c.phase.baseline, c.phase
    if old is None or ratio is None:
        return
    idle = c.step_ns - c.scale_to_step(new.busy_ns)
    dense_idle = (c.baseline_ns or old.wall_ns) - c.scale_to_dense_step(old.busy_ns)
    yield (
        f"at the batch of the dense run, work takes {c.ms(new.busy_ns / ratio)} instead of "
        f"{c.dense_ms(old.busy_ns)} a step; idle time, {ms(idle)} and {ms(dense_idle)}, does not "
        "scale with the batch"
    )


@finding("captured-step", "critical")
def captured_step(c: Context) -> Found | None:
    """Report that no step was timed: most kernel launches were captured into a CUDA graph."""
    lines = _lines(c, "captured-step")
    if not lines:
        return None
    return Found(
        severity="warning" if c.baseline_kernels is None else "critical",
        text="most kernel launches were captured into a graph and did not run: no step was timed",
        evidence=lines,
        change=_CHANGE,
    )


@finding("captured-launches", "warning")
def captured_launches(c: Context) -> Found | None:
    """Report that some kernel launches were captured into a CUDA graph and did not run."""
    lines = _lines(c, "captured-launches")
    if not lines:
        return None
    return Found(
        text="kernel launches were captured into a graph and did not run: times and counts cover "
        "the other launches only, and host time includes the capture",
        evidence=lines,
        change=_CHANGE,
    )


def _lines(c: Context, kind: str) -> list[str]:
    return [sentence(notice) for notice in c.caveats if notice.kind == kind]


@finding("kernels-missing", "warning")
def kernels_missing(c: Context) -> Found | None:
    """Report that the trace lacks kernels: launches without one, no GEMM, incomplete layers."""
    missing = MISSING_KERNELS - {"cut-off"}  # truncated-trace says so
    launched = [side.kernels.linked.launches for _, side in c.sides]
    if all(launches["events"] and not launches["lost"] for launches in launched):
        missing -= {"no-gemm", "no-linear"}  # what ran is there, and was no GEMM
    notices = [notice for notice in c.caveats if notice.kind in missing]
    if not notices:
        return None
    sides = [side.kernels.linked.launches for _, side in c.sides if side.kernels.lacks_kernels]
    lost, last = (sum(launches[name] for launches in sides) for name in ("lost", "at_end"))
    # A profiler that stops before the device does loses the last kernels, whatever ran before.
    change = "capture again, with fewer steps and after a warm-up step"
    also = ["kernels that were captured into a graph appear when the graph is replayed"]
    if lost and 2 * last > lost:
        change = "synchronise (torch.cuda.synchronize()) before the profiler stops: the device had "
        change += "not yet run what the host launched last"
        also = []
    return Found(
        text="the trace does not hold all of its kernels: "
        + (
            "work that seems pruned may only be missing"
            if c.baseline
            else "times and counts cover the others only"
        ),
        evidence=list(map(sentence, notices)),
        change=change,
        also=also,
    )
