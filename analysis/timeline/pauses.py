"""Time between steps in which the host waits: for the next request, or for the user.

In: a Trace and windows of ranges that users put around their steps. Out: `Pauses`, host ns. A step
owns the time up to it, because Python between two ranges is a part of a loop. A wait of the host is
none: it runs no op and makes no call for longer than it ever does inside of a range, and for longer
than Python between two ops takes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from prunescope.analysis.timeline.intervals import Spans, Windows
from prunescope.analysis.timeline.runtime_calls import runtime_calls
from prunescope.analysis.trace.collect import Ints
from prunescope.analysis.trace.events import Trace

BETWEEN_OPS = 1_000_000  # ns of Python between two ops: more is other work


@dataclass(frozen=True)
class Pauses:
    """By step: when the first wait since the step before begins, and when the last one ends;
    equal where there is none."""

    begin: Ints
    end: Ints


def pauses(trace: Trace, windows: Windows) -> Pauses:
    """The waits of the host before each step. The first has none."""
    none = Pauses(windows.start, windows.start)
    if not windows.are_ranges or len(windows) < 2:
        return none
    calls = runtime_calls(trace)
    tables = trace.ops, calls
    begins = np.concatenate([table["ts"] for table in tables])
    active = Spans.of(begins, begins + np.concatenate([table["dur"] for table in tables]))
    from_, to = active.end[:-1], active.begin[1:]  # the host is idle
    longest = _longest_inside(from_, to, windows)
    long = np.flatnonzero(to - from_ > max(longest, BETWEEN_OPS))
    begin, end = windows.start.copy(), windows.start.copy()
    for i in range(1, len(windows)):
        low = np.maximum(from_[long], windows.end[i - 1])
        high = np.minimum(to[long], windows.start[i])
        waits = high - low > max(longest, BETWEEN_OPS)
        if waits.any():
            begin[i], end[i] = low[waits][0], high[waits][-1]
    return Pauses(begin, end)


def _longest_inside(begin: Ints, end: Ints, windows: Windows) -> int:
    """The longest part of an interval that lies inside of one window."""
    longest = 0
    for at, low, high in ((begin, False, True), (end, True, False)):
        step = windows.step_of(at)
        inside = step >= 0
        from_ = np.maximum(begin, windows.start[step]) if low else begin
        to = np.minimum(end, windows.end[step]) if high else end
        longest = max(longest, int((to - from_)[inside].max(initial=0)))
    return longest
