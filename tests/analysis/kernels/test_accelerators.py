"""Accelerators that are no NVIDIA or AMD GPU, as kineto writes them: read, without peaks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prunescope.analysis.inputs.options import Options
from prunescope.analysis.pipeline import Analysis, analyze
from tests.chrome import chrome, gap, k, op, save, step

MM = op(
    "aten::mm", [64, 64], [64, 64], dtype="c10::BFloat16", kernels=[k(us=20, name="gemm_kernel")]
)
SIZES = ("grid", "block", "registers per thread", "shared memory", "context", "stream")


def _with_copy(name: str) -> dict[str, Any]:
    moved = k(us=9000, name=name, cat="gpu_memcpy")
    moved.args["bytes"] = 10**8
    copy = op("aten::copy_", [10**8], [10**8], dtype="unsigned char", kernels=[moved])
    return chrome(step(0, copy, MM, gap(us=30), MM))


def as_xpu(trace: dict[str, Any]) -> dict[str, Any]:
    """XpuptiActivityProfiler: calls of Unified Runtime, a row a SYCL queue, no grid, no properties
    of the device."""
    trace.pop("deviceProperties")
    calls = {"cudaMemcpyAsync": "urEnqueueUSMMemcpy"}
    for number, event in enumerate(trace["traceEvents"]):
        args = event["args"]
        if event["cat"] == "cuda_runtime":
            event["cat"] = "xpu_runtime"
            event["name"] = calls.get(event["name"], "urEnqueueKernelLaunchWithArgsExp")
        elif event["cat"] in ("kernel", "gpu_memcpy"):
            event["args"] = {key: args[key] for key in args if key not in SIZES} | {
                "appended": 1, "submitted": 2, "context": "0x00000000097a1c80", "sycl queue": 0,
                "l0 queue": "0x0000000009b1f2a0", "kernel_id": number,
            }  # fmt: skip
    return trace


def as_mtia(trace: dict[str, Any]) -> dict[str, Any]:
    """Kernels in a category of their own; a copy is among them."""
    trace["deviceProperties"] = []
    own = {"kernel": "mtia_ccp_events", "gpu_memcpy": "mtia_ccp_events",
           "cuda_runtime": "mtia_runtime"}  # fmt: skip
    for event in trace["traceEvents"]:
        event["cat"] = own.get(event["cat"], event["cat"])
        event["args"] = {key: a for key, a in event["args"].items() if key not in SIZES}
    return trace


def _read(trace: dict[str, Any], tmp_path: Path) -> Analysis:
    """The analysis, with what holds of every device that nobody knows."""
    done = analyze(save(trace, tmp_path / "t.json"))
    (phase,) = done.report.phases.values()
    (frame,) = done.frames.values()
    assert frame["op"].to_list() == ["aten::copy_", "aten::mm", "aten::mm"]
    assert frame["busy"].to_list() == [9_000_000, 20_000, 20_000]
    assert (phase.busy_ns, phase.gap_ns) == (9_040_000, 30_000)
    assert done.report.device["peaks"] is None
    assert set(frame["bound"]) == {"unknown"} and frame["ideal"].null_count() == 3
    assert [(g.m, g.n, g.k, g.count, g.efficiency) for g in phase.gemms] == [(64, 64, 64, 2, None)]
    return done


def test_an_xpu_is_a_device_without_peaks(tmp_path: Path) -> None:
    done = _read(as_xpu(_with_copy("Memcpy M2D (Memory -> Device)")), tmp_path)
    assert done.frames["trace"]["kind"].to_list() == ["memcpy", "gemm", "gemm"]


def test_an_mtia_is_a_device_without_peaks(tmp_path: Path) -> None:
    done = _read(as_mtia(_with_copy("Memcpy HtoD")), tmp_path)
    assert done.frames["trace"]["kind"].to_list() == ["memcpy", "gemm", "gemm"]


def test_a_copy_over_a_link_that_nobody_knows_is_not_judged_by_the_memory(tmp_path: Path) -> None:
    """A bandwidth that is given is that of the memory, and says nothing of the link."""
    for name in ("Memcpy M2D (Memory -> Device)", "Memcpy D2H (Device -> Host)"):
        path = save(as_xpu(_with_copy(name)), tmp_path / "t.json")
        done = analyze(path, options=Options(bandwidth=1000.0))
        (frame,) = done.frames.values()
        assert frame["bytes"].to_list()[0] == 10**8
        assert (frame["ideal"][0], frame["bound"][0]) == (None, "unknown")
