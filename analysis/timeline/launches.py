"""Launches whose kernel is not in the trace: lost, or captured into a graph and never run.

In: a Trace and Windows. Out: counts of kernel launches in the steps.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from prunescope.analysis.schema.notice import Notice, note
from prunescope.analysis.timeline.intervals import Windows
from prunescope.analysis.trace.collect import Ints
from prunescope.analysis.trace.event import DEVICE_CATEGORIES
from prunescope.analysis.trace.events import Trace

# cudaStreamBeginCapture_ptsz, cuStreamBeginCaptureToGraph_v2, hipStreamBeginCapture, ...
_BEGIN, _END = "streambegincapture", "streamendcapture"
_EVER = np.iinfo(np.int64)
_KERNEL = DEVICE_CATEGORIES["kernel"]


def lost_launches(trace: Trace, windows: Windows) -> dict[str, int]:
    """How many kernels were launched to run in the steps (`events`), how many of them are not in
    the trace (`lost`), and how many launches more a stream captured into a graph (`captured`). A
    kernel that names no launch is that of one of those that seem to have none."""
    launches = trace.launches
    if not len(launches["ts"]):
        return {"events": 0, "lost": 0, "captured": 0}
    wanted = _launches_kernels(trace)
    wanted &= windows.step_of(launches["ts"]) >= 0
    absent = wanted & ~trace.launches_named
    captured = absent & _is_in_capture(trace, launches["ts"])
    recorded = int(captured.sum())
    return {
        "events": int(wanted.sum()) - recorded,
        "lost": max(0, int(absent.sum()) - recorded - _nameless_kernels(trace)),
        "captured": recorded,
    }


def nameless_notes(trace: Trace) -> list[Notice]:
    """Return a note if kernels that name no launch are of launches that seem to have none."""
    kernels, launches = (
        _nameless_kernels(trace),
        int((_launches_kernels(trace) & ~trace.launches_named).sum()),
    )
    if not kernels or not launches:
        return []
    return [note("nameless-launches", kernels=kernels, launches=launches)]


def _nameless_kernels(trace: Trace) -> int:
    """How many kernels name no launch."""
    device = trace.device
    return int(((device["correlation"] < 0) & (device["category"] == _KERNEL)).sum())


def _launches_kernels(trace: Trace) -> NDArray[np.bool_]:
    return _called(trace, "launchkernel")[trace.launches["name"]]


def _called(trace: Trace, part: str) -> NDArray[np.bool_]:
    """Which of the names of a trace hold a part of a call's name."""
    return np.array([part in name.lower() for name in trace.names], bool)


def _is_in_capture(trace: Trace, ts: Ints) -> NDArray[np.bool_]:
    """Which times lie in the capture of a stream, on whatever thread: a capture may join streams
    that others launch on, and end on another thread than it began."""
    found = np.zeros(len(ts), bool)
    for begin, end in _captures(trace):
        found |= (ts >= begin) & (ts < end)
    return found


def _captures(trace: Trace) -> Iterator[tuple[int, int]]:
    """Begin and end of the times in which a stream captured, ns. A driver's call may lie in one of
    the runtime, and captures in one another. One whose other end lies outside of what was traced
    reaches to that end of the trace."""
    calls = (trace.launches, trace.other_calls)
    at, name = (np.concatenate([one[column] for one in calls]) for column in ("ts", "name"))
    begins, ends = (_called(trace, part)[name] for part in (_BEGIN, _END))
    rows = np.flatnonzero(begins | ends)
    rows = rows[np.argsort(at[rows], kind="stable")]
    depth, since = 0, _EVER.min
    for number, row in enumerate(rows.tolist()):
        if begins[row]:
            since = since if depth else int(at[row])
            depth += 1
        elif depth or number == 0:
            depth = max(0, depth - 1)
            if not depth:
                yield since, int(at[row])
    if depth:
        yield since, _EVER.max
