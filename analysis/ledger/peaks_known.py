"""Rows and bounds that need the peaks of a device, where none is known.

In: the units, rows and ladder of a comparison. Out: whether any ideal time is known; rows and
bounds without what rests on one.
"""

from __future__ import annotations

import msgspec
import numpy as np

from prunescope.analysis.ledger.pairing import Units, UnitSums
from prunescope.analysis.schema.report import Ladder, Row

_BY_PEAKS = ("roofline_shift", "shape")


def has_ideals(units: Units) -> bool:
    """Whether a unit of each side has an ideal time: without peaks none has."""
    return all(map(_has_ideal, (units.dense, units.pruned)))


def _has_ideal(side: UnitSums) -> bool:
    return bool((side.present & np.isfinite(side.ideal).all(axis=1)).any())


def without_roofline(rows: list[Row], ladder: Ladder) -> tuple[list[Row], Ladder]:
    """Rows of the roofline and of tiles as unknown, and the ladder without its roofline. They fell
    back to the ratio of FLOPs, so that they are 0 and the sum is what it was."""
    known = [Row(row=row.row, ns=None) if row.row in _BY_PEAKS else row for row in rows]
    return known, msgspec.structs.replace(
        ladder, roofline=None, roofline_ci95=None, share_of_bound=None, share_of_bound_ci95=None
    )
