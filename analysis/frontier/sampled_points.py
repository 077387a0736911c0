"""Points sampled from their intervals, so that a place on the frontier has a probability.

In: the points of a cell. Out: SampledPoints, with log speedups and log perplexity ratios. Each
point is sampled independently, from a normal distribution with the width of its 95 % interval. Its
samples follow from its id alone, so that neither the order of points nor another point changes
them.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt

from prunescope.analysis.frontier.frontier import comparable, loss_ci95, loss_of
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
    """The logarithms of `speeds` and `losses` [samples, points], and the labels of the points."""

    labels: tuple[str, ...]
    families: tuple[str, ...]
    speeds: Array
    losses: Array

    def of(self, family: str) -> npt.NDArray[np.bool_]:
        """Return a mask [points] of the points of a family."""
        return np.array([name == family for name in self.families])

    def best(self, budget: Array | float, among: npt.NDArray[np.bool_]) -> Array:
        """Return the largest log speedup [samples] at a log loss within `budget`.

        It is 0, that of the dense model, if nothing is faster.

        Args:
            budget: The largest log loss, or one for each sample.
            among: A mask [points] of the points to choose from.
        """
        within = (self.losses <= np.asarray(budget).reshape(-1, 1)) & among
        inside = np.where(within, self.speeds, -np.inf)
        best: Array = inside.max(axis=1, initial=0.0)
        return best

    def fastest(self, budget: float) -> list[str]:
        """Return the fastest point's label in each sample, at a log loss within `budget`."""
        within = np.where(self.losses <= budget, self.speeds, -np.inf)
        at = within.argmax(axis=1)
        top = within[np.arange(len(at)), at]
        return [self.labels[i] if speed > 0 else DENSE for i, speed in zip(at, top, strict=True)]


def sample_points(points: Iterable[SweepPoint]) -> SampledPoints | None:
    """Sample the comparable points that have both intervals.

    Args:
        points: The points of one cell.

    Returns:
        The samples; None if there is no such point.
    """
    able = [p for p in comparable(points) if has_intervals(p)]
    return sampled(able) if able else None


def has_intervals(point: SweepPoint) -> bool:
    """Return whether both the speedup and the loss of a point have an interval."""
    return bool(point.realised_ci95 and loss_ci95(point))


def random_of(point: SweepPoint) -> np.random.Generator:
    """Return the random numbers of a point, which follow from its id."""
    return np.random.default_rng([SEED, zlib.crc32(point.id.encode())])


def add_frontier_shares(points: Sequence[SweepPoint], on_frontier: Sequence[SweepPoint]) -> None:
    """Set on each point the share of samples in which it is on the frontier, and its equals.

    Points of the frontier, and points that are indistinguishable from one, name each other in
    `equal_to`. A point without both intervals takes part in each sample with its estimate, and has
    no share.

    Args:
        points: The points of one cell, which are changed.
        on_frontier: Those on the frontier by their estimates.
    """
    able = comparable(points)
    if not able:
        return
    samples = sampled(able)
    shares = _frontier_masks(samples).mean(axis=0)
    for point, share in zip(able, shares, strict=True):
        point.frontier_share = float(share) if has_intervals(point) else None
    for first, second in _equal_pairs(able, samples, {p.id for p in on_frontier}):
        first.equal_to.append(second.id)
        second.equal_to.append(first.id)


def sampled(points: Sequence[SweepPoint]) -> SampledPoints:
    """Sample points, at least one.

    A value without an interval, or an unknown loss, has no spread.
    """
    speeds, losses = [], []
    for point in points:
        random = random_of(point)
        speeds.append(sample_normal(random, point.realised, point.realised_ci95, 0.0))
        losses.append(sample_normal(random, loss_of(point) or 0.0, loss_ci95(point), 1.0))
    return SampledPoints(
        labels=tuple(p.label for p in points),
        families=tuple(p.family for p in points),
        speeds=np.stack(speeds, axis=1),
        losses=np.stack(losses, axis=1),
    )


def _frontier_masks(samples: SampledPoints) -> npt.NDArray[np.bool_]:
    """Return [samples, points]: is a point faster than dense and all that lose less?"""
    order = np.lexsort((-samples.speeds, samples.losses), axis=-1)
    speeds = np.take_along_axis(samples.speeds, order, axis=1)
    before = np.maximum.accumulate(speeds, axis=1)[:, :-1]
    before = np.hstack([np.zeros((len(speeds), 1)), np.maximum(before, 0.0)])
    masks = np.empty(speeds.shape, dtype=bool)
    np.put_along_axis(masks, order, speeds > before, axis=1)
    return masks


def _equal_pairs(
    points: Sequence[SweepPoint], samples: SampledPoints, on_frontier: set[str]
) -> Iterator[tuple[SweepPoint, SweepPoint]]:
    """Yield pairs with a point of the frontier that differ beyond noise in nothing."""
    known = [(i, point) for i, point in enumerate(points) if has_intervals(point)]
    for (i, first), (j, second) in combinations(known, 2):
        if on_frontier.isdisjoint((first.id, second.id)):
            continue
        if not any(differ(v[:, i], v[:, j]) for v in (samples.speeds, samples.losses)):
            yield first, second


def differ(first: Array, second: Array) -> bool:
    """Return whether the order of two values is beyond noise. Equal values have no order."""
    share = float((first > second).mean() + (first == second).mean() / 2)
    return not NOISE < share < 1 - NOISE


def add_winning_shares(winners: Sequence[Winner], points: Iterable[SweepPoint]) -> None:
    """Set on each winner the share of samples in which its family is fastest in its range.

    Args:
        winners: The winners of one cell, which are changed.
        points: The points of the cell.
    """
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
    """Return the median and the middle 95 % of samples."""
    low, middle, high = (float(v) for v in np.quantile(values, (0.025, 0.5, 0.975)))
    return middle, [low, high]


def sample_normal(
    random: np.random.Generator, middle: float, ci95: Sequence[float] | None, plus: float
) -> Array:
    """Return normal samples of log(plus + x). All are equal without an interval."""
    low, high = (np.log(max(plus + bound, 1e-6)) for bound in ci95 or (middle, middle))
    centre = np.log(max(plus + middle, 1e-6))
    spread = (high - low) / (2 * _Z95)
    values: Array = centre + spread * random.standard_normal(NUM_SAMPLES)
    return values
