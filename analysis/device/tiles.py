"""Tile and wave quantisation of a GEMM kernel: the cost of its shape on the SMs of a device.

A kernel's name, its GEMM, its launch (blocks, threads, registers, bytes) and the limits of a device
give a Tile and a WaveEstimate: tiles, waves and two efficiencies in (0..1], where None is unknown.
A Tiling and a dimension give the nearest N or K that fill their waves. This is the model of a
kernel that ran, whose name gives its tile; predict/kernels.py has the model of one that did not,
which picks the best of a few tiles.
"""

from __future__ import annotations

import math

from msgspec import Struct

from prunescope.analysis.device.hardware import Device
from prunescope.taxonomy.gemm import Gemm
from prunescope.taxonomy.lazy_pattern import lazy_pattern

HALF = ("bf16", "fp16")  # the 16-bit formats of tensor cores
ALIGNED = 8  # elements of 16 bits: tensor cores load such N and K in whole 16-byte accesses
GOOD = 16  # elements of 16 bits: with such N and K they run best
# How far away a good N may lie, as a share of N. NEAR serves a finding, which proposes a change
# that keeps nearly the same weights; FAR serves a table for planning the next pruning.
NEAR, FAR = 0.03, 0.125
_STEPS = 512  # tiles that are tried to either side; only a forged shape needs more
_EPS = 1e-9


class Tile(Struct, frozen=True):
    """The block of the result that one thread block computes, by the kernel's name.

    `rows` and `columns` are those of the library's result, which for column-major BLAS is the
    transpose of ours. `cluster` counts the thread blocks along both that launch together. The grid
    of a `persistent` kernel counts blocks that each take several tiles.
    """

    rows: int
    columns: int
    depth: int | None = None
    cluster: tuple[int, int] = (1, 1)
    persistent: bool = False


class Launch(Struct, frozen=True):
    """The launch of a kernel, with its grid in blocks (`grid_in_blocks` converts work-items)."""

    grid: tuple[int, ...]
    block: tuple[int, ...] | None = None
    registers: int | None = None  # per thread
    shared_bytes: int | None = None  # per block


class WaveEstimate(Struct, frozen=True):
    """The way in which a GEMM fills the device.

    `fit` tells how the tiles explain the grid: "exact", "padded" (rounded up for swizzling or
    clusters), "split" (a whole multiple: K is split), "persistent" (each block takes several tiles:
    there are fewer blocks than tiles, or the kernel's name tells so and there are no more blocks
    than run at a time) or "unexplained". `swapped`: the tile's rows lie along N. `waves` and what
    follows from it need the residency.
    """

    tiles: int
    blocks: int
    split_k: int
    swapped: bool
    fit: str
    tile_efficiency: float
    resident: int | None
    waves: float | None
    wave_efficiency: float | None


_XY = r"(\d{1,4})x(\d{1,4})"
# Each pattern finds rows, columns and depth; in nvjet and CUTLASS 3 also a cluster.
_TILES = tuple(
    lazy_pattern(pattern)
    for pattern in (
        # sm90_xmma_gemm_..._tilesize128x128x64_cgasize2x1x1_...
        rf"tilesize{_XY}x(\d{{1,4}})(?:\w*?_cgasize{_XY}x\d)?",
        # nvjet_tst_128x256_64x4_1x2_h_bz_...: tile, depth x stages, cluster
        rf"^nvjet_[a-z]+_{_XY}_(\d{{1,4}})x\d{{1,3}}_{_XY}",
        # nvjet_sm103_qqtst_mma_192x168x128_6_64x168x64_cga2x1x1_...
        rf"^nvjet_sm\d+_\w*?mma_{_XY}x(\d{{1,4}})_(?:\w*?_cga{_XY}x\d)?",
        # cutlass3x_sm90_tensorop_s64x128x16gemm_bf16_..._128x128x64_2x1x1_0_tnn_...
        rf"cutlass3x_sm\d+_\w*?gemm_\w*?_{_XY}x(\d{{1,4}})(?:_{_XY}x\d)?_",
        # cutlass_80_tensorop_s1688gemm_64x64_32x6_tn_align4: tile, depth x stages
        rf"cutlass_\d+_\w*?gemm_(?:\w+?_)?{_XY}_(\d{{1,4}})x\d{{1,3}}_",
        # cutlass_75_tensorop_bf16_s1688gemm_bf16_256x128_tn_align1
        rf"cutlass_\d+_\w*?gemm_(?:\w+?_)?{_XY}_[nt]{{2}}",
        # ampere_bf16_s16816gemm_bf16_128x64_ldg8_f2f_stages_64x3_tn, volta_sgemm_128x32_nn
        rf"^(?:kepler|maxwell|pascal|volta|turing|ampere|ada|hopper|blackwell)_\w*?gemm_(?:\w+?_)?{_XY}"
        r"(?:_\w*?stages_(\d{1,4})x\d)?",
        # Cijk_Alik_Bljk_..._MT256x128x64_...
        rf"^Cijk_\w*?_MT{_XY}x(\d{{1,4}})",
    )
)
# Hopper's xmma kernels have a scheduler of their own: 120 blocks for 560 tiles, or 98 for 78.
_PERSISTENT = lazy_pattern(r"^sm90_xmma_gemm_\w+_warpgroupsize\w+_execute_segment_k_off")
# The tile comes early in a name, and a limit keeps hostile names cheap.
_NAME_LIMIT = 512
# CUDA keeps 1 KiB of shared memory per block from compute capability 8.0 on. Those devices have
# 100 KiB or more per SM, the ones before 96 KiB or less.
_RESERVED_BYTES, _RESERVED_FROM = 1024, 100 * 1024
_REGISTER_UNIT = 256  # registers are given to a warp in units of 256
_SWIZZLES = (1, 2, 4, 8, 16)
_MOST_TILES = 2**53  # more is a forged shape


def tile_of(kernel: str) -> Tile | None:
    """Return the tile in a GEMM kernel's name; None where there is none."""
    for pattern in _TILES:
        match = pattern.search(kernel[:_NAME_LIMIT])
        if match is None:
            continue
        sizes = [int(group) if group else 0 for group in match.groups()]
        rows, columns, depth, across, down = (*sizes, 0, 0, 0)[:5]
        if rows and columns:
            persistent = _PERSISTENT.match(kernel[:_NAME_LIMIT]) is not None
            return Tile(rows, columns, depth or None, (across or 1, down or 1), persistent)
    return None


def grid_in_blocks(grid: tuple[int, ...], block: tuple[int, ...]) -> tuple[int, ...]:
    """Return a grid of work-items (ROCm) in blocks."""
    widths = (*block, *(1 for _ in grid))
    return tuple(-(-n // max(1, width)) for n, width in zip(grid, widths, strict=False))


def wave_model(
    gemm: Gemm, tile: Tile, launch: Launch, device: Device | None
) -> WaveEstimate | None:
    """Estimate tiles, waves and efficiencies of a GEMM kernel.

    tiles = ⌈M/Tm⌉·⌈N/Tn⌉·batch·split-K, in the orientation that explains the grid, else with M and
    N swapped (column-major). waves = tiles / (SMs · resident blocks). Tile efficiency is
    batch·split-K·M·N / (tiles·Tm·Tn), wave efficiency w/⌈w⌉.

    Args:
        gemm: M, N, K and the batch.
        tile: The tile that the kernel's name states.
        launch: The grid and the resources of a block.
        device: The device with its limits; None: waves are unknown.

    Returns:
        The estimate; None for an empty or a forged GEMM.
    """
    blocks = math.prod(launch.grid)
    if min(gemm.m, gemm.n, gemm.batch, blocks) <= 0:
        return None
    fits = [_explain_grid(gemm, tile, launch.grid, swapped=swapped) for swapped in (True, False)]
    # Of two orientations of equal rank the first wins, the column-major one.
    fit, split_k, swapped = min(fits, key=lambda explained: _RANK[explained[0]])
    resident = resident_blocks(launch, device)
    slots = device.sm * resident if device is not None and device.sm and resident else None
    if fit in ("split", "unexplained") and tile.persistent and slots and blocks <= slots:
        fit, split_k, swapped = "persistent", 1, fits[0][2]
    across, down = _count_tiles(gemm, tile, swapped=swapped)
    tiles = across * down * gemm.batch * split_k
    if tiles > _MOST_TILES:
        return None
    covered = tiles * tile.rows * tile.columns
    waves = tiles / slots if slots else None
    return WaveEstimate(
        tiles=tiles,
        blocks=blocks,
        split_k=split_k,
        swapped=swapped,
        fit=fit,
        tile_efficiency=gemm.batch * split_k * gemm.m * gemm.n / covered,
        resident=resident,
        waves=waves,
        wave_efficiency=waves / -(-tiles // slots) if waves and slots else None,
    )


def shape_loss(estimate: WaveEstimate | None) -> float | None:
    """Return the factor (>= 1) by which tiles and waves stretch the ideal time.

    Returns None without an estimate. A wave efficiency that is unknown counts as 1.
    """
    if estimate is None:
        return None
    return 1 / (estimate.tile_efficiency * (estimate.wave_efficiency or 1.0))


def resident_blocks(launch: Launch, device: Device | None) -> int | None:
    """Return how many blocks of a kernel fit on one SM at a time.

    It is the least that threads, registers, shared memory and the block limit allow; None where the
    launch or the limits are unknown.
    """
    if device is None or launch.block is None or launch.registers is None:
        return None
    limits = (device.max_threads_per_sm, device.registers_per_sm, device.shared_bytes_per_sm)
    if launch.shared_bytes is None or None in limits or not device.warp:
        return None
    threads, registers, shared = (limit or 0 for limit in limits)
    warps = max(1, -(-math.prod(launch.block) // device.warp))
    a_warp = -(-launch.registers * device.warp // _REGISTER_UNIT) * _REGISTER_UNIT
    allowed = [threads // (warps * device.warp)]
    if a_warp:
        allowed.append(registers // a_warp // warps)
    reserved = _RESERVED_BYTES if shared >= _RESERVED_FROM else 0
    if launch.shared_bytes + reserved:
        allowed.append(shared // (launch.shared_bytes + reserved))
    if device.max_blocks_per_sm is not None:
        allowed.append(device.max_blocks_per_sm)
    return max(1, min(allowed))  # it ran, so one fits


_RANK = {"exact": 0, "padded": 1, "split": 2, "persistent": 3, "unexplained": 4}


def _count_tiles(gemm: Gemm, tile: Tile, *, swapped: bool) -> tuple[int, int]:
    """Return how many tiles lie along the tile's rows and along its columns."""
    along_rows, along_columns = (gemm.n, gemm.m) if swapped else (gemm.m, gemm.n)
    return -(-along_rows // tile.rows), -(-along_columns // tile.columns)


def _explain_grid(
    gemm: Gemm, tile: Tile, grid: tuple[int, ...], *, swapped: bool
) -> tuple[str, int, bool]:
    """Return how one orientation explains the grid, the split of K that it takes, and `swapped`."""
    x, y = _count_tiles(gemm, tile, swapped=swapped)
    blocks = math.prod(grid)
    plane = x * y * gemm.batch
    if blocks == plane:
        return "exact", 1, swapped
    split = _parts_of_k(grid, gemm.batch)
    if split > 1 and blocks == plane * split:
        return "split", split, swapped
    if any(blocks == padded * gemm.batch * split for padded in _padded_planes(x, y, tile)):
        return "padded", split, swapped
    if blocks % plane == 0:
        return "split", blocks // plane, swapped
    return ("persistent" if blocks < plane else "unexplained"), 1, swapped


def _parts_of_k(grid: tuple[int, ...], batch: int) -> int:
    """Return the number of parts of K: the third grid dimension counts them, times the batch."""
    depth = grid[2] if len(grid) > 2 else 1
    return depth // batch if depth % batch == 0 else 1


def _padded_planes(x: int, y: int, tile: Tile) -> set[int]:
    """Return the plane sizes after rounding up.

    Planes are rounded to whole clusters, or for a swizzle that folds s of one dimension into the
    other (x·s by ⌈y/s⌉ blocks).
    """
    rows, columns = tile.cluster
    sizes = {-(-x // a) * a * -(-y // b) * b for a, b in ((rows, columns), (columns, rows))}
    for s in _SWIZZLES:
        sizes |= {x * s * -(-y // s), y * s * -(-x // s)}
    return sizes


class Tiling(Struct, frozen=True):
    """The tiles of a GEMM's kernel.

    Each is `side` wide along N, `column` of them share a column, and `slots` run at a time (None:
    unknown, and each tile counts as a wave).
    """

    side: int
    column: float
    slots: float | None

    def waves(self, n: int) -> int:
        """Return the number of whole waves at N = n."""
        return math.ceil(self.column * math.ceil(n / self.side) / (self.slots or 1.0) - _EPS)

    def widest(self, waves: int) -> int | None:
        """Return the largest N of that many waves; None where a wave holds no column."""
        return int(waves * (self.slots or 1.0) / self.column + _EPS) * self.side or None


def wave_aligned_neighbours(
    tiling: Tiling, axis: str, now: int, *, reach: float
) -> tuple[int | None, int | None]:
    """Return the nearest good dimension below `now`, and the nearest at or above it.

    A good N is the largest with its number of waves, and a multiple of the tile width and of 16; a
    good K is a multiple of 16.

    Args:
        tiling: The tiles of the kernel.
        axis: "N" or "K".
        now: The dimension now.
        reach: How far away a good N may lie, as a share of `now`.

    Returns:
        Both dimensions, each None where there is none.
    """
    if axis == "K":
        return aligned_neighbours(now)
    step = math.lcm(tiling.side, GOOD)
    tried = range(2 + min(_STEPS, int(now * reach) // step))

    def ends(n: int) -> bool:
        """Return whether a wave ends at n, within reach."""
        near = n > 0 and abs(n - now) <= reach * now
        return near and tiling.waves(n + 1) > tiling.waves(n)

    highest, lowest = now // step * step, -(-now // step) * step
    below = (highest - i * step for i in tried)
    above = (lowest + i * step for i in tried)
    return next((n for n in below if n < now and ends(n)), None), next(filter(ends, above), None)


def aligned_neighbours(now: int) -> tuple[int | None, int]:
    """Return the nearest multiple of 16 below `now`, and the nearest at or above it."""
    above = -(-now // GOOD) * GOOD
    return (now - 1) // GOOD * GOOD or None, above
