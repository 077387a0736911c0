"""Launch calls of the host, and the ops inside which a launching thread copied or waited.

In: a trace on a device and its links. Out: the column `first_of_launch`, and the blocked time (ns)
by op.
"""

from __future__ import annotations

import numpy as np
import polars as pl

from prunescope.analysis.kernels.waits import (
    Spans,
    blocking_calls,
    first_of,
    is_op,
    launches_in_turn,
)
from prunescope.analysis.timeline.correlate import launch_of, taken
from prunescope.analysis.timeline.link import Linked
from prunescope.analysis.timeline.nesting import innermost
from prunescope.analysis.trace.events import Trace
from prunescope.analysis.trace.load import NONE, Ints

_BLOCKED = {"instance": pl.Int64, "op": pl.String, "ns": pl.Int64}


def add_first(frame: pl.DataFrame, trace: Trace, linked: Linked) -> pl.DataFrame:
    """Column `first_of_launch`: whether a row is the first of its launch, for a graph replay is one
    launch of many; null where no launch is known."""
    launch = launch_of(trace, linked.event) if trace.on_device else np.full(len(frame), NONE)
    known = pl.Series(launch >= 0)
    return frame.with_columns(first_of_launch=pl.when(known).then(pl.Series(first_of(launch))))


def blocked_by_op(trace: Trace, linked: Linked) -> pl.DataFrame:
    """The time of the column `host_blocked_ns`, ns of all steps, by the innermost op around each
    call that copies or waits: `instance` is its row in the trace, -1 for a call outside of any op,
    which stands for itself."""
    calls = blocking_calls(trace)
    if not trace.on_device or not len(calls["ts"]):
        return pl.DataFrame(schema=_BLOCKED)
    spent = np.zeros(len(calls["ts"]), np.int64)
    before, after = launches_in_turn(linked, launch_of(trace, linked.event) >= 0)
    threads = np.stack((linked.thread[before], linked.thread[after]), axis=1)
    for pair in np.unique(threads, axis=0):
        wanted = (threads == pair).all(axis=1)
        own = np.flatnonzero(np.isin(calls["thread"], pair))
        own = own[np.argsort(calls["ts"][own], kind="stable")]
        spans = Spans.of(calls["ts"][own], calls["ts"][own] + calls["dur"][own])
        since, until = linked.launched[before[wanted]], linked.launched[after[wanted]]
        at, ns = _overlaps(spans, since, until)
        np.add.at(spent, own[at], ns)
    found = np.flatnonzero(spent)
    around = _op_around(trace, calls["thread"][found], calls["ts"][found])
    names = np.where(around >= 0, taken(trace.ops["name"], around), calls["name"][found])
    told = pl.DataFrame(
        {"instance": around, "op": [trace.names[i] for i in names], "ns": spent[found]},
        schema=_BLOCKED,
    )
    return told.group_by("instance", "op", maintain_order=True).agg(pl.col("ns").sum())


def _overlaps(spans: Spans, since: Ints, until: Ints) -> tuple[Ints, Ints]:
    """Indices of disjoint spans, and for how long each lies in one of the windows."""
    low = np.searchsorted(spans.end, since, "right")
    many = np.maximum(np.searchsorted(spans.begin, until, "left") - low, 0)
    window = np.repeat(np.arange(len(since)), many)
    at = np.arange(len(window)) - np.repeat(np.cumsum(many) - many, many) + low[window]
    ns = np.minimum(spans.end[at], until[window]) - np.maximum(spans.begin[at], since[window])
    return at, np.maximum(ns, 0)


def _op_around(trace: Trace, thread: Ints, ts: Ints) -> Ints:
    """Row of the innermost op around each time on its thread, -1 for none."""
    ops = np.flatnonzero(is_op(trace)[trace.ops["name"]])
    spans = {name: trace.ops[name][ops] for name in ("ts", "dur", "thread")}
    found = innermost({**spans, "order": trace.ops["external"][ops]}, thread, ts)
    return taken(ops, found)
