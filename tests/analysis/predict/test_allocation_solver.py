"""The choice of what each layer keeps, against all combinations and against uniform choices."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunescope.analysis.predict.allocation_solver import Program
from prunescope.analysis.predict.layer_costs import LayerCosts
from prunescope.taxonomy.allocations.allocation import LayerOption
from prunescope.taxonomy.allocations.allocation_candidates import LayerLosses

Sizes = dict[int, tuple[float, ...]]  # the loss, and the cost in each measure


def program(
    layers: list[Sizes], dropped: list[tuple[float, ...] | None], *, even: bool = False
) -> Program:
    """Return the program of layers whose MLPs keep one of some sizes, or which go."""
    losses = [
        LayerLosses(
            parts={"channels": {n: values[0] for n, values in sizes.items()}},
            dropped=None if gone is None else gone[0],
        )
        for sizes, gone in zip(layers, dropped, strict=True)
    ]
    measures = len(next(iter(layers[0].values()))) - 1
    costs = [
        [
            LayerCosts(
                parts={"channels": {n: values[m + 1] for n, values in sizes.items()}},
                dropped=None if gone is None else gone[m + 1],
            )
            for sizes, gone in zip(layers, dropped, strict=True)
        ]
        for m in range(measures)
    ]
    return Program(losses, costs, even=even)


def least_loss(
    layers: list[Sizes],
    dropped: list[tuple[float, ...] | None],
    limits: list[float],
    *,
    even: bool = False,
) -> float:
    """Return the least loss of all combinations within the limits that keep a layer."""
    dense = (0.0,) * (len(limits) + 1)
    choices = [
        [(0, dense), *sizes.items(), *([] if gone is None else [(-1, gone)])]
        for sizes, gone in zip(layers, dropped, strict=True)
    ]
    best = math.inf
    for combination in itertools.product(*choices):
        kept = {size for size, _ in combination if size >= 0}
        if not kept or (even and len(kept) > 1):
            continue
        costs = [sum(values[m + 1] for _, values in combination) for m in range(len(limits))]
        if all(cost <= limit for cost, limit in zip(costs, limits, strict=True)):
            best = min(best, sum(values[0] for _, values in combination))
    return best


def loss_of(options: list[LayerOption] | None) -> float:
    """Return the loss of a choice; infinite for none."""
    return math.inf if options is None else sum(option.loss for option in options)


def test_the_narrower_of_two_unequal_layers() -> None:
    """Both save 4 by 256 channels; the second loses less."""
    layers: list[Sizes] = [{256: (3.0, -4.0)}, {256: (1.0, -4.0)}]
    options = program(layers, [None, None]).best([-4.0])
    assert options is not None
    assert [option.channels for option in options] == [None, 256]
    assert program(layers, [None, None]).best([-8.5]) is None


@settings(deadline=None, max_examples=20)
@given(
    st.lists(
        st.tuples(
            st.dictionaries(
                st.sampled_from([32, 64, 96]),
                st.tuples(st.integers(0, 20), st.integers(-12, 0), st.integers(-12, 0)),
                min_size=1,
            ),
            st.none() | st.tuples(st.integers(0, 20), st.just(-12), st.just(-12)),
        ),
        min_size=1,
        max_size=4,
    ),
    st.tuples(st.integers(-40, 0), st.integers(-40, 0)),
    st.booleans(),
)
def test_as_all_combinations_with_two_limits(
    drawn: list[tuple[dict[int, tuple[int, int, int]], tuple[int, int, int] | None]],
    limits: tuple[int, int],
    even: bool,
) -> None:
    layers: list[Sizes] = [
        {n: tuple(map(float, values)) for n, values in sizes.items()} for sizes, _ in drawn
    ]
    dropped = [None if gone is None else tuple(map(float, gone)) for _, gone in drawn]
    if even:  # every layer has every size, as layers of one model do
        common = set.intersection(*(set(sizes) for sizes in layers))
        layers = [{n: sizes[n] for n in common} for sizes in layers]
        if not common:
            return
    wanted = [float(limit) for limit in limits]
    options = program(layers, dropped, even=even).best(wanted)
    assert loss_of(options) == least_loss(layers, dropped, wanted, even=even)
    if options is not None:
        solved = program(layers, dropped, even=even)
        assert [solved.cost(options, m) <= limit for m, limit in enumerate(wanted)] == [True, True]


def test_eight_layers_at_five_targets() -> None:
    """4^8 = 65,536 combinations."""
    layers: list[Sizes] = [
        {
            256: (0.01 * (n + 1) ** 2 % 0.07, -9.0 - n % 3),
            192: (0.1 + 0.02 * n, -16.0),
            128: (0.4 / (n + 1), -25.0),
        }
        for n in range(8)
    ]
    none: list[tuple[float, ...] | None] = [None] * 8
    solved = program(layers, none)
    for limit in (-200.0, -170.0, -120.0, -60.0, -10.0):
        least = least_loss(layers, none, [limit])
        assert loss_of(solved.best([limit])) == pytest.approx(least, rel=1e-5)


def test_one_layer_stays() -> None:
    gone: list[tuple[float, ...] | None] = [(0.1, -5.0), (0.2, -5.0)]
    layers: list[Sizes] = [{32: (0.5, -1.0)}, {32: (0.5, -1.0)}]
    options = program(layers, gone).cheapest(0)
    assert options is not None
    assert sorted(option.dropped for option in options) == [False, True]
    assert program(layers, gone).cost(options, 0) == -6.0


def test_a_size_that_costs_as_much_as_the_next_larger_one_is_not_chosen() -> None:
    """320 and 256 channels are as many tiles: 320 loses less and stays."""
    layers: list[Sizes] = [{320: (0.1, -1.0), 256: (0.2, -1.0), 128: (0.5, -3.0)}]
    options = program(layers, [None]).best([-1.0])
    assert options is not None
    assert options[0].channels == 320
