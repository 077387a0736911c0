"""Launches that a stream captured into a graph did not run: they are not lost, and no step."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from prunescope.analysis.pipeline import analyze
from prunescope.analysis.report.terminal import print_report
from prunescope.analysis.schema.report import Report
from prunescope.analysis.summary.headline import headline
from tests.analysis.finding_cases import found
from tests.chrome import chrome, gap, k, module, op, save

CAPTURE = "mi300x_sglang_qwen3-8b_decode_capture_bs32.json.gz"
MM = op("aten::mm", [64, 64], [64, 64], kernels=[k(us=10)])
Event = dict[str, Any]


def launches(trace: Event) -> list[Event]:
    return [e for e in trace["traceEvents"] if e["cat"] == "cuda_runtime"]


def never_run(trace: Event, first: int, last: int) -> None:
    """Drop the kernels of some launches, as if the launches were captured, or the kernels lost."""
    gone = {e["args"]["correlation"] for e in launches(trace)[first:last]}
    trace["traceEvents"] = [
        e for e in trace["traceEvents"]
        if e["cat"] != "kernel" or e["args"].get("correlation") not in gone
    ]  # fmt: skip


def call(trace: Event, name: str, at: float, **fields: Any) -> None:
    args = {"correlation": 10_000 + len(trace["traceEvents"])}
    trace["traceEvents"].append(
        {"ph": "X", "cat": "cuda_runtime", "name": name, "pid": 1, "tid": 1, "ts": at,
         "dur": 0.001, "args": args, **fields}
    )  # fmt: skip


def captured(
    count: int, *, of: int, begin: str = "cudaStreamBeginCapture",
    end: str | None = "cudaStreamEndCapture", lead_us: float = 10, **fields: Any,
) -> Event:  # fmt: skip
    """Build a step of `of` launches whose last `count` a stream captured."""
    trace = chrome(module("ProfilerStep#0", *[MM] * of), lead_us=lead_us)
    rows = launches(trace)[of - count :]
    never_run(trace, of - count, of)
    call(trace, begin, rows[0]["ts"] - 0.002, **fields)
    if end is not None:
        call(trace, end, rows[-1]["ts"] + 0.002, **fields)
    return trace


def told(trace: Event, tmp_path: Path, dense: Event | None = None) -> Report:
    baseline = None if dense is None else save(dense, tmp_path / "dense.json")
    return analyze(save(trace, tmp_path / "t.json"), baseline=baseline).report


def shown(report: Report) -> str:
    to = io.StringIO()
    print_report(report, Console(file=to, width=400), full=True)
    return to.getvalue()


def test_a_step_that_was_captured(tmp_path: Path) -> None:
    """8 of 10 launches: neither a wall, nor how busy it was, nor what the host did is of a step."""
    report = told(captured(8, of=10, lead_us=90), tmp_path)
    (phase,) = report.phases.values()
    said = found(phase, "captured-step")
    assert said is not None and said.severity == "warning"
    counted = "8 of 10 kernel launches were captured into a graph and did not run"
    assert said.evidence == [f"the trace: {counted}"]
    assert "trace a replay" in str(said.change) and "before the capture" in str(said.change)
    assert report.warnings[0] == f"t.json: {counted}"
    assert report.partial
    for absent in ("kernels-missing", "captured-launches", "late-first-launch"):
        assert found(phase, absent) is None
    assert headline(phase).startswith(f"no step was timed (the trace: {counted})")
    assert "a step, busy" not in shown(report)


def test_a_captured_side_has_no_speedup(tmp_path: Path) -> None:
    report = told(captured(8, of=10), tmp_path, chrome(module("ProfilerStep#0", *[MM] * 10)))
    (phase,) = report.phases.values()
    said = found(phase, "captured-step")
    assert said is not None and said.severity == "critical"
    assert said.evidence[0].startswith("pruned: 8 of 10")
    first = headline(phase)
    assert first.startswith("no step was timed (pruned: 8 of 10")
    assert first.endswith("is no speedup")
    assert "realised" not in first
    assert phase.family is not None
    assert (phase.family.id, phase.family.confidence) == ("unknown", 0.1)
    assert found(phase, "kernels-missing") is None


def test_launches_captured_beside_a_step_that_ran(tmp_path: Path) -> None:
    report = told(captured(3, of=10), tmp_path)
    (phase,) = report.phases.values()
    some = found(phase, "captured-launches")
    assert some is not None
    assert some.evidence[0].endswith("3 of 10 kernel launches were captured into a graph and did "
                                     "not run")  # fmt: skip
    assert found(phase, "captured-step") is found(phase, "kernels-missing") is None
    assert not report.partial
    assert "a step, busy" in headline(phase)


@pytest.mark.parametrize(
    ("begin", "end", "fields"),
    [
        ("hipStreamBeginCapture", "hipStreamEndCapture", {}),
        ("cudaStreamBeginCapture_ptsz", "cudaStreamEndCapture_ptsz", {}),
        ("cuStreamBeginCapture_v2", "cuStreamEndCapture", {"cat": "cuda_driver"}),
        ("cudaStreamBeginCaptureToGraph", "cudaStreamEndCapture", {"args": {}}),
        ("cudaStreamBeginCapture", "cudaStreamEndCapture", {"tid": 2}),
        ("cudaStreamBeginCapture", None, {}),  # the profiler stopped within the capture
    ],
)
def test_every_call_that_captures(
    begin: str, end: str | None, fields: dict[str, Any], tmp_path: Path
) -> None:
    report = told(captured(8, of=10, begin=begin, end=end, **fields), tmp_path)
    assert "8 of 10 kernel launches were captured" in report.warnings[0]


def test_launches_without_kernel_outside_of_a_capture_are_lost(tmp_path: Path) -> None:
    """Of ten, one that no capture holds; and one of three where the capture ended before."""
    lossy = chrome(module("ProfilerStep#0", *[MM] * 10))
    never_run(lossy, 4, 5)
    (phase,) = told(lossy, tmp_path).phases.values()
    missing = found(phase, "kernels-missing")
    assert missing is not None and "1 of 10 kernel launches" in missing.evidence[0]
    assert found(phase, "captured-launches") is None
    both = captured(2, of=10)
    never_run(both, 3, 4)
    (phase,) = told(both, tmp_path).phases.values()
    missing = found(phase, "kernels-missing")
    assert missing is not None and "1 of 8 kernel launches" in missing.evidence[0]
    some = found(phase, "captured-launches")
    assert some is not None and "2 of 10 kernel launches" in some.evidence[0]


def test_a_capture_is_no_late_host(tmp_path: Path) -> None:
    """90 us between two kernels in which 8 launches were captured: no graph is advised for it."""
    parts = [MM, *[MM] * 8, gap(us=90, launch=True), MM]
    trace = chrome(module("ProfilerStep#0", *parts))
    rows = launches(trace)
    call(trace, "cudaStreamBeginCapture", rows[1]["ts"] - 0.002)
    call(trace, "cudaStreamEndCapture", rows[8]["ts"] + 0.002)
    never_run(trace, 1, 9)
    (phase,) = told(trace, tmp_path).phases.values()
    assert found(phase, "captured-step") is not None
    assert found(phase, "launch-bound") is found(phase, "host-work") is None


def test_a_real_capture(real_report: Callable[[str], Report]) -> None:
    """SGLang captures a decode step: two fills ran before, and 544 launches did not."""
    report = real_report(CAPTURE)
    (phase,) = report.phases.values()
    counted = "544 of 546 kernel launches were captured into a graph and did not run"
    assert report.warnings == [f"{CAPTURE}: {counted}"]
    assert report.partial
    assert [item.id for item in phase.findings] == ["captured-step"]
    assert headline(phase).startswith(f"no step was timed (the trace: {counted})")


@pytest.mark.parametrize(("grid", "named"), [([132 * 8, 1, 1], True), ([1, 1, 1], False)])
def test_what_is_latency_bound_has_no_share_of_a_bound(
    grid: list[int], tmp_path: Path, *, named: bool
) -> None:
    """A sum of 4096 numbers in 8 us: on one block it waits for latency, whatever the peaks."""
    fill = op("aten::add", [4096], [4096], [], kernels=[k(us=8, name="add_kernel", grid=grid)])
    report = told(chrome(module("ProfilerStep#0", fill)), tmp_path)
    (phase,) = report.phases.values()
    assert {row.bound for row in phase.kernels} == {"memory" if named else "latency"}
    assert (found(phase, "largest-cost") is not None) == named
