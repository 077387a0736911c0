"""Launches whose kernel is not in the trace: lost, or captured into a graph and never run.

In: a Trace and Windows. Out: counts of kernel launches in the steps.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from prunescope.analysis.schema.notice import Notice, note
from prunescope.analysis.timeline.intervals import Windows
from prunescope.analysis.trace.collector import Ints
from prunescope.analysis.trace.event import DEVICE_CATEGORIES
from prunescope.analysis.trace.trace_columns import Trace

# cudaStreamBeginCapture_ptsz, cuStreamBeginCaptureToGraph_v2, hipStreamBeginCapture, ...
_BEGIN, _END = "streambegincapture", "streamendcapture"
_EVER = np.iinfo(np.int64)
_KERNEL = DEVICE_CATEGORIES["kernel"]


def count_lost_launches(trace: Trace, windows: Windows) -> dict[str, int]:
    """Count the kernel launches of the steps, and those whose kernel is not in the trace.

    Kernels that name no launch are taken for those of launches that seem to have none.

    Returns:
        `events`: kernels that were launched to run in the steps; `lost`: those of them that are not
            in the trace; `at_end`: the lost ones after the last launch whose kernel is there, as
            where a profiler stops before the device has run them; `captured`: launches that a
            stream captured into a graph, which are not among `events`.
    """
    launches = trace.launches
    if not len(launches["ts"]):
        return {"events": 0, "lost": 0, "at_end": 0, "captured": 0}
    wanted = _is_kernel_launch(trace)
    wanted &= windows.step_of(launches["ts"]) >= 0
    absent = wanted & ~trace.launches_named
    captured = absent & _is_in_capture(trace, launches["ts"])
    recorded = int(captured.sum())
    lost = max(0, int(absent.sum()) - recorded - _count_nameless_kernels(trace))
    ran = launches["ts"][wanted & ~absent]
    late = absent & ~captured & (launches["ts"] > (ran.max() if len(ran) else _EVER.min))
    return {
        "events": int(wanted.sum()) - recorded,
        "lost": lost,
        "at_end": min(lost, int(late.sum())),
        "captured": recorded,
    }


def nameless_notes(trace: Trace) -> list[Notice]:
    """Return a that kernels which name no launch are of for those of launches without none."""
    kernels, launches = (
        _count_nameless_kernels(trace),
        int((_is_kernel_launch(trace) & ~trace.launches_named).sum()),
    )
    if not kernels or not launches:
        return []
    return [note("nameless-launches", kernels=kernels, launches=launches)]


def _count_nameless_kernels(trace: Trace) -> int:
    """Return how many kernels name no launch."""
    device = trace.device
    return int(((device["correlation"] < 0) & (device["category"] == _KERNEL)).sum())


def _is_kernel_launch(trace: Trace) -> NDArray[np.bool_]:
    """Mark the launches that launch a kernel."""
    return _names_with(trace, "launchkernel")[trace.launches["name"]]


def _names_with(trace: Trace, part: str) -> NDArray[np.bool_]:
    """Mark the names of a trace that contain a part of a call's name."""
    return np.array([part in name.lower() for name in trace.names], bool)


def _is_in_capture(trace: Trace, ts: Ints) -> NDArray[np.bool_]:
    """Mark the times that lie in the capture of a stream, on whatever thread.

    A capture may join streams that other threads launch on, and may end on another thread than it
    began.
    """
    inside = np.zeros(len(ts), bool)
    for begin, end in _find_captures(trace):
        inside |= (ts >= begin) & (ts < end)
    return inside


def _find_captures(trace: Trace) -> Iterator[tuple[int, int]]:
    """Yield begin and end of the times in which a stream captured, ns.

    A driver's call may lie in one of the runtime, and captures may lie in one another. A capture
    whose other end lies outside of what was traced reaches to that end of the trace.
    """
    calls = (trace.launches, trace.other_calls)
    at, name = (np.concatenate([table[column] for table in calls]) for column in ("ts", "name"))
    begins, ends = (_names_with(trace, part)[name] for part in (_BEGIN, _END))
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
