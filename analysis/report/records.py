"""The tables of a Report for data frames: Records with a column `phase` first.

In: a Report. Out: raw values: ns a step, FLOP, bytes, shares in 0..1; null is unknown, never 0.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec

from prunescope.analysis.report.escape import clean
from prunescope.analysis.report.rows import (
    LadderLine,
    LedgerLine,
    RooflineLine,
    ladder_lines,
    ledger_lines,
    roofline_lines,
)
from prunescope.analysis.schema.report import Finding, GemmRow, KernelRow, Phase, Report
from prunescope.taxonomy.by_name import ByName
from prunescope.taxonomy.errors import PrunescopeError

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl

    Frame: TypeAlias = pl.DataFrame

_AXES = ("m", "n", "k", "heads", "calls")  # of which a GEMM keeps a share
_SHOWN = 20  # rows of a table in a notebook
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Records:
    """A table: `name`, `columns` (name to its Python type) and `rows`, one dict each.

    `len(t)`, `for row in t` and `t[0]` work; `to_polars()` and `to_pandas()` give data frames.
    """

    name: str
    columns: Mapping[str, Any]
    rows: tuple[Row, ...]

    def __post_init__(self) -> None:
        rows = tuple(ByName.from_values(row, f"column of {self.name}") for row in self.rows)
        object.__setattr__(self, "rows", rows)

    def to_polars(self) -> pl.DataFrame:
        """Return a polars DataFrame: the same columns and types whether there are rows or not."""
        import polars as pl

        kinds: dict[Any, Any] = {str: pl.String, int: pl.Int64, float: pl.Float64, bool: pl.Boolean}
        schema = {
            name: pl.List(kinds[typing.get_args(kind)[0]])
            if typing.get_origin(kind) is list
            else kinds[kind]
            for name, kind in self.columns.items()
        }
        return pl.DataFrame(list(self.rows), schema=schema, orient="row")

    def to_pandas(self) -> pd.DataFrame:
        """Return a pandas DataFrame.

        Raises:
            PrunescopeError: pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError:
            raise PrunescopeError(
                "pandas is not installed", hint="pip install pandas, or use to_polars()"
            ) from None
        return pd.DataFrame(list(self.rows), columns=list(self.columns))

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __getitem__(self, index: int) -> Row:
        return self.rows[index]

    def __repr__(self) -> str:
        return f"<{self.name}: {len(self.rows)} rows, columns {', '.join(self.columns)}>"

    def _repr_html_(self) -> str:
        """Return the first rows as an HTML table, for notebooks."""
        head = "".join(f"<th>{escape(clean(name))}</th>" for name in self.columns)
        body = "".join(
            f"<tr>{''.join(f'<td>{_cell(row[name])}</td>' for name in self.columns)}</tr>"
            for row in self.rows[:_SHOWN]
        )
        more = len(self.rows) - _SHOWN
        note = f"<p>{more} more rows: to_polars(), to_pandas()</p>" if more > 0 else ""
        table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        return f"{scroll_box(table)}{note}"


def scroll_box(fragment: str) -> str:
    """Return HTML that scrolls in a box of its own where it is wider than the page around it."""
    return f'<div class="scroll" style="overflow-x: auto; max-width: 100%">{fragment}</div>'


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, list):
        value = ", ".join(str(v) for v in value)
    text = f"{value:,.4g}" if isinstance(value, float) and abs(value) < 1e6 else str(value)
    text = f"{value:,.0f}" if isinstance(value, float) and abs(value) >= 1e6 else text
    return escape(clean(text if len(text) <= 120 else f"{text[:119]}…"))


def gemms(report: Report) -> Records:
    """Return one row per GEMM: (role, op, shape, pairing).

    `keep_n` is the kept share of N, and so on.
    """
    columns = _columns(GemmRow, without=("keep",)) | {f"keep_{axis}": float for axis in _AXES}

    def rows(phase: Phase) -> Iterator[Row]:
        for gemm in phase.gemms:
            row = _fields(gemm, without=("keep",))
            yield row | {f"keep_{axis}": (gemm.keep or {}).get(axis) for axis in _AXES}

    return _records("gemms", report, columns, rows)


def ledger(report: Report) -> Records:
    """Return a row for each ledger row (`part` null), then one for each part, which sum to it."""
    return _records("ledger", report, _columns(LedgerLine), lambda p: map(_fields, ledger_lines(p)))


def ladder(report: Report) -> Records:
    """Return a row for each bound: speedup, dense over pruned; measured ones have an interval."""
    return _records("ladder", report, _columns(LadderLine), lambda p: map(_fields, ladder_lines(p)))


def kernels(report: Report) -> Records:
    """Return one row per kernel name, the largest first."""
    return _records("kernels", report, _columns(KernelRow), lambda p: map(_fields, p.kernels))


def findings(report: Report) -> Records:
    """Return a row for each finding, the most severe first."""
    return _records("findings", report, _columns(Finding), lambda p: map(_fields, p.findings))


def roofline(report: Report) -> Records:
    """Return a row for each point of the roofline plot, with `flop_per_byte` and `flop_per_s`."""
    columns = _columns(RooflineLine) | {"flop_per_byte": float, "flop_per_s": float}

    def rows(phase: Phase) -> Iterator[Row]:
        for point in roofline_lines(phase):
            rates = {"flop_per_byte": point.flop_per_byte, "flop_per_s": point.flop_per_s}
            yield _fields(point) | rates

    return _records("roofline", report, columns, rows)


def structs(name: str, kind: type[msgspec.Struct], rows: Iterable[msgspec.Struct]) -> Records:
    """Return records of structs, without fields that are no plain value or list of them."""
    columns = _columns(kind)
    return Records(name, columns, tuple(_fields(row, only=columns) for row in rows))


def _records(
    name: str, report: Report, columns: Mapping[str, Any], rows: Callable[[Phase], Iterable[Row]]
) -> Records:
    every = tuple(
        {"phase": phase_name, **row}
        for phase_name, phase in report.phases.items()
        for row in rows(phase)
    )
    return Records(name, {"phase": str, **columns}, every)


def _columns(kind: type[msgspec.Struct], *, without: Iterable[str] = ()) -> dict[str, Any]:
    """Return field name to type of a struct's plain fields and lists of them, without `| None`."""
    columns = {}
    hints = typing.get_type_hints(kind)
    names = zip(kind.__struct_fields__, kind.__struct_encode_fields__, strict=True)
    for name, encoded in ((n, e) for n, e in names if n not in without):
        bare = [t for t in typing.get_args(hints[name]) if t is not type(None)]
        is_union = typing.get_origin(hints[name]) in (typing.Union, types.UnionType)
        plain = bare[0] if is_union and len(bare) == 1 else hints[name]
        item = typing.get_args(plain)[0] if typing.get_origin(plain) is list else plain
        if item in (str, int, float, bool):
            columns[encoded] = plain
    return columns


def _fields(
    row: msgspec.Struct, *, without: Iterable[str] = (), only: Iterable[str] | None = None
) -> Row:
    names = zip(row.__struct_fields__, row.__struct_encode_fields__, strict=True)
    return {
        encoded: getattr(row, name)
        for name, encoded in names
        if encoded not in without and (only is None or encoded in only)
    }
