"""Intervals of time: their union, how they overlap, and how spans of one thread nest.

In: starts and ends or durations (int64 ns), threads; or rows of the kernels frame with `start` and
`duration`. Out: ns, or row numbers (-1 for none).
"""

from __future__ import annotations

import numpy as np
import polars as pl
from msgspec import Struct

from prunescope.analysis.trace.collector import NONE, Ints

_DEEP = 256  # rounds: calls nest less deep, and each round is a pass over the remaining spans


# Sources of steps that no profiler or engine annotated: a step ends with a weight update or
# begins with clearing the gradients; it is an annotation, a compiled region or a sequence of work
# that repeats, or a prompt or token of generated text; else the whole trace is one step.
UPDATE, ZERO_GRAD, ANNOTATION = "Optimizer.step", "Optimizer.zero_grad", "annotation"
COMPILED = "compiled"
SEQUENCE, GENERATION, WHOLE = "sequence", "generation", "whole"


class Windows(Struct, frozen=True):
    """The host windows of the steps, in time order, ns.

    `source` is "prunescope", "pattern", "engine", "ProfilerStep", "numbered", or one of the
    constants above. `picked` are the indices of the steps that --phase-pattern keeps; None without
    a pattern that names some of the steps. `without_work` are the annotations that are named like
    steps, but in which no work was launched. `are_ranges` is set if a user put a range around each
    step, so that time between two of them may belong to none.
    """

    start: Ints
    end: Ints
    source: str
    names: list[str]
    picked: Ints | None = None
    without_work: tuple[str, ...] = ()
    are_ranges: bool = False

    def __len__(self) -> int:
        return len(self.start)

    @property
    def are_cut(self) -> bool:
        """Whether the trace does not state where a step begins.

        It was cut where an optimizer ends or the same work begins again, and an op more or less may
        be on either side.
        """
        return self.source in (UPDATE, ZERO_GRAD, COMPILED, SEQUENCE, GENERATION)

    def step_of(self, ts: Ints) -> Ints:
        """Return the step whose window holds each time, -1 outside of all windows."""
        at = np.searchsorted(self.start, ts, side="right") - 1
        inside = (at >= 0) & (ts < self.end[np.maximum(at, 0)])
        return np.where(inside, at, -1)


def cover(start: Ints, end: Ints, begin: int) -> tuple[Ints, Ints]:
    """Return the busy time and the gap of intervals in order of start.

    The busy time of an interval is the part that no earlier one covers, its gap the idle time right
    before it, counted from `begin`. What lies before `begin` is clipped.
    """
    reached = np.maximum.accumulate(np.concatenate(([begin], end)))[:-1]
    first = np.maximum(start, begin)
    gap = np.maximum(0, first - reached)
    busy = np.maximum(0, end - np.maximum(first, reached))
    return busy, gap


def outermost(start: Ints, end: Ints) -> Ints:
    """Return the indices of the intervals in time order that start inside no earlier one."""
    kept: list[int] = []
    for i in np.lexsort((-end, start)).tolist():
        if not kept or start[i] >= end[kept[-1]]:
            kept.append(i)
    return np.array(kept, np.int64)


class Spans(Struct, frozen=True):
    """The union of intervals: disjoint, in order.

    `before` is the time within all spans before each one, ns.
    """

    begin: Ints
    end: Ints
    before: Ints

    @classmethod
    def union(cls, begin: Ints, end: Ints) -> Spans:
        """Return the union of the intervals [begin, end)."""
        order = np.argsort(begin, kind="stable")
        begin, end = begin[order], np.maximum.accumulate(end[order]) if len(order) else end
        first = np.maximum(begin, np.concatenate((begin[:1], end[:-1])))
        length = np.maximum(end - first, 0)
        return cls(first, first + length, np.concatenate(([0], np.cumsum(length)[:-1])).astype(int))

    def spent(self, ts: Ints) -> Ints:
        """Return the time within the spans before each of `ts`, ns."""
        if not len(self.begin):
            return np.zeros(len(ts), np.int64)
        at = np.searchsorted(self.begin, ts, side="right") - 1
        row = np.maximum(at, 0)
        last = np.clip(ts - self.begin[row], 0, self.end[row] - self.begin[row])
        return np.where(at >= 0, self.before[row] + last, 0)


def alone_ns(rows: pl.DataFrame) -> pl.Series:
    """Return how long no other row runs concurrently with each row, ns."""
    start, end = _bounds(rows)
    at = np.concatenate((start, end))
    opens = np.repeat((1, -1), len(start))
    order = np.argsort(at, kind="stable")
    at = at[order]
    single = np.cumsum(opens[order])[:-1] == 1
    spent = np.concatenate(([0], np.cumsum(np.where(single, np.diff(at), 0))))
    return pl.Series(spent[np.searchsorted(at, end)] - spent[np.searchsorted(at, start)])


def union_ns(rows: pl.DataFrame) -> int:
    """Return how long at least one of the rows runs, ns."""
    start, end = _bounds(rows.sort("start"))
    return int(cover(start, end, int(start[0]))[0].sum()) if len(rows) else 0


def carry_over_ns(rows: pl.DataFrame) -> Ints:
    """Return how long each row runs before the wall of its step begins, ns.

    That is when the last row of the earlier steps has ended.
    """
    if rows.is_empty():
        return np.zeros(0, np.int64)
    step, (start, end) = rows["step"].to_numpy(), _bounds(rows)
    reached = np.full(step.max() + 2, start.min())  # by all earlier steps; the first has none
    np.maximum.at(reached, step + 1, end)
    begin = np.maximum.accumulate(reached)[step]
    return np.asarray(np.maximum(np.minimum(end, begin) - start, 0))


def _bounds(rows: pl.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Return start and end of the rows, ns."""
    return rows["start"].to_numpy(), (rows["start"] + rows["duration"]).to_numpy()


def innermost(spans: dict[str, Ints], thread: Ints, ts: Ints) -> Ints:
    """Return the row of the innermost span that holds each time on its thread, else -1.

    `spans` has the columns ts, dur and thread. Spans of one thread nest, so the innermost one
    around t is found from the latest start before t, up through the spans that hold it. Of equal
    spans, the one with the smaller `order` (if that is a column of `spans`, else the first one) is
    the outer one.
    """
    inner = np.full(len(ts), NONE)
    rows_of_spans = rows_by_value(spans["thread"])
    for number, wanted in rows_by_value(thread).items():
        rows = rows_of_spans.get(number)
        if number < 0 or rows is None:
            continue
        ids = spans["order"][rows] if "order" in spans else rows
        rows = rows[np.lexsort((ids, -spans["dur"][rows], spans["ts"][rows]))]
        start = spans["ts"][rows]
        end = start + spans["dur"][rows]
        up = parents(start, end)
        at = np.searchsorted(start, ts[wanted], side="right") - 1
        open_ = at >= 0
        while True:
            over = open_ & (at >= 0) & (end[np.maximum(at, 0)] <= ts[wanted])
            if not over.any():
                break
            at = np.where(over, up[np.maximum(at, 0)], at)
        inner[wanted] = np.where(at >= 0, rows[np.maximum(at, 0)], NONE)
    return inner


def parents(start: Ints, end: Ints) -> Ints:
    """Return the enclosing span of each span, -1 at the top; spans in order of start, longer first.

    Spans that ended before a span began are skipped together: each points to the one before it at
    first, and then to where the one it points to does. Spans that nest deeper than calls do are
    processed one by one.
    """
    up = np.arange(NONE, len(start) + NONE)
    left = np.flatnonzero(up >= 0)
    for _ in range(_DEEP):
        left = left[end[up[left]] <= start[left]]
        if not len(left):
            return up
        up[left] = up[up[left]]
        left = left[up[left] >= 0]
    return _parents_by_stack(start.tolist(), end.tolist())


def rows_by_value(values: Ints) -> dict[int, Ints]:
    """Return the rows of each value, in order; sorted once, however many values there are."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    first = np.flatnonzero(np.diff(ordered, prepend=ordered[:1] - 1))
    return dict(zip(ordered[first].tolist(), np.split(order, first[1:]), strict=False))


def parents_on_threads(thread: Ints, start: Ints, end: Ints) -> Ints:
    """Return the span directly around each one on its thread, -1 at the top.

    The spans are in order of start, longer first.
    """
    up = np.full(len(start), NONE)
    for rows in rows_by_value(thread).values():
        local = parents(start[rows], end[rows])
        up[rows] = np.where(local >= 0, rows[np.maximum(local, 0)], NONE)
    return up


def _parents_by_stack(start: list[int], end: list[int]) -> Ints:
    """Return the enclosing span of each span, by a stack of the spans that are open."""
    up, open_ = np.full(len(start), NONE), [NONE]
    for i, begin in enumerate(start):
        while len(open_) > 1 and end[open_[-1]] <= begin:
            open_.pop()
        up[i] = open_[-1]
        open_.append(i)
    return up
