"""The work of a trace in the order of its launches, by name: what repeats, and how similar it is.

In: a Trace. Out: `WorkSequence`: what was launched, when on the host (ns) and how long it ran (ns);
on a CPU trace the outermost ops that do work.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
from msgspec import Struct

from prunescope.analysis.ops.kernel_kinds import is_work_op
from prunescope.analysis.timeline.correlate import launch_of, op_of_launch, taken
from prunescope.analysis.timeline.intervals import Windows, parents_on_threads, rows_by_value
from prunescope.analysis.trace.collector import Floats, Ints, Mask
from prunescope.analysis.trace.trace_columns import Trace

# Shares of the launches of a usual part, for most parts and for all: the first pass of a loop also
# builds masks and caches, and a prompt is masked where a single token is not.
_ALIKE, _ALL_ALIKE = 0.95, 0.75
NEARLY_ALL = 0.9  # of the device's time: what repeats in less is no step


class WorkSequence(Struct, frozen=True, dict=True):
    """The work of a trace, one row per launch, in the order of the host.

    `name` indexes `names`; `begin` is the host ns at which its outermost op, else its launch,
    begins; `ns` is how long it ran.
    """

    names: list[str]
    name: Ints
    begin: Ints
    ns: Ints

    @cached_property
    def kinds(self) -> tuple[Ints, Ints]:
        """The distinct names, and the index among them of each row's name."""
        return np.unique(self.name, return_inverse=True)

    def ends_with(self, part: str) -> Mask:
        """Mark the rows whose name ends with `part`."""
        distinct, row = self.kinds
        return np.array([self.names[i].endswith(part) for i in distinct], bool)[row]

    def equal_before(self, at: Ints) -> int:
        """Count the rows before each of the rows `at` that have the same names everywhere.

        The count is limited by the distance between two of the rows.
        """
        _, row = self.kinds
        most = min(int(at[0]), int(np.diff(at).min()) - 1)
        for back in range(1, most + 1):
            before = row[at - back]
            if (before != before[0]).any():
                return back - 1
        return most

    def share_of_time(self, windows: Windows) -> float:
        """Return the share of the time of all rows that lies in the windows."""
        whole = int(self.ns.sum())
        return int(self.ns[windows.step_of(self.begin) >= 0].sum()) / whole if whole else 0.0

    def are_alike(self, windows: Windows, among: Ints | None = None) -> bool:
        """Return whether the windows, or those `among` them, hold nearly the same work.

        That is the same names, each as often.
        """
        held = self._count_names(windows)
        shared = _shared_work(held if among is None else held[among])
        return bool(np.median(shared) >= _ALIKE and shared.min() >= _ALL_ALIKE)

    def are_mostly_alike(self, windows: Windows) -> bool:
        """Return whether most of the windows hold similar work, whatever the others hold."""
        return bool(np.median(_shared_work(self._count_names(windows))) >= _ALL_ALIKE)

    def is_usual(self, windows: Windows, index: int, usual: Ints) -> bool:
        """Return whether a window holds about the same work as the median of some windows."""
        held = self._count_names(windows)
        return bool(_shared_work(held[[index]], np.median(held[usual], axis=0))[0] >= _ALL_ALIKE)

    def _count_names(self, windows: Windows) -> Ints:
        """Count how often each window holds each name: [windows, names]."""
        distinct, row = self.kinds
        part = windows.step_of(self.begin)
        inside = part >= 0
        at = part[inside] * len(distinct) + row[inside]
        held = np.bincount(at, minlength=len(windows) * len(distinct))
        return held.reshape(len(windows), len(distinct))


def _shared_work(held: Ints, usual: Floats | None = None) -> Floats:
    """Return the share of each part's work that the usual part holds too; 0 where both are empty.

    `held` counts names: [parts, names]. The usual part is the median of the parts if None is given.
    """
    usual = np.median(held, axis=0) if usual is None else usual
    larger = np.maximum(held.sum(axis=1), usual.sum())
    return np.asarray(np.minimum(held, usual).sum(axis=1) / np.maximum(larger, 1))


def work_sequence(trace: Trace) -> WorkSequence:
    """Return the launches whose kernels are in the trace; on a CPU trace the outermost work ops."""
    return _device_sequence(trace) if trace.on_device else _host_sequence(trace)


def host_span(trace: Trace) -> tuple[int, int]:
    """Return when the first op or launch of a trace begins, and when the last one ends, ns.

    On a device trace the second time is one ns later, so that every begin is before it. The trace
    has to hold at least one op or launch.
    """
    tables = [table for table in (trace.ops, trace.launches) if len(table["ts"])]
    end = max(int((table["ts"] + table["dur"]).max()) for table in tables)
    return min(int(table["ts"].min()) for table in tables), end + trace.on_device


def _device_sequence(trace: Trace) -> WorkSequence:
    """Return the launches of a device trace.

    Each is named after its op where there is one, because a prompt and a token run different
    kernels of one op.
    """
    device = trace.device
    launch = launch_of(trace, np.arange(len(device["ts"])))
    events = np.flatnonzero(launch >= 0)
    order = np.lexsort((device["ts"][events], trace.launches["ts"][launch[events]]))
    events = events[order]
    launch = launch[events]
    op = op_of_launch(trace, launch, device["external"][events])
    name = np.where(op >= 0, taken(trace.ops["name"], op), device["name"][events])
    ts = trace.launches["ts"][launch]
    begin = _outermost_begin(trace, trace.launches["thread"][launch], ts)
    return WorkSequence(trace.names, name, begin, device["dur"][events])


def _host_sequence(trace: Trace) -> WorkSequence:
    """Return the outermost work ops of a CPU trace."""
    ops = trace.ops
    work = np.array([is_work_op(name) for name in trace.names], bool)
    rows = np.flatnonzero(work[ops["name"]]) if len(ops["name"]) else np.zeros(0, np.int64)
    rows = rows[np.lexsort((-ops["dur"][rows], ops["ts"][rows]))]
    start = ops["ts"][rows]
    rows = rows[parents_on_threads(ops["thread"][rows], start, start + ops["dur"][rows]) < 0]
    begin = _outermost_begin(trace, ops["thread"][rows], ops["ts"][rows])
    return WorkSequence(trace.names, ops["name"][rows], begin, ops["dur"][rows])


def _outermost_begin(trace: Trace, thread: Ints, ts: Ints) -> Ints:
    """Return the begin of the outermost op around each time on its thread.

    It is the time itself where there is no op, or where that op holds an earlier time too: a
    scripted model is one op for all that it runs.
    """
    ops = trace.ops
    begin = ts.copy()
    rows_of_ops = rows_by_value(ops["thread"])
    for number, rows in rows_by_value(thread).items():
        own = rows_of_ops.get(number)
        if own is None:
            continue
        own = own[np.lexsort((-ops["dur"][own], ops["ts"][own]))]
        start = ops["ts"][own]
        end = np.maximum.accumulate(start + ops["dur"][own])
        first = np.flatnonzero(np.concatenate(([True], start[1:] >= end[:-1])))
        at = np.searchsorted(start[first], ts[rows], side="right") - 1
        around = (at >= 0) & (ts[rows] < end[np.append(first[1:] - 1, len(own) - 1)][at])
        again = np.concatenate(([False], at[1:] == at[:-1]))
        begin[rows] = np.where(around & ~again, start[first[np.maximum(at, 0)]], ts[rows])
    return begin
