"""The points of a cell that no other dominates; winners, break-even, and points at equal cost.

In: Points of one phase, batch and length. Out: plain values. One point dominates another if it is
no slower, loses no more, and is better in one of the two: a relation of point estimates, which is
transitive. How certain a place on the frontier is follows from samples (samples.py).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence

from prunescope.analysis.schema.pareto import (
    AtFlops,
    AtSparsity,
    Loss,
    SpeedLoss,
    SweepPoint,
    Winner,
)

DENSE = "dense"
# At equal FLOPs: FLOP sparsities at which the families are compared, by interpolation.
FLOP_SPARSITIES = (0.125, 0.25, 0.375, 0.5)
# Share of FLOPs, speedup, loss, and whether the time is valid.
_Known = tuple[float, float, float | None, bool]


def frontier(points: Iterable[SweepPoint]) -> list[SweepPoint]:
    """The points on the frontier, by loss: those that are faster than the dense model and that no
    other dominates, by their point estimates.

    A point that is added removes those alone that it dominates, and within every loss the fastest
    point that is faster than dense is one of these. Points with equal values are on it together.
    """
    found: list[SweepPoint] = []
    ranked = [p for p in comparable(points) if p.realised > 1]
    for point in sorted(ranked, key=lambda p: (_rel(p), -p.realised, p.id)):
        last = found[-1] if found else None
        equal = last is not None and (_rel(last), last.realised) == (_rel(point), point.realised)
        if last is None or point.realised > last.realised or equal:
            found.append(point)
    return found


def comparable(points: Iterable[SweepPoint]) -> list[SweepPoint]:
    """The points with a valid time and a known loss, without those that removed nothing: their
    speedup is 1, and any other measured value is noise."""
    return [
        p
        for p in points
        if p.timing_valid
        and not p.removed_nothing
        and math.isfinite(p.realised)
        and math.isfinite(_known_or_nan(loss_of(p)))
    ]


def winners(on_frontier: Sequence[SweepPoint], *, batch: int, prompt_len: int) -> list[Winner]:
    """The fastest family by range of loss: dense up to the first point, then point by point.

    Neighbouring ranges of one family are one range, with the speedup at its end.
    """
    steps: list[tuple[float | None, str, float, bool]] = [(None, DENSE, 1.0, True)]
    steps += [(_rel(p), p.label, p.realised, p.timing_valid) for p in on_frontier]
    found: list[Winner] = []
    for (low, family, realised, valid), after in zip(steps, [*steps[1:], None], strict=True):
        high = after[0] if after else None
        if found and found[-1].family == family:
            found[-1].loss[1], found[-1].realised = high, realised
            found[-1].timing_valid = valid
            continue
        found.append(
            Winner(
                loss=[0.0 if low is None else low, high],
                family=family,
                realised=realised,
                batch=batch,
                prompt_len=prompt_len,
                timing_valid=valid,
            )
        )
    first = found[0].loss[1]
    # A first point without a loss, within noise below zero, leaves no range to the dense model.
    return found[1:] if first is not None and first <= 0 else found


def break_even(points: Iterable[SweepPoint]) -> dict[str, float | None]:
    """The break-even of each family: the smallest nominal sparsity from which it and all larger
    measured ones are faster than dense beyond noise; None where the largest is not. Points that
    cannot be judged, or have no nominal sparsity, are left out, and a family that has no others."""
    found: dict[str, float | None] = {}
    judged = [p for p in points if p.is_judged and p.sparsity is not None]
    for family, of_family in _by_family(judged).items():
        pays: float | None = None
        for point in sorted(of_family, key=lambda p: -(p.sparsity or 0)):
            if not point.is_faster:
                break
            pays = point.sparsity
        found[family] = pays
    return found


def in_every_cell(
    found: Sequence[dict[str, float | None]], without: Collection[str] = ()
) -> dict[str, float | None]:
    """The largest break-even of the cells, None where a family never pays in one of them; families
    in `without` are left out."""
    families = dict.fromkeys(family for one in found for family in one)
    merged: dict[str, float | None] = {}
    for family in (one for one in families if one not in without):
        values = [one.get(family) for one in found if family in one]
        known = [value for value in values if value is not None]
        merged[family] = max(known) if len(known) == len(values) else None
    return merged


def equal_flops(points: Iterable[SweepPoint]) -> list[AtFlops]:
    """Speedup and loss of each family at equal FLOP sparsity, by straight lines between its two
    nearest points (the dense model is one of them, at 0); nothing beyond its last point."""
    curves: dict[str, list[_Known]] = {}
    for family, of_family in _by_family(points).items():
        curve: list[_Known] = [(0.0, 1.0, 0.0, True)]
        curve += [
            (p.flop_sparsity, p.realised, loss_of(p), p.timing_valid)
            for p in of_family
            if p.flop_sparsity is not None and p.flop_sparsity > 0
        ]
        curves[family] = sorted(curve, key=lambda point: point[0])
    rows = []
    for at in FLOP_SPARSITIES:
        families = {family: _between(curve, at) for family, curve in curves.items()}
        there = {family: found for family, found in families.items() if found is not None}
        if there:
            rows.append(AtFlops(flop_sparsity=at, families=there))
    return rows


def equal_sparsity(points: Iterable[SweepPoint]) -> list[AtSparsity]:
    """Speedup, loss and FLOP sparsity of each family at equal nominal sparsity, as measured."""
    rows: dict[float, dict[str, SpeedLoss]] = {}
    for point in points:
        for share in point.sparsities:
            rows.setdefault(share, {})[point.label] = SpeedLoss(
                realised=point.realised,
                loss=loss_of(point),
                flop_sparsity=point.flop_sparsity,
                timing_valid=point.timing_valid,
            )
    return [AtSparsity(sparsity=share, families=rows[share]) for share in sorted(rows)]


def _between(curve: Sequence[_Known], at: float) -> SpeedLoss | None:
    for (x0, y0, z0, valid0), (x1, y1, z1, valid1) in zip(curve, curve[1:], strict=False):
        if x0 <= at <= x1 and x1 > x0:
            share = (at - x0) / (x1 - x0)
            loss = None if z0 is None or z1 is None else z0 + share * (z1 - z0)
            valid = valid0 and valid1
            return SpeedLoss(realised=y0 + share * (y1 - y0), loss=loss, timing_valid=valid)
    return None


def _by_family(points: Iterable[SweepPoint]) -> dict[str, list[SweepPoint]]:
    found: dict[str, list[SweepPoint]] = {}
    for point in points:
        found.setdefault(point.label, []).append(point)
    return found


def loss_of(point: SweepPoint) -> float | None:
    """The loss by which points are compared: relative perplexity against the dense model, which is
    also trained if the pruned one was trained."""
    loss = point.loss or Loss()
    after = loss.perplexity_rel_recovered
    return loss.perplexity_rel if after is None else after


def loss_ci95(point: SweepPoint) -> list[float] | None:
    """The interval of that loss."""
    loss = point.loss or Loss()
    return loss.ci95 if loss.perplexity_rel_recovered is None else loss.recovered_ci95


def _known_or_nan(value: float | None) -> float:
    return math.nan if value is None else value


def _rel(point: SweepPoint) -> float:
    value = loss_of(point)
    assert value is not None
    return value
