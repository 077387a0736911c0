"""The choice of what each layer keeps, as a mixed-integer program that HiGHS solves (scipy).

In: for each layer the loss and the costs of each size of its parts, less those of the dense layer.
Out: one option per layer, whose costs stay within every limit and whose loss is least. Costs add up
over layers and parts, and so do losses, which are rises of the log perplexity in nats per token.
Each size of each part is a variable of 0 or 1; of an attention, of an MLP and of their layer as a
whole exactly one is 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from prunescope.analysis.predict.layer_costs import LayerCosts
from prunescope.taxonomy.allocations.allocation import ATTENTION_PARTS, MLP_PARTS, LayerOption
from prunescope.taxonomy.allocations.allocation_candidates import LayerLosses

# The relative distance from the optimum at which the search ends: measured losses are good to a
# percent. A point of the frontier may be further off.
GAP, FRONTIER_GAP = 1e-6, 1e-3
_SECONDS = 120.0  # of one search; the best choice so far counts then
_SCALE = 1000.0  # of losses and costs, whose largest is 1: HiGHS tolerates 1e-6 in absolute terms
_TRIES = 4  # limits that are tightened by what rounding exceeded
_ROUNDING = 1e-9  # a share of the largest cost


@dataclass(frozen=True, slots=True)
class _Choice:
    """A variable: one size of a part of a layer ("" for dense), or the layer without its parts.

    `group`: 0 attention, 1 MLP, None for the whole layer.
    """

    layer: int
    group: int | None
    part: str
    size: int
    loss: float
    costs: tuple[float, ...]


@dataclass(slots=True)
class Program:
    """The choices of all layers, and the constraints that hold at every limit.

    `losses` and each entry of `costs` have an entry per layer. The costs of the first measure
    become those of the options. `even`: all layers that stay have the same sizes. `dense`: whether
    an attention and an MLP may stay as they are.
    """

    losses: Sequence[LayerLosses]
    costs: Sequence[Sequence[LayerCosts]]
    even: bool = False
    dense: tuple[bool, bool] = (True, True)
    _choices: list[_Choice] = field(init=False)
    _rows: list[tuple[dict[int, float], float, float]] = field(init=False)
    _linked: int = field(init=False)  # further variables, one for each size that all may have

    def __post_init__(self) -> None:
        self._choices = [
            c for number in range(len(self.losses)) for c in self._layer_choices(number)
        ]
        self._rows, self._linked = [], 0
        for number in range(len(self.losses)):
            for group in (0, 1):
                mine = self._columns(number, group)
                self._rows.append((dict.fromkeys(mine, 1.0), 1.0, 1.0))
        gone = [i for i, c in enumerate(self._choices) if c.group is None]
        self._rows.append((dict.fromkeys(gone, 1.0), 0.0, len(self.losses) - 1.0))
        if self.even:
            self._link_sizes()

    def _layer_choices(self, number: int) -> list[_Choice]:
        """List the choices of a layer that no other one of the same part dominates."""
        losses = self.losses[number]
        costs = [measure[number] for measure in self.costs]
        choices: list[_Choice] = []
        for group, parts in enumerate((ATTENTION_PARTS, MLP_PARTS)):
            mine = [
                _Choice(number, group, part, size, loss, tuple(c.parts[part][size] for c in costs))
                for part in parts
                for size, loss in losses.parts.get(part, {}).items()
            ]
            if self.dense[group] or not mine:
                mine.append(_Choice(number, group, "", 0, 0.0, (0.0,) * len(costs)))
            choices += mine if self.even else undominated(mine)
        dropped = [cost.dropped for cost in costs]
        if losses.dropped is not None and None not in dropped:
            gone = tuple(float(cost or 0.0) for cost in dropped)
            choices.append(_Choice(number, None, "", 0, losses.dropped, gone))
        return choices

    def _columns(self, number: int, group: int) -> list[int]:
        """Return the variables of a part of a layer, and that of the layer as a whole."""
        return [
            i for i, c in enumerate(self._choices) if c.layer == number and c.group in (group, None)
        ]

    def _link_sizes(self) -> None:
        """Let all layers that stay have one size of each part: x ≤ y, and one y of a part is 1."""
        first = len(self._choices)
        for group in (0, 1):
            sizes = dict.fromkeys((c.part, c.size) for c in self._choices if c.group == group)
            places = {key: first + self._linked + i for i, key in enumerate(sizes)}
            self._linked += len(places)
            for i, choice in enumerate(self._choices):
                if choice.group == group:
                    place = places[choice.part, choice.size]
                    self._rows.append(({i: 1.0, place: -1.0}, -1.0, 0.0))
            self._rows.append((dict.fromkeys(places.values(), 1.0), 1.0, 1.0))

    def best(self, limits: Sequence[float], *, gap: float = GAP) -> list[LayerOption] | None:
        """Return one option per layer, whose costs are within the limits and lose least.

        Args:
            limits: The most of each measure, in the order of `costs`; inf for none.
            gap: The relative distance from the least loss at which the search ends.

        Returns:
            The options; None if no choice is within all limits.
        """
        return self._solve([c.loss for c in self._choices], limits, gap)

    def cheapest(self, measure: int, limits: Sequence[float] = ()) -> list[LayerOption] | None:
        """Return the options with the least cost in a measure, within limits of all measures."""
        costs = [c.costs[measure] for c in self._choices]
        return self._solve(costs, limits or [math.inf] * len(self.costs), GAP)

    def cost(self, options: Sequence[LayerOption], measure: int) -> float:
        """Return the cost of options in a measure, as the sum over layers."""
        layers = zip(options, self.costs[measure], strict=True)
        return math.fsum(
            (cost.dropped or 0.0)
            if option.dropped
            else math.fsum(cost.parts[part][size] for part, size in option.sizes.items())
            for option, cost in layers
        )

    def _solve(
        self, objective: Sequence[float], limits: Sequence[float], gap: float
    ) -> list[LayerOption] | None:
        """Minimise an objective; tighten limits by what the tolerance of HiGHS exceeded."""
        wanted = list(limits)
        for _ in range(_TRIES):
            options = self._search(objective, wanted, gap)
            if options is None:
                return None
            over = [self.cost(options, m) - most for m, most in enumerate(limits)]
            if all(excess <= _ROUNDING * self._largest(m) for m, excess in enumerate(over)):
                return options
            wanted = [
                most - 2 * excess if excess > 0 else most
                for most, excess in zip(wanted, over, strict=True)
            ]
        return None

    def _largest(self, measure: int) -> float:
        """Return the largest cost of a choice in a measure, by size."""
        return max((abs(c.costs[measure]) for c in self._choices), default=0.0) or 1.0

    def _search(
        self, objective: Sequence[float], limits: Sequence[float], gap: float
    ) -> list[LayerOption] | None:
        """Run HiGHS once."""
        from scipy.optimize import Bounds, LinearConstraint, milp  # late: it takes half a second
        from scipy.sparse import coo_array

        rows = list(self._rows)
        for measure, most in enumerate(limits):
            if most < math.inf:
                scale = _SCALE / self._largest(measure)
                costs = {i: scale * c.costs[measure] for i, c in enumerate(self._choices)}
                rows.append((costs, -np.inf, scale * most))
        count = len(self._choices) + self._linked
        entries = [(r, i, value) for r, (row, _, _) in enumerate(rows) for i, value in row.items()]
        at, columns, values = zip(*entries, strict=True)
        matrix = coo_array((values, (at, columns)), shape=(len(rows), count)).tocsr()
        most_loss = max((abs(value) for value in objective), default=0.0) or 1.0
        weights = np.zeros(count)
        weights[: len(objective)] = np.asarray(objective) * _SCALE / most_loss
        lows, highs = zip(*(ends for _, *ends in rows), strict=True)
        result: Any = milp(
            c=weights,
            integrality=np.ones(count),
            bounds=Bounds(0, 1),
            constraints=LinearConstraint(matrix, lows, highs),
            options={"mip_rel_gap": gap, "time_limit": _SECONDS},
        )
        return None if result.x is None else self._options(result.x)

    def _options(self, values: Any) -> list[LayerOption]:
        """Return the option of each layer of a solution."""
        taken: list[list[_Choice]] = [[] for _ in self.losses]
        for choice, value in zip(self._choices, values, strict=False):
            if value > 0.5:
                taken[choice.layer].append(choice)
        return [_option(choices) for choices in taken]


def _option(choices: Sequence[_Choice]) -> LayerOption:
    """Return the option of a layer, of the choices of its parts."""
    cost, loss = sum(c.costs[0] for c in choices), sum(c.loss for c in choices)
    sizes: dict[str, Any] = {c.part: c.size for c in choices if c.part}
    dropped = any(c.group is None for c in choices)
    return LayerOption(cost=cost, loss=loss, dropped=dropped, **sizes)


def undominated(choices: Iterable[_Choice]) -> list[_Choice]:
    """Return the choices that no other one beats in its loss and in every cost.

    Of equal ones that stays which keeps more: the dense one, else the larger size.
    """
    ranked = sorted(choices, key=lambda c: (c.loss, sum(c.costs), bool(c.part), -c.size))
    kept: list[_Choice] = []
    for choice in ranked:
        beaten = any(
            all(a <= b for a, b in zip(other.costs, choice.costs, strict=True)) for other in kept
        )
        if not beaten:
            kept.append(choice)
    return kept
