"""Ledger and ladder as tables and bars.

In: a Phase of the Report. Out: rows in the order in which they are read, in ns and as text with
units, unescaped.
"""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import UNSET, Struct

from prunescope.analysis.report import hatches
from prunescope.analysis.report.view import Cell, Column, Columns, Table, number, table_of
from prunescope.analysis.schema.report import (
    ARITHMETIC,
    MEASURED,
    Ladder,
    LedgerPart,
    OverheadPart,
    Phase,
    Row,
    is_beyond_noise,
)
from prunescope.analysis.summary.evidence import INVALID, bound_reasons, ledger_invalid_reasons
from prunescope.analysis.summary.labels import INSTEAD_OF_FLOPS, LADDER, NOT_EXPLAINED, label_of
from prunescope.taxonomy import numbers
from prunescope.taxonomy.numbers import RoundedEstimate, estimate
from prunescope.taxonomy.words import when

WITHOUT_SHAPES = (
    "unknown without shapes; {config}record_shapes=True records them (torch's profile, or "
    "emit_nvtx for Nsight Systems)"
)
OF_A_CONFIG = "--model CONFIG gives those of a decoder on a GPU, and "
WITHOUT_PEAKS = (
    "unknown without the peaks of the device (--device, or --peak and --bandwidth) and the bytes "
    "and FLOPs of its kernels"
)
# Rows that are 0 for dense against dense whatever was measured: their noise is of no use.
NO_NOISE = frozenset({"coverage", "roofline_shift", "shape", "added_work"})
NO_INTERVAL = (
    "no intervals: one side has fewer than five steps, or steps of only one of its placements, or "
    "its steps differ too much"
)
TOO_WIDE = "intervals too wide to be of use are not shown: more placements narrow them"
NEITHER = "no interval and no noise: they need more than one step"
# Rows whose labels a reader may not know, as one says them.
_GLOSS = {
    "coverage": "work that the pruning never touched",
    "roofline_shift": "bytes that did not fall with the FLOPs",
}
_NOTHING = 0.0005  # of the dense wall: a row that reads 0.0 % has no part to name
_VISIBLE = 0.005  # of an axis one column wide: the width of the line that draws an interval
_FAR = 10.0  # times the longer wall: an interval that reaches further is too wide to show
_FEW_STEPS = 5  # of a side: with fewer, no interval is known
_ROOM = 0.04  # of the plotted range, above and below the bars


class WaterfallBar(Struct, frozen=True):
    """A bar of the waterfall.

    Attributes:
        start: Where it begins, as a share 0..1 of the plotted range.
        end: Where it ends.
        tone: "total", "promise", "loss", "gain" or "quiet", as `Row.effect`.
    """

    start: float
    end: float
    tone: str


def waterfall(rows: list[Row]) -> tuple[list[WaterfallBar], tuple[float, float]]:
    """Return a bar for each row of a ledger, and the plotted range in ns, which need not hold 0."""
    ends = list(_ends(rows))
    low = min(min(pair) for pair in ends)
    high = max(max(pair) for pair in ends)
    room = _ROOM * (high - low) or 0.01 * high or 1.0
    low, high = low - room, high + room
    bars = [
        WaterfallBar((start - low) / (high - low), (end - low) / (high - low), row.effect)
        for row, (start, end) in zip(rows, ends, strict=True)
    ]
    return bars, (low, high)


def _ends(rows: Iterable[Row]) -> Iterable[tuple[float, float]]:
    """Yield where the bar of each row begins and ends, ns."""
    level = 0.0
    for row in rows:
        moves = row.moves_ns
        if row.is_wall:
            yield moves, moves
        elif row.row == "promised":
            level = moves
            yield moves, moves
        else:
            yield level, level + moves
            level += moves


def part_text(part: LedgerPart, unit: numbers.Scale) -> str:
    """Return `name +1.234 ms: evidence`."""
    evidence = f": {part.evidence[0]}" if part.evidence else ""
    return f"{part.name} {unit.text(part.ns, signed=True)} {unit.unit}{evidence}"


def ledger_scale(rows: list[Row]) -> numbers.Scale:
    """Return the unit of a ledger: that of its walls."""
    return numbers.scale(row.moves_ns for row in rows)


def readable_interval(row: Row | LedgerPart | OverheadPart, rows: list[Row]) -> list[float] | None:
    """Return the interval of a row or part, or None where it is too wide to be of use.

    It is too wide where a wall may be below zero, or an end is beyond ten times the longer wall.
    """
    if not row.ci95:
        return None
    longest = max((abs(wall.moves_ns) for wall in rows if wall.is_wall), default=0.0)
    is_below_zero = isinstance(row, Row) and row.is_wall and row.ci95[0] < 0
    return None if is_below_zero or max(map(abs, row.ci95)) > _FAR * longest else row.ci95


def is_visible(ci95: list[float] | None, across: float) -> bool:
    """Return whether an interval is a mark on an axis of length `across`, and no dot."""
    return ci95 is not None and ci95[1] - ci95[0] > _VISIBLE * across


def shown_bounds(ladder: Ladder) -> dict[str, tuple[str, str]]:
    """Return label and meaning of each bound that a ladder shows, in order.

    Parameters and bytes stand next to the FLOPs where the family keeps these.
    """
    if ladder.parameters is UNSET:
        return dict(LADDER)
    counted = "gemms" if ladder.parameters_of == "gemms" else "parameters"
    bounds: dict[str, tuple[str, str]] = {}
    for name, words in LADDER.items():
        if name == "flop":
            bounds["parameters"] = INSTEAD_OF_FLOPS[counted]
        bounds[name] = words
        if name == "flop":
            bounds["bytes"] = INSTEAD_OF_FLOPS["bytes"]
    return bounds


class LadderRow(Struct, frozen=True):
    """A bound of the ladder, or a measured ratio, as every format shows it.

    Attributes:
        key: Its name in the ladder.
        label: Its name to readers.
        meaning: What it assumes.
        value: The speedup, dense over pruned; None where it is not known.
        ci95: Its 95 % interval; None where an end is beyond ten times the value.
        share: The share of it that was realised; None where that says nothing.
        reasons: Why it is no evidence, the most severe first.
    """

    key: str
    label: str
    meaning: str
    value: float | None
    ci95: list[float] | None
    share: float | None
    reasons: list[str]

    @property
    def interval(self) -> str:
        """The interval as text; empty for a bound that is arithmetic."""
        return "" if self.key in ARITHMETIC else numbers.ratios(self.ci95)

    def speedup(self, *, rounded: bool) -> str:
        """Return the speedup as text, with a question mark where its times are no evidence."""
        shown = estimate(self.value, self.ci95, against=1.0)
        text = shown.text if rounded and shown is not None and self.interval else ""
        return marked(self.value, self.reasons, text)

    @property
    def rounded_interval(self) -> str:
        """The interval in the digits that it leaves meaning to; empty as `interval` is."""
        shown = estimate(self.value, self.ci95, against=1.0)
        return shown.interval if shown is not None and self.interval and self.ci95 else ""

    @property
    def is_measured(self) -> bool:
        """Whether it is a measured ratio and no bound."""
        return self.key in MEASURED


def ladder_rows(phase: Phase) -> list[LadderRow]:
    """Return the ladder in order; empty without one."""
    ladder = phase.ladder
    if ladder is None:
        return []
    shares, reasons, rows = realised_shares(phase), bound_reasons(phase), []
    for key, (label, meaning) in shown_bounds(ladder).items():
        value, ci95 = getattr(ladder, key), ladder.interval_of(key)
        shown = ci95 if ci95 and value and ci95[1] <= _FAR * value else None
        rows.append(LadderRow(key, label, meaning, value, shown, shares.get(key), reasons[key]))
    return rows


def ladder_caveats(rows: Iterable[LadderRow]) -> dict[str, str]:
    """Return the texts of a legend by the reasons why some rows are no evidence."""
    return hatches.with_further_reasons(row.reasons for row in rows if row.value is not None)


def _interval(row: Row | LedgerPart, rows: list[Row]) -> Cell:
    ci95 = readable_interval(row, rows)
    return Cell(ledger_scale(rows).interval(ci95), ci95[0] if ci95 else None)


def _rounded(row: Row, rows: list[Row]) -> tuple[Cell, Cell]:
    """Return time and interval of a row in the digits that its interval leaves meaning to."""
    unit, ci95 = ledger_scale(rows), readable_interval(row, rows)
    if row.ns is None or ci95 is None:
        signed = _is_change(row)
        return Cell(unit.text(row.ns, signed=signed), row.ns), Cell(numbers.UNKNOWN)
    shown = RoundedEstimate(row.ns / unit.per, [end / unit.per for end in ci95], against=0.0)
    sign = when(_is_change(row) and row.ns > 0, "+")
    return Cell(f"{sign}{shown.text}", row.ns), Cell(shown.interval, ci95[0])


def _ledger_cells(row: Row, rows: list[Row]) -> list[Cell]:
    """Return label, time, share of the dense wall, interval, noise and largest part of a row."""
    unit, dense = ledger_scale(rows), next((r.ns for r in rows if r.row == "dense"), None)
    is_change = _is_change(row)
    share = numbers.share_of(row.ns, dense)
    colour = when(is_change, row.effect)
    is_nothing = is_change and share is not None and abs(share) < _NOTHING
    # A row without evidence has no cause.
    part = None if is_nothing or row.effect == "quiet" else row.largest_part
    return [
        Cell(label_of(row), tone=colour),
        Cell(unit.text(row.ns, signed=is_change), row.ns, tone=colour),
        Cell(numbers.percent(share, signed=is_change), share, tone=colour),
        _interval(row, rows),
        _noise(row, unit),
        Cell(part_text(part, unit) if part else ""),
    ]


def _is_change(row: Row) -> bool:
    return not row.is_wall and row.row != "promised"


def _noise(row: Row, unit: numbers.Scale) -> Cell:
    """Return `±0.11`; nothing where it is 0 by definition."""
    if row.noise_ns is None:
        return Cell(numbers.UNKNOWN)
    is_by_definition = row.row in NO_NOISE and not row.noise_ns
    return Cell("" if is_by_definition else f"±{unit.text(row.noise_ns)}", row.noise_ns)


def ledger_table(phase: Phase, *, rounded: bool = False) -> Table | None:
    """Return the ledger, one row per cause, in its order; None without one.

    Args:
        phase: The phase.
        rounded: Whether times have the digits of their intervals, and not those of their column.
    """
    rows = phase.ledger
    if not rows:
        return None
    unit = ledger_scale(rows).unit
    columns = [
        Column("row"),
        number("time", unit),
        number("of dense"),
        number("95 % interval", unit, drop=1),
        number("noise", unit),
        Column("largest part", drop=9, flexible=True, folds=True),
    ]
    cells = [_ledger_cells(row, rows) for row in rows]
    if rounded:
        for row, row_cells in zip(rows, cells, strict=True):
            row_cells[1], row_cells[3] = _rounded(row, rows)
    kind = phase.phase_kind.get("kind") if phase.phase_kind else None
    notes = ledger_notes(rows, decodes=kind != "forward")
    if disturbed := ledger_invalid_reasons(phase):
        notes.append(f"no row is evidence: {', '.join(disturbed)}")
    if gloss := glossed(rows):
        notes.append(gloss)
    return without_unknown(Table("ledger", "Ledger", columns, cells, notes))


def without_unknown(table: Table) -> Table:
    """Return the table without the columns of intervals and noise where no row has one."""
    known = [
        i
        for i, column in enumerate(table.columns)
        if column.title not in ("95 % interval", "noise")
        or any(row[i].value is not None for row in table.rows)
    ]
    rows = [[row[i] for i in known] for row in table.rows]
    return Table(table.id, table.title, [table.columns[i] for i in known], rows, table.notes)


def glossed(rows: list[Row]) -> str:
    """Return what the rows that moved mean, and noise, where a reader meets these words first."""
    words = [f"{label_of(row)}: {_GLOSS[row.row]}" for row in rows if row.row in _GLOSS and row.ns]
    if any(row.noise_ns for row in rows):
        words.append("noise: the same row for dense against dense")
    return "; ".join(words)


def ledger_notes(rows: list[Row], *, decodes: bool = True) -> list[str]:
    """Return the notes on rows that are no evidence or unknown.

    Args:
        rows: The ledger.
        decodes: Whether the model may decode tokens; a config gives the shapes of no other.
    """
    quiet = [
        label_of(row) for row in rows if _is_change(row) and row.ns and not is_beyond_noise(row)
    ]
    config = when(decodes, OF_A_CONFIG)
    is_explained = all(row.row != NOT_EXPLAINED for row in rows)
    why = WITHOUT_PEAKS if is_explained else WITHOUT_SHAPES.format(config=config)
    unknown = [label_of(row) for row in rows if row.ns is None]
    notes = [f"{', '.join(unknown)}: {why}"] if unknown else []
    why = "no evidence (inside twice the noise, or an interval that includes 0)"
    notes += [f"{why}: {', '.join(quiet)}"] if quiet else []
    if any(row.row in NO_NOISE and row.noise_ns == 0 for row in rows):
        notes.append("noise is not shown where it is 0 by definition (dense against dense)")
    return notes + interval_notes(rows)


def interval_notes(rows: list[Row]) -> list[str]:
    """Return why rows have no interval that is shown."""
    if all(row.ci95 is None for row in rows):
        return [NO_INTERVAL if any(row.noise_ns is not None for row in rows) else NEITHER]
    is_too_wide = any(row.ci95 and readable_interval(row, rows) is None for row in rows)
    return [TOO_WIDE] if is_too_wide else []


def parts_table(phase: Phase) -> Table | None:
    """Return every part of every ledger row, largest first within its row; None without parts."""
    rows = phase.ledger or []
    if not any(row.parts for row in rows):
        return None
    unit = ledger_scale(rows)
    parts = [
        (row, part) for row in rows for part in sorted(row.parts, key=lambda part: -abs(part.ns))
    ]

    def time(part: LedgerPart) -> Cell:
        return Cell(unit.text(part.ns, signed=True), part.ns, tone=part.effect)

    columns: Columns[tuple[Row, LedgerPart]] = [
        (Column("row"), lambda pair: label_of(pair[0])),
        (Column("part"), lambda pair: pair[1].name),
        (Column("role"), lambda pair: pair[1].role or numbers.UNKNOWN),
        (Column("class"), lambda pair: pair[1].cls or numbers.UNKNOWN),
        (number("time", unit.unit), lambda pair: time(pair[1])),
        (number("95 % interval", unit.unit), lambda pair: _interval(pair[1], rows)),
        (
            Column("evidence", flexible=True, folds=True),
            lambda pair: Cell("; ".join(pair[1].evidence), code=bool(pair[1].evidence)),
        ),
    ]
    return without_unknown(table_of("parts", "Parts of the ledger", parts, columns))


def ladder_table(phase: Phase, *, rounded: bool = False) -> Table | None:
    """Return the bounds with their intervals and the share of each that was realised.

    Args:
        phase: The phase.
        rounded: Whether ratios have the digits of their intervals.
    """
    rows = ladder_rows(phase)
    if not rows:
        return None
    columns: Columns[LadderRow] = [
        (Column("bound or measured ratio"), lambda row: row.label),
        (number("speedup"), lambda row: Cell(row.speedup(rounded=rounded), row.value)),
        (
            number("95 % interval"),
            lambda row: Cell(
                row.rounded_interval if rounded else row.interval,
                row.ci95[0] if row.ci95 else None,
            ),
        ),
        (number("share realised"), lambda row: Cell(numbers.percent(row.share), row.share)),
        (Column("meaning", drop=1), lambda row: row.meaning),
    ]
    invalid = dict.fromkeys(why for row in rows for why in row.reasons if why in INVALID)
    notes = [f"? {', '.join(invalid)}"] if invalid else []
    notes += ladder_notes(phase)
    return without_unknown(table_of("ladder", "Ladder", rows, columns, notes))


def marked(value: float | None, reasons: list[str], text: str = "") -> str:
    """Return a ratio as text, with a question mark where its times are no evidence.

    Args:
        value: The ratio.
        reasons: Why it is no evidence.
        text: The ratio as text, where that is not as `numbers.ratio` gives it.
    """
    is_invalid = value is not None and any(why in INVALID for why in reasons)
    return (text or numbers.ratio(value)) + when(is_invalid, " ?")


def ladder_notes(phase: Phase) -> list[str]:
    """Return why bounds have no interval that is shown, and why the speedup has none.

    Where neither the speedup nor the ledger has one, the ledger says it.
    """
    ladder = phase.ladder
    if ladder is None:
        return []
    rows = ladder_rows(phase)
    is_too_wide = any(row.ci95 is None and ladder.interval_of(row.key) for row in rows)
    notes = [TOO_WIDE] if is_too_wide else []
    if ladder.realised_ci95 is None and any(row.ci95 for row in phase.ledger or ()):
        notes.append(f"no interval of the speedup: {_why_no_interval(phase)}")
    return notes


def _why_no_interval(phase: Phase) -> str:
    """Return why the speedup has no interval although rows of the ledger have one."""
    steps = [phase.steps, len(phase.baseline.step_ns) if phase.baseline else phase.steps]
    if phase.sampled is not None:
        if any(len(side.samples) < 2 for side in phase.sampled):
            return "a side has one sample without the profiler; the ledger's are over its steps"
    elif min(steps) < _FEW_STEPS:  # of a report before 0.2.1: rows had intervals from two steps on
        return f"it takes five steps a side, and these have {' and '.join(map(str, steps))}"
    return "in some replicates a step takes no time"


def realised_shares(phase: Phase) -> dict[str, float]:
    """Return the share of each bound that was realised, by name.

    There are none where the ratio is no speedup or its times are not valid, and none of bounds by
    FLOPs in two number formats, which go at two rates.
    """
    ladder = phase.ladder
    if ladder is None or not phase.is_speedup or phase.invalid_times:
        return {}
    by_flops = {"flop", "coverage"} if phase.has_promise else {"flop", "coverage", "nominal"}
    shares = {
        name: numbers.share_of(ladder.realised, getattr(ladder, name))
        for name in shown_bounds(ladder)
        if not (phase.has_two_formats and name in by_flops)
    }
    return {name: share for name, share in shares.items() if share is not None}
