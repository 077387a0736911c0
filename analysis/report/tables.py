"""Tables for other programs: CSV texts and Parquet bytes.

In: a Report and the kernels frames. Out: raw values, and a data dictionary of every column: its
unit (ns, FLOP, bytes, share in 0..1, ratio, calls a step) and meaning; an empty cell is unknown,
never 0. The columns of a table are the fields of its rows; those of the kernels frame are described
here. A cell that a spreadsheet would take for a formula gets an apostrophe in front.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

import msgspec
import polars as pl

from prunescope.analysis.report import rows
from prunescope.analysis.report.escape import cell, csv_text
from prunescope.analysis.report.titles import phase_slugs
from prunescope.analysis.schema.fields import FieldInfo, fields_of
from prunescope.analysis.schema.fields import unit_of as unit_of_name
from prunescope.analysis.schema.report import GemmRow, KernelRow, Phase, Report
from prunescope.analysis.schema.routing import LayerRouting
from prunescope.taxonomy.scrub import free_key

Value = str | int | float | bool | None


def csv_tables(report: Report) -> dict[str, str]:
    """Return file name to CSV text: ledger, ladder, GEMMs, kernels, and what the figures plot.

    Each table has a `phase` column first.
    """
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
    """Return a dict as key=value, and a list joined: names by a semicolon, numbers by a space."""
    if isinstance(value, dict):
        return " ".join(f"{key}={share}" for key, share in value.items())
    if isinstance(value, list):
        return ("; " if field in ("kernels", "evidence") else " ").join(map(str, value))
    return value  # type: ignore[no-any-return]  # a field of the struct, none of them nested


def data_dictionary(frames: Mapping[str, pl.DataFrame] | None = None) -> str:
    """Return the CSV of every column of every table: file, column, unit, meaning."""
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
    """Return file name to bytes of the kernels frame of each phase.

    Args:
        report: The report, for the names of the files.
        frames: The kernels frames by phase.
        ending: "csv" or "parquet".
    """
    slugs = phase_slugs(report)
    files = {}
    for name, frame in frames.items():
        buffer = io.BytesIO()
        if ending == "csv":
            inert_frame(frame).write_csv(buffer, quote_style="non_numeric")
        else:
            frame.write_parquet(buffer, compression="zstd")
        files[f"kernels-{slugs.get(name, 'trace')}.{ending}"] = buffer.getvalue()
    return files


def inert_frame(frame: pl.DataFrame) -> pl.DataFrame:
    """Return the frame with flat columns only, its strings safe in a spreadsheet."""
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
    names: dict[str, str] = {}  # of columns too: a phase of somebody else's plan is part of some
    for name in frame.columns:
        names[free_key(cell(name), names)] = name
    safe = frame.with_columns(_inert(frame[name]) for name in strings)
    return safe.rename({name: key for key, name in names.items()})


def _inert(column: pl.Series) -> pl.Series:
    """Make a column of strings safe, once for each distinct string: a frame has few names."""
    unsafe = {name: cell(name) for name in column.unique().drop_nulls() if cell(name) != name}
    return column.replace(unsafe) if unsafe else column


PHASE = FieldInfo("phase", "", "prefill, decode, or trace for a trace without run.json")
Rows: TypeAlias = Callable[[Phase], Iterable[msgspec.Struct]]

# File to the struct of its rows and what gives them for a phase, in the order of the columns.
TABLES: dict[str, tuple[type[msgspec.Struct], Rows]] = {
    "ledger.csv": (rows.LedgerLine, rows.ledger_lines),
    "ladder.csv": (rows.LadderLine, rows.ladder_lines),
    "gemms.csv": (GemmRow, lambda phase: phase.gemms),
    "kernels.csv": (KernelRow, lambda phase: phase.kernels),
    "bounds.csv": (rows.BoundLine, rows.bound_lines),
    "layers.csv": (rows.LayerLine, rows.layer_lines),
    "roofline.csv": (rows.RooflineLine, rows.roofline_lines),
    "waves.csv": (rows.WaveLine, rows.wave_lines),
    "experts.csv": (LayerRouting, lambda phase: phase.routing.layers if phase.routing else ()),
}


def columns_of(file: str) -> list[FieldInfo]:
    """Return the columns of a table, the phase first."""
    return [PHASE, *fields_of(TABLES[file][0])]


# Columns of the kernels frame: one row per unit of device work, all steps. An unnamed one is empty.
FRAME: dict[str, str] = {
    "step": "index of the kept step",
    "start": "begin of the event, from the first event of the trace",
    "duration": "length of the event as recorded",
    "busy": "part of the union of events that this one covers first; nothing is counted twice",
    "gap": "idle time right before it, owned by it",
    "launched": "time of the launch on the host",
    "starved": "whether the device had run out of work before the call that launched this ended",
    "cause": "of most of the gap: host, first_call (or compilation), allocator (its calls), "
    "collective (of host threads), sync (a call that waits for the device), memcpy (a "
    "copy call), blocked (its stream waited for another), device (launched in time), unknown, "
    "other_step (the device ran work of a later step)",
    "idle_first_call": "part in a first call or a compilation, which no later step holds",
    "idle_memcpy": "part of the gap in which the launching thread was in a copy call that blocks",
    "idle_copy_launch": "part in a copy call that returns immediately",
    "idle_sync": "part in a call that waits for the device",
    "idle_allocation": "part in a call that allocates or frees memory",
    "idle_computed": "part in an operator that the host computed itself",
    "idle_stalled": "part in an operator or call that took more than 1 ms and ten times its "
    "median, for no reason that the trace shows",
    "idle_launch": "part in another runtime call, and from the launch to the start",
    "idle_op": "part in another operator, outside of calls",
    "idle_collective": "part in which this thread recorded nothing, and another one was in a "
    "collective",
    "idle_nothing": "part in nothing that was recorded",
    "idle_blocked": "part after the launch, longer than any launch takes, or in a recorded wait of "
    "a stream",
    "idle_device": "the gap, where it was launched in time",
    "idle_replay": "the gap within one graph replay, longer than any launch takes",
    "idle_unknown": "the gap, where no launch is known, or before a replay in a trace that lacks "
    "kernels of replays",
    "idle_other_step": "part in which the device ran work that a later step launched ahead",
    "host_activity": "annotation, Python frame or op of at least 1 ms that covers half or more of "
    "the host's part of the gap",
    "host_activity_ns": "how much of the host's part it covers",
    "host_activity_is": "interrupted, where the call usually takes a small part of this; around, "
    "where it holds the work behind the gap too",
    "host_ns": "host time from the previous launch, by any thread, to this one, without "
    "host_blocked_ns",
    "host_blocked_ns": "part of it in calls that copy or wait for the device",
    "first_of_launch": "whether it is the first row of its launch: a graph replay is one launch of "
    "many rows",
    "name": "kernel, or the operator on a CPU",
    "op": "operator that launched it",
    "kind": "what the kernel does",
    "role": "where in the model",
    "layer": "index in the list of layers",
    "placed_by": "the source of layer and role: of those that speak of the row the most trusted",
    "confidence": "the share of what that source was asked about that it explains",
    "class": "matmul, attention, pointwise, or the kind: what dense and pruned pair by",
    "primary": "whether it is the primary kernel of its operator: the longest that carries "
    "its work",
    "carries_work": "whether it carries its operator's work, or a share of it by duration; "
    "auxiliary kernels have time only",
    "parts": "how many rows share the operator's work",
    "flop": "work of the call",
    "bytes": "compulsory traffic of the call",
    "dtype": "number format that the GEMM multiplies in; 3xtf32: fp32 as three of TF32",
    "modelled": "whether a work model exists for the call",
    "compute_ns": "FLOPs over the peak of their format",
    "memory_ns": "bytes over the bandwidth",
    "ideal": "roofline time, the larger of the two",
    "bound": "compute, memory, latency or unknown",
    "auxiliary": "whether it is an auxiliary kernel of a GEMM or an attention: memset, workspace",
    "stream": "stream of the device",
    "grid": "index of the launch's grid (x, y, z) in the trace",
    "block": "index of the launch's block (x, y, z) in the trace",
    "registers": "registers a thread",
    "shared_memory": "shared memory a block",
    "blocks": "blocks of the launch",
    "tile": "rows x columns of the output tile that the kernel's name states",
    "along_n": "which side of the tile lies along N",
    "tiles": "tiles of the GEMM, split-K and batch included",
    "split_k": "parts that K is split into",
    "shapes": "whence the shapes of a GEMM or an attention: recorded, eager-trace or model",
    "fit": "how the tiles explain the grid: exact, padded, split, persistent or unexplained",
    "waves": "tiles over resident blocks on the device",
    "tile_efficiency": "share of the tiles' area that is output",
    "wave_efficiency": "waves over waves rounded up",
    "shape_loss": "factor by which tiles and waves stretch the ideal time",
    "predicted": "ideal time with the shape loss",
    "instance": "the operator call that a row belongs to; rows of one call share it",
    "event": "index of the device event",
    "node": "node of the replayed graph",
    "category": "0 kernel, 1 memcpy, 2 memset",
    "name_id": "index of the name in the trace",
    "op_id": "index of the operator's name in the trace",
    "call": "index of the distinct call (operator, shapes, dtypes)",
}

_UNITS = {
    "start": "ns", "duration": "ns", "busy": "ns", "gap": "ns", "launched": "ns",
    "ideal": "ns", "predicted": "ns", "flop": "FLOP", "bytes": "bytes", "shared_memory": "bytes",
}  # fmt: skip


def unit_of(column: str) -> str:
    """Return the unit of a column of the kernels frame, by its name."""
    return _UNITS.get(column) or unit_of_name(column)
