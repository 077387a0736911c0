"""The report in a terminal, read in ten seconds: in, a Report; out, rich renderables.

Every string goes in as `Text`, never as markup, with control characters spelled out. It reads
without colour (signs and glyphs carry the meaning) and, where the encoding is ASCII, in ASCII.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.rule import Rule
from rich.table import Table as Grid
from rich.text import Text

from prunescope.analysis.report import ledger_view, measured, numbers, sentences, titles
from prunescope.analysis.report.phase_tables import Extent, phase_tables
from prunescope.analysis.report.sheet import Page, kept_columns, plain_name
from prunescope.analysis.report.view import Cell, Column, Table
from prunescope.analysis.schema.report import Finding, Phase, Report

WIDE = 110  # columns from which evidence stands beside its row
_EXTENT = Extent(gemms=14, kernels=8, kinds=8, brief=True)
_LEFT_OUT = frozenset({"sides", "parts", "role", "shapes", "host"})
_IN_LEDGER = frozenset({"kind", "kernels"})  # left out where there is a ledger
_SHORTEST = 8  # characters of a bar
_SEVERITY = {"critical": ("!!", "bold red"), "warning": ("!", "yellow"), "info": ("i", "cyan")}


def print_report(report: Report, console: Console) -> None:
    """Print the report to a console."""
    console.print(TerminalReport(report))


class TerminalReport:
    """The report as a rich renderable, at any width from 60 columns; the console's width and
    encoding decide the layout."""

    def __init__(self, report: Report) -> None:
        self.report = report

    def __rich_console__(self, _console: Console, options: ConsoleOptions) -> RenderResult:
        page = _ReportPage(options.max_width, ascii_only=options.ascii_only)
        yield from page.report(self.report)


class _ReportPage(Page):
    """The report laid out for one width and encoding."""

    def report(self, report: Report) -> Iterator[RenderableType]:
        yield self.ink(titles.title(report), "bold")
        yield self.ink(titles.against(report))
        yield self.ink(titles.device(report), "dim")
        for warning in sentences.warnings(report):
            yield self.ink(f"! {warning}", "yellow")
        for name, phase in report.phases.items():
            yield Text("")
            yield Rule(
                self.ink(titles.heading(name, phase), "bold"),
                align="left",
                characters="-" if self.ascii_only else "─",
                style="dim",
            )
            yield from self.phase(phase)

    def phase(self, phase: Phase) -> Iterator[RenderableType]:
        yield self.ink(sentences.headline(phase), "bold")
        yield from self._lines(sentences.opening(phase))
        left_out = _LEFT_OUT | (_IN_LEDGER if phase.ledger else frozenset())
        for table in phase_tables(phase, replace(_EXTENT, without=left_out)):
            if table.id == "ladder":
                yield self.section("Ladder: dense ÷ pruned")
                yield self._ladder(phase)
            elif table.id == "ledger":
                yield from self._ledger(table, phase)
            elif table.id == "kind":
                yield self.section(table.title)
                yield self._shares(table, phase.busy_ns)
                yield from self.notes(table.notes)
            else:
                unit = next((c.unit for c in table.columns if c.unit), "")
                yield self.section(f"{table.title}: {unit} a step")
                yield from self.table(table)
        yield self.section("What was measured")
        yield from self._lines(measured.lines(phase))
        yield self.section("Findings")
        yield from self._findings(phase.findings)
        if not phase.findings:
            yield self.ink(sentences.NO_FINDING)

    def _lines(self, lines: Iterable[str]) -> Iterator[RenderableType]:
        for line in lines:
            yield self.ink(line)

    def _ladder(self, phase: Phase) -> RenderableType:
        ladder = phase.ladder
        assert ladder is not None
        rungs = ledger_view.rungs(ladder)
        values = {name: getattr(ladder, name) for name in rungs}
        ends = {name: ledger_view.telling_interval(ladder, name) for name in values}
        spans = {name: ledger_view.interval_span(ladder, name) for name in values}
        top = max((v for v in values.values() if v is not None), default=1.0)
        room, widest = self.width - 52, 1 + max(map(len, spans.values()))
        # A column of their own where others have one too; a narrow terminal shows the last alone.
        apart = any(ends[n] for n in ends if n != "realised") and room - widest >= _SHORTEST
        room = max(_SHORTEST, min(40, room - widest * apart))
        grid = self._grid(columns=4 + apart)
        for name, (label, _) in rungs.items():
            value, span, realised = values[name], spans[name], name == "realised"
            share = numbers.percent(numbers.share_of(ladder.realised, value), decimals=0)
            extra = share if value is None else f"realised is {share} of it"
            alone = span if ends[name] else ""  # no column whose unknown cells want a sign
            cells = [span, "" if realised else extra] if apart else [alone if realised else extra]
            bar = ("█" if realised else "░") * round(room * (value or 0.0) / top)
            style = "bold" if realised else ""
            grid.add_row(
                self.ink(f" {label}", style),
                self.ink(numbers.ratio(value), style),
                self.ink(bar, "green" if realised else "cyan"),
                *(self.ink(cell, "dim") for cell in cells),
            )
        return grid

    def _ledger(self, table: Table, phase: Phase) -> Iterator[RenderableType]:
        rows = phase.ledger or []
        bars, _ = ledger_view.waterfall(rows)
        spare = self.width - (100 if self.width >= WIDE else 62) + 11 * (6 - len(table.columns))
        room = max(10, min(30, spare))
        bar_cells = [Cell(_bar_text(bar, room), tone=bar.tone) for bar in bars]
        columns = [*table.columns[:3], Column(""), *table.columns[3:]]
        lines = [[*r[:3], bar, *r[3:]] for r, bar in zip(table.rows, bar_cells, strict=True)]
        for line, bar in zip(lines, bars, strict=True):
            is_change = bar.tone not in ("quiet", "total")
            line[-1] = Cell(plain_name(line[-1].text) if is_change else "")
        table = Table(table.id, table.title, columns, lines, table.notes)
        unit = ledger_view.ledger_scale(rows).unit
        yield self.section(f"Ledger: {unit} a step; shares are of the dense wall")
        yield self.fitted(table)
        if len(columns) - 1 not in kept_columns(table, self.width):
            for line in lines:
                if line[-1].text:
                    yield self.cut(self.ink(f" ↳ {line[0].text}: {line[-1].text}", "dim"))
        yield from self.notes(table.notes)

    def _shares(self, table: Table, busy_ns: float) -> RenderableType:
        room = max(8, min(40, self.width - 40))
        grid = self._grid(right=(1, 3))
        for name, ns, share in table.rows:
            bar = "█" * round(room * (numbers.share_of(ns.value, busy_ns) or 0.0))
            text = f"{ns.text} {table.columns[1].unit}"
            grid.add_row(
                self.ink(f" {name.text}"),
                self.ink(text),
                self.ink(bar, "cyan"),
                self.ink(share.text),
            )
        return grid

    def _grid(self, right: tuple[int, ...] = (1,), *, columns: int = 4) -> Grid:
        grid = Grid(box=None, show_header=False, padding=(0, 1, 0, 0), pad_edge=False)
        for i in range(columns):
            grid.add_column(justify="right" if i in right else "left", no_wrap=True)
        return grid

    def _findings(self, findings: list[Finding]) -> Iterator[RenderableType]:
        for item in findings:
            mark, style = _SEVERITY.get(item.severity, ("-", ""))
            yield _hanging(self.ink(f"{mark:>3} ", style), self.ink(sentences.finding(item)))
            for fact in item.evidence[:2]:
                yield _hanging(Text("    "), self.ink(fact, "dim"))


def _hanging(mark: Text, text: Text) -> RenderableType:
    grid = Grid.grid()
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    grid.add_row(mark, text)
    return grid


def _bar_text(bar: ledger_view.WaterfallBar, room: int) -> str:
    """A waterfall bar as text: a mark for a wall, full blocks for a loss, light for a gain."""
    low, high = sorted((bar.start, bar.end))
    first = min(room - 1, int(low * room))
    if bar.tone in ("total", "promise"):
        return " " * first + ("◆" if bar.tone == "total" else "│")
    length = max(1, round(high * room) - first) if bar.start != bar.end else 0
    glyph = {"loss": "█", "gain": "░", "quiet": "·"}[bar.tone]
    return " " * first + glyph * length
