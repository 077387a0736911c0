"""Waits between the ranges that a user put around steps: idle time of no step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from prunescope.analysis.pipeline import analyze
from prunescope.analysis.schema.report import Phase
from tests.chrome import Op, chrome, gap, k, module, op, save


def mm(us: float) -> Op:
    return op("aten::mm", [64, 512], [512, 512], kernels=[k(us=us)])


def requests(
    us: float, every_us: float, *, name: str = "step_{}", inside_us: float = 0
) -> dict[str, Any]:
    """Return three ranges of two GEMMs of `us`, which begin `every_us` apart.

    Between the GEMMs the device waits 50 µs for the host, and `inside_us` more.
    """
    late = gap(us=50, launch=True)
    whole: dict[str, Any] = {}
    for i in range(3):
        request = chrome(module(name.format(i), mm(us), late, mm(us)))
        around, *events = request["traceEvents"]
        around["dur"] += inside_us
        for event in request["traceEvents"]:
            event["ts"] += i * every_us + inside_us * (event in events[len(events) // 2 :])
            for key in ("correlation", "External id"):
                if key in event["args"]:
                    event["args"][key] += 1000 * i
        whole = whole or {**request, "traceEvents": []}
        whole["traceEvents"] += request["traceEvents"]
    return whole


def phase(path: Path, trace: dict[str, Any], baseline: dict[str, Any] | None = None) -> Phase:
    dense = save(baseline, path / "dense.json") if baseline else None
    report = analyze(save(trace, path / "t.json"), baseline=dense).report
    [only_phase] = report.phases.values()
    return only_phase


def test_a_wait_between_two_ranges_is_of_no_step(tmp_path: Path) -> None:
    """Steps of 150 + 50 + 150 us, 60 ms apart: what the host waits for, from its last call in a
    range to its first one in the next, is of neither; 10 us later the device begins."""
    analysed = phase(tmp_path, requests(150, 60_000))
    first, *later = analysed.step_ns
    assert first == 350_000
    assert all(350_000 <= ns < 361_000 for ns in later)
    assert analysed.wall_ns == analysed.busy_ns + analysed.gap_ns + analysed.tail_ns
    assert 3 * (analysed.wall_ns + analysed.between_ns) == 2 * 60_000_000 + 350_000


def test_requests_that_come_at_another_time_are_no_speedup(tmp_path: Path) -> None:
    """300 + 50 us against 280 + 50, 100 ms and 60 ms apart: 1.06 times, and nothing of idle."""
    analysed = phase(tmp_path, requests(140, 60_000), requests(150, 100_000))
    assert analysed.ladder is not None
    assert abs(analysed.ladder.realised - 350 / 330) < 0.003
    assert not any("idles less" in finding.text for finding in analysed.findings)


@pytest.mark.parametrize("name", ["step_{}", "ProfilerStep#{}"])
def test_time_between_the_steps_of_a_loop_is_of_the_step_behind_it(
    tmp_path: Path, name: str
) -> None:
    """0.4 ms of Python between two ranges are no wait; a profiler's steps follow one another."""
    analysed = phase(tmp_path, requests(150, 750, name=name))
    assert analysed.step_ns == [350_000, 750_000, 750_000]
    assert analysed.between_ns == 0
    analysed = phase(tmp_path, requests(150, 60_000, name="ProfilerStep#{}"))
    assert analysed.step_ns == [350_000, 60_000_000, 60_000_000]


def test_a_host_that_pauses_as_long_inside_of_ranges_does_not_wait_between_them(
    tmp_path: Path,
) -> None:
    analysed = phase(tmp_path, requests(150, 100_000, inside_us=60_000))
    assert analysed.step_ns[1:] == [100_000_000, 100_000_000]
    assert analysed.between_ns == 0
