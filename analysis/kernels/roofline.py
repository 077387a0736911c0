"""The least time of each row, and the resource that bounds it: tiles, waves and the roofline.

In: the kernels frame with FLOP, bytes, dtype, grids and op calls; `Peaks`. Out: columns `blocks`,
`tiles`, `tile`, `along_n`, `split_k`, `fit`, `waves`, `tile_efficiency`, `wave_efficiency`,
`shape_loss` (>= 1) of a GEMM; `ideal` ns (null where the work or the peak is unknown), `predicted`
ns with tile and wave loss, and `bound`: compute, memory, latency or unknown.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import polars as pl

from prunescope.analysis.device.hardware import rate_of
from prunescope.analysis.device.tiles import Launch, grid_in_blocks, shape_loss, tile_of, wave_model
from prunescope.analysis.kernels.columns import Floats, is_true
from prunescope.analysis.kernels.peaks import Peaks
from prunescope.analysis.ops.call import Work
from prunescope.analysis.timeline.grid_units import ITEMS, UNKNOWN_UNIT, grid_units
from prunescope.analysis.trace.trace_columns import Trace

_KEYS = ["name_id", "call", "grid", "block", "registers", "shared_memory", "unit", "parts"]
_SCHEMA = {
    "blocks": pl.Int64, "tile": pl.String, "along_n": pl.Int64, "tiles": pl.Int64,
    "split_k": pl.Int64, "fit": pl.String, "waves": pl.Float64, "tile_efficiency": pl.Float64,
    "wave_efficiency": pl.Float64, "shape_loss": pl.Float64,
}  # fmt: skip


def add_waves(
    frame: pl.DataFrame, trace: Trace, works: list[Work | None], peaks: Peaks | None
) -> pl.DataFrame:
    """Add the columns of tiles and waves, computed once for each distinct kernel, call and grid."""
    unit = pl.Series("unit", grid_units(trace, frame["event"].to_numpy()))
    rows = frame[[name for name in _KEYS if name != "unit"]].hstack([unit])
    distinct = rows.filter(frame["event"] >= 0).unique()
    waves = [_wave_columns(row, trace, works, peaks) for row in distinct.iter_rows(named=True)]
    columns = {name: [t.get(name) for t in waves] for name in _SCHEMA}
    table = distinct.hstack(pl.DataFrame(columns, schema=_SCHEMA))
    waves_of_rows = rows.join(table, on=_KEYS, how="left", nulls_equal=True, maintain_order="left")
    return frame.hstack(waves_of_rows[list(_SCHEMA)])


def _wave_columns(
    row: dict[str, Any], trace: Trace, works: list[Work | None], peaks: Peaks | None
) -> dict[str, Any]:
    """Return the tiles and waves of a distinct kernel, call and grid, as far as they are known."""
    if row["grid"] is None or row["unit"] == UNKNOWN_UNIT:
        return {}
    grid = trace.grids[row["grid"]]
    block = trace.grids[row["block"]] if row["block"] is not None else None
    device = peaks.device if peaks is not None else None
    if row["unit"] == ITEMS:
        if block is None:
            return {}
        grid = grid_in_blocks(grid, block)
    blocks = math.prod(grid)
    columns: dict[str, Any] = {"blocks": blocks if 0 < blocks < 1 << 62 else None}
    name = trace.names[row["name_id"]] if row["name_id"] is not None else ""
    tile = tile_of(name)
    # If an op has several kernels, no single kernel computes the whole GEMM. Of several GEMMs (a
    # fused attention) the name states no tiles.
    whole = row["call"] is not None and row["parts"] == 1
    work = works[row["call"]] if whole else None
    gemm = None if work is None else work.single_gemm
    if tile is None or gemm is None or not grid:
        return columns
    launch = Launch(grid, block, row["registers"], row["shared_memory"])
    waves = wave_model(gemm, tile, launch, device)
    if waves is None:
        return columns
    return {
        **columns,
        "tile": f"{tile.rows}x{tile.columns}",
        "along_n": tile.rows if waves.swapped else tile.columns,
        "tiles": waves.tiles,
        "split_k": waves.split_k,
        "fit": waves.fit,
        "waves": waves.waves,
        "tile_efficiency": waves.tile_efficiency,
        "wave_efficiency": waves.wave_efficiency,
        "shape_loss": shape_loss(waves),
    }


# A kernel on few SMs that runs longer than this many floors is doing work.
_FLOORS = 10


_LINE_BYTES = 128  # size of a memory transaction: an SM without one has no work


_USUAL_FLOOR_NS = 2000.0  # of a kernel on a GPU whose floor was not measured: 1.5 to 3 us


def add_bound(frame: pl.DataFrame, peaks: Peaks | None) -> pl.DataFrame:
    """Add columns `compute_ns`, `memory_ns`, `ideal`, `predicted` (ns) and `bound`.

    Needs `flop`, `bytes`, `dtype`, `busy`, `duration`, `blocks` (null off a GPU), `shape_loss` (>=
    1, null where the tile is unknown), `category` and `crosses` (a copy between host and device,
    which goes at the rate of their link).

    ideal = max(FLOP/peak, bytes/bandwidth); an op without FLOPs has bytes alone. A row without
    bytes, or with FLOPs of a dtype without a peak, has no ideal. A row is latency-bound if its
    ideal time is below the minimum kernel time (floor). It is also latency-bound if it runs for
    less than ten floors and has blocks (or 128-byte lines to move) for fewer than half of the SMs,
    or is a copy or fill with an ideal time below the floor. A partial last wave of a long kernel
    counts as shape loss.
    """
    flop, size, duration, category = (
        frame[name].to_numpy() for name in ("flop", "bytes", "duration", "category")
    )
    byte_ns = 1e9 / peaks.byte_per_s if peaks and peaks.byte_per_s else math.nan
    link_ns = 1e9 / peaks.link_byte_per_s if peaks and peaks.link_byte_per_s else math.nan
    memory = size * np.where(is_true(frame["crosses"]), link_ns, byte_ns)
    with np.errstate(invalid="ignore"):
        compute = np.where(flop > 0, flop * 1e9 / _rates(frame, peaks), 0.0)
    ideal = np.maximum(compute, memory)
    loss = frame["shape_loss"].to_numpy()
    predicted = np.maximum(compute * np.where(np.isnan(loss), 1.0, loss), memory)
    # Where no name states the tile of a GEMM, its loss is unknown, not 0.
    predicted[is_true(frame["class"] == "matmul") & np.isnan(loss)] = math.nan
    floor = peaks.floor_ns if peaks else None
    short = duration < _FLOORS * (floor or _USUAL_FLOOR_NS)
    small = np.zeros(len(frame), bool) if floor is None else ideal < floor
    if peaks and peaks.sm:
        units = np.fmax(frame["blocks"].to_numpy(), frame["tiles"].to_numpy())
        small |= (2 * np.fmin(units, size / _LINE_BYTES) < peaks.sm) & short
    small |= np.isin(category, (1, 2)) & (ideal < (floor or _USUAL_FLOOR_NS)) & short
    # No work at all: all of its time is the call's own.
    small |= (flop == 0) & (size == 0)
    bound = np.select(
        [np.isnan(ideal), small, compute >= memory], [_UNKNOWN, _LATENCY, _COMPUTE], _MEMORY
    )
    times = {"compute_ns": compute, "memory_ns": memory, "ideal": ideal, "predicted": predicted}
    columns = (pl.Series(name, ns, nan_to_null=True) for name, ns in times.items())
    return frame.hstack([*columns, _BOUNDS[bound].alias("bound")])


_BOUNDS = pl.Series(["unknown", "latency", "compute", "memory"])
_UNKNOWN, _LATENCY, _COMPUTE, _MEMORY = range(4)


def _rates(frame: pl.DataFrame, peaks: Peaks | None) -> Floats:
    """Return the peak rate of each row's dtype, FLOP/s; NaN where there is none."""
    rates = np.full(len(frame), math.nan)
    for dtype in frame["dtype"].unique():
        rate = rate_of(peaks.flop_per_s, dtype) if peaks and dtype is not None else None
        if rate is not None:
            rates[is_true(frame["dtype"] == dtype)] = rate
    return rates
