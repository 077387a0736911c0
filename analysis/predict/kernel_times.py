"""The time of one op's kernels on a device: rates, tiles and waves, sparse and gathered kernels.

A side, an Op and the names of the active terms give an OpCost before constants, and the ns of one
layer without the start of its kernels. A GEMM computes whole tiles in whole waves, with the best of
a few tiles, or evens out the last wave; `TileChoice.factor` is over useful work, in units of the
largest tile's rate. (device/tiles.py has the waves of a kernel that ran, whose name gives its
tile.) What a cost needs to know of a family it reads from the op (sparse, gathered, estimated,
added): no family is known by name here.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

from msgspec import Struct

from prunescope.analysis.device.hardware import same_chip
from prunescope.analysis.predict.attention_rates import attention_share
from prunescope.analysis.predict.constants import (
    DEFAULT,
    MARLIN,
    SPARSE,
    SPLITTING_LIBRARIES,
    Constants,
    SparseRate,
)
from prunescope.analysis.predict.eager_modules import has_scores_in_memory
from prunescope.analysis.predict.formats import LINEAR, WIDE
from prunescope.analysis.predict.setting import Setting
from prunescope.analysis.predict.side import PredictedSide
from prunescope.taxonomy.plan import Op

# Rows, columns, and the rate of a full wave over that of 128 x 256, first where whole waves count,
# then elsewhere. Where they count, a library changes the tile only where much is won: with N from
# 4,096 to 2,867 (arXiv 2606.09080, M = K = 4,096, RTX Pro 6000) the time stays that of 128 x 256 in
# three waves, so 128 x 128 in four cannot reach 0.67. Elsewhere, rates are those of GEMMs of 64 to
# 1,024 rows by cuBLASLt on an A100, of which those that fill half a wave of 128 x 256 take 0.7 of
# one (kernel tables of arXiv 2603.05232, github.com/bcacdwk/vllmbench). Tiles of fewer rows are for
# few tokens, where memory binds: no measured cell depends on their rates.
TILES: tuple[tuple[int, int, float, float], ...] = (
    (128, 256, 1.0, 1.0), (128, 128, 0.66, 0.88), (64, 256, 0.66, 0.88), (64, 128, 0.55, 0.65),
    (64, 64, 0.45, 0.52), (32, 128, 0.45, 0.52), (16, 128, 0.40, 0.45), (16, 64, 0.35, 0.40),
)  # fmt: skip
# A 2:4 kernel has one tile of 128 x 128, at the full rate of its library: PyTorch's is
# GemmShape<128, 128, 64>, which CUTLASS's profiler chose (aten SparseSemiStructuredLinear.cu), and
# never splits K. Its waves are finer than those of the dense kernel. Tiles of fewer rows are those
# above.
_SPARSE_TILES = tuple(
    (m, n, whole / TILES[1][2], even / TILES[1][3]) for m, n, whole, even in TILES if n <= 128
)
# Where libraries even out, w waves of tiles take (w^p + 1)^(1/p) of the time of one: 1.17, 1.39 and
# 2.08 of it for 1.04, 1.33 and 2.07 waves. The tables above measured 1.18, 1.44 and 2.30.
_EVENED = 5
_MMA_K = 16
_MIN_SPLIT_K = 512  # the least K of each part where K is split
_MAX_PARTS = 32
# Kernels per op: a norm comes with its residual add, an attention with the update of the cache.
_KERNELS_PER_OP = {"attn_norm": 2, "mlp_norm": 2, "attention": 2}


class TileChoice(Struct, frozen=True):
    """A tile and how often it runs.

    `waves` are full or partial ones; `parts` are those of K; `sums_parts`: whether one more kernel
    sums the parts. `factor` is the time of whole tiles in whole waves, `even` that where the last
    wave is evened out: libraries choose among tens of tiles, and some share the last wave out.
    """

    rows: int
    columns: int
    tiles: float
    parts: int
    waves: float
    factor: float
    even: float
    sums_parts: bool = False


# A way to cut a GEMM: seconds at the peak without and with what lies idle, bytes of partial sums.
_Cut = tuple[float, float, float, TileChoice]


class SplitCosts(NamedTuple):
    """The costs that decide whether K is split, in one unit of time.

    They are the useful work at the largest tile's rate, the traffic of one part's sums (infinite:
    the library does not split K), and the start of the kernel that adds them up.
    """

    work: float
    sums: float
    start: float


class OpCost(NamedTuple):
    """The cost of one layer of an op before constants, in seconds.

    `compute` is at the peak without tiles, `memory` at the bandwidth. `cuts` are ways to cut a GEMM
    into tiles, K whole first.
    """

    layers: float
    compute: float
    memory: float
    cuts: tuple[_Cut, ...]
    pointwise: bool
    sparse: float  # the time of a 2:4 GEMM over half of the dense time; 0: not 2:4
    gathered: bool
    unpacks: bool = False  # weights have fewer bits than they are multiplied in
    attention: float = 0.0  # the share of the peak that attention reaches; 0: that of a GEMM
    calibrated_ns: float | None = None  # as `calibrate` measured ops of its size; None: it did not


class Rates(NamedTuple):
    """The constants that the active terms apply to an OpCost."""

    tiles: bool
    idle: float  # the share of what whole tiles and waves leave idle that costs time
    gemm_share: float  # the share of the peak that the best GEMM reaches
    stream_share: float  # the share of the data sheet's bandwidth
    stream_byte_per_s: float
    pointwise: float
    sparse: float
    gathered: float
    start: float  # seconds that one more kernel takes
    unpack: float = 1.0  # the rate over that of a GEMM whose weights are not unpacked
    calibrated: bool = False  # whether times measured by size take the place of all others
    attention: float = 0.0  # the rate of attention over that of its generation; 0: that of a GEMM


def op_cost(side: PredictedSide, op: Op) -> OpCost:
    """Return the cost of one layer of an op."""
    setting, union = side.setting, op.union
    # Rows that need different inputs all compute what any of them needs.
    compute = (op.gemms[0].flop * union if union else op.flop) / side.flop_per_s(op)
    cuts: tuple[_Cut, ...] = ()
    if op.cls == "matmul" and setting.device.sm:
        gemm = op.gemms[0]
        spread = op.spread
        if op.rows < 1 and not spread:
            spread = (side.work.rows * op.rows * (1 - op.rows)) ** 0.5
        sums = 8.0 * gemm.batch * gemm.m * gemm.n  # bytes of a part's fp32 sums, written and read
        splits = not op.sparse or setting.sparse_library in SPLITTING_LIBRARIES
        split = SplitCosts(
            compute / (setting.gemm_ceiling or DEFAULT.gemm_share),
            sums / (setting.byte_per_s * DEFAULT.stream_share) if splits else math.inf,
            (DEFAULT.ramp_ns(setting.device) + DEFAULT.launch_ns) / 1e9,
        )
        k = max(1, round(gemm.k * (union or 1)))
        size = gemm.m, gemm.n, k, gemm.batch
        idle = DEFAULT.idle_share_on(setting.device)
        choices = choose_tiles(size, setting.device.sm, split, spread, sparse=op.sparse, idle=idle)
        cuts = tuple([_cut(choice, compute, sums) for choice in choices])
    return OpCost(
        op.layers,
        compute,
        op.bytes / setting.byte_per_s,
        cuts,
        op.cls == "pointwise",
        sparse_rate(setting).value if op.sparse else 0.0,
        op.rows < 1,
        setting.sparse_library == MARLIN and op.role in LINEAR,
        _attention_share(side, op),
    )


def _attention_share(side: PredictedSide, op: Op) -> float:
    """Return the share of the peak that a fused attention of a prompt reaches; 0: that of a GEMM.

    Eager scores are two GEMMs, and a decode step reads its cache.
    """
    fused = op.cls == "attention" and side.work.prefill and side.work.itemsize <= WIDE
    if not fused or has_scores_in_memory(side.setting):
        return 0.0
    scores = op.gemms[0]
    return attention_share(side.setting.device, keys=side.work.keys, head=scores.k)


def _cut(choice: TileChoice, compute: float, sums: float) -> _Cut:
    """Return a choice of tiles as a way to cut a GEMM of `compute` seconds.

    `sums` are the bytes of the sums of one part of K.
    """
    moved = sums * choice.parts if choice.parts > 1 else 0.0
    return compute * choice.even, compute * choice.factor, moved, choice


def sparse_rate(setting: Setting) -> SparseRate:
    """Return the 2:4 rate of a library on this chip in this format, else that of other devices."""
    for row in SPARSE:
        fits_chip = not row.devices or any(same_chip(setting.device, name) for name in row.devices)
        fits_format = not row.dtypes or setting.dtype in row.dtypes
        if setting.sparse_library in row.libraries and fits_chip and fits_format:
            return row
    return SPARSE[-1]


def rates(setting: Setting, c: Constants, active: Collection[str]) -> Rates:
    """Return the rates under the terms in `active`."""
    reached = "achievable" in active
    stream = c.stream_share if reached else 1.0
    ramp = c.ramp_ns(setting.device) if "kernel" in active else 0.0
    start = ramp + (c.launch_ns if "launch" in active else 0.0)
    return Rates(
        "tile_wave" in active,
        c.idle_share_on(setting.device),
        (setting.gemm_ceiling or c.gemm_share) if reached else 1.0,
        stream,
        setting.byte_per_s * stream,
        c.unfused if "elementwise" in active else 1.0,
        c.sparse_rate if "sparse_kernel" in active else 0.0,
        c.gathered_kernel if "gathered" in active else 1.0,
        start / 1e9,
        c.unpack_rate if reached else 1.0,
        reached,
        c.attention_rate if reached else 0.0,
    )


def op_ns(side: PredictedSide, op: Op, active: Collection[str]) -> float:
    """Return the ns of one layer of an op, without the start of its kernels."""
    return op_cost_ns(op_cost(side, op), rates(side.setting, side.setting.constants, active))


def op_cost_ns(cost: OpCost, r: Rates) -> float:
    """Return the ns of one layer: the slower of compute and memory.

    Compute has whole tiles and waves and the sums of a split K. The kernel that adds up the parts
    comes after both. A time that was measured at the op's size takes the place of both.
    """
    if r.calibrated and cost.calibrated_ns is not None:
        return cost.calibrated_ns
    if r.tiles and cost.cuts:
        seconds = _fastest_cut(cost, r)[0]
    else:
        memory = cost.memory / r.stream_share * (r.pointwise if cost.pointwise else 1.0)
        share = cost.attention * r.attention or r.gemm_share
        seconds = max(cost.compute / share * _slowdown(cost, r), memory)
    return seconds * (r.gathered if cost.gathered else 1.0) * 1e9


def _slowdown(cost: OpCost, r: Rates) -> float:
    """Return the time of a compute-bound GEMM over that of its FLOPs at a dense kernel's rate."""
    return (cost.sparse * r.sparse or 1.0) / (r.unpack if cost.unpacks else 1.0)


def cut_of(cost: OpCost, r: Rates) -> TileChoice | None:
    """Return the cut of a GEMM that takes least time; None for other ops and unknown devices."""
    return _fastest_cut(cost, r)[1] if cost.cuts else None


def _fastest_cut(cost: OpCost, r: Rates) -> tuple[float, TileChoice]:
    """Return the seconds of the cut of a GEMM that takes least time, and that cut."""
    memory, slowdown = cost.memory / r.stream_share, _slowdown(cost, r)
    least, best = math.inf, cost.cuts[0][-1]
    for even, whole, sums, choice in cost.cuts:  # the innermost loop of a grid of predictions
        seconds = even + r.idle * (whole - even)
        compute = seconds / r.gemm_share * slowdown + sums / r.stream_byte_per_s
        took = compute if compute > memory else memory
        if choice.sums_parts:
            took += r.start
        if took < least:
            least, best = took, choice
    return least, best


def kernels_of(ops: Iterable[Op]) -> float:
    """Count the kernels that ops start in a forward, over their layers."""
    return sum(op.layers * op.runs * _KERNELS_PER_OP.get(op.role, 1) for op in ops)


@lru_cache(maxsize=1 << 16)
def choose_tiles(
    gemm: tuple[int, int, int, int],
    sm: int,
    split: SplitCosts,
    spread: float = 0.0,
    *,
    sparse: bool = False,
    idle: float = 1.0,
) -> tuple[TileChoice, ...]:
    """Choose the tile that takes least time with K whole, and with K in parts where that is less.

    Rows chosen at run time fill their last tile by chance, and K is not split: no library plans for
    them. Every tile that a GEMM of more rows may take, one of fewer may take at no more time: so
    time never falls with the rows.

    Args:
        gemm: M, N, K and the batch.
        sm: The number of SMs.
        split: The costs that decide whether K is split.
        spread: The standard deviation of M; 0 where M is fixed.
        sparse: Whether the kernel is a 2:4 one.
        idle: The share of what whole tiles and waves leave idle that costs time.

    Returns:
        One choice or two.
    """
    (m, n, k, batch), depth = gemm, -(-gemm[2] // _MMA_K) * _MMA_K
    per_element = depth / (m * n * k * batch)  # work of an element of a tile over all useful work
    wholes = []
    for rows, columns, rate, evened in _SPARSE_TILES if sparse else TILES:
        per_tile = rows * columns / (rate if idle == 1 else evened) * per_element
        if spread:
            down = expected_tiles(m, spread, rows)
            filled = tiles = down * -(-n // columns) * batch
            waves = max(1.0, tiles / sm)
        else:
            tiles = -(-m // rows) * -(-n // columns) * batch
            filled = max(1.0, m / rows) * max(1.0, n / columns) * batch
            waves = -(-tiles // sm)
        even, factor = _evened(filled, sm) * per_tile, waves * sm * per_tile
        took = even + idle * (factor - even)
        wholes.append(_Whole(took, per_tile, rows, columns, tiles, filled, waves, factor, even))
    fastest = min(wholes)
    whole = TileChoice(
        fastest.rows, fastest.columns, fastest.tiles, 1, fastest.waves, fastest.factor, fastest.even
    )
    if spread or fastest.waves * sm <= fastest.tiles:  # full waves: nothing to even out
        return (whole,)
    best = _best_split(wholes, gemm, sm, split, below=split.work * fastest.took, idle=idle)
    return (whole,) if best is None else (whole, best)


def _evened(tiles: float, slots: float) -> float:
    """Return how many tiles could run in the time of `tiles` on `slots` units, evened out."""
    if tiles > 8 * slots:
        return tiles
    return float((tiles**_EVENED + slots**_EVENED) ** (1 / _EVENED))


class _Whole(NamedTuple):
    """A tile with K whole.

    `took` and `per_tile` are over useful work; `filled` counts tiles, in parts of one; `factor` and
    `even` are those of TileChoice.
    """

    took: float
    per_tile: float
    rows: int
    columns: int
    tiles: float
    filled: float
    waves: float
    factor: float
    even: float


def _best_split(
    wholes: Sequence[_Whole],
    gemm: tuple[int, int, int, int],
    sm: int,
    split: SplitCosts,
    *,
    below: float,
    idle: float,
) -> TileChoice | None:
    """Return the best split of K that takes less time than `below`; None where there is none."""
    best = None
    for tile in wholes:
        if split.work * tile.per_tile * tile.filled + 2 * split.sums >= below:
            continue  # it is slower even with every unit busy
        sums_parts = gemm[0] > tile.rows
        # There may be as many parts as fill the units in one wave; for a single row of tiles any
        # number, as kernels for few tokens balance the load.
        most = min(_MAX_PARTS, gemm[2] // _MIN_SPLIT_K)
        for parts in range(2, (min(most, int(sm / tile.tiles)) if sums_parts else most) + 1):
            waves = math.ceil(tile.tiles * parts / sm)
            factor = waves * sm / parts * tile.per_tile
            even = _evened(tile.filled, sm / parts) * tile.per_tile
            took = split.work * (even + idle * (factor - even))
            took += split.sums * parts + split.start * sums_parts
            if took < below:
                below = took
                best = TileChoice(
                    tile.rows, tile.columns, tile.tiles, parts, waves, factor, even, sums_parts
                )
    return best


def expected_tiles(mean: float, spread: float, rows: int) -> float:
    """Return the mean number of tiles of `rows` under a normal number of rows.

    It is the sum over j of P(rows > j·r).
    """
    first = max(0, math.floor((mean - 4 * spread) / rows))
    last = math.ceil((mean + 4 * spread) / rows)
    later = sum(
        0.5 * math.erfc((j * rows - mean) / (spread * math.sqrt(2)))
        for j in range(max(first, 1), last + 1)
    )
    return max(first, 1) + later
