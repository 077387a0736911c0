"""The pairs in order of two sequences whose similarities add up to most.

In: how similar each of one side is to each of the other, a matrix. Out: the pairs, or the largest
sum from each place on, by dynamic programming.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Likeness = NDArray[np.float64] | NDArray[np.int32]


def pair_in_order(likeness: Likeness, *, gap: float = 0) -> list[tuple[int, int]]:
    """Pair rows with columns in order so that the sum of their similarities is largest.

    Of equal sums, the pairs nearest to the front are taken.

    Args:
        likeness: How similar they are, [rows, columns]; those of 0 or less never pair.
        gap: What each run of rows or of columns that stays alone costs.
    """
    return _trace_back(likeness, sum_best_pairs(likeness, gap=gap), gap)


def sum_best_pairs(likeness: Likeness, *, gap: float = 0) -> NDArray[np.float64]:
    """Return the largest sums of the pairs from each row and column on, [rows + 1, columns + 1].

    Args:
        likeness: As of `pair_in_order`.
        gap: As of `pair_in_order`.
    """
    rows, columns = likeness.shape
    none = -np.inf
    best = np.full((rows + 1, columns + 1), none)
    along = np.full(columns + 1, -float(gap))  # best of a row, with columns skipped
    along[columns] = 0.0
    best[rows] = along
    skipped = along.copy()  # the best `along` of the rows behind
    for i in range(rows - 1, -1, -1):
        match = np.where(likeness[i] > 0, likeness[i] + best[i + 1, 1:], none)
        later = np.maximum.accumulate(np.append(match, none)[::-1])[::-1]
        along = np.append(np.maximum(match, later[1:] - gap), none)
        best[i] = np.maximum(along, skipped - gap)
        skipped = np.maximum(skipped, along)
    return best


def _trace_back(likeness: Likeness, best: NDArray[np.float64], gap: float) -> list[tuple[int, int]]:
    """Return the pairs of an alignment, from the best sums of what follows each place."""
    rows, columns = likeness.shape
    pairs: list[tuple[int, int]] = []
    i = j = 0
    while i < rows and j < columns:
        target = best[i, j]
        for row in range(i, rows):
            goal = target + (gap if row > i else 0)
            sums = np.where(likeness[row, j:] > 0, likeness[row, j:] + best[row + 1, j + 1 :], -1e9)
            sums[1:] -= gap
            at = np.flatnonzero(sums == goal)
            if len(at):
                pairs.append((row, j + int(at[0])))
                i, j = row + 1, j + int(at[0]) + 1
                break
        else:
            break
    return pairs
