"""Lines of "What was measured": idle time on hosts, whole traces as one step, links."""

from __future__ import annotations

from pathlib import Path

import pytest

from prunescope.analysis.pipeline import analyze
from prunescope.analysis.report import markdown, titles
from prunescope.analysis.report.measured import bounds, idle_and_tiles
from prunescope.analysis.report.sentences import setup
from prunescope.analysis.schema.report import Phase, Report
from tests.chrome import chrome, gap, k, op, save, step

OP = op("aten::threshold_backward", [8], [8], [], kernels=[k(us=10)])


@pytest.mark.parametrize(
    ("cpu", "says"),
    [(True, "between ops 5.00 µs"), (False, "idle before kernels not launched in time 5.00 µs")],
)
def test_what_is_idle_on_a_cpu_lies_between_ops(cpu: bool, says: str, tmp_path: Path) -> None:
    trace = chrome(step(0, OP, gap(us=5, launch=True), OP), cpu=cpu)
    phase = analyze(save(trace, tmp_path / "t.json")).report.phases["trace"]
    assert says in bounds(phase)
    assert set(phase.kinds) == {"activation"}


MM = op("aten::mm", [64, 64], [64, 64], kernels=[k(us=100)])


def told(path: Path, *items: object) -> Phase:
    return analyze(save(chrome(*items), path / "t.json")).report.phases["trace"]


def test_a_trace_without_a_marker_has_no_profiled_step(tmp_path: Path) -> None:
    phase = told(tmp_path, MM, MM)
    assert setup(phase).split(" · ")[0] == "the whole trace as one step"
    assert any("no step marker" in note for note in phase.notes)


def test_a_marked_step_is_one(tmp_path: Path) -> None:
    assert setup(told(tmp_path, step(0, MM, MM))).split(" · ")[0] == "1 profiled step"


@pytest.mark.parametrize(("us", "said"), [(0.1, False), (0.4, True)])
def test_idle_time_is_said_where_it_can_gain_anything(
    us: float, said: bool, tmp_path: Path
) -> None:
    """0.1 and 0.4 of 200 us are 0.05 % and 0.2 %."""
    phase = told(tmp_path, step(0, MM, gap(us=us, launch=True), MM))
    assert phase.anatomy is not None
    assert sum(phase.anatomy.gaps.values()) == pytest.approx(us * 1000)
    assert any(line.startswith("idle") for line in idle_and_tiles(phase)) == said


def report_of(tmp_path: Path, copy: str, *, size: int | None, device: str) -> Report:
    """A copy of 1 ms in each step, 31.5 MB: half of what PCIe 5.0 carries in that time."""
    moved = op("a::copy", kernels=[k(us=1000, name=copy, cat="gpu_memcpy")])
    trace = chrome(step(0, moved), step(1, moved))
    trace["deviceProperties"][0]["name"] = device
    for event in trace["traceEvents"]:
        if event["cat"] == "gpu_memcpy" and size is not None:
            event["args"]["bytes"] = size
    return analyze(save(trace, tmp_path / "t.json")).report


H100, GH200 = "NVIDIA H100 80GB HBM3", "NVIDIA GH200 480GB"
DTOH = "Memcpy DtoH (Device -> Pageable)"


@pytest.mark.parametrize(
    ("device", "said", "link", "share"),
    [
        (H100, "link to the host 63.02 GB/s (PCIe 5.0 x16)", "pcie-5.0", 31.5 / 63.015),
        (GH200, "link to the host 450 GB/s (NVLink-C2C)", "nvlink-c2c", 31.5 / 450),
    ],
)
def test_the_link_that_copies_are_judged_by_is_told(
    device: str, said: str, link: str, share: float, tmp_path: Path
) -> None:
    report = report_of(tmp_path, DTOH, size=31_500_000, device=device)
    peaks = report.device["peaks"]
    assert peaks is not None
    assert (peaks["link"], peaks["link_byte_per_s"] * share) == (link, pytest.approx(31.5e9))
    (row,) = report.phases["trace"].kernels
    assert row.efficiency == pytest.approx(share)
    assert said in titles.device(report)
    assert said in markdown.render_markdown(report)


@pytest.mark.parametrize(
    ("copy", "size"), [(DTOH, None), ("Memcpy DtoD (Device -> Device)", 31_500_000)]
)
def test_no_link_is_told_that_nothing_is_judged_by(
    copy: str, size: int | None, tmp_path: Path
) -> None:
    report = report_of(tmp_path, copy, size=size, device=H100)
    peaks = report.device["peaks"]
    assert peaks is not None
    assert "link" not in peaks
    assert "link" not in titles.device(report)
