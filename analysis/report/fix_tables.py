"""What `prunescope fix` prints: in, the Fixes; out, a table of repairs and what to do next."""

from __future__ import annotations

from collections.abc import Iterator

from prunescope.analysis.report.sheet import Line, Sheet
from prunescope.analysis.report.view import Cell, Column, Table, number, table_of
from prunescope.taxonomy import numbers
from prunescope.taxonomy.fixes import REPAIRS_FILE, Fixes, TriedRepair
from prunescope.taxonomy.words import plural

_LEFT = "nothing_to_change"


def fix_sheet(fixes: Fixes, where: str) -> Sheet:
    """Return the outcome, the table of repairs, the changed calls, and where the code is.

    Args:
        fixes: The result.
        where: The folder that repairs.py was written to.
    """
    return Sheet(_parts(fixes, where))


def _parts(fixes: Fixes, where: str) -> Iterator[Line | Table]:
    """Yield the parts of the sheet."""
    kept = [row for row in fixes.repairs if row.kept]
    tried = [row for row in fixes.repairs if row.outcome != _LEFT]
    yield Line(_outcome(fixes, kept), "bold")
    if fixes.before is not None and fixes.after is not None:
        phases = ", ".join(
            f"{name} {numbers.time(ns)} → {numbers.time(fixes.after.phases[name])}"
            for name, ns in fixes.before.phases.items()
        )
        yield Line(f"a step, median over placements, before and after in turns: {phases}", "dim")
    if tried:
        yield table_of("repairs", "Repairs", tried, _COLUMNS, [_NOTE])
    left = [row.id for row in fixes.repairs if row not in tried]
    if left:
        yield Line(f"advised, but nothing to change here: {', '.join(left)}", "dim")
    for row in kept:
        if row.call:
            yield Line(f"the call, for {row.id}:")
            yield from (Line(f"    {line}") for line in row.call.split("\n"))
    for note in fixes.notes:
        yield Line(f"note: {note}", "dim")
    if kept:
        yield Line(f"next: {where}/{REPAIRS_FILE} has repair(model), which needs torch alone")


def _outcome(fixes: Fixes, kept: list[TriedRepair]) -> str:
    """Return the outcome in a sentence."""
    if kept:
        speedup = f"{numbers.ratio(fixes.gain)} {numbers.ratios(fixes.ci95)}"
        names = ", ".join(row.id for row in kept)
        return f"{len(kept)} repair{plural(len(kept))} kept, {speedup} faster together: {names}"
    if any(row.outcome == "timing_not_valid" for row in fixes.repairs):
        return "Nothing is kept: the machine was disturbed, and no time is evidence."
    if fixes.before is None:
        return "Nothing is to be repaired."
    return "Nothing is kept: no repair is faster beyond noise with equal outputs."


def _outcome_of(row: TriedRepair) -> Cell:
    """Return whether a repair was kept, or why not."""
    on_top = f" on top of {', '.join(row.on_top_of)}" if row.on_top_of and row.kept else ""
    loss = "" if row.loss is None else f", loss {row.loss:.2g} nats"
    return Cell(f"kept{on_top}{loss}" if row.kept else f"{row.why or ''}{loss}")


def _difference_of(row: TriedRepair) -> Cell:
    """Return the difference of the outputs."""
    moved = row.difference
    return Cell(numbers.UNKNOWN if moved is None else f"{moved:.1e}", moved)


_NOTE = (
    "gain: time before ÷ after, with its 95 % interval over placements; difference: largest of the "
    "outputs, as a share of the largest output"
)
_COLUMNS = [
    (Column("repair"), lambda row: Cell(row.id)),
    (Column("finding", drop=3), lambda row: Cell(row.finding or numbers.UNKNOWN)),
    (
        number("predicted", drop=2),
        lambda row: Cell(numbers.ratio(row.predicted_gain), row.predicted_gain),
    ),
    (number("gain"), lambda row: Cell(numbers.ratio(row.gain), row.gain)),
    (number("interval", drop=1), lambda row: Cell(numbers.ratios(row.ci95))),
    (number("difference", drop=4), _difference_of),
    (Column("kept, or why not", flexible=True, folds=True), _outcome_of),
]
