"""What a GEMM computes: whole tiles in whole waves, with the best of a few tiles.

In: a GEMM's sizes, the number of units (SMs), and how far its rows vary. Out: a Choice, whose
`factor` is computed over useful work, in units of the largest tile's rate.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

# Rows, columns, and the rate of a full wave over that of 128 x 256. A library changes the tile only
# where much is won: with N from 4,096 to 2,867 (arXiv 2606.09080, M = K = 4,096, RTX Pro 6000) the
# time stays that of 128 x 256 in three waves, so 128 x 128 in four cannot reach 0.67. Tiles of few
# rows are for few tokens, where memory binds: no measured cell depends on their rates.
TILES: tuple[tuple[int, int, float], ...] = (
    (128, 256, 1.0), (128, 128, 0.66), (64, 256, 0.66), (64, 128, 0.55),
    (64, 64, 0.45), (32, 128, 0.45), (16, 128, 0.40), (16, 64, 0.35),
)  # fmt: skip
_MMA_K = 16
_LEAST_K = 512  # of each part where K is split
_MOST_PARTS = 32


@dataclass(frozen=True, slots=True)
class Choice:
    """A tile and how often it runs. `waves` counts full or partial ones, `parts` those of K."""

    rows: int
    columns: int
    tiles: float
    parts: int
    waves: float
    factor: float


@lru_cache(maxsize=1 << 16)
def tile_choices(
    gemm: tuple[int, int, int, int], sm: int, spread: float = 0.0
) -> tuple[Choice, ...]:
    """The tile that takes least time with K whole, and, where that is less, with K in parts.

    `gemm`: rows, N, K and their number. `spread`: the standard deviation of the rows, 0 where they
    are fixed. Rows chosen at run time fill their last tile by chance, and K is not split: no
    library plans for them.
    """
    every = [c for one in TILES for c in _choices(one, gemm, sm, spread)]
    whole = min((c for c in every if c.parts == 1), key=lambda c: c.factor)
    best = min(every, key=lambda c: c.factor)
    return (whole,) if best.factor >= whole.factor else (whole, best)


def _choices(
    tile: tuple[int, int, float], gemm: tuple[int, int, int, int], sm: int, spread: float
) -> Iterator[Choice]:
    (rows, columns, rate), (m, n, k, batch) = tile, gemm
    down = expected_tiles(m, spread, rows) if spread else math.ceil(m / rows)
    tiles = down * math.ceil(n / columns) * batch
    depth = math.ceil(k / _MMA_K) * _MMA_K
    each = rows * columns * depth / rate / (m * n * k * batch)
    for parts in (1,) if spread else _parts(tiles, down, k, sm):
        waves = max(1.0, tiles / sm) if spread else math.ceil(tiles * parts / sm)
        yield Choice(rows, columns, tiles, parts, waves, waves * sm / parts * each)


def _parts(tiles: float, down: float, k: int, sm: int) -> tuple[int, ...]:
    """Into how many parts K may go: below one wave until the units are full; any number for a
    single row of tiles, where kernels for few tokens even the load out."""
    most = min(_MOST_PARTS, max(1, k // _LEAST_K))
    if down == 1:
        return tuple(range(1, most + 1))
    return (1, max(1, min(most, int(sm / tiles))))


def expected_tiles(mean: float, spread: float, rows: int) -> float:
    """Mean of the rows of tiles under a normal number of rows: the sum over j of P(rows > j·r)."""
    first = max(0, math.floor((mean - 4 * spread) / rows))
    last = math.ceil((mean + 4 * spread) / rows)
    rest = sum(
        0.5 * math.erfc((j * rows - mean) / (spread * math.sqrt(2)))
        for j in range(max(first, 1), last + 1)
    )
    return max(first, 1) + rest
