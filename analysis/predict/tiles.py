"""What a GEMM computes: whole tiles in whole waves, with the best of a few tiles.

In: a GEMM's sizes, the number of units (SMs), how far its rows vary, and what a split of K costs.
Out: Choices, whose `factor` is computed over useful work, in units of the largest tile's rate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

# Rows, columns, and the rate of a full wave over that of 128 x 256. A library changes the tile only
# where much is won: with N from 4,096 to 2,867 (arXiv 2606.09080, M = K = 4,096, RTX Pro 6000) the
# time stays that of 128 x 256 in three waves, so 128 x 128 in four cannot reach 0.67. Tiles of few
# rows are for few tokens, where memory binds: no measured cell depends on their rates.
TILES: tuple[tuple[int, int, float], ...] = (
    (128, 256, 1.0), (128, 128, 0.66), (64, 256, 0.66), (64, 128, 0.55),
    (64, 64, 0.45), (32, 128, 0.45), (16, 128, 0.40), (16, 64, 0.35),
)  # fmt: skip
# A 2:4 kernel has one tile of 128 x 128, at the full rate of its library, and K whole: PyTorch's is
# GemmShape<128, 128, 64>, taken by CUTLASS's profiler (aten SparseSemiStructuredLinear.cu). Its
# waves are finer than those of the dense kernel beside it. Of tiles of fewer rows as above.
SPARSE_TILES = tuple((m, n, rate / TILES[1][2]) for m, n, rate in TILES if n <= 128)
_MMA_K = 16
_LEAST_K = 512  # of each part where K is split
_MOST_PARTS = 32


@dataclass(frozen=True, slots=True)
class Choice:
    """A tile and how often it runs. `waves` counts full or partial ones, `parts` those of K;
    `adds_up`: one more kernel sums them up."""

    rows: int
    columns: int
    tiles: float
    parts: int
    waves: float
    factor: float
    adds_up: bool = False


class Pace(NamedTuple):
    """What weighs a split of K, in any one unit of time: the useful work at the largest tile's
    rate, the sums of one part in memory, and the start of the kernel that adds them up."""

    work: float
    sums: float
    start: float


@lru_cache(maxsize=1 << 16)
def tile_choices(
    gemm: tuple[int, int, int, int],
    sm: int,
    pace: Pace,
    spread: float = 0.0,
    *,
    sparse: bool = False,
) -> tuple[Choice, ...]:
    """The tile that takes least time with K whole, and, where that is less, with K in parts.

    `gemm`: rows, N, K and their number. `spread`: the standard deviation of the rows, 0 where they
    are fixed; `sparse`: a 2:4 kernel. Rows chosen at run time fill their last tile by chance, and K
    is not split: no library plans for them. What a GEMM of more rows may take, one of fewer may
    too, at no more: so its time never falls with its rows.
    """
    (m, n, k, batch), depth = gemm, -(-gemm[2] // _MMA_K) * _MMA_K
    each = depth / (m * n * k * batch)  # of the useful work that one element of a tile makes
    wholes = []
    for rows, columns, rate in SPARSE_TILES if sparse else TILES:
        down = expected_tiles(m, spread, rows) if spread else -(-m // rows)
        tiles = down * -(-n // columns) * batch
        waves = max(1.0, tiles / sm) if spread else -(-tiles // sm)
        one = rows * columns / rate * each
        wholes.append((waves * sm * one, one, rows, columns, tiles, waves))
    factor, _, rows, columns, tiles, waves = min(wholes)
    whole = Choice(rows, columns, tiles, 1, waves, factor)
    if spread or sparse or waves * sm <= tiles:  # full waves: nothing to even out
        return (whole,)
    found = _split(wholes, gemm, sm, pace, least=pace.work * factor)
    return (whole,) if found is None else (whole, found)


def _split(
    wholes: Sequence[tuple[float, float, int, int, float, float]],
    gemm: tuple[int, int, int, int],
    sm: int,
    pace: Pace,
    *,
    least: float,
) -> Choice | None:
    """The best split of K, where it takes less than `least`."""
    found = None
    for _, one, rows, columns, tiles, _ in wholes:
        if pace.work * one * tiles + 2 * pace.sums >= least:
            continue  # slower with every unit busy
        adds_up = gemm[0] > rows
        for parts in _parts(tiles, gemm[2], sm, single=not adds_up):
            waves = math.ceil(tiles * parts / sm)
            factor = waves * sm / parts * one
            took = pace.work * factor + pace.sums * parts + pace.start * adds_up
            if took < least:
                least = took
                found = Choice(rows, columns, tiles, parts, waves, factor, adds_up)
    return found


def _parts(tiles: float, k: int, sm: int, *, single: bool) -> range:
    """Into how many parts K may go: below one wave until the units are full; any number for a
    single row of tiles, where kernels for few tokens even the load out."""
    most = min(_MOST_PARTS, k // _LEAST_K)
    return range(2, (most if single else min(most, int(sm / tiles))) + 1)


def expected_tiles(mean: float, spread: float, rows: int) -> float:
    """Mean of the rows of tiles under a normal number of rows: the sum over j of P(rows > j·r)."""
    first = max(0, math.floor((mean - 4 * spread) / rows))
    last = math.ceil((mean + 4 * spread) / rows)
    rest = sum(
        0.5 * math.erfc((j * rows - mean) / (spread * math.sqrt(2)))
        for j in range(max(first, 1), last + 1)
    )
    return max(first, 1) + rest
