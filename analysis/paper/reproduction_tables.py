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


def reproduction(result: Reproduction) -> Sheet:
    """Return the differences in set-up, a table for each figure of the paper, and notes."""
    return Sheet(_parts(result))


def _parts(result: Reproduction) -> Iterator[Line | Table]:
    yield Line(f"Against {result.source}")
    if result.differences:
        columns: Columns[SetupDifference] = [
            (Column("setting"), lambda setting: setting.name),
            (Column("paper", flexible=True, folds=True), lambda setting: setting.paper),
            (Column("here", flexible=True, folds=True), lambda setting: setting.ours),
        ]
        yield table_of("setup", "What differs in set-up", result.differences, columns)
    for figure, quantity in QUANTITIES.items():
        values = [value for value in result.values if value.figure == figure]
        if values:
            yield _table(figure, quantity, values)
    yield from map(Line, result.notes)


def _table(figure: str, quantity: str, values: list[ReproducedValue]) -> Table:
    """Return a row for each published number; columns that no row fills are left out."""
    form: Callable[[float], str] = percent if figure in _SHARES else "{:.2f}".format
    columns: Columns[ReproducedValue] = [
        (Column("of"), lambda value: value.name),
        (Column("phase"), lambda value: value.phase or ""),
        (number("batch"), lambda value: _text(value.batch)),
        (number("tokens"), lambda value: _text(value.prompt_len)),
        (number("s", drop=3), lambda value: _text(value.sparsity)),
        (number("at"), lambda value: value.at or ""),
        (number("published"), lambda value: form(value.published)),
        (number("predicted"), lambda x: "" if x.predicted is None else form(x.predicted)),
        (number("range", drop=2), lambda value: _ends(value.predicted_range, form)),
        (number("ours"), lambda value: _ours(value, form)),
        (number("95 %", drop=2), lambda value: _ends(value.ours_ci95, form)),
        (number("bound"), lambda value: "" if value.bound is None else form(value.bound)),
        (Column("ours at", drop=1), lambda value: value.where or ""),
        (Column("lacks", drop=1), lambda value: "; ".join(value.missing or ())),
    ]
    filled = [(column, shown) for column, shown in columns if any(map(shown, values))]
    return table_of(figure, f"{figure}: {quantity}", values, filled)


def _text(value: float | int | None) -> str:
    return "" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:g}"


def _ours(value: ReproducedValue, form: Callable[[float], str]) -> str:
    """Return our value, marked where its times are not valid; empty next to a predicted one."""
    if value.ours is None:
        return "" if value.predicted is not None else UNKNOWN
    return form(value.ours) + (" ?" if value.timing_valid is False else "")


def _ends(ends: list[float] | None, form: Callable[[float], str]) -> str:
    return interval(ends, form) if ends else ""
