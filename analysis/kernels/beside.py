"""What the host was in while the device waited for it: an annotation, a frame of Python, a long op.

In: a trace, its linked rows and the host's part of each gap (ns). Out: a name for each row, or
None, and for how much of that part the host was in it. Names come from the trace; a frame is shown
by its function, without paths.
"""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from prunescope.analysis.timeline.engines import engine_step
from prunescope.analysis.timeline.link import Linked, cover
from prunescope.analysis.timeline.steps import OWN_PREFIX
from prunescope.analysis.trace.events import Trace
from prunescope.analysis.trace.load import Ints

LOADER = r"(?i)data_?loader|__next__"  # names of what waits for the next batch
_LOADER = re.compile(LOADER)
Table = dict[str, Ints]
_MOST = 100  # gaps that are looked at, the longest first
_LEAST = 20_000  # ns: shorter gaps lie between two launches of one op
_STEP = re.compile(r"ProfilerStep#\d+$")
_FRAME = re.compile(r"^(?:.*/)?([^/]+)\((\d+)\): (.+)$")
_ADDRESS = re.compile(r" (?:object )?at 0x[0-9a-f]+")
_ENOUGH = 0.5  # of the host's part of a gap
_LONG_OP = 1_000_000  # ns: no op takes so long to dispatch


def beside(
    trace: Trace, linked: Linked, host: Ints, blocks: Table
) -> tuple[list[str | None], Ints]:
    """The innermost annotation, frame or long op that holds at least half of the host's part of a
    gap, on the launching thread, else on any; inside of a data loader that one, with what is
    innermost in it, but no op. Steps are no answer,
    nor is an op with one of `blocks` in it: calls that copy, or wait. Beside the names, for how
    much of the host's part it holds, ns: the time in `blocks` is not the host's."""
    out: list[str | None] = [None] * len(host)
    within = np.zeros_like(host)
    order = np.argsort(-host, kind="stable")[:_MOST]
    rows = order[host[order] >= _LEAST]
    if not len(rows):
        return out, within
    begin, end, thread, names = _spans(trace, blocks)
    is_op = np.array(["::" in name for name in names], bool)
    loads = np.array([_LOADER.search(name) is not None for name in names], bool)
    for row in rows.tolist():
        first = linked.start[row] - linked.gap[row]
        held = np.minimum(end, linked.start[row]) - np.maximum(begin, first)
        near = np.flatnonzero(held >= _ENOUGH * host[row])
        own = near[thread[near] == linked.thread[row]]
        found = own if len(own) else near
        loading = found[loads[found] & ~is_op[found]]
        if len(found):
            inner = int(found[np.argmin(end[found] - begin[found])])
            one = int(loading[np.argmin((end - begin)[loading])]) if len(loading) else inner
            nested = one != inner and not is_op[inner]
            out[row] = f"{names[one]}: {names[inner]}" if nested else names[one]
            span = max(int(begin[one]), first), min(int(end[one]), int(linked.start[row]))
            blocked = _blocked(blocks, int(linked.thread[row]), *span)
            within[row] = min(int(held[one]) - blocked, int(host[row]))
    return out, within


def _blocked(blocks: Table, thread: int, begin: int, end: int) -> int:
    """For how much of a span of time a thread is in calls that copy or wait, ns."""
    at = blocks["ts"]
    own = (blocks["thread"] == thread) & (at < end) & (at + blocks["dur"] > begin)
    rows = np.flatnonzero(own)[np.argsort(at[own], kind="stable")]
    until = np.minimum(at + blocks["dur"], end)[rows]
    return int(cover(at[rows], until, begin)[0].sum())


def _spans(trace: Trace, blocks: Table) -> tuple[Ints, Ints, Ints, list[str]]:
    """Annotations, also those that older profilers wrote among the ops, frames and long ops: begin,
    end, thread and name."""
    shown = [_shown(name) for name in trace.names]
    noted = np.array(["#" in name and "::" not in name for name in trace.names], bool)
    tables = [
        (trace.annotations, np.arange(len(trace.annotations["ts"]))),
        (trace.frames, np.arange(len(trace.frames["ts"]))),
        (trace.ops, np.flatnonzero(noted[trace.ops["name"]] | _long_ops(trace.ops, blocks))),
    ]
    tables = [
        (table, rows[[shown[i] is not None for i in table["name"][rows]]] if len(rows) else rows)
        for table, rows in tables
    ]
    begin = np.concatenate([table["ts"][rows] for table, rows in tables])
    end = begin + np.concatenate([table["dur"][rows] for table, rows in tables])
    thread = np.concatenate([table["thread"][rows] for table, rows in tables])
    names = [shown[i] or "" for table, rows in tables for i in table["name"][rows].tolist()]
    return begin, end, thread, names


def _long_ops(ops: Table, blocks: Table) -> NDArray[np.bool_]:
    """Ops that the host itself was long in, with no call inside that copies or waits."""
    long = ops["dur"] >= _LONG_OP
    for thread in np.unique(ops["thread"][long]):
        rows = np.flatnonzero(long & (ops["thread"] == thread))
        at = np.sort(blocks["ts"][blocks["thread"] == thread])
        begin = ops["ts"][rows]
        held = np.searchsorted(at, begin + ops["dur"][rows]) > np.searchsorted(at, begin)
        long[rows[held]] = False
    return long


def _shown(name: str) -> str | None:
    """How a span is named; None for a step."""
    if _STEP.search(name) or name.startswith(OWN_PREFIX) or engine_step(name) is not None:
        return None
    frame = _FRAME.match(name := _ADDRESS.sub("", name))
    return name if frame is None else f"{frame[1]}: {frame[3]}"
