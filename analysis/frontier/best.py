"""The best points of each column of a table of results, and those that may be as good.

In: the points of a cell. Out: for each measure, and each sparsity at which methods compete, the
best point with those whose order with it is within noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from prunescope.analysis.frontier.frontier import loss_ci95, loss_of
from prunescope.analysis.frontier.sampled_points import differ, random_of, sample_normal
from prunescope.analysis.schema.pareto import BestPoints, Loss, SweepPoint


@dataclass(frozen=True)
class _Measure:
    """A column that has a best point.

    Attributes:
        name: Its name in BestPoints.
        value: Gives its value of a point; None where there is none that counts.
        ci95: Gives the interval of the value.
        plus: What is added to a value before its logarithm is compared.
        sign: 1 where more is better, −1 where less is.
    """

    name: str
    value: Callable[[SweepPoint], float | None]
    ci95: Callable[[SweepPoint], Sequence[float] | None]
    plus: float
    sign: int


def _speed(point: SweepPoint) -> float | None:
    return point.realised if point.is_judged and not point.removed_nothing else None


def _tasks(point: SweepPoint) -> float | None:
    value = (point.loss or Loss()).tasks_signed
    return value if isinstance(value, float | int) else None


def _tasks_ci95(point: SweepPoint) -> Sequence[float] | None:
    ci95 = (point.loss or Loss()).tasks_signed_ci95
    return None if ci95 is msgspec.UNSET else ci95


_MEASURES = (
    _Measure("speedup", _speed, lambda point: point.realised_ci95, 0.0, 1),
    _Measure("perplexity", loss_of, loss_ci95, 1.0, -1),
    _Measure("tasks", _tasks, _tasks_ci95, 1.0, 1),
)


def best_points(points: Sequence[SweepPoint]) -> list[BestPoints]:
    """Return the best points of each measure among those that compete.

    Methods compete at equal nominal sparsity; where no two do, all points of the cell compete. A
    point without an interval is no evidence, and takes no part. Memory is counted and has no noise.

    Args:
        points: The points of one cell.
    """
    best = []
    for sparsity, group in _competing(points):
        for measure in _MEASURES:
            known = [p for p in group if _is_known(measure, p)]
            if len(known) > 1:
                best.append(_best_of(measure, known, sparsity))
        best += _least_memory(group, sparsity)
    return best


def _competing(
    points: Sequence[SweepPoint],
) -> Iterator[tuple[float | None, list[SweepPoint]]]:
    """Yield the points that compete, with their sparsity; None for all of the cell."""
    groups: dict[float | None, list[SweepPoint]] = {}
    for point in points:
        groups.setdefault(point.sparsity, []).append(point)
    if any(len(group) > 1 for group in groups.values()):
        yield from ((s, group) for s, group in groups.items() if len(group) > 1)
    elif len(points) > 1:
        yield None, list(points)


def _is_known(measure: _Measure, point: SweepPoint) -> bool:
    value, ci95 = measure.value(point), measure.ci95(point)
    return value is not None and ci95 is not None and all(map(math.isfinite, (value, *ci95)))


def _best_of(measure: _Measure, points: Sequence[SweepPoint], sparsity: float | None) -> BestPoints:
    samples = [
        sample_normal(random_of(p), measure.value(p) or 0.0, measure.ci95(p), measure.plus)
        for p in points
    ]
    first = int(np.argmax([measure.sign * (measure.value(p) or 0.0) for p in points]))
    equal = [
        point.id
        for i, point in enumerate(points)
        if i != first and not differ(samples[first], samples[i])
    ]
    return BestPoints(
        measure=measure.name,
        sparsity=sparsity,
        ids=[points[first].id, *equal],
        beyond_noise=not equal,
    )


def _least_memory(points: Sequence[SweepPoint], sparsity: float | None) -> Iterator[BestPoints]:
    """Yield the points of the least memory, if not all have as much."""
    known = [(p.peak_memory_bytes, p.id) for p in points if p.peak_memory_bytes is not None]
    ids = [name for size, name in known if size == min(known)[0]]
    if 0 < len(ids) < len(known):
        yield BestPoints(measure="memory", sparsity=sparsity, ids=ids, beyond_noise=True)
