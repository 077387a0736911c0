"""The law of a curve over N or K: time in steps of whole tiles and waves, or a straight line.

In: sizes and ns a call. Out: Staircase, or None where a line describes the times as well.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

_GRAIN = 8  # widths that are tried: tiles and waves of whole 16-byte accesses
_FEWEST = 4  # points, below which any width fits
# The odds at which steps are believed over a line, beside one in as many widths as were tried.
_ODDS = 20
# Times are known to a thousandth at best; a closer fit is chance.
_FLOOR = 1e-3


@dataclass(frozen=True)
class Staircase:
    """`base_ns` and, for each `width` begun, `step_ns`."""

    width: int
    step_ns: float
    base_ns: float


def fit(sizes: Sequence[int], ns: Sequence[float]) -> Staircase | None:
    """The width of steps under which base + step·⌈size/width⌉ is nearest to the times.

    Relative errors, least squares; n·ln(error of the line ÷ error of the steps) / 2 is the log
    likelihood ratio of the two, and is to exceed ln(20 · widths tried).
    """
    span = max(sizes, default=0) - min(sizes, default=0)
    gaps = [b - a for a, b in zip(sorted(sizes), sorted(sizes)[1:], strict=False) if b > a]
    # A step that holds a single point, or all of them, is none.
    widths = range(_GRAIN * (1 + max(gaps, default=0) // _GRAIN), span // 2 + 1, _GRAIN)
    if len(set(sizes)) < _FEWEST or not widths:
        return None
    line = _line([float(size) for size in sizes], ns)[2]
    found: tuple[float, Staircase] | None = None
    for width in widths:
        base, step, error = _line([float(math.ceil(size / width)) for size in sizes], ns)
        if step > 0 and (found is None or error < found[0]):
            found = error, Staircase(width, step, base)
    if found is None:
        return None
    error, steps = found
    likelier = len(sizes) / 2 * math.log(line / error)
    return steps if likelier > math.log(_ODDS * len(widths)) else None


def _line(x: Sequence[float], y: Sequence[float]) -> tuple[float, float, float]:
    """(base, slope, mean squared relative error) of the least squares line, each point weighted by
    1/y², as noise is a share of the time."""
    weights = [1 / (one * one) for one in y]
    total = sum(weights)
    mean_x = sum(w * one for w, one in zip(weights, x, strict=True)) / total
    mean_y = sum(w * one for w, one in zip(weights, y, strict=True)) / total
    spread = sum(w * (one - mean_x) ** 2 for w, one in zip(weights, x, strict=True))
    both = sum(w * (a - mean_x) * (b - mean_y) for w, a, b in zip(weights, x, y, strict=True))
    slope = both / spread if spread else 0.0
    base = mean_y - slope * mean_x
    errors = [((b - base - slope * a) / b) ** 2 for a, b in zip(x, y, strict=True)]
    return base, slope, max(sum(errors) / len(errors), _FLOOR**2)
