"""Good dimensions near that of a GEMM: in, the tiling of its kernel; out, N or K.

A good N is the largest N with the same number of waves, and a multiple of the tile width and of 16;
a good K is a multiple of 16.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from prunescope.analysis.device.tiles import GOOD

# How far away a good N may lie, relative. NEAR: in a finding, which proposes a change that keeps
# nearly the same weights. FAR: in a table for planning the next pruning.
NEAR, FAR = 0.03, 0.125
_STEPS = 512  # tiles to either side; a forged shape has more
_EPS = 1e-9


@dataclass(frozen=True)
class Tiling:
    """The tiles of a GEMM's kernel: each is `side` wide along N, `column` of them share a column,
    `slots` run at a time (None: unknown, and each tile counts as a wave)."""

    side: int
    column: float
    slots: float | None

    def waves(self, n: int) -> int:
        """Whole waves at N = n."""
        return math.ceil(self.column * math.ceil(n / self.side) / (self.slots or 1.0) - _EPS)

    def widest(self, waves: int) -> int | None:
        """The largest N of that many waves; None where a wave holds no column."""
        return int(waves * (self.slots or 1.0) / self.column + _EPS) * self.side or None


def wave_aligned_neighbours(
    tiling: Tiling, axis: str, now: int, *, reach: float
) -> tuple[int | None, int | None]:
    """The nearest good dimension below `now`, and at or above it; None where there is none."""
    if axis == "K":
        return aligned_neighbours(now)
    step = math.lcm(tiling.side, GOOD)
    tried = range(2 + min(_STEPS, int(now * reach) // step))

    def ends(n: int) -> bool:
        near = n > 0 and abs(n - now) <= reach * now
        return near and tiling.waves(n + 1) > tiling.waves(n)

    below = _first((now // step * step - i * step for i in tried), lambda n: n < now and ends(n))
    above = _first((-(-now // step) * step + i * step for i in tried), ends)
    return below, above


def aligned_neighbours(now: int) -> tuple[int | None, int]:
    """The nearest multiple of 16 below `now`, and that at or above it."""
    above = -(-now // GOOD) * GOOD
    return (now - 1) // GOOD * GOOD or None, above


def _first(values: Iterable[int], fits: Callable[[int], bool]) -> int | None:
    return next((value for value in values if fits(value)), None)
