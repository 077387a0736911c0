"""What the grid of a kernel says: blocks, tiles, waves, and the loss they predict for a GEMM.

In: the kernels frame with grids and op calls. Out: columns `blocks`, `tiles`, `tile`, `along_n`,
`split_k`, `fit`, `waves`, `tile_efficiency`, `wave_efficiency`, `shape_loss` (>= 1); null: unknown.
"""

from __future__ import annotations

import math
from typing import Any

import polars as pl

from prunescope.analysis.device.tiles import Launch, in_blocks, shape_loss, tile_of, wave_model
from prunescope.analysis.kernels.bound import Peaks
from prunescope.analysis.ops.work import Work
from prunescope.analysis.timeline.grid_units import ITEMS, UNTOLD, grid_units
from prunescope.analysis.trace.events import Trace
from prunescope.taxonomy.gemm import Gemm

_KEYS = ["name_id", "call", "grid", "block", "registers", "shared_memory", "unit", "parts"]
_SCHEMA = {
    "blocks": pl.Int64, "tile": pl.String, "along_n": pl.Int64, "tiles": pl.Int64,
    "split_k": pl.Int64, "fit": pl.String, "waves": pl.Float64, "tile_efficiency": pl.Float64,
    "wave_efficiency": pl.Float64, "shape_loss": pl.Float64,
}  # fmt: skip


def add_waves(
    frame: pl.DataFrame, trace: Trace, works: list[Work | None], peaks: Peaks | None
) -> pl.DataFrame:
    """The columns above, worked out once for every distinct kernel, call and grid."""
    frame = frame.with_columns(unit=pl.Series(grid_units(trace, frame["event"].to_numpy())))
    distinct = frame.filter(pl.col("event") >= 0).select("name", "kind", *_KEYS).unique()
    rows = [_tell(row, trace, works, peaks) for row in distinct.iter_rows(named=True)]
    columns = {name: [t.get(name) for t in rows] for name in _SCHEMA}
    table = distinct.select(_KEYS).with_columns(pl.DataFrame(columns, schema=_SCHEMA))
    table = table.unique(subset=_KEYS)
    frame = frame.join(table, on=_KEYS, how="left", nulls_equal=True, maintain_order="left")
    return frame.drop("unit")


def _tell(
    row: dict[str, Any], trace: Trace, works: list[Work | None], peaks: Peaks | None
) -> dict[str, Any]:
    if row["grid"] is None or row["unit"] == UNTOLD:
        return {}
    grid = trace.grids[row["grid"]]
    block = trace.grids[row["block"]] if row["block"] is not None else None
    device = peaks.device if peaks is not None else None
    if row["unit"] == ITEMS:
        if block is None:
            return {}
        grid = in_blocks(grid, block)
    blocks = math.prod(grid)
    out: dict[str, Any] = {"blocks": blocks if 0 < blocks < 1 << 62 else None}
    tile = tile_of(row["name"] or "")
    whole = row["call"] is not None and row["parts"] == 1  # else no kernel multiplies all of it
    gemm = _gemm(works[row["call"]]) if whole else None
    if tile is None or gemm is None or not grid:
        return out
    launch = Launch(grid, block, row["registers"], row["shared_memory"])
    waves = wave_model(gemm, tile, launch, device)
    if waves is None:
        return out
    return {
        **out,
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


def _gemm(work: Work | None) -> Gemm | None:
    """The one GEMM of a call; a fused attention has its own tiles, which no name tells."""
    return work.gemms[0] if work is not None and len(work.gemms) == 1 else None
