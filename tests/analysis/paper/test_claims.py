"""Draws of points from their intervals, and the paper's claims tested on them."""

from __future__ import annotations

import numpy as np
import pytest

from prunescope.analysis.frontier.frontier import frontier, loss_of, winners
from prunescope.analysis.frontier.sampled_points import (
    NUM_SAMPLES,
    add_winning_shares,
    sample_points,
)
from prunescope.analysis.paper.claims import (
    _EDGE,
    LOW_LOSS,
    _judge_interval,
    hypotheses,
    sentence,
)
from prunescope.analysis.schema.pareto import (
    Hypothesis,
    Loss,
    Pareto,
    ParetoPhase,
    SweepCell,
    SweepPoint,
    SweepSubject,
    TextLoss,
)
from tests.analysis.pareto_points import point


def claims_of(points: list[SweepPoint], phase: str = "prefill") -> dict[str, Hypothesis]:
    cell = SweepCell(
        batch=1, prompt_len=512, dense_ns={}, break_even={}, equal_flops=[], equal_sparsity=[],
        winners=winners(frontier(points), batch=1, prompt_len=512),
    )  # fmt: skip
    one = ParetoPhase(points=points, winners=[], break_even={}, cells=[cell])
    found = hypotheses(Pareto(tool="t", subject={}, phases={phase: one}))
    return {h.claim.split(" ")[0] + " " + h.claim.split(" ")[2]: h for h in found}


def test_draws_have_the_intervals_of_their_points() -> None:
    drawn = sample_points([point("a", 1.2, 0.3), point("b", 1.5, None)])
    assert drawn is not None
    assert drawn.labels == ("a",)  # without a loss there is no place
    low, high = np.exp(np.quantile(drawn.speeds[:, 0], (0.025, 0.975)))
    assert (low, high) == pytest.approx((0.98 * 1.2, 1.02 * 1.2), rel=3e-3)
    low, high = np.expm1(np.quantile(drawn.losses[:, 0], (0.025, 0.975)))
    assert (low, high) == pytest.approx((0.29, 0.31), abs=2e-3)
    assert sample_points([]) is None


def test_a_winner_says_in_how_many_draws_it_wins() -> None:
    """b is as fast as c within noise: neither wins in all; a is alone in its range."""
    points = [point("a", 1.2, 0.1), point("b", 1.5, 0.5), point("c", 1.495, 0.5)]
    found = winners(frontier(points), batch=1, prompt_len=512)
    add_winning_shares(found, points)
    shares = {w.family: w.share_of_draws for w in found}
    assert list(shares) == ["dense", "a", "b"]
    assert shares["dense"] == pytest.approx(1.0, abs=0.02)
    assert shares["a"] == pytest.approx(1.0, abs=0.02)
    assert 0.5 < (shares["b"] or 0) < 0.75


def test_the_loss_is_that_against_the_dense_model_trained_alike() -> None:
    one = point("a", 1.2, 0.1)
    assert loss_of(one) == 0.1
    assert one.loss is not None
    one.loss.perplexity_rel_recovered, one.loss.recovered_ci95 = 0.4, [0.3, 0.5]
    assert loss_of(one) == 0.4
    drawn = sample_points([one])
    assert drawn is not None
    assert float(np.expm1(np.median(drawn.losses))) == pytest.approx(0.4, abs=0.01)


def test_low_loss_is_won_by_depth_or_not() -> None:
    """1.2 / 1.1 = 1.09 among points of at most +20 %; what loses more is no rival."""
    far = [point("static-nk", 1.6, 0.5), point("static-nk", 1.05, 0.02)]
    found = claims_of([point("static-m", 1.2, 0.1), point("b", 1.1, 0.05), *far])["static wins"]
    assert (found.verdict, found.points) == ("holds", 3)
    assert found.effect == pytest.approx(1.2 / 1.1, rel=0.01)
    low, high = found.effect_ci95 or [0.0, 0.0]
    assert low == pytest.approx(1.2 / 1.1 * (1 - 0.028), rel=0.01)  # 2 % each, in quadrature
    assert high == pytest.approx(1.2 / 1.1 * (1 + 0.028), rel=0.01)
    assert found.share_of_draws == 1.0
    assert "of 3 points that lose at most +20.0 % perplexity, static-m 0.25 is 1.09×" in found.text
    lost = claims_of([point("static-m", 1.1, 0.1), point("b", 1.2, 0.05), *far])["static wins"]
    assert (lost.verdict, lost.share_of_draws) == ("does not hold", 0.0)
    tied = claims_of([point("static-m", 1.2, 0.1), point("b", 1.199, 0.05), *far])["static wins"]
    assert tied.verdict == "undecided"
    # Slower than dense wins nothing, whoever else there is.
    slow = [point("static-m", 0.9, 0.1), point("b", 0.8, 0.05), point("b", 0.7, 0.1)]
    found = claims_of(slow)["static wins"]
    assert (found.verdict, "as the fastest of another family, the dense" in found.text) == (
        "does not hold",
        True,
    )


def test_low_loss_is_undecided_where_no_point_lies_or_fewer_than_three() -> None:
    """+128 % is no low loss, and two points are no evidence."""
    rivals = [point("b", 1.1, lost) for lost in (0.05, 0.1, 0.15)]
    far = claims_of([point("static-m", 1.3, 1.28), *rivals])["static wins"]
    assert (far.verdict, far.effect, far.points) == ("undecided", None, 3)
    assert "static-m loses at most +20.0 % perplexity; the least is +128.0 %" in far.text
    lonely = claims_of([point("static-m", 1.3, 0.1), point("b", 1.1, 0.5)])["static wins"]
    assert "no point of another family loses at most" in lonely.text
    two = claims_of([point("static-m", 1.3, 0.1), rivals[0]])["static wins"]
    assert (two.verdict, two.points) == ("undecided", 2)
    assert two.text == "2 points at most +20.0 % perplexity; a claim takes 3"
    three = claims_of([point("static-m", 1.3, 0.1), *rivals[:2]])["static wins"]
    assert (three.verdict, three.points) == ("holds", 3)


def test_low_loss_is_five_points_of_task_score_where_no_perplexity_is_known() -> None:
    points = [point("static-m", 1.3, None), point("b", 1.1, None), point("b", 1.05, 0.1)]
    for change, verdict in ((-0.05, "holds"), (-0.06, "undecided")):
        points[0].loss = points[1].loss = Loss(tasks_points=change)
        found = claims_of(points)["static wins"]
        assert found.verdict == verdict
        assert "+20.0 % perplexity or 5 points of task score" in found.text


def test_claims_about_losses_are_tested_on_the_other_text_too() -> None:
    """By the first text width is faster at low loss; by the other one its best loses too much."""
    depth, width = point("static-m", 1.3, 0.1), point("static-nk", 1.4, 0.15)
    third = point("static-nk", 0.9, 0.15)
    for one, lost in ((depth, 0.05), (width, 1.8), (third, 0.05)):
        assert one.loss is not None
        one.loss.other_text = TextLoss(perplexity_rel=lost, ci95=[lost - 0.01, lost + 0.01])
    rival = point("static-nk", 0.8, 0.1)
    assert rival.loss is not None
    rival.loss.other_text = TextLoss(perplexity_rel=0.1, ci95=[0.09, 0.11])
    unjudged = point("b", 2.0, 0.1, timing_valid=True)
    cell = SweepCell(
        batch=1, prompt_len=512, dense_ns={}, break_even={}, equal_flops=[], equal_sparsity=[],
        winners=[],
    )  # fmt: skip
    one = ParetoPhase(
        points=[depth, width, third, rival, unjudged], winners=[], break_even={}, cells=[cell]
    )
    subject = SweepSubject(model="m", config={"other_text": "b.txt"})
    found = hypotheses(Pareto(tool="t", subject=subject, phases={"prefill": one}))
    told = {(h.claim, h.loss_on): h for h in found}
    assert told[LOW_LOSS, None].verdict == "does not hold"
    assert told[LOW_LOSS, "b.txt"].verdict == "holds"
    assert told[LOW_LOSS, "b.txt"].effect == pytest.approx(1.3, rel=0.02)  # dense is the rival
    assert "512 tokens, by the loss on b.txt (of 3 points" in sentence(told[LOW_LOSS, "b.txt"])
    assert [h.loss_on for h in found if "closest" in h.claim] == []  # no bytes were known
    assert (depth.loss and depth.loss.perplexity_rel, one.points) == (
        0.1,
        [depth, width, third, rival, unjudged],
    )


def test_the_order_by_loss() -> None:
    right = [point("static-m", 1.1, 0.03), point("dynamic-m", 1.3, 0.2),
             point("static-nk", 1.6, 0.5)]  # fmt: skip
    found = claims_of(right)["prefill static-m"]
    assert (found.verdict, found.share_of_draws) == ("holds", 1.0)
    assert found.effect == pytest.approx(1.3 / 1.1, rel=0.01)  # 1.6 / 1.3 is the larger step
    close = [point("static-m", 1.1, 0.03), point("dynamic-m", 1.101, 0.2),
             point("static-nk", 1.6, 0.5)]  # fmt: skip
    assert claims_of(close)["prefill static-m"].verdict == "undecided"
    wrong = [point("static-nk", 1.6, 0.03), *right[:2]]
    assert claims_of(wrong)["prefill static-m"].verdict == "does not hold"
    missing = claims_of(right[:2])["prefill static-m"]
    assert (missing.verdict, missing.effect) == ("cannot be judged", None)
    assert claims_of([point("a", 1.1, 0.1)]) == {}


def test_depth_is_closest_to_its_bound() -> None:
    """Shares of the bound 1.2: 1.19 → 99 %, 1.0 → 83 %; closer by 16 points."""
    memory = {"memory_bound": 0.9}
    points = [point("static-m", 1.19, 0.03, **memory), point("static-nk", 1.0, 0.5, **memory)]
    two = claims_of(points, "decode")["static stays"]
    assert (two.verdict, two.points) == ("undecided", 2)
    assert two.text == "it rests on 2 points, and a claim takes 3"
    points.append(point("static-nk", 1.0, 0.6, **memory))
    found = claims_of(points, "decode")["static stays"]
    assert (found.verdict, found.points) == ("holds", 3)
    assert "mean distance of 3 points from their roofline bounds" in found.text
    assert found.effect == pytest.approx(0.16, abs=0.01)
    computed = [point("static-m", 1.19, 0.03), point("static-nk", 1.0, 0.5)]
    assert "static stays" not in claims_of(computed, "decode")


def test_a_point_above_its_bound_does_not_make_up_for_one_below() -> None:
    """Of the bound 1.2, 1.32 and 1.08 are 10 % off each: no closer than 1.10, which is 8 % off."""
    memory = {"memory_bound": 0.9}
    points = [
        point("static-m", 1.32, 0.03, **memory),
        point("static-m", 1.08, 0.04, **memory),
        point("static-nk", 1.10, 0.5, **memory),
    ]
    found = claims_of(points, "decode")["static stays"]
    assert (found.verdict, found.effect) == ("undecided", pytest.approx(-0.017, abs=0.01))


def test_the_next_family_is_the_one_that_misses_least() -> None:
    """Shares of the bound 1.2: 1.18 → 98 %, 1.19 → 99 %, 0.6 → 50 %: b misses one point less, and
    what removes no work is no rival, though it reaches the whole of its bound of 1."""
    memory = {"memory_bound": 0.9}
    points = [point("static-m", 1.18, 0.03, **memory), point("b", 1.19, 0.5, **memory),
              point("c", 0.6, 0.5, **memory)]  # fmt: skip
    found = claims_of(points, "decode")["static stays"]
    assert found.effect == pytest.approx(-0.008, abs=0.004)
    assert found.verdict == "undecided"
    same = point("static-k-mask", 1.0, 0.5, **memory)
    same.bounds = dict.fromkeys(same.bounds, 1.0)
    same.flop_sparsity = same.parameter_sparsity = 0.0
    kept = [points[0], points[2], point("c", 0.7, 0.4, **memory)]
    found = claims_of([*kept, same], "decode")["static stays"]
    assert (found.verdict, "static-k-mask" in found.text) == ("holds", False)


def test_a_cell_without_a_family_of_the_order_cannot_be_judged() -> None:
    points = [point(name, 1.2, 0.1) for name in ("static-m", "dynamic-m", "static-nk")]
    points[1].batch = 4
    found = claims_of(points)["prefill static-m"]
    assert (found.verdict, found.batch, found.effect) == ("cannot be judged", 1, None)
    assert found.text == "dynamic-m was not measured"
    points[2].batch = 4
    assert claims_of(points)["prefill static-m"].text == "dynamic-m and static-nk were not measured"


def test_a_family_that_no_cell_has_is_said_of_the_phase() -> None:
    found = claims_of([point(name, 1.2, 0.1) for name in ("static-m", "static-nk")])[
        "prefill static-m"
    ]
    assert (found.verdict, found.batch, found.prompt_len) == ("cannot be judged", None, None)
    assert sentence(found).endswith("cannot be judged in prefill (dynamic-m was not measured).")


def test_times_that_are_not_valid_decide_no_claim() -> None:
    """A point of low loss, or of a family of the order: undecided, with the reason."""
    right = [("static-m", 1.1, 0.03), ("dynamic-m", 1.3, 0.02), ("static-nk", 1.6, 0.1)]
    points = [point(*one, memory_bound=0.9) for one in right]
    for bad in range(3):
        for at, one in enumerate(points):
            one.timing_valid = at != bad
        decode = claims_of(points, "decode")
        for claim in ("wins", "stays"):
            told = decode[f"static {claim}"]
            assert (told.verdict, told.effect, told.share_of_draws) == ("undecided", None, None)
            assert told.text == f"the times of {points[bad].family} 0.25 are not valid"
        assert claims_of(points)["prefill static-m"].verdict == "undecided"
    points[2] = point("static-nk", 1.6, 0.5, timing_valid=False)  # no point of low loss
    more = [point("b", 1.05, 0.02), *points]
    assert claims_of(more)["static wins"].effect is not None


def test_losses_without_an_interval_decide_no_claim() -> None:
    points = [point("static-m", 1.1, 0.03), point("dynamic-m", 1.3, 0.1),
              point("static-nk", 1.6, 0.15)]  # fmt: skip
    assert points[1].loss is not None
    points[1].loss.ci95 = None
    for told in claims_of(points).values():
        assert (told.verdict, told.text) == ("undecided", "no interval is known of dynamic-m 0.25")


def test_an_end_that_another_seed_could_move_across_decides_nothing() -> None:
    """The standard error of an end, by 400 seeds, is 1.5 % of the width of an interval."""
    normal = np.random.default_rng(0).standard_normal((400, NUM_SAMPLES))
    ends = np.quantile(normal, 0.025, axis=1)
    assert ends.std() / (2 * 1.96) == pytest.approx(_EDGE / 2, rel=0.1)

    assert _judge_interval([1.005, 1.205], 1.0) == "undecided"  # 2.5 % of 0.2 beyond 1
    assert _judge_interval([1.007, 1.207], 1.0) == "holds"  # 3.5 %
    assert _judge_interval([0.795, 0.995], 1.0) == "undecided"
    assert _judge_interval([0.793, 0.993], 1.0) == "does not hold"
