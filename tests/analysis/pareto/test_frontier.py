"""The frontier of a cell: intervals, winners, break-even, equal costs."""

from __future__ import annotations

import random

import pytest

from prunescope.analysis.pareto import frontier
from prunescope.analysis.schema.pareto import SweepPoint
from tests.analysis.pareto_points import point


def names(points: list[SweepPoint]) -> list[str]:
    return [p.family for p in points]


def test_the_frontier_is_sorted_by_loss_and_each_step_is_faster() -> None:
    a, b, c = point("a", 1.1, 0.1), point("b", 1.3, 0.4), point("c", 1.2, 0.8)
    assert names(frontier.frontier([c, b, a])) == ["a", "b"]


def test_slower_or_no_faster_than_dense_beyond_noise_is_not_on_it() -> None:
    assert frontier.frontier([point("a", 0.9, 0.0), point("b", 1.015, 0.1)]) == []


def test_what_removed_nothing_is_not_on_it() -> None:
    """A family that rounds to the dense model is as fast as it; faster beyond noise is chance."""
    same = point("a", 1.3, 0.0, flop_sparsity=0.0, parameter_sparsity=0.0)
    zeros_cost = point("b", 1.3, 0.1, flop_sparsity=0.0, parameter_sparsity=0.2)
    unknown = point("c", 1.4, 0.2, flop_sparsity=None, parameter_sparsity=0.0)
    assert frontier.frontier([same, zeros_cost, unknown]) == [zeros_cost, unknown]


def test_a_tie_in_speed_goes_to_the_lower_loss() -> None:
    assert names(frontier.frontier([point("a", 1.30, 0.1), point("b", 1.31, 0.5)])) == ["a"]


def test_a_tie_in_loss_goes_to_the_faster() -> None:
    assert names(frontier.frontier([point("a", 1.1, 0.100), point("b", 1.4, 0.105)])) == ["b"]


def test_without_interval_or_loss_a_point_is_left_out() -> None:
    unknown = point("u", 2.0, 0.0, realised_ci95=None)
    assert names(frontier.frontier([point("n", 3.0, None), unknown, point("a", 1.2, 0.1)])) == ["a"]


def test_wide_intervals_leave_one_point_not_all() -> None:
    """Three points that noise cannot tell apart: the one of the lowest loss stands for them."""
    wide = {"realised_ci95": [1.05, 2.0]}
    points = [point(f, s, x, **wide) for f, s, x in (("a", 1.5, 0.2), ("b", 1.6, 0.205),
                                                     ("c", 1.4, 0.195))]  # fmt: skip
    assert names(frontier.frontier(points)) == ["c"]


@pytest.mark.parametrize("seed", range(30))
def test_properties_of_any_frontier(seed: int) -> None:
    stream = random.Random(seed)
    points = [
        point(f"f{i}", stream.uniform(0.7, 2.0), stream.uniform(-0.05, 1.0)) for i in range(12)
    ]
    found = frontier.frontier(points)
    speeds = [p.realised for p in found]
    losses = [p.loss.perplexity_rel or 0.0 for p in found if p.loss]
    assert speeds == sorted(speeds)
    assert losses == sorted(losses)
    assert all((p.realised_ci95 or [0])[0] > 1 for p in found)
    assert bool(found) == any((p.realised_ci95 or [0])[0] > 1 for p in points)
    stream.shuffle(points)
    assert frontier.frontier(points) == found
    # Nobody is faster beyond noise than a frontier point at a loss below its own beyond noise.
    for kept in found:
        low = (frontier.loss_ci95(kept) or [0])[0]
        for other in points:
            below = (frontier.loss_ci95(other) or [0, 0])[1] < low
            faster = (other.realised_ci95 or [0])[0] > (kept.realised_ci95 or [0, 0])[1]
            assert not (below and faster)


def test_winners_by_range_of_loss() -> None:
    best = [point("a", 1.1, 0.1), point("a", 1.2, 0.2), point("b", 1.5, 0.6)]
    found = frontier.winners(best, batch=1, prompt_len=512)
    assert [(w.loss, w.family) for w in found] == [
        ([0.0, 0.1], "dense"), ([0.1, 0.6], "a"), ([0.6, None], "b"),
    ]  # fmt: skip
    assert [w.realised for w in found] == [1.0, 1.2, 1.5]
    free = frontier.winners([point("a", 1.1, -0.01)], batch=1, prompt_len=512)
    assert [(w.loss, w.family) for w in free] == [([-0.01, None], "a")]
    none = frontier.winners([], batch=1, prompt_len=512)
    assert [(w.loss, w.family) for w in none] == [([0.0, None], "dense")]


def test_break_even_needs_every_larger_sparsity() -> None:
    curve = {0.125: 1.2, 0.25: 0.9, 0.375: 1.1, 0.5: 1.4}
    points = [point("a", speed, 0.1, sparsity=s) for s, speed in curve.items()]
    points += [point("b", 1.5, 0.1, sparsity=0.25), point("b", 1.01, 0.1, sparsity=0.5)]
    points += [point("c", 1.5, 0.1, sparsity=None)]
    assert frontier.break_even(points) == {"a": 0.375, "b": None, "c": None}
    assert frontier.in_every_cell([{"a": 0.25, "b": None}, {"a": 0.5, "b": 0.5}]) == {
        "a": 0.5, "b": None,
    }  # fmt: skip


def test_equal_flops_are_interpolated_and_never_beyond_the_last_point() -> None:
    points = [
        point("a", 1.2, 0.1, flop_sparsity=0.2),
        point("a", 1.6, 0.5, flop_sparsity=0.4),
        point("b", 1.1, None, flop_sparsity=0.3),
    ]
    rows = {row.flop_sparsity: row.families for row in frontier.equal_flops(points)}
    assert set(rows) == {0.125, 0.25, 0.375}
    # Between (0, 1) and (.2, 1.2): 1 + .125/.2 * .2 = 1.125; loss .125/.2 * .1.
    assert rows[0.125]["a"].realised == pytest.approx(1.125)
    assert rows[0.125]["a"].loss == pytest.approx(0.0625)
    # Between (.2, 1.2) and (.4, 1.6): 1.2 + .25 * .4 = 1.3.
    assert rows[0.25]["a"].realised == pytest.approx(1.3)
    assert rows[0.25]["b"].loss is None
    assert "b" not in rows[0.375]


def test_equal_sparsity_shows_a_merged_point_at_each_of_its_own() -> None:
    rows = frontier.equal_sparsity([point("a", 1.2, 0.1, sparsities=[0.25, 0.375])])
    assert [row.sparsity for row in rows] == [0.25, 0.375]


def test_times_that_are_not_valid_are_not_beyond_noise() -> None:
    """b is left out, though it would beat a; c has one cell of two, d a smaller s that counts."""
    a, b = point("a", 1.1, 0.1), point("b", 1.5, 0.05, timing_valid=False)
    c, other = point("c", 1.2, 0.3), point("c", 1.2, 0.3, batch=4, timing_valid=False)
    d = [point("d", 1.3, 0.4), point("d", 2.0, 0.6, sparsity=0.5, timing_valid=False)]
    assert names(frontier.frontier([a, b])) == ["a"]
    pays = [frontier.break_even([a, b, c, *d]), frontier.break_even([other])]
    assert pays == [{"a": 0.25, "c": 0.25, "d": 0.25}, {}]
    unknown = frontier.not_judged([a, b, c, *d, other])
    assert unknown == ["b", "c"]
    assert frontier.in_every_cell(pays, unknown) == {"a": 0.25, "d": 0.25}
    (row,) = frontier.equal_sparsity([a, b])
    assert {name: one.timing_valid for name, one in row.families.items()} == {"a": True, "b": False}
    first = frontier.equal_flops([a, b])[0].families  # at 0.125, between dense and 0.2
    assert {name: one.timing_valid for name, one in first.items()} == {"a": True, "b": False}
