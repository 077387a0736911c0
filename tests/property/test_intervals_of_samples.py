"""W, intervals and noise of any samples: they hold the point, and follow the unit of time."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunescope.analysis.ledger.noise import (
    interval,
    median_interval,
    noise,
    speedup_interval,
    wall_interval,
)
from prunescope.analysis.ledger.samples import (
    Samples,
    sampled_shares,
    weights_of_steps,
    widened,
    widened_weights,
)

# The same examples in every run: a bootstrap that misses its point once in a million is no error.
QUICK = settings(max_examples=30, deadline=None, derandomize=True)
NS = st.integers(1_000, 1_000_000)
FLAT = st.lists(NS, min_size=2, max_size=8)
PLACEMENTS = st.lists(st.lists(NS, min_size=1, max_size=4), min_size=1, max_size=5)


@QUICK
@given(placements=PLACEMENTS, order=st.randoms(use_true_random=False), times=st.integers(2, 9))
def test_w_lies_among_its_samples_and_their_order_does_not_move_it(
    placements: list[list[int]], order: Random, times: int
) -> None:
    wall = Samples.of(placements).wall
    flat = [ns for samples in placements for ns in samples]
    assert min(flat) * (1 - 1e-12) <= wall <= max(flat) * (1 + 1e-12)
    shuffled = [order.sample(samples, len(samples)) for samples in placements]
    order.shuffle(shuffled)
    assert Samples.of(shuffled).wall == pytest.approx(wall)
    longer = Samples.of([[times * ns for ns in samples] for samples in placements])
    assert longer.wall == pytest.approx(times * wall)


@QUICK
@given(placements=PLACEMENTS, flat=FLAT)
def test_the_interval_of_w_and_of_a_median_holds_it(
    placements: list[list[int]], flat: list[int]
) -> None:
    for samples in (Samples.of(placements), Samples.of([flat])):
        low, high = wall_interval(samples)
        assert low * (1 - 1e-9) <= samples.wall <= high * (1 + 1e-9)
    low, high = median_interval(np.array(flat, float)) or [0, 0]
    assert low <= np.median(flat) <= high
    assert median_interval(np.array(flat[:1], float)) is None


@QUICK
@given(dense=FLAT, pruned=FLAT, times=st.integers(2, 9), in_turns=st.booleans())
def test_the_interval_of_a_speedup_holds_it_in_any_unit_of_time(
    *, dense: list[int], pruned: list[int], times: int, in_turns: bool
) -> None:
    low, high = speedup_interval(dense, pruned, in_turns=in_turns) or [0, 0]
    assert low <= np.median(dense) / np.median(pruned) <= high
    longer = ([times * ns for ns in side] for side in (dense, pruned))
    assert speedup_interval(*longer, in_turns=in_turns) == pytest.approx([low, high])
    assert speedup_interval(dense, dense, in_turns=True) == [1, 1]
    assert speedup_interval(dense, pruned[:1]) is None


@QUICK
@given(flat=FLAT, copies=st.integers(2, 4))
def test_more_of_the_same_samples_never_widen_an_interval(flat: list[int], copies: int) -> None:
    few, many = (median_interval(np.array(flat * times, float)) for times in (1, copies))
    assert few is not None and many is not None
    assert many[1] - many[0] <= few[1] - few[0]


@QUICK
@given(drawn=st.data(), groups=st.integers(2, 10))
def test_weights_sum_to_one_and_fewer_placements_lie_farther_from_equal_ones(
    drawn: st.DataObject, groups: int
) -> None:
    number = st.integers(0, groups - 1)
    picks = np.array(drawn.draw(st.lists(st.lists(number, min_size=groups, max_size=groups),
                                         min_size=1, max_size=4)))  # fmt: skip
    shares = sampled_shares(picks)
    assert (shares >= 0).all()
    placement = np.repeat(np.arange(groups), drawn.draw(st.integers(1, 3)))
    for weights in (shares, widened_weights(picks), weights_of_steps(shares, placement)):
        assert weights.sum(axis=0) == pytest.approx(np.ones(len(picks)))
    away = [np.abs(widened(shares, number) - 1 / groups) for number in (groups, groups + 1)]
    assert (away[0] >= away[1]).all()
    assert (away[1] >= np.abs(shares - 1 / groups)).all()


@QUICK
@given(values=st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=40), times=st.floats(0.1, 10),
       order=st.randoms(use_true_random=False))  # fmt: skip
def test_noise_has_no_sign_and_no_order_and_an_interval_no_order(
    values: list[float], times: float, order: Random
) -> None:
    there = np.array(values)
    shuffled = np.array(order.sample(values, len(values)))
    assert noise(there) == pytest.approx(noise(-shuffled))
    assert noise(times * there) == pytest.approx(times * noise(there))
    assert interval(shuffled) == pytest.approx(interval(there))
    low, high = interval(there)
    assert min(values) <= low <= high <= max(values)
