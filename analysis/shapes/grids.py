"""The M that the grid of a GEMM kernel allows if N is known, and the N if M is known.

In: the tile in a kernel's name, its grid of thread blocks, M or N. Out: intervals of the other
size; None where the grid does not show it (no tile, or a persistent kernel, whose blocks take
several tiles each).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

from prunescope.analysis.device.tiles import Tile, tile_of
from prunescope.taxonomy.lazy_pattern import lazy_pattern

Intervals = tuple[tuple[int, int], ...]  # both ends included, growing
_SPLITS = lazy_pattern(r"split_?k|stream_?k|GSU(?:[2-9]|\d\d)|_SK[1-9]", re.IGNORECASE)
# Kernels that may be persistent: fewer thread blocks than tiles, with a tile scheduler.
_SCHEDULED = lazy_pattern(r"cutlass3x|sm(?:90|100)_xmma|[Pp]ersistent|triton|_ws_|warpspecialized")
# How grids are laid out, by 314 GEMMs of public traces whose shapes were recorded. In all of them
# a tile's rows lie along N: BLAS is column-major, PyTorch row-major. cuBLAS's own kernels: tiles
# along N by tiles along M, then the slices of split-K. CUTLASS 2: the same, swizzled: s tiles of
# one side are folded into the other. Tensile and nvjet: one number, without a swizzle.
_PLANE = lazy_pattern(
    r"(?:kepler|maxwell|pascal|volta|turing|ampere|ada|hopper|blackwell)_\w*?gemm"
)
_SWIZZLED = lazy_pattern(r"cutlass_\d\d_")
_EXACT = lazy_pattern(r"Cijk_|nvjet_")
_SWIZZLES = (1, 2, 4, 8, 16)
_NAME_LIMIT = 512
_MOST = 1 << 22  # blocks; a larger grid is not examined


def rows_of(n: int, kernel: str, grid: tuple[int, ...], *, sm: int | None) -> Intervals | None:
    """Return the possible M where N is known.

    None means that the grid does not show it: the name has no tile, or the kernel may use split-K
    or may be persistent.
    """
    return _other_side(n, kernel, grid, sm=sm, wide=True)


def widths_of(m: int, kernel: str, grid: tuple[int, ...], *, sm: int | None) -> Intervals | None:
    """Return the possible N where M is known; None as for `rows_of`."""
    return _other_side(m, kernel, grid, sm=sm, wide=False)


@lru_cache(maxsize=8192)
def _other_side(
    size: int, kernel: str, grid: tuple[int, ...], *, sm: int | None, wide: bool
) -> Intervals | None:
    """Return the possible sizes of the side that is not known; `wide` means that `size` is N.

    The rows of the tile lie along N.
    """
    tile, (x, y, depth) = tile_of(kernel), (*grid, 1, 1, 1)[:3]
    if tile is None or tile.persistent or _SPLITS.search(kernel) or size <= 0:
        return None
    plane = _PLANE.match(kernel) is not None
    swizzled = _SWIZZLED.search(kernel[:_NAME_LIMIT]) is not None
    blocks = x * y * depth
    if not 0 < blocks <= _MOST or (depth > 1 and not plane and not swizzled):
        return None
    if not plane and not swizzled and _may_be_persistent(kernel, blocks, sm):
        return None
    along, across = (tile.rows, tile.columns) if wide else (tile.columns, tile.rows)
    counted = -(-size // along)
    if plane:
        mine, theirs = (x, y) if wide else (y, x)
        tiles_across = {theirs} if counted == mine else set()
    elif swizzled:
        tiles_across = _unfold(counted, x, y)
    else:
        tiles_across = _tiles_across(counted, blocks, tile, exact=_EXACT.match(kernel) is not None)
    if not tiles_across and _SCHEDULED.search(kernel) and (sm is None or blocks <= 2 * sm):
        return None
    return _join(((tiles - 1) * across + 1, tiles * across) for tiles in tiles_across)


def _may_be_persistent(kernel: str, blocks: int, sm: int | None) -> bool:
    """Return whether the grid may be that of a persistent kernel.

    It then has as many blocks as SMs, or twice as many. CUTLASS 3 launches whole clusters of
    blocks, so possibly a few less.
    """
    if sm is None or blocks > 2 * sm:
        return False
    return blocks in (sm, 2 * sm) or "cutlass3x" in kernel and 0.9 * sm <= blocks <= sm


def _unfold(counted: int, x: int, y: int) -> set[int]:
    """Return the tiles along the other side of a swizzled grid.

    The grid has s tiles of one side folded into the other: x·s by ⌈y/s⌉.
    """
    unfolded: set[int] = set()
    for s in _SWIZZLES:
        if x == counted * s:
            unfolded.update(range((y - 1) * s + 1, y * s + 1))
        if x % s == 0 and y == -(-counted // s):
            unfolded.add(x // s)
    return unfolded


def _tiles_across(counted: int, blocks: int, tile: Tile, *, exact: bool) -> set[int]:
    """Return the numbers of tiles along the other side with which a grid has so many blocks.

    The tiles `counted` along this side are taken as they are, rounded up to whole clusters, or,
    unless `exact`, rounded for a swizzle.
    """
    tiles_across: set[int] = set()
    widths = [(counted, 1)]
    widths += [(-(-counted // a) * a, b) for a, b in (tile.cluster, tile.cluster[::-1])]
    if not exact:
        widths += [(-(-counted // s) * s, 1) for s in _SWIZZLES]
        widths += [(counted, s) for s in _SWIZZLES]
    for width, unit in widths:
        across, remainder = divmod(blocks, width)
        if not remainder and across and across % unit == 0:
            tiles_across.update(range(across - unit + 1, across + 1))
    return tiles_across


def _join(parts: Iterable[tuple[int, int]]) -> Intervals:
    """Join intervals that overlap or touch."""
    joined: list[tuple[int, int]] = []
    for low, high in sorted(parts):
        if joined and low <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(joined[-1][1], high))
        else:
            joined.append((low, high))
    return tuple(joined)


def meet(a: Intervals | None, b: Intervals | None) -> Intervals | None:
    """Return the intersection; None stands for all values."""
    if a is None or b is None:
        return b if a is None else a
    both = {(max(x[0], y[0]), min(x[1], y[1])) for x in a for y in b}
    return _join((low, high) for low, high in both if low <= high)


def holds(allowed: Intervals | None, value: int) -> bool:
    """Return whether a value is allowed; None allows everything."""
    return allowed is None or any(low <= value <= high for low, high in allowed)


def only(allowed: Intervals | None) -> int | None:
    """Return the one value that is allowed; None where there are several, or none."""
    if allowed is None or len(allowed) != 1 or allowed[0][0] != allowed[0][1]:
        return None
    return allowed[0][0]
