"""Intervals and noise of ledger rows, and the interval of a speedup.

In: units, ratios, unprofiled samples (ns). Out: 95 % bootstrap intervals over placements (over
steps and samples in a run of one placement), and the noise of dense against dense over the ways to
split the dense capture in halves: docs/ledger.md. What is resampled, or split:

    what the capture has                      profiled steps         samples, for W
    placements, all of them profiled          placements             the same placements
    placements, several of them profiled      those placements       placements, of their own
    no placements, or steps of unknown ones   steps, five at least   placements if known, or samples
    one side has placements, one has not      each side as above     each side as above

`_resample` decides it for steps, `_resample_walls` and `_resample_wall` for samples;
`_split_capture` and `_split_walls` split by the same table.
"""

from __future__ import annotations

from itertools import combinations
from math import comb

import numpy as np
from msgspec import Struct
from msgspec.structs import replace
from numpy.typing import NDArray

from prunescope.analysis.ledger.ledger import (
    Ratios,
    Split,
    Times,
    scale_idle,
    split,
    subtract_profiler_overhead,
    times,
    uniform,
)
from prunescope.analysis.ledger.pairing import Floats, Units
from prunescope.analysis.ledger.samples import (
    Samples,
    sample_placements,
    sampled_shares,
    weights_of_steps,
    widened,
    widened_weights,
)
from prunescope.taxonomy.student_t import t_quantile_975

REPLICATES = 1000
HALVES = 50
# Samples of n steps reach no further than the fastest and the slowest, and these hold the median
# between them in 1 - 2^(1 - n) of captures: in half with two steps, in 94 % with five.
LEAST_STEPS = 5
SEED = 0  # of the resampling: the same capture always prints the same interval
Picks = NDArray[np.int64]  # indices that were sampled, [replicates, number]
Both = tuple[Floats, Floats]  # of the dense side and of the pruned one, or of two halves


class Replicates(Split, kw_only=True):
    """Replicates of the ledger, and what they are made of.

    Attributes:
        steps: Weights of the profiled steps of both sides, [steps, replicates].
        walls: W of the samples of both sides, ns, [replicates]; None without samples.
        times: Times in the time base of the ledger.
    """

    steps: Both
    walls: Both | None
    times: Times


class FewSteps(Struct, frozen=True):
    """The samples of a side with too few steps for an interval.

    Their spread is reported as the noise of each row instead.
    """

    replicates: Split
    steps: int


class TimeBase(Struct, frozen=True):
    """The wall that the ledger explains.

    Attributes:
        name: "unprofiled" (W of the samples) or "profiled".
        on_device: Whether the traces hold device events.
        dense: The unprofiled samples of the dense side; empty where the run has none.
        pruned: Those of the pruned side.
        in_turns: Whether the run says that both sides took turns, so that the i-th sample of one
            belongs to the i-th of the other.
    """

    name: str
    on_device: bool
    dense: Samples
    pruned: Samples
    in_turns: bool = False

    @property
    def unprofiled(self) -> bool:
        """Whether the ledger explains W of the samples."""
        return self.name == "unprofiled"

    @property
    def has_placements(self) -> bool:
        """Whether both sides have more than one placement in memory."""
        return self.dense.has_placements and self.pruned.has_placements


def choose_time_base(
    units: Units,
    dense: Samples | list[int],
    pruned: Samples | list[int],
    *,
    on_device: bool,
    in_turns: bool = False,
) -> TimeBase:
    """Choose the wall that the ledger explains.

    It is the unprofiled one if both sides have samples to which their trace can be scaled, else the
    profiled one. On a CPU any trace can be scaled. On a GPU only its idle time can, so the busy
    time must be below the unprofiled wall.

    Args:
        units: The units of both sides.
        dense: Unprofiled samples of the dense side, ns.
        pruned: Those of the pruned side.
        on_device: Whether the traces hold device events.
        in_turns: Whether the run says that both sides took turns.
    """
    d, p = (s if isinstance(s, Samples) else Samples.of([s]) for s in (dense, pruned))
    scalable = len(d) > 0 and len(p) > 0
    for side, samples in ((units.dense, d), (units.pruned, p)):
        busy = side.busy.sum(axis=0).mean()
        idle = side.gap.sum(axis=0).mean() + side.trailing_idle.mean()
        if on_device:
            scalable = scalable and bool(idle > 0 and busy < samples.wall)
        else:
            scalable = scalable and bool(busy + idle > 0)
    return TimeBase("unprofiled" if scalable else "profiled", on_device, d, p, in_turns)


def mean_times(units: Units, base: TimeBase) -> Times:
    """Return the means over all steps in the time base of the ledger, as one replicate."""
    t = times(units, uniform(units.dense), uniform(units.pruned))
    if not base.unprofiled:
        return t
    walls = np.asarray(base.dense.wall), np.asarray(base.pruned.wall)
    return _scale_to_walls(t, walls, units, base)


def point(units: Units, ratio: Ratios, base: TimeBase) -> Split:
    """Compute the ledger itself, as one replicate."""
    return split(units, ratio, mean_times(units, base))


def profiler_overhead_share(units: Units, base: TimeBase) -> float | None:
    """Return 1 - the factor by which the recorded time of the dense side is scaled.

    None if it is not scaled.
    """
    if not base.unprofiled:
        return None
    side = units.dense
    busy = float(side.busy.sum(axis=0).mean())
    wall = busy + float(side.gap.sum(axis=0).mean()) + float(side.trailing_idle.mean())
    target = base.dense.wall
    if base.on_device:
        return 1 - (target - busy) / (wall - busy) if wall > busy else None
    return 1 - target / wall if wall else None


def bootstrap(
    units: Units, ratio: Ratios, base: TimeBase, *, least: int | None = None
) -> Replicates | None:
    """Resample the ledger.

    Args:
        units: The units of both sides.
        ratio: What should remain of them.
        base: The time base of the ledger.
        least: The least number of single steps; None takes LEAST_STEPS.

    Returns:
        The replicates; None where nothing can be resampled: fewer than `least` single steps,
        steps of
        one placement alone where placement was sampled, or steps so far apart that a widened
        sample has
        negative time.
    """
    resampled = _resample(units, base, LEAST_STEPS if least is None else least)
    if resampled is None:
        return None
    steps, walls = resampled
    t = times(units, *steps)
    if _has_negative_time(t, base):
        return None
    t = _scale_to_walls(t, walls if base.unprofiled else None, units, base)
    ledger = split(units, ratio, t)
    return Replicates(
        ledger.dense, ledger.promised, ledger.pruned, ledger.rows, steps=steps, walls=walls, times=t
    )


def _resample(units: Units, base: TimeBase, least: int) -> tuple[Both, Both | None] | None:
    """Sample weights of the profiled steps of both sides, and W of their samples.

    Where dense and pruned took turns, in steps, samples and placements, they are resampled in pairs
    if their numbers agree; two traces did not, and each is resampled for itself. With placements, a
    replicate samples placements with everything measured in them; if only some were profiled, steps
    are resampled over those alone. Without placements, steps and samples are resampled.
    """
    sides = base.dense, base.pruned
    counts = units.dense.busy.shape[1], units.pruned.busy.shape[1]
    placements = sides[0].placement_of_step(counts[0]), sides[1].placement_of_step(counts[1])
    if not all(_can_resample(*side, least) for side in zip(counts, placements, strict=True)):
        return None
    rng = np.random.default_rng(SEED)
    if (
        placements[0] is not None
        and placements[1] is not None
        and all(s.is_fully_profiled for s in sides)
    ):
        picks = _sample_all_placements(rng, base)
        return _weigh_steps_of_sides(sides, picks, placements), _weigh_walls(base, picks)
    groups = [
        n if placement is None else int(placement[-1]) + 1
        for n, placement in zip(counts, placements, strict=True)
    ]
    one_kind = (placements[0] is None) == (placements[1] is None)
    picks = _sample_sides(rng, groups[0], groups[1], in_turns=base.in_turns and one_kind)
    steps = _weigh_steps_of_sides(sides, picks, placements)
    return steps, _resample_walls(rng, base) if len(sides[0]) and len(sides[1]) else None


def _can_resample(steps: int, placement: NDArray[np.int64] | None, least: int) -> bool:
    """Return whether the steps of a side can be resampled.

    They can if they are of two placements or more, which are widened for their number, or if there
    are at least `least` single steps.
    """
    return steps >= least if placement is None else bool(placement[-1] > 0)


def few_steps(units: Units, ratio: Ratios, base: TimeBase) -> FewSteps | None:
    """Resample single steps that are too few for `bootstrap`; None for one step."""
    steps = min(units.dense.busy.shape[1], units.pruned.busy.shape[1])
    if not 2 <= steps < LEAST_STEPS:
        return None
    replicates = bootstrap(units, ratio, base, least=2)
    return None if replicates is None else FewSteps(replicates, steps)


def scatter(replicates: Floats, steps: int) -> float:
    """Return the noise of a row over few single steps, ns.

    It is a quarter of the width of Student's 95 % interval around their mean, so that what is
    beyond twice its noise is beyond that interval too. A bootstrap of n steps is too narrow by
    √((n−1)/n).
    """
    error = float(np.std(replicates)) * np.sqrt(steps / (steps - 1))
    return float(t_quantile_975(steps - 1) * error / 2)


def _weigh_steps_of_sides(
    sides: tuple[Samples, Samples],
    picks: tuple[Picks, Picks],
    placements: tuple[NDArray[np.int64] | None, NDArray[np.int64] | None],
) -> Both:
    """Return `_weigh_steps` of both sides."""
    dense, pruned = (
        _weigh_steps(*of_side) for of_side in zip(sides, picks, placements, strict=True)
    )
    return dense, pruned


def _weigh_steps(samples: Samples, picks: Picks, placement: NDArray[np.int64] | None) -> Floats:
    """Return weights of steps [steps, replicates] from samples of placements, widened.

    Where no placement is known, the samples are of the steps themselves, and are not widened.
    """
    shares = sampled_shares(picks)
    if placement is None:
        return shares
    weights = weights_of_steps(shares, placement)
    return widened(weights, picks.shape[1], sequential=samples.sequential)


def _has_negative_time(t: Times, base: TimeBase) -> bool:
    """Return whether a side has negative time in a replicate, or none that could be scaled to W."""
    scales_idle = base.on_device and base.unprofiled
    scaled = [side.idle if scales_idle else side.wall for side in (t.dense, t.pruned)]
    return any(bool((time < 0).any()) for time in scaled)


def _sample_sides(
    rng: np.random.Generator, dense: int, pruned: int, *, in_turns: bool
) -> tuple[Picks, Picks]:
    """Sample both sides, [replicates, number].

    The samples are the same where the sides took turns and their numbers agree.
    """
    picks = sample_placements(rng, dense, REPLICATES)
    same = in_turns and dense == pruned
    return picks, picks if same else sample_placements(rng, pruned, REPLICATES)


def _sample_all_placements(rng: np.random.Generator, base: TimeBase) -> tuple[Picks, Picks]:
    """Sample the placements of both sides."""
    counts = len(base.dense.per_placement), len(base.pruned.per_placement)
    return _sample_sides(rng, *counts, in_turns=base.in_turns)


def _weigh_walls(base: TimeBase, picks: tuple[Picks, Picks]) -> Both:
    """Return replicates of W of both sides, from samples of their placements."""
    dense, pruned = (
        side.walls(widened_weights(sample, sequential=side.sequential))
        for side, sample in zip((base.dense, base.pruned), picks, strict=True)
    )
    return dense, pruned


def _resample_walls(rng: np.random.Generator, base: TimeBase) -> Both:
    """Resample W of both sides: over placements where both have them, else over samples."""
    if base.has_placements:
        return _weigh_walls(base, _sample_all_placements(rng, base))
    if base.dense.has_placements or base.pruned.has_placements:  # each as it was taken
        dense, pruned = (_resample_wall(rng, side) for side in (base.dense, base.pruned))
        return dense, pruned
    d, p = base.dense.ns, base.pruned.ns
    dense_picks, pruned_picks = _sample_sides(rng, len(d), len(p), in_turns=base.in_turns)
    return np.median(d[dense_picks], axis=1), np.median(p[pruned_picks], axis=1)


def _resample_wall(rng: np.random.Generator, samples: Samples) -> Floats:
    """Resample W of one side."""
    if samples.has_placements:
        picks = sample_placements(rng, len(samples.per_placement), REPLICATES)
        return samples.walls(widened_weights(picks, sequential=samples.sequential))
    picks = sample_placements(rng, len(samples), REPLICATES)
    return np.asarray(np.median(samples.ns[picks], axis=1))


def _scale_to_walls(t: Times, walls: Both | None, units: Units, base: TimeBase) -> Times:
    """Scale the times of both sides to their unprofiled walls; None leaves them as they are."""
    if walls is None:
        return t
    dense, pruned = (np.atleast_1d(np.asarray(wall, np.float64)) for wall in walls)
    if base.on_device:
        return Times(scale_idle(t.dense, dense), scale_idle(t.pruned, pruned))
    return Times(
        subtract_profiler_overhead(t.dense, dense, units.dense.recorded),
        subtract_profiler_overhead(t.pruned, pruned, units.pruned.recorded),
    )


def speedup_interval(
    dense: Samples | list[int], pruned: Samples | list[int], *, in_turns: bool = False
) -> list[float] | None:
    """Return the 95 % interval of W of `dense` ÷ W of `pruned`.

    Placements are resampled, or samples where there are none (in pairs where both sides took
    turns). None with fewer than two samples on a side.
    """
    d, p = (s if isinstance(s, Samples) else Samples.of([s]) for s in (dense, pruned))
    if min(len(d), len(p)) < 2:
        return None
    base = TimeBase("unprofiled", False, d, p, in_turns)  # noqa: FBT003
    return ratio_interval(*_resample_walls(np.random.default_rng(SEED), base))


def realised_interval(base: TimeBase, replicates: Replicates | None) -> list[float] | None:
    """Return the 95 % interval of dense / pruned.

    It is that of W of the samples, else of the profiled walls over the steps. None with one sample,
    without replicates, or with steps of 0 ns.
    """
    if len(base.dense) and len(base.pruned):
        return speedup_interval(base.dense, base.pruned, in_turns=base.in_turns)
    if replicates is None:
        return None
    return ratio_interval(replicates.dense, replicates.pruned)


def ratio_interval(top: Floats, bottom: Floats) -> list[float] | None:
    """Return the 95 % interval of the ratio of two times.

    None where a replicate is negative or the bottom is 0: a replicate may hold only steps of 0 ns.
    """
    return interval(top / bottom) if bool((bottom > 0).all() and (top >= 0).all()) else None


def wall_interval(samples: Samples) -> list[float]:
    """Return the 95 % bootstrap interval of W.

    Placements are resampled, or samples where there are none.
    """
    return interval(_resample_wall(np.random.default_rng(SEED), samples))


def median_interval(values: Floats) -> list[float] | None:
    """Return the 95 % bootstrap interval of the median; None with one value.

    Values may be negative.
    """
    if len(values) < 2:
        return None
    picks = sample_placements(np.random.default_rng(SEED), len(values), REPLICATES)
    return interval(np.median(values[picks], axis=1))


def interval(replicates: Floats) -> list[float]:
    """Return the 2.5th and the 97.5th percentile."""
    low, high = np.percentile(replicates, [2.5, 97.5])
    return [float(low), float(high)]


def halves(units: Units, base: TimeBase) -> Split | None:
    """Compare the dense side with itself, one replicate for each way to split it in halves.

    The dense placements that profiled are split, or the steps where only one placement did or that
    is unknown; in all ways, or in 50 at random. None with one step.
    """
    steps = units.dense.busy.shape[1]
    if steps < 2:
        return None
    of_step, walls = _split_capture(np.random.default_rng(SEED), base, steps)
    dense_twice = replace(units, pruned=units.dense, kept=None)
    ones = np.ones(len(units.keys))
    same = Ratios(ones, ones, ones, 1.0, 1.0)
    t = times(dense_twice, *of_step)
    return split(
        dense_twice, same, _scale_to_walls(t, walls if base.unprofiled else None, dense_twice, base)
    )


def _split_capture(
    rng: np.random.Generator, base: TimeBase, steps: int
) -> tuple[Both, Both | None]:
    """Split the dense capture in halves.

    Returns:
        Weights of the steps of both halves [steps, ways], and W of their samples: those of the same
        placements where all profiled, else halves of their own.
    """
    dense = base.dense
    placement = dense.placement_of_step(steps)
    if placement is None or placement[-1] == 0:
        halves = _weigh_halves(rng, steps)
        return halves, _split_walls(rng, base, halves[0].shape[1])
    half_a, half_b = _weigh_halves(rng, int(placement[-1]) + 1)
    walls: Both | None = None
    if dense.is_fully_profiled:
        walls = dense.walls(half_a), dense.walls(half_b)
    else:
        # Two placements can be split in two ways: too few for all that the samples of eight have.
        again = -(-HALVES // half_a.shape[1])
        half_a, half_b = np.tile(half_a, again), np.tile(half_b, again)
        walls = _split_walls(rng, base, half_a.shape[1])
    return (weights_of_steps(half_a, placement), weights_of_steps(half_b, placement)), walls


def _split_walls(rng: np.random.Generator, base: TimeBase, ways: int) -> Both | None:
    """Return W of both halves of the dense samples; of placements where there are any."""
    samples = base.dense
    if not base.unprofiled:
        return None
    if not samples.has_placements:
        return _split_medians(rng, samples.ns, ways)
    half_a, half_b = _weigh_halves(rng, len(samples.per_placement))
    pick = rng.integers(0, half_a.shape[1], ways)
    return samples.walls(half_a[:, pick]), samples.walls(half_b[:, pick])


def _weigh_halves(rng: np.random.Generator, count: int) -> tuple[Floats, Floats]:
    """Return weights [count, ways] of one half and of the other."""
    first = _pick_halves(rng, count)
    weights = np.zeros((count, len(first)))
    for i, pick in enumerate(first):
        weights[list(pick), i] = 1.0 / len(pick)
    return weights, np.asarray(
        (weights == 0) / (count - np.count_nonzero(weights, axis=0)), np.float64
    )


def _pick_halves(rng: np.random.Generator, steps: int) -> list[tuple[int, ...]]:
    """List the steps of one half for each way to split them."""
    half = steps // 2
    if comb(steps, half) <= HALVES:
        return list(combinations(range(steps), half))
    return [tuple(rng.permutation(steps)[:half].tolist()) for _ in range(HALVES)]


def _split_medians(
    rng: np.random.Generator, samples: NDArray[np.int64], ways: int
) -> tuple[Floats, Floats] | None:
    """Return the medians of both halves of the samples, split at random; None with one sample."""
    if len(samples) < 2:
        return None
    half = len(samples) // 2
    orders = np.stack([rng.permutation(len(samples)) for _ in range(ways)])
    a, b = samples[orders[:, :half]], samples[orders[:, half:]]
    return np.median(a, axis=1), np.median(b, axis=1)


def noise(replicates: Floats) -> float:
    """Return the root mean square over the ways to split, ÷ √2.

    The factor is due because each half holds half of the steps.
    """
    return float(np.sqrt(np.mean(np.square(replicates))) / np.sqrt(2))
