"""How long each row takes at least, and which resource bounds it: tiles, waves and the roofline.

In: the kernels frame with FLOP, bytes, dtype, grids and op calls; `Peaks`. Out: columns `blocks`,
`tiles`, `tile`, `along_n`, `split_k`, `fit`, `waves`, `tile_efficiency`, `wave_efficiency`,
`shape_loss` (>= 1) of a GEMM; `ideal` ns (null where the work or the peak is unknown), `predicted`
ns with tile and wave loss, and `bound`: compute, memory, latency or unknown.
"""

from __future__ import annotations

import math
from typing import Any

import polars as pl

from prunescope.analysis.device.hardware import rate_of
from prunescope.analysis.device.tiles import Launch, in_blocks, shape_loss, tile_of, wave_model
from prunescope.analysis.kernels.peaks import Peaks
from prunescope.analysis.ops.call import Work
from prunescope.analysis.timeline.grid_units import ITEMS, UNKNOWN_UNIT, grid_units
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
    """The columns of tiles and waves, computed once for every distinct kernel, call and grid."""
    frame = frame.with_columns(unit=pl.Series(grid_units(trace, frame["event"].to_numpy())))
    distinct = frame.filter(pl.col("event") >= 0).select("name", "kind", *_KEYS).unique()
    rows = [_wave_columns(row, trace, works, peaks) for row in distinct.iter_rows(named=True)]
    columns = {name: [t.get(name) for t in rows] for name in _SCHEMA}
    table = distinct.select(_KEYS).with_columns(pl.DataFrame(columns, schema=_SCHEMA))
    table = table.unique(subset=_KEYS)
    frame = frame.join(table, on=_KEYS, how="left", nulls_equal=True, maintain_order="left")
    return frame.drop("unit")


def _wave_columns(
    row: dict[str, Any], trace: Trace, works: list[Work | None], peaks: Peaks | None
) -> dict[str, Any]:
    if row["grid"] is None or row["unit"] == UNKNOWN_UNIT:
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
    # If an op has several kernels, no single kernel computes the whole GEMM.
    whole = row["call"] is not None and row["parts"] == 1
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
    """The only GEMM of a call; None for others (the name of a fused attention tells no tiles)."""
    return work.gemms[0] if work is not None and len(work.gemms) == 1 else None


# A kernel on few SMs that runs longer than this many floors is doing work.
_FLOORS = 10


_LINE_BYTES = 128  # size of a memory transaction: an SM without one has no work


_USUAL_FLOOR_NS = 2000.0  # of a kernel on a GPU whose floor was not measured: 1.5 to 3 us


def add_bound(frame: pl.DataFrame, peaks: Peaks | None) -> pl.DataFrame:
    """Columns `compute_ns`, `memory_ns`, `ideal`, `predicted` (ns) and `bound`.

    Needs `flop`, `bytes`, `dtype`, `busy`, `duration`, `blocks` (null off a GPU), `shape_loss` (>=
    1, null where the tile is unknown), `category` and `crosses` (a copy between host and device,
    which goes at the rate of their link). ideal = max(FLOP/peak, bytes/bandwidth); an op without
    FLOPs has bytes alone. A row without bytes, or with FLOPs of a dtype without a peak, has no
    ideal. A row is latency-bound if its ideal time is below the minimum kernel time (floor); or if
    it runs for less than ten floors and has blocks (or 128-byte lines to move) for fewer than half
    of the SMs, or is a copy or fill with an ideal time below the floor. A partial last wave of a
    long kernel counts as shape loss.
    """
    rates = _rates(frame, peaks)
    byte_ns = 1e9 / peaks.byte_per_s if peaks and peaks.byte_per_s else None
    link_ns = 1e9 / peaks.link_byte_per_s if peaks and peaks.link_byte_per_s else None
    per_byte = pl.when("crosses").then(pl.lit(link_ns)).otherwise(pl.lit(byte_ns, pl.Float64))
    memory = pl.col("bytes") * per_byte
    compute = pl.when(pl.col("flop") > 0).then(pl.col("flop") * 1e9 / rates).otherwise(0.0)
    frame = frame.with_columns(compute_ns=compute, memory_ns=memory)
    frame = frame.with_columns(
        ideal=_max_known("compute_ns", "memory_ns"),
        _shaped=pl.col("compute_ns") * pl.col("shape_loss").fill_null(1.0),
    ).with_columns(predicted=_max_known("_shaped", "memory_ns"))
    # Where no name tells the tile of a GEMM, its loss is unknown, not none.
    no_tile = pl.col("class").is_in(["matmul"]) & pl.col("shape_loss").is_null()
    frame = frame.with_columns(predicted=pl.when(~no_tile).then("predicted"))
    floor = peaks.floor_ns if peaks else None
    small = pl.lit(False)  # noqa: FBT003  (an expression, not a flag)
    short = pl.col("duration") < _FLOORS * (floor or _USUAL_FLOOR_NS)
    if floor is not None:
        small = pl.col("ideal") < floor
    if peaks and peaks.sm:
        lines = pl.col("bytes") / _LINE_BYTES
        few = 2 * pl.min_horizontal(pl.max_horizontal("blocks", "tiles"), lines) < peaks.sm
        small = small | (few & short).fill_null(value=False)
    moves = pl.col("category").is_in([1, 2]) & (pl.col("ideal") < (floor or _USUAL_FLOOR_NS))
    small = small | (moves & short).fill_null(value=False)
    bound = (
        pl.when(pl.col("ideal").is_null())
        .then(pl.lit("unknown"))
        .when((pl.col("flop") == 0) & (pl.col("bytes") == 0))
        .then(pl.lit("latency"))  # no work at all: all of its time is the call's own
        .when(small)
        .then(pl.lit("latency"))
        .when(pl.col("compute_ns") >= pl.col("memory_ns"))
        .then(pl.lit("compute"))
        .otherwise(pl.lit("memory"))
    )
    return frame.with_columns(bound=bound).drop("_shaped")


def _max_known(a: str, b: str) -> pl.Expr:
    """max(a, b), null where either is."""
    known = pl.col(a).is_not_null() & pl.col(b).is_not_null()
    return pl.when(known).then(pl.max_horizontal(a, b))


def _rates(frame: pl.DataFrame, peaks: Peaks | None) -> pl.Expr:
    old = [d for d in frame["dtype"].unique().to_list() if d is not None]
    new = [rate_of(peaks.flop_per_s, d) if peaks else None for d in old]
    if not old:
        return pl.lit(None, pl.Float64)
    return pl.col("dtype").replace_strict(old, new, default=None, return_dtype=pl.Float64)
