"""How sure an expected speed-up is: a range that holds 90 of 100 measurements.

In: the dense and the pruned Side. Out: Doubt: the ends, and what makes them: constants at their
ends, what is drawn at run time, and the model's own error. Errors are of the logarithm of the
speed-up and independent: squares add. `benchmarks/predict.md` shows the calibration.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass

from prunescope.analysis.predict.constants import (
    COMMON,
    DRAWS,
    RESHAPED,
    SCALE,
    TABLE,
    UNSEEN,
    Constants,
    ends,
    measured_on,
)
from prunescope.analysis.predict.costs import bill, total_ns
from prunescope.analysis.predict.kernels import op_ns, price_ns, rates
from prunescope.analysis.predict.side import Side
from prunescope.analysis.schema.prediction import Guess
from prunescope.taxonomy.plan import Op

Gain = Callable[[Constants], float]
_MLP = frozenset({"gate", "up", "down", "activation", "mlp_norm", "experts", "shared_expert"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Doubt:
    """Spreads of the logarithm of a speed-up, downwards and upwards. `reshaped`: the share of the
    pruned time in kernels that the dense model does not run."""

    below: float
    above: float
    reshaped: float
    guessed: tuple[Guess, ...] = ()

    def around(self, value: float) -> list[float]:
        """The ends around a speed-up."""
        return [value * math.exp(-SCALE * self.below), value * math.exp(SCALE * self.above)]


def doubt(dense: Side, pruned: Side, terms: Collection[str]) -> Doubt:
    """How far the speed-up of these sides may be off."""

    bills, active = (bill(dense), bill(pruned)), frozenset(terms)

    def gain(constants: Constants) -> float:
        return bills[0].total_ns(constants, active) / bills[1].total_ns(constants, active)

    return doubt_of(
        gain,
        pruned,
        terms,
        reshaped=reshaped(dense, pruned, terms),
        drawn=drawn(pruned, terms),
        names=bills[0].moved_by() | bills[1].moved_by(),
    )


def doubt_of(
    gain: Gain,
    side: Side,
    terms: Collection[str],
    *,
    reshaped: float,
    drawn: float = 0.0,
    names: Collection[str] = tuple(TABLE),
) -> Doubt:
    """The same of any speed-up on the device of `side`. `names`: the constants that matter."""
    device = side.setting.device
    own = RESHAPED * reshaped * (1.0 if measured_on(device) else UNSEEN)
    value, rows = gain(side.setting.constants), []
    below = above = COMMON**2 + own**2 + drawn**2
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
    return Doubt(below=below**0.5, above=above**0.5, reshaped=reshaped, guessed=tuple(rows))


def reshaped(dense: Side, pruned: Side, terms: Collection[str]) -> float:
    """Share of the pruned time, without starts, in kernels that the dense model does not run."""
    known = {_key(op) for op in dense.bounded}
    r = rates(pruned.setting, pruned.setting.constants, terms)
    every = other = 0.0
    for op, one in zip(pruned.bounded, bill(pruned).prices, strict=True):
        ns = one.layers * price_ns(one, r)
        every += ns
        other += 0.0 if _key(op) in known else ns
    return other / every


def drawn(pruned: Side, terms: Collection[str]) -> float:
    """Spread of the mean of a few forwards in which each sublayer runs by chance: of one sequence
    in decode, where no other needs its weights. sqrt(n·r(1-r)) of n sublayers, two kinds apart."""
    variance = 0.0
    for mlp in (True, False):
        ops = [op for op in pruned.bounded if op.runs < 1 and (op.role in _MLP) == mlp]
        if ops:
            count, runs = max(op.layers for op in ops), ops[0].runs
            each = sum(op_ns(pruned, op, terms) / runs * op.layers / count for op in ops)
            variance += count * runs * (1 - runs) * each**2
    return (variance / DRAWS) ** 0.5 / total_ns(pruned, terms) if variance else 0.0


def _key(op: Op) -> tuple[object, ...]:
    return op.name, op.gemms, op.flop, op.bytes, op.sparse, op.rows
