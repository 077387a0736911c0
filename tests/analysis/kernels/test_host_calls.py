"""The host table: what a call blocks is of the op around it, and a launch counts once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prunescope.analysis.pipeline import Analysis, analyze
from prunescope.analysis.schema.anatomy import HostTime
from tests.analysis.replays import replayed
from tests.chrome import chrome, gap, k, op, save, step

Real = Callable[[str], Path]
MM = op("aten::mm", [64, 64], [64, 64], kernels=[k(us=10)])


def call(name: str, ts: float, us: float) -> dict[str, Any]:
    """A runtime call of the launching thread without a kernel."""
    return {"ph": "X", "cat": "cuda_runtime", "name": name, "pid": 1, "tid": 1, "ts": ts,
            "dur": us, "args": {"correlation": 999_000 + round(ts) % 1000}}  # fmt: skip


def told(trace: dict[str, Any], tmp_path: Path) -> Analysis:
    return analyze(save(trace, tmp_path / "t.json"))


def host_of(analysis: Analysis) -> list[HostTime]:
    """The host table of the only phase."""
    (phase,) = analysis.report.phases.values()
    assert phase.anatomy is not None
    return phase.anatomy.host


def blocked_in_frames(analysis: Analysis) -> float:
    """What the frame's column holds, ns a step."""
    (frame,) = analysis.frames.values()
    return int(frame["host_blocked_ns"].fill_null(0).sum()) / frame["step"].n_unique()


def copy_that_waits() -> dict[str, Any]:
    """GEMM, a copy whose op waits 60 us for it behind its launch, another GEMM 90 us later."""
    copy = op("aten::copy_", [64], [64], kernels=[k(us=2, cat="gpu_memcpy")])
    trace = chrome(step(0, MM, op("aten::to", [64], inner=[copy]), gap(us=90, launch=True), MM))
    events = trace["traceEvents"]
    (launch,) = (e for e in events if e["name"] == "cudaMemcpyAsync")
    for event in events:
        if event["name"] in ("aten::to", "aten::copy_"):
            event["dur"] += 80
        elif event["ts"] > launch["ts"] and event["cat"] in ("cpu_op", "cuda_runtime"):
            event["ts"] += 80
        elif event["cat"] == "user_annotation":
            event["dur"] += 80
    events.append(call("cudaStreamSynchronize", launch["ts"] + 5, 60))
    return trace


def test_the_wait_of_a_copy_is_of_its_op_and_not_of_the_next_launch(tmp_path: Path) -> None:
    analysis = told(copy_that_waits(), tmp_path)
    table = {one.op: one for one in host_of(analysis)}
    # The call of the copy itself lasts 50 ns, and is over before the wait.
    assert table["aten::copy_"].blocked_ns == 60_050
    assert table["aten::mm"].blocked_ns == 0
    assert blocked_in_frames(analysis) == 60_050


def test_of_calls_inside_one_another_each_ns_counts_once(tmp_path: Path) -> None:
    """A driver call inside a runtime call, and a wait of the step outside of any op."""
    trace = copy_that_waits()
    (wait,) = (e for e in trace["traceEvents"] if e["name"] == "cudaStreamSynchronize")
    trace["traceEvents"] += [call("cuStreamSynchronize", wait["ts"] + 10, 20),
                             call("cudaDeviceSynchronize", wait["ts"] + 77, 5)]  # fmt: skip
    analysis = told(trace, tmp_path)
    table = {one.op: one for one in host_of(analysis)}
    assert table["aten::copy_"].blocked_ns == 60_050
    outside = table["cudaDeviceSynchronize"]
    assert (outside.blocked_ns, outside.count, outside.role) == (5_000, 0, "unknown")
    assert blocked_in_frames(analysis) == 65_050


def test_launches_are_calls_and_not_what_they_launch(tmp_path: Path) -> None:
    """Two replays of a graph of three kernels are two launches; so are two GEMMs."""
    graph = told(replayed(chrome(MM, MM, MM), times=2), tmp_path)
    assert [one.count for one in host_of(graph)] == [2]
    gemms = told(chrome(step(0, MM, MM)), tmp_path)
    assert [one.count for one in host_of(gemms)] == [2]


@pytest.mark.parametrize(
    ("name", "op_name", "least_ns", "was"),
    [
        ("a100_training_graphs_nccl", "aten::copy_", 138.8e6, "fbgemm::permute_2D_sparse_data"),
        ("../strangers/tracelens_mi300x_timesformer", "aten::copy_", 1.7e6,
         "aten::miopen_convolution"),
        ("h100_owlv2-large", "aten::copy_", 358e6, "aten::add_"),
    ],
)  # fmt: skip
def test_the_copies_of_real_traces_wait_themselves(
    name: str, op_name: str, least_ns: float, was: str, real_trace: Real
) -> None:
    analysis = analyze(real_trace(f"{name}.json.gz"))
    table = host_of(analysis)
    assert sum(one.blocked_ns or 0 for one in table if one.op == op_name) > least_ns
    assert all((one.blocked_ns or 0) < 0.1e6 for one in table if one.op == was)
    assert sum(one.blocked_ns or 0 for one in table) <= blocked_in_frames(analysis) * (1 + 1e-9)


def test_the_launches_of_a_real_replay(real_trace: Real) -> None:
    """Two cudaGraphLaunch a step, which replay 237 events; two fills of an engine's capture."""
    compiled = host_of(
        analyze(real_trace("../strangers/luatil_rtx3060_gpt_train_compile_graph_b4.json.gz"))
    )
    assert sum(one.count for one in compiled if one.op == "?") == 2
    (fill,) = host_of(analyze(real_trace("mi300x_sglang_qwen3-8b_decode_capture_bs32.json.gz")))
    assert (fill.op, fill.count) == ("aten::fill_", 2)
