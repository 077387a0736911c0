"""The law of a curve over N or K: time in steps of whole tiles and waves, or a straight line.

Sizes and ns a call come in; a Staircase goes out, or None where a line describes the times as well.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

_GRAIN = 8  # widths that are tried: tiles and waves of whole 16-byte accesses
_FEWEST = 4  # points, below which any width fits
# Steps must be so many times as likely as a line, multiplied by the number of widths tried.
_ODDS = 20
# Times are known to a thousandth at best; a closer fit is chance.
_FLOOR = 1e-3


@dataclass(frozen=True)
class Staircase:
    """A time of `base_ns` plus `step_ns` for each `width` that is begun."""

    width: int
    step_ns: float
    base_ns: float


def fit_steps(sizes: Sequence[int], ns: Sequence[float]) -> Staircase | None:
    """Find the width of steps under which base + step·⌈size/width⌉ is nearest to the times.

    The fit is least squares of relative errors. n·ln(error of the line ÷ error of the steps) / 2 is
    the log likelihood ratio of steps over a line, and must exceed ln(20 · widths tried).

    Limitations: Only widths that are multiples of 8 are tried. A step must hold two sizes at least,
    so that steps narrower than the distance of the sizes are not found.

    Args:
        sizes: The sizes along one axis.
        ns: The time of a call of each size.

    Returns:
        The steps; None where a straight line is as likely, or where there are too few sizes.
    """
    span = max(sizes, default=0) - min(sizes, default=0)
    gaps = [b - a for a, b in zip(sorted(sizes), sorted(sizes)[1:], strict=False) if b > a]
    # A step that holds a single point, or all of them, is none.
    widths = range(_GRAIN * (1 + max(gaps, default=0) // _GRAIN), span // 2 + 1, _GRAIN)
    if len(set(sizes)) < _FEWEST or not widths:
        return None
    line_error = _fit_line([float(size) for size in sizes], ns)[2]
    best: tuple[float, Staircase] | None = None
    for width in widths:
        base, step, error = _fit_line([float(math.ceil(size / width)) for size in sizes], ns)
        if step > 0 and (best is None or error < best[0]):
            best = error, Staircase(width, step, base)
    if best is None:
        return None
    error, steps = best
    likelier = len(sizes) / 2 * math.log(line_error / error)
    return steps if likelier > math.log(_ODDS * len(widths)) else None


def _fit_line(x: Sequence[float], y: Sequence[float]) -> tuple[float, float, float]:
    """Fit a line by least squares; return its base, its slope and the mean squared relative error.

    Each point is weighted by 1/y², because noise is a share of the time.
    """
    weights = [1 / (b * b) for b in y]
    total = sum(weights)
    mean_x = sum(w * a for w, a in zip(weights, x, strict=True)) / total
    mean_y = sum(w * b for w, b in zip(weights, y, strict=True)) / total
    spread = sum(w * (a - mean_x) ** 2 for w, a in zip(weights, x, strict=True))
    both = sum(w * (a - mean_x) * (b - mean_y) for w, a, b in zip(weights, x, y, strict=True))
    slope = both / spread if spread else 0.0
    base = mean_y - slope * mean_x
    errors = [((b - base - slope * a) / b) ** 2 for a, b in zip(x, y, strict=True)]
    return base, slope, max(sum(errors) / len(errors), _FLOOR**2)
