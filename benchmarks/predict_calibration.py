"""The model's own error, chosen on published cells, and how well ranges do on cells left out.

    python benchmarks/predict_calibration.py


In: cells with a measured and an expected speedup, and what constants and chance spread of it.
Out: a ModelError, and for each cell how it lies in a range that it had no part in. Nested: a group
(a phase of a figure, a paper; or a family) is left out, the error is chosen on the others, by
leaving each of *them* out in turn, and the group is looked at once, with the result. Constants
that were read from the group are read anew without it. Run alone, it prints the error to use.
"""

from __future__ import annotations

import itertools
import math
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from predict_cells import Cell, cells  # noqa: E402

from prunescope.analysis.predict.constants import (  # noqa: E402
    DEFAULT,
    TABLE,
    Constants,
    ModelError,
)
from prunescope.analysis.predict.ranges import Uncertainty  # noqa: E402

LEVEL = 0.90
COMMON = (0.01, 0.015, 0.02)
RESHAPED = (0.03, 0.04, 0.05, 0.06, 0.07, 0.08, 0.10, 0.12)
POWER = (1 / 4, 1 / 3, 1 / 2)
ADDED = (0.25, 0.5)
UNSEEN = (1.25, 2.0)  # not 1: that three devices are near says little of a fourth


@dataclass(frozen=True, eq=False)
class Judged:
    """A cell as the calibration sees it: `off` is the logarithm of measured over expected."""

    cell: Cell
    constants: Constants | None = None

    @cached_property
    def expected(self) -> float:
        """The speedup with these constants."""
        return self.cell.gain(self.constants)

    @cached_property
    def off(self) -> float:
        """Its error."""
        return math.log(self.cell.measured / self.expected)

    @cached_property
    def uncertainty(self) -> Uncertainty:
        """What constants and random routing make."""
        return self.cell.uncertainty()

    @property
    def silicon(self) -> Silicon:
        """Its units and their clock."""
        device = self.cell.setting.device
        return device.sm, device.boost_hz

    def spreads(self, error: ModelError, *, seen: bool = True) -> tuple[float, float]:
        """Downwards and upwards, before the scale."""
        return self.uncertainty.spreads(error, measured=seen)

    def score(self, error: ModelError) -> float:
        """The error in units of the spread on its side."""
        below, above = self.spreads(error)
        return abs(self.off) / (below if self.off < 0 else above)


@dataclass(frozen=True)
class Outside:
    """A cell in a range that it had no part in: the ends, and whether it holds."""

    cell: Cell
    expected: float
    low: float
    high: float

    @property
    def holds(self) -> bool:
        """Whether the measured speedup lies in the range."""
        return self.low <= self.cell.measured <= self.high

    @property
    def off(self) -> float:
        """Expected over measured - 1."""
        return self.expected / self.cell.measured - 1


Group = Callable[[Cell], str]
Silicon = tuple[int | None, float | None]
# Groups from which a constant was read: the 2:4 rate of the A100, and the dispatch of an op.
SPARSE_24, EAGER = ("sparsegpt", "slicegpt"), "attention-drop"
TWO_FOUR = "static-k-24"


def choose(known: Sequence[Judged], group: Group) -> ModelError:
    """The error that gives the best interval score where each group in turn is left out, with the
    scale that holds LEVEL of all. The score of an interval is its width, and 2/(1 - LEVEL) times
    what a value lies outside: it is least where the interval is the true one."""
    parts = []
    for name in dict.fromkeys(group(j.cell) for j in known):
        mine = [j for j in known if group(j.cell) == name]
        rest = [j for j in known if group(j.cell) != name]
        parts.append((mine, rest, {j.silicon for j in rest}))
    settings = itertools.product(COMMON, RESHAPED, POWER, ADDED, UNSEEN)
    grid = [ModelError(*one, scale=1.0) for one in settings]
    best = min(grid, key=lambda one: sum(_cost(one, *part) for part in parts))
    return scaled(best, known, LEVEL)


def left_out(
    known: Sequence[Judged], group: Group, levels: Sequence[float] = (LEVEL,)
) -> dict[float, list[Outside]]:
    """Each cell, in the range that the other groups choose; by the level that is meant to hold."""
    found: dict[float, list[Outside]] = {level: [] for level in levels}
    for name in dict.fromkeys(group(one.cell) for one in known):
        rest = [one for one in known if group(one.cell) != name]
        mine = [one for one in known if group(one.cell) == name]
        read = read_without(rest, mine)
        again = [Judged(one.cell, read) for one in mine] if read else mine
        error = choose(rest, group)
        for level in levels:
            found[level] += _outside(again, rest, scaled(error, rest, level))
    return found


def read_without(rest: Sequence[Judged], mine: Sequence[Judged]) -> Constants | None:
    """The constants without what was read from these cells: the 2:4 rate of a chip from its other
    cells, the dispatch of an op from its other source; None where none was."""
    source = {one.cell.group for one in mine}
    if EAGER in source:
        return replace(DEFAULT, dispatch_ns=TABLE["dispatch_ns"].high)
    if not source & set(SPARSE_24):
        return None
    others = [j.cell for j in rest if j.cell.group in SPARSE_24 and j.cell.family == TWO_FOUR]
    if not others:
        return None
    low, high = 0.5, 2.0
    while high - low > 1e-4:  # a slower kernel gains less
        middle = replace(DEFAULT, sparse_rate=(low + high) / 2)
        too_fast = sum(math.log(c.gain(middle) / c.measured) for c in others) > 0
        low, high = (middle.sparse_rate, high) if too_fast else (low, middle.sparse_rate)
    return replace(DEFAULT, sparse_rate=(low + high) / 2)


def held(outside: Iterable[Outside]) -> float:
    """The share that holds."""
    return statistics.mean(one.holds for one in outside)


def quantile(values: Iterable[float], level: float) -> float:
    """The value below which `level` of them lie (nearest rank)."""
    ranked = sorted(values)
    return ranked[min(len(ranked), math.ceil(level * len(ranked))) - 1]


def scaled(error: ModelError, known: Sequence[Judged], level: float) -> ModelError:
    """The error with the scale that holds `level` of the cells."""
    plain = replace(error, scale=1.0)
    return replace(error, scale=quantile((j.score(plain) for j in known), level))


def _cost(
    error: ModelError, mine: Sequence[Judged], rest: Sequence[Judged], seen: set[Silicon]
) -> float:
    total, scale = 0.0, scaled(error, rest, LEVEL).scale
    for j in mine:
        below, above = j.spreads(error, seen=j.silicon in seen)
        missed = max(0.0, -j.off - scale * below, j.off - scale * above)
        total += scale * (below + above) + 2 / (1 - LEVEL) * missed
    return total


def _outside(
    mine: Sequence[Judged], rest: Sequence[Judged], error: ModelError
) -> Iterable[Outside]:
    seen = {j.silicon for j in rest}
    for j in mine:
        below, above = j.spreads(error, seen=j.silicon in seen)
        low, high = math.exp(-error.scale * below), math.exp(error.scale * above)
        yield Outside(j.cell, j.expected, j.expected * low, j.expected * high)


def main() -> int:
    """Print the error that all cells choose, as analysis/predict/constants.py has it."""
    known = [Judged(cell) for cell in cells() if not cell.apart]
    sys.stdout.write(f"ERROR = {choose(known, lambda cell: cell.group)}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
