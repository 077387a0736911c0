"""Points sampled from their intervals, so that a place on the frontier has a probability.

In: points of a cell. Out: SampledPoints: log speedups and log perplexity ratios, each point on its
own, normal with the width of its 95 % interval. The same points give the same samples.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from prunescope.analysis.pareto.frontier import loss_ci95, loss_of, removed_nothing
from prunescope.analysis.schema.pareto import SweepPoint, Winner

Array = npt.NDArray[np.float64]
NUM_SAMPLES, _SEED = 2000, 0
_Z95 = 1.959964
_BUDGETS = 16  # losses within a range at which winners are counted
DENSE = "dense"


@dataclass(frozen=True)
class SampledPoints:
    """`speeds`, `losses` [samples, points], logarithms; `labels` of the points."""

    labels: tuple[str, ...]
    families: tuple[str, ...]
    speeds: Array
    losses: Array

    def of(self, family: str) -> npt.NDArray[np.bool_]:
        """Which points are of a family."""
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


def sample_points(points: Iterable[SweepPoint], count: int = NUM_SAMPLES) -> SampledPoints | None:
    """Samples of the points that have both intervals and a valid time, and removed something; None
    without any."""
    able = [p for p in points if p.timing_valid and p.realised_ci95 and loss_ci95(p)]
    able = [p for p in able if not removed_nothing(p)]
    if not able:
        return None
    random = np.random.default_rng(_SEED)
    speeds = [_sampled(random, p.realised, p.realised_ci95 or [], 0.0, count) for p in able]
    losses = [_sampled(random, loss_of(p) or 0.0, loss_ci95(p) or [], 1.0, count) for p in able]
    return SampledPoints(
        labels=tuple(p.label for p in able),
        families=tuple(p.family for p in able),
        speeds=np.stack(speeds, axis=1),
        losses=np.stack(losses, axis=1),
    )


def add_winning_shares(winners: Sequence[Winner], points: Iterable[SweepPoint]) -> None:
    """Into each winner the share of samples in which its family is the fastest, over its range."""
    sampled = sample_points(points)
    if sampled is None:
        return
    top = float(np.quantile(sampled.losses, 0.99))
    for winner in winners:
        low = np.log1p(max(winner.loss[0] or 0.0, -0.99))
        high = top if winner.loss[1] is None else np.log1p(winner.loss[1])
        budgets = low + (max(high, low) - low) * (np.arange(_BUDGETS) + 0.5) / _BUDGETS
        wins = [label == winner.family for budget in budgets for label in sampled.fastest(budget)]
        winner.share_of_draws = sum(wins) / len(wins)


def interval(values: Array) -> tuple[float, list[float]]:
    """The median and the middle 95 % of samples."""
    low, middle, high = (float(v) for v in np.quantile(values, (0.025, 0.5, 0.975)))
    return middle, [low, high]


def _sampled(
    random: np.random.Generator, middle: float, ci95: Sequence[float], plus: float, count: int
) -> Array:
    """Normal samples of log(plus + x)."""
    low, high = (np.log(max(plus + bound, 1e-6)) for bound in ci95)
    centre = np.log(max(plus + middle, 1e-6))
    spread = (high - low) / (2 * _Z95)
    sampled: Array = centre + spread * random.standard_normal(count)
    return sampled
