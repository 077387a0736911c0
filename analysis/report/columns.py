"""A Table fitted into a terminal's width: columns that may go do, flexible ones are cut; in, a
Table and the number of character cells; out, a rich grid whose lines never wrap.
"""

from __future__ import annotations

from collections.abc import Callable

from rich.cells import cell_len
from rich.table import Table as Grid
from rich.text import Text

from prunescope.analysis.report import escape
from prunescope.analysis.report.view import Cell, Column, Table

Ink = Callable[[str, str], Text]
STYLES = {"loss": "red", "gain": "green", "quiet": "dim", "total": "bold", "promise": "cyan"}
_LEAST = 36  # characters below which a cut name or evidence says nothing
_SHORT = {"compute": "comp", "memory": "mem", "latency": "lat", "unknown": "?"}


def kept_columns(table: Table, width: int) -> list[int]:
    """Indices of the columns that fit, dropping the highest `drop` first."""
    kept = list(range(len(table.columns)))
    widths = [_needed(table, i) for i in kept]
    while sum(widths[i] + 1 for i in kept) > width:
        loose = [i for i in kept if table.columns[i].drop]
        if not loose:
            break
        kept.remove(max(loose, key=lambda i: table.columns[i].drop))
    return kept


def shown_notes(table: Table, width: int) -> list[str]:
    """The notes of a table without those about columns of which none fits."""
    titles = {table.columns[i].title for i in kept_columns(table, width)}
    return [note for note in table.notes if not (n := table.needs.get(note)) or titles & {*n}]


def fitted(table: Table, width: int, ink: Ink) -> Grid:
    """The table as a grid of at most `width` cells; units stand in the table's title."""
    kept = kept_columns(table, width)
    fixed = [i for i in kept if not table.columns[i].flexible]
    left = width - sum(_width(table, i) + 1 for i in fixed) - 1
    grid = Grid(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for i in kept:
        column = table.columns[i]
        justify = "right" if column.numeric else "left"
        grid.add_column(
            ink(_head(column, first=i == 0), "dim"),
            justify="right" if justify == "right" else "left",
            no_wrap=True,
            overflow="crop",
        )
    for row in table.rows:
        grid.add_row(*(_inked(row[i], table.columns[i], left, ink, first=i == 0) for i in kept))
    return grid


def _inked(cell: Cell, column: Column, left: int, ink: Ink, *, first: bool) -> Text:
    text = _shown(cell, column)
    if cell.code and column.flexible:
        text = _shortened(escape.clean(text), max(left, 8) - first, ink)
    style = STYLES.get(cell.tone, "dim" if column.title == "largest part" else "")
    inked = ink(f" {text}" if first else text, style)
    if column.flexible:
        cut(inked, max(left, 8), ink)
    return inked


def cut(text: Text, width: int, ink: Ink) -> None:
    """Cuts a line to `width` cells in place, with a mark where something is left out."""
    if text.cell_len > width:
        mark = ink("…", "")
        text.truncate(max(width - mark.cell_len, 0), overflow="crop")
        text.append_text(mark)


def plain_name(text: str) -> str:
    """A kernel's name without the words that most names begin with."""
    return text.replace("void at::native::", "").replace("void ", "")


def _shortened(name: str, width: int, ink: Ink) -> str:
    """A kernel's name without its middle: templates begin alike, and end apart."""
    bare = plain_name(name)
    mark = ink("…", "").plain
    room = width - cell_len(mark)
    if cell_len(bare) <= width or room < 8 or not bare.isascii():
        return bare
    tail = room // 3
    return f"{bare[: room - tail]}{mark}{bare[-tail:]}"


def _shown(cell: Cell, column: Column) -> str:
    return _SHORT.get(cell.text, cell.text) if column.title == "bound" else cell.text


def _head(column: Column, *, first: bool) -> str:
    return f" {column.title}" if first else column.title


def _width(table: Table, i: int) -> int:
    column = table.columns[i]
    texts = [_head(column, first=i == 0)]
    texts += [_shown(row[i], column) + " " * (i == 0) for row in table.rows]
    return max(cell_len(text) for text in texts)


def _needed(table: Table, i: int) -> int:
    width = _width(table, i)
    return min(width, _LEAST) if table.columns[i].flexible else width
