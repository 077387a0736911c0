"""Absurd times and repeated events: dropped with a word on it, never a number."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prunescope.analysis.pipeline import analyze
from prunescope.analysis.report.measured import closure
from prunescope.analysis.schema.report import Report
from prunescope.analysis.trace.load import load
from prunescope.taxonomy.errors import PrunescopeError
from tests.chrome import chrome, k, op, save, step

LATER_US = 1.4e12  # as kineto's clocks


def trace(count: int = 40, *, cpu: bool = False) -> dict[str, Any]:
    mms = [op("aten::mm", [64, 64], [64, 64], kernels=[k(us=5, gap_us=1, name="gemm")])
           for _ in range(count)]  # fmt: skip
    made = chrome(step(0, *mms), cpu=cpu)
    for event in made["traceEvents"]:
        event["ts"] += LATER_US
    return made


def kernels(made: dict[str, Any]) -> list[dict[str, Any]]:
    return [e for e in made["traceEvents"] if e["cat"] == "kernel"]


@pytest.mark.parametrize(
    ("field", "value"),
    [("ts", 0), ("ts", 1e15), ("dur", 1e15), ("dur", 3.7e9), ("dur", -5), ("dur", None)],
)
def test_one_absurd_time_is_dropped_and_said(field: str, value: Any, tmp_path: Path) -> None:
    """What is left: 39 kernels of 5 us; the gap where one was is 6 us longer."""
    made = trace()
    kernels(made)[20][field] = value
    report = analyze(save(made, tmp_path / "t.json")).report
    phase = report.phases["trace"]
    assert report.partial
    assert report.warnings[0] == (
        "t.json: 1 of 40 kernels were dropped: their start time or duration is missing or invalid"
    )
    assert (phase.busy_ns, phase.wall_ns) == (39 * 5_000, 40 * 6_000 - 1_000)
    assert "(difference 0 ns)" in closure(phase)


@pytest.mark.parametrize(("field", "value"), [("dur", -1), ("dur", None), ("ts", "soon")])
def test_without_any_kernel_left_it_is_refused(field: str, value: Any, tmp_path: Path) -> None:
    """Also where a memset is left, whose 5 us are no step."""
    made = trace(5)
    for kernel in kernels(made)[1:]:
        kernel[field] = value
    first = kernels(made)[0]
    first["cat"] = "gpu_memset"
    with pytest.raises(PrunescopeError, match="all 4 kernels have an invalid start"):
        load(save(made, tmp_path / "t.json"))


def test_some_absurd_times_leave_a_partial_report(tmp_path: Path) -> None:
    made = trace()
    for kernel in kernels(made)[10:]:
        kernel["dur"] = -1
    report = analyze(save(made, tmp_path / "t.json")).report
    assert report.partial
    assert "30 of 40 kernels were dropped" in report.warnings[0]


def test_two_captures_in_one_file_are_doubted_and_kept(tmp_path: Path) -> None:
    made, later = trace(), trace(8)
    for event in later["traceEvents"]:
        event["ts"] += 14_169e6
        event["args"] = {**event["args"], **{key: 10_000 + event["args"][key] for key in
                         ("correlation", "External id") if key in event["args"]}}  # fmt: skip
    made["traceEvents"] += later["traceEvents"]
    report = analyze(save(made, tmp_path / "t.json")).report
    assert report.phases["trace"].steps == 2
    assert report.phases["trace"].busy_ns == 24 * 5_000
    assert any("lie up to 14,169 s apart" in w for w in report.warnings)


def test_captures_that_are_months_apart_are_refused(tmp_path: Path) -> None:
    """Their sums could not be exact to the ns."""
    made = trace()
    for kernel in kernels(made)[20:]:
        kernel["ts"] += 1e15
    with pytest.raises(PrunescopeError, match="1,000,000,000 s apart"):
        load(save(made, tmp_path / "t.json"))


@pytest.mark.parametrize("cpu", [False, True])
def test_every_event_twice_counts_once(tmp_path: Path, *, cpu: bool) -> None:
    made = trace(cpu=cpu)
    once = analyze(save(made, tmp_path / "t.json")).report
    made["traceEvents"] = [e for e in made["traceEvents"] for _ in range(2)]
    twice = analyze(save(made, tmp_path / "t.json")).report
    repeated = "host ops" if cpu else "device events"
    assert f"t.json: 40 repeated {repeated} were counted once" in twice.warnings
    assert twice.phases["trace"] == once.phases["trace"]
    [row] = twice.phases["trace"].gemms
    assert row.count == twice.phases["trace"].kernels[0].count == 40


def test_modules_that_stand_twice_give_the_same_roles(
    real_trace: Callable[[str], Path], real_report: Callable[[str], Report], tmp_path: Path
) -> None:
    """q, k and v were three projections, and six where each is there twice."""
    trace = json.loads(gzip.decompress(real_trace("h100_vit.json.gz").read_bytes()))
    once = real_report("h100_vit.json.gz").phases["trace"]
    trace["traceEvents"] += [dict(event) for event in trace["traceEvents"]]
    (tmp_path / "t.json").write_text(json.dumps(trace))
    twice = analyze(tmp_path / "t.json").report.phases["trace"]
    assert (twice.gemms, twice.roles, twice.wall_ns) == (once.gemms, once.roles, once.wall_ns)


def test_equal_kernels_on_two_streams_are_two(tmp_path: Path) -> None:
    made = trace(4)
    first, second = kernels(made)[:2]
    second["ts"] = first["ts"]
    second["args"]["stream"] = 8
    assert len(load(save(made, tmp_path / "t.json")).device["ts"]) == 4


def test_no_real_trace_is_thinned(real_trace: Callable[[str], Path]) -> None:
    for name in ("h100_vit", "mi300x_sglang_qwen3-8b_decode_graph", "v100_legacy_graphs"):
        loaded = load(real_trace(f"{name}.json.gz"))
        assert (loaded.twice, loaded.kernels_dropped, loaded.caveats) == (0, 0, []), name


def test_a_step_of_which_most_is_left_out_says_so_above_the_headline(tmp_path: Path) -> None:
    """Only the first of 40 kernels has a launch: the 39 after it are late."""
    made = trace()
    for i, kernel in enumerate(kernels(made)[1:]):
        kernel["args"]["correlation"] = kernel["args"]["External id"] = 1_000_000 + i
    report = analyze(save(made, tmp_path / "t.json")).report
    assert report.phases["trace"].late["events"] == 39
    assert report.warnings == [
        "t.json: 39 of 40 kernel launches have no kernel in it",
        "trace: 39 of 40 device events have no launch in the trace and are left out, 195.0 µs of "
        "200.0 µs: the step below is incomplete",
    ]
