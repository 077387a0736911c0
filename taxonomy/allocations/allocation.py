"""The choice of what to keep of each layer, so that a cost falls to a target at the least loss.

In: for each layer its options (the sizes that it keeps, their cost and their loss). Out: one option
per layer. Costs add up over layers, and so do losses, which are rises of the log perplexity in nats
per token. It is a multiple-choice knapsack, solved exactly by dynamic programming over whole units
of cost: the cost of each layer is rounded up to a unit, so that the choice never exceeds the
target.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from operator import add

# Units that the largest possible saving is divided into. One unit is then 0.01 % of it, while two
# captures of one model differ by a percent.
UNITS = 10_000
# Ways to cut a layer, by the name of the size that is kept: two of an attention, two of an MLP.
ATTENTION_PARTS = ("kv_heads", "attention_lowrank")
MLP_PARTS = ("channels", "mlp_lowrank")
PARTS = ("kv_heads", "channels", "attention_lowrank", "mlp_lowrank")
_EXACT = 1e-6  # of a unit: sums of floats land a hair above a whole number of units


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerOption:
    """One way to run a layer, with its cost and the loss that it adds.

    `dropped`: the layer is removed; one layer of a model has to stay. `attention_lowrank` and
    `mlp_lowrank` are the percentage of the parameters of its matrices that stay, with each matrix
    stored as two of a low rank. A size of None is as in the dense layer.
    """

    cost: float
    loss: float
    kv_heads: int | None = None
    channels: int | None = None
    attention_lowrank: int | None = None
    mlp_lowrank: int | None = None
    dropped: bool = False

    @property
    def sizes(self) -> dict[str, int]:
        """The kept size of each part that is cut, by the name of the part."""
        every = {name: getattr(self, name) for name in PARTS}
        return {name: size for name, size in every.items() if size is not None}

    @property
    def kept(self) -> tuple[float, ...]:
        """A sort key that is larger if more of the layer is kept.

        Of two equal options the larger stays.
        """
        sizes = self.sizes
        return (not self.dropped, *(sizes.get(name, math.inf) for name in PARTS))


@dataclass(frozen=True, slots=True)
class FrontierPoint:
    """A cost, and the least loss at which it is reached."""

    cost: float
    loss: float


@dataclass(slots=True)
class Allocation:
    """The least loss of a model at each cost: a table over its layers and whole units of cost.

    `options`: those of each layer. Options that another one dominates are dropped, so that no width
    stays that costs as much as the next larger one. `unit`: of cost; None: 1 / UNITS of what can be
    saved.
    """

    options: Sequence[Sequence[LayerOption]]
    unit: float | None = None
    step: float = field(init=False)  # the unit
    least_cost: float = field(init=False)  # of all layers, without the one that has to stay
    _layers: list[list[tuple[int, LayerOption]]] = field(init=False)  # with units above the least
    _rows: list[list[float]] = field(init=False)  # [layer][units]: least loss, one layer kept
    _emptied: list[tuple[int, float] | None] = field(init=False)  # units and loss, none kept

    def __post_init__(self) -> None:
        least = [min(option.cost for option in layer) for layer in self.options]
        most = [max(option.cost for option in layer) for layer in self.options]
        self.least_cost = math.fsum(least)
        saved = math.fsum(most) - self.least_cost
        self.step = self.unit or (saved / UNITS if saved > 0 else 1.0)
        self._layers = [
            undominated([(self._units(option.cost - floor), option) for option in layer])
            for layer, floor in zip(self.options, least, strict=True)
        ]
        self._fill()

    def _units(self, cost: float) -> int:
        return math.ceil(cost / self.step - _EXACT)

    def _fill(self) -> None:
        """Fill the table layer by layer: the least loss at each cost of the layers so far."""
        size = 1 + sum(max(units for units, _ in layer) for layer in self._layers)
        before = [math.inf] * size
        self._rows, self._emptied = [], []
        emptied: tuple[int, float] | None = (0, 0.0)
        for layer in self._layers:
            row, dropped = [math.inf] * size, None
            for units, option in layer:
                row[units:] = map(min, row[units:], map(add, before, repeat(option.loss)))
                if option.dropped:
                    dropped = units, option.loss
                elif emptied is not None:  # the first layer that stays
                    start, loss = emptied[0] + units, emptied[1] + option.loss
                    row[start:] = [min(value, loss) for value in row[start:]]
            if emptied is not None and dropped is not None:
                emptied = emptied[0] + dropped[0], emptied[1] + dropped[1]
            else:
                emptied = None
            self._rows.append(row)
            self._emptied.append(emptied)
            before = row

    def best(self, cost: float) -> list[LayerOption] | None:
        """Return one option per layer, which together cost at most `cost` and lose least.

        None means that no choice costs so little.
        """
        last = self._rows[-1]
        units = min(math.floor((cost - self.least_cost) / self.step + _EXACT), len(last) - 1)
        return None if units < 0 or last[units] == math.inf else self._chosen(units)

    def cheapest(self) -> list[LayerOption]:
        """Return the options with the least cost of all."""
        return self._chosen(next(i for i, loss in enumerate(self._rows[-1]) if loss < math.inf))

    def frontier(self) -> list[FrontierPoint]:
        """Return every cost at which the least loss falls, from the least cost on."""
        points: list[FrontierPoint] = []
        for units, loss in enumerate(self._rows[-1]):
            if loss < (points[-1].loss if points else math.inf):
                points.append(FrontierPoint(self.least_cost + units * self.step, loss))
        return points

    def _chosen(self, units: int) -> list[LayerOption]:
        """Return the options on the way to an entry of the last row."""
        chosen: list[LayerOption] = []
        for number in reversed(range(len(self._layers))):
            option, units, alone = self._step_back(number, units)
            chosen.append(option)
            if alone:  # every layer before it is dropped
                earlier = self._layers[:number]
                dropped = [next(o for _, o in layer if o.dropped) for layer in reversed(earlier)]
                chosen += dropped
                break
        return chosen[::-1]

    def _step_back(self, number: int, units: int) -> tuple[LayerOption, int, bool]:
        """Return the option of a layer that an entry of its row took, and the units before it.

        The third value is whether no layer before it stays.
        """
        value = self._rows[number][units]
        before = self._rows[number - 1] if number else None
        empty = self._emptied[number - 1] if number else (0, 0.0)
        for cost, option in self._layers[number]:
            left = units - cost
            if left < 0:
                continue
            if before is not None and before[left] + option.loss == value:
                return option, left, False
            if empty is not None and not option.dropped:
                fits, loss = left >= empty[0], empty[1] + option.loss
                if fits and loss == value:
                    return option, left, True
        raise AssertionError("an entry of the table comes from an option")


def undominated(options: Iterable[tuple[int, LayerOption]]) -> list[tuple[int, LayerOption]]:
    """Return the Pareto-optimal options by cost and loss, cheapest first.

    Of equal options the one that keeps most stays. The removal of the whole layer always stays, and
    dominates no other option, because one layer of the model has to stay.
    """
    kept: list[tuple[int, LayerOption]] = []
    lost = math.inf
    ranked = sorted(
        options, key=lambda pair: (pair[0], pair[1].loss, tuple(-k for k in pair[1].kept))
    )
    for units, option in ranked:
        if option.dropped:
            kept.append((units, option))
        elif option.loss < lost:
            kept.append((units, option))
            lost = option.loss
    return kept
