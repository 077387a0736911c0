"""Host and device whose clocks differ: kernels that start before their own launch call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from prunescope.analysis.pipeline import analyze
from prunescope.analysis.report.markdown import render_markdown
from prunescope.analysis.schema.report import Phase, Report
from tests.analysis.finding_cases import assert_present, found
from tests.analysis.findings.test_strangers import mm
from tests.chrome import chrome, gap, save

KERNELS = 60
LAG_US = 20  # from the start of a launch to that of its kernel; the host's calls cost 0.01 of it


def shifted(us: float, *, count: int = KERNELS) -> dict[str, Any]:
    """Write the last `count` kernels down `us` earlier than they ran.

    All kernels take 10 us, and each is launched when the device has run out of work.
    """
    trace = chrome(*[x for _ in range(KERNELS) for x in (gap(us=LAG_US, launch=True), mm(10))])
    kernels = [event for event in trace["traceEvents"] if event["cat"] == "kernel"]
    assert len(kernels) == KERNELS
    for event in kernels[-count:] if count else []:
        event["ts"] -= us
    return trace


def report_of(tmp_path: Path, trace: dict[str, Any]) -> Report:
    return analyze(save(trace, tmp_path / "t.json")).report


def phase_of(report: Report) -> Phase:
    return report.phases["trace"]


def test_a_skew_is_the_first_warning(tmp_path: Path) -> None:
    """170 us less, of which 20 passed: all kernels, by 150."""
    report = report_of(tmp_path, shifted(170))
    assert report.warnings[0] == (
        "t.json: 60 of 60 kernels start before their own launch call, by up to 150 µs: the clocks "
        "of host and device differ, so causes of idle time and launch delays are "
        "unreliable"
    )


def test_nothing_critical_rests_on_a_skew(tmp_path: Path) -> None:
    straight = phase_of(report_of(tmp_path, shifted(0)))
    assert_present(straight, "launch-bound", "critical", "late host")
    phase = phase_of(report_of(tmp_path, shifted(170)))
    assert_present(phase, "clock-skew", "warning", "60 of 60 kernels", "by up to 150 µs")
    assert_present(
        phase, "launch-bound", "warning", "late host", "host and device clocks are skewed"
    )
    ids = [finding.id for finding in phase.findings]
    assert ids.index("clock-skew") < ids.index("launch-bound")
    assert all(finding.severity != "critical" for finding in phase.findings)
    assert phase.anatomy is not None
    assert phase.anatomy.graph_speedup is None


def test_the_report_says_so_where_it_gives_causes(tmp_path: Path) -> None:
    skewed = render_markdown(report_of(tmp_path, shifted(170)))
    causes = next(line for line in skewed.splitlines() if "the host was late" in line)
    assert causes.index("clocks") < causes.index("the host was late")
    launches = next(line for line in skewed.splitlines() if "not launched in time" in line)
    assert "uncertain" in launches
    assert "between ops" not in skewed
    assert "a CUDA graph gives at most" not in skewed
    straight = render_markdown(report_of(tmp_path, shifted(0)))
    assert "clocks" not in straight
    assert "a CUDA graph gives at most" in straight


@pytest.mark.parametrize(
    ("us", "count"),
    [(0, 0), (LAG_US - 1, KERNELS), (LAG_US + 0.5, KERNELS), (170, 3)],
    ids=["none", "later still", "below the resolution", "three strays"],
)
def test_clocks_that_agree(us: float, count: int, tmp_path: Path) -> None:
    report = report_of(tmp_path, shifted(us, count=count))
    assert not any("clocks" in warning for warning in report.warnings)
    phase = phase_of(report)
    assert found(phase, "clock-skew") is None
    assert_present(phase, "launch-bound", "critical", "late host")


def test_a_few_of_many_are_enough(tmp_path: Path) -> None:
    assert report_of(tmp_path, shifted(170, count=4)).warnings[0].startswith("t.json: 4 of 60 ")


def test_a_host_trace_has_one_clock(tmp_path: Path) -> None:
    report = report_of(tmp_path, chrome(*[mm(10)] * 9, cpu=True))
    assert found(phase_of(report), "clock-skew") is None
