"""The frontier of a cell: dominance, shares, winners, break-even, equal costs."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import asdict

from prunescope.analysis.frontier import frontier
from prunescope.analysis.pareto.cells import recompute
from prunescope.analysis.schema.pareto import (
    NOT_VALID,
    Pareto,
    ParetoPhase,
    SweepCell,
    SweepPoint,
    SweepSubject,
    not_judged,
    without_sparsity,
)
from tests.analysis.pareto_points import point


def names(points: list[SweepPoint]) -> list[str]:
    return [p.family for p in points]


def test_the_frontier_is_sorted_by_loss_and_each_step_is_faster() -> None:
    a, b, c = point("a", 1.1, 0.1), point("b", 1.3, 0.4), point("c", 1.2, 0.8)
    assert names(frontier.frontier([c, b, a])) == ["a", "b"]


def test_points_that_ran_in_another_way_are_not_compared() -> None:
    """A cell is a batch, a length and a way to run; knobs make another label in the same cell."""
    eager, flushed = point("a", 1.1, 0.1), point("b", 1.3, 0.1, mode="compile", flush=True)
    aligned = point("a", 1.2, 0.1, set=["align=128"])
    cells = [SweepCell(**asdict(one.setting), dense_ns={}) for one in (eager, flushed)]
    subject = SweepSubject(
        model="m", device=None, dtype="fp32", threads=1, versions={}, text=None, command=None
    )
    phases = {"prefill": ParetoPhase(points=[eager, flushed, aligned], cells=cells)}
    prefill = recompute(Pareto(tool="t", subject=subject, phases=phases)).phases["prefill"]
    assert [one.on_frontier for one in prefill.points] == [False, True, True]
    assert [w.family for w in prefill.winners if w.realised > 1] == ["a (align=128)", "b"]
    assert prefill.cells[1].where.endswith("tokens, compile, cache flushed")


def test_what_is_not_faster_than_dense_is_not_on_it() -> None:
    slower = [point("a", 0.9, 0.0), point("b", 1.0, 0.1), point("c", 0.8, -0.2)]
    assert frontier.frontier(slower) == []


def test_what_removed_nothing_is_not_on_it() -> None:
    """A family that rounds to the dense model is as fast as it; faster beyond noise is chance."""
    same = point("a", 1.3, 0.0, flop_sparsity=0.0, parameter_sparsity=0.0)
    zeros_cost = point("b", 1.3, 0.1, flop_sparsity=0.0, parameter_sparsity=0.2)
    unknown = point("c", 1.4, 0.2, flop_sparsity=None, parameter_sparsity=0.0)
    assert frontier.frontier([same, zeros_cost, unknown]) == [zeros_cost, unknown]


def test_without_a_loss_a_point_is_left_out() -> None:
    """An interval is not needed: the frontier is that of the point estimates."""
    bare = point("u", 2.0, 0.05, realised_ci95=None)
    assert names(frontier.frontier([point("n", 3.0, None), bare, point("a", 1.2, 0.1)])) == ["u"]


def test_a_slow_point_of_low_loss_does_not_hide_a_fast_one() -> None:
    """Of kv-evict at 1.02×, static-m at 1.23× and another at 1.79×, all are on it: an interval that
    overlaps another's removes nothing."""
    points = [
        point("kv-evict", 1.02, 0.012, realised_ci95=[1.01, 1.04]),
        point("static-m", 1.23, 1.76, realised_ci95=[1.20, 1.28]),
        point("static-m", 1.79, 2400.0, realised_ci95=[1.0, 2.9]),
    ]
    assert frontier.frontier(points) == points


# One decimal makes ties of speed and of loss likely.
SPEEDS = st.floats(0.5, 3.0).map(lambda value: round(value, 1))
LOSSES = st.floats(-0.2, 2.0).map(lambda value: round(value, 1))
POINTS = st.lists(st.tuples(SPEEDS, LOSSES), min_size=1, max_size=10).map(
    lambda pairs: [point(f"f{i}", speed, lost) for i, (speed, lost) in enumerate(pairs)]
)


def dominates(one: SweepPoint, other: SweepPoint) -> bool:
    """No slower, no larger loss, and better in one of the two."""
    ours, theirs = (frontier.loss_of(p) or 0.0 for p in (one, other))
    not_worse = one.realised >= other.realised and ours <= theirs
    return not_worse and (one.realised > other.realised or ours < theirs)


@settings(deadline=None)
@given(POINTS, st.tuples(SPEEDS, LOSSES))
def test_a_point_that_is_added_removes_only_what_it_dominates(
    points: list[SweepPoint], added: tuple[float, float]
) -> None:
    new = point("new", *added)
    kept = frontier.frontier([*points, new])
    for before in frontier.frontier(points):
        assert before in kept or dominates(new, before)
    assert set(names(kept)) <= {"new", *names(frontier.frontier(points))}


@settings(deadline=None)
@given(POINTS, LOSSES)
def test_the_fastest_within_any_loss_is_on_it(points: list[SweepPoint], most: float) -> None:
    within = [p for p in points if (frontier.loss_of(p) or 0.0) <= most and p.realised > 1]
    best = [p for p in frontier.frontier(points) if (frontier.loss_of(p) or 0.0) <= most]
    assert max((p.realised for p in within), default=1.0) == max(
        (p.realised for p in best), default=1.0
    )
    assert not any(dominates(p, kept) for p in points for kept in best)


@settings(deadline=None, max_examples=25)
@given(POINTS.flatmap(lambda points: st.tuples(st.just(points), st.permutations(points))))
def test_the_order_of_the_points_is_without_effect(
    both: tuple[list[SweepPoint], list[SweepPoint]],
) -> None:
    one, other = (placed(points) for points in both)
    by_id = {p.id: p for p in other}
    for p in one:
        moved = by_id[p.id]
        assert (p.on_frontier, p.frontier_share) == (moved.on_frontier, moved.frontier_share)
        assert sorted(p.equal_to) == sorted(moved.equal_to)


def placed(points: list[SweepPoint]) -> list[SweepPoint]:
    """The points of one cell with their places."""
    cell = SweepCell(batch=1, prompt_len=512, dense_ns={})
    phase = ParetoPhase(points=points, cells=[cell])
    found = Pareto(tool="t", subject=SweepSubject(), phases={"prefill": phase})
    return recompute(found).phases["prefill"].points


def test_each_point_has_its_share_of_samples() -> None:
    """b is 1.200 and a 1.199 with 2 % of noise, at losses that do not overlap: a, which loses less,
    is always on it, b is about as often faster as slower. c is dominated by a wide margin."""
    a, b, c = placed([point("a", 1.199, 0.1), point("b", 1.2, 0.2), point("c", 1.05, 0.3)])
    assert a.frontier_share == 1.0 and a.on_frontier
    assert b.frontier_share == pytest.approx(0.5, abs=0.05) and b.on_frontier
    assert c.frontier_share == 0.0 and not c.on_frontier
    assert [p.equal_to for p in (a, b, c)] == [[], [], []]


def test_pairs_that_cannot_be_told_apart_are_marked() -> None:
    """b differs from a by 0.1 % in speed and 0.002 in loss, both far within noise; c by its loss;
    d and e are as near each other, and neither is on the frontier."""
    points = [point("a", 1.2, 0.1), point("b", 1.199, 0.102), point("c", 1.2, 0.2),
              point("d", 1.05, 0.4), point("e", 1.05, 0.4)]  # fmt: skip
    a, b, c, d, e = placed(points)
    assert (a.on_frontier, b.on_frontier) == (True, False)
    assert (a.equal_to, b.equal_to) == ([b.id], [a.id])
    assert [p.equal_to for p in (c, d, e)] == [[], [], []]


def test_without_an_interval_there_is_no_share() -> None:
    bare, a = placed([point("u", 1.5, 0.05, realised_ci95=None), point("a", 1.2, 0.1)])
    assert (bare.on_frontier, bare.frontier_share, bare.equal_to) == (True, None, [])
    assert a.frontier_share == 0.0  # the other one takes part with its estimate


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
    assert frontier.break_even(points) == {"a": 0.375, "b": None}
    assert without_sparsity(points) == {"c": True}  # a plan: no sparsity pays off, it is faster
    assert frontier.merge_break_even([{"a": 0.25, "b": None}, {"a": 0.5, "b": 0.5}]) == {
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
    unknown = not_judged([a, b, c, *d, other])
    assert unknown == {"b": NOT_VALID, "c": NOT_VALID}
    assert frontier.merge_break_even(pays, unknown) == {"a": 0.25, "d": 0.25}
    (row,) = frontier.equal_sparsity([a, b])
    assert {name: one.timing_valid for name, one in row.families.items()} == {"a": True, "b": False}
    first = frontier.equal_flops([a, b])[0].families  # at 0.125, between dense and 0.2
    assert {name: one.timing_valid for name, one in first.items()} == {"a": True, "b": False}
