"""What a dynamic family pays to skip work, as a table: in, a Phase; out, a Table, unescaped."""

from __future__ import annotations

from prunescope.analysis.report import numbers
from prunescope.analysis.report.view import Cell, Column, Table
from prunescope.analysis.schema.report import Overhead, OverheadPart, Phase


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
        Column("what", drop=1),
        Column("largest part", flexible=True, drop=2),
    ]
    rows = [_row(part, unit) for part in shown]
    dense = next((row.ns for row in phase.ledger or [] if row.row == "dense"), None)
    total = OverheadPart(
        name="added in all",
        ns=found.added_ns,
        added=True,
        share=numbers.share_of(found.added_ns, dense),
    )
    rows.append(_row(total, unit))
    name = phase.family.id if phase.family else "the dynamic family"
    return Table("overhead", f"Overhead of {name}", columns, rows, [_break_even(found)])


def _row(part: OverheadPart, unit: numbers.Scale) -> list[Cell]:
    return [
        Cell(part.name),
        Cell(unit.text(part.ns), part.ns),
        Cell(numbers.percent(part.share), part.share),
        Cell("added" if part.added else "not saved"),
        Cell("; ".join(part.evidence)),
    ]


def _break_even(found: Overhead) -> str:
    """Where gain equals overhead, in a sentence."""
    if found.break_even is None:
        return f"no break-even: {found.why}"
    at = numbers.percent(found.break_even)
    if found.break_even_ci95 is not None:
        low, high = found.break_even_ci95
        # An end that is unknown lies where nothing ever pays.
        most = "never" if high is None else numbers.percent(high)
        least = "never" if low is None else numbers.percent(low)
        at += f" [{least}, {most}]"
    here = "" if found.sparsity is None else f"; here {numbers.percent(found.sparsity)} are gone"
    return (
        f"gain equals overhead where {at} of the FLOPs that the family touches are gone{here} "
        "(gain taken as proportional to them, gather and scatter to what is kept, the rest as "
        "constant)"
    )
