"""Tables for other programs: in, a Report and the kernels frames; out, CSV texts and Parquet bytes.

Raw values (ns, FLOP, bytes; an empty cell is unknown), and a data dictionary of every column. A
cell that a spreadsheet would take for a formula gets an apostrophe in front.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import msgspec
import polars as pl

from prunescope.analysis.report.dictionary import FRAME, TABLES, columns_of, unit_of
from prunescope.analysis.report.escape import cell, csv_text
from prunescope.analysis.report.titles import phase_slugs
from prunescope.analysis.schema.report import Report

Value = str | int | float | bool | None


def csv_tables(report: Report) -> dict[str, str]:
    """File name to CSV text: ledger, ladder, GEMMs, kernels, and what the figures plot, each with a
    `phase` column."""
    return {file: _csv(report, file) for file in TABLES}


def _csv(report: Report, file: str) -> str:
    rows_of = TABLES[file][1]
    rows = (
        [name, *(_flat(value, field) for field, value in msgspec.structs.asdict(row).items())]
        for name, phase in report.phases.items()
        for row in rows_of(phase)
    )
    return csv_text([column.name for column in columns_of(file)], rows)


def _flat(value: Any, field: str) -> Value:
    """A dict as key=value, a list joined: names by a semicolon, numbers by a space."""
    if isinstance(value, dict):
        return " ".join(f"{key}={share}" for key, share in value.items())
    if isinstance(value, list):
        return ("; " if field in ("kernels", "evidence") else " ").join(map(str, value))
    return value  # type: ignore[no-any-return]  # a field of the struct, none of them nested


def data_dictionary(frames: Mapping[str, pl.DataFrame] | None = None) -> str:
    """CSV of every column of every table: file, column, unit, meaning."""
    rows: list[list[Value]] = [
        [file, column.name, column.unit, column.text]
        for file in TABLES
        for column in columns_of(file)
    ]
    named = dict.fromkeys(c for frame in (frames or {}).values() for c in frame.columns)
    rows += [
        ["kernels-<phase>", column, unit_of(column), FRAME.get(column, "")] for column in named
    ]
    return csv_text(["file", "column", "unit", "meaning"], rows)


def frame_tables(
    report: Report, frames: Mapping[str, pl.DataFrame], ending: str
) -> dict[str, bytes]:
    """File name to bytes of the kernels frame of each phase, `ending` "csv" or "parquet"."""
    slugs = phase_slugs(report)
    out = {}
    for name, frame in frames.items():
        buffer = io.BytesIO()
        if ending == "csv":
            inert_frame(frame).write_csv(buffer, quote_style="non_numeric")
        else:
            frame.write_parquet(buffer, compression="zstd")
        out[f"kernels-{slugs.get(name, 'trace')}.{ending}"] = buffer.getvalue()
    return out


def inert_frame(frame: pl.DataFrame) -> pl.DataFrame:
    """The frame with flat columns only, its strings safe in a spreadsheet."""
    flat = [
        pl.col(name).list.eval(pl.element().cast(pl.String)).list.join(" ")
        if isinstance(dtype, pl.List)
        else pl.col(name).struct.json_encode()
        if isinstance(dtype, pl.Struct)
        else pl.col(name).cast(pl.String)
        for name, dtype in frame.schema.items()
        if isinstance(dtype, (pl.List, pl.Struct, pl.Enum, pl.Categorical))
    ]
    frame = frame.with_columns(flat)
    strings = [name for name, dtype in frame.schema.items() if dtype == pl.String]
    return frame.with_columns(_inert(frame[name]) for name in strings)


def _inert(column: pl.Series) -> pl.Series:
    """Replaced once for each distinct string: a frame has few names and many rows."""
    unsafe = {name: cell(name) for name in column.unique().drop_nulls() if cell(name) != name}
    return column.replace(unsafe) if unsafe else column
