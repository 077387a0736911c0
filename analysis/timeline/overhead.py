"""Profiler overhead: where in a step of a CPU trace the cost of recording lies.

In: a trace and its linked rows. Out: `Recorded`, the weight of what was recorded in each part of a
step's time: inside a row, in the gap before it, behind the last one; a weight of 1 is one op. A
note states the work that profilers record of themselves while the device idled.

The profiler reads the clock last when an op begins and first when it ends, so the cost of recording
an op lies outside its span: in the enclosing work op, else in the idle time between ops.
"""

from __future__ import annotations

import re

import numpy as np
from msgspec import Struct

from prunescope.analysis.schema.notice import Notice, note
from prunescope.analysis.timeline.intervals import Spans, Windows, innermost
from prunescope.analysis.timeline.link import Linked
from prunescope.analysis.trace.collector import Ints, unique_ids
from prunescope.analysis.trace.trace_columns import Trace
from prunescope.taxonomy.lazy_pattern import lazy_pattern

# A span around a module costs two hooks in Python and its record: benchmarks/same.md.
SPAN = 8
# CUPTI's kinds of overhead that only a profiled run has. The others (a compiler, the loading of
# code, a full queue of commands) are the driver's.
_PROFILER = lazy_pattern(r"buffer flush|buffer request|instrumentation|resource", re.IGNORECASE)
_NAMED, _NAME = 3, 80  # names in a note, and their characters


class Recorded(Struct, frozen=True):
    """The weights of what was recorded: `inside` and `before` [rows], `after` [steps]."""

    inside: Ints
    before: Ints
    after: Ints


def nothing_recorded(linked: Linked) -> Recorded:
    """Return zero weights, as for a device trace, whose rows a profiler does not slow."""
    none = np.zeros(len(linked.step), np.int64)
    return Recorded(none, none, np.zeros(len(linked.wall), np.int64))


def weigh_records(trace: Trace, linked: Linked, windows: Windows) -> Recorded:
    """Weigh the ops and spans that the profiler recorded, by the part of a step that they slow."""
    weights = nothing_recorded(linked)
    if trace.on_device or not len(linked.step):
        return weights
    weights = Recorded(weights.inside.copy(), weights.before.copy(), weights.after)
    nested = linked.above >= 0
    np.add.at(weights.inside, linked.above[nested], 1)
    weights.before[~nested] += 1
    not_rows = np.ones(len(trace.ops["ts"]), bool)
    not_rows[linked.op] = False
    rows = {"ts": linked.start, "dur": linked.duration, "thread": linked.thread}
    modules = trace.annotations["module"] != 0
    for spans, kept, weight in (
        (trace.ops, not_rows, 1),
        (trace.annotations, modules, 1),
        (trace.annotations, ~modules, SPAN),
    ):
        begin, dur, thread = (spans[column][kept] for column in ("ts", "dur", "thread"))
        step = windows.step_of(begin)
        # A step's own annotation is recorded outside of it.
        within = (step >= 0) & (dur < (windows.end - windows.start)[step])
        begin, dur, thread, step = (column[within] for column in (begin, dur, thread, step))
        around = _enclosing_rows(linked, innermost(rows, thread, begin), begin, begin + dur)
        np.add.at(weights.inside, around[around >= 0], weight)
        _add_gaps(weights, linked, begin[around < 0], step[around < 0], weight)
    return weights


def _enclosing_rows(linked: Linked, row: Ints, begin: Ints, end: Ints) -> Ints:
    """Return the row that encloses each event, going outward from the innermost one at its begin.

    An event that begins with a row and ends with it or later is outside of that row.
    """
    ends = linked.start + linked.duration
    while True:
        same = (linked.start[row] == begin) & (ends[row] == end)
        outside = (row >= 0) & (same | (ends[row] < end))
        if not outside.any():
            return row
        row = np.where(outside, linked.above[row], row)


def _add_gaps(weights: Recorded, linked: Linked, begin: Ints, step: Ints, weight: int) -> None:
    """Add records to the gap of the next outermost row of the step, or behind its last row."""
    for i in unique_ids(step):
        top = np.flatnonzero((linked.step == i) & (linked.above < 0))
        at = np.searchsorted(linked.start[top], begin[step == i])
        np.add.at(weights.before, top[at[at < len(top)]], weight)
        weights.after[i] += weight * int((at >= len(top)).sum())


def profiler_notes(trace: Trace, linked: Linked) -> list[Notice]:
    """Return a note on the profiler's own work while the device idled in the steps."""
    work = trace.overhead
    gaps = Spans.union(linked.start - linked.gap, linked.start)
    spent = {}
    for i in unique_ids(work["name"]).tolist() if trace.on_device else ():
        if _PROFILER.search(trace.names[i]):
            rows = work["name"] == i
            spans = Spans.union(work["ts"][rows], (work["ts"] + work["dur"])[rows])
            if ns := int((gaps.spent(spans.end) - gaps.spent(spans.begin)).sum()):
                spent[trace.names[i]] = ns
    if not spent:
        return []
    parts = sorted(spent.items(), key=lambda part: -part[1])
    times = [(name[:_NAME], ns) for name, ns in parts[:_NAMED]]
    return [note("profiler-work-while-idle", times=times)]
