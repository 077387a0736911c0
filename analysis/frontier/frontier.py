"""The points of a cell that no other dominates, winners, break-even, and equal costs.

In: points of one phase, batch and length. Out: plain values. One point dominates another if it is
no slower, loses no more, and is better in one of the two. This relates point estimates, and is
transitive. The share of samples in which a point is on the frontier is computed in samples.py.
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
    """Return the points on the frontier, by loss.

    They are faster than the dense model, and no other point dominates them by their point
    estimates. A point that is added removes only points that it dominates, and within every loss
    the fastest point that is faster than dense is one of them. Points with equal values are on the
    frontier together.

    Args:
        points: The points of one cell.
    """
    best: list[SweepPoint] = []
    faster = [p for p in comparable(points) if p.realised > 1]
    for point in sorted(faster, key=lambda p: (_known_loss(p), -p.realised, p.id)):
        last = best[-1] if best else point
        equal = (_known_loss(last), last.realised) == (_known_loss(point), point.realised)
        if point.realised > last.realised or equal:
            best.append(point)
    return best


def comparable(points: Iterable[SweepPoint]) -> list[SweepPoint]:
    """Return the points with a valid time and a known loss that removed something.

    A point that removed nothing has the speedup 1, and any other measured value is noise.
    """
    return [
        p
        for p in points
        if p.timing_valid
        and not p.removed_nothing
        and math.isfinite(p.realised)
        and (loss := loss_of(p)) is not None
        and math.isfinite(loss)
    ]


def winners(on_frontier: Sequence[SweepPoint], *, batch: int, prompt_len: int) -> list[Winner]:
    """Return the fastest family by range of loss.

    It is the dense model up to the first point, then the family of each point. Neighbouring ranges
    of one family are one range, with the speedup at its end.

    Args:
        on_frontier: The points on the frontier, by loss.
        batch: The batch of the cell.
        prompt_len: The prompt length of the cell.
    """
    steps: list[tuple[float | None, str, float, bool]] = [(None, DENSE, 1.0, True)]
    steps += [(_known_loss(p), p.label, p.realised, p.timing_valid) for p in on_frontier]
    ranges: list[Winner] = []
    for (low, family, realised, valid), after in zip(steps, [*steps[1:], None], strict=True):
        high = after[0] if after else None
        if ranges and ranges[-1].family == family:
            ranges[-1].loss[1], ranges[-1].realised = high, realised
            ranges[-1].timing_valid = valid
            continue
        ranges.append(
            Winner(
                loss=[0.0 if low is None else low, high],
                family=family,
                realised=realised,
                batch=batch,
                prompt_len=prompt_len,
                timing_valid=valid,
            )
        )
    first = ranges[0].loss[1]
    # A first point without a loss, within noise below zero, leaves no range to the dense model.
    return ranges[1:] if first is not None and first <= 0 else ranges


def break_even(points: Iterable[SweepPoint]) -> dict[str, float | None]:
    """Return the break-even of each family.

    It is the smallest nominal sparsity from which it and all larger measured ones are faster than
    dense beyond noise. Points that cannot be judged or have no nominal sparsity are left out, and
    so is a family without other points.

    Args:
        points: The points of one cell.

    Returns:
        The break-even by family; None if the largest sparsity is not faster.
    """
    from_sparsity: dict[str, float | None] = {}
    judged = [p for p in points if p.is_judged and p.sparsity is not None]
    for family, of_family in _group_by_family(judged).items():
        pays: float | None = None
        for point in sorted(of_family, key=lambda p: -(p.sparsity or 0)):
            if not point.is_faster:
                break
            pays = point.sparsity
        from_sparsity[family] = pays
    return from_sparsity


def merge_break_even(
    cells: Sequence[dict[str, float | None]], without: Collection[str] = ()
) -> dict[str, float | None]:
    """Return the largest break-even of the cells.

    Args:
        cells: The break-even by family of each cell.
        without: The families to leave out.

    Returns:
        The break-even by family; None if a family never pays in one of the cells.
    """
    families = dict.fromkeys(family for cell in cells for family in cell if family not in without)
    merged: dict[str, float | None] = {}
    for family in families:
        values = [cell[family] for cell in cells if family in cell]
        known = [value for value in values if value is not None]
        merged[family] = max(known) if len(known) == len(values) else None
    return merged


def equal_flops(points: Iterable[SweepPoint]) -> list[AtFlops]:
    """Return the speedup and loss of each family at equal FLOP sparsities.

    Values lie on straight lines between the two nearest points of the family, of which the dense
    model is one, at 0. There are none beyond its last point.

    Args:
        points: The points of one cell.
    """
    curves: dict[str, list[_Known]] = {}
    for family, of_family in _group_by_family(points).items():
        curve: list[_Known] = [(0.0, 1.0, 0.0, True)]
        curve += [
            (p.flop_sparsity, p.realised, loss_of(p), p.timing_valid)
            for p in of_family
            if p.flop_sparsity is not None and p.flop_sparsity > 0
        ]
        curves[family] = sorted(curve, key=lambda point: point[0])
    rows = []
    for at in FLOP_SPARSITIES:
        values = {family: _interpolate(curve, at) for family, curve in curves.items()}
        known = {family: value for family, value in values.items() if value is not None}
        if known:
            rows.append(AtFlops(flop_sparsity=at, families=known))
    return rows


def equal_sparsity(points: Iterable[SweepPoint]) -> list[AtSparsity]:
    """Return the measured speedup, loss and FLOP sparsity of families at equal sparsity."""
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


def _interpolate(curve: Sequence[_Known], at: float) -> SpeedLoss | None:
    for (x0, y0, z0, valid0), (x1, y1, z1, valid1) in zip(curve, curve[1:], strict=False):
        if x0 <= at <= x1 and x1 > x0:
            share = (at - x0) / (x1 - x0)
            loss = None if z0 is None or z1 is None else z0 + share * (z1 - z0)
            valid = valid0 and valid1
            return SpeedLoss(realised=y0 + share * (y1 - y0), loss=loss, timing_valid=valid)
    return None


def _group_by_family(points: Iterable[SweepPoint]) -> dict[str, list[SweepPoint]]:
    families: dict[str, list[SweepPoint]] = {}
    for point in points:
        families.setdefault(point.label, []).append(point)
    return families


def loss_of(point: SweepPoint) -> float | None:
    """Return the loss by which points are compared: perplexity relative to the dense model.

    If the pruned model was trained, the dense model is the one after the same training.
    """
    loss = point.loss or Loss()
    after = loss.perplexity_rel_recovered
    return loss.perplexity_rel if after is None else after


def loss_ci95(point: SweepPoint) -> list[float] | None:
    """Return the interval of the loss by which points are compared."""
    loss = point.loss or Loss()
    return loss.ci95 if loss.perplexity_rel_recovered is None else loss.recovered_ci95


def _known_loss(point: SweepPoint) -> float:
    value = loss_of(point)
    assert value is not None
    return value
