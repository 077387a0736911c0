"""Captures of which some placements alone profiled, as in sweeps: intervals, noise, coverage."""

from __future__ import annotations

from math import sqrt

import numpy as np
import pytest
from msgspec.structs import replace

from prunescope.analysis.ledger import noise
from prunescope.analysis.ledger.ledger import ROWS, ratios
from prunescope.analysis.ledger.noise import (
    TimeBase,
    bootstrap,
    choose_time_base,
    halves,
    interval,
    realised_interval,
)
from prunescope.analysis.ledger.samples import Samples, sampled_shares, weights_of_steps, widened
from tests.analysis.ledger.test_samples import side, units


def coverage(profiled: list[int], each: int, captures: int) -> dict[str, float]:
    """How often the 95 % interval of a row of a model against itself holds 0, where steps are drawn
    as if each stood for itself, and where the manifest says which placement profiled them. A part's
    share of a step varies by 5 % from placement to placement and by 1 % within one."""
    draw = np.random.default_rng(sum(profiled) + each)
    held = {"as they are": 0, "by placement": 0}
    for _ in range(captures):
        sides, samples = [], []
        for _ in range(2):
            spread = draw.normal(0, 0.05, (sum(profiled), 1))
            busy = 1e8 * np.exp(spread + draw.normal(0, 0.01, (sum(profiled), each))).ravel()
            sides.append(side([busy.tolist(), [2e8] * len(busy)]))
            place = np.exp(draw.normal(0, 0.018, (8, 1)))
            samples.append((3e8 * place * np.exp(draw.normal(0, 0.01, (8, 2)))).astype(int))
        pair = units(*sides)
        for how, steps in (("as they are", []), ("by placement", [n * each for n in profiled])):
            given = [Samples.of(ns.tolist(), steps) for ns in samples]
            boot = bootstrap(
                pair,
                ratios(pair, None),
                choose_time_base(pair, *given, on_device=False, in_turns=True),
            )
            assert boot is not None
            low, high = interval(boot.rows["kernel_efficiency"][0])
            held[how] += low <= 0 <= high
    return {how: count / captures for how, count in held.items()}


@pytest.mark.parametrize(
    ("profiled", "each", "before"),
    [
        ([0, 0, 0, 1, 0, 0, 0, 1], 1, 0.8),
        ([0, 0, 0, 1, 0, 0, 0, 1], 8, 0.65),
        ([0, 1, 0, 1, 0, 1, 0, 1], 1, 0.92),
    ],
)
def test_rows_of_a_model_against_itself_hold_0(
    profiled: list[int], each: int, before: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two or four steps over eight placements, or two loops of eight: of 3,000 captures 0.72, 0.55
    and 0.87 held 0 before, and 0.96 by placement (docs/ledger.md)."""
    monkeypatch.setattr(noise, "REPLICATES", 300)
    monkeypatch.setattr(noise, "LEAST_STEPS", 2)  # to show why single steps take more
    covered = coverage(profiled, each, 150)
    assert covered["as they are"] < before
    assert 0.91 <= covered["by placement"] <= 0.99


def test_every_replicate_closes_to_its_own_w() -> None:
    told = [0, 2, 0, 1]
    dense = Samples.of([[130, 132], [140, 150], [90, 91], [120, 121]], told)
    pruned = Samples.of([[70, 72], [60, 61], [66, 60], [64, 66]], told)
    pair = units(side([[100, 110, 90], [20, 20, 20]]), side([[50, 52, 49], [20, 21, 19]]))
    domain = choose_time_base(pair, dense, pruned, on_device=False)
    boot = bootstrap(pair, ratios(pair, 0.5), domain)
    assert boot is not None and boot.walls is not None
    assert sum(boot.total(name) for name in ROWS[1:-1]) == pytest.approx(boot.pruned)
    assert boot.dense == pytest.approx(boot.walls[0])
    # W is of all four placements, and the steps of the two that profiled: Student's t of one
    # degree.
    assert len(np.unique(boot.walls[0].round(6))) > 10
    assert len(np.unique(boot.steps[0].round(6), axis=1).T) == 3


def test_placements_of_unequal_steps_keep_their_sign() -> None:
    """One step of the first placement, two of the second: both drawn alike is the mean of steps,
    and the second alone, widened 9.17 times, stands as far from it on its own side."""
    placement = np.array([0, 1, 1])
    weights = widened(
        weights_of_steps(sampled_shares(np.array([[0, 1], [1, 1], [0, 0]])), placement), 2
    )
    assert weights.sum(axis=0) == pytest.approx([1, 1, 1])
    assert weights[:, 0] == pytest.approx([1 / 3] * 3)
    by = 12.7062 / 1.959964 * sqrt(2)
    assert weights[:, 1] == pytest.approx([1 / 3 - by / 3, 1 / 3 + by / 6, 1 / 3 + by / 6])
    assert weights[0, 2] == pytest.approx(1 / 3 + by * 2 / 3)


def test_one_placement_that_profiled_alone_tells_no_interval_of_a_row() -> None:
    """Its steps say nothing of another placement; the speedup's interval is of all samples, and
    noise is of its steps."""
    samples = Samples.of([[120, 122], [118, 121]], [0, 3])
    pair = units(side([[100, 102, 98], [20] * 3]))
    domain = choose_time_base(pair, samples, samples, on_device=False)
    assert bootstrap(pair, ratios(pair, None), domain) is None
    assert realised_interval(domain, None) is not None
    twin = halves(pair, domain)
    assert twin is not None
    assert noise.noise(twin.total("kernel_efficiency")) > 0


@pytest.mark.parametrize("device", [True, False])
def test_steps_too_far_apart_tell_none(device: bool) -> None:
    """One of two placements was idle three times as long: a draw of the other, widened, leaves
    less than no time that could be scaled to W."""
    far = side([[100, 300], [20, 60]])
    if device:
        far = replace(side([[100, 100], [20, 20]]), gap=np.array([[20.0, 60.0], [0.0, 0.0]]))
    samples = Samples.of([[400, 402], [398, 401]], [1, 1])
    pair = units(far)
    domain = choose_time_base(pair, samples, samples, on_device=device)
    assert domain.unprofiled
    assert bootstrap(pair, ratios(pair, None), domain) is None


def test_an_old_side_beside_one_of_placements_is_drawn_by_steps_and_the_other_by_placements() -> (
    None
):
    old, new = Samples.of([[120, 122, 121]]), Samples.of([[60, 61], [62, 63]], [1, 1])
    pair = units(side([[100, 102, 99, 101, 100], [20] * 5]), side([[50, 51], [10, 10]]))
    boot = bootstrap(pair, ratios(pair, None), choose_time_base(pair, old, new, on_device=False))
    assert boot is not None
    assert set(boot.steps[0].ravel().round(3)) <= {0.0, 0.2, 0.4, 0.6, 0.8, 1.0}
    assert boot.steps[1].max() == pytest.approx(0.5 + 0.5 * 9.168, abs=1e-2)


def test_noise_splits_the_placements_that_profiled() -> None:
    """Two of four placements have two steps each: 100 and 104 ns, 110 and 114 ns: halves differ by
    10, however the steps of a placement do."""
    pair = units(side([[100, 104, 110, 114], [20] * 4]))
    domain = TimeBase("profiled", False, *[Samples.of([[1]] * 4, [0, 2, 0, 2])] * 2)
    twin = halves(pair, domain)
    assert twin is not None
    assert noise.noise(twin.total("kernel_efficiency")) == pytest.approx(10 / sqrt(2))


def test_noise_draws_the_samples_of_all_placements_where_two_profiled() -> None:
    """Of 6 ways to split four placements, 50 draws meet more than the two of the steps."""
    samples = Samples.of([[130], [140], [90], [120]], [0, 1, 0, 1])
    pair = units(side([[100, 100], [20, 20]]))
    twin = halves(pair, choose_time_base(pair, samples, samples, on_device=False))
    assert twin is not None
    assert len(np.unique(twin.dense.round(6))) == 6
