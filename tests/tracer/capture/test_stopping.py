"""The rule that decides whether another placement is drawn, and how often its intervals are right.

The simulations run the rule as it is coded; no model runs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
import pytest

from prunescope.analysis.ledger.noise import wall_interval
from prunescope.analysis.ledger.samples import (
    Samples,
    sample_placements,
    samples_of,
    widened_weights,
)
from prunescope.taxonomy.runs.run import PhaseRun, Placement
from prunescope.taxonomy.student_t import interval_quantile
from prunescope.tracer.capture.request import TraceRequest
from prunescope.tracer.capture.stopping import StoppingRule, half_width, rule_of, wide_phases

Sides = tuple[list[list[int]], ...]
RULE = StoppingRule(until=0.02, looks=(4, 6, 8), sequential=True)
RUNS = 2000


def phase_run(by_placement: list[list[int]], disturbed: int = 0) -> PhaseRun:
    return PhaseRun(
        batch=1, prompt_len=1, positions=[0, 1], context=1, logits="last", cache="dynamic",
        attention="sdpa", mode="eager", steps=1, tokens_per_step=1, warmup=1,
        samples_ns=[ns for samples in by_placement for ns in samples],
        placements=[
            Placement(samples=len(one), steps=1, disturbed=disturbed) for one in by_placement
        ],
    )  # fmt: skip


def spread_over(count: int, share: float) -> list[list[int]]:
    """Return placements of one sample each, whose logs are ±share in turn."""
    return [[round(1e9 * math.exp(share * (-1) ** number))] for number in range(count)]


@pytest.mark.parametrize(
    ("asked", "looks"),
    [
        ({"until": 0.02}, (4, 6, 9, 14, 16)),
        ({"until": 0.02, "max_placements": 40}, (4, 6, 9, 14, 21, 32, 40)),
        ({"until": 0.02, "max_placements": 5}, (4, 5)),
        ({"until": 0.02, "placements": 3}, (3,)),
        ({"until": 0.02, "repeats": 2}, (2,)),  # each placement needs a sample
        ({"placements": 8}, tuple(range(8, 17))),
        ({"placements": 3}, (3,)),
        ({"placements": 3, "max_placements": 5}, (3, 4, 5)),
    ],
)
def test_at_which_numbers_of_placements_an_interval_is_looked_at(
    asked: dict[str, Any], looks: tuple[int, ...]
) -> None:
    assert TraceRequest(model="x", out=Path(), **asked).looks == looks


def test_a_half_width_is_that_of_a_t_interval_over_placements() -> None:
    # Logs of the ratios of medians: 0, 0.02, 0.04, 0.02; standard deviation 0.01633, and Student's
    # t with 3 degrees of freedom is 3.182: half a width of 3.182 * 0.01633 / 2 = 0.02598.
    dense = [[100, 100], [102.02, 90, 110], [104.08], [102.02]]
    pruned = [[100], [100], [100, 100], [90, 100, 1000]]
    assert half_width(dense, pruned) == pytest.approx(0.02598, rel=2e-3)  # type: ignore[arg-type]
    # The 98.75th percentile in its place: 4.177 * 0.01633 / 2 = 0.0341; of a time alone the same.
    wide = half_width(dense, sequential=True)  # type: ignore[arg-type]
    assert wide == pytest.approx(0.0341, rel=2e-3)
    assert half_width([[5]], [[7]]) == math.inf


@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize("count", [4, 10])
def test_a_half_width_is_the_one_that_a_report_gives(count: int, sequential: bool) -> None:
    draw = np.random.default_rng(1)
    sides = [
        np.round(1e8 * np.exp(draw.normal(0, 0.05, (count, 3)))).astype(int).tolist() for _ in "dp"
    ]
    weights = widened_weights(sample_placements(draw, count, 20_000), sequential=sequential)
    dense, pruned = (Samples.of(side) for side in sides)
    low, high = np.quantile(dense.walls(weights) / pruned.walls(weights), (0.025, 0.975))
    expected = (high - low) / 2 / (dense.wall / pruned.wall)
    assert half_width(*sides, sequential=sequential) == pytest.approx(expected, rel=0.1)


def test_the_wider_quantile_is_the_98_75th_percentile() -> None:
    """By `scipy.stats.t.ppf(0.9875, n)` of scipy 1.17.1."""
    table = {
        1: 25.4517,
        3: 4.1765,
        5: 3.1634,
        6: 2.9687,
        8: 2.7515,
        13: 2.5326,
        31: 2.3556,
        200: 2.2584,
    }
    assert {n: interval_quantile(n, sequential=True) for n in table} == pytest.approx(
        table, abs=6e-3
    )
    assert interval_quantile(7, sequential=False) == pytest.approx(2.365, abs=2e-3)


def test_sampling_stops_at_a_look_alone_and_at_the_limit() -> None:
    narrow, wide = 0.001, 0.5
    goes_on = {
        (count, share): RULE.goes_on(spread_over(count, share))
        for count in range(2, 9)
        for share in (narrow, wide)
    }
    assert [count for count in range(2, 9) if not goes_on[count, narrow]] == [4, 6, 8]
    assert [count for count in range(2, 9) if not goes_on[count, wide]] == [8]


def test_a_phase_that_is_narrow_stays_as_it_is() -> None:
    runs = {
        "prefill": [phase_run(spread_over(4, 0.001))] * 2,
        "decode": [phase_run(spread_over(5, 0.001)), phase_run([[10**9]] * 5)],
    }
    assert wide_phases(RULE, runs) == ("decode",)
    runs["prefill"] = [phase_run(spread_over(4, 0.001), disturbed=1)] * 2
    assert wide_phases(RULE, runs) == ()


@pytest.mark.parametrize(
    ("count", "share", "disturbed", "looks", "ended"),
    [(6, 0.001, 0, 2, "narrow"), (8, 0.5, 0, 3, "limit"), (8, 0.001, 0, 3, "narrow"),
     (5, 0.001, 1, 1, "disturbed"), (8, 0.5, 1, 3, "limit")],
)  # fmt: skip
def test_what_was_reached(count: int, share: float, disturbed: int, looks: int, ended: str) -> None:
    run = phase_run(spread_over(count, share), disturbed)
    alone = RULE.result([run])
    assert (alone.asked, alone.of, alone.looks, alone.ended) == (0.02, "time", looks, ended)
    assert alone.reached == RULE.half_width(run.samples_by_placement)
    pair = RULE.result([run, phase_run([[10**9]] * count)])
    assert (pair.of, pair.looks, pair.ended) == ("speedup", looks, ended)
    assert RULE.result([phase_run([[10**9]])]).reached is None


def test_a_report_widens_the_interval_of_a_run_that_stopped_by_it() -> None:
    run = phase_run(spread_over(4, 0.03))
    low, high = wall_interval(samples_of(run))
    run.until = RULE.result([run])
    wider = wall_interval(samples_of(run))
    # Student's t with 3 degrees of freedom: 4.1765 in place of 3.1824.
    assert math.log(wider[1] / wider[0]) == pytest.approx(
        math.log(high / low) * 4.1765 / 3.1824, rel=1e-4
    )
    run.until.looks = 0  # in blocks, where nothing was looked at
    assert wall_interval(samples_of(run)) == [low, high]


@dataclass(frozen=True)
class Simulated:
    """The share of runs whose interval holds the truth, that of an interval that is not widened,
    the mean number of placements, and the share of runs that became as narrow as requested."""

    held: float
    held_plain: float
    placements: float
    narrow: float


def simulate(between: float, sides: int, runs: int = RUNS, **asked: Any) -> Simulated:
    """Simulate captures of models whose true times and ratios are 1 s and 1.

    A placement's effect is log-normal with standard deviation `between` on the time (alone) or on
    the ratio (of a pair); a sample has noise of 1 % of its own.
    """
    request = TraceRequest(model="x", out=Path(), until=0.02, **asked)
    rule, draw = rule_of(request), np.random.default_rng(67)
    held = held_plain = placements = narrow = 0
    for _ in range(runs):
        taken: Sides = tuple([] for _ in range(sides))
        while len(taken[0]) < rule.looks[0] or rule.goes_on(*taken):
            place = draw.normal(0, between / math.sqrt(sides), sides)
            logs = place[:, None] + draw.normal(0, 0.01, (sides, 3))
            for side, of_side in zip(taken, np.exp(logs), strict=True):
                side.append(np.round(1e9 * of_side).astype(int).tolist())
        walls = [fmean(math.log(median(placed)) for placed in side) for side in taken]
        off = abs(walls[0] - (walls[1] if sides > 1 else math.log(1e9)))
        reached = rule.half_width(*taken)
        held += off <= math.asinh(reached)
        freedom = len(taken[0]) - 1
        plain, wider = (interval_quantile(freedom, sequential=is_it) for is_it in (False, True))
        held_plain += off <= math.asinh(reached) * plain / wider
        placements += len(taken[0])
        narrow += reached <= rule.until
    return Simulated(held / runs, held_plain / runs, placements / runs, narrow / runs)


@pytest.mark.parametrize("sides", [1, 2])
def test_intervals_hold_the_truth_at_any_spread_and_placements_follow_it(sides: int) -> None:
    of = {between: simulate(between, sides) for between in (0.01, 0.03, 0.08)}
    # 2,000 runs at 0.95 have a standard deviation of 0.005.
    assert min(each.held for each in of.values()) >= 0.93
    counts = [each.placements for each in of.values()]
    assert counts == sorted(counts) and counts[0] < 0.6 * counts[-1]
    assert counts[-1] <= 16


def test_the_spread_at_which_stopping_matters_most_needs_the_wider_interval() -> None:
    of = simulate(0.035, 2, max_placements=32)
    assert of.held_plain < of.held and of.held >= 0.93
    assert of.narrow > 0.5
