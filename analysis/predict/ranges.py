"""How sure an expected speedup is: a range that holds 90 of 100 measurements.

In: the dense and the pruned side. Out: Uncertainty: the ends, and what makes them: constants at
their ends, what is drawn at run time, and the model's own error. Errors are of the logarithm of the
speedup and independent: squares add. `benchmarks/predict.md` shows the calibration.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass

from prunescope.analysis.predict.constants import (
    DRAWS,
    ERROR,
    TABLE,
    Constants,
    ModelError,
    ends,
    measured_on,
)
from prunescope.analysis.predict.costs import cost_estimate, total_ns
from prunescope.analysis.predict.kernels import cut_of, op_cost_ns, rates
from prunescope.analysis.predict.side import PredictedSide
from prunescope.analysis.schema.prediction import Guess
from prunescope.taxonomy.plan import Op

Gain = Callable[[Constants], float]
_MLP = frozenset({"gate", "up", "down", "activation", "mlp_norm", "experts", "shared_expert"})


@dataclass(frozen=True, slots=True)
class Differences:
    """What of a pruned forward the dense model says nothing about: kernels at shapes that the dense
    model does not run (each its share of the time, and its waves of tiles), the share of the time
    in kernels of other kinds, and the spread of what is drawn at run time."""

    reshaped: tuple[tuple[float, float], ...]
    added: float
    drawn: float

    @property
    def share(self) -> float:
        """The share of the time in kernels at other shapes, without their starts."""
        return sum(share for share, _ in self.reshaped)

    def even(self, power: float) -> float:
        """The same with kernels of many waves counting less: what a library loses or wins by its
        choice of a tile is a part of one wave, and evens out over several."""
        return sum(share / math.pow(waves, power) for share, waves in self.reshaped)


@dataclass(frozen=True, slots=True, kw_only=True)
class Uncertainty:
    """Spreads of the logarithm of a speedup, downwards and upwards, that constants and chance
    make; and what the dense model says nothing about. `measured`: whether cells of this silicon
    were."""

    below: float
    above: float
    unlike: Differences
    measured: bool
    guessed: tuple[Guess, ...] = ()

    def spreads(self, error: ModelError = ERROR, *, measured: bool) -> tuple[float, float]:
        """Both spreads with the model's own error, before its scale."""
        own = math.hypot(
            error.common,
            error.reshaped * self.unlike.even(error.power),
            error.added * self.unlike.added,
        )
        own *= 1.0 if measured else error.unseen
        return math.hypot(self.below, own), math.hypot(self.above, own)

    def around(self, value: float) -> list[float]:
        """The ends around a speedup."""
        below, above = self.spreads(measured=self.measured)
        return [value * math.exp(-ERROR.scale * below), value * math.exp(ERROR.scale * above)]


def unlike(dense: PredictedSide, pruned: PredictedSide, terms: Collection[str]) -> Differences:
    """The same of one forward."""
    known = _kernels_of(dense)
    mine, c, active = cost_estimate(pruned), pruned.setting.constants, frozenset(terms)
    r, every, other = rates(pruned.setting, c, terms), 0.0, []
    for op, one in zip(pruned.bounded, mine.op_costs, strict=True):
        ns = one.layers * op_cost_ns(one, r)
        every += ns
        if _key(op) not in known:
            cut = cut_of(one, r)
            other.append((ns, max(1.0, cut.waves) if cut else 1.0))
    return Differences(
        reshaped=tuple([(ns / every, waves) for ns, waves in other]),
        added=mine.added_ns(c, active) / mine.total_ns(c, active),
        drawn=_drawn(pruned, terms),
    )


def doubt(dense: PredictedSide, pruned: PredictedSide, terms: Collection[str]) -> Uncertainty:
    """How far the speedup of these sides may be off."""

    cost_estimates, active = (cost_estimate(dense), cost_estimate(pruned)), frozenset(terms)

    def gain(constants: Constants) -> float:
        return cost_estimates[0].total_ns(constants, active) / cost_estimates[1].total_ns(
            constants, active
        )

    names = cost_estimates[0].moved_by() | cost_estimates[1].moved_by()
    return caveat_of(gain, pruned, terms, unlike=unlike(dense, pruned, terms), names=names)


def caveat_of(
    gain: Gain,
    side: PredictedSide,
    terms: Collection[str],
    *,
    unlike: Differences,
    names: Collection[str] = tuple(TABLE),
) -> Uncertainty:
    """The same of any speedup on the device of `side`. `names`: the constants that matter."""
    device = side.setting.device
    value, rows = gain(side.setting.constants), []
    below = above = unlike.drawn**2
    for name, low, high in ends(frozenset(terms), device):
        if name not in names:
            continue
        there = sorted((gain(low), gain(high)))
        if there[1] - there[0] <= 1e-9:
            continue
        # The ends of a constant are two spreads away from its value.
        below += (min(0.0, math.log(there[0] / value)) / 2) ** 2
        above += (max(0.0, math.log(there[1] / value)) / 2) ** 2
        row = TABLE[name]
        rows.append(
            Guess(
                name=name,
                term=row.term,
                value=row.value,
                low=getattr(low, name),
                high=getattr(high, name),
                unit=row.unit,
                speedup=there,
            )
        )
    rows.sort(key=lambda row: row.speedup[0] - row.speedup[1])
    return Uncertainty(
        below=below**0.5,
        above=above**0.5,
        unlike=unlike,
        measured=measured_on(device),
        guessed=tuple(rows),
    )


def _drawn(pruned: PredictedSide, terms: Collection[str]) -> float:
    """Spread of the mean of a few forwards in which each sublayer runs by chance: of one sequence
    in decode, where no other needs its weights. sqrt(n·r(1-r)) of n sublayers, two kinds apart."""
    variance, r = 0.0, rates(pruned.setting, pruned.setting.constants, terms)
    pairs = list(zip(pruned.bounded, cost_estimate(pruned).op_costs, strict=True))
    for mlp in (True, False):
        ops = [(op, one) for op, one in pairs if op.runs < 1 and (op.role in _MLP) == mlp]
        if ops:
            count, runs = max(op.layers for op, _ in ops), ops[0][0].runs
            each = sum(op_cost_ns(one, r) / runs * op.layers / count for op, one in ops)
            variance += count * runs * (1 - runs) * each**2
    return (variance / DRAWS) ** 0.5 / total_ns(pruned, terms) if variance else 0.0


def _kernels_of(dense: PredictedSide) -> set[tuple[object, ...]]:
    """The keys of a dense side's ops, made once for all points of a grid."""
    kept = dense.forward.cost_estimates
    if "kernels" not in kept:
        kept["kernels"] = {_key(op) for op in dense.bounded}
    found: set[tuple[object, ...]] = kept["kernels"]
    return found


def _key(op: Op) -> tuple[object, ...]:
    return op.name, op.gemms, op.flop, op.bytes, op.sparse, op.rows
