"""The ledger: the lost speedup of a pair, split into rows that sum exactly (docs/ledger.md).

In: `Units` and the nominal sparsity. Out: for every row an array [units or parts, replicates] of ns
per step, in the profiled or the unprofiled time base. Σ rows = pruned is an identity of the
formulas; in floating point it holds up to rounding, which `rows.build_rows` removes from the
printed rows.
"""

from __future__ import annotations

import numpy as np
from msgspec import Struct, field

from prunescope.analysis.kernels.frame import PRODUCTS
from prunescope.analysis.ledger.pairing import (
    Floats,
    PartSums,
    RecordWeight,
    UnitParts,
    Units,
    UnitSums,
)

_CAP_QUANTILE = 0.05  # of time per recorded event: it caps the cost of one event
_MOST_OVERHEAD = 0.8  # of the time of a part that may be the cost of recording it

ROWS = ("dense", "promised", "coverage", "roofline_shift", "shape", "kernel_efficiency",
        "added_work", "launch_idle", "pruned")  # fmt: skip


class Ratios(Struct, frozen=True):
    """The share of each dense unit that should remain; 0 where it was removed.

    Attributes:
        flop: By FLOPs.
        roofline: By roofline times.
        shape: By tiles and waves.
        promised: ρ: 1 - s, or the FLOPs of matched units over those of the dense model.
        flop_ratio: FLOPs of all products, attention and convolutions, dense over pruned; None if
            unknown.
    """

    flop: Floats
    roofline: Floats
    shape: Floats
    promised: float
    flop_ratio: float | None


class SideTimes(Struct, frozen=True):
    """The times of one side, ns per step.

    Attributes:
        busy: Busy time, [units, replicates].
        gap: Gaps, [units, replicates].
        trailing_idle: Trailing idle time, [replicates].
    """

    busy: Floats
    gap: Floats
    trailing_idle: Floats

    @property
    def wall(self) -> Floats:
        """All time of a step, [replicates]."""
        return np.asarray(self.busy.sum(axis=0) + self.gap.sum(axis=0) + self.trailing_idle)

    @property
    def idle(self) -> Floats:
        """Gaps and trailing idle time, [replicates]."""
        return np.asarray(self.gap.sum(axis=0) + self.trailing_idle)


class Times(Struct, frozen=True):
    """The times of both sides."""

    dense: SideTimes
    pruned: SideTimes


class Split(Struct):
    """A ledger, with every row as [units + 1, replicates] in ns.

    The last line of a row is what belongs to no unit: gaps of the row coverage, trailing idle of
    the row launch and idle. `dense`, `promised` and `pruned` are walls [replicates].
    """

    dense: Floats
    promised: Floats
    pruned: Floats
    rows: dict[str, Floats] = field(default_factory=dict)

    def total(self, row: str) -> Floats:
        """Sum a row over its units, [replicates]."""
        if row in ("dense", "promised", "pruned"):
            return np.asarray(getattr(self, row))
        return np.asarray(self.rows[row].sum(axis=0))


def ratios(units: Units, sparsity: float | None) -> Ratios:
    """Compute r_F, r_R and r_Q of every unit, and ρ.

    A ratio that is unknown is the one before it. That of a unit is the mean of those of its parts,
    weighted by their dense time. For work that is no product it is at most 1 + t_p / t_d.

    Args:
        units: The units of both sides.
        sparsity: The requested sparsity; None takes ρ from the FLOPs.
    """
    parts = one_part_each(units) if units.parts is None else units.parts
    d, p = parts.dense, parts.pruned
    counted = np.array([k[2] in PRODUCTS for k in units.keys], bool)[parts.unit]
    by_bytes = _divide(p.bytes, d.bytes)
    r_f = np.where(counted, _divide(p.flop, d.flop), np.nan)
    r_f = _fill_unknown(r_f, by_bytes, units.kept_calls[parts.unit])
    r_r = _fill_unknown(_divide(p.ideal, d.ideal), r_f)
    r_q = _fill_unknown(_divide(p.predicted, d.predicted), r_r)
    # Of work that is no product, bytes say little where there are few: where they grew, no more is
    # expected on top of the dense time than all of the pruned time.
    most = 1.0 + _fill_unknown(_divide(p.busy, d.busy), np.full(len(r_f), np.inf))
    removed = ~units.pruned.present[parts.unit] | ((d.busy > 0) & (p.busy == 0))
    for r in (r_f, r_r, r_q):
        r[~counted] = np.minimum(r, most)[~counted]
        r[removed] = 0.0
    total_d = float(np.nansum(d.flop[counted & units.dense.present[parts.unit]]))
    kept = counted & units.matched[parts.unit] & ~np.isnan(d.flop)
    # A part whose pruned FLOPs are unknown keeps what the ratio says of it.
    matched = float(np.nansum(np.where(kept, d.flop * r_f, 0.0)))
    every = matched + float(np.nansum(p.flop[counted & units.added[parts.unit]]))
    promised = matched / total_d if total_d and matched else 1.0  # nothing pairs: nothing promised
    if sparsity is not None:
        promised = 1.0 - sparsity
    r_f, r_r, r_q = (_pool_ratios(r, parts, len(units.keys)) for r in (r_f, r_r, r_q))
    return Ratios(r_f, r_r, r_q, promised, total_d / every if total_d and every else None)


def one_part_each(units: Units) -> UnitParts:
    """Take each unit as one part."""
    sides = (
        PartSums(
            *(
                _mean_over_steps(values)
                for values in (s.busy, s.flop, s.bytes, s.ideal, s.predicted)
            )
        )
        for s in (units.dense, units.pruned)
    )
    return UnitParts(np.arange(len(units.keys)), *sides)


def _pool_ratios(ratio: Floats, parts: UnitParts, count: int) -> Floats:
    """Return the mean ratio of each unit over its parts, weighted by their dense time.

    Parts count equally where that time is 0. The ratio of a unit of one part is exactly that of the
    part.
    """
    number = np.bincount(parts.unit, minlength=count)
    time = np.bincount(parts.unit, parts.dense.busy, count)
    weight = np.where(time[parts.unit] > 0, parts.dense.busy, 1.0)
    mean = np.bincount(parts.unit, ratio * weight, count) / np.maximum(
        np.bincount(parts.unit, weight, count), np.finfo(float).tiny
    )
    alone = number[parts.unit] == 1
    mean[parts.unit[alone]] = ratio[alone]
    return np.asarray(mean)


def _mean_over_steps(values: Floats) -> Floats:
    """Return the mean over steps, NaN where a step is unknown."""
    return np.asarray(values.mean(axis=1)) if values.shape[1] else np.zeros(len(values))


def _divide(new: Floats, old: Floats) -> Floats:
    """Divide new by old values, NaN where the old one is not positive or a value is unknown."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = new / old
    ratio[~np.isfinite(ratio) | (old <= 0)] = np.nan
    return np.asarray(ratio)


def _fill_unknown(*choices: Floats) -> Floats:
    """Take the first choice that is known, element by element."""
    known = choices[0].copy()
    for choice in choices[1:]:
        known = np.where(np.isnan(known), choice, known)
    return known


def times(units: Units, dense_steps: Floats, pruned_steps: Floats) -> Times:
    """Return mean times over steps.

    Args:
        units: The units of both sides.
        dense_steps: The weights of the dense steps, [steps, replicates]; columns sum to 1.
        pruned_steps: Those of the pruned steps.
    """
    sides = ((units.dense, dense_steps), (units.pruned, pruned_steps))
    dense, pruned = (SideTimes(s.busy @ w, s.gap @ w, s.trailing_idle @ w) for s, w in sides)
    return Times(dense, pruned)


def scale_idle(side: SideTimes, wall: Floats) -> SideTimes:
    """Scale one side of a device trace to its unprofiled wall.

    A profiler slows the host and not the kernels, so that idle time alone is scaled.
    """
    factor = (wall - side.busy.sum(axis=0)) / np.where(side.idle > 0, side.idle, 1.0)
    return SideTimes(side.busy, side.gap * factor, side.trailing_idle * factor)


def subtract_profiler_overhead(
    side: SideTimes, wall: Floats, records: RecordWeight | None
) -> SideTimes:
    """Subtract the profiler's overhead from one side of a CPU trace, down to its unprofiled wall.

    The extra time of the profiled steps is divided equally over the recorded events. The cost of an
    event is capped at the 5th percentile of time per event, and no part loses more than 80 % of its
    time. What then remains is the machine's drift, and is taken by one factor; so is all of it
    where `records` is None or the unprofiled step was the longer one.
    """
    parts = np.vstack([side.busy, side.gap, side.trailing_idle[None, :]])
    if records is not None:
        weights = np.concatenate([records.busy, records.gap, [records.trailing_idle]])[:, None]
        held = weights[:, 0] > 0
        if held.any():
            excess = np.maximum(parts.sum(axis=0) - wall, 0.0)
            shortest = np.quantile(parts[held] / weights[held], _CAP_QUANTILE, axis=0)
            each = np.minimum(excess / weights.sum(), np.maximum(shortest, 0.0))
            parts = parts - np.minimum(each * weights, _MOST_OVERHEAD * np.maximum(parts, 0.0))
    remaining = parts.sum(axis=0)
    parts = parts * (wall / np.where(remaining > 0, remaining, 1.0))
    units = len(side.busy)
    return SideTimes(parts[:units], parts[units:-1], parts[-1])


def split(units: Units, ratio: Ratios, t: Times) -> Split:
    """Compute the rows of the ledger; every formula is the one in docs/ledger.md."""
    p = ratio.promised
    matched, removed, added = (m[:, None] for m in (units.matched, units.removed, units.added))
    r_f, r_r, r_q = (r[:, None] for r in (ratio.flop, ratio.roofline, ratio.shape))
    t_d, g_d, t_p, g_p = t.dense.busy, t.dense.gap, t.pruned.busy, t.pruned.gap
    trailing_d, trailing_p = t.dense.trailing_idle, t.pruned.trailing_idle
    kept = units.kept_calls[:, None]
    gaps = (g_d * matched * (kept - p)).sum(axis=0) - (g_d * removed).sum(axis=0) * p
    nothing = np.zeros_like(trailing_d)
    rows = {
        "coverage": (t_d * (r_f - p), gaps + trailing_d * (1 - p)),
        "roofline_shift": (t_d * (r_r - r_f), nothing),
        "shape": (t_d * (r_q - r_r), nothing),
        "kernel_efficiency": (matched * (t_p - t_d * r_q), nothing),
        "added_work": (added * t_p, nothing),
        "launch_idle": (matched * (g_p - kept * g_d) + added * g_p, trailing_p - trailing_d),
    }
    stacked = {
        name: np.vstack([of_units, unassigned[None, :]])
        for name, (of_units, unassigned) in rows.items()
    }
    return Split(t.dense.wall, p * t.dense.wall, t.pruned.wall, stacked)


def uniform(side: UnitSums) -> Floats:
    """Return equal weights of all steps, [steps, 1]."""
    steps = side.busy.shape[1]
    return np.full((steps, 1), 1.0 / steps)
