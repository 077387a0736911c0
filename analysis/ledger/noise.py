"""Intervals and noise of ledger rows, and the interval of a speedup.

In: units, ratios, unprofiled samples (ns). Out: 95 % bootstrap intervals over seatings (over steps
and samples in a run of one seating), and the noise of dense against dense over the ways to split
the dense capture in halves: docs/ledger.md.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import combinations
from math import comb

import numpy as np
from numpy.typing import NDArray

from prunescope.analysis.ledger.ledger import (
    Ratios,
    Split,
    Times,
    less_records,
    scale_idle,
    split,
    times,
    uniform,
)
from prunescope.analysis.ledger.pairing import Floats, Units
from prunescope.analysis.ledger.samples import Samples, draw_seatings, of_steps, widened_weights

REPLICATES = 1000
HALVES = 50
SEED = 0  # of the resampling: the same capture always prints the same interval


@dataclass(frozen=True)
class Domain:
    """Which wall the ledger closes to. `name`: "unprofiled" (W of the samples) or "profiled";
    samples are empty where the run has none."""

    name: str
    on_device: bool
    dense: Samples
    pruned: Samples

    @property
    def unprofiled(self) -> bool:
        """Whether the ledger closes to W of the samples."""
        return self.name == "unprofiled"

    @property
    def drawn(self) -> bool:
        """Whether both sides drew their placement in memory."""
        return self.dense.drawn and self.pruned.drawn


def choose_domain(
    units: Units, dense: Samples | list[int], pruned: Samples | list[int], *, on_device: bool
) -> Domain:
    """Unprofiled where both sides have samples and recorded time that can be scaled to them: any
    on a CPU; on a device idle time, and busy < W."""
    d, p = (s if isinstance(s, Samples) else Samples.of([s]) for s in (dense, pruned))
    scalable = len(d) > 0 and len(p) > 0
    for side, samples in ((units.dense, d), (units.pruned, p)):
        busy = side.busy.sum(axis=0).mean()
        idle = side.gap.sum(axis=0).mean() + side.tail.mean()
        if on_device:
            scalable = scalable and bool(idle > 0 and busy < samples.wall)
        else:
            scalable = scalable and bool(busy + idle > 0)
    return Domain("unprofiled" if scalable else "profiled", on_device, d, p)


def mean_times(units: Units, domain: Domain) -> Times:
    """Means over all steps, one replicate, in the ledger's domain: with W of all samples."""
    t = times(units, uniform(units.dense), uniform(units.pruned))
    if not domain.unprofiled:
        return t
    walls = np.asarray(domain.dense.wall), np.asarray(domain.pruned.wall)
    return _scaled(t, walls, units, domain)


def point(units: Units, ratio: Ratios, domain: Domain) -> Split:
    """The ledger itself, one replicate."""
    return split(units, ratio, mean_times(units, domain))


def observer_share(units: Units, domain: Domain) -> float | None:
    """1 - the factor by which the dense side's recorded time is scaled; None when it is not."""
    if not domain.unprofiled:
        return None
    side = units.dense
    busy = float(side.busy.sum(axis=0).mean())
    wall = busy + float(side.gap.sum(axis=0).mean()) + float(side.tail.mean())
    target = domain.dense.wall
    if domain.on_device:
        return 1 - (target - busy) / (wall - busy) if wall > busy else None
    return 1 - target / wall if wall else None


def bootstrap(units: Units, ratio: Ratios, domain: Domain) -> Split | None:
    """Replicates of the ledger; None with one step, where nothing can be resampled.

    Dense and pruned take turns, in steps, samples and seatings: they are drawn as pairs where their
    numbers agree. Where placement was drawn a replicate draws seatings, and what was measured in
    one goes with it; else steps and samples.
    """
    steps_d, steps_p = units.dense.busy.shape[1], units.pruned.busy.shape[1]
    if min(steps_d, steps_p) < 2:
        return None
    draw = np.random.default_rng(SEED)
    seats = domain.dense.seat_of_step(steps_d), domain.pruned.seat_of_step(steps_p)
    if seats[0] is not None and seats[1] is not None:
        of_seats = _paired_seatings(draw, domain)
        t = times(units, of_steps(of_seats[0], seats[0]), of_steps(of_seats[1], seats[1]))
        walls = _walls(domain, of_seats) if domain.unprofiled else None
    else:
        t = times(units, *_paired_weights(draw, steps_d, steps_p))
        walls = _sample_walls(draw, domain) if domain.unprofiled else None
    return split(units, ratio, _scaled(t, walls, units, domain))


def _paired_seatings(draw: np.random.Generator, domain: Domain) -> tuple[Floats, Floats]:
    """Weights of the seatings of both sides, [seatings, replicates]."""
    dense, pruned = len(domain.dense.seats), len(domain.pruned.seats)
    picks = draw_seatings(draw, dense, REPLICATES)
    other = picks if dense == pruned else draw_seatings(draw, pruned, REPLICATES)
    return widened_weights(picks), widened_weights(other)


def _walls(domain: Domain, of_seats: tuple[Floats, Floats]) -> tuple[Floats, Floats]:
    return domain.dense.walls(of_seats[0]), domain.pruned.walls(of_seats[1])


def _sample_walls(draw: np.random.Generator, domain: Domain) -> tuple[Floats, Floats]:
    """Replicates of W of both sides: over seatings where both drew them, else over samples."""
    if domain.drawn:
        return _walls(domain, _paired_seatings(draw, domain))
    if domain.dense.drawn or domain.pruned.drawn:  # each as it was taken
        dense, pruned = (_alone(draw, side) for side in (domain.dense, domain.pruned))
        return dense, pruned
    return _paired_medians(draw, domain)


def _alone(draw: np.random.Generator, samples: Samples) -> Floats:
    """Replicates of W of one side."""
    if samples.drawn:
        return samples.walls(widened_weights(draw_seatings(draw, len(samples.seats), REPLICATES)))
    picks = draw.integers(0, len(samples), (REPLICATES, len(samples)))
    return np.asarray(np.median(samples.ns[picks], axis=1))


def _scaled(t: Times, walls: tuple[Floats, Floats] | None, units: Units, domain: Domain) -> Times:
    if walls is None:
        return t
    sides = (t.t_d, t.g_d, t.tail_d), (t.t_p, t.g_p, t.tail_p)
    out: list[Floats] = []
    for side, wall, sums in zip(sides, walls, (units.dense, units.pruned), strict=True):
        told = np.atleast_1d(np.asarray(wall, np.float64))
        if domain.on_device:
            out += scale_idle(side, told)
        else:
            out += less_records(side, told, sums.recorded)
    return Times(*out)


def _paired_weights(draw: np.random.Generator, dense: int, pruned: int) -> tuple[Floats, Floats]:
    picks = draw.integers(0, dense, (REPLICATES, dense))
    other = picks if dense == pruned else draw.integers(0, pruned, (REPLICATES, pruned))
    return _weights(picks, dense), _weights(other, pruned)


def _weights(picks: NDArray[np.int64], size: int) -> Floats:
    """[size, replicates]: how often each index was drawn, over the number of draws."""
    hits = np.stack([np.bincount(row, minlength=size) for row in picks], axis=1)
    return np.asarray(hits / picks.shape[1], np.float64)


def _paired_medians(draw: np.random.Generator, domain: Domain) -> tuple[Floats, Floats]:
    d, p = domain.dense.ns, domain.pruned.ns
    picks = draw.integers(0, len(d), (REPLICATES, len(d)))
    other = picks if len(d) == len(p) else draw.integers(0, len(p), (REPLICATES, len(p)))
    return np.median(d[picks], axis=1), np.median(p[other], axis=1)


def speedup_interval(dense: Samples | list[int], pruned: Samples | list[int]) -> list[float] | None:
    """95 % interval of W of `dense` ÷ W of `pruned`, by bootstrap of seatings, or of the pairs of
    samples where none were drawn; None with fewer than two of them."""
    d, p = (s if isinstance(s, Samples) else Samples.of([s]) for s in (dense, pruned))
    if min(len(d), len(p)) < 2:
        return None
    domain = Domain("unprofiled", False, d, p)  # noqa: FBT003
    return _ratio_interval(*_sample_walls(np.random.default_rng(SEED), domain))


def realised_interval(domain: Domain, replicates: Split | None) -> list[float] | None:
    """95 % interval of dense / pruned: of W of the samples, else of the profiled walls over the
    steps; None with one sample or step, or with steps of 0 ns."""
    if len(domain.dense) and len(domain.pruned):
        return speedup_interval(domain.dense, domain.pruned)
    if replicates is None:
        return None
    return _ratio_interval(replicates.dense, replicates.pruned)


def _ratio_interval(top: Floats, bottom: Floats) -> list[float] | None:
    """None where a replicate took no time at all: steps of 0 ns can be drawn alone."""
    return interval(top / bottom) if bool((bottom > 0).all()) else None


def wall_interval(samples: Samples) -> list[float]:
    """95 % bootstrap interval of W: over seatings, or over samples where none were drawn."""
    return interval(_alone(np.random.default_rng(SEED), samples))


def interval(replicates: Floats) -> list[float]:
    """The 2.5th and 97.5th percentile."""
    low, high = np.percentile(replicates, [2.5, 97.5])
    return [float(low), float(high)]


def halves(units: Units, domain: Domain) -> Split | None:
    """Dense against dense, one replicate a way to split the dense seatings in halves, or the steps
    where not every seating has one (all ways, or 50 at random); the samples are split with them.
    None with one step."""
    steps = units.dense.busy.shape[1]
    if steps < 2:
        return None
    draw = np.random.default_rng(SEED)
    seat = domain.dense.seat_of_step(steps)
    weights = _half_weights(draw, steps if seat is None else len(domain.dense.seats))
    walls = None
    if seat is not None:
        of_step = of_steps(weights[0], seat), of_steps(weights[1], seat)
        if domain.unprofiled:
            walls = domain.dense.walls(weights[0]), domain.dense.walls(weights[1])
    else:
        of_step = weights
        if domain.unprofiled:
            walls = _half_walls(draw, domain.dense, weights[0].shape[1])
    twins = replace(units, pruned=units.dense)
    ones = np.ones(len(units.keys))
    same = Ratios(ones, ones, ones, 1.0, 1.0)
    t = times(twins, *of_step)
    return split(twins, same, _scaled(t, walls, twins, domain))


def _half_walls(
    draw: np.random.Generator, samples: Samples, ways: int
) -> tuple[Floats, Floats] | None:
    """W of one half of the samples and of the other: of seatings where they were drawn."""
    if not samples.drawn:
        return _half_medians(draw, samples.ns, ways)
    one, other = _half_weights(draw, len(samples.seats))
    pick = draw.integers(0, one.shape[1], ways)
    return samples.walls(one[:, pick]), samples.walls(other[:, pick])


def _half_weights(draw: np.random.Generator, count: int) -> tuple[Floats, Floats]:
    """Weights [count, ways] of one half and of the other."""
    first = _half_picks(draw, count)
    one = np.zeros((count, len(first)))
    for i, pick in enumerate(first):
        one[list(pick), i] = 1.0 / len(pick)
    return one, np.asarray((one == 0) / (count - np.count_nonzero(one, axis=0)), np.float64)


def _half_picks(draw: np.random.Generator, steps: int) -> list[tuple[int, ...]]:
    half = steps // 2
    if comb(steps, half) <= HALVES:
        return list(combinations(range(steps), half))
    return [tuple(draw.permutation(steps)[:half].tolist()) for _ in range(HALVES)]


def _half_medians(
    draw: np.random.Generator, samples: NDArray[np.int64], ways: int
) -> tuple[Floats, Floats] | None:
    if len(samples) < 2:
        return None
    half = len(samples) // 2
    orders = np.stack([draw.permutation(len(samples)) for _ in range(ways)])
    a, b = samples[orders[:, :half]], samples[orders[:, half:]]
    return np.median(a, axis=1), np.median(b, axis=1)


def noise(replicates: Floats) -> float:
    """Root mean square over the ways to split, ÷ √2 (each half holds half of the steps)."""
    return float(np.sqrt(np.mean(np.square(replicates))) / np.sqrt(2))
