"""Idle time by its cause: a late host, a copy or a wait, and what is advised for each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prunescope.analysis.pipeline import analyze
from prunescope.analysis.schema.report import Finding, Phase
from tests.analysis.replays import replayed
from tests.chrome import chrome, gap, k, op, save, step

Real = Callable[[str], Path]
DECODE = "mi300x_sglang_qwen3-8b_decode_graph.json.gz"
MM = op("aten::mm", [64, 64], [64, 64], kernels=[k(us=10)])


def told(path: Path) -> Phase:
    (phase,) = analyze(path).report.phases.values()
    return phase


def finding(phase: Phase, name: str) -> Finding | None:
    return next((f for f in phase.findings if f.id == name), None)


def in_a_call(name: str, us: float, *, thread: int = 1) -> dict[str, Any]:
    """Two GEMMs of 10 us with 90 us between them; 2 us after the first ends the host enters
    a call of `us`."""
    trace = chrome(step(0, MM, gap(us=90, launch=True), MM))
    first = min((e for e in trace["traceEvents"] if e["cat"] == "kernel"), key=lambda e: e["ts"])
    at = first["ts"] + first["dur"] + 2
    trace["traceEvents"].append(
        {"ph": "X", "cat": "cuda_runtime", "name": name, "pid": 1, "tid": thread, "ts": at,
         "dur": us, "args": {"correlation": 999_999}}
    )  # fmt: skip
    return trace


@pytest.mark.parametrize(
    ("name", "us", "thread", "cause"),
    [
        ("hipMemcpyWithStream", 80, 1, "memcpy"),
        ("cudaMemcpy", 46, 1, "memcpy"),
        ("cudaMemcpyAsync", 40, 1, "host"),  # less than half of the gap
        ("cudaMemcpy", 80, 2, "host"),  # of a thread that launches nothing here
        ("cudaStreamSynchronize", 80, 1, "sync"),
        ("hipDeviceSynchronize", 40, 1, "host"),
        ("cudaFuncGetAttributes", 80, 1, "host"),
    ],
)
def test_the_cause_is_the_call_that_the_launching_thread_was_in(
    name: str, us: float, thread: int, cause: str, tmp_path: Path
) -> None:
    phase = told(save(in_a_call(name, us, thread=thread), tmp_path / "t.json"))
    assert phase.anatomy is not None
    assert {c for c, ns in phase.anatomy.gaps.items() if ns} == {cause}
    assert phase.anatomy.gaps[cause] == phase.gap_ns == 90e3
    assert phase.bound["launch"] == 90e3


def test_idle_beside_copies_is_no_late_host(tmp_path: Path) -> None:
    """90 of 110 us: a wait, not a launch that comes late, whatever part a graph could spare."""
    phase = told(save(in_a_call("cudaMemcpy", 80), tmp_path / "t.json"))
    assert finding(phase, "launch-bound") is None
    waits = finding(phase, "host-waits")
    assert waits is not None
    assert (waits.severity, waits.predicted_ns) == ("warning", None)
    assert "82%" in waits.text and "90.0 µs" in waits.text
    assert phase.anatomy is not None
    assert phase.anatomy.graph_speedup == 1.0


def test_a_late_host_is_no_wait(tmp_path: Path) -> None:
    phase = told(save(chrome(step(0, MM, gap(us=90, launch=True), MM)), tmp_path / "t.json"))
    assert finding(phase, "host-waits") is finding(phase, "held-back") is None
    late = finding(phase, "launch-bound")
    assert late is not None
    assert (late.severity, late.predicted_ns) == ("critical", 90e3)
    assert late.change is not None and "capture the step in a CUDA graph" in late.change


def test_a_kernel_that_its_stream_holds_back(tmp_path: Path) -> None:
    """Launched when the device has run dry, and begun 50 ms after that: no late host."""
    trace = chrome(step(0, MM, gap(us=50_000, launch=True), MM))
    phase = told(save(trace, tmp_path / "t.json"))
    assert phase.anatomy is not None
    assert {c for c, ns in phase.anatomy.gaps.items() if ns} == {"held"}
    assert finding(phase, "launch-bound") is None
    held = finding(phase, "held-back")
    assert held is not None
    assert "100%" in held.text
    assert "50.0" in held.evidence[0]


def test_a_replay_is_not_told_to_capture_a_graph(tmp_path: Path) -> None:
    """Three replays with 100 us of a late host between them."""
    trace = replayed(chrome(*[MM] * 4), times=3)
    phase = told(save(trace, tmp_path / "t.json"))
    late = finding(phase, "launch-bound")
    assert late is not None
    assert late.predicted_ns == phase.bound["launch"] == 200e3
    assert late.change is not None
    assert "capture" not in late.change and "replays" in late.change


@pytest.mark.parametrize("name", [DECODE, "mi300x_sglang_qwen3-8b_prefilldecode.json.gz"])
def test_real_traces_whose_stream_waits(name: str, real_trace: Real) -> None:
    """SGLang's first kernel is launched 43 us after the one before, behind hipStreamWaitEvent, and
    begins 463 and 494 ms later."""
    phase = told(real_trace(name))
    held = finding(phase, "held-back")
    assert held is not None
    assert "resolve_future_token_ids" in held.evidence[0]
    assert finding(phase, "launch-bound") is finding(phase, "host-waits") is None
    assert phase.anatomy is not None
    assert phase.anatomy.gaps["held"] > 0.49 * phase.wall_ns
    assert not any("CUDA graph (trace" in (f.change or "") for f in phase.findings)


def test_a_real_trace_that_idles_in_copies(real_trace: Real) -> None:
    """OWLv2 idles before its copies from the host."""
    phase = told(real_trace("h100_owlv2-large.json.gz"))
    assert finding(phase, "launch-bound") is None
    assert finding(phase, "host-waits") is not None
    assert phase.anatomy is not None
    assert phase.anatomy.gaps["memcpy"] > 0.46 * phase.wall_ns
    assert phase.anatomy.graph_speedup is not None
    assert phase.anatomy.graph_speedup < 1.01
    assert not any("CUDA graph (trace" in (f.change or "") for f in phase.findings)
