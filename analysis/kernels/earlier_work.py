"""The time at the begin of a trace that belongs to work from before the profiler started.

In: the linked steps of a phase. Out: the same steps without that time, which is no time of a step:
walls, gaps and all that is computed from them are those of the step's own work. Times are in ns.
"""

from __future__ import annotations

import numpy as np
from msgspec.structs import replace

from prunescope.analysis.kernels.idle import LAUNCHED, parts_of_gaps
from prunescope.analysis.timeline.first_calls import UnusualCalls
from prunescope.analysis.timeline.link import Linked
from prunescope.analysis.trace.trace_columns import Trace

_HARDLY = 0.01  # share of an idle time: less work before it is hardly any


def leave_out_earlier_work(linked: Linked, trace: Trace, unusual: UnusualCalls) -> Linked:
    """Return the steps without the time in which earlier work ran; `earlier_work_ns` says how much.

    That is the longest gap of the first step in which its kernel was blocked, where this kernel is
    the first event of its stream in the trace and hardly anything ran before. The gap ends with
    the step's own kernel, and its wall begins that much later.

    Limitations: It is a guess. What ran then is not in the trace; most likely it was launched
    before the trace began.
    """
    longest = _first_blocked(linked, trace, unusual)
    if longest is None:
        return linked
    row, earlier_ns = longest
    gap, wall = linked.gap.copy(), linked.wall.copy()
    gap[row] -= earlier_ns
    wall[linked.step[row]] -= earlier_ns
    return replace(linked, gap=gap, wall=wall, earlier_work_ns=earlier_ns)


def _first_blocked(linked: Linked, trace: Trace, unusual: UnusualCalls) -> tuple[int, int] | None:
    """Return the row that earlier work blocked, and for how long (ns); None where there is none.

    The causes of gaps are only computed where a long gap ends with the first event of a stream.
    """
    if not trace.on_device or not len(linked.step) or linked.carry_over["events"]:
        return None
    device = trace.device
    is_long = (linked.step == linked.step.min()) & (linked.gap > LAUNCHED)
    if not is_long.any():
        return None
    _, stream = np.unique(device["stream"], return_inverse=True)
    first = np.full(stream.max() + 1, np.iinfo(np.int64).max)
    np.minimum.at(first, stream, device["ts"])
    is_first = is_long & (linked.start <= first[stream[linked.event]])
    if not is_first.any():
        return None
    blocked = np.where(is_long, parts_of_gaps(trace, linked, unusual)["blocked"], 0)
    row = int(blocked.argmax())
    ran_before = int(device["dur"][device["ts"] < linked.start[row]].sum())
    if not is_first[row] or not blocked[row] or ran_before > _HARDLY * blocked[row]:
        return None
    return row, int(blocked[row])
