"""Spans of a thread that nest: the span around each, and the innermost one around a time.

In: columns of spans (start, duration and thread, int64 ns). Out: row numbers, -1 for none.
"""

from __future__ import annotations

import numpy as np

from prunescope.analysis.trace.load import NONE, Ints

_DEEP = 256  # rounds of jumps: calls nest less deep, and each is a pass over what is left


def innermost(spans: dict[str, Ints], thread: Ints, ts: Ints) -> Ints:
    """Row of the innermost span (ts, dur, thread) that holds each time on its thread, else -1.

    Spans of one thread nest, so the innermost one around t is found from the latest start before
    t, up through the spans that hold it. Of equal spans, the one with the smaller `order` (where
    that is a column of `spans`, else the first one) is the outer one.
    """
    out = np.full(len(ts), NONE)
    for t in np.unique(thread):
        if t < 0:
            continue
        rows = np.flatnonzero(spans["thread"] == t)
        if not len(rows):
            continue
        ids = spans["order"][rows] if "order" in spans else rows
        rows = rows[np.lexsort((ids, -spans["dur"][rows], spans["ts"][rows]))]
        start = spans["ts"][rows]
        end = start + spans["dur"][rows]
        up = parents(start, end)
        wanted = np.flatnonzero(thread == t)
        at = np.searchsorted(start, ts[wanted], side="right") - 1
        open_ = at >= 0
        while True:
            over = open_ & (at >= 0) & (end[np.maximum(at, 0)] <= ts[wanted])
            if not over.any():
                break
            at = np.where(over, up[np.maximum(at, 0)], at)
        out[wanted] = np.where(at >= 0, rows[np.maximum(at, 0)], NONE)
    return out


def parents(start: Ints, end: Ints) -> Ints:
    """The enclosing span of each span, -1 at the top; spans in order of start, longer first.

    Spans that ended before a span began are jumped over together: each points to the one before it
    at first, and then to where the one it points to does. Nested deeper than calls are, one by one.
    """
    up = np.arange(NONE, len(start) + NONE)
    left = np.flatnonzero(up >= 0)
    for _ in range(_DEEP):
        left = left[end[up[left]] <= start[left]]
        if not len(left):
            return up
        up[left] = up[up[left]]
        left = left[up[left] >= 0]
    return _one_by_one(start.tolist(), end.tolist())


def _one_by_one(start: list[int], end: list[int]) -> Ints:
    up, open_ = np.full(len(start), NONE), [NONE]
    for i, begin in enumerate(start):
        while len(open_) > 1 and end[open_[-1]] <= begin:
            open_.pop()
        up[i] = open_[-1]
        open_.append(i)
    return up
