"""Spans of a thread that nest: against one span after the other with a stack, and by hand."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from prunescope.analysis.timeline.intervals import innermost, parents, rows_by_value
from prunescope.analysis.trace.collector import Ints

SPANS = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 40)), max_size=60)


def with_a_stack(start: list[int], end: list[int]) -> list[int]:
    """Return the span around each one: the last one begun that has not ended."""
    parents_by_stack: list[int] = []
    open_: list[int] = []
    for i, begin in enumerate(start):
        while open_ and end[open_[-1]] <= begin:
            open_.pop()
        parents_by_stack.append(open_[-1] if open_ else -1)
        open_.append(i)
    return parents_by_stack


def in_order(spans: list[tuple[int, int]]) -> tuple[Ints, Ints]:
    """Begins and ends, longer first where begins are equal."""
    spans = sorted(spans, key=lambda span: (span[0], -span[1]))
    table = np.array(spans, np.int64).reshape(-1, 2)
    return table[:, 0], table.sum(axis=1)


@given(SPANS)
def test_parents_are_those_of_a_stack(spans: list[tuple[int, int]]) -> None:
    """Of spans that cross one another too, which no profiler writes."""
    start, end = in_order(spans)
    assert parents(start, end).tolist() == with_a_stack(start.tolist(), end.tolist())


def test_parents_of_deep_nests() -> None:
    """3,000 spans around one another, then 3,000 beside one another."""
    deep = [(i, 6000 - 2 * i) for i in range(3000)]
    start, end = in_order([*deep, *((7000 + 2 * i, 1) for i in range(3000))])
    up = parents(start, end).tolist()
    assert up == [*range(-1, 2999), *[-1] * 3000]


def test_parents_and_innermost() -> None:
    """A [0, 100) holds B [10, 40) and C [50, 90), C holds D [60, 70)."""
    start, end = np.array([0, 10, 50, 60]), np.array([100, 40, 90, 70])
    assert parents(start, end).tolist() == [-1, 0, 0, 2]
    spans = {"ts": start, "dur": end - start, "thread": np.array([1, 1, 1, 1])}
    at = np.array([5, 10, 39, 40, 65, 70, 95, 100, -1])
    same_thread = np.ones(len(at), np.int64)
    assert innermost(spans, same_thread, at).tolist() == [0, 1, 1, 0, 3, 2, 0, -1, -1]
    assert innermost(spans, same_thread * 2, at).tolist() == [-1] * len(at)
    assert innermost(spans, same_thread * -1, at).tolist() == [-1] * len(at)


@given(st.lists(st.integers(-3, 3)))
def test_rows_of_each_value_are_in_order(values: list[int]) -> None:
    wanted = {v: [at for at, one in enumerate(values) if one == v] for v in values}
    rows = rows_by_value(np.array(values, dtype=np.int64))
    assert {value: own.tolist() for value, own in rows.items()} == wanted
