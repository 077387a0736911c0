"""Noise, intervals and domains, on steps whose sums can be done by hand. All in ns."""

from __future__ import annotations

from math import sqrt

import numpy as np
import pytest
from msgspec.structs import replace

from prunescope.analysis.ledger.alignment import Alignment
from prunescope.analysis.ledger.ledger import ROWS, ratios
from prunescope.analysis.ledger.noise import (
    TimeBase,
    bootstrap,
    choose_time_base,
    halves,
    interval,
    mean_times,
    noise,
    point,
    profiler_overhead_share,
    realised_interval,
    scatter,
    speedup_interval,
    wall_interval,
)
from prunescope.analysis.ledger.pairing import RecordWeight, Units, UnitSums
from prunescope.analysis.ledger.samples import Samples, sample_placements

KEYS = [(0, "up", "matmul"), (0, "residual", "pointwise")]


def side(busy: list[list[float]], gap: list[list[float]], trailing_idle: list[float]) -> UnitSums:
    known = np.ones_like(np.array(busy))
    return UnitSums(
        np.array(busy, float), np.array(gap, float), known, known, known, known,
        present=np.array([True, True]), trailing_idle=np.array(trailing_idle, float),
    )  # fmt: skip


def units(dense: UnitSums, pruned: UnitSums | None = None) -> Units:
    return Units(KEYS, dense, pruned or dense, Alignment({0: 0}, [], "identity", True, 1))


EQUAL = side([[100] * 5, [20] * 5], [[5] * 5, [3] * 5], [2] * 5)
_IDLE = [[5, 9, 4, 6, 6], [3, 3, 2, 4, 3]], [2, 1, 3, 2, 2]
DRIFT = side([[100, 104, 98, 106, 102], [20, 21, 19, 22, 20]], *_IDLE)
FASTER = side([[50, 52, 49, 53, 51], [20, 21, 19, 22, 20]], *_IDLE)
PROFILED = TimeBase("profiled", True, Samples.of([]), Samples.of([]))


def test_equal_steps_have_no_noise() -> None:
    pair = units(EQUAL)
    twin, boot = halves(pair, PROFILED), bootstrap(pair, ratios(pair, None), PROFILED)
    assert twin is not None
    assert boot is not None
    for row in ROWS[2:-1]:
        assert noise(twin.total(row)) == pytest.approx(0)
        assert interval(boot.total(row)) == pytest.approx([0, 0])
    assert interval(boot.pruned) == pytest.approx([130, 130])


def test_the_noise_of_two_steps() -> None:
    """104 against 100 ns, one way and the other: rms 4, over √2; gaps 9 against 5 alike."""
    two = side([[100, 104], [20, 20]], [[5, 9], [3, 3]], [2, 0])
    twin = halves(units(two), PROFILED)
    assert twin is not None
    assert noise(twin.total("kernel_efficiency")) == pytest.approx(4 / sqrt(2))
    assert noise(twin.total("launch_idle")) == pytest.approx((4 - 2) / sqrt(2))
    assert noise(twin.total("coverage")) == 0
    assert noise(twin.pruned - twin.dense) == pytest.approx((4 + 4 - 2) / sqrt(2))


def test_the_noise_is_over_all_ways_to_split() -> None:
    """0, 0, 0, 8 over six ways: every half with the 8 is 4 slower than the other: rms 4."""
    four = side([[0, 0, 0, 8], [1] * 4], [[0] * 4, [0] * 4], [0] * 4)
    twin = halves(units(four), PROFILED)
    assert twin is not None
    assert twin.total("kernel_efficiency").shape == (6,)
    assert noise(twin.total("kernel_efficiency")) == pytest.approx(4 / sqrt(2))


def test_many_steps_are_split_fifty_times() -> None:
    many = side([list(range(100, 120)), [1] * 20], [[0] * 20] * 2, [0] * 20)
    twin = halves(units(many), PROFILED)
    assert twin is not None
    assert twin.total("kernel_efficiency").shape == (50,)


def test_one_step_has_neither() -> None:
    single = units(side([[100], [20]], [[5], [3]], [2]))
    assert halves(single, PROFILED) is None
    assert bootstrap(single, ratios(single, None), PROFILED) is None


@pytest.mark.parametrize("device", [True, False])
@pytest.mark.parametrize("wall", [126, 140, 1000])
def test_both_domains_close_and_hold_the_point(wall: int, *, device: bool) -> None:
    """W below and above the recorded wall (127 … 141), with samples that vary by 2 %."""
    pair = units(DRIFT, FASTER)
    dense = [round(wall * x) for x in (1.0, 1.02, 0.98, 1.01, 0.99)]
    pruned = [d - 50 for d in dense]
    domain = choose_time_base(pair, dense, pruned, on_device=device)
    assert domain.unprofiled
    ratio = ratios(pair, 0.25)
    ledger, boot = point(pair, ratio, domain), bootstrap(pair, ratio, domain)
    assert boot is not None
    assert ledger.dense[0] == pytest.approx(wall)
    assert ledger.pruned[0] == pytest.approx(wall - 50)
    for ledgers in (ledger, boot):
        rows = sum(ledgers.total(name) for name in ROWS[1:-1])
        assert rows == pytest.approx(ledgers.pruned)
    for name in ROWS:
        low, high = interval(boot.total(name))
        assert low - 1e-9 <= ledger.total(name)[0] <= high + 1e-9, name


def test_a_device_scales_its_idle_time_alone() -> None:
    """120 busy, 8 + 2 idle; W = 125: φ = (125 - 120) / 10 = 0.5."""
    domain = choose_time_base(units(EQUAL), [125], [125], on_device=True)
    pair = units(EQUAL, replace(EQUAL, trailing_idle=np.array([7.0] * 5)))
    ledger = point(pair, ratios(pair, 0.5), domain)
    # promised 0.5·125; coverage keeps 0.5 of 120 busy, of 8·0.5 of gaps and of 2·0.5 of tail.
    assert ledger.promised[0] == 62.5
    assert ledger.total("coverage")[0] == pytest.approx(0.5 * (120 + 4 + 1))
    # pruned: 15 idle become 5: gaps 8/3, tail 7/3, against 4 and 1.
    assert ledger.total("launch_idle")[0] == pytest.approx(8 / 3 - 4 + 7 / 3 - 1)
    assert ledger.total("kernel_efficiency")[0] == 0
    assert profiler_overhead_share(pair, domain) == pytest.approx(0.5)


def test_a_wait_that_recording_does_not_slow() -> None:
    """Of 100 + 20 ns of ops, 5 + 3 of gaps and 2 of tail as recorded, 4 records cost 8 ns; the
    pruned side waits 50 ns more before the second op. All 50 are idle time, none are kernels'."""
    cost = RecordWeight(np.array([2.0, 0.0]), np.array([1.0, 1.0]), 0.0)
    dense, late = (replace(sums, recorded=cost) for sums in (EQUAL, EQUAL))
    late = replace(late, gap=np.array([[5.0] * 5, [53.0] * 5]))
    pair = units(dense, late)
    domain = choose_time_base(pair, [122], [172], on_device=False)
    got = point(pair, ratios(pair, None), domain)
    assert got.total("launch_idle")[0] == pytest.approx(50)
    assert got.total("kernel_efficiency")[0] == pytest.approx(0)
    t = mean_times(pair, domain)
    assert t.dense.busy[:, 0] == pytest.approx([96, 20])
    assert t.dense.gap[:, 0] == pytest.approx([3, 1])
    assert (t.dense.trailing_idle[0], t.pruned.trailing_idle[0]) == pytest.approx((2, 2))


def test_what_is_more_than_records_can_cost_is_drift() -> None:
    """Gaps of 5 and 3 ns hold a record each, the op of 100 one: a record costs at most 3.2 ns (the
    twentieth part of the way from 3 to 5), and the shorter gap keeps a fifth: 0.6 of its 3 ns. Of
    40 ns 8.8 are taken so; what is left, 121.2, becomes 90 by one factor."""
    cost = RecordWeight(np.array([1.0, 0.0]), np.array([1.0, 1.0]), 0.0)
    pair = units(replace(EQUAL, recorded=cost))
    t = mean_times(pair, choose_time_base(pair, [90], [90], on_device=False))
    drift = 90 / 121.2
    assert t.dense.gap[:, 0] == pytest.approx([1.8 * drift, 0.6 * drift])
    assert t.dense.busy[:, 0] == pytest.approx([96.8 * drift, 20 * drift])
    assert t.dense.trailing_idle[0] == pytest.approx(2 * drift)


def test_a_cpu_without_records_scales_everything() -> None:
    """W / wall = 65 / 130: half of every op, gap and tail."""
    domain = choose_time_base(units(EQUAL), [65], [65], on_device=False)
    ledger = point(units(EQUAL), ratios(units(EQUAL), 0.5), domain)
    assert ledger.total("coverage")[0] == pytest.approx(0.5 * 65)
    assert profiler_overhead_share(units(EQUAL), domain) == pytest.approx(0.5)
    slower = choose_time_base(units(EQUAL), [260], [260], on_device=False)
    assert profiler_overhead_share(units(EQUAL), slower) == pytest.approx(-1)


@pytest.mark.parametrize(
    ("dense", "pruned", "device", "want"),
    [
        ([], [], True, "profiled"), ([130], [], True, "profiled"), ([], [130], False, "profiled"),
        ([130], [130], True, "unprofiled"), ([130], [130], False, "unprofiled"),
        ([120], [130], True, "profiled"),  # a device that was busy longer than W
        ([130], [119], True, "profiled"), ([60], [60], False, "unprofiled"),
    ],
)  # fmt: skip
def test_the_domain(dense: list[int], pruned: list[int], device: bool, want: str) -> None:
    domain = choose_time_base(units(EQUAL), dense, pruned, on_device=device)
    assert domain.name == want
    assert (profiler_overhead_share(units(EQUAL), domain) is None) == (want == "profiled")


def test_a_device_without_idle_time_stays_profiled() -> None:
    """Nothing that could be scaled to W: the ledger must not claim a wall it does not reach."""
    full = side([[100, 100], [20, 20]], [[0, 0], [0, 0]], [0, 0])
    assert choose_time_base(units(full), [150], [150], on_device=True).name == "profiled"


def test_samples_that_drift_together_give_a_narrow_speedup() -> None:
    pruned = [100, 130, 90, 160, 110]
    assert speedup_interval([2 * x for x in pruned], pruned, in_turns=True) == [2.0, 2.0]
    assert speedup_interval([5], [4]) is None
    low, high = speedup_interval([100, 120, 140], [100, 90, 110, 95]) or [0, 0]
    assert low < 120 / 97.5 < high


def test_the_interval_of_a_median_holds_it() -> None:
    samples = [100, 101, 99, 103, 100, 97, 108]
    low, high = wall_interval(Samples.of([samples]))
    assert 97 <= low <= 100 <= high <= 108
    again = wall_interval(Samples.of([samples]))
    assert again == [low, high]  # the same capture, the same interval
    assert wall_interval(Samples.of([[7]])) == [7, 7]


def test_intervals_are_reproducible() -> None:
    pair = units(DRIFT, FASTER)
    a, b = (bootstrap(pair, ratios(pair, None), PROFILED) for _ in range(2))
    assert a is not None
    assert b is not None
    assert np.array_equal(a.pruned, b.pruned)


def test_steps_of_no_time_give_no_interval() -> None:
    """One of five steps took time: a resample can hold none of it, and a ratio to 0 is none."""
    idle = side([[100, *[0] * 4], [20, *[0] * 4]], [[5, *[0] * 4], [3, *[0] * 4]], [2, *[0] * 4])
    boot = bootstrap(units(idle), ratios(units(idle), None), PROFILED)
    assert boot is not None
    assert boot.pruned.min() == 0
    assert realised_interval(PROFILED, boot) is None
    assert speedup_interval([5, 5], [0, 5]) is None
    assert speedup_interval([5, 5], [5, 5]) == [1, 1]


def test_two_traces_are_drawn_each_for_itself() -> None:
    """Walls of 101 to 141 and of twice that, step by step: pairs have one ratio, 0.5. In turns they
    belong together, in two traces they do not."""
    dense = side([[100, 110, 120, 130, 140], [1] * 5], [[0] * 5] * 2, [0] * 5)
    pruned = side([[201, 221, 241, 261, 281], [1] * 5], [[0] * 5] * 2, [0] * 5)
    pair = units(dense, pruned)
    ends = []
    for in_turns in (True, False):
        domain = replace(PROFILED, in_turns=in_turns)
        realised = realised_interval(domain, bootstrap(pair, ratios(pair, None), domain))
        assert realised is not None
        ends.append(realised)
    assert ends[0] == pytest.approx([0.5, 0.5])
    assert ends[1][0] < 0.45 < 0.55 < ends[1][1]


@pytest.mark.parametrize("count", [2, 4, 5])
def test_fewer_than_five_steps_have_no_interval_of_anything(count: int) -> None:
    """Four steps hold the median between them in seven of eight captures, not in 95 of 100. Rows,
    bounds and the speedup rest on the same replicates."""
    busy = [100, 110, 105, 120, 108][:count]
    few = units(side([busy, [1] * count], [[0] * count] * 2, [0] * count))
    boot = bootstrap(few, ratios(few, None), PROFILED)
    assert (boot is None) == (realised_interval(PROFILED, boot) is None) == (count < 5)


def test_the_noise_of_few_steps_holds_what_they_differ() -> None:
    """Rows of -40 ± 60.8 over three steps: t(2) · 60.8/√3 = 151 is half of the interval, and half
    of that the noise. Two halves of the dense steps, which are equal, would give 0."""
    picks = sample_placements(np.random.default_rng(0), 3, 10**5)
    replicates = np.array([-80.0, 30.0, -70.0])[picks].mean(axis=1)
    assert scatter(replicates, 3) == pytest.approx(4.3027 * 60.83 / sqrt(3) / 2, rel=0.01)
