"""Formats whose events have no category, or no times of their own: read, or said to be so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from prunescope.analysis.pipeline import Analysis, analyze
from tests.chrome import chrome, gap, k, op, save, step

ORIGIN = 1_704_161_511_000_000  # us: an epoch, of which a double would lose the ns


def mm() -> Any:
    return op("aten::mm", [64, 32], [32, 16], dtype="c10::Half", kernels=[k(us=4.125, name="gemm")])


def as_text(us: float) -> str:
    whole, fraction = divmod(round(us * 1000), 1000)
    return f"{ORIGIN + whole}.{fraction:03}"


def as_ascend(trace: dict[str, Any]) -> list[dict[str, Any]]:
    """Write a trace as torch_npu does.

    It is a list with times as texts, ops with a category, tasks of the NPU without one, an arrow
    from the op to each of its tasks, shapes as texts, and no launches.
    """
    events: list[dict[str, Any]] = []
    ops: dict[int, dict[str, Any]] = {}
    for event in trace["traceEvents"]:
        converted = {
            "ph": "X", "name": event["name"], "pid": event["pid"], "tid": event["tid"],
            "ts": as_text(event["ts"]),
            "dur": event["dur"],
        }  # fmt: skip
        if event["cat"] in ("cpu_op", "user_annotation"):
            args = event["args"]
            dims = ";".join(",".join(map(str, s)) for s in args.get("Input Dims", []))
            types = ";".join(args.get("Input type", []))
            converted |= {"cat": "cpu_op", "args": {"Sequence number": -1, "Fwd thread id": 0}}
            if dims:
                converted["args"] |= {"Input Dims": dims, "Input type": types}
            if event["cat"] == "cpu_op":
                ops[args["External id"]] = converted
            events.append(converted)
        elif event["cat"] == "kernel":
            task = {"Model Id": 4294967295, "Task Type": "AI_CORE", "Physic Stream Id": 2}
            events.append({**converted, "pid": 4 << 10, "tid": 2, "args": task})
            begin = ops[event["args"]["External id"]]
            flow = {"bp": "e", "name": "torch_to_npu", "cat": "async_npu",
                    "id": int(converted["ts"].replace(".", ""))}  # fmt: skip
            events += [
                {**flow, "ph": "s", "pid": begin["pid"], "tid": begin["tid"], "ts": begin["ts"]},
                {**flow, "ph": "f", "pid": 4 << 10, "tid": 2, "ts": converted["ts"]},
            ]
    waits = {"Model Id": 4294967295, "Task Type": "EVENT_WAIT", "Physic Stream Id": 3}
    last = events[-1]["ts"]
    events.append(
        {"ph": "X", "name": "EVENT_WAIT", "pid": 4 << 10, "tid": 3, "ts": last, "dur": 9000.0,
         "args": waits}
    )  # fmt: skip
    return events


def told(trace: Any, tmp_path: Path) -> Analysis:
    return analyze(save(trace, tmp_path / "t.json"))


def test_a_trace_of_an_npu(tmp_path: Path) -> None:
    """Three products of 4.125 us and 30 us between; what waits for an event is no work."""
    trace = chrome(step(0, mm(), gap(us=30), mm(), mm()))
    for event in trace["traceEvents"]:
        event["name"] = event["name"].replace("prunescope.step", "ProfilerStep")
    report = told(as_ascend(trace), tmp_path)
    phase = report.report.phases["trace"]
    assert not any("malformed" in text for text in report.report.warnings)
    assert (phase.steps, phase.busy_ns) == (1, 3 * 4125)
    (row,) = phase.gemms
    assert (row.op, row.m, row.n, row.k, row.count) == ("aten::mm", 64, 16, 32, 3)
    assert row.bytes == 2 * (64 * 32 + 32 * 16 + 64 * 16)


def old_autograd(*, kernels: bool) -> list[dict[str, Any]]:
    """Write a trace as torch.autograd's profiler did.

    It has an op, the op that it calls, and the time between two CUDA events around each.
    """
    events: list[dict[str, Any]] = []
    for number, (name, ts, dur, start, ran) in enumerate((
        ("aten::linear", 10.0, 90.0, 500.0, 40.0), ("aten::addmm", 20.0, 60.0, 505.0, 30.0),
        ("aten::relu", 120.0, 20.0, 560.0, 10.0),
    )):  # fmt: skip
        cpu = {"name": name, "tid": 1, "pid": "CPU functions", "args": {}}
        events.append({**cpu, "ph": "X", "ts": ts, "dur": dur})
        arrow = {"name": name, "id": number, "cat": "cpu_to_cuda", "args": {}}
        gpu = {"tid": 0, "pid": "CUDA functions", "ts": start}
        if kernels:
            events += [
                {**cpu, **arrow, "ph": "s", "ts": ts}, {**arrow, **gpu, "ph": "f"},
                {"name": name, **gpu, "ph": "X", "dur": ran, "args": {}},
            ]  # fmt: skip
    return events


def test_the_format_of_the_autograd_profiler(tmp_path: Path) -> None:
    """Of the 40 us around linear, 30 are those of addmm, and the rest is no kernel."""
    report = told(old_autograd(kernels=True), tmp_path)
    phase = report.report.phases["trace"]
    assert phase.busy_ns == 30_000 + 10_000
    assert {(kernel.name, kernel.kind) for kernel in phase.kernels} == {
        ("aten::addmm", "gemm"), ("aten::relu", "activation"),
    }  # fmt: skip
    assert any("between two CUDA events around each op" in text for text in report.report.warnings)


def test_ops_of_the_autograd_profiler_alone(tmp_path: Path) -> None:
    """The host's ops are the work: 60 us of addmm and 20 of relu, linear calls the first."""
    phase = told(old_autograd(kernels=False), tmp_path).report.phases["trace"]
    assert phase.busy_ns == 80_000


def test_kernels_with_counters_have_no_times(tmp_path: Path) -> None:
    """Kineto spreads them evenly over the capture: they are left out, and that is said."""
    trace = chrome(step(0, mm(), mm()))
    for event in trace["traceEvents"]:
        if event["cat"] == "kernel":
            event["cat"] = "cuda_profiler_range"
    report = told(trace, tmp_path)
    assert any("2 kernels of CUPTI's range profiler" in text for text in report.report.warnings)
    assert not any(kernel.name == "gemm" for kernel in report.report.phases["trace"].kernels)


@pytest.mark.parametrize("dims", ["9" * 5000, "64,x;32,16", "64,32;-1,16", ";;;", "64 32", ""])
def test_shapes_that_are_none_are_left_out(dims: str, tmp_path: Path) -> None:
    trace = chrome(mm())
    for event in trace["traceEvents"]:
        if event["name"] == "aten::mm":
            event["args"]["Input Dims"] = dims
    (row,) = told(trace, tmp_path).report.phases["trace"].gemms
    assert (row.m, row.n, row.k) == (None, None, None)
