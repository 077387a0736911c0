"""Tables for other programs: in, a Report and the kernels frames; out, CSV texts and Parquet bytes.

Raw values (ns, FLOP, bytes; an empty cell is unknown), and a data dictionary of every column. A
cell that a spreadsheet would take for a formula gets an apostrophe in front.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence

import msgspec
import polars as pl

from prunescope.analysis.report.dictionary import COLUMNS, FRAME, unit_of
from prunescope.analysis.report.escape import cell
from prunescope.analysis.report.ledger_view import LADDER
from prunescope.analysis.report.titles import phase_slugs
from prunescope.analysis.schema.anatomy import Anatomy
from prunescope.analysis.schema.report import GemmRow, Report

Value = str | int | float | bool | None
Row = list[str | int | float | None]


def csv_tables(report: Report) -> dict[str, str]:
    """File name to CSV text: ledger, ladder, GEMMs, kernels, and what the other figures draw, each
    with a `phase` column."""
    return {
        "ledger.csv": _csv("ledger.csv", _ledger(report)),
        "ladder.csv": _csv("ladder.csv", _ladder(report)),
        "gemms.csv": _csv("gemms.csv", _gemms(report)),
        "kernels.csv": _csv("kernels.csv", _kernels(report)),
        "bounds.csv": _csv("bounds.csv", bounds(report)),
        "layers.csv": _csv("layers.csv", layers(report)),
        "roofline.csv": _csv("roofline.csv", roofline(report)),
        "waves.csv": _csv("waves.csv", waves(report)),
    }


def _ledger(report: Report) -> Iterable[list[Value]]:
    for name, phase in report.phases.items():
        for row in phase.ledger or []:
            yield [name, row.row, "", "", "", row.ns, *_ends(row.ci95), row.noise_ns, ""]
            for part in row.parts:
                yield [
                    name,
                    row.row,
                    part.name,
                    part.role,
                    part.cls,
                    part.ns,
                    *_ends(part.ci95),
                    part.noise_ns,
                    "; ".join(part.evidence),
                ]


def _ends(ci95: list[float] | None) -> tuple[float | None, float | None]:
    return (ci95[0], ci95[1]) if ci95 else (None, None)


def _ladder(report: Report) -> Iterable[list[Value]]:
    for name, phase in report.phases.items():
        if phase.ladder is None:
            continue
        for bound in LADDER:
            ends = _ends(phase.ladder.interval_of(bound))
            yield [name, bound, getattr(phase.ladder, bound), *ends]


def _gemms(report: Report) -> Iterable[list[Value]]:
    for name, phase in report.phases.items():
        for gemm in phase.gemms:
            yield [name, *(_flat(gemm, column) for column, *_ in COLUMNS["gemms.csv"][1:])]


def _flat(gemm: GemmRow, column: str) -> Value:
    value = getattr(gemm, column)
    if isinstance(value, dict):
        return " ".join(f"{key}={share}" for key, share in value.items())
    if isinstance(value, list):
        return ("; " if column == "kernels" else " ").join(str(v) for v in value)
    return value  # type: ignore[no-any-return]  # a field of the struct, none of them nested


def _kernels(report: Report) -> Iterable[list[Value]]:
    for name, phase in report.phases.items():
        for kernel in phase.kernels:
            yield [name, *msgspec.structs.astuple(kernel)]


def data_dictionary(frames: Mapping[str, pl.DataFrame] | None = None) -> str:
    """CSV of every column of every table: file, column, unit, meaning."""
    rows: list[list[Value]] = [
        [file, column, unit, meaning]
        for file, columns in COLUMNS.items()
        for column, unit, meaning in columns
    ]
    named = dict.fromkeys(c for frame in (frames or {}).values() for c in frame.columns)
    rows += [
        ["kernels-<phase>", column, unit_of(column), FRAME.get(column, "")] for column in named
    ]
    return _text(["file", "column", "unit", "meaning"], rows)


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
    """Told once for each distinct string: a frame has few names and many rows."""
    unsafe = {name: cell(name) for name in column.unique().drop_nulls() if cell(name) != name}
    return column.replace(unsafe) if unsafe else column


def _csv(file: str, rows: Iterable[Sequence[Value]]) -> str:
    return _text([column for column, *_ in COLUMNS[file]], rows)


def _text(head: list[str], rows: Iterable[Sequence[Value]]) -> str:
    out = io.StringIO()
    # Every string is quoted, so that no other separator of a spreadsheet splits one into cells.
    writer = csv.writer(out, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(
        [cell(v) if isinstance(v, str) else "" if v is None else v for v in row] for row in rows
    )
    return out.getvalue()


def bounds(report: Report) -> Iterator[Row]:
    """Busy time by kind and bound; by kind alone where a phase has no anatomy."""
    for name, phase in report.phases.items():
        if phase.anatomy is None:
            for kind, ns in phase.kinds.items():
                yield [name, kind, None, ns]
            continue
        for kind, parts in phase.anatomy.kind_bounds.items():
            for bound, ns in parts.items():
                yield [name, kind, bound, ns]


def layers(report: Report) -> Iterator[Row]:
    """Busy time of each layer by role, and the idle time before its kernels."""
    for name, anatomy in _anatomies(report):
        for one in anatomy.layers:
            yield from ([name, one.layer, role, ns] for role, ns in one.roles.items())
            yield [name, one.layer, None, one.gap_ns]


def roofline(report: Report) -> Iterator[Row]:
    """The points of the roofline."""
    for name, anatomy in _anatomies(report):
        yield from ([name, *msgspec.structs.astuple(point)] for point in anatomy.points)


def waves(report: Report) -> Iterator[Row]:
    """The curves of predicted time over N."""
    for name, anatomy in _anatomies(report):
        for one in anatomy.shapes:
            own: Row = [name, one.role, one.m, one.n, one.k, one.dense]
            yield from ([*own, int(n), ns] for n, ns in one.curve)


def _anatomies(report: Report) -> Iterator[tuple[str, Anatomy]]:
    for name, phase in report.phases.items():
        if phase.anatomy is not None:
            yield name, phase.anatomy
