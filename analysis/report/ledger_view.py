"""Ledger and ladder as tables and bars: in, a Phase of the Report; out, rows in the order in which
they are read, in ns and as text with units, unescaped.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from msgspec import UNSET

from prunescope.analysis.report import evidence, numbers
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

NOT_EXPLAINED = "not_explained"  # only where no shapes are known
# Rows of the ledger in order: label and meaning.
LEDGER = {
    "dense": ("dense, measured", "wall time of a step of the dense model"),
    "promised": ("promised", "dense × (1 − sparsity): what the sparsity promises"),
    "coverage": ("coverage", "time that pruning did not touch, or touched less than promised"),
    "roofline_shift": ("roofline shift", "FLOPs fell, bytes did not: memory-bound kernels"),
    "shape": ("shape", "tiles, waves and alignment of the new dimensions"),
    "kernel_efficiency": ("kernel efficiency", "the rest of the kernels' slowdown or speedup"),
    "added_work": ("added work", "kernels only the pruned model has: routers, gathers, casts"),
    "launch_idle": ("launch and idle", "the device waits: more or longer gaps between kernels"),
    NOT_EXPLAINED: ("not explained", "the sum of the unknown rows above"),
    "pruned": (
        "pruned, measured",
        "wall time of the pruned model: promised plus the rows below it",
    ),
}
WITHOUT_SHAPES = (
    "unknown without shapes; {config}record_shapes=True records them (torch's profile, or "
    "emit_nvtx for Nsight Systems)"
)
OF_A_CONFIG = "--model CONFIG gives those of a decoder on a GPU, and "
WITHOUT_PEAKS = (
    "unknown without the peaks of the device (--device, or --peak and --bandwidth) and the bytes "
    "and FLOPs of its kernels"
)
TOTALS = frozenset({"dense", "pruned"})  # walls; the rows between are changes

# Rows that are 0 for dense against dense whatever was measured: their noise is of no use.
NO_NOISE = frozenset({"coverage", "roofline_shift", "shape", "added_work"})

# Bounds of the ladder in order: field, label, and what the bound assumes.
LADDER = {
    "nominal": ("nominal", "1/(1 − s), or the FLOP ratio where no sparsity was given"),
    "flop": ("FLOP ratio", "dense FLOPs ÷ pruned FLOPs"),
    "coverage": ("coverage bound", "kernels speed up by their FLOPs, the gaps stay"),
    "roofline": ("roofline bound", "kernels speed up by their roofline time"),
    "busy": ("kernel (busy)", "measured kernel time, without gaps"),
    "realised": ("realised", "measured wall time"),
}
# Of a family that keeps FLOPs: what it promises instead, and what of that this batch shows.
_INSTEAD = {
    "parameters": ("parameters", "dense parameters ÷ pruned parameters: memory, no time by itself"),
    "gemms": (
        "parameters in GEMMs",
        "dense ÷ pruned numbers of the weights of GEMMs, embeddings and norms left out: memory",
    ),
    "bytes": ("bytes", "dense bytes ÷ pruned bytes of a step, at this batch"),
}


def label_of(row: Row) -> str:
    """The name of a row of the ledger to readers."""
    return LEDGER.get(row.row, (row.row, ""))[0]


@dataclass(frozen=True, slots=True)
class WaterfallBar:
    """A bar of the waterfall: its ends as shares 0..1 of the plotted range, and its tone."""

    start: float
    end: float
    tone: str  # "total" | "promise" | "loss" | "gain" | "quiet"


_NOTHING = 0.0005  # of the dense wall: a row that reads 0.0 % has no part to name
_VISIBLE = 0.005  # of an axis one column wide: the width of the line that draws an interval
_FAR = 10.0  # times the longer wall: an interval that reaches further is too wide to show
NO_INTERVAL = (
    "no intervals: one side has fewer than five steps, or steps of only one of its placements, or "
    "its steps differ too much"
)
TOO_WIDE = "intervals too wide to be of use are not shown: more placements narrow them"
NEITHER = "no interval and no noise: they need more than one step"


def tone(row: Row) -> str:
    """Whether a row is a loss, a gain, a total, the promise, or quiet: no evidence."""
    if row.row in TOTALS:
        return "total"
    if row.row == "promised":
        return "promise"
    if not row.ns or not is_beyond_noise(row):
        return "quiet"
    return "loss" if row.moves_ns > 0 else "gain"


def waterfall(rows: list[Row]) -> tuple[list[WaterfallBar], tuple[float, float]]:
    """Bars for the rows of a ledger, and the plotted range in ns, which need not start at 0."""
    ends = list(_ends(rows))
    low = min(min(pair) for pair in ends)
    high = max(max(pair) for pair in ends)
    room = 0.04 * (high - low) or 0.01 * high or 1.0
    low, high = low - room, high + room
    bars = [
        WaterfallBar((a - low) / (high - low), (b - low) / (high - low), tone(row))
        for row, (a, b) in zip(rows, ends, strict=True)
    ]
    return bars, (low, high)


def _ends(rows: Iterable[Row]) -> Iterable[tuple[float, float]]:
    level = 0.0
    for row in rows:
        moves = row.moves_ns
        if row.row in TOTALS:
            yield moves, moves
        elif row.row == "promised":
            level = moves
            yield moves, moves
        else:
            yield level, level + moves
            level += moves


def largest(row: Row) -> LedgerPart | None:
    """The part that moved a row most."""
    return max(row.parts, key=lambda part: abs(part.ns), default=None)


def part_text(part: LedgerPart, unit: numbers.Scale) -> str:
    """`name +1.234 ms: evidence`."""
    evidence = f": {part.evidence[0]}" if part.evidence else ""
    return f"{part.name} {unit.text(part.ns, signed=True)} {unit.unit}{evidence}"


def ledger_scale(rows: list[Row]) -> numbers.Scale:
    """The unit of a ledger: that of its walls."""
    return numbers.scale(row.moves_ns for row in rows)


def readable_interval(row: Row | LedgerPart | OverheadPart, rows: list[Row]) -> list[float] | None:
    """The interval of a row or part; None where there is none, or where it is too wide to be of
    use: a wall below zero, or an end beyond ten times the longer wall."""
    if not row.ci95:
        return None
    longest = max((abs(r.moves_ns) for r in rows if r.row in TOTALS), default=0.0)
    is_wall = isinstance(row, Row) and row.row in TOTALS
    too_wide = max(map(abs, row.ci95)) > _FAR * longest or (is_wall and row.ci95[0] < 0)
    return None if too_wide else row.ci95


def is_visible(ci95: list[float] | None, across: float) -> bool:
    """Whether an interval is a mark on an axis of length `across`, and no dot."""
    return ci95 is not None and ci95[1] - ci95[0] > _VISIBLE * across


def shown_bounds(ladder: Ladder) -> dict[str, tuple[str, str]]:
    """LADDER, with parameters and bytes next to the FLOPs where the family keeps these."""
    has = ladder.parameters is not UNSET
    counted = "gemms" if ladder.parameters_of == "gemms" else "parameters"
    out: dict[str, tuple[str, str]] = {}
    for name, words in LADDER.items():
        out |= {"parameters": _INSTEAD[counted]} if name == "flop" and has else {}
        out[name] = words
        out |= {"bytes": _INSTEAD["bytes"]} if name == "flop" and has else {}
    return out


@dataclass(frozen=True, slots=True)
class LadderRow:
    """A bound of the ladder, or a measured ratio, as every format shows it. `ci95`: None where it
    is too wide, with an end beyond ten times the bound; `share`: of it that was realised;
    `reasons`: why it is no evidence."""

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

    @property
    def low(self) -> float | None:
        """The lower end of the interval."""
        return self.ci95[0] if self.ci95 else None

    @property
    def is_measured(self) -> bool:
        """Whether it is no bound."""
        return self.key in MEASURED


def ladder_rows(phase: Phase) -> list[LadderRow]:
    """The ladder in order; empty without one."""
    ladder = phase.ladder
    if ladder is None:
        return []
    shares, reasons, found = realised_shares(phase), evidence.of_bounds(phase), []
    for key, (label, meaning) in shown_bounds(ladder).items():
        value, ci95 = getattr(ladder, key), ladder.interval_of(key)
        shown = ci95 if ci95 and value and ci95[1] <= _FAR * value else None
        found.append(LadderRow(key, label, meaning, value, shown, shares.get(key), reasons[key]))
    return found


def ladder_caveats(rows: Iterable[LadderRow]) -> dict[str, str]:
    """Why some of them are no evidence, with the words of a legend."""
    return evidence.with_further_reasons(row.reasons for row in rows if row.value is not None)


def _interval(row: Row | LedgerPart, rows: list[Row]) -> Cell:
    ci95 = readable_interval(row, rows)
    return Cell(ledger_scale(rows).interval(ci95), ci95[0] if ci95 else None)


def _ledger_cells(row: Row, rows: list[Row]) -> list[Cell]:
    """Label, time, % of the dense wall, interval, noise and largest part of a row."""
    unit, dense = ledger_scale(rows), next((r.ns for r in rows if r.row == "dense"), None)
    signed = row.row not in TOTALS and row.row != "promised"
    share = numbers.share_of(row.ns, dense)
    colour = tone(row) if signed else ""
    is_nothing = signed and share is not None and abs(share) < _NOTHING
    part = None if is_nothing else largest(row)
    return [
        Cell(label_of(row), tone=colour),
        Cell(unit.text(row.ns, signed=signed), row.ns, tone=colour),
        Cell(numbers.percent(share, signed=signed), share, tone=colour),
        _interval(row, rows),
        _noise(row, unit),
        Cell(part_text(part, unit) if part else ""),
    ]


def _noise(row: Row, unit: numbers.Scale) -> Cell:
    """`±0.11`; nothing where it is 0 by definition."""
    if row.noise_ns is None:
        return Cell(numbers.UNKNOWN)
    by_definition = row.row in NO_NOISE and not row.noise_ns
    return Cell("" if by_definition else f"±{unit.text(row.noise_ns)}", row.noise_ns)


def ledger_table(phase: Phase) -> Table | None:
    """The ledger: one row per cause, in its order; intervals and noise only where one is known."""
    rows = phase.ledger
    if not rows:
        return None
    unit = ledger_scale(rows).unit
    columns = [
        Column("row"),
        Column("time", unit, numeric=True),
        Column("of dense", numeric=True),
        Column("95 % interval", unit, numeric=True, drop=1),
        Column("noise", unit, numeric=True),
        Column("largest part", drop=9, flexible=True, folds=True),
    ]
    cells = [_ledger_cells(row, rows) for row in rows]
    kind = phase.phase_kind.get("kind") if phase.phase_kind else None
    notes = ledger_notes(rows, decodes=kind != "forward")
    if disturbed := evidence.why_no_row(phase):
        notes.append(f"no row is evidence: {', '.join(disturbed)}")
    return without_unknown(Table("ledger", "Ledger", columns, cells, notes))


def without_unknown(table: Table) -> Table:
    """The table without interval and noise where no row has one."""
    known = [
        i
        for i, column in enumerate(table.columns)
        if column.title not in ("95 % interval", "noise")
        or any(row[i].value is not None for row in table.rows)
    ]
    rows = [[row[i] for i in known] for row in table.rows]
    return Table(table.id, table.title, [table.columns[i] for i in known], rows, table.notes)


def ledger_notes(rows: list[Row], *, decodes: bool = True) -> list[str]:
    """Notes on rows that are no evidence or unknown. `decodes`: the model may decode tokens; a
    config tells the shapes of no other."""
    changes = (row for row in rows if row.row not in TOTALS and row.row != "promised")
    quiet = [label_of(row) for row in changes if row.ns and not is_beyond_noise(row)]
    explained = all(row.row != NOT_EXPLAINED for row in rows)
    config = OF_A_CONFIG * decodes
    why = WITHOUT_PEAKS if explained else WITHOUT_SHAPES.format(config=config)
    unknown = [label_of(row) for row in rows if row.ns is None]
    notes = [f"{', '.join(unknown)}: {why}"] if unknown else []
    why = "no evidence (inside twice the noise, or an interval that includes 0)"
    notes += [f"{why}: {', '.join(quiet)}"] if quiet else []
    if any(row.row in NO_NOISE and row.noise_ns == 0 for row in rows):
        notes.append("noise is not shown where it is 0 by definition (dense against dense)")
    return notes + interval_notes(rows)


def interval_notes(rows: list[Row]) -> list[str]:
    """Why rows have no interval that is shown."""
    if all(row.ci95 is None for row in rows):
        return [NO_INTERVAL if any(row.noise_ns is not None for row in rows) else NEITHER]
    return [TOO_WIDE] * any(row.ci95 and readable_interval(row, rows) is None for row in rows)


def parts_table(phase: Phase) -> Table | None:
    """Every part of every ledger row, largest first within its row."""
    rows = phase.ledger or []
    if not any(row.parts for row in rows):
        return None
    unit = ledger_scale(rows)
    parts = [(row, part) for row in rows for part in sorted(row.parts, key=lambda p: -abs(p.ns))]

    def time(part: LedgerPart) -> Cell:
        is_quiet = not part.ns or not is_beyond_noise(part)
        colour = "quiet" if is_quiet else "loss" if part.ns > 0 else "gain"
        return Cell(unit.text(part.ns, signed=True), part.ns, tone=colour)

    columns: Columns[tuple[Row, LedgerPart]] = [
        (Column("row"), lambda one: label_of(one[0])),
        (Column("part"), lambda one: one[1].name),
        (Column("role"), lambda one: one[1].role or numbers.UNKNOWN),
        (Column("class"), lambda one: one[1].cls or numbers.UNKNOWN),
        (number("time", unit.unit), lambda one: time(one[1])),
        (number("95 % interval", unit.unit), lambda one: _interval(one[1], rows)),
        (
            Column("evidence", flexible=True, folds=True),
            lambda one: Cell("; ".join(one[1].evidence), code=bool(one[1].evidence)),
        ),
    ]
    return without_unknown(table_of("parts", "Parts of the ledger", parts, columns))


def ladder_table(phase: Phase) -> Table | None:
    """The bounds of the ladder with their intervals and the share of each that was realised."""
    rows = ladder_rows(phase)
    if not rows:
        return None
    columns: Columns[LadderRow] = [
        (Column("bound or measured ratio"), lambda row: row.label),
        (number("speedup"), lambda row: Cell(marked(row.value, row.reasons), row.value)),
        (number("95 % interval"), lambda row: Cell(row.interval, row.low)),
        (number("share realised"), lambda row: Cell(numbers.percent(row.share), row.share)),
        (Column("meaning", drop=1), lambda row: row.meaning),
    ]
    words = dict.fromkeys(why for row in rows for why in row.reasons if why in evidence.INVALID)
    notes = [f"? {', '.join(words)}"] if words else []
    notes += ladder_notes(phase)
    return without_unknown(table_of("ladder", "Ladder", rows, columns, notes))


def marked(value: float | None, reasons: list[str]) -> str:
    """A ratio as text, with a question mark where its times are no evidence."""
    invalid = any(why in evidence.INVALID for why in reasons)
    return numbers.ratio(value) + " ?" * (invalid and value is not None)


def ladder_notes(phase: Phase) -> list[str]:
    """Why a bound has no interval that is shown, and why the speedup has none where rows of the
    ledger have one. (Where neither has, the ledger says it.)"""
    ladder = phase.ladder
    if ladder is None:
        return []
    rows = ladder_rows(phase)
    notes = [TOO_WIDE] * any(row.ci95 is None and ladder.interval_of(row.key) for row in rows)
    if ladder.realised_ci95 is None and any(row.ci95 for row in phase.ledger or ()):
        notes.append(f"no interval of the speedup: {_why_none(phase)}")
    return notes


def _why_none(phase: Phase) -> str:
    steps = [phase.steps, len(phase.baseline.step_ns) if phase.baseline else phase.steps]
    if phase.sampled is not None:
        few = min(len(side.samples) for side in phase.sampled)
        if few < 2:
            return "a side has one sample without the profiler; the ledger's are over its steps"
    elif min(steps) < 5:  # of a report before 0.2.1: rows had intervals from two steps on
        return f"it takes five steps a side, and these have {' and '.join(map(str, steps))}"
    return "in some replicates a step takes no time"


def realised_shares(phase: Phase) -> dict[str, float]:
    """The share of each bound that was realised, by name. None of any where the ratio is no speedup
    or its times are not valid; none of FLOPs in two number formats, which go at two rates."""
    ladder = phase.ladder
    if ladder is None or not phase.is_speedup or phase.invalid_times:
        return {}
    two_rates = phase.comparison is not None and phase.comparison.formats is not None
    by_flops = ["flop", "coverage"]
    by_flops += ["nominal"] * (phase.sparsity.get("nominal") is None)
    found = {
        name: numbers.share_of(ladder.realised, getattr(ladder, name))
        for name in shown_bounds(ladder)
        if not (two_rates and name in by_flops)
    }
    return {name: share for name, share in found.items() if share is not None}
