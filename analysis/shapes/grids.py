"""The M that the grid of a GEMM kernel allows if N is known, and the N if M is known.

In: the tile in a kernel's name, its grid of thread blocks, M or N. Out: intervals of the other one;
None where the grid does not show it (no tile, or a persistent kernel, whose blocks take several
tiles each).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

from prunescope.analysis.device.tiles import Tile, tile_of

Intervals = tuple[tuple[int, int], ...]  # both ends included, growing
_SPLITS = re.compile(r"split_?k|stream_?k|GSU(?:[2-9]|\d\d)|_SK[1-9]", re.IGNORECASE)
# Kernels that may be persistent: fewer thread blocks than tiles, with a tile scheduler.
_SCHEDULED = re.compile(r"cutlass3x|sm(?:90|100)_xmma|[Pp]ersistent|triton|_ws_|warpspecialized")
# How grids are laid out, by 314 GEMMs of public traces whose shapes were recorded. In all of them
# a tile's rows lie along N: BLAS is column-major, PyTorch row-major. cuBLAS's own kernels: tiles
# along N by tiles along M, then the slices of split-K. CUTLASS 2: the same, swizzled: s tiles of
# one side are folded into the other. Tensile and nvjet: one number, without a swizzle.
_PLANE = re.compile(r"(?:kepler|maxwell|pascal|volta|turing|ampere|ada|hopper|blackwell)_\w*?gemm")
_SWIZZLED = re.compile(r"cutlass_\d\d_")
_EXACT = re.compile(r"Cijk_|nvjet_")
_SWIZZLES = (1, 2, 4, 8, 16)
_NAME_LIMIT = 512
_MOST = 1 << 22  # blocks; more are not looked at


def rows_of(n: int, kernel: str, grid: tuple[int, ...], *, sm: int | None) -> Intervals | None:
    """The possible M where N is known; None where the grid does not show it: no tile in the name,
    possibly split-K, or possibly a persistent kernel."""
    return _other_side(n, kernel, grid, sm=sm, wide=True)


def widths_of(m: int, kernel: str, grid: tuple[int, ...], *, sm: int | None) -> Intervals | None:
    """The possible N where M is known; None as above."""
    return _other_side(m, kernel, grid, sm=sm, wide=False)


@lru_cache(maxsize=8192)
def _other_side(
    size: int, kernel: str, grid: tuple[int, ...], *, sm: int | None, wide: bool
) -> Intervals | None:
    """`wide`: the size is N, along which the tile's rows lie."""
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
        others = {theirs} if counted == mine else set()
    elif swizzled:
        others = _folded(counted, x, y)
    else:
        others = _counts(counted, blocks, tile, exact=_EXACT.match(kernel) is not None)
    if not others and _SCHEDULED.search(kernel) and (sm is None or blocks <= 2 * sm):
        return None
    return _joined(((other - 1) * across + 1, other * across) for other in others)


def _may_be_persistent(kernel: str, blocks: int, sm: int | None) -> bool:
    """Whether the grid may be that of a persistent kernel: as many blocks as SMs, or twice as many;
    of CUTLASS 3 whole clusters of blocks, so possibly a few less."""
    if sm is None or blocks > 2 * sm:
        return False
    return blocks in (sm, 2 * sm) or "cutlass3x" in kernel and 0.9 * sm <= blocks <= sm


def _folded(counted: int, x: int, y: int) -> set[int]:
    """Tiles along the other side of a grid with s of one folded into the other: x·s by ⌈y/s⌉."""
    out: set[int] = set()
    for s in _SWIZZLES:
        if x == counted * s:
            out.update(range((y - 1) * s + 1, y * s + 1))
        if x % s == 0 and y == -(-counted // s):
            out.add(x // s)
    return out


def _counts(counted: int, blocks: int, tile: Tile, *, exact: bool) -> set[int]:
    """Tiles along the other side with which `counted` along this one make so many blocks: as they
    are, rounded up to whole clusters, or, unless `exact`, for a swizzle."""
    out: set[int] = set()
    widths = [(counted, 1)]
    widths += [(-(-counted // a) * a, b) for a, b in (tile.cluster, tile.cluster[::-1])]
    if not exact:
        widths += [(-(-counted // s) * s, 1) for s in _SWIZZLES]
        widths += [(counted, s) for s in _SWIZZLES]
    for width, unit in widths:
        other, rest = divmod(blocks, width)
        if not rest and other and other % unit == 0:
            out.update(range(other - unit + 1, other + 1))
    return out


def _joined(parts: Iterable[tuple[int, int]]) -> Intervals:
    out: list[tuple[int, int]] = []
    for low, high in sorted(parts):
        if out and low <= out[-1][1] + 1:
            out[-1] = (out[-1][0], max(out[-1][1], high))
        else:
            out.append((low, high))
    return tuple(out)


def meet(a: Intervals | None, b: Intervals | None) -> Intervals | None:
    """The intersection; None stands for all values."""
    if a is None or b is None:
        return b if a is None else a
    both = {(max(x[0], y[0]), min(x[1], y[1])) for x in a for y in b}
    return _joined((low, high) for low, high in both if low <= high)


def holds(allowed: Intervals | None, value: int) -> bool:
    """Whether a value is allowed; None allows everything."""
    return allowed is None or any(low <= value <= high for low, high in allowed)


def only(allowed: Intervals | None) -> int | None:
    """The one value that is allowed; None where there are more, or none."""
    if allowed is None or len(allowed) != 1 or allowed[0][0] != allowed[0][1]:
        return None
    return allowed[0][0]
