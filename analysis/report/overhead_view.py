"""What a dynamic family pays to skip work, as a table: in, a Phase; out, a Table, unescaped."""

from __future__ import annotations

from prunescope.analysis.report import numbers
from prunescope.analysis.report.ledger_view import telling, without_unknown
from prunescope.analysis.report.view import Cell, Column, Table
from prunescope.analysis.schema.report import Overhead, OverheadPart, Phase, Row

_NONE = 0.0005  # a share that is shown as 0.0 %


def overhead_table(phase: Phase, *, brief: bool = False) -> Table | None:
    """A row a part; None where the phase has no overhead. `brief`: parts that were seen alone."""
    found = phase.overhead
    if found is None:
        return None
    shown = [part for part in found.parts if not brief or part.ns]
    unit = numbers.scale([part.ns for part in shown] + [found.added_ns])
    columns = [
        Column("part"),
        Column("time", unit.unit, numeric=True),
        Column("of dense step", numeric=True),
        Column("95 % interval", unit.unit, numeric=True, drop=1),
        Column("what", drop=2),
        Column("largest part", flexible=True, drop=3),
    ]
    ledger = phase.ledger or []
    rows = [_row(part, unit, ledger) for part in shown]
    dense = next((row.ns for row in ledger if row.row == "dense"), None)
    total = OverheadPart(
        name="added in all",
        ns=found.added_ns,
        added=True,
        share=numbers.share_of(found.added_ns, dense),
        ci95=found.added_ci95,
    )
    rows.append(_row(total, unit, ledger))
    known = phase.family is not None and phase.family.id != "unknown"
    name = phase.family.id if phase.family and known else "what decides at run time"
    table = Table("overhead", f"Overhead of {name}", columns, rows, [_break_even(found)])
    return without_unknown(table)


def _row(part: OverheadPart, unit: numbers.Scale, ledger: list[Row]) -> list[Cell]:
    ci95 = telling(part, ledger)
    return [
        Cell(part.name),
        Cell(unit.text(part.ns), part.ns),
        Cell(numbers.percent(part.share), part.share),
        Cell(unit.interval(ci95), ci95[0] if ci95 else None),
        Cell("added" if part.added else "not saved"),
        Cell("; ".join(part.evidence)),
    ]


def _break_even(found: Overhead) -> str:
    """Where gain equals overhead, in a sentence."""
    if found.break_even is None:
        return f"no break-even: {found.why}"
    if found.break_even_ci95 is not None and _says_nothing(*found.break_even_ci95):
        return (
            "break-even is not known: within the interval of these times it lies anywhere, or "
            "nowhere; more placements or repeats narrow it"
        )
    here = "" if found.sparsity is None else f"; here {numbers.percent(found.sparsity)} are gone"
    if found.break_even < _NONE and _interval(found.break_even_ci95) == "":
        return f"gain exceeds the overhead from the first FLOPs that go{here}"
    at = numbers.percent(found.break_even) + _interval(found.break_even_ci95)
    return (
        f"gain equals overhead where {at} of the FLOPs that the family touches are gone{here} "
        "(gain taken as proportional to them, gather and scatter to what is kept, the rest as "
        "constant)"
    )


def _says_nothing(low: float | None, high: float | None) -> bool:
    """Whether an interval holds everything from no sparsity on, and that none pays."""
    return high is None and (low is None or low < _NONE)


def _interval(ci95: list[float | None] | None) -> str:
    """` [8.0 %, 13.0 %]`; an upper end that is unknown lies where nothing ever pays."""
    low, high = ci95 or (None, None)
    if low is None or (high is not None and high < _NONE):
        return ""
    if high is None:
        return f" ({numbers.percent(low)} at least, and it may never pay)"
    return f" [{numbers.percent(low)}, {numbers.percent(high)}]"
