"""The report as GitHub-flavoured Markdown: in, a Report; out, one text. Strings are escaped."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prunescope.analysis.report import measured, sentences, titles
from prunescope.analysis.report.escape import markdown as text
from prunescope.analysis.report.escape import markdown_code
from prunescope.analysis.report.phase_tables import Extent, overview, phase_tables
from prunescope.analysis.report.sheet import Line, Sheet
from prunescope.analysis.report.summary import in_reading_order, outcome_and_reasons, waits_for
from prunescope.analysis.report.view import Cell, Table
from prunescope.analysis.schema.report import Finding, Phase, Report

_EXTENT = Extent(kernels=40)
_FIRST = ("ladder", "ledger")  # tables that are part of the answer


def render_markdown(report: Report) -> str:
    """The report as Markdown, tables in full but for the kernels (the first 40 names)."""
    return "\n".join(_report(report)) + "\n"


def sheet_text(title: str, sheet: Sheet) -> str:
    """What a command prints, as Markdown under a title."""
    lines = [f"# {text(title)}", ""]
    for part in sheet.parts:
        if isinstance(part, Line):
            lines += [text(part.text), ""]
        else:
            lines += table_lines(part, level=2, title=bool(part.title))
    return "\n".join(lines) + "\n"


def _report(report: Report) -> Iterator[str]:
    yield f"# {text(titles.title(report))}"
    yield ""
    yield text(titles.against(report))
    yield ""
    table = overview(report.phases)
    if table is not None:
        yield from table_lines(table, level=2)
    for name, phase in in_reading_order(report.phases).items():
        yield f"## {text(titles.heading(name, phase))}"
        yield ""
        yield from _phase(phase, waits_for(phase, report.phases))
    yield "## Peaks and notes"
    yield ""
    yield text(titles.device(report))
    yield ""
    for warning in sentences.warnings(report):
        yield f"> ⚠ {text(warning)}"
        yield ""
    yield text(f"written by {report.tool}")


def _phase(phase: Phase, late: Finding | None) -> Iterator[str]:
    """The paragraph, ladder, ledger and findings; the other tables folded."""
    outcome, reasons = outcome_and_reasons(phase, late)
    yield f"**{text(outcome)}** {text(reasons)}".rstrip()
    yield ""
    tables = {table.id: table for table in phase_tables(phase, _EXTENT)}
    for table_id in _FIRST:
        if table_id in tables:
            yield from table_lines(tables[table_id])
    yield "### Findings"
    yield ""
    for item in phase.findings:
        yield f"- **{text(item.severity)}**: {text(sentences.finding(item))}"
        yield from (f"  - {text(fact)}" for fact in item.evidence)
    if not phase.findings:
        yield text(sentences.NO_FINDING)
    yield ""
    yield "### How it was measured"
    yield ""
    for line in sentences.opening(phase):
        yield f"- {text(line)}"
    yield ""
    for table in tables.values():
        if table.id not in _FIRST:
            lines = table_lines(table, title=False)
            yield from _folded(table.title, lines, is_open=table.id == "gemms")
    yield from _folded("What was measured", (f"- {text(line)}" for line in measured.lines(phase)))


def _folded(title: str, lines: Iterable[str], *, is_open: bool = False) -> Iterator[str]:
    """Lines that a click shows or hides; HTML inside Markdown needs an empty line around it."""
    yield f"<details{' open' if is_open else ''}><summary>{text(title)}</summary>"
    yield ""
    yield from lines
    yield ""
    yield "</details>"
    yield ""


def table_lines(table: Table, *, level: int = 3, title: bool = True) -> Iterator[str]:
    """A table with its title, a heading of `level`, and its notes, line by line."""
    if title:
        yield f"{'#' * level} {text(table.title)}"
        yield ""
    yield "| " + " | ".join(text(column.head) for column in table.columns) + " |"
    yield "|" + "|".join("--:" if column.numeric else ":--" for column in table.columns) + "|"
    for row in table.rows:
        yield "| " + " | ".join(_cell(cell) for cell in row) + " |"
    yield ""
    for note in table.notes:
        yield text(note)
        yield ""


def _cell(cell: Cell) -> str:
    shown = markdown_code(cell.text) if cell.code and cell.text else text(cell.text)
    lost = cell.tone == "loss" and shown.startswith("+") and not shown.endswith("%")
    return f"**{shown}**" if lost else shown
