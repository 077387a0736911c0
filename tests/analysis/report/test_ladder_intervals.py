"""Intervals of bounds in every format: prefill of the example has them, decode is an old report."""

from __future__ import annotations

import csv
import io
import re

import msgspec
import pytest
from rich.console import Console

from prunescope.analysis.report import records
from prunescope.analysis.report.escape import markdown
from prunescope.analysis.report.html import render_html
from prunescope.analysis.report.latex import render_latex
from prunescope.analysis.report.ledger_view import (
    ladder_notes,
    ladder_rows,
    ladder_table,
    ledger_table,
)
from prunescope.analysis.report.markdown import render_markdown
from prunescope.analysis.report.notebook import render_notebook
from prunescope.analysis.report.pair_figures import ladder_figure
from prunescope.analysis.report.tables import csv_tables
from prunescope.analysis.report.terminal import print_report
from prunescope.analysis.schema.report import Finding, Ladder, Phase
from prunescope.analysis.summary.headline import headline
from tests.analysis.report import example

WANT = {"nominal": "", "FLOP ratio": "", "coverage bound": "[1.22×, 1.24×]",
        "roofline bound": "[1.20×, 1.22×]", "kernel (busy)": "[1.17×, 1.20×]",
        "realised": "[1.14×, 1.17×]"}  # fmt: skip


def with_ladder(**more: object) -> Phase:
    phase = example.phase()
    assert phase.ladder is not None
    plain = msgspec.to_builtins(phase.ladder) | more
    return msgspec.structs.replace(phase, ladder=msgspec.convert(plain, Ladder))


def test_the_table_has_an_interval_of_each_bound_that_is_measured() -> None:
    table = ladder_table(example.phase())
    assert table is not None
    assert [c.title for c in table.columns] == [
        "bound or measured ratio", "speedup", "95 % interval", "share realised", "meaning"
    ]  # fmt: skip
    assert {row[0].text: row[2].text for row in table.rows} == WANT


def test_an_interval_that_was_not_measured_is_unknown_and_no_column_stands_for_none() -> None:
    table = ladder_table(with_ladder(busy_ci95=None))
    assert table is not None
    assert {row[0].text: row[2].text for row in table.rows}["kernel (busy)"] == "–"
    bounds = ("coverage", "roofline", "busy", "realised")
    none = ladder_table(with_ladder(**{f"{bound}_ci95": None for bound in bounds}))
    assert none is not None
    assert [c.title for c in none.columns] == [
        "bound or measured ratio",
        "speedup",
        "share realised",
        "meaning",
    ]


def test_an_interval_beyond_ten_times_its_bound_says_nothing() -> None:
    phase = with_ladder(coverage_ci95=[0.1, 400.0])
    assert phase.ladder is not None
    assert {row.key: row.ci95 for row in ladder_rows(phase)}["coverage"] is None
    assert ladder_figure(phase, "prefill").axes[0].get_xlim()[1] < 2
    assert "400.00×" not in render_html(
        msgspec.structs.replace(example.two_phases(), phases={"a": phase})
    )


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_terminal_has_them_where_there_is_room(width: int) -> None:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    print_report(example.two_phases(), console, full=True)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    ladder = text[text.index("\nLadder") : text.index("\nLedger")]
    lines = [line for line in ladder.splitlines() if "×" in line]
    for line, (label, span) in zip(lines, WANT.items(), strict=True):
        shown = span if width > 60 or label == "realised" else ""
        assert line.startswith(f" {label} ")
        assert re.findall(r"\[.*\]", line) == ([shown] if shown else [])
        assert ("realised is " in line) == (label != "realised")
        assert "░" in line or "█" in line


def test_every_page_and_table_shows_them() -> None:
    report = example.two_phases()
    plain = [(render_html(report), str), (render_notebook(report), str)]
    for text, written in (*plain, (render_markdown(report), markdown)):
        for span in filter(None, WANT.values()):
            assert written(span) in text
    # A paper has the digits that they bear: half of 0.03 is 0.015, two digits.
    spans = ("[1.220, 1.240]", "[1.200, 1.220]", "[1.170, 1.200]", "[1.140, 1.170]")
    assert all(span in render_latex(report) for span in spans)


def test_a_measured_bound_without_an_interval_is_unknown_on_a_page_and_a_terminal() -> None:
    phase = with_ladder(busy_ci95=None)
    report = msgspec.structs.replace(example.two_phases(), phases={"prefill": phase})
    page = render_html(report)
    ladder = page[page.index('<table class="ladder">') :].partition("</table>")[0]
    rows = [row for row in ladder.split("<tr") if "<svg" in row]
    assert ['<td class="n span">–</td>' in row for row in rows] == [
        n == "kernel (busy)" for n in WANT
    ]
    console = Console(file=io.StringIO(), width=100, color_system=None)
    print_report(report, console, full=True)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    lines = text[text.index("\nLadder") : text.index("\nLedger")].splitlines()
    assert [" – " in line for line in lines if "×" in line] == [n == "kernel (busy)" for n in WANT]


def test_bars_have_whiskers() -> None:
    page = render_html(example.two_phases())
    ladders = re.findall(r'<table class="ladder">.*?</table>', page, flags=re.DOTALL)
    assert [ladder.count('class="whisker"') for ladder in ladders] == [4, 1]
    drawn = ladder_figure(example.phase(), "prefill").axes[0]
    assert sum(line.get_marker() == "|" for line in drawn.lines) == 4


def test_raw_tables_have_both_ends() -> None:
    report = example.two_phases()
    rows = list(csv.DictReader(io.StringIO(csv_tables(report)["ladder.csv"])))
    ends = {(r["phase"], r["bound"]): (r["ci95_low"], r["ci95_high"]) for r in rows}
    assert ends["prefill", "coverage"] == ("1.22", "1.24")
    assert ends["prefill", "nominal"] == ends["decode", "busy"] == ("", "")
    (busy,) = (r for r in records.ladder(report) if (r["phase"], r["bound"]) == ("prefill", "busy"))
    assert (busy["ci95_low"], busy["ci95_high"]) == (1.17, 1.2)


def test_the_headline_has_the_interval_of_the_share() -> None:
    line = headline(example.phase())
    assert line.endswith("95.6 % of the roofline bound [94.0 %, 97.0 %]")
    beyond = headline(with_ladder(share_of_bound=1.1, share_of_bound_ci95=[0.98, 1.2]))
    assert beyond.endswith("bound [98.0 %, 120.0 %] (the interval includes the bound)")
    past = headline(with_ladder(share_of_bound=1.1, share_of_bound_ci95=[1.02, 1.2]))
    assert past.endswith("(≥ 100 % of the bound: faster than the roofline model allows)")


def test_a_speedup_without_an_interval_says_why_where_the_ledger_has_some() -> None:
    """One unprofiled sample a side, over whose steps the rows have intervals."""
    phase = with_ladder(realised_ci95=None)
    assert phase.unprofiled_ns is not None and phase.baseline is not None
    one = msgspec.structs.replace(phase.unprofiled_ns, samples=[70_000_000])
    dense = msgspec.structs.replace(phase.baseline, unprofiled_ns=one)
    phase = msgspec.structs.replace(phase, unprofiled_ns=one, baseline=dense)
    table = ladder_table(phase)
    assert table is not None and table.notes == [
        "no interval of the speedup: a side has one sample without the profiler; the ledger's are "
        "over its steps"
    ]
    phase.ledger = None
    assert ladder_notes(phase) == []


@pytest.mark.parametrize("finding", ["timing-not-valid", "captured-step", "no-speedup"])
def test_what_rests_on_invalid_times_is_marked_in_tables(finding: str) -> None:
    phase = example.phase()
    phase.findings = [Finding(id=finding, severity="critical", text="busy", evidence=["x"],
                              change=None, predicted_ns=None)]  # fmt: skip
    ladder, ledger = ladder_table(phase), ledger_table(phase)
    assert ladder is not None and ledger is not None
    marked = [row[0].text for row in ladder.rows if row[1].text.endswith(" ?")]
    none = finding == "no-speedup"
    assert marked == (
        [] if none else ["coverage bound", "roofline bound", "kernel (busy)", "realised"]
    )
    assert any(note.startswith("? ") for note in ladder.notes) is not none
    assert any(note.startswith("no row is evidence: ") for note in ledger.notes) is not none
