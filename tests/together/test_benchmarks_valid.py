"""Benchmarks say where something else ran beside what they timed. Their runs are not taken here."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from prunescope.analysis.pipeline import analyze
from prunescope.analysis.schema.report import Finding, Report

ROOT = Path(__file__).resolve().parents[2]
RUN = ROOT / "traces" / "tiny-static-m"
NOT_VALID = Finding(
    id="timing-not-valid", severity="critical", text="timing not valid", change=None,
    evidence=["9 of 9 samples disturbed: waits"], predicted_ns=None,
)  # fmt: skip


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The benchmarks where imports find them."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    yield
    for name in ("bounds", "overhead"):
        sys.modules.pop(name, None)


@pytest.fixture
def report() -> Report:
    """A report that rests on times that are valid."""
    found = analyze(RUN).report
    for phase in found.phases.values():
        phase.findings = [one for one in phase.findings if one.id != NOT_VALID.id]
    return found


@pytest.mark.torch
def test_bounds_hold_of_times_that_are_valid_alone(report: Report) -> None:
    import bounds  # type: ignore[import-not-found]

    def first() -> Any:
        return next(bounds.checked(report))

    assert first().holds
    report.phases["decode"].findings.append(NOT_VALID)
    assert not first().holds
    assert first().seen == "decode: 9 of 9 samples disturbed: waits"


def test_overhead_marks_what_is_not_valid(report: Report) -> None:
    import overhead  # type: ignore[import-not-found]

    phase = report.phases["decode"]

    def row() -> str:
        *_, last = overhead.table([("a family", 0.5, phase)])
        return str(last)

    assert "(not valid)" not in row()
    phase.findings.append(NOT_VALID)
    assert "× (not valid)" in row()


def test_overhead_has_eight_placements_by_default() -> None:
    import overhead

    assert min(overhead.PLACEMENTS, overhead.REPEATS) == 8
