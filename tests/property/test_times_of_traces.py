"""Times of a trace, from their text to a step: exact, counted once, on any clock, in any order."""

from __future__ import annotations

import gzip
import io
from decimal import Decimal
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import polars as pl
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prunescope.analysis.kernels.frame import Kernels
from prunescope.analysis.timeline.intervals import (
    Spans,
    Windows,
    alone_ns,
    cover,
    outermost,
    union_ns,
)
from prunescope.analysis.trace.collector import nanoseconds
from prunescope.analysis.trace.load import load
from prunescope.analysis.trace.unpack import Inflate
from tests.chrome import chrome, gap, k, op, save, step
from tests.records import kernels_in

QUICK = settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
SPANS = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 15)), min_size=1, max_size=10)


@QUICK
@given(times=st.lists(st.integers(-(10**15), 10**15), min_size=1, max_size=6))
def test_nanoseconds_are_exact_from_doubles_texts_and_decimals(times: list[int]) -> None:
    exact = [Decimal(ns).scaleb(-3) for ns in times]
    for written in ([float(us) for us in exact], exact, [str(us) for us in exact],
                    [float(exact[0]), *exact[1:]]):  # fmt: skip
        assert nanoseconds(written).tolist() == times
    assert (nanoseconds([None, "x", [], 1e300, float("nan")]) < -(10**18)).all()


@QUICK
@given(parts=st.lists(st.binary(max_size=300), min_size=1, max_size=4), size=st.integers(1, 80),
       kept=st.floats(0, 1))  # fmt: skip
def test_gzip_is_unpacked_in_blocks_of_any_size_and_up_to_where_it_is_cut(
    parts: list[bytes], size: int, kept: float
) -> None:
    packed = b"".join(gzip.compress(part, mtime=0) for part in parts)

    def read(data: bytes) -> tuple[bytes, bool]:
        stream, blocks = Inflate(io.BytesIO(data)), []
        while block := stream.read(size):
            assert len(block) <= size
            blocks.append(block)
        return b"".join(blocks), stream.cut

    assert read(packed) == (b"".join(parts), False)
    some, _ = read(packed[: int(kept * len(packed))])
    assert b"".join(parts).startswith(some)


def arrays(spans: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    begin = np.array([start for start, _ in spans], np.int64)
    return begin, begin + np.array([length for _, length in spans], np.int64)


@QUICK
@given(spans=SPANS, at=st.lists(st.integers(-5, 70), min_size=1, max_size=8))
def test_a_union_of_spans_counts_each_ns_once_and_is_its_own_union(
    spans: list[tuple[int, int]], at: list[int]
) -> None:
    union = Spans.union(*arrays(spans))
    held = {t for start, length in spans for t in range(start, start + length)}
    times = np.array(sorted(at), np.int64)
    spent = union.spent(times)
    assert spent.tolist() == [sum(t < limit for t in held) for limit in times.tolist()]
    again = Spans.union(union.begin, union.end)
    assert again.spent(times).tolist() == spent.tolist()
    assert (np.diff(spent) >= 0).all()


@QUICK
@given(spans=SPANS)
def test_what_runs_alone_and_what_runs_at_all_are_counted_ns_by_ns(
    spans: list[tuple[int, int]],
) -> None:
    spans.sort()
    rows = pl.DataFrame(spans, schema=["start", "duration"], orient="row")
    covers = [{*range(start, start + length)} for start, length in spans]
    others = [set().union(*covers[:i], *covers[i + 1 :]) for i in range(len(covers))]
    assert alone_ns(rows).to_list() == [
        len(own - beside) for own, beside in zip(covers, others, strict=True)
    ]
    assert union_ns(rows) == len(set().union(*covers))
    begin, end = arrays(spans)
    assert int(cover(begin, end, int(begin[0]))[0].sum()) == union_ns(rows)
    top = outermost(begin, end)
    assert all(end[a] <= begin[b] for a, b in zip(top, top[1:], strict=False))
    assert set().union(*(covers[i] for i in top)) <= set().union(*covers)


@QUICK
@given(spans=SPANS, at=st.lists(st.integers(-5, 200), min_size=1, max_size=8))
def test_a_time_is_in_the_step_whose_window_holds_it(
    spans: list[tuple[int, int]], at: list[int]
) -> None:
    ends = np.cumsum([wait + length for wait, length in spans])
    windows = Windows(ends - [length for _, length in spans], ends, "by hand", [""] * len(spans))
    naive = [next((i for i in range(len(spans)) if windows.start[i] <= t < windows.end[i]), -1)
             for t in at]  # fmt: skip
    assert windows.step_of(np.array(at, np.int64)).tolist() == naive


# (busy, gap before, stream) of each kernel, in us.
KERNELS = st.lists(
    st.tuples(st.integers(1, 9), st.integers(-3, 5), st.sampled_from([7, 7, 20])),
    min_size=1, max_size=5,
)  # fmt: skip


def trace_of(steps: list[Any]) -> dict[str, Any]:
    """Steps of products with one kernel each, after 2 us of idle time."""

    def product(us: int, wait: int, stream: int) -> Any:
        return op("aten::mm", [4, 5], [5, 6], kernels=[k(us=us, gap_us=wait, stream=stream)])

    return chrome(
        *(step(i, gap(us=2), *(product(*kernel) for kernel in kernels))
          for i, kernels in enumerate(steps))
    )  # fmt: skip


def read(trace: dict[str, Any], folder: Path) -> Kernels:
    return kernels_in(load(save(trace, folder / "t.json")))


@QUICK
@given(steps=st.lists(KERNELS, min_size=1, max_size=3), later=st.integers(-(10**6), 10**9),
       order=st.randoms(use_true_random=False))  # fmt: skip
def test_neither_another_clock_nor_the_order_of_events_changes_a_kernel(
    steps: list[Any], later: int, order: Random, tmp_path: Path
) -> None:
    trace = trace_of(steps)
    kernels = read(trace, tmp_path)
    for event in trace["traceEvents"]:
        event["ts"] += later
    order.shuffle(trace["traceEvents"])
    moved = read(trace, tmp_path)
    changing = [
        "start",
        "launched",
        "event",
        "name_id",
        "op_id",
        "instance",
        "call",
        "grid",
        "block",
    ]
    assert moved.frame.drop(changing).equals(kernels.frame.drop(changing))
    assert (moved.frame["start"] - kernels.frame["start"]).unique().to_list() == [1000 * later]
    assert moved.linked.wall.tolist() == kernels.linked.wall.tolist()


@QUICK
@given(steps=st.lists(KERNELS, min_size=1, max_size=3))
def test_busy_times_gaps_and_the_trailing_idle_of_a_step_are_its_wall(
    steps: list[Any], tmp_path: Path
) -> None:
    kernels = read(trace_of(steps), tmp_path)
    sums = kernels.frame.group_by("step").agg(pl.col("busy", "gap").sum()).sort("step")
    idle = kernels.linked.trailing_idle
    assert (
        sums["busy"].to_numpy() + sums["gap"].to_numpy() + idle
    ).tolist() == kernels.linked.wall.tolist()
    assert kernels.frame["duration"].sum() == 1000 * sum(us for rows in steps for us, _, _ in rows)
    assert (kernels.frame["busy"] <= kernels.frame["duration"]).all()
    assert kernels.frame["busy"].sum() == union_ns(kernels.frame)
