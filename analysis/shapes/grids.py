"""What the grid of a GEMM kernel allows for M where N is known, and for N where M is.

In: the tile that a kernel's name states, its blocks, one side of the result. Out: intervals of the
other side; None where the grid says nothing (no tile, or blocks that are workers).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from functools import lru_cache

from prunescope.analysis.device.tiles import Tile, tile_of

Intervals = tuple[tuple[int, int], ...]  # both ends included, growing
_SPLITS = re.compile(r"split_?k|stream_?k|GSU(?:[2-9]|\d\d)|_SK[1-9]", re.IGNORECASE)
# Kernels that may share tiles out over fewer blocks by a scheduler of their own.
_SCHEDULED = re.compile(r"cutlass3x|sm(?:90|100)_xmma|[Pp]ersistent|triton|_ws_|warpspecialized")
_SWIZZLES = (1, 2, 4, 8, 16)
_MOST = 1 << 22  # blocks; more are not looked at


@lru_cache(maxsize=8192)
def other_side(
    size: int, kernel: str, grid: tuple[int, ...], *, sm: int | None
) -> Intervals | None:
    """What M may be where N = `size`, or N where M = `size`.

    None where the grid does not tell: no tile in the name, K that may be split, or blocks that may
    be workers.
    """
    tile, blocks = tile_of(kernel), math.prod(grid)
    depth = grid[2] if len(grid) > 2 else 1
    if tile is None or tile.persistent or _SPLITS.search(kernel) or depth > 1:
        return None
    if not 0 < blocks <= _MOST or size <= 0 or _workers(kernel, blocks, sm):
        return None
    found = set()
    for along, across in ((tile.rows, tile.columns), (tile.columns, tile.rows)):
        counted = -(-size // along)
        for other in _counts(counted, blocks, tile):
            found.add(((other - 1) * across + 1, other * across))
    if not found and _SCHEDULED.search(kernel) and (sm is None or blocks <= 2 * sm):
        return None
    return _joined(found)


def _workers(kernel: str, blocks: int, sm: int | None) -> bool:
    """Whether blocks may be workers that share the tiles out: as many as multiprocessors, or twice
    as many; of CUTLASS 3 whole clusters of them, which may be a few less."""
    if sm is None or blocks > 2 * sm:
        return False
    return blocks in (sm, 2 * sm) or "cutlass3x" in kernel and 0.9 * sm <= blocks <= sm


def _counts(counted: int, blocks: int, tile: Tile) -> set[int]:
    """Tiles along the other side with which `counted` along this one make so many blocks: as they
    are, or rounded up to whole clusters or for a swizzle (x·s by ⌈y/s⌉ blocks)."""
    out: set[int] = set()
    padded = [(-(-counted // a) * a, b) for a, b in (tile.cluster, tile.cluster[::-1])]
    folded = [(-(-counted // s) * s, 1) for s in _SWIZZLES]
    for width, unit in [*padded, *folded, *((counted, s) for s in _SWIZZLES)]:
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
    """What is in both; None (everything) gives the other one."""
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


def written(allowed: Intervals | None) -> str:
    """For a person: "833–896", or several."""
    if allowed is None:
        return "any"
    return " or ".join(f"{a:,}" if a == b else f"{a:,}–{b:,}" for a, b in allowed[:3]) or "none"
