"""Where timing is not valid that is said before any speedup, in every format and table."""

from __future__ import annotations

import io
import re
from collections.abc import Callable

import msgspec
import pytest
from rich.console import Console

import prunescope
from prunescope.analysis.pareto import frontier
from prunescope.analysis.pareto.pareto import caveat_of
from prunescope.analysis.report import comparison, sentences
from prunescope.analysis.report.figures import ledger_figure
from prunescope.analysis.report.html import render_html
from prunescope.analysis.report.latex import render_latex
from prunescope.analysis.report.ledger_view import ledger_table, telling
from prunescope.analysis.report.markdown import render_markdown
from prunescope.analysis.report.notebook import render_comparison, render_notebook
from prunescope.analysis.report.pareto_tables import render_pareto
from prunescope.analysis.report.terminal import print_report
from prunescope.analysis.schema.comparison import Comparison
from prunescope.analysis.schema.report import Finding, Phase, Report
from tests.analysis.pareto_points import point
from tests.analysis.report import example
from tests.analysis.test_compare import rows
from tests.together.test_pareto import whole

BUSY = Finding(
    id="timing-not-valid", severity="critical", text="timing not valid: something else ran",
    evidence=["10 of 10 samples disturbed"], change=None, predicted_ns=None,
)  # fmt: skip


def disturbed() -> Report:
    report = example.two_phases()
    for phase in report.phases.values():
        phase.findings.insert(0, BUSY)
    return report


def realised(phase: Phase) -> str:
    assert phase.ladder is not None
    return f"{phase.ladder.realised:.2f}"


def in_terminal(report: Report) -> str:
    to = io.StringIO()
    print_report(report, Console(file=to, width=100, force_terminal=True, color_system="truecolor"))
    return re.sub(r"\x1b\[[\d;]*m", "", to.getvalue())


def shortly(report: Report) -> str:
    return repr(msgspec.convert(msgspec.to_builtins(report), prunescope.Report))


FORMATS: dict[str, Callable[[Report], str]] = {
    "md": render_markdown, "html": render_html, "tex": render_latex, "notebook": render_notebook,
    "terminal": in_terminal, "repr": shortly,
}  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_no_speedup_stands_before_the_caveat(name: str) -> None:
    report = disturbed()
    text = FORMATS[name](report)
    assert text.index("timing not valid") < min(
        (text.index(r) for p in report.phases.values() if (r := realised(p)) in text),
        default=len(text),
    )
    assert not re.search(r"\d× realised|<b>\d|\*\*\d|textbf\{\d", text)


def test_no_reason_is_given_for_a_time_that_is_not_valid() -> None:
    phase = example.phase()
    phase.predicted = {  # type: ignore[typeddict-item]
        "family": "static-nk", "ladder": {"flop": 2.0},
        "miss": {"ratio": 0.7, "largest": "launch_idle",
                 "terms": [{"name": "launch_idle", "ratio": 0.8, "says": "why"}]},
    }  # fmt: skip
    assert "realised is 70 % of that, mostly by launch and idle" in sentences.predicted(phase)
    phase.findings.insert(0, BUSY)
    assert "FLOPs 2.00×" in sentences.predicted(phase)
    assert "realised" not in sentences.predicted(phase)


def test_a_comparison_marks_the_ratio_and_says_why() -> None:
    good, bad = rows(2)
    bad.critical = [BUSY.id]
    found = Comparison(tool="t", baseline=None, rows=[good, bad])
    table = comparison.comparison_table(found)
    at = [column.title for column in table.columns].index("realised")
    assert [cells[at].text for cells in table.rows] == ["1.25×", "1.25× ?"]
    for text in (comparison.render_markdown(found), comparison.render_html(found),
                 comparison.render_latex(found), render_comparison(found)):  # fmt: skip
        assert "? timing not valid" in re.sub(r"\s+", " ", text)
    good_alone = Comparison(tool="t", baseline=None, rows=[good])
    assert "timing not valid" not in comparison.render_markdown(good_alone)


def test_points_of_a_sweep_are_marked_and_the_note_comes_first() -> None:
    bad = point("static-m", 1.3, 0.1, timing_valid=False)
    found = whole([bad, point("static-nk", 1.2, 0.2)])
    text = render_pareto(found)
    assert "| 1.30× ? |" in text and "| 1.20× |" in text
    assert "? timing not valid" in text
    (cell,) = found.phases["prefill"].cells
    cell.winners = frontier.winners([bad], batch=1, prompt_len=512)
    assert re.search(r"\| static-m \| 1\.30× \? \|", render_pareto(found))
    report = disturbed()
    assert caveat_of(report.phases["prefill"])
    assert not caveat_of(example.two_phases().phases["prefill"])


def test_an_interval_that_says_nothing_is_left_out_and_drawn_nowhere() -> None:
    """Two placements far apart: Student's t of one degree of freedom stretches them beyond all."""
    phase = example.phase()
    rows = phase.ledger or []
    for row in rows:
        row.ci95 = [-2e17, 7e7] if row.row == "dense" else [row.moves_ns - 1e6, row.moves_ns + 1e6]
    pruned = next(row for row in rows if row.row == "pruned")
    pruned.ci95 = [-1.0, 2e8]  # a wall below zero
    shown = {row.row: telling(row, rows) for row in rows}
    assert shown["dense"] is None and shown["pruned"] is None
    assert shown["coverage"] is not None
    table = ledger_table(phase)
    assert table is not None and "intervals that say nothing are left out" in " ".join(table.notes)
    at = [column.title for column in table.columns].index("95 % interval")
    assert [cells[at].text == "–" for cells in table.rows] == [
        row.row in ("dense", "pruned") for row in rows
    ]
    low, high = ledger_figure(phase, "prefill").axes[0].get_xlim()
    assert -1e3 < low < high < 1e3  # ms
