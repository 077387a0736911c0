"""Snapshots of memory that torch writes with profile_memory=True."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prunescope.analysis.pipeline import analyze
from prunescope.analysis.schema.report import Report
from tests.chrome import chrome, k, op, save, step


def noted(path: Path, *snapshots: dict[str, Any]) -> list[str]:
    """The note of a trace with these snapshots 1 us apart, from 1 us into the step on."""
    trace = chrome(step(0, op("aten::mm", [4, 32], [32, 48], kernels=[k(us=8, name="gemm")])))
    begin = min(e["ts"] for e in trace["traceEvents"] if e["name"] == "prunescope.step#0")
    for i, args in enumerate(snapshots):
        event = {"ph": "i", "cat": "cpu_instant_event", "s": "t", "name": "[memory]", "pid": 1,
                 "tid": 1, "ts": begin + 0.01 * (i + 1), "args": args}  # fmt: skip
        trace["traceEvents"].append(event)
    notes = analyze(save(trace, path)).report.phases["trace"].notes
    return [text for text in notes if text.startswith("the allocator")]


def of(allocated: Any, device_type: Any = 1) -> dict[str, Any]:
    return {"Total Allocated": allocated, "Total Reserved": 5 * 10**9, "Device Type": device_type}


def test_the_most_of_a_device_counts(tmp_path: Path) -> None:
    assert noted(tmp_path / "t.json", of(2 * 10**9), of(3 * 10**9), of(9 * 10**9, 0)) == [
        "the allocator held at most 3 GB of device memory in the steps (5 GB were "
        "reserved), by 2 snapshots"
    ]


@pytest.mark.parametrize("value", ["much", -5, None, [1], 10**30])
def test_other_values_are_left_out(value: Any, tmp_path: Path) -> None:
    assert noted(tmp_path / "t.json", of(value)) == []


def test_a_real_trace(real_report: Callable[[str], Report]) -> None:
    report = real_report("h100_qwen1.5-0.5b_prefill.json.gz")
    (text,) = [t for t in report.phases["trace"].notes if t.startswith("the allocator")]
    assert "at most 2.09 GB" in text and "2,250 snapshots" in text
