"""The rule that decides whether another placement is drawn: how narrow an interval has to be.

In: the samples of one model, or of two that take turns, in ns, by placement. Out: the half-width of
the interval of the time or of the speedup, whether sampling goes on, and what was reached. Nothing
here needs torch or runs a model.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from prunescope.taxonomy.runs.run import NARROW, PhaseRun
from prunescope.taxonomy.runs.run_blocks import Until
from prunescope.taxonomy.student_t import interval_quantile
from prunescope.tracer.capture.request import TraceRequest

Side = Sequence[Sequence[int]]  # samples of a model in ns, by placement


@dataclass(frozen=True, kw_only=True)
class StoppingRule:
    """How narrow an interval has to be, and at which numbers of placements it is looked at.

    Attributes:
        until: The half-width of the interval, as a share of the value, at which sampling stops.
        looks: Ascending numbers of placements: the interval is looked at there alone, and the last
            is the limit.
        sequential: Whether the interval is widened for the looks (`student_t.interval_quantile`).
    """

    until: float
    looks: tuple[int, ...]
    sequential: bool

    def goes_on(self, *sides: Side) -> bool:
        """Return whether another placement is drawn, given the samples of each side."""
        count = len(sides[0])
        if count >= self.looks[-1]:
            return False
        return count not in self.looks or self.half_width(*sides) > self.until

    def half_width(self, *sides: Side) -> float:
        """Return the half-width of the interval by which the rule decides."""
        return half_width(*sides, sequential=self.sequential)

    def result(self, runs: Sequence[PhaseRun]) -> Until:
        """Return what a phase reached, given its run on each side, after its last placement.

        A phase that is wide below the limit was ended by disturbed samples, of any phase.
        """
        sides = [run.samples_by_placement for run in runs]
        count, reached = len(sides[0]), self.half_width(*sides)
        is_narrow = count in self.looks and reached <= self.until
        is_limit = count >= self.looks[-1]
        return Until(
            asked=self.until,
            reached=reached if math.isfinite(reached) else None,
            of="speedup" if len(runs) > 1 else "time",
            looks=sum(look <= count for look in self.looks),
            ended="narrow" if is_narrow else "limit" if is_limit else "disturbed",
        )


def rule_of(request: TraceRequest) -> StoppingRule:
    """Return the rule of a request: that of `--until`, else that of every capture."""
    return StoppingRule(
        until=NARROW / 2 if request.until is None else request.until,
        looks=request.looks,
        sequential=request.until is not None,
    )


def wide_phases(rule: StoppingRule, runs: Mapping[str, Sequence[PhaseRun]]) -> tuple[str, ...]:
    """Return the phases that need another placement, given the runs of each phase, by side.

    The result is empty if a sample was disturbed: such times are invalid, however narrow their
    interval is.
    """
    if any(run.has_disturbed_samples for sides in runs.values() for run in sides):
        return ()
    return tuple(
        phase
        for phase, sides in runs.items()
        if rule.goes_on(*(run.samples_by_placement for run in sides))
    )


def half_width(*sides: Side, sequential: bool = False) -> float:
    """Return half of the width of the 95 % interval of a time, or of the ratio of two times.

    The interval is the t interval of the mean, over placements, of the logarithm of the placement's
    median, or of the ratio of the two medians: the same that a report resamples.

    Args:
        sides: The samples of one model, or of two, by placement.
        sequential: Whether placements were added until the interval was narrow.

    Returns:
        A share of the time or ratio; infinite for fewer than two placements.
    """
    medians = [[math.log(statistics.median(samples)) for samples in side] for side in sides]
    logs = [own - sum(other) for own, *other in zip(*medians, strict=True)]
    if len(logs) < 2:
        return math.inf
    quantile = interval_quantile(len(logs) - 1, sequential=sequential)
    return math.sinh(quantile * statistics.stdev(logs) / math.sqrt(len(logs)))
