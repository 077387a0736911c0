"""What a GEMM would take at a neighbouring N or K: tile × wave × alignment × roofline.

In: the kernels frame (roofline, tiles and waves) and the report's GEMM rows. Out: Shapes of the
GEMM rows, and the Fit of the model to the GEMMs seen. Times in ns a step.

At N' the tiles of the kernel that ran are counted anew, in whole waves, and the compute time grows
with them; bytes follow the shape. The time is that of the kernel seen times the ratio of the two.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations

from prunescope.analysis.device.good import FAR, good_neighbours
from prunescope.analysis.device.tiles import ALIGNED, GOOD
from prunescope.analysis.kernels.frame import Kernels
from prunescope.analysis.kernels.gemm_summaries import (
    HIDDEN,
    NO_TILE,
    GemmSummaries,
    GemmSummary,
    Key,
    gemm_summaries,
    is_hidden,
)
from prunescope.analysis.kernels.role import GEMM_KINDS
from prunescope.analysis.schema.anatomy import Fit, Good, Shape
from prunescope.analysis.schema.report import GemmRow as Row
from prunescope.taxonomy.gemm import Gemm

_FEWEST, _MOST = 3, 100  # distinct GEMMs from which on a spread is one, and enough of them
_SMALL = 64  # a K below is no dimension of a model's
_CURVES, _POINTS = 4, 96
_Z = 1.96
_ROOFLINE = ("compute", "memory")  # the bounds whose time it tells


def what_if(kernels: Kernels, rows: list[Row]) -> tuple[list[Shape], Fit | None]:
    """A Shape for the N of every GEMM row, and for its K where that is not aligned."""
    if not kernels.on_device:
        return [], None
    seen = gemm_summaries(kernels)
    fit = fitted(list(seen.gemms.values()))
    shapes = []
    drawn = 0
    for row in sorted(rows, key=lambda r: -r.busy_ns):
        if row.kind not in GEMM_KINDS or not row.count:
            continue
        for axis in ("N", "K"):
            shape = _shape(row, axis, seen, fit)
            if shape is None:
                continue
            if shape.refused is None and axis == "N" and drawn < _CURVES:
                shape.curve = _curve(row, seen)
                drawn += 1
            shapes.append(shape)
    return shapes, fit


def fitted(seen: list[GemmSummary]) -> Fit | None:
    """How time ÷ prediction lies over the GEMMs seen, by time; None without any.

    A GEMM that waits for latency follows no roofline and is left out. The spread is that of
    log(time ÷ prediction) between two GEMMs that lie a factor e apart, its square growing with
    |Δlog M| + |Δlog N| + |Δlog K|: neighbours in shape are neighbours in efficiency.
    """
    seen = [s for s in seen if s.bound in _ROOFLINE]
    if not seen:
        return None
    groups = [[s for s in seen if s.aligned is aligned] for aligned in (True, False)]
    worth = math.exp(_mean_log(groups[1]) - _mean_log(groups[0])) if all(groups) else None
    return Fit(
        gemms=len(seen),
        factor=math.exp(_mean_log(seen)),
        spread=_spread(groups[0]),
        unaligned=worth,
    )


def _mean_log(seen: list[GemmSummary]) -> float:
    """Mean of log(time ÷ prediction), weighted by time."""
    total = sum(s.total for s in seen)
    return sum(math.log(s.factor) * s.total / total for s in seen)


def _spread(seen: list[GemmSummary]) -> float | None:
    pairs = [(_apart(a.gemm, b.gemm), math.log(a.factor / b.factor)) for a, b in _two(seen)]
    distance = sum(apart for apart, _ in pairs)
    if len({s.gemm for s in seen}) < _FEWEST or not distance:
        return None
    return math.sqrt(sum(off**2 for _, off in pairs) / distance)


def _two(seen: list[GemmSummary]) -> combinations[tuple[GemmSummary, GemmSummary]]:
    return combinations(sorted(seen, key=lambda s: -s.total)[:_MOST], 2)


def spread_at(spread: float, a: Gemm, b: Gemm, *, beyond: float = 0.0) -> float:
    """Half of the 95 % interval of log(time ÷ prediction) between two GEMMs, of a Fit's spread.
    `beyond`: how much further apart they count."""
    return _Z * spread * math.sqrt(_apart(a, b) + beyond)


def _apart(a: Gemm, b: Gemm) -> float:
    return sum(abs(math.log(x / y)) for x, y in ((a.m, b.m), (a.n, b.n), (a.k, b.k)))


def _key(row: Row) -> Key | None:
    if row.m is None or row.n is None or row.k is None or row.batch is None:
        return None
    return row.role, Gemm(row.m, row.n, row.k, row.batch)


def _shape(row: Row, axis: str, seen: GemmSummaries, fit: Fit | None) -> Shape | None:
    """The claim for one axis of a row; None for a K that is aligned, of which none is better."""
    now = row.n if axis == "N" else row.k
    if axis == "K" and (now is None or now % GOOD == 0 or now < _SMALL):
        return None
    shape = Shape(
        role=row.role,
        count=row.count,
        m=row.m,
        n=row.n,
        k=row.k,
        axis=axis,
        busy_ns=row.busy_ns,
        dense=row.dense_n if axis == "N" else row.dense_k,
    )
    key = _key(row)
    if key is None or now is None:
        shape.refused = "no shapes" if now is None else "not all of its shape is known"
        return shape
    one = seen.gemms.get(key)
    if one is None or is_hidden(row.busy_ns, row.duration_ns or row.busy_ns):
        shape.refused = seen.refused.get(key, NO_TILE) if one is None else HIDDEN
        return shape
    if one.bound == "latency" and one.tiles > one.slots:
        shape.refused = "latency-bound: as short as any kernel, whatever its N"
        return shape
    shape.tile, shape.waves = one.tile, one.tiles / one.slots
    below, above = good_neighbours(one.tiling, axis, now, reach=FAR)
    aligned = [s for s in seen.gemms.values() if s.aligned and s.bound in _ROOFLINE]
    told = None if fit is None else _Told(fit, aligned)
    shape.below = None if below is None else _good(one, axis, below, row.busy_ns, told)
    shape.above = None if above is None else _good(one, axis, above, row.busy_ns, told)
    return shape


@dataclass(frozen=True)
class _Told:
    """What a trace tells of GEMMs that did not run: the fit, and the aligned GEMMs behind it."""

    fit: Fit
    aligned: list[GemmSummary]

    def off(self, one: GemmSummary, gemm: Gemm, *, is_moved: bool) -> float | None:
        """Half of the 95 % interval of log(time) at `gemm`, told from `one`; None without a spread.

        `is_moved`: an unaligned GEMM becomes an aligned one. Its own time then tells little: the
        worth of alignment comes in part from itself, and what it would take is known from the
        aligned ones, that is as well as they lie near.
        """
        if self.fit.spread is None:
            return None
        total = sum(s.total for s in self.aligned)
        far = sum(_apart(gemm, s.gemm) * s.total / total for s in self.aligned)
        return spread_at(self.fit.spread, gemm, one.gemm, beyond=far if is_moved else 0.0)


def _good(one: GemmSummary, axis: str, value: int, busy_ns: float, told: _Told | None) -> Good:
    """A dimension with the change that is predicted for it, and its interval."""
    n, k = (value, one.gemm.k) if axis == "N" else (one.gemm.n, value)
    if (n, k) == (one.gemm.n, one.gemm.k):
        return Good(value=value, change_ns=0.0, low_ns=0.0, high_ns=0.0)
    ratio = one.predicted(n, k) / one.predicted(one.gemm.n, one.gemm.k)
    is_moved = not one.aligned and n % ALIGNED == 0 and k % ALIGNED == 0
    if is_moved:
        if told is None or told.fit.unaligned is None:
            # What alignment is worth was not seen in this trace.
            return Good(value=value, change_ns=None, low_ns=None, high_ns=None)
        ratio /= told.fit.unaligned
    good = Good(value=value, change_ns=busy_ns * (ratio - 1), low_ns=None, high_ns=None)
    off = told.off(one, Gemm(one.gemm.m, n, k), is_moved=is_moved) if told is not None else None
    if off is not None:
        good.low_ns = busy_ns * (ratio * math.exp(-off) - 1)
        good.high_ns = busy_ns * (ratio * math.exp(off) - 1)
    return good


def _curve(row: Row, seen: GemmSummaries) -> list[list[float]]:
    """[N, ns a step] up to a quarter beyond the wider of the two models."""
    key = _key(row)
    if key is None or row.n is None:
        return []
    one = seen.gemms[key]
    top = int(1.25 * max(row.n, row.dense_n or 0))
    width = max(GOOD, -(-top // _POINTS // GOOD) * GOOD)
    now = one.predicted(row.n, one.gemm.k)
    points = sorted({*range(width, top + 1, width), row.n, *([row.dense_n] if row.dense_n else [])})
    return [[n, row.busy_ns * one.predicted(n, one.gemm.k) / now] for n in points]
