"""When a stream waited for an event, of an export of Nsight Systems.

In: calls that let a stream wait, when their events were complete on the device, and the device's
work. Out: when each wait began. The export gives the times of the call, which returns at once; the
stream itself waits from the end of what it ran before, until the event is complete.
"""

from __future__ import annotations

import numpy as np

from prunescope.analysis.trace.collect import NONE, Ints


def begins_of_waits(
    called: Ints, complete: Ints, streams: Ints, work: tuple[Ints, Ints, Ints]
) -> Ints:
    """When waits begin, ns; NONE where a stream still had work when the event was complete.

    `called`: when the call returned; `complete`: when the event was; `work`: start, end and stream
    of each device event. What begins on a stream before the event is complete was launched ahead of
    the wait, for all that comes behind the wait begins later.
    """
    begin = called.copy()
    start, end, on = work
    for stream in np.unique(streams).tolist():
        rows = np.flatnonzero(on == stream)
        rows = rows[np.argsort(start[rows], kind="stable")]
        waits = np.flatnonzero(streams == stream)
        before = np.searchsorted(start[rows], complete[waits], side="left") - 1
        busy_until = np.maximum.accumulate(end[rows]) if len(rows) else np.zeros(1, np.int64)
        until = np.where(before >= 0, busy_until[np.maximum(before, 0)], called[waits])
        begin[waits] = np.maximum(called[waits], until)
    return np.where(begin < complete, begin, NONE)
