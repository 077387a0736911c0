"""The report as GitHub-flavoured Markdown.

In: a Report. Out: one text, whose strings are escaped.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prunescope.analysis.report import measured, sentences, titles
from prunescope.analysis.report.escape import clean, markdown_code
from prunescope.analysis.report.escape import markdown as text
from prunescope.analysis.report.phase_tables import Extent, overview, phase_tables
from prunescope.analysis.report.sheet import Line, Sheet
from prunescope.analysis.report.view import Cell, Table
from prunescope.analysis.schema.report import Finding, Phase, Report
from prunescope.analysis.summary.answer import given_answer
from prunescope.analysis.summary.paragraph import outcome_and_reasons, sort_for_reading, waits_for

_EXTENT = Extent()
_FIRST = ("ladder", "ledger")  # tables that are part of the answer


def render_markdown(report: Report) -> str:
    """Return the report as Markdown, with every row that it holds."""
    return "\n\n".join(_report(report)) + "\n"


def sheet_text(title: str, sheet: Sheet) -> str:
    """Return the output of a command as Markdown, under a title."""
    blocks = [f"# {text(title)}"]
    for part in sheet.parts:
        if isinstance(part, Line):
            blocks.append(text(part.text))
        else:
            blocks += table_blocks(part, level=2, title=bool(part.title))
    return "\n\n".join([*blocks, ""])


def _report(report: Report) -> Iterator[str]:
    yield f"# {text(titles.title(report))}"
    yield text(titles.against(report))
    for caveat in report.caveats:
        yield f"> ⚠ {text(caveat)}"
    table = overview(report.phases)
    if table is not None:
        yield from table_blocks(table, level=2)
    for name, phase in sort_for_reading(report.phases).items():
        yield f"## {text(titles.heading(name, phase))}"
        yield from _phase(phase, waits_for(phase, report.phases))
    yield "## Peaks and notes"
    yield text(titles.device(report))
    for warning in sentences.warnings(report):
        if warning not in report.caveats:
            yield f"> ⚠ {text(warning)}"
    yield text(f"written by {report.tool}")


def _phase(phase: Phase, late: Finding | None) -> Iterator[str]:
    """Yield paragraph, ladder, ledger and findings of a phase, and the other tables folded."""
    told = given_answer(phase, late)
    yield f"**{text(told.verdict)}**"
    yield from (text(part) for part in (told.why, told.change) if part)
    if told.command:
        yield f"```\n{clean(told.command)}\n```"
    tables = {table.id: table for table in phase_tables(phase, _EXTENT)}
    for table_id in _FIRST:
        if table_id in tables:
            yield from table_blocks(tables[table_id])
    yield "### Findings"
    findings = []
    for finding in phase.findings:
        findings.append(f"- **{text(finding.severity)}**: {text(sentences.finding(finding))}")
        findings += [f"  - {text(fact)}" for fact in finding.evidence]
    yield "\n".join(findings or [text(sentences.NO_FINDING)])
    if (code := sentences.code_to_try(phase)) is not None:
        yield _folded(code[0], f"```python\n{code[1]}```")
    yield "### In detail"
    yield text(" ".join(outcome_and_reasons(phase, late)).strip())
    if phase.answer is not None and phase.answer.sentence:
        yield "### The sentence for the paper"
        yield text(phase.answer.sentence)
    yield "### How it was measured"
    yield _listed(sentences.opening(phase))
    for table in tables.values():
        if table.id not in _FIRST:
            content = "\n\n".join(table_blocks(table, title=False)) + "\n"
            yield _folded(table.title, content, is_open=table.id == "gemms")
    yield _folded("What was measured", _listed(measured.lines(phase)))


def _listed(lines: Iterable[str]) -> str:
    return "\n".join(f"- {text(line)}" for line in lines)


def _folded(title: str, content: str, *, is_open: bool = False) -> str:
    """Return lines that a click shows or hides; HTML in Markdown needs empty lines around it."""
    head = f"<details{' open' if is_open else ''}><summary>{text(title)}</summary>"
    return f"{head}\n\n{content}\n\n</details>"


def table_blocks(table: Table, *, level: int = 3, title: bool = True) -> Iterator[str]:
    """Yield a table with its title and its notes: blocks that an empty line separates.

    Args:
        table: The table.
        level: The level of the heading that the title is.
        title: Whether the title is shown.
    """
    if title:
        yield f"{'#' * level} {text(table.title)}"
    rows = [[text(column.head) for column in table.columns]]
    rows += [[_cell(cell) for cell in row] for row in table.rows]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    rule = "|".join("--:" if column.numeric else ":--" for column in table.columns)
    yield "\n".join([lines[0], f"|{rule}|", *lines[1:]])
    yield from map(text, table.notes)


def _cell(cell: Cell) -> str:
    shown = markdown_code(cell.text) if cell.code and cell.text else text(cell.text)
    is_loss = cell.tone == "loss" and shown.startswith("+") and not shown.endswith("%")
    return f"**{shown}**" if is_loss or cell.tone == "best" else shown
