"""The overhead of a dynamic family in every format: rows, units, the break-even, hostile names."""

from __future__ import annotations

import io
import json

import msgspec
import pytest
from rich.console import Console

from prunescope.analysis.report.html import render_html
from prunescope.analysis.report.latex import render_latex
from prunescope.analysis.report.markdown import render_markdown
from prunescope.analysis.report.phase_tables import overhead_table
from prunescope.analysis.report.terminal import print_report
from prunescope.analysis.schema.report import (
    Overhead,
    OverheadPart,
    Phase,
    Report,
    from_json,
    to_json,
)
from tests.analysis.report import example

MS = 1e6


def overhead(**more: object) -> Overhead:
    parts = [
        OverheadPart(name="router", ns=1.4 * MS, share=0.01, added=True,
                     evidence=["aten::mm in router: 1.400 ms in 16"]),
        OverheadPart(name="estimator", ns=0.0, share=0.0, added=True),
        OverheadPart(name="weights read all the same", ns=None, added=False),
    ]  # fmt: skip
    plain: dict[str, object] = {
        "parts": parts, "added_ns": 1.4 * MS, "saved_ns": 20.4 * MS, "sparsity": 0.5,
        "break_even": 0.104, "break_even_ci95": [0.05, None],
    }  # fmt: skip
    return msgspec.convert({**plain, **more}, Overhead)


def phase(**more: object) -> Phase:
    return msgspec.structs.replace(example.phase(), overhead=overhead(**more))


def one(**more: object) -> Report:
    return msgspec.structs.replace(example.two_phases(), phases={"prefill": phase(**more)})


def printed(report: Report, width: int) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    print_report(report, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_table_has_a_row_a_part_and_a_total() -> None:
    table = overhead_table(phase())
    assert table is not None
    assert table.title == "Overhead of static-nk"
    assert [[c.text for c in row[:4]] for row in table.rows] == [
        ["router", "1.400", "1.0 %", "added"],
        ["estimator", "0.000", "0.0 %", "added"],
        ["weights read all the same", "–", "–", "not saved"],  # unknown is no zero
        ["added in all", "1.400", "1.0 %", "added"],
    ]
    assert "where 10.4 % (5.0 % at least, and it may never pay) of the FLOPs" in table.notes[0]
    assert "here 50.0 % are gone" in table.notes[0]


def test_of_an_unknown_family_the_overhead_is_of_what_decides() -> None:
    plain = phase()
    assert plain.family is not None
    unknown = msgspec.structs.replace(plain.family, id="unknown")
    table = overhead_table(msgspec.structs.replace(plain, family=unknown))
    assert table is not None and table.title == "Overhead of what decides at run time"


@pytest.mark.parametrize(
    ("at", "ci95", "says"),
    [(0.0, [0.0, None], "break-even is not known: "), (0.3, [None, None], "is not known: "),
     (0.0, [0.0, 0.0], "from the first FLOPs that go; here 50.0 %"),
     (0.1, [0.08, 0.13], "where 10.0 % [8.0 %, 13.0 %] of")],
)  # fmt: skip
def test_an_interval_that_says_nothing_is_a_sentence(
    at: float, ci95: list[float | None], says: str
) -> None:
    table = overhead_table(phase(break_even=at, break_even_ci95=ci95))
    assert table is not None
    assert says in table.notes[0]
    assert " 0.0 % [" not in table.notes[0] and "never]" not in table.notes[0]


def test_no_break_even_says_why() -> None:
    table = overhead_table(phase(break_even=None, break_even_ci95=None, why="it is too slow"))
    assert table is not None
    assert table.notes == ["no break-even: it is too slow"]


def test_every_format_shows_it_and_only_where_there_is_one() -> None:
    for render in (render_markdown, render_html, render_latex):
        assert "Overhead of static-nk" in render(one())
        assert "Overhead of" not in render(example.two_phases())
    assert from_json(to_json(one())) == one()
    told = json.loads(to_json(example.two_phases()))
    assert told["phases"]["prefill"]["overhead"] is None


@pytest.mark.parametrize("width", [60, 80, 140])
def test_a_terminal_shows_what_was_seen(width: int) -> None:
    text = printed(one(), width)
    section = text.partition("Overhead of static-nk")[2].partition("GEMMs")[0]
    assert "router" in section
    assert "estimator" not in section
    assert "10.4 %" in section
    assert all(len(line) <= width for line in text.splitlines())


def test_hostile_ops_are_text() -> None:
    report = example.hostile(one())
    assert "<img src=x" not in render_html(report)
    assert "\x1b" not in render_html(report) + render_markdown(report) + render_latex(report)


def with_intervals() -> Phase:
    """Of the router, of all that was added, and of a part so wide that it says nothing."""
    found = overhead(added_ci95=[1.2 * MS, 1.7 * MS])
    router, estimator, weights = found.parts
    router.ci95, estimator.ci95 = [1.3 * MS, 1.5 * MS], [-9e3 * MS, 9e3 * MS]
    return msgspec.structs.replace(example.phase(), overhead=found)


def test_intervals_of_parts_and_of_their_sum_have_a_column() -> None:
    table = overhead_table(with_intervals())
    assert table is not None
    at = [column.head for column in table.columns].index("95 % interval (ms)")
    assert at == 3
    assert [row[at].text for row in table.rows] == ["[1.300, 1.500]", "–", "–", "[1.200, 1.700]"]
    report = msgspec.structs.replace(example.two_phases(), phases={"prefill": with_intervals()})
    for text in (render_html(report), printed(report, 80), printed(report, 120)):
        assert "[1.300, 1.500]" in text and "[1.200, 1.700]" in text
    assert all(len(line) <= 60 for line in printed(report, 60).splitlines())
    assert "| router | 1.400 | 1.0 % | \\[1.300, 1.500\\] | added |" in render_markdown(report)
    assert r"router & 1.400 & 1.0 & [1.300, 1.500] & added" in render_latex(report)
