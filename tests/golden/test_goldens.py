"""The golden runs of traces/: what analyze says of them does not change unnoticed."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from prunescope.analysis.pipeline import analyze
from prunescope.analysis.report.markdown import render_markdown
from prunescope.analysis.schema.report import Phase, Report
from prunescope.taxonomy.runs.run import read_run

ROOT = Path(__file__).resolve().parents[2]
EXPECTED = Path(__file__).parent / "expected"
PAIRS = {
    "tiny-static-m": ("static-m", {"none", "gone"}),
    "tiny-static-nk": ("static-nk", {"none", "N", "K", "heads"}),
    "tiny-static-k-mask": ("static-k-mask", {"none"}),
}


@cache
def report_of(name: str) -> Report:
    """The report of a golden pair, made once."""
    return analyze(ROOT / "traces" / name).report


def numbers(phase: Phase) -> dict[str, Any]:
    """What is compared: walls, sums by kind and role, the GEMM table and the ledger."""
    assert phase.ledger is not None
    assert phase.ladder is not None
    return {
        "wall_ns": phase.wall_ns,
        "busy_ns": phase.busy_ns,
        "gap_ns": phase.gap_ns,
        "tail_ns": phase.tail_ns,
        "kinds": phase.kinds,
        "roles": phase.roles,
        "ledger": {row.row: row.ns for row in phase.ledger},
        "flop_speedup": phase.ladder.flop,
        "gemms": [
            [g.role, g.group, g.op, g.batch, g.m, g.n, g.k, g.dense_m, g.dense_n, g.dense_k, g.axis,
             g.count, g.busy_ns]
            for g in phase.gemms
        ],
    }  # fmt: skip


@pytest.mark.parametrize("name", PAIRS)
def test_golden(name: str, pytestconfig: pytest.Config) -> None:
    report = report_of(name)
    family, axes = PAIRS[name]
    seen = {}
    for phase_name, phase in report.phases.items():
        assert phase.wall_ns == pytest.approx(
            phase.busy_ns + phase.gap_ns + phase.tail_ns, abs=1e-3
        )
        assert phase.family is not None
        assert phase.family.id == family
        assert {g.axis for g in phase.gemms} == axes
        assert phase.coverage["kind"] >= 0.95
        seen[phase_name] = numbers(phase)
    path = EXPECTED / f"{name}.json"
    if pytestconfig.getoption("--update-golden"):
        path.write_text(json.dumps(seen, indent=1) + "\n")
    want = json.loads(path.read_text())
    assert list(seen) == list(want)
    for phase_name, found in json.loads(json.dumps(seen)).items():
        for key, value in want[phase_name].items():
            if isinstance(value, dict):
                assert found[key] == pytest.approx(value, rel=1e-9, abs=1e-3), (phase_name, key)
            elif isinstance(value, list):
                assert len(found[key]) == len(value), (phase_name, key)
                for got, row in zip(found[key], value, strict=True):
                    assert got[:-1] == row[:-1]
                    assert got[-1] == pytest.approx(row[-1], rel=1e-9, abs=1e-3)
            else:
                assert found[key] == pytest.approx(value, rel=1e-9, abs=1e-3), (phase_name, key)


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("variant", ["dense", "pruned"])
def test_golden_runs_stay_small_and_say_where_they_come_from(name: str, variant: str) -> None:
    folder = ROOT / "traces" / name / variant
    assert sum(f.stat().st_size for f in folder.iterdir()) <= 300_000
    run = read_run(folder)
    assert run.argv[0] == "trace"
    assert name in (ROOT / "traces" / "README.md").read_text()


def test_a_mask_removes_nothing() -> None:
    """The verdict says that zeros are in dense tensors and that nothing was removed."""
    report = report_of("tiny-static-k-mask")
    for phase in report.phases.values():
        text = " ".join(f.text for f in phase.findings if f.id == "zeros-in-dense")
        assert "zeros are in dense tensors" in text
        assert "nothing was removed" in text


def test_width_falls_on_both_sides() -> None:
    """N of gate and up and K of down fell together, to the same number."""
    for phase in report_of("tiny-static-nk").phases.values():
        by_role = {g.role: g for g in phase.gemms}
        assert by_role["gate"].axis == by_role["up"].axis == "N"
        assert by_role["down"].axis == "K"
        assert by_role["gate"].n == by_role["up"].n == by_role["down"].k == 176  # up16(352 · 0.5)


def test_depth_removes_layers_and_adds_no_work() -> None:
    for phase in report_of("tiny-static-m").phases.values():
        assert phase.pairing is not None
        assert phase.pairing.layers == "4 of 8 layers removed"
        assert phase.pairing.added == 0
        assert phase.ledger is not None
        added = next(row for row in phase.ledger if row.row == "added_work")
        assert added.ns == 0


# A zero with a sign, an interval wider than what it is of, and words of code are no numbers.
_NO_NUMBERS = re.compile(
    r"[−-]0(?:\.0+)?\s?%|[−-]0\.0+(?![\d.])|±\s?\d{3,}\s?%|0\.0 % \[0\.0 %|never\]|\bnan\b|\binf\b"
)


@pytest.mark.parametrize("name", PAIRS)
def test_no_number_of_a_report_is_none(name: str) -> None:
    text = render_markdown(report_of(name))
    assert [m[0] for m in _NO_NUMBERS.finditer(text)] == []
