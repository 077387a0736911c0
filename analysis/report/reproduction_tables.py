"""A paper's numbers beside ours as text: in, a Reproduction; out, tables for a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prunescope.analysis.report.numbers import UNKNOWN, percent
from prunescope.analysis.report.sheet import Line, Sheet
from prunescope.analysis.report.view import Cell, Column, Table
from prunescope.analysis.schema.reproduction import ReproducedValue, Reproduction
from prunescope.taxonomy.paper import FIGURE_2, QUANTITIES, TASKS

_SHARES = (FIGURE_2, TASKS)


def reproduction(found: Reproduction) -> Sheet:
    """The differences in set-up, a table a figure, and notes."""
    return Sheet(_parts(found))


def _parts(found: Reproduction) -> Iterator[Line | Table]:
    yield Line(f"Against {found.source}")
    if found.differences:
        rows = [[Cell(one.name), Cell(one.paper), Cell(one.ours)] for one in found.differences]
        columns = [
            Column("setting"),
            Column("paper", flexible=True, folds=True),
            Column("here", flexible=True, folds=True),
        ]
        yield Table("setup", "What differs in set-up", columns, rows)
    for figure, quantity in QUANTITIES.items():
        values = [one for one in found.values if one.figure == figure]
        if values:
            yield _table(figure, quantity, values)
    yield from (Line(note) for note in found.notes)


def _table(figure: str, quantity: str, values: list[ReproducedValue]) -> Table:
    """A row a number; columns that no row fills are left out."""
    form = _share if figure in _SHARES else "{:.2f}".format
    columns: list[tuple[Column, Callable[[ReproducedValue], str]]] = [
        (Column("of"), lambda one: one.name),
        (Column("phase"), lambda one: one.phase or ""),
        (Column("batch", numeric=True), lambda one: _text(one.batch)),
        (Column("tokens", numeric=True), lambda one: _text(one.prompt_len)),
        (Column("s", numeric=True, drop=3), lambda one: _text(one.sparsity)),
        (Column("at", numeric=True), lambda one: one.at or ""),
        (Column("published", numeric=True), lambda one: form(one.published)),
        (Column("predicted", numeric=True), lambda one: _known(one.predicted, form)),
        (Column("range", numeric=True, drop=2), lambda one: _ends(one.predicted_range, form)),
        (Column("ours", numeric=True), lambda one: _ours(one, form)),
        (Column("95 %", numeric=True, drop=2), lambda one: _ends(one.ours_ci95, form)),
        (Column("bound", numeric=True), lambda one: _known(one.bound, form)),
        (Column("ours at", drop=1), lambda one: one.where or ""),
        (Column("lacks", drop=1), lambda one: "; ".join(one.missing or ())),
    ]
    filled = [(column, [text(one) for one in values]) for column, text in columns]
    filled = [(column, texts) for column, texts in filled if any(texts)]
    rows = [
        [Cell(text) for text in row] for row in zip(*(texts for _, texts in filled), strict=True)
    ]
    return Table(figure, f"{figure}: {quantity}", [column for column, _ in filled], rows)


def _share(value: float) -> str:
    return percent(value)


def _text(value: float | int | None) -> str:
    return "" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:g}"


def _known(value: float | None, form: Callable[[float], str]) -> str:
    return "" if value is None else form(value)


def _ours(one: ReproducedValue, form: Callable[[float], str]) -> str:
    if one.ours is None:
        return "" if one.predicted is not None else UNKNOWN
    return form(one.ours) + (" ?" if one.timing_valid is False else "")


def _ends(ends: list[float] | None, form: Callable[[float], str]) -> str:
    return f"[{form(ends[0])}, {form(ends[1])}]" if ends else ""
