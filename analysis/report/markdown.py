"""The report as GitHub-flavoured Markdown: in, a Report; out, one text. Strings are escaped."""

from __future__ import annotations

from collections.abc import Iterator

from prunescope.analysis.report import anatomy_view, device_sentence, ledger_view, sentences, view
from prunescope.analysis.report.escape import markdown as text
from prunescope.analysis.report.escape import markdown_code
from prunescope.analysis.report.overhead_view import overhead_table
from prunescope.analysis.report.sides_view import sides_table
from prunescope.analysis.report.view import Cell, Table
from prunescope.analysis.schema.report import Phase, Report

_TOP_KERNELS = 40


def render_markdown(report: Report) -> str:
    """The report as Markdown, tables in full but for the kernels (the first 40 names)."""
    return "\n".join(_report(report)) + "\n"


def _report(report: Report) -> Iterator[str]:
    yield f"# {text(sentences.title(report))}"
    yield ""
    yield f"{text(sentences.against(report))}  "
    yield f"{text(device_sentence.device(report))}  "
    yield text(f"written by {report.tool}")
    yield ""
    for warning in sentences.warnings(report):
        yield f"> ⚠ {text(warning)}"
        yield ""
    for name, phase in report.phases.items():
        yield f"## {text(sentences.heading(name, phase))}"
        yield ""
        yield from _phase(phase)


def _phase(phase: Phase) -> Iterator[str]:
    yield f"**{text(sentences.headline(phase))}**"
    yield ""
    for line in sentences.opening(phase):
        yield f"- {text(line)}"
    yield ""
    yield "### Findings"
    yield ""
    for item in phase.findings:
        yield f"- **{text(item.severity)}**: {text(sentences.finding(item))}"
        yield from (f"  - {text(fact)}" for fact in item.evidence)
    if not phase.findings:
        yield text(sentences.NO_FINDING)
    yield ""
    for table in tables(phase):
        yield from table_lines(table)
    yield "### What was measured"
    yield ""
    for line in sentences.measured(phase):
        yield f"- {text(line)}"
    yield ""


def tables(phase: Phase) -> Iterator[Table]:
    """The tables of a phase in reading order."""
    opening = (ledger_view.ladder_table, sides_table, ledger_view.ledger_table, overhead_table)
    for table in (draw(phase) for draw in opening):
        if table is not None:
            yield table
    if phase.gemms:
        yield view.gemm_table(phase)
    parts = ledger_view.parts_table(phase)
    if parts is not None:
        yield parts
    yield view.split_table("kind", phase.kinds, phase.busy_ns)
    yield view.split_table("role", phase.roles, phase.busy_ns)
    yield from anatomy_view.tables(phase)
    if phase.kernels:
        yield view.kernel_table(phase.kernels, phase.busy_ns, top=_TOP_KERNELS)


def table_lines(table: Table) -> Iterator[str]:
    """A table with its title and notes, line by line."""
    yield f"### {text(table.title)}"
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
