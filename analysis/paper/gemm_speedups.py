"""How much faster a GEMM gets if N or K shrinks.

In: replayed GEMMs. Out: the speedups of each curve with intervals and roofline bounds. All sizes of
a curve ran in turns in the same placements, so that a speedup compares dense and pruned in turns.
Its interval has the noise of both times.
"""

from __future__ import annotations

from collections.abc import Iterable

from prunescope.analysis.ledger.noise import speedup_interval
from prunescope.analysis.ledger.samples import Samples
from prunescope.analysis.schema.replay import SpeedupCurve, SpeedupPoint
from prunescope.taxonomy.replays import LEAST_PLACEMENTS, ReplayPeaks, Replays, StepCurve


def speedup_curves(every: Iterable[Replays]) -> list[SpeedupCurve]:
    """Return the curves of all files that have more than one size.

    Args:
        every: The replayed GEMMs of each file.
    """
    return [
        SpeedupCurve(
            curve=curve,
            points=_points(curve, replays.peaks),
            device=replays.device.name,
            placements=replays.placements,
            repeats=replays.repeats,
            disturbed=replays.disturbed,
        )
        for replays in every
        for curve in replays.curves
        if len(curve.sizes) > 1
    ]


def _points(curve: StepCurve, peaks: ReplayPeaks) -> list[SpeedupPoint]:
    order = sorted(range(len(curve.sizes)), key=curve.sizes.__getitem__)
    dense = order[-1]
    ideals = [peaks.ideal_ns(curve.gemm(size), curve.dtype) for size in curve.sizes]
    largest = ideals[dense]
    points = []
    for i in order:
        ideal = ideals[i]
        points.append(
            SpeedupPoint(
                size=curve.sizes[i],
                gone=1 - curve.sizes[i] / curve.sizes[dense],
                ns=curve.ns[i],
                ci95=curve.ci95[i] if i < len(curve.ci95) else None,
                speedup=curve.ns[dense] / curve.ns[i],
                speedup_ci95=_interval(curve, dense, i),
                roofline=largest[0] / ideal[0] if largest and ideal else None,
            )
        )
    return points


def _interval(curve: StepCurve, dense: int, i: int) -> list[float] | None:
    """Return the interval of the speedup of size `i`.

    Returns:
        The interval; None for the dense size itself, for too few placements, and for files without
        the times of each placement.
    """
    if i == dense or len(curve.placements_ns) != len(curve.sizes):
        return None
    if len(curve.placements_ns[i]) < LEAST_PLACEMENTS:
        return None
    sides = ([[round(ns)] for ns in curve.placements_ns[j]] for j in (dense, i))
    return speedup_interval(*map(Samples.of, sides), in_turns=True)
