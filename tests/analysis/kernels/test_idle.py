"""Idle time by its cause: a late host, a copy or a wait, and what is advised for each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prunescope.analysis.kernels.host_calls import GraphBlockers
from prunescope.analysis.pipeline import analyze
from prunescope.analysis.report import phase_tables
from prunescope.analysis.schema.report import Finding, Phase, Report
from tests.analysis.replays import replayed
from tests.chrome import chrome, gap, k, op, save, step

Real = Callable[[str], Report]
MM = op("aten::mm", [64, 64], [64, 64], kernels=[k(us=10)])


def told(path: Path) -> Phase:
    (phase,) = analyze(path).report.phases.values()
    return phase


def finding(phase: Phase, name: str) -> Finding | None:
    return next((f for f in phase.findings if f.id == name), None)


def late(trace: dict[str, Any], *, every: bool = False) -> dict[str, Any]:
    """The host launches the last kernel (each of them) 1 us before it begins, not when the device
    runs dry."""
    kernels = sorted(
        (e for e in trace["traceEvents"] if e["cat"] == "kernel"), key=lambda e: e["ts"]
    )
    own = [e for e in trace["traceEvents"] if e["cat"] in ("cuda_runtime", "cpu_op")]
    for kernel in kernels if every else kernels[-1:]:
        ids = {kernel["args"][key] for key in ("correlation", "External id")}
        for event in own:
            if event["args"].get("correlation", event["args"]["External id"]) in ids:
                event["ts"] = kernel["ts"] - 1
    for event in trace["traceEvents"]:
        if event["name"].startswith("prunescope.step"):
            event["dur"] = kernels[-1]["ts"] - event["ts"]
    return trace


def in_a_call(name: str, us: float, *, thread: int = 1, cat: str = "cuda_runtime") -> Any:
    """Two GEMMs of 10 us with 90 us between them, the second one launched 89 us after the first has
    ended; 2 us after that end the host enters a call of `us`."""
    trace = late(chrome(step(0, MM, gap(us=90, launch=True), MM)))
    first = min((e for e in trace["traceEvents"] if e["cat"] == "kernel"), key=lambda e: e["ts"])
    args = {"correlation": 999_999} if cat == "cuda_runtime" else {}
    trace["traceEvents"].append(
        {"ph": "X", "cat": cat, "name": name, "pid": 1, "tid": thread,
         "ts": first["ts"] + first["dur"] + 2, "dur": us, "args": args}
    )  # fmt: skip
    return trace


@pytest.mark.parametrize(
    ("name", "us", "thread", "part"),
    [
        ("hipMemcpyWithStream", 80, 1, "memcpy"),
        ("cudaMemcpy", 46, 1, "memcpy"),
        ("cudaMemcpyAsync", 40, 1, "copy_launch"),
        ("cudaMemcpy", 80, 2, None),  # of a thread that launches nothing here
        ("cudaStreamSynchronize", 80, 1, "sync"),
        ("hipDeviceSynchronize", 40, 1, "sync"),
        ("urQueueFinish", 80, 1, "sync"),
        ("zeEventHostSynchronize", 80, 1, "sync"),
        ("cudaFuncGetAttributes", 80, 1, "launch"),
        ("cudaStreamWaitEvent", 30, 1, "launch"),  # the host does not wait in it
    ],
)
def test_each_ns_goes_to_what_the_launching_thread_was_in(
    name: str, us: float, thread: int, part: str | None, tmp_path: Path
) -> None:
    phase = told(save(in_a_call(name, us, thread=thread), tmp_path / "t.json"))
    assert phase.anatomy is not None
    parts: dict[str, float] = {}
    for one in phase.anatomy.idle:
        parts[one.doing] = parts.get(one.doing, 0) + one.ns
    assert sum(parts.values()) == phase.gap_ns == 90e3
    called = us * 1e3 if part is not None else 0
    # The launch takes 50 ns, and the kernel begins 950 ns after it; its op is 10 ns longer.
    assert parts.get(part or "", 0) == called + (1000 if part == "launch" else 0)
    assert parts["nothing"] == 90e3 - called - 1000
    gaps = phase.anatomy.gaps
    assert gaps["host"] == 90e3 - (called if part in ("memcpy", "copy_launch", "sync") else 0)
    assert sum(gaps.values()) == 90e3
    assert phase.bound["launch"] == 90e3


def test_time_in_an_op_outside_of_calls_is_dispatch(tmp_path: Path) -> None:
    trace = in_a_call("aten::view", 80, cat="cpu_op")
    phase = told(save(trace, tmp_path / "t.json"))
    assert phase.anatomy is not None
    assert {(one.doing, one.beside): one.ns for one in phase.anatomy.idle} == {
        ("op", None): 80e3, ("nothing", None): 9e3, ("launch", None): 1e3,
    }  # fmt: skip


@pytest.mark.parametrize(("name", "computes"), [("aten::bmm", True), ("aten::view", False)])
def test_a_product_of_the_host_is_no_dispatch(name: str, tmp_path: Path, *, computes: bool) -> None:
    """80 of 90 us in an op that launches nothing: a product is the host's own work, which no graph
    spares; the 10 us around it are dispatch."""
    phase = told(save(in_a_call(name, 80, cat="cpu_op"), tmp_path / "t.json"))
    assert phase.anatomy is not None
    assert phase.anatomy.dispatch_ns == (10e3 if computes else 90e3)
    work, bound = finding(phase, "host-work"), finding(phase, "launch-bound")
    assert (work is not None, bound is None) == (computes, computes)
    if work is not None:
        assert work.evidence == ["80.0 µs in ops that the host computed"]


@pytest.mark.parametrize(("us", "named"), [(1400, True), (900, False)])
def test_an_op_that_takes_far_longer_than_a_dispatch_is_named(
    us: int, tmp_path: Path, *, named: bool
) -> None:
    """As `unflatten_dense_tensors` of 470 parameters, within a hook of the data's parallelism."""
    trace = late(chrome(step(0, MM, gap(us=1800, launch=True), MM)))
    first = min((e for e in trace["traceEvents"] if e["cat"] == "kernel"), key=lambda e: e["ts"])
    at = {"ph": "X", "pid": 1, "tid": 1, "ts": first["ts"] + first["dur"] + 300}
    op_ = {**at, "cat": "cpu_op", "name": "aten::unflatten_dense_tensors", "dur": us, "args": {}}
    around = {**at, "cat": "user_annotation", "name": "hook", "ts": at["ts"] - 1, "dur": 1600}
    trace["traceEvents"] += [op_, {**around, "args": {}}]
    phase = told(save(trace, tmp_path / "t.json"))
    assert phase.anatomy is not None
    beside = {one.beside for one in phase.anatomy.idle if one.ns > 100_000}
    assert beside == {"aten::unflatten_dense_tensors" if named else "hook"}
    bound = finding(phase, "launch-bound")
    assert bound is not None
    assert any("of it in aten::unflatten" in line for line in bound.evidence) == named


def test_a_graph_waits_for_products_of_the_host(tmp_path: Path) -> None:
    """5 of 90 us are a product of the host: a graph of the rest needs it on the device."""
    phase = told(save(in_a_call("aten::bmm", 5, cat="cpu_op"), tmp_path / "t.json"))
    bound = finding(phase, "launch-bound")
    assert bound is not None and bound.change is not None and bound.predicted_ns == 85e3
    assert "first remove the ops that the host computes" in bound.all_changes


def test_host_time_counts_from_the_last_launch_of_any_thread(tmp_path: Path) -> None:
    """Thread 1 launches, thread 2 (backward) 40 us later, then thread 1 again, which has waited."""
    trace = chrome(step(0, MM, MM, MM))
    order = ("cuda_runtime", "cpu_op")
    for cat in order:
        events = sorted((e for e in trace["traceEvents"] if e["cat"] == cat), key=lambda e: e["ts"])
        for number, event in enumerate(events):
            event["ts"] += 40 * number
            event["tid"] = 2 if number == 1 else event["tid"]
    for event in trace["traceEvents"]:
        if event["name"].startswith("prunescope.step"):
            event["dur"] += 200
    (frame,) = analyze(save(trace, tmp_path / "t.json")).frames.values()
    assert [None if ns is None else round(ns, -3) for ns in frame["host_ns"]] == [
        None, 40_000, 40_000,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("cat", "name", "beside"),
    [
        ("user_annotation", "enumerate(DataLoader)#_Iter.__next__", None),
        ("cpu_op", "enumerate(DataLoader)#_Iter.__next__", None),  # before PyTorch 1.12
        ("python_function", "torch/utils/data/dataloader.py(633): __next__",
         "dataloader.py: __next__"),
    ],
)  # fmt: skip
def test_a_data_loader_is_named_and_no_graph_is_advised(
    cat: str, name: str, beside: str | None, tmp_path: Path
) -> None:
    """60 of 90 ms in the loader, in whichever way the profiler records it; the rest in Python."""
    trace = late(chrome(step(0, MM, gap(us=90_000, launch=True), MM)))
    first = min((e for e in trace["traceEvents"] if e["cat"] == "kernel"), key=lambda e: e["ts"])
    at = {"pid": 1, "tid": 1, "ts": first["ts"] + first["dur"] + 100}
    trace["traceEvents"] += [
        {"ph": "X", "cat": "user_annotation", "name": "ProfilerStep#3", **at, "dur": 89_000,
         "args": {}},
        {"ph": "X", "cat": cat, "name": name, **at, "dur": 60_000, "args": {}},
        {"ph": "X", "cat": "cuda_runtime", "name": "cudaMemcpyAsync", **at, "ts": at["ts"] + 61_000,
         "dur": 2_000, "args": {"correlation": 999_999}},
    ]  # fmt: skip
    phase = told(save(trace, tmp_path / "t.json"))
    assert phase.anatomy is not None
    assert phase.anatomy.gaps["memcpy"] == 2e6
    assert phase.anatomy.gaps["host"] == 88e6
    top = phase.anatomy.idle[0]
    assert (top.doing, top.beside) == ("nothing", beside or name)
    assert finding(phase, "launch-bound") is finding(phase, "host-waits") is None
    work = finding(phase, "host-work")
    assert work is not None
    assert "num_workers" in (work.change or "") and "pinned" not in (work.change or "")
    assert (beside or name) in work.evidence[0]
    assert work.evidence[0].startswith("60.000 ms in ")
    assert work.evidence[0].endswith(", within gaps of 88.000 ms")
    assert phase.anatomy.graph_speedup == 1.0


def test_idle_time_in_copies_is_no_late_host(tmp_path: Path) -> None:
    """80 of 110 us: a copy, not a launch that comes late, whatever part a graph could spare."""
    phase = told(save(in_a_call("cudaMemcpy", 80), tmp_path / "t.json"))
    assert finding(phase, "launch-bound") is None
    waits = finding(phase, "host-waits")
    assert waits is not None
    assert (waits.severity, waits.predicted_ns) == ("warning", None)
    assert "73 %" in waits.text and "80.0 µs" in waits.text
    assert phase.anatomy is not None
    assert phase.anatomy.graph_speedup == 110 / 100


def test_a_late_host_is_no_wait(tmp_path: Path) -> None:
    phase = told(save(chrome(step(0, MM, gap(us=90, launch=True), MM)), tmp_path / "t.json"))
    others = [finding(phase, name) for name in ("host-waits", "stream-blocked", "host-work")]
    assert others[0] is others[1] is others[2] is None
    late = finding(phase, "launch-bound")
    assert late is not None
    assert (late.severity, late.predicted_ns) == ("critical", 90e3)
    assert late.change is not None and "capture the step in a CUDA graph" in late.change


def test_every_part_of_a_late_host_is_counted(tmp_path: Path) -> None:
    """Two gaps of 900 us of late dispatch, and between them one of 2 ms in which the host runs no
    op: a graph spares all but the 2 ms."""
    parts = [part for us in (900, 2000, 900) for part in (gap(us=us, launch=True), MM)]
    trace = late(chrome(step(0, MM, *parts)), every=True)
    phase = told(save(trace, tmp_path / "t.json"))
    assert phase.anatomy is not None
    assert phase.anatomy.gaps["host"] == 3_800e3
    assert phase.anatomy.dispatch_ns == 1_800e3
    assert phase.anatomy.graph_speedup == pytest.approx(3840 / 2040)
    assert phase.anatomy.kernels_speedup == pytest.approx(3840 / 2040)
    bound = finding(phase, "launch-bound")
    assert bound is not None
    assert bound.evidence[0].startswith("in 1.800 ms of 3.800 ms idle time")
    assert bound.evidence[1] == (
        "in another 2.000 ms it loaded data, computed ops itself, stood still, or did other work "
        "than dispatch"
    )


def test_a_graph_spares_what_is_launched_in_time_too(tmp_path: Path) -> None:
    """Of 120 us, 40 of a late host, 50 between two kernels launched ahead."""
    trace = late(chrome(step(0, MM, gap(us=50), MM, gap(us=40, launch=True), MM)))
    phase = told(save(trace, tmp_path / "t.json"))
    assert phase.anatomy is not None
    assert (phase.anatomy.gaps["host"], phase.anatomy.gaps["device"]) == (40e3, 50e3)
    assert phase.anatomy.graph_speedup == 120 / 80
    assert phase.anatomy.kernels_speedup == 120 / 30
    bound = finding(phase, "launch-bound")
    assert bound is not None and bound.predicted_ns == 90e3


@pytest.mark.parametrize("waits", [1, 2])
def test_a_step_with_waits_is_advised_to_remove_them_before_a_graph(
    waits: int, tmp_path: Path
) -> None:
    """Two gaps of 500 us of a late host, then two of 90 us; in `waits` of them the host waits for
    the device, of which one may be the end of the step."""
    gaps = [500, 500, 90, 90]
    parts = [part for us in gaps for part in (gap(us=us, launch=True), MM)]
    trace = late(chrome(step(0, MM, *parts)), every=True)
    kernels = sorted(
        (e for e in trace["traceEvents"] if e["cat"] == "kernel"), key=lambda e: e["ts"]
    )
    for number in range(2, 2 + waits):
        end = kernels[number]["ts"] + kernels[number]["dur"]
        trace["traceEvents"].append(
            {"ph": "X", "cat": "cuda_runtime", "name": "cudaStreamSynchronize", "pid": 1, "tid": 1,
             "ts": end + 2, "dur": 80, "args": {"correlation": 999_000 + number}}
        )  # fmt: skip
    bound = finding(told(save(trace, tmp_path / "t.json")), "launch-bound")
    assert bound is not None and bound.change is not None
    waits_said = "first remove the 2 waits (cudaStreamSynchronize) of a step, which no graph can"
    said = waits_said in bound.all_changes
    assert said is (waits == 2)


def test_every_call_that_waits_is_named() -> None:
    both = GraphBlockers(waits=9.0, by="cudaStreamSynchronize, cudaDeviceSynchronize")
    assert str(both) == "9 waits (cudaStreamSynchronize, cudaDeviceSynchronize)"


@pytest.mark.parametrize("copies_per_step", [1, 3])
def test_stops_are_counted_by_call_and_kind(copies_per_step: int, tmp_path: Path) -> None:
    """Between two kernels of each step lie `copies_per_step` calls of a kind that one name has: a
    copy from pageable memory and a wait, far shorter than the work of the host in the same gap.
    Another wait follows the last kernel, and a copy from pinned memory holds nothing up."""
    steps = [step(n, MM, *[MM, gap(us=500, launch=True)] * 2, MM) for n in range(2)]
    trace = late(chrome(*steps), every=True)
    events = trace["traceEvents"]
    kernels = sorted((e for e in events if e["cat"] == "kernel"), key=lambda e: e["ts"])
    marks = sorted((e for e in events if "prunescope.step" in e["name"]), key=lambda e: e["ts"])
    half = len(kernels) // 2
    for number, mark in enumerate(marks):  # windows of the host's time, as the launches are late
        first, last = kernels[number * half], kernels[(number + 1) * half - 1]
        mark["ts"] = first["ts"] - 2
        mark["dur"] = last["ts"] + 5 - mark["ts"]
        names = ["cudaMemcpyAsync", "cudaStreamSynchronize"] * copies_per_step
        calls = [(name, first["ts"] + 11 + 3 * i) for i, name in enumerate(names)]
        calls += [("cudaMemcpyAsync", first["ts"] + 450), ("cudaStreamSynchronize", last["ts"] + 1)]
        for at, (name, ts) in enumerate(calls):
            args = {"correlation": 900_000 + 100 * number + at, "External id": 0}
            call = {"ph": "X", "cat": "cuda_runtime", "name": name, "pid": 1, "tid": 1,
                    "ts": ts, "dur": 2, "args": args}  # fmt: skip
            events.append(call)
            if name == "cudaMemcpyAsync":
                memory = "Pageable" if at < len(names) else "Pinned"
                events.append(
                    {**call, "cat": "gpu_memcpy", "name": f"Memcpy HtoD ({memory} -> Device)",
                     "pid": 0, "tid": 7, "ts": ts + 1, "dur": 1, "args": {**args, "stream": 7}}
                )  # fmt: skip
    bound = finding(told(save(trace, tmp_path / "t.json")), "launch-bound")
    assert bound is not None and bound.change is not None
    counted = "first remove the 3 waits (cudaStreamSynchronize) and 3 copies of a step, which no"
    assert (counted in bound.all_changes) is (copies_per_step == 3)
    assert ("no graph can hold" in bound.all_changes) is (copies_per_step == 3)


@pytest.mark.parametrize(("us", "cause"), [(900, "device"), (1100, "held")])
def test_a_launch_in_time_takes_no_millisecond(us: float, cause: str, tmp_path: Path) -> None:
    phase = told(save(chrome(step(0, MM, gap(us=us), MM)), tmp_path / "t.json"))
    assert phase.anatomy is not None
    assert phase.anatomy.gaps[cause] == us * 1e3


def test_a_replay_is_not_advised_to_capture_a_graph(tmp_path: Path) -> None:
    """Three replays with 100 us of a late host between them."""
    trace = replayed(chrome(*[MM] * 4), times=3)
    phase = told(save(trace, tmp_path / "t.json"))
    late = finding(phase, "launch-bound")
    assert late is not None
    assert late.predicted_ns == phase.bound["launch"] == 200e3
    assert late.change is not None
    assert "capture" not in late.change and "replays" in late.change


def test_a_real_trace_that_idles_while_the_host_prepares_images(real_report: Real) -> None:
    """OWLv2: 422.1 of 512 ms idle are calls of scipy's zoom before the images are copied: four of
    106.546, 104.996, 106.177, 106.488 and 104.473 ms lie in the wall, the first before it. They are
    made by the data loader, in which the host is for 490.5 ms."""
    (phase,) = real_report("h100_owlv2-large.json.gz").phases.values()
    assert finding(phase, "launch-bound") is finding(phase, "host-waits") is None
    work = finding(phase, "host-work")
    assert work is not None
    assert "prepares data" in work.text and "num_workers" in str(work.change)
    assert "__next__: <built-in function zoom_shift>" in work.evidence[0]
    assert work.evidence[0].startswith("490.508 ms in ")
    assert work.evidence[0].endswith(", within gaps of 492.522 ms")
    lead = finding(phase, "late-first-launch")
    assert lead is not None and lead.severity == "info"
    assert "1206.791 ms, of which the device is busy for 47 %" in lead.text
    assert phase.anatomy is not None
    assert phase.anatomy.gaps["host"] > 0.45 * phase.wall_ns
    assert phase.anatomy.gaps["memcpy"] < 0.01 * phase.wall_ns
    assert phase.anatomy.graph_speedup is not None
    assert phase.anatomy.graph_speedup < 1.01
    assert not any("CUDA graph (trace" in (f.change or "") for f in phase.findings)


def test_a_graph_holds_copies_that_do_not_block(real_report: Real) -> None:
    """B200: 1.959 ms of its idle time are in cudaMemcpyAsync from device to device, 0.022 ms in the
    two copies of pageable memory, which no graph holds, nor the 7.204 ms before the first launches
    of cuBLAS's kernels."""
    (phase,) = real_report("b200_eager.json.gz").phases.values()
    assert phase.anatomy is not None
    parts = {one.doing: one.ns for one in phase.anatomy.idle if one.beside is None}
    assert parts["memcpy"] < 50_000 and parts["copy_launch"] > 1_900_000
    assert phase.anatomy.gaps["first_call"] == pytest.approx(7.204e6, abs=1e3)
    assert phase.anatomy.kernels_speedup == pytest.approx(4.46, abs=0.02)


@pytest.mark.parametrize(
    ("name", "thread", "blocked"),
    [
        ("cudaStreamSynchronize", 1, 50_000),
        ("cudaMemcpyAsync", 1, 50_000),
        ("hipMemcpyWithStream", 1, 50_000),
        ("cudaStreamSynchronize", 2, 0),  # a thread that launched neither of the two
        ("cudaLaunchKernelExC", 1, 0),
    ],
)
def test_what_lies_in_a_call_that_blocks_is_no_host_time_of_the_next_op(
    name: str, thread: int, blocked: int, tmp_path: Path
) -> None:
    """50 us in a call between two launches, and what is left of their distance. The call is in no
    op, and stands for itself."""
    analysis = analyze(save(in_a_call(name, 50, thread=thread), tmp_path / "t.json"))
    (frame,) = analysis.frames.values()
    assert frame["host_blocked_ns"].to_list() == [None, blocked]
    apart = frame["launched"][1] - frame["launched"][0]
    assert frame["host_ns"].to_list() == [None, apart - blocked]
    (phase,) = analysis.report.phases.values()
    assert phase.anatomy is not None
    told = {one.op: (one.host_ns, one.blocked_ns) for one in phase.anatomy.host}
    itself = {name: (0, blocked)} if blocked else {}
    assert told == {"aten::mm": (apart - blocked, 0), **itself}
    table = phase_tables.host_table(phase)
    assert table is not None
    assert [column.title for column in table.columns][3:5] == ["host time", "blocked"]
    cells = {row[0].text: (row[3].value, row[4].value) for row in table.rows}
    assert cells == told
