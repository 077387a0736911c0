"""Time between steps in which the host waits: for the next request, or for the user.

In: a Trace and windows of ranges that users put around their steps. Out: `Pauses`, host ns. A step
owns the time up to it, because Python between two ranges is a part of a loop. A wait of the host
belongs to no step: the host then runs no op and makes no call for longer than it ever does inside
of a range, and for longer than Python between two ops takes.
"""

from __future__ import annotations

import numpy as np
from msgspec import Struct

from prunescope.analysis.timeline.intervals import Spans, Windows
from prunescope.analysis.timeline.runtime_calls import runtime_calls
from prunescope.analysis.trace.collector import Ints
from prunescope.analysis.trace.trace_columns import Trace

BETWEEN_OPS = 1_000_000  # ns of Python between two ops: more is other work


class Pauses(Struct, frozen=True):
    """The waits before each step: when the first one begins, and when the last one ends.

    Both times are equal for a step without a wait.
    """

    begin: Ints
    end: Ints


def find_pauses(trace: Trace, windows: Windows) -> Pauses:
    """Find the waits of the host before each step; the first step has none."""
    none = Pauses(windows.start, windows.start)
    if not windows.are_ranges or len(windows) < 2:
        return none
    calls = runtime_calls(trace)
    tables = trace.ops, calls
    begins = np.concatenate([table["ts"] for table in tables])
    active = Spans.union(begins, begins + np.concatenate([table["dur"] for table in tables]))
    idle_from, idle_to = active.end[:-1], active.begin[1:]  # of the host
    longest = max(_longest_inside(idle_from, idle_to, windows), BETWEEN_OPS)
    long = np.flatnonzero(idle_to - idle_from > longest)
    begin, end = windows.start.copy(), windows.start.copy()
    for i in range(1, len(windows)):
        low = np.maximum(idle_from[long], windows.end[i - 1])
        high = np.minimum(idle_to[long], windows.start[i])
        waits = high - low > longest
        if waits.any():
            begin[i], end[i] = low[waits][0], high[waits][-1]
    return Pauses(begin, end)


def _longest_inside(begin: Ints, end: Ints, windows: Windows) -> int:
    """Return the longest part of an interval that lies inside of one window, ns."""
    first, last = windows.step_of(begin), windows.step_of(end)
    after_begin = (np.minimum(end, windows.end[first]) - begin)[first >= 0]
    before_end = (end - np.maximum(begin, windows.start[last]))[last >= 0]
    return int(max(after_begin.max(initial=0), before_end.max(initial=0)))
