"""The report in a terminal.

In: a Report. Out: rich renderables. By default they show the answer alone, in at most 45 lines per
phase at 80 columns: the paragraph, the ladder, the ledger and the findings that matter; peaks and
notes on the whole report stand last. In full they show every table, and what was measured.

Every string goes in as `Text`, never as markup, with control characters spelled out. The report
reads without colour (signs and glyphs carry the meaning) and, where the encoding is ASCII, in
ASCII.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from msgspec.structs import replace
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.rule import Rule
from rich.segment import Segment, Segments
from rich.table import Table as Grid
from rich.text import Text

from prunescope.analysis.report import hatches, ledger_view, measured, sentences, titles
from prunescope.analysis.report.escape import clean
from prunescope.analysis.report.phase_tables import Extent, overview, phase_table, phase_tables
from prunescope.analysis.report.sheet import Page, kept_columns, plain_name
from prunescope.analysis.report.view import Cell, Column, Table
from prunescope.analysis.schema.report import Finding, Phase, Report
from prunescope.analysis.summary import evidence, paragraph
from prunescope.analysis.summary.answer import given_answer
from prunescope.analysis.summary.causes import is_whole_step, recommended_changes
from prunescope.taxonomy import numbers
from prunescope.taxonomy.words import plural, when

WIDE = 110  # columns from which evidence stands next to its row
_EXTENT = Extent(gemms=14, kernels=8, kinds=8, brief=True)
_LINES = 45  # of a phase, unless it is shown in full
_BRIEF = Extent(gemms=6, kernels=0, kinds=6, brief=True)
_LEFT_OUT = frozenset({"sides", "parts", "role", "shapes", "host"})
_IN_LEDGER = frozenset({"kind", "kernels"})  # left out where there is a ledger
_SHORTEST = 8  # characters of a bar
_BAR_DROP = 5  # a bar repeats numbers: it leaves after the largest part, before any number
_SEVERITY = {"critical": ("!!", "bold red"), "warning": ("!", "yellow"), "info": ("i", "cyan")}


def print_report(report: Report, console: Console, *, full: bool = False) -> None:
    """Print the report to a console; `full` adds every table, and what was measured."""
    console.print(TerminalReport(report, full=full), crop=False)  # code may be wider


class TerminalReport:
    """The report as a rich renderable, at any width from 60 columns.

    The console's width and encoding decide the layout. `full` adds every table, and what was
    measured.
    """

    def __init__(self, report: Report, *, full: bool = False) -> None:
        self.report = report
        self.full = full

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        page = _ReportPage(console, options)
        yield from page.report(self.report, full=self.full)


class _ReportPage(Page):
    """The report laid out for one width and encoding."""

    def __init__(self, console: Console, options: ConsoleOptions) -> None:
        super().__init__(options.max_width, ascii_only=options.ascii_only)
        self._console, self._options = console, options
        self._all: Mapping[str, Phase] = {}
        self._said: set[str] = set()  # notes that stand above already

    def drawn(self, part: RenderableType) -> Segments:
        """Return a part as the console draws it, so that counting its lines draws it only once."""
        return Segments(self._console.render(part, self._options))

    def height(self, parts: Iterable[Segments]) -> int:
        """Return how many lines drawn parts take."""
        return sum(1 for part in parts for _ in Segment.split_lines(part.segments))

    def report(self, report: Report, *, full: bool) -> Iterator[RenderableType]:
        """Yield the whole report: its title, its phases, then peaks and warnings."""
        title = self.ink(titles.title(report), "bold")
        if full:
            yield title
            yield self.ink(titles.against(report))
        else:
            yield title.append_text(self.ink(f", {titles.against(report)}", "not bold"))
        for caveat in report.caveats:
            yield self.ink(f"! {caveat}", "yellow")
        self._all = report.phases
        phases = paragraph.sort_for_reading(report.phases)
        table = overview(report.phases, **({} if full else {"elsewhere": "the other {}: --full"}))
        if table is not None:
            yield self.section(table.title)
            yield from self.table(table)
            if not full:
                phases = dict([next(iter(phases.items()))])
        for name, phase in phases.items():
            yield Text("")
            yield Rule(
                self.ink(titles.heading(name, phase), "bold"),
                align="left",
                characters="-" if self.ascii_only else "─",
                style="dim",
            )
            yield from self.phase(phase) if full else self.brief(phase)
        yield Text("")
        yield self.ink(titles.device(report, brief=not full), "dim")
        for warning in sentences.warnings(report):
            if warning not in report.caveats:
                yield self.ink(f"! {warning}", "yellow")

    def brief(self, phase: Phase) -> Iterator[RenderableType]:
        """Yield the short report of a phase, in at most 45 lines unless its answer is longer.

        The most severe finding is always shown.
        """
        answer = [self.drawn(part) for part in self.answer(phase)]
        yield from answer
        yield from self.findings_that_fit(phase, _LINES - 2 - self.height(answer))

    def answer(self, phase: Phase) -> Iterator[RenderableType]:
        """Yield the answer, the statistic, the ladder and the ledger of a phase.

        Without a baseline, tables of where the time goes stand in their place; where times are not
        valid, the table of shapes does, unless the step lacks GEMMs.
        """
        yield from self._answer(phase)
        if text := sentences.statistic(phase):
            yield self.ink(text, "dim")
        is_timed = not evidence.ledger_invalid_reasons(phase)
        if phase.ladder is not None and is_timed:
            yield from self._ladder(phase, without=("busy",))
        ledger = ledger_view.ledger_table(phase)
        if ledger is not None and is_timed:
            yield from self._ledger(ledger, phase, brief=True)
        if phase.replay is not None:
            yield self.section("GEMMs replayed alone")
            yield self.ink(phase.replay.text)
        if phase.ladder is None or (not is_timed and is_whole_step(phase)):
            wanted = ("kind", "gemms") if phase.ladder is None else ("gemms",)
            tables = (phase_table(table_id, phase, _BRIEF) for table_id in wanted)
            for table in filter(None, tables):
                yield from self._other_table(table, phase)

    def findings_that_fit(self, phase: Phase, lines: int) -> Iterator[RenderableType]:
        """Yield the most severe findings that fit into `lines`, and how many more there are.

        At least one is shown.
        """
        code = sentences.code_to_try(phase)
        heading = self.drawn(self.section("Findings"))
        hint = [] if code is None else [self.drawn(self.ink(f"{code[0]}: --full", "dim"))]
        lines -= self.height([heading, *hint]) + 1
        shown = 0
        waits = paragraph.waits_for(phase, self._all) is not None
        recommended = [] if waits else recommended_changes(phase)
        for finding in phase.findings:
            # The paragraph above ends with their changes.
            if any(finding is above for above in recommended):
                finding = replace(finding, change=None, predicted_ns=None)
            part = self.drawn(self._finding(finding))
            lines -= self.height([part])
            if shown and (lines < 0 or finding.severity == "info"):
                break
            if not shown:
                yield heading
            yield part
            shown += 1
        more = len(phase.findings) - shown
        hidden = f"{more} more finding{plural(more)}, all" if more else "All"
        yield from hint
        yield self.ink(f"{hidden} tables and what was measured: --full", "dim")

    def phase(self, phase: Phase) -> Iterator[RenderableType]:
        """Yield every table of a phase, and what was measured."""
        yield from self._answer(phase)
        outcome, reasons = paragraph.outcome_and_reasons(
            phase, paragraph.waits_for(phase, self._all)
        )
        yield self.section("In detail")
        yield self.ink(f"{outcome} {reasons}".strip())
        yield from self._lines(sentences.opening(phase))
        left_out = _LEFT_OUT | (_IN_LEDGER if phase.ledger else frozenset())
        for table in phase_tables(phase, replace(_EXTENT, without=left_out)):
            if table.id == "ladder":
                yield from self._ladder(phase)
            elif table.id == "ledger":
                yield from self._ledger(table, phase)
            else:
                yield from self._other_table(table, phase)
        yield self.section("What was measured")
        yield from self._lines(measured.lines(phase))
        yield self.section("Findings")
        for finding in phase.findings:
            yield self._finding(finding)
            for fact in finding.evidence[:2]:
                yield _hanging(Text("    "), self.ink(fact, "dim"))
        if not phase.findings:
            yield self.ink(sentences.NO_FINDING)
        if (code := sentences.code_to_try(phase)) is not None:
            yield self.section(code[0])
            yield from map(self._code_line, code[1].splitlines())

    def _answer(self, phase: Phase) -> Iterator[Text]:
        """Yield what happened, in bold, then why and what to do, each on a line of its own."""
        told = given_answer(phase, paragraph.waits_for(phase, self._all))
        yield self.ink(told.verdict, "bold")
        if told.why:
            yield self.ink(told.why)
        if told.do:
            yield self.ink(f"→ {told.change}", "green")
        if command := self._typed_command(told.command):
            yield Text(command, "green", no_wrap=True, overflow="ignore")

    def _typed_command(self, command: str) -> str:
        """Return a command in lines that fit, which a shell joins again."""
        lines = [""]
        for word in clean(command).split(" "):
            if lines[-1] and len(lines[-1]) + len(word) + 3 > self.width:
                lines.append("   ")
            lines[-1] = f"{lines[-1]} {word}" if lines[-1] else word
        return " \\\n".join(lines)

    def _other_table(self, table: Table, phase: Phase) -> Iterator[RenderableType]:
        """Yield a table of a phase, shares as bars."""
        if table.id == "kind":
            yield self.section(table.title)
            yield self._shares(table, phase.busy_ns)
            yield from self.notes(table.notes)
            return
        unit = next((column.unit for column in table.columns if column.unit), "")
        per_step = f": {unit} a step" if unit else ", a step"
        # Some columns of replayed GEMMs are of a call.
        yield self.section(f"{table.title}{when(table.id != 'replayed', per_step)}")
        yield from self.table(table)

    def _lines(self, lines: Iterable[str]) -> Iterator[RenderableType]:
        for line in lines:
            yield self.ink(line)

    def _code_line(self, line: str) -> Text:
        """Return a line of code, which is not wrapped, so that it can be copied."""
        text = self.ink(line)
        text.no_wrap, text.overflow = True, "ignore"
        return text

    def _ladder(self, phase: Phase, without: Collection[str] = ()) -> Iterator[RenderableType]:
        """Yield the ladder as bars.

        A bar that is no evidence has strokes, which the last line names.
        """
        yield self.section("Ladder: dense ÷ pruned")
        rows = [row for row in ledger_view.ladder_rows(phase) if row.key not in without]
        yield self._bounds(rows)
        yield from self.notes(ledger_view.ladder_notes(phase))
        caveats = ledger_view.ladder_caveats(rows).items()
        yield from self.notes([f"{3 * _stroke([reason])} {words}" for reason, words in caveats])

    def _bounds(self, rows: Sequence[ledger_view.LadderRow]) -> Grid:
        top = max((row.value for row in rows if row.value is not None), default=1.0)
        room, widest = self.width - 52, 1 + max(len(row.interval) for row in rows)
        # Intervals get a column of their own where bounds have one too; a narrow terminal shows
        # that of the speedup alone.
        has_column = any(row.ci95 for row in rows if row.key != "realised")
        has_column = has_column and room - widest >= _SHORTEST
        room = max(_SHORTEST, min(40, room - widest if has_column else room))
        grid = self._grid(columns=5 if has_column else 4)
        for row in rows:
            is_realised = row.key == "realised"
            share = f"realised is {numbers.percent(row.share, decimals=0)} of it"
            share = when(row.share is not None and not is_realised, share)
            alone = (
                row.interval if is_realised and row.ci95 else share
            )  # no sign for an unknown one
            cells = [row.interval, share] if has_column else [alone]
            glyph = _stroke(row.reasons) or ("█" if is_realised else "░")
            bar = glyph * round(room * (row.value or 0.0) / top)
            style = "bold" if is_realised else ""
            grid.add_row(
                self.ink(f" {row.label}", style),
                self.ink(numbers.ratio(row.value), style),
                self.ink(bar, "green" if is_realised else "cyan"),
                *(self.ink(cell, "dim") for cell in cells),
            )
        return grid

    def _ledger(
        self, table: Table, phase: Phase, *, brief: bool = False
    ) -> Iterator[RenderableType]:
        rows = phase.ledger or []
        bars, _ = ledger_view.waterfall(rows)
        spare = self.width - (100 if self.width >= WIDE else 62) + 11 * (6 - len(table.columns))
        room = max(10, min(30, spare))
        stroke = _stroke(evidence.ledger_reasons(phase))
        bar_cells = [Cell(_bar_text(bar, room, stroke), tone=bar.tone) for bar in bars]
        columns = [*table.columns[:3], Column("", drop=_BAR_DROP), *table.columns[3:]]
        lines = [[*r[:3], bar, *r[3:]] for r, bar in zip(table.rows, bar_cells, strict=True)]
        for line in lines:
            line[-1] = Cell(plain_name(line[-1].text))
        table = Table(table.id, table.title, columns, lines, table.notes)
        unit = ledger_view.ledger_scale(rows).unit
        yield self.section(f"Ledger: {unit} a step; shares are of the dense wall")
        yield from self.fitted(table)
        kept = kept_columns(table, self.width)
        left = [c.title for i, c in enumerate(columns[:-1]) if i not in kept and c.title]
        if left:
            yield from self.notes([f"a wider terminal also shows: {', '.join(left)}"])
        if len(columns) - 1 not in kept and not brief:
            for line in lines:
                if line[-1].text:
                    yield self.ink(f" ↳ {line[0].text}: {line[-1].text}", "dim")
        yield from self.notes(self._brief_notes(table, phase) if brief else table.notes)

    def _brief_notes(self, table: Table, phase: Phase) -> list[str]:
        """Return the first note, and why intervals are missing where the strokes do not say it."""
        is_one_step = evidence.ONE_STEP in evidence.ledger_reasons(phase)
        missing = [] if is_one_step else ledger_view.interval_notes(phase.ledger or [])
        gloss = ledger_view.glossed(phase.ledger or [])
        words = [gloss] if gloss and gloss not in self._said else []
        self._said.update(words)
        return list(dict.fromkeys([*words, *table.notes[:1], *missing]))

    def _shares(self, table: Table, busy_ns: float) -> RenderableType:
        room = max(8, min(40, self.width - 40))
        grid = self._grid(right=(1, 3))
        for name, ns, share in table.rows:
            bar = "█" * round(room * (numbers.share_of(ns.value, busy_ns) or 0.0))
            texts = self.ink(f" {name.text}"), self.ink(f"{ns.text} {table.columns[1].unit}")
            grid.add_row(*texts, self.ink(bar, "cyan"), self.ink(share.text))
        return grid

    def _grid(self, right: tuple[int, ...] = (1,), *, columns: int = 4) -> Grid:
        grid = Grid(box=None, show_header=False, padding=(0, 1, 0, 0), pad_edge=False)
        for i in range(columns):
            grid.add_column(justify="right" if i in right else "left", no_wrap=True)
        return grid

    def _finding(self, finding: Finding) -> RenderableType:
        mark, style = _SEVERITY.get(finding.severity, ("-", ""))
        return _hanging(self.ink(f"{mark:>3} ", style), self.ink(sentences.finding(finding)))


def _stroke(reasons: list[str]) -> str:
    """Return the character that fills a bar that is no evidence, as the hatch of a picture does.

    It is empty where there is no reason against the bar.
    """
    return hatches.HATCHES[reasons[0]][0] if reasons else ""


def _hanging(mark: Text, text: Text) -> RenderableType:
    grid = Grid.grid()
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    grid.add_row(mark, text)
    return grid


def _bar_text(bar: ledger_view.WaterfallBar, room: int, stroke: str) -> str:
    """Return a waterfall bar as text.

    A wall is a mark, a loss full blocks, a gain light ones, and both strokes where times are no
    evidence.
    """
    low, high = sorted((bar.start, bar.end))
    first = min(room - 1, int(low * room))
    if bar.tone in ("total", "promise"):
        return " " * first + ("◆" if bar.tone == "total" else "│")
    length = max(1, round(high * room) - first) if bar.start != bar.end else 0
    glyph = {"loss": stroke or "█", "gain": stroke or "░", "quiet": "·"}[bar.tone]
    return " " * first + glyph * length
