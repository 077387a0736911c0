"""Numbers and fields of a trace as columns: to the nanosecond, and whatever stands in them."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from decimal import ROUND_HALF_EVEN, Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prunescope.analysis.pipeline import analyze
from prunescope.analysis.trace.load import load
from prunescope.analysis.trace.trace_columns import Trace, stacks_left_out
from prunescope.taxonomy.errors import PrunescopeError
from tests.chrome import chrome, k, module, op, save, step

QUIET = settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))


def loaded(tmp_path: Path, *events: str) -> Trace:
    path = tmp_path / "t.json"
    path.write_text("[" + ",".join(events) + "]")
    return load(path)


def timed(ts: str, dur: str = "1") -> str:
    return f'{{"ph":"X","cat":"cpu_op","name":"aten::mm","ts":{ts},"dur":{dur}}}'


@pytest.mark.parametrize(
    ("ts", "ns"),
    [
        ("6300000000000.123", 6300000000000123), ("6300000000000.001", 6300000000000001),
        ("6300000000000.999", 6300000000000999), ("1600000000000000", 1600000000000000000),
        ("1600000000000000.001", 1600000000000000001),
        ("1600000000000000.637", 1600000000000000637),
        ("1600000000000000.4996", 1600000000000000500),
        ("4398046511103.999", 4398046511103999),  # the last us below 2^42
        ("4398046511104.001", 4398046511104001), ("0.0004", 0), ("0.0006", 1), ("12", 12000),
        ("1.6e15", 1600000000000000000), ("1e-3", 1), ("-2.5", -2500), ("-0.0015", -2),
        ("-1600000000000000.637", -1600000000000000637),
    ],
)  # fmt: skip
def test_a_time_is_the_nearest_ns_of_its_text(ts: str, ns: int, tmp_path: Path) -> None:
    assert loaded(tmp_path, timed(ts)).ops["ts"].tolist() == [ns]


@QUIET
@given(times=st.lists(st.tuples(st.integers(-(10**18), 2 * 10**18), st.integers(0, 10**12)),
       min_size=1, max_size=8), odd=st.booleans())  # fmt: skip
def test_three_decimals_are_exact_at_any_size(
    times: list[tuple[int, int]], odd: bool, tmp_path: Path
) -> None:
    """Whole ns written as us with three decimals; integers among them, and one bad event."""
    texts = [(str(Decimal(a).scaleb(-3)), str(Decimal(b).scaleb(-3))) for a, b in times]
    events = [timed(*pair) for pair in texts]
    if odd:
        events.insert(0, '{"ph":"X","cat":"cpu_op","name":5,"ts":1,"dur":1}')
    trace = loaded(tmp_path, *events)
    assert trace.ops["ts"].tolist() == [a for a, _ in times]
    assert trace.ops["dur"].tolist() == [b for _, b in times]
    assert trace.source.malformed == int(odd)


@QUIET
@given(value=st.decimals(2**42, 2 * 10**15, places=6), more=st.integers(0, 3))
def test_more_decimals_round_to_the_nearest(value: Decimal, more: int, tmp_path: Path) -> None:
    want = int((value * 1000).quantize(Decimal(1), ROUND_HALF_EVEN))
    trace = loaded(tmp_path, timed(str(value)), *[timed("5")] * more)
    assert trace.ops["ts"][0] == want


def test_start_and_duration_round_apart(tmp_path: Path) -> None:
    """end = start + duration: 0.0006 → 1 ns and 0.0006 → 1 ns end at 2 ns, not at 1.2 → 1."""
    trace = loaded(tmp_path, timed("0.0006", "0.0006"))
    assert (trace.ops["ts"][0], trace.ops["dur"][0]) == (1, 1)


@pytest.mark.parametrize(
    ("ts", "dur"),
    [("null", "1"), ("1", "null"), ("1", "-1"), ("1e300", "1"), ("1", "1e300"), ("9e15", "1"),
     ("-9e15", "1"), ("1e400", "1"), ("10" * 30, "1"), ("1e99999999999999999999", "1"),
     ("NaN", "1"),
     ("1", "Infinity"), ('"five"', "1"), ('"NaN"', "1"), ("[1]", "1"), ("true", "1"), ("{}", "1")],
)  # fmt: skip
@pytest.mark.parametrize("beside", ["7", "1600000000000000.5"])
def test_a_time_that_is_none_is_dropped(ts: str, dur: str, beside: str, tmp_path: Path) -> None:
    trace = loaded(tmp_path, timed(ts, dur), timed(beside))
    assert len(trace.ops["ts"]) == 1
    assert trace.source.malformed + trace.dropped == 1


VALUES = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
    | st.sampled_from([-1, 2**62, 2**63, 2**64, 10**30, -(2**63), 1e308, 1e-308, "7", "NaN"])
    | st.lists(st.integers(), max_size=4) | st.dictionaries(st.text(max_size=3), st.integers())
    | st.lists(st.lists(st.integers(-5, 2**70), max_size=3), max_size=3)
)  # fmt: skip
FIELDS = ["ph", "cat", "name", "pid", "tid", "ts", "dur", "args"]
ARGS = ["correlation", "External id", "stream", "device", "Input Dims", "Input type",
        "Input Strides", "Concrete Inputs", "grid", "block", "registers per thread",
        "shared memory", "bytes", "graph node id", "kernel"]  # fmt: skip
MM = op("aten::mm", [64, 64], [64, 64], dtype="c10::BFloat16",
        kernels=[k(us=7, name="ampere_bf16_s16816gemm_bf16_128x64_tn")])  # fmt: skip


@settings(QUIET, max_examples=40)
@given(data=st.data(), cpu=st.booleans())
def test_wrong_types_never_break_the_analysis(
    data: st.DataObject, cpu: bool, tmp_path: Path
) -> None:
    trace = chrome(step(0, MM, MM), step(1, MM, MM), cpu=cpu)
    for _ in range(data.draw(st.integers(1, 4))):
        event = data.draw(st.sampled_from(trace["traceEvents"]))
        if isinstance(event.get("args"), dict) and data.draw(st.booleans()):
            event["args"][data.draw(st.sampled_from(ARGS))] = data.draw(VALUES)
        else:
            event[data.draw(st.sampled_from(FIELDS))] = data.draw(VALUES)
    path = save(trace, tmp_path / "t.json")
    try:
        report = analyze(path).report
    except PrunescopeError:
        return
    phase = report.phases["trace"]
    closed = phase.busy_ns + phase.gap_ns + phase.tail_ns
    assert closed == pytest.approx(phase.wall_ns, rel=1e-12, abs=1)


@settings(QUIET, max_examples=15)
@given(
    value=VALUES, key=st.sampled_from(["deviceProperties", "schemaVersion", "baseTimeNanoseconds"])
)
def test_wrong_types_in_the_metadata(value: Any, key: str, tmp_path: Path) -> None:
    trace = {**chrome(MM), key: value}
    if key == "deviceProperties" and isinstance(value, list):
        trace[key] = [value, {"id": value, "name": value}, value]
    assert analyze(save(trace, tmp_path / "t.json")).report.phases["trace"].busy_ns == 7000


@pytest.mark.parametrize("depth", [10, 300, 700, 5000])
@pytest.mark.parametrize("key", ["Input Dims", "Input Strides", "anything"])
def test_deep_nesting(depth: int, key: str, tmp_path: Path) -> None:
    """Too deep a shape is no shape; the event, or at least its neighbour, stays."""
    deep = "[" * depth + "]" * depth
    first = timed("1")[:-1] + f',"args":{{"{key}":{deep}}}}}'
    trace = loaded(tmp_path, first, timed("5"))
    assert len(trace.ops["ts"]) + trace.source.malformed == 2


def test_ids_are_read_as_numbers_or_not_at_all(tmp_path: Path) -> None:
    base = '"ph":"X","cat":"kernel","name":"k","dur":1'
    ids = ["5", '"5"', "5.0", "-1", '"x"', "null", str(2**63), '"' + "9" * 30 + '"']
    events = [f'{{{base},"ts":{ts},"args":{{"correlation":{i}}}}}' for ts, i in enumerate(ids)]
    assert loaded(tmp_path, *events).device["correlation"].tolist() == [5, 5, 5, -1, -1, -1, -1, -1]


def test_other_events_are_ignored(tmp_path: Path) -> None:
    """Metadata, flows, counters, Python functions that are no modules, unknown categories."""
    trace = loaded(
        tmp_path, timed("1"), '{"ph":"M","name":"process_name","pid":1,"args":{"name":"p"}}',
        '{"ph":"s","cat":"ac2g","id":1,"ts":1}', '{"ph":"C","name":"c","ts":1,"args":{"v":1}}',
        '{"ph":"X","cat":"python_function","name":"f.py(1): g","ts":1,"dur":1}',
        '{"ph":"X","cat":"Trace","name":"PyTorch Profiler (0)","ts":1,"dur":1}', "{}",
    )  # fmt: skip
    assert (len(trace.ops["ts"]), len(trace.annotations["ts"]), len(trace.device["ts"])) == (
        1,
        0,
        0,
    )
    assert (trace.dropped, trace.source.malformed) == (0, 0)


@pytest.mark.parametrize("name", ["h100_vit.json.gz", "mi210_gpu_only.json.gz"])
def test_a_cut_real_trace_is_partial(
    name: str, real_trace: Callable[[str], Path], tmp_path: Path
) -> None:
    data = real_trace(name).read_bytes()
    whole = len(load(real_trace(name)).device["ts"])
    counts = []
    for share in (0.5, 0.8, 0.99):
        path = tmp_path / name
        path.write_bytes(data[: int(len(data) * share)])
        try:
            trace = load(path)
        except PrunescopeError:
            continue
        assert trace.source.cut
        counts.append(len(trace.device["ts"]))
    assert counts, "one of the cuts leaves kernels"
    assert counts == sorted(counts)
    assert counts[-1] <= whole


def test_real_times_equal_their_text(real_trace: Callable[[str], Path]) -> None:
    """Every device event of the H100 trace against the decimal text of the file."""
    path = real_trace("h100_qwen1.5-0.5b_prefill.json.gz")
    text = json.loads(gzip.decompress(path.read_bytes()), parse_float=Decimal)
    events = [e for e in text["traceEvents"]
              if e.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")]  # fmt: skip
    trace = load(path)
    for column in ("ts", "dur"):
        want = [int((e[column] * 1000).to_integral_value()) for e in events]
        assert np.array_equal(trace.device[column], np.array(want))


def test_a_trace_of_two_devices_is_said(tmp_path: Path) -> None:
    """30 us on one device, 10 on another of its own name: on one timeline, whose bounds are of the
    first."""
    trace = chrome(step(0, k(us=10), k(us=20), k(us=10)))
    kernels = [e for e in trace["traceEvents"] if e["cat"] == "kernel"]
    assert not analyze(save(trace, tmp_path / "one.json")).report.warnings
    kernels[-1]["args"]["device"] = 1
    trace["deviceProperties"].append({"id": 1, "name": "NVIDIA A100-SXM4-80GB"})
    (warning,) = analyze(save(trace, tmp_path / "two.json")).report.warnings
    assert "ran on 2 devices" in warning
    assert "75 %" in warning and "1 (NVIDIA A100-SXM4-80GB): 25 %" in warning


def test_categories_of_old_profilers(tmp_path: Path) -> None:
    """PyTorch 1.8 to 1.11: Operator, Runtime, Kernel; annotations of steps among the ops."""
    mm = op("aten::mm", [64, 64], [64, 64], kernels=[k(us=10)])
    trace = chrome(module("ProfilerStep#1", mm, mm), module("ProfilerStep#2", mm, mm))
    (want,) = analyze(save(trace, tmp_path / "new.json")).report.phases.values()
    old = {"cpu_op": "Operator", "user_annotation": "Operator", "cuda_runtime": "Runtime",
           "kernel": "Kernel"}  # fmt: skip
    for event in trace["traceEvents"]:
        event["cat"] = old[event["cat"]]
    (got,) = analyze(save(trace, tmp_path / "old.json")).report.phases.values()
    assert (got.steps, got.busy_ns, got.gemms) == (2, 20_000, want.gemms)
    assert got.wall_ns == want.wall_ns


@pytest.mark.parametrize(
    ("said", "count"),
    [({"stacks": 7}, 7), ({"stacks": -1}, 0), ({"stacks": True}, 0), ({"stacks": 2**60}, 0),
     ({"stacks": "7"}, 0), ({}, 0), ([7], 0), (None, 0)],
)  # fmt: skip
def test_calls_that_a_trimmed_trace_left_out_are_counted(said: Any, count: int) -> None:
    assert stacks_left_out({"prunescope.left_out": said}) == count
