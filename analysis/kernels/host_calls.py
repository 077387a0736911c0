"""The runtime calls of the host: launches, copies that block, and calls that wait for the device.

In: a trace on a device, its linked rows and the windows of its steps. Out: the host's time between
launches and in blocking calls (ns) by row and by op; the column `first_of_launch`; and
`GraphBlockers`, the calls of a step that no CUDA graph can hold.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import polars as pl
from msgspec import Struct

from prunescope.analysis.timeline.correlate import launch_of, taken
from prunescope.analysis.timeline.intervals import Spans, Windows, innermost
from prunescope.analysis.timeline.link import Linked
from prunescope.analysis.timeline.runtime_calls import (
    ALLOCATION,
    COPY,
    SYNC,
    match_names,
    runtime_calls,
)
from prunescope.analysis.trace.collector import NONE, Ints, Mask, unique_ids
from prunescope.analysis.trace.trace_columns import Trace
from prunescope.taxonomy.lazy_pattern import lazy_pattern

_PAGEABLE = lazy_pattern(r"Memcpy.*Pageable")


_RETURNS = lazy_pattern(r"Async", re.IGNORECASE)  # a copy call that may return before the copy


def first_of(launch: Ints) -> Mask:
    """Return the rows that are the first of their launch: a graph replay is one launch of many."""
    first = np.zeros(len(launch), bool)
    first[np.unique(launch, return_index=True)[1]] = True
    return first


def blocking_calls(trace: Trace) -> dict[str, Ints]:
    """Return the runtime calls that copy, or wait for the device."""
    calls = runtime_calls(trace)
    rows = match_names(trace, calls["name"], COPY) | match_names(trace, calls["name"], SYNC)
    return {name: column[rows] for name, column in calls.items()}


def blocking_copies(trace: Trace, calls: dict[str, Ints]) -> Mask:
    """Return which of all runtime `calls` are copies that no CUDA graph can hold.

    Those copy pageable memory, or are made by a call that returns only after the copy.
    """
    copy, returns = (match_names(trace, calls["name"], pattern) for pattern in (COPY, _RETURNS))
    events = np.flatnonzero(match_names(trace, trace.device["name"], _PAGEABLE))
    of_copy = launch_of(trace, events)
    pageable = np.zeros(len(copy), bool)  # launches come first among the calls
    pageable[of_copy[of_copy >= 0]] = True
    return np.asarray(pageable | copy & ~returns)


def is_op(trace: Trace) -> Mask:
    """Return which names are those of ops: before PyTorch 1.12, annotations were among them."""
    return np.array(["#" not in name or "::" in name for name in trace.names], bool)


def host_time(linked: Linked, launched: Mask, calls: dict[str, Ints]) -> tuple[Ints, Ints]:
    """Return the host's time from the launch before to the launch of each row, ns.

    The launch before is that of the same step, by any thread. The second array is the part of the
    time in which a thread of the two launches was in one of `calls`, which copy or wait: that is no
    work of the op, and the first array is without it. Both are NONE for a row without a launch, and
    for the first one of a step.
    """
    host_ns, blocked = (np.full(len(linked.start), NONE) for _ in range(2))
    before, after = launches_in_turn(linked, launched)
    for pair, rows in _pairs_by_threads(linked, before, after):
        own = np.isin(calls["thread"], pair)
        begin = calls["ts"][own]
        spans = Spans.union(begin, begin + calls["dur"][own])
        since, until = linked.launched[before[rows]], linked.launched[after[rows]]
        blocked[after[rows]] = spans.spent(until) - spans.spent(since)
        host_ns[after[rows]] = until - since - blocked[after[rows]]
    return host_ns, blocked


def launches_in_turn(linked: Linked, launched: Mask) -> tuple[Ints, Ints]:
    """Return pairs of rows whose launches follow one another in one step, by any thread.

    `launched` marks the rows with a known launch.
    """
    order = np.lexsort((linked.launched, linked.step))
    order = order[launched[order]]
    before, after = order[:-1], order[1:]
    same = linked.step[after] == linked.step[before]
    return before[same], after[same]


def _pairs_by_threads(
    linked: Linked, before: Ints, after: Ints
) -> Iterator[tuple[list[int], Mask]]:
    """Yield pairs of rows by the threads that launched them: both threads, and a mask."""
    first, second = linked.thread[before], linked.thread[after]
    for thread in unique_ids(first).tolist():
        thread_spans = first == thread
        for next_thread in unique_ids(second[thread_spans]).tolist():
            yield [thread, next_thread], thread_spans & (second == next_thread)


_BLOCKED = {"instance": pl.Int64, "op": pl.String, "ns": pl.Int64}


def add_first(frame: pl.DataFrame, trace: Trace, linked: Linked) -> pl.DataFrame:
    """Add column `first_of_launch`: whether a row is the first of its launch.

    A graph replay is one launch of many rows. Null where no launch is known.
    """
    launch = launch_of(trace, linked.event) if trace.on_device else np.full(len(frame), NONE)
    first = pl.Series(first_of(launch)).zip_with(pl.Series(launch >= 0), _UNKNOWN)
    return frame.hstack([first.alias("first_of_launch")])


_UNKNOWN = pl.Series([None], dtype=pl.Boolean)


def host_blocked_by_op(trace: Trace, linked: Linked) -> pl.DataFrame:
    """Sum the time of the column `host_blocked_ns` by the innermost op around each blocking call.

    `ns` is of all steps. `instance` is the row of the op in the trace; it is -1 for a call outside
    any op, which is listed by its own name.
    """
    calls = blocking_calls(trace)
    if not trace.on_device or not len(calls["ts"]):
        return pl.DataFrame(schema=_BLOCKED)
    spent = np.zeros(len(calls["ts"]), np.int64)
    before, after = launches_in_turn(linked, launch_of(trace, linked.event) >= 0)
    for pair, wanted in _pairs_by_threads(linked, before, after):
        own = np.flatnonzero(np.isin(calls["thread"], pair))
        own = own[np.argsort(calls["ts"][own], kind="stable")]
        spans = Spans.union(calls["ts"][own], calls["ts"][own] + calls["dur"][own])
        since, until = linked.launched[before[wanted]], linked.launched[after[wanted]]
        at, ns = _overlaps(spans, since, until)
        np.add.at(spent, own[at], ns)
    rows = np.flatnonzero(spent)
    around = _op_around(trace, calls["thread"][rows], calls["ts"][rows])
    names = np.where(around >= 0, taken(trace.ops["name"], around), calls["name"][rows])
    blocked = pl.DataFrame(
        {"instance": around, "op": [trace.names[i] for i in names], "ns": spent[rows]},
        schema=_BLOCKED,
    )
    return blocked.group_by("instance", "op", maintain_order=True).agg(pl.col("ns").sum())


def _overlaps(spans: Spans, since: Ints, until: Ints) -> tuple[Ints, Ints]:
    """Return the indices of disjoint spans, and how long each lies in one of the windows."""
    low = np.searchsorted(spans.end, since, "right")
    many = np.maximum(np.searchsorted(spans.begin, until, "left") - low, 0)
    window = np.repeat(np.arange(len(since)), many)
    at = np.arange(len(window)) - np.repeat(np.cumsum(many) - many, many) + low[window]
    ns = np.minimum(spans.end[at], until[window]) - np.maximum(spans.begin[at], since[window])
    return at, np.maximum(ns, 0)


def _op_around(trace: Trace, thread: Ints, ts: Ints) -> Ints:
    """Return the row of the innermost op around each time on its thread, -1 for none."""
    ops = np.flatnonzero(is_op(trace)[trace.ops["name"]])
    spans = {name: trace.ops[name][ops] for name in ("ts", "dur", "thread")}
    inner = innermost({**spans, "order": trace.ops["external"][ops]}, thread, ts)
    return taken(ops, inner)


class AllocatorCalls(Struct, frozen=True):
    """The calls in the steps that allocate or free memory.

    Attributes:
        counts: How often each is made, the most frequent first.
        frees_late: How many give memory back in the second half of the launches. A pool of memory
            that still grows makes its calls before, and one that is off makes them all the time.
    """

    counts: dict[str, int]
    frees_late: int = 0


_FREES = lazy_pattern(r"Free|Release|Unmap|Trim")


def allocator_calls(trace: Trace, windows: Windows) -> AllocatorCalls:
    """Count the allocator's calls of all threads in the steps."""
    calls = runtime_calls(trace)
    rows = match_names(trace, calls["name"], ALLOCATION) & (windows.step_of(calls["ts"]) >= 0)
    launched = trace.launches["ts"]
    launched = launched[windows.step_of(launched) >= 0]
    middle = float(np.median(launched)) if len(launched) else -np.inf
    late = rows & match_names(trace, calls["name"], _FREES) & (calls["ts"] > middle)
    return AllocatorCalls(_counts_of_names(trace, calls["name"][rows]), int(late.sum()))


_SHOWN = 60  # characters of a call's name
_FETCH = lazy_pattern(r"DtoH|DeviceToHost|^Memcpy D2[HM]")


class GraphBlockers(Struct, frozen=True):
    """The calls that stop a step from becoming a CUDA graph, medians over steps.

    Only calls before the last launch that is no copy to the host count: what follows it may fetch
    the result of a graph.

    Attributes:
        waits: Calls that wait for the device.
        copies: Copies that no graph can hold.
        by: Names of the calls that wait, the most frequent first.
    """

    waits: float = 0.0
    copies: float = 0.0
    by: str = ""

    def __bool__(self) -> bool:
        """Return whether more calls of a kind stop the step than the one that fetches a result."""
        return max(self.waits, self.copies) > 1

    def __str__(self) -> str:
        """Return e.g. `10 waits (cudaStreamSynchronize) and 1 copy`."""
        by = f" ({self.by})" if self.by else ""
        kinds = ((self.waits, "wait", "waits", by), (self.copies, "copy", "copies", ""))
        return " and ".join(
            f"{n:g} {singular if n == 1 else plural}{which}"
            for n, singular, plural, which in kinds
            if n
        )


def graph_blockers(trace: Trace, windows: Windows, linked: Linked) -> GraphBlockers:
    """Count the calls, of threads that launch kernels, that no CUDA graph can hold.

    A copy counts where its memory is pageable or its call does not return at once.
    """
    if not (trace.on_device and len(windows)):
        return GraphBlockers()
    name = taken(trace.device["name"], linked.event, absent=0)
    work = ~match_names(trace, name, _FETCH)
    last = np.full(len(windows), np.iinfo(np.int64).min)
    np.maximum.at(last, linked.step[work], linked.launched[work])
    threads = unique_ids(linked.thread[work])
    calls = runtime_calls(trace)
    sync = match_names(trace, calls["name"], SYNC)
    step = windows.step_of(calls["ts"])
    step = np.where(np.isin(calls["thread"], threads), step, NONE)
    step = np.where((step >= 0) & (calls["ts"] < last[np.maximum(step, 0)]), step, NONE)
    return GraphBlockers(
        by=", ".join(_counts_of_names(trace, calls["name"][sync & (step >= 0)])),
        waits=_median(step[sync], len(windows)),
        copies=_median(step[blocking_copies(trace, calls)], len(windows)),
    )


def _counts_of_names(trace: Trace, names: Ints) -> dict[str, int]:
    """Count how often each name (id) occurs, the most frequent first."""
    counts = np.bincount(names)
    order = [int(i) for i in np.argsort(-counts, kind="stable") if counts[i]]
    return {trace.names[i][:_SHOWN]: int(counts[i]) for i in order}


def _median(step: Ints, steps: int) -> float:
    return float(np.median(np.bincount(step[step >= 0], minlength=steps)))
