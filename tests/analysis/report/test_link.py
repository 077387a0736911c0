"""The peak of the link to the host is told where copies are judged by it, and nowhere else."""

from __future__ import annotations

from pathlib import Path

import pytest

from prunescope.analysis.pipeline import analyze
from prunescope.analysis.report import markdown, titles
from prunescope.analysis.schema.report import Report
from tests.chrome import chrome, k, op, save, step


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
