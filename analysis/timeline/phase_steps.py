"""Some of the steps of a trace: those of one phase, that a pattern picks, or that are not cold.

In: linked rows and windows of all steps. Out: those of the steps that are kept; times in ns.
"""

from __future__ import annotations

import numpy as np
from msgspec import Struct, field
from msgspec.structs import replace

from prunescope.analysis.timeline.engine_steps import PHASES, engine_step
from prunescope.analysis.timeline.first_calls import HostSpans
from prunescope.analysis.timeline.intervals import Spans, Windows
from prunescope.analysis.timeline.launches import count_lost_launches
from prunescope.analysis.timeline.link import PER_ROW, Linked
from prunescope.analysis.trace.collector import NONE, Ints
from prunescope.analysis.trace.trace_columns import Trace

# Share of the wall: two captures of one model differ by 1.4 % on a quiet machine.
_SEEN = 0.014


def phases_of(windows: Windows) -> list[str]:
    """List the phases among steps that a pattern did not pick, in the order of PHASES.

    The list is empty where they are unknown.
    """
    if windows.source == "pattern":
        return []
    seen = {engine_step(name) for name in windows.names}
    return [phase for phase in PHASES if phase in seen]


def only_phase(
    trace: Trace, linked: Linked, windows: Windows, phase: str
) -> tuple[Linked, Windows]:
    """Keep the steps of one phase.

    Counts of what is in no step stay the same, because the other phases are reported too.
    """
    steps = np.flatnonzero([engine_step(name) == phase for name in windows.names])
    return _select_steps(trace, linked, windows, steps)


def only_picked(trace: Trace, linked: Linked, windows: Windows) -> tuple[Linked, Windows]:
    """Keep the steps that `--phase-pattern` picks.

    All steps are kept if the pattern picks none among others (`picked` is None). The steps that are
    not picked are counted as left out.
    """
    if windows.picked is None:
        return linked, windows
    chosen, kept = _select_steps(trace, linked, windows, windows.picked)
    not_picked = ~np.isin(linked.step, windows.picked)
    chosen.left_out = {
        "events": linked.left_out["events"] + int(not_picked.sum()),
        "ns": linked.left_out["ns"] + int(linked.duration[not_picked].sum()),
    }
    return chosen, kept


class ColdStepTimes(Struct, frozen=True):
    """The steps that were left out because the host made first calls in them, or compiled.

    `walls` are their walls, `first_calls` how long the device waited for that (on a CPU: how long
    it took), both in ns.
    """

    walls: list[int] = field(default_factory=list)
    first_calls: list[int] = field(default_factory=list)


def only_warm(
    trace: Trace, linked: Linked, windows: Windows, first: HostSpans
) -> tuple[Linked, Windows, ColdStepTimes]:
    """Keep the steps without first calls, if there are any.

    All steps are kept where none is warm, and in our own runs, which are warmed up before they are
    profiled.
    """
    spent = _ns_of_first_calls(trace, linked, windows, first)
    cold = spent > _SEEN * linked.wall
    if windows.source == "prunescope" or not cold.any() or cold.all():
        return linked, windows, ColdStepTimes()
    cold_times = ColdStepTimes(linked.wall[cold].tolist(), spent[cold].tolist())
    return *_select_steps(trace, linked, windows, np.flatnonzero(~cold)), cold_times


def _ns_of_first_calls(trace: Trace, linked: Linked, windows: Windows, first: HostSpans) -> Ints:
    """Return the time of first calls in which the device idles, by step, ns.

    On a CPU it is the time of compilers.
    """
    if not trace.on_device:
        return first.compiler_spans().ns_by_window(windows)
    spans = Spans.union(first.begin, first.end)
    idle = spans.spent(linked.start) - spans.spent(linked.start - linked.gap)
    return np.bincount(linked.step, idle, minlength=len(windows)).astype(np.int64)


def _select_steps(
    trace: Trace, linked: Linked, windows: Windows, steps: Ints
) -> tuple[Linked, Windows]:
    """Keep some of the steps.

    All of them are linked before: a wall begins where the step before ends, whether that one is
    kept or not.
    """
    number = np.full(len(windows), NONE)
    number[steps] = np.arange(len(steps))
    keep = number[linked.step] >= 0
    moved = np.cumsum(keep) - 1
    columns = {name: getattr(linked, name)[keep] for name in PER_ROW}
    above = linked.above[keep]
    names = [windows.names[i] for i in steps]
    first = len(steps) > 0 and steps[0] == 0
    kept = Windows(windows.start[steps], windows.end[steps], windows.source, names)
    chosen = replace(
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
        launches=count_lost_launches(trace, kept) if trace.on_device else linked.launches,
    )
    return chosen, kept
