"""Points sampled from their intervals, so that a place on the frontier has a probability.

In: points of a cell. Out: SampledPoints: log speedups and log perplexity ratios, each point on its
own, normal with the width of its 95 % interval. A point's samples follow from its id alone: neither
the order of points nor another point changes them.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from prunescope.analysis.pareto.frontier import comparable, loss_ci95, loss_of
from prunescope.analysis.schema.pareto import SweepPoint, Winner

Array = npt.NDArray[np.float64]
NUM_SAMPLES, SEED = 2000, 0
_Z95 = 1.959964  # normal samples; the intervals themselves come from ledger/noise.py
_BUDGETS = 16  # losses within a range at which winners are counted
DENSE = "dense"
# An order of two points that fewer samples contradict on either side is beyond noise: 95 % in the
# middle. (`is_beyond_noise` compares one time with 0; here two points vary.)
NOISE = 0.025


@dataclass(frozen=True)
class SampledPoints:
    """`speeds`, `losses` [samples, points], logarithms; `labels` of the points."""

    labels: tuple[str, ...]
    families: tuple[str, ...]
    speeds: Array
    losses: Array

    def of(self, family: str) -> npt.NDArray[np.bool_]:
        """A mask [points] of the points of a family."""
        return np.array([name == family for name in self.families])

    def best(self, budget: Array | float, among: npt.NDArray[np.bool_]) -> Array:
        """[samples]: the largest log speedup at a log loss within `budget`; 0, the dense model's,
        where nothing is faster."""
        within = (self.losses <= np.asarray(budget).reshape(-1, 1)) & among
        inside = np.where(within, self.speeds, -np.inf)
        best: Array = inside.max(axis=1, initial=0.0)
        return best

    def fastest(self, budget: float) -> list[str]:
        """The label of the fastest point of each sample at a log loss within `budget`, or dense."""
        within = np.where(self.losses <= budget, self.speeds, -np.inf)
        at = within.argmax(axis=1)
        top = within[np.arange(len(at)), at]
        return [self.labels[i] if speed > 0 else DENSE for i, speed in zip(at, top, strict=True)]


def sample_points(points: Iterable[SweepPoint]) -> SampledPoints | None:
    """Samples of the points that have both intervals and a valid time, and removed something; None
    without any."""
    able = [p for p in comparable(points) if has_intervals(p)]
    return sampled(able) if able else None


def has_intervals(point: SweepPoint) -> bool:
    """Whether both the speedup and the loss of a point have an interval."""
    return bool(point.realised_ci95 and loss_ci95(point))


def random_of(point: SweepPoint) -> np.random.Generator:
    """The stream of random numbers of a point, which follows from its id."""
    return np.random.default_rng([SEED, zlib.crc32(point.id.encode())])


def add_frontier_shares(points: Sequence[SweepPoint], on_frontier: Sequence[SweepPoint]) -> None:
    """Set on each point the share of samples in which it is on the frontier, and on points of the
    frontier and their equals which points they are indistinguishable from.

    A point without both intervals takes part in each sample with its estimate, and has no share.
    """
    able = comparable(points)
    if not able:
        return
    samples = sampled(able)
    shares = _on_frontier(samples).mean(axis=0)
    for point, share in zip(able, shares, strict=True):
        point.frontier_share = float(share) if has_intervals(point) else None
    for one, other in _equal_pairs(able, samples, {p.id for p in on_frontier}):
        one.equal_to.append(other.id)
        other.equal_to.append(one.id)


def sampled(points: Sequence[SweepPoint]) -> SampledPoints:
    """Samples of points, at least one; a value without an interval, or an unknown loss, has no
    spread."""
    speeds, losses = [], []
    for point in points:
        random = random_of(point)
        speeds.append(_normal(random, point.realised, point.realised_ci95, 0.0))
        losses.append(_normal(random, loss_of(point) or 0.0, loss_ci95(point), 1.0))
    return SampledPoints(
        labels=tuple(p.label for p in points),
        families=tuple(p.family for p in points),
        speeds=np.stack(speeds, axis=1),
        losses=np.stack(losses, axis=1),
    )


def _on_frontier(samples: SampledPoints) -> npt.NDArray[np.bool_]:
    """[samples, points]: whether a point is faster than dense and than all that lose less."""
    order = np.lexsort((-samples.speeds, samples.losses), axis=-1)
    speeds = np.take_along_axis(samples.speeds, order, axis=1)
    before = np.maximum.accumulate(speeds, axis=1)[:, :-1]
    before = np.hstack([np.zeros((len(speeds), 1)), np.maximum(before, 0.0)])
    found = np.empty(speeds.shape, dtype=bool)
    np.put_along_axis(found, order, speeds > before, axis=1)
    return found


def _equal_pairs(
    points: Sequence[SweepPoint], samples: SampledPoints, on_frontier: set[str]
) -> Iterator[tuple[SweepPoint, SweepPoint]]:
    """Pairs, one of them on the frontier, that differ beyond noise neither in speed nor in loss."""
    for i, one in enumerate(points):
        if not has_intervals(one):
            continue
        for j in range(i + 1, len(points)):
            other = points[j]
            if not has_intervals(other) or on_frontier.isdisjoint((one.id, other.id)):
                continue
            if not any(_differ(v[:, i], v[:, j]) for v in (samples.speeds, samples.losses)):
                yield one, other


def _differ(one: Array, other: Array) -> bool:
    """Whether the order of two values is beyond noise; equal values have none."""
    share = float((one > other).mean() + (one == other).mean() / 2)
    return not NOISE < share < 1 - NOISE


def add_winning_shares(winners: Sequence[Winner], points: Iterable[SweepPoint]) -> None:
    """Set on each winner the share of samples in which its family is the fastest, over its
    range."""
    samples = sample_points(points)
    if samples is None:
        return
    top = float(np.quantile(samples.losses, 0.99))
    for winner in winners:
        low = np.log1p(max(winner.loss[0] or 0.0, -0.99))
        high = top if winner.loss[1] is None else np.log1p(winner.loss[1])
        budgets = low + (max(high, low) - low) * (np.arange(_BUDGETS) + 0.5) / _BUDGETS
        wins = [label == winner.family for budget in budgets for label in samples.fastest(budget)]
        winner.share_of_draws = sum(wins) / len(wins)


def interval(values: Array) -> tuple[float, list[float]]:
    """The median and the middle 95 % of samples."""
    low, middle, high = (float(v) for v in np.quantile(values, (0.025, 0.5, 0.975)))
    return middle, [low, high]


def _normal(
    random: np.random.Generator, middle: float, ci95: Sequence[float] | None, plus: float
) -> Array:
    """Normal samples of log(plus + x); all alike without an interval."""
    low, high = (np.log(max(plus + bound, 1e-6)) for bound in ci95 or (middle, middle))
    centre = np.log(max(plus + middle, 1e-6))
    spread = (high - low) / (2 * _Z95)
    found: Array = centre + spread * random.standard_normal(NUM_SAMPLES)
    return found
