"""Intervals of bounds: of the ledger's own replicates, by hand and by coverage in simulation."""

from __future__ import annotations

import numpy as np
import pytest
from msgspec.structs import replace

from prunescope.analysis.ledger import noise
from prunescope.analysis.ledger.attribution import AttributionInputs, attribution_inputs
from prunescope.analysis.ledger.ladder import ladder
from prunescope.analysis.ledger.noise import halves
from prunescope.analysis.ledger.pairing import Floats, Units, UnitSums
from prunescope.analysis.ledger.rows import build_rows
from prunescope.analysis.ledger.samples import Samples
from prunescope.analysis.schema.report import Ladder
from tests.analysis.ledger.test_samples import side, units

DENSE, PRUNED = np.array([1e8, 4e7]), np.array([6e7, 4e7])  # ns of up and of the residual

TIMED = ("coverage", "roofline", "busy", "share_of_bound")


@pytest.fixture(autouse=True)
def _two_steps_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that intervals follow by hand."""
    monkeypatch.setattr(noise, "LEAST_STEPS", 2)


def bounds(inputs: AttributionInputs, *, is_bounded: bool = True) -> Ladder:
    rows = build_rows(
        inputs, halves(inputs.units, inputs.time_base), lambda *_: [], is_known=is_bounded
    )
    return ladder(rows, inputs, is_known=is_bounded, is_bounded=is_bounded)


def kept(
    pair: Units, samples: tuple[Samples, Samples] | None = None, *, on_device: bool = False
) -> AttributionInputs:
    empty = Samples.of([]), Samples.of([])
    return attribution_inputs(pair, nominal=0.5, samples_ns=samples or empty, on_device=on_device)


def capture(draw: np.random.Generator, busy: Floats) -> tuple[list[list[float]], Samples]:
    """Eight placements of a step and two samples; each unit varies by 3 % from step to step."""
    place = np.exp(draw.normal(0, 0.018, 8))
    steps = busy[:, None] * place * np.exp(draw.normal(0, 0.03, (len(busy), 8)))
    wall = busy.sum() * place[:, None] * np.exp(draw.normal(0, 0.01, (8, 2)))
    return steps.tolist(), Samples.of(wall.astype(int).tolist(), [1] * 8)


def halved(busy: list[list[float]]) -> UnitSums:
    """A pruned side: half of the FLOPs of up, and 0.6 of its roofline time."""
    dense = side(busy)
    left, ideal = dense.flop.copy(), dense.ideal.copy()
    left[0], ideal[0] = 0.5, 0.6
    return replace(dense, flop=left, ideal=ideal, predicted=ideal)


def captured(draw: np.random.Generator, *, on_device: bool = False) -> AttributionInputs:
    dense, of_dense = capture(draw, DENSE)
    pruned, of_pruned = capture(draw, PRUNED)
    return kept(units(side(dense), halved(pruned)), (of_dense, of_pruned), on_device=on_device)


def test_a_bound_lies_in_its_interval_and_arithmetic_has_none() -> None:
    speedups = bounds(captured(np.random.default_rng(5)))
    for bound in TIMED:
        low, high = speedups.interval_of(bound) or [0, 0]
        assert low < getattr(speedups, bound) < high, bound
    assert speedups.nominal == 2
    assert speedups.interval_of("nominal") is speedups.interval_of("flop") is None
    assert speedups.interval_of("realised") == speedups.realised_ci95


def test_bounds_of_two_steps_by_hand() -> None:
    """100 + 20 and 104 + 20 ns against 50 + 20 twice: drawn one way or the other, dense is 120 to
    124 ns. All of up's FLOPs and of the residual's bytes stay, so that nothing is covered."""
    speedups = bounds(kept(units(side([[100, 104], [20, 20]]), side([[50, 50], [20, 20]]))))
    assert speedups.busy_ci95 == pytest.approx([120 / 70, 124 / 70])
    assert speedups.coverage_ci95 == speedups.roofline_ci95 == [1, 1]
    assert speedups.share_of_bound_ci95 == speedups.busy_ci95


def test_busy_is_as_recorded_and_the_bound_as_the_samples_are() -> None:
    """A profiler that doubles all times of one side alone moves its busy time, not its wall."""
    draw = np.random.default_rng(6)
    (dense, of_dense), (pruned, of_pruned) = (capture(draw, np.array([1e8, 4e7])) for _ in range(2))
    slow = (2 * np.array(pruned)).tolist()
    plain, slowed = (
        bounds(kept(units(side(dense), side(busy)), (of_dense, of_pruned)))
        for busy in (pruned, slow)
    )
    assert slowed.busy_ci95 == pytest.approx([end / 2 for end in plain.busy_ci95 or []])
    assert slowed.share_of_bound_ci95 == pytest.approx(plain.share_of_bound_ci95)


def test_one_step_or_no_shapes_leave_bounds_without_intervals() -> None:
    of_one_step = bounds(kept(units(side([[100], [20]]), side([[50], [20]]))))
    assert of_one_step.busy is not None
    assert all(of_one_step.interval_of(bound) is None for bound in TIMED)
    bare = bounds(
        kept(units(side([[100, 104], [20, 21]]), side([[50, 52], [20, 20]]))), is_bounded=False
    )
    assert bare.busy_ci95 is not None
    assert (bare.coverage_ci95, bare.roofline_ci95, bare.share_of_bound_ci95) == (None, None, None)


def test_a_device_busy_for_longer_than_its_samples_has_a_share_of_those() -> None:
    """The ledger stays as profiled, and realised is the ratio of W: so is what it is a share of."""
    inputs = captured(np.random.default_rng(7), on_device=True)
    assert inputs.time_base.name == "profiled" and inputs.replicates is not None
    speedups, drawn = bounds(inputs), inputs.replicates
    assert drawn.walls is not None
    bound = drawn.promised + drawn.total("coverage") + drawn.total("roofline_shift")
    want = np.percentile(drawn.walls[0] / drawn.walls[1] * bound / drawn.dense, [2.5, 97.5])
    assert speedups.share_of_bound_ci95 == pytest.approx(want)
    assert want[0] < (speedups.share_of_bound or 0) < want[1]


def test_intervals_of_bounds_hold_the_truth(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 140 ns 90 remain by FLOPs and 100 by the roofline, and 100 are taken. 150 captures: 95 %
    are expected, and 91 to 99 pass."""
    monkeypatch.setattr(noise, "REPLICATES", 300)
    draw = np.random.default_rng(11)
    truth = {"coverage": 140 / 90, "roofline": 1.4, "busy": 1.4, "share_of_bound": 1.0}
    held = dict.fromkeys(truth, 0)
    for _ in range(150):
        speedups = bounds(captured(draw))
        for bound, value in truth.items():
            low, high = speedups.interval_of(bound) or [0, 0]
            held[bound] += low <= value <= high
    assert all(0.91 <= count / 150 <= 0.99 for count in held.values()), held
