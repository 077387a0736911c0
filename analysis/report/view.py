"""A table as every format takes it.

Rows of cells hold text with units and the raw values (ns, shares), unescaped. Renderers escape and
lay out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias, TypeVar

from msgspec import Struct, field

T = TypeVar("T")
# What a reader may not know of the titles of columns, which the page shows on hover.
_DEFINITIONS = {
    "95 % interval": "the range that holds the true value in 95 % of captures",
    "axis": "what pruning changed of the GEMM: M, N, K, G (experts), heads, rank",
    "bound": "what limits the kernel: its FLOPs, its bytes, or the latency of a launch",
    "class": "what pairs the kernels of both sides",
    "efficiency": "roofline time ÷ time",
    "kept": "the share of the axis that is left",
    "largest part": "what moved the row most, with its largest kernel",
    "loss": "time − promised",
    "noise": "the size of the same row where dense is compared with dense",
    "of dense": "share of the dense wall",
    "promised": "(1 − sparsity) × the dense time",
    "role": "the purpose of an op in its layer",
}


class Cell(Struct, frozen=True):
    """One cell.

    Attributes:
        text: What people read.
        value: The value to sort by; None where there is none.
        code: Whether the text is a name of code.
        tone: "loss", "gain" or "quiet" for a colour, "best" for bold type; else empty.
    """

    text: str
    value: float | None = None
    code: bool = False
    tone: str = ""  # "loss" | "gain" | "quiet" | "best" | ""


class Column(Struct, frozen=True):
    """A column.

    Attributes:
        title: Its title.
        unit: The unit of its values; empty where the cells have their own.
        numeric: Whether it holds numbers.
        drop: Where room is short, columns go by falling `drop`; 0 stays.
        flexible: Whether it is a name that is cut or, with `folds`, prose that is folded.
        folds: Whether its text is folded.
    """

    title: str
    unit: str = ""
    numeric: bool = False
    drop: int = 0
    flexible: bool = False
    folds: bool = False

    @property
    def head(self) -> str:
        """The title with its unit."""
        return f"{self.title} ({self.unit})" if self.unit else self.title

    @property
    def definition(self) -> str:
        """What the title means; empty where it says it."""
        return _DEFINITIONS.get(self.title, "")


def number(title: str, unit: str = "", *, drop: int = 0) -> Column:
    """Return a column of numbers."""
    return Column(title, unit, numeric=True, drop=drop)


def numeric(*titles: str) -> list[Column]:
    """Return columns of numbers without a unit."""
    return [Column(title, numeric=True) for title in titles]


class Table(Struct, frozen=True):
    """A titled table.

    Attributes:
        id: Its name in code and file names.
        title: Its title.
        columns: Its columns.
        rows: Its rows, with a cell for each column.
        notes: What explains marks and names what was left out.
        needs: The columns that a note is about: without any of them it is not shown.
    """

    id: str
    title: str
    columns: list[Column]
    rows: list[list[Cell]]
    notes: list[str] = field(default_factory=list)
    needs: dict[str, tuple[str, ...]] = field(default_factory=dict)


# The columns of a table of items, each with what it shows of one.
Columns: TypeAlias = Sequence[tuple[Column, Callable[[T], Cell | str]]]


def table_of(
    table_id: str, title: str, items: Iterable[T], columns: Columns[T], notes: Sequence[str] = ()
) -> Table:
    """Return a table with a row for each item."""
    rows = [[shown(item) for _, shown in columns] for item in items]
    cells = [
        [content if isinstance(content, Cell) else Cell(content) for content in row] for row in rows
    ]
    return Table(table_id, title, [column for column, _ in columns], cells, list(notes))


def text_table(
    table_id: str,
    title: str,
    columns: Sequence[Column],
    rows: Iterable[Sequence[str]],
    notes: Sequence[str] = (),
) -> Table:
    """Return a table of which only the text is known, without values to sort by."""
    cells = [[Cell(text) for text in row] for row in rows]
    return Table(table_id, title, list(columns), cells, list(notes))
