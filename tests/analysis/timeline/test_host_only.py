"""Traces of a GPU without its device events: host ops stand for the work, on nobody's peaks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from prunescope.analysis.pipeline import analyze
from prunescope.analysis.schema.report import Report
from tests.analysis.edits import Edit
from tests.chrome import chrome, k, op, save, step

DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")


def said(report: Report) -> list[str]:
    return [w for w in report.warnings if "no device events" in w]


def without_bounds(report: Report) -> bool:
    phase = report.phases["trace"]
    ideals = {g.ideal_ns for g in phase.gemms}
    return report.device["peaks"] is None and ideals <= {None} and phase.bound["unknown"] > 0


def test_a_gpu_without_its_events_has_a_warning_and_no_peaks(tmp_path: Path) -> None:
    mm = op("aten::mm", [4, 5], [5, 6], us=9, kernels=[k(us=7)])
    trace = chrome(step(0, mm))
    whole = analyze(save(trace, tmp_path / "whole.json")).report
    assert not said(whole)
    assert whole.device["name"] == "h100-sxm"
    trace["traceEvents"] = [e for e in trace["traceEvents"] if e["cat"] not in DEVICE]
    report = analyze(save(trace, tmp_path / "t.json")).report
    assert len(said(report)) == 1
    assert "NVIDIA H100 80GB HBM3" in said(report)[0]
    assert report.device["name"] is None
    assert without_bounds(report)
    for event in trace["traceEvents"]:  # a host's trace on such a machine: no launches either
        event["cat"] = event["cat"].replace("cuda_runtime", "python_function")
    report = analyze(save(trace, tmp_path / "t.json")).report
    assert said(report)
    assert without_bounds(report)


def test_a_trace_of_a_cpu_has_no_such_warning(tmp_path: Path) -> None:
    trace = chrome(step(0, op("aten::mm", [4, 5], [5, 6], us=9)), cpu=True)
    assert not said(analyze(save(trace, tmp_path / "t.json")).report)


def test_a_real_trace_without_its_device_events(
    real_trace: Callable[[str], Path], tmp_path: Path
) -> None:
    edit = Edit(real_trace("h100_vit.json.gz"))
    edit.events = [e for e in edit.events if e.get("cat") not in DEVICE]
    report = analyze(edit.save(tmp_path / "t.json")).report
    assert said(report)
    assert without_bounds(report)
