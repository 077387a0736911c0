"""A paper's numbers next to ours as text: in, a Reproduction; out, tables for a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prunescope.analysis.report.sheet import Line, Sheet
from prunescope.analysis.report.view import Column, Columns, Table, number, table_of
from prunescope.analysis.schema.reproduction import (
    ReproducedValue,
    Reproduction,
    SetupDifference,
)
from prunescope.taxonomy.numbers import UNKNOWN, interval, percent
from prunescope.taxonomy.paper import FIGURE_2, QUANTITIES, TASKS

_SHARES = (FIGURE_2, TASKS)


def reproduction(found: Reproduction) -> Sheet:
    """The differences in set-up, a table a figure, and notes."""
    return Sheet(_parts(found))


def _parts(found: Reproduction) -> Iterator[Line | Table]:
    yield Line(f"Against {found.source}")
    if found.differences:
        columns: Columns[SetupDifference] = [
            (Column("setting"), lambda one: one.name),
            (Column("paper", flexible=True, folds=True), lambda one: one.paper),
            (Column("here", flexible=True, folds=True), lambda one: one.ours),
        ]
        yield table_of("setup", "What differs in set-up", found.differences, columns)
    for figure, quantity in QUANTITIES.items():
        values = [one for one in found.values if one.figure == figure]
        if values:
            yield _table(figure, quantity, values)
    yield from (Line(note) for note in found.notes)


def _table(figure: str, quantity: str, values: list[ReproducedValue]) -> Table:
    """A row a number; columns that no row fills are left out."""
    form: Callable[[float], str] = percent if figure in _SHARES else "{:.2f}".format
    columns: Columns[ReproducedValue] = [
        (Column("of"), lambda one: one.name),
        (Column("phase"), lambda one: one.phase or ""),
        (number("batch"), lambda one: _text(one.batch)),
        (number("tokens"), lambda one: _text(one.prompt_len)),
        (number("s", drop=3), lambda one: _text(one.sparsity)),
        (number("at"), lambda one: one.at or ""),
        (number("published"), lambda one: form(one.published)),
        (number("predicted"), lambda one: "" if one.predicted is None else form(one.predicted)),
        (number("range", drop=2), lambda one: _ends(one.predicted_range, form)),
        (number("ours"), lambda one: _ours(one, form)),
        (number("95 %", drop=2), lambda one: _ends(one.ours_ci95, form)),
        (number("bound"), lambda one: "" if one.bound is None else form(one.bound)),
        (Column("ours at", drop=1), lambda one: one.where or ""),
        (Column("lacks", drop=1), lambda one: "; ".join(one.missing or ())),
    ]
    filled = [(column, shown) for column, shown in columns if any(map(shown, values))]
    return table_of(figure, f"{figure}: {quantity}", values, filled)


def _text(value: float | int | None) -> str:
    return "" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:g}"


def _ours(one: ReproducedValue, form: Callable[[float], str]) -> str:
    if one.ours is None:
        return "" if one.predicted is not None else UNKNOWN
    return form(one.ours) + (" ?" if one.timing_valid is False else "")


def _ends(ends: list[float] | None, form: Callable[[float], str]) -> str:
    return interval(ends, form) if ends else ""
