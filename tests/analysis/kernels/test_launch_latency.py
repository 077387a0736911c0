"""Launch latency before the first event of the first step, which no wall includes."""

from __future__ import annotations

from pathlib import Path

from tests.analysis.kernels.test_idle import MM, finding, told
from tests.chrome import chrome, gap, module, save


def test_long_launch_latency_of_one_step_is_a_finding(tmp_path: Path) -> None:
    """90 us on the host before the first kernel of a step whose wall is 20."""
    trace = chrome(module("ProfilerStep#0", MM, MM), lead_us=90)
    lead = finding(told(save(trace, tmp_path / "t.json")), "late-first-launch")
    assert lead is not None
    assert "90.0 µs on the host" in lead.text and "82 % of the step" in lead.text  # of 110


def test_short_launch_latency_is_none(tmp_path: Path) -> None:
    short = chrome(module("ProfilerStep#0", MM, MM), lead_us=0.9)
    assert finding(told(save(short, tmp_path / "t.json")), "late-first-launch") is None


def test_launch_latency_of_several_steps_counts_once(tmp_path: Path) -> None:
    """Steps of 10 us, the second 10 us late as the first is: 20 and 10 us in two steps, and 10 us
    before the first."""
    late = gap(us=10, launch=True)
    two = chrome(module("ProfilerStep#0", MM), late, module("ProfilerStep#1", MM), lead_us=10)
    phase = told(save(two, tmp_path / "t.json"))
    lead = finding(phase, "late-first-launch")
    assert lead is not None and lead.change is not None
    assert phase.wall_ns == 15_000 and phase.busy_ns == 10_000
    assert "the first of 2 steps begins with 10.0 µs" in lead.text
    assert "with it a mean step takes 20.0 µs, of which the device is busy for 50 %" in lead.text
    assert "several steps" not in lead.change


def test_a_host_that_runs_ahead_leads_once_and_not_in_each_step(tmp_path: Path) -> None:
    """Steps of 20 us, of which the host launches each within 2 us: none waits but the first, for
    30 us. A mean over (30 + 60) / 3 = 30 us would be no step, and a device busy for 67 % false."""
    three = chrome(*(module(f"ProfilerStep#{i}", MM, MM) for i in range(3)), lead_us=30)
    phase = told(save(three, tmp_path / "t.json"))
    lead = finding(phase, "late-first-launch")
    assert lead is not None and lead.severity == "info" and lead.change is None
    assert phase.step_ns == [20_000] * 3
    assert "begins with 30.0 µs on the host" in lead.text
    assert lead.text.endswith("a step takes 20.0 µs")
    assert "67 %" not in lead.text and "mean step" not in lead.text
