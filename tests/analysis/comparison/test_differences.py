"""One value says whether two sides compare, and everybody reads it."""

from __future__ import annotations

import pytest

from prunescope.analysis.comparison.differences import (
    difference_text,
    not_comparable_text,
    pair_comparison,
)
from prunescope.analysis.report.sentences import headline
from prunescope.analysis.schema.pair_comparison import Difference, PairComparison
from prunescope.analysis.schema.report import Finding, Report, from_json, to_json
from prunescope.rules import check_report, parse_rules
from tests.analysis.report import example

DTYPE = Difference("dtype", "bfloat16", "float32")
BATCH = Difference("batch", 1, 2, hides_pruning=True)


@pytest.mark.parametrize(
    ("differences", "rows", "speedup", "pruning", "bounds"),
    [
        ([], None, True, True, True),
        ([DTYPE], None, False, True, True),  # other numbers, but the shapes are the pruning's
        ([BATCH], None, False, False, False),
        ([DTYPE, BATCH], None, False, False, False),
        ([], 2.0, False, False, True),  # every linear sees twice the rows
    ],
)
def test_what_may_still_be_said(
    differences: list[Difference], rows: float | None, *, speedup: bool, pruning: bool, bounds: bool
) -> None:
    found = pair_comparison(differences, rows_ratio=rows)
    assert (found.is_speedup, found.shows_pruning, found.has_bounds) == (speedup, pruning, bounds)
    assert len(found.differences) == len(differences) + (rows is not None)


def test_words() -> None:
    assert difference_text(BATCH) == "batch: 1 dense, 2 pruned"
    assert not_comparable_text(BATCH) == (
        "not comparable: batch is 2, that of the dense run 1: other inputs"
    )
    (rows,) = pair_comparison([], rows_ratio=2.0).differences
    assert difference_text(rows) == (
        "M of every linear is 2 × the dense one: other inputs (batch or length)"
    )


def compared(comparison: PairComparison | None, *findings: str) -> Report:
    report = example.two_phases()
    report.phases["prefill"].comparison = comparison
    report.phases["prefill"].findings = [
        Finding(id=name, severity="critical", text="", evidence=["batch: 1 dense, 2 pruned"],
                change=None, predicted_ns=None)
        for name in findings
    ]  # fmt: skip
    return from_json(to_json(report))


@pytest.mark.parametrize(
    ("report", "speedup"),
    [
        (compared(pair_comparison([])), True),
        (compared(pair_comparison([DTYPE]), "not-comparable"), False),
        (compared(None), True),  # a report that was written without a comparison
        (compared(None, "not-comparable"), False),
    ],
)
def test_headline_and_check_agree(report: Report, *, speedup: bool) -> None:
    phase = report.phases["prefill"]
    assert phase.is_speedup == speedup
    assert ("is no speedup: not comparable" in headline(phase)) == (not speedup)
    rules = ["prefill.realised >= 1.1", "prefill.ledger.coverage <= 1s", "prefill.nominal >= 1",
             "prefill.wall <= 1s", "prefill.family == static-nk"]  # fmt: skip
    states = [one.state for one in check_report(report, parse_rules(rules)).verdicts]
    assert states == ["held" if speedup else "undecided"] * 2 + ["held"] * 3


def test_check_names_what_differs() -> None:
    found = check_report(compared(pair_comparison([DTYPE, BATCH])), parse_rules(["realised > 1"]))
    assert found.verdicts[0].why == "dense and pruned do not compare (other dtype, batch)"
