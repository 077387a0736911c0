"""The ladder of a comparison: speedups from what was promised to what was measured.

In: the rows of the ledger and the attribution inputs. Out: a Ladder. Each bound is an upper bound
of the speedup, not what bounds a kernel (compute, memory, latency). Bounds of measured times have a
95 % interval, from the same replicates as the rows of the ledger; nominal and FLOPs are arithmetic
and have none.
"""

from __future__ import annotations

import msgspec
import numpy as np

from prunescope.analysis.ledger.attribution import AttributionInputs
from prunescope.analysis.ledger.ledger import one_part_each
from prunescope.analysis.ledger.noise import Replicates, ratio_interval, realised_interval
from prunescope.analysis.ledger.pairing import Units
from prunescope.analysis.schema.report import Ladder, Row

_BY_PEAKS = ("roofline_shift", "shape")


def ladder(
    rows: list[Row], inputs: AttributionInputs, *, is_known: bool, is_bounded: bool
) -> Ladder:
    """Build the ladder.

    Args:
        rows: The rows of the ledger.
        inputs: The attribution inputs.
        is_known: Whether most of the work has a model.
        is_bounded: Whether shapes, or kernels that were removed, show what could have become
            faster.
    """
    units, ratio, base = inputs.units, inputs.ratio, inputs.time_base
    ns = {row.row: row.moves_ns for row in rows}
    covered = ns["promised"] + ns["coverage"]
    by_roofline = covered + ns["roofline_shift"]
    realised = ns["dense"] / ns["pruned"]
    if len(base.dense) and len(base.pruned):
        realised = base.dense.wall / base.pruned.wall
    busy_d = units.dense.busy.sum(axis=0).mean()
    busy_p = units.pruned.busy.sum(axis=0).mean()
    # Without a sparsity, nominal is the ratio of FLOPs, where that one is known.
    has_nominal = inputs.promises and (inputs.nominal is not None or (is_bounded and is_known))
    bounds = Ladder(
        nominal=1 / ratio.promised if ratio.promised > 0 and has_nominal else None,
        flop=ratio.flop_ratio if is_known else None,
        coverage=ns["dense"] / covered if covered > 0 and is_bounded else None,
        roofline=ns["dense"] / by_roofline if by_roofline > 0 and is_bounded else None,
        busy=float(busy_d / busy_p) if busy_p > 0 else None,
        realised=realised,
        realised_ci95=realised_interval(base, inputs.replicates),
        share_of_bound=None,
    )
    bounds.share_of_bound = realised / bounds.roofline if bounds.roofline else None
    if inputs.replicates is not None:
        _add_intervals(bounds, units, inputs.replicates)
    return bounds


def _add_intervals(bounds: Ladder, units: Units, replicates: Replicates) -> None:
    """Add the intervals of the bounds that are known; busy time is as recorded."""
    covered = replicates.promised + replicates.total("coverage")
    by_roofline = covered + replicates.total("roofline_shift")
    if bounds.coverage is not None:
        bounds.coverage_ci95 = ratio_interval(replicates.dense, covered)
    if bounds.roofline is not None:
        bounds.roofline_ci95 = ratio_interval(replicates.dense, by_roofline)
    if bounds.busy is not None:
        busy = (side.busy.sum(axis=0) for side in (units.dense, units.pruned))
        bounds.busy_ci95 = ratio_interval(
            *(b @ w for b, w in zip(busy, replicates.steps, strict=True))
        )
    if bounds.share_of_bound is not None:
        # `realised` is of samples where there are any, also if the ledger's times are profiled.
        dense, pruned = replicates.walls or (replicates.dense, replicates.pruned)
        bounds.share_of_bound_ci95 = ratio_interval(dense * by_roofline, pruned * replicates.dense)


def has_ideals(units: Units) -> bool:
    """Return whether a part of the units of each side has a roofline time.

    Without the peaks of the device none has.
    """
    parts = one_part_each(units) if units.parts is None else units.parts
    sides = (parts.dense, units.dense.present), (parts.pruned, units.pruned.present)
    return all(
        bool((present[parts.unit] & np.isfinite(side.ideal) & (side.busy > 0)).any())
        for side, present in sides
    )


def without_roofline(rows: list[Row], ladder: Ladder) -> tuple[list[Row], Ladder]:
    """Remove the rows and bounds that need the peaks of the device.

    These rows fell back to the ratio of FLOPs: they are 0, and the sum stays as it was.
    """
    known = [Row(row=row.row, ns=None) if row.row in _BY_PEAKS else row for row in rows]
    return known, msgspec.structs.replace(
        ladder, roofline=None, roofline_ci95=None, share_of_bound=None, share_of_bound_ci95=None
    )
