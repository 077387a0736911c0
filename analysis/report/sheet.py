"""Lines and tables on a terminal.

In: Tables and text. Out: rich renderables no wider than the terminal. Columns that may be dropped
are dropped first; in flexible columns names are shortened in the middle and prose is wrapped. No
number is cut. Every string is printed as `Text`, never as markup, with control characters escaped,
and in ASCII if that is the console's encoding.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from msgspec import Struct
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.padding import Padding
from rich.table import Table as Grid
from rich.text import Text

from prunescope.analysis.report import escape
from prunescope.analysis.report.view import Cell, Column, Table

STYLES = {
    "best": "bold",
    "loss": "red",
    "gain": "green",
    "quiet": "dim",
    "total": "bold",
    "promise": "cyan",
}
_LEAST = 36  # fewest useful characters of a cut name or evidence: else dropped, if it may be
_LEAST_FOLDED = 16  # fewest characters of a line of a wrapped column that may not be dropped
_OF_NUMBERS = "0123456789.,"
_SHORT = {"compute": "comp", "memory": "mem", "latency": "lat", "unknown": "?"}


class Line(Struct, frozen=True):
    """A line of text, in a style of rich."""

    text: str
    style: str = ""


class Sheet:
    """Lines and tables as one rich renderable, for a console of any width and encoding."""

    def __init__(self, parts: Iterable[Line | Table]) -> None:
        self.parts = list(parts)

    def __rich_console__(self, _console: Console, options: ConsoleOptions) -> RenderResult:
        page = Page(options.max_width, ascii_only=options.ascii_only)
        for part in self.parts:
            if isinstance(part, Line):
                yield page.ink(part.text, part.style)
                continue
            yield page.section(part.title) if part.title else Text("")
            yield from page.table(part)


class Page:
    """The width and encoding of a terminal."""

    def __init__(self, width: int, *, ascii_only: bool) -> None:
        self.width = width
        self.ascii_only = ascii_only

    def ink(self, text: str, style: str = "") -> Text:
        """Return a string as the console may show it: the only way by which one gets there."""
        plain = escape.clean(text)
        return Text(escape.ascii_only(plain) if self.ascii_only else plain, style=style)

    def section(self, title: str) -> RenderableType:
        """Return a heading with an empty line above."""
        return Padding(self.ink(title, "bold"), (1, 0, 0, 0))

    def notes(self, notes: Iterable[str]) -> Iterator[RenderableType]:
        """Yield notes below a table."""
        for note in notes:
            yield Padding(self.ink(note, "dim"), (0, 0, 0, 1))

    def table(self, table: Table) -> Iterator[RenderableType]:
        """Yield a table without its title, the notes about columns that fit, and which do not."""
        yield from self.fitted(table)
        yield from self.notes(shown_notes(table, self.width))
        kept = kept_columns(table, self.width)
        if left := [c.title for i, c in enumerate(table.columns) if i not in kept and c.title]:
            yield from self.notes([f"a wider terminal also shows: {', '.join(left)}"])

    def fitted(self, table: Table) -> Iterator[Grid]:
        """Yield the table as grids of at most the page's width, one below the other.

        It takes several where the columns that stay do not fit next to each other. Units stand in
        the table's title.
        """
        for columns in column_groups(table, self.width):
            yield self._grid_of(table, columns)

    def _grid_of(self, table: Table, kept: Sequence[int]) -> Grid:
        fixed = [i for i in kept if not table.columns[i].flexible]
        left = self.width - sum(_width(table, i) + 1 for i in fixed) - 1
        grid = Grid(box=None, padding=(0, 1, 0, 0), pad_edge=False)
        for i in kept:
            column = table.columns[i]
            grid.add_column(
                self.ink(_head(column, first=i == 0), "dim"),
                justify="right" if column.numeric else "left",
                no_wrap=not column.folds,
                overflow="fold" if column.folds else "crop",
                max_width=max(left, _LEAST_FOLDED) if column.folds else None,
            )
        for row in table.rows:
            cells = (self._cell(row[i], table.columns[i], left, first=i == 0) for i in kept)
            grid.add_row(*cells)
        return grid

    def _cell(self, cell: Cell, column: Column, left: int, *, first: bool) -> Text:
        text = _shown(cell, column)
        if column.folds:
            words = escape.clean(text).split(" ")
            text = " ".join(self._shortened(word, max(left, _LEAST_FOLDED)) for word in words)
        elif cell.code and column.flexible:
            text = self._shortened(escape.clean(text), max(left, 8) - first)
        style = STYLES.get(cell.tone, "dim" if column.title == "largest part" else "")
        inked = self.ink(f" {text}" if first else text, style)
        return self.cut(inked, max(left, 8)) if column.flexible and not column.folds else inked

    def cut(self, text: Text, width: int | None = None) -> Text:
        """Cut a line to `width` cells, or to the page, with a mark where something is missing."""
        width = self.width if width is None else width
        if text.cell_len > width:
            mark = self.ink("…")
            text.truncate(max(width - mark.cell_len, 0), overflow="crop")
            text.right_crop(len(text) - len(text.plain.rstrip(_OF_NUMBERS)))
            text.append_text(mark)
        return text

    def _shortened(self, name: str, width: int) -> str:
        """Cut the middle out of a kernel's name: names of templates differ most at their ends."""
        bare = plain_name(name)
        mark = self.ink("…").plain
        room = width - cell_len(mark)
        if cell_len(bare) <= width or room < 8 or not bare.isascii():
            return bare
        tail = room // 3
        # A digit next to the mark may be of a longer number.
        head, end = bare[: room - tail].rstrip(_OF_NUMBERS), bare[-tail:].lstrip(_OF_NUMBERS)
        return f"{head}{mark}{end}"


def kept_columns(table: Table, width: int) -> list[int]:
    """Return the indices of the columns that fit, dropping the highest `drop` first."""
    kept = list(range(len(table.columns)))
    widths = [_least_width(table, i) for i in kept]
    while sum(widths[i] + 1 for i in kept) > width:
        loose = [i for i in kept if table.columns[i].drop]
        if not loose:
            break
        kept.remove(max(loose, key=lambda i: table.columns[i].drop))
    return kept


def column_groups(table: Table, width: int) -> list[list[int]]:
    """Return the indices of the columns that stay, in groups that fit.

    Each group begins with the first column.
    """
    first, *others = kept_columns(table, width)
    groups = [[first]]
    for i in others:
        taken = sum(_least_width(table, j) + 1 for j in [*groups[-1], i])
        if taken > width and len(groups[-1]) > 1:
            groups.append([first])
        groups[-1].append(i)
    return groups


def shown_notes(table: Table, width: int) -> Sequence[str]:
    """Return the notes of a table without those about columns of which none fits."""
    titles = {table.columns[i].title for i in kept_columns(table, width)}
    return [note for note in table.notes if not (n := table.needs.get(note)) or titles & {*n}]


def plain_name(text: str) -> str:
    """Return a kernel's name without the words that most names begin with."""
    return text.replace("void at::native::", "").replace("void ", "")


def _shown(cell: Cell, column: Column) -> str:
    return _SHORT.get(cell.text, cell.text) if column.title == "bound" else cell.text


def _head(column: Column, *, first: bool) -> str:
    return f" {column.title}" if first else column.title


def _width(table: Table, i: int) -> int:
    column = table.columns[i]
    texts = [_head(column, first=i == 0)]
    margin = 1 if i == 0 else 0
    texts += [_shown(row[i], column) + " " * margin for row in table.rows]
    return max(cell_len(text) for text in texts)


def _least_width(table: Table, i: int) -> int:
    column, width = table.columns[i], _width(table, i)
    least = _LEAST_FOLDED if column.folds and not column.drop else _LEAST
    return min(width, least) if column.flexible else width
