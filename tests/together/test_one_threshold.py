"""One rule for "no evidence" in tables, figures, findings, `check`, `predict` and sweeps."""

from __future__ import annotations

from typing import Any

import pytest

from prunescope.analysis.findings.context import is_significant
from prunescope.analysis.predict.predicted_run import add_miss
from prunescope.analysis.report import ledger_view
from prunescope.analysis.report.comparison import comparison_table
from prunescope.analysis.schema.comparison import Comparison
from prunescope.analysis.schema.report import Finding, Ladder, Report, Row, is_beyond_noise
from prunescope.analysis.schema.sides import PredictedRun
from prunescope.analysis.summary import evidence
from prunescope.rules import check_report, parse_rules
from tests.analysis.report import example
from tests.analysis.test_compare import rows

MS = 1e6
LADDER = Ladder(nominal=None, flop=None, coverage=None, roofline=None, busy=None, realised=1.0,
                realised_ci95=None, share_of_bound=None)  # fmt: skip
BOUNDS: dict[str, float | None] = {"nominal": 2.0, "flop": 2.0, "coverage": 2.0, "roofline": 2.0}
THEORY: PredictedRun = {
    "family": "static-nk", "sparsity": 0.5, "source": None, "break_even": {}, "ladder": BOUNDS,
}  # fmt: skip


def with_noise(noise_ms: float, **fields: Any) -> Report:
    """A report whose launch and idle are +20 ms, which makes most of what was not realised; with
    an interval that excludes 0, without which `check` decides nothing."""
    report = example.two_phases()
    phase = report.phases["prefill"]
    walls = [("dense", 140 * MS), ("promised", 70 * MS)]
    names = ("coverage", "roofline_shift", "shape", "kernel_efficiency", "added_work")
    fields = {"ci95": [18 * MS, 22 * MS], **fields}
    row = Row(row="launch_idle", ns=20 * MS, noise_ns=noise_ms * MS, **fields)
    phase.ledger = [
        *(Row(row=name, ns=ns) for name, ns in walls),
        *(Row(row=name, ns=0.0) for name in names),
        row,
        Row(row="pruned", ns=90 * MS),
    ]
    return report


def says_it_is_evidence(report: Report) -> dict[str, bool]:
    """Who takes launch and idle for evidence."""
    phase = report.phases["prefill"]
    assert phase.ledger is not None
    row = next(row for row in phase.ledger if row.row == "launch_idle")
    bars = dict(
        zip((r.row for r in phase.ledger), ledger_view.waterfall(phase.ledger)[0], strict=True)
    )
    table = ledger_view.ledger_table(phase)
    assert table is not None
    cell = next(cells[1] for cells in table.rows if cells[0].text == "launch and idle")
    named = any("no evidence" in note and "launch and idle" in note for note in table.notes)
    rule = parse_rules(["prefill.ledger.launch_idle > 1ms"])
    return {
        "schema": is_beyond_noise(row),
        "table": cell.tone == "loss",
        "note": not named,
        "figure": bars["launch_idle"].tone == "loss",
        "finding": is_significant(row, of=140 * MS, share=0.03),
        "check": check_report(report, rule).verdicts[0].state == "held",
        "predict": add_miss(THEORY, LADDER, phase.ledger)["miss"]["largest"] == "launch_idle",
    }


@pytest.mark.parametrize(
    ("noise_ms", "fields", "evidence"),
    [
        (9.0, {}, True),  # 20 ms is more than twice the noise
        (10.0, {}, False),  # twice the noise
        (15.0, {}, False),  # between once and twice the noise
        (25.0, {}, False),
        (1.0, {"ci95": [-1 * MS, 41 * MS]}, False),  # the interval holds 0
    ],
)
def test_all_agree(noise_ms: float, fields: dict[str, Any], *, evidence: bool) -> None:
    assert set(says_it_is_evidence(with_noise(noise_ms, **fields)).values()) == {evidence}


def test_a_rule_that_holds_for_0_too_is_decided() -> None:
    report = with_noise(15.0)
    rules = parse_rules(["prefill.ledger.launch_idle < 1s", "prefill.ledger.launch_idle > 1s",
                         "prefill.ledger.launch_idle > 1ms"])  # fmt: skip
    found = check_report(report, rules).verdicts
    assert [one.state for one in found] == ["held", "failed", "undecided"]
    assert found[2].why == "the row is inside twice its noise, and may as well be 0"


@pytest.mark.parametrize(
    ("finding", "invalid"),
    [("timing-not-valid", True), ("captured-step", True), ("no-speedup", False)],
)
def test_the_same_findings_leave_times_no_evidence_everywhere(
    finding: str, *, invalid: bool
) -> None:
    report = example.two_phases()
    phase = report.phases["prefill"]
    phase.findings = [Finding(id=finding, severity="critical", text="busy", evidence=[],
                              change=None, predicted_ns=None)]  # fmt: skip
    (row,) = rows(1)
    row.critical = [finding]
    table = comparison_table(Comparison(tool="t", baseline=None, rows=[row]))
    rule = parse_rules(["prefill.realised >= 0.1"])
    assert {
        "table": any("× ?" in cell.text for cell in table.rows[0]),
        "figure": bool(evidence.row_reasons(row)),
        "report": bool(evidence.phase_reasons(phase)),
        "check": check_report(report, rule).verdicts[0].state == "undecided",
    } == dict.fromkeys(("table", "figure", "report", "check"), invalid)
