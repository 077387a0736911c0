"""Some of the steps of a trace: those of one phase, that a pattern picks, or that are not cold.

In: linked rows and windows of all steps. Out: those of the steps that are kept; times in ns.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import numpy as np

from prunescope.analysis.timeline.engines import PHASES, engine_step
from prunescope.analysis.timeline.first_calls import HostSpans
from prunescope.analysis.timeline.intervals import Spans, Windows
from prunescope.analysis.timeline.launches import lost_launches
from prunescope.analysis.timeline.link import PER_ROW, Linked
from prunescope.analysis.trace.collect import NONE, Ints
from prunescope.analysis.trace.events import Trace

# Of the wall: two captures of one model differ by 1.4 % on a quiet machine, less is no cold step.
_SEEN = 0.014


def phases_of(windows: Windows) -> list[str]:
    """The phases among steps that a pattern did not pick, in the order of PHASES; empty where
    they are unknown."""
    if windows.source == "pattern":
        return []
    seen = {engine_step(name) for name in windows.names}
    return [phase for phase in PHASES if phase in seen]


def only_phase(
    trace: Trace, linked: Linked, windows: Windows, phase: str
) -> tuple[Linked, Windows]:
    """The steps of one phase. What is in no step stays the same: the other phases are reported
    too."""
    steps = np.flatnonzero([engine_step(name) == phase for name in windows.names])
    return _only(trace, linked, windows, steps)


def only_picked(trace: Trace, linked: Linked, windows: Windows) -> tuple[Linked, Windows]:
    """The steps that `--phase-pattern` picks, all of them where it picks none of others; those are
    left out, and named."""
    if windows.picked is None:
        return linked, windows
    chosen, kept = _only(trace, linked, windows, windows.picked)
    others = ~np.isin(linked.step, windows.picked)
    chosen.left_out = {
        "events": linked.left_out["events"] + int(others.sum()),
        "ns": linked.left_out["ns"] + int(linked.duration[others].sum()),
    }
    return chosen, kept


@dataclass(frozen=True)
class ColdStepTimes:
    """Steps that were left out because the host made first calls in them or compiled: their walls,
    and for how long the device waited for that (on a CPU: how long it took), ns."""

    walls: list[int] = field(default_factory=list)
    first_calls: list[int] = field(default_factory=list)


def only_warm(
    trace: Trace, linked: Linked, windows: Windows, first: HostSpans
) -> tuple[Linked, Windows, ColdStepTimes]:
    """The steps without first calls, where there are any; all of them where none is warm, and in
    our own runs, which are warmed up before they are profiled."""
    spent = _first_calls(trace, linked, windows, first)
    cold = spent > _SEEN * linked.wall
    if windows.source == "prunescope" or not cold.any() or cold.all():
        return linked, windows, ColdStepTimes()
    found = ColdStepTimes(linked.wall[cold].tolist(), spent[cold].tolist())
    return *_only(trace, linked, windows, np.flatnonzero(~cold)), found


def _first_calls(trace: Trace, linked: Linked, windows: Windows, first: HostSpans) -> Ints:
    """The time of first calls in each step in which the device idles; on a CPU that of compilers,
    ns."""
    if not trace.on_device:
        return first.of_compilers().within(windows)
    spans = Spans.of(first.begin, first.end)
    idle = spans.spent(linked.start) - spans.spent(linked.start - linked.gap)
    return np.bincount(linked.step, idle, minlength=len(windows)).astype(np.int64)


def _only(trace: Trace, linked: Linked, windows: Windows, steps: Ints) -> tuple[Linked, Windows]:
    """Some of the steps. All are linked first: a wall begins where the step before ends, whether
    that is kept or not."""
    number = np.full(len(windows), NONE)
    number[steps] = np.arange(len(steps))
    keep = number[linked.step] >= 0
    moved = np.cumsum(keep) - 1
    columns = {name: getattr(linked, name)[keep] for name in PER_ROW}
    above = linked.above[keep]
    names = [windows.names[i] for i in steps]
    first = len(steps) > 0 and steps[0] == 0
    kept = Windows(windows.start[steps], windows.end[steps], windows.source, names)
    chosen = dataclasses.replace(
        linked,
        **columns,
        step=number[linked.step[keep]],
        wall=linked.wall[steps],
        above=np.where(above >= 0, moved[np.maximum(above, 0)], NONE),
        trailing_idle=linked.trailing_idle[steps],
        between=linked.between[steps],
        launch_latency_ns=linked.launch_latency_ns if first else None,
        launch_latency_busy_ns=linked.launch_latency_busy_ns if first else None,
        launch_latency_work=linked.launch_latency_work if first else {},
        launches=lost_launches(trace, kept) if trace.on_device else linked.launches,
    )
    return chosen, kept
