"""Whether kernels took as long as those of the dense run beyond doubt, for findings that say so.

In: a Context, and the rows of both frames that are compared. Out: yes or no. Times are ns a step,
as recorded; an interval is over the placements that profiled, or over steps where none is known.
"""

from __future__ import annotations

import numpy as np
import polars as pl

from prunescope.analysis.findings.context import Context
from prunescope.analysis.inputs.side import SidePhase
from prunescope.analysis.ledger.noise import speedup_interval
from prunescope.analysis.ledger.samples import Samples, samples_of


def gains_nothing(c: Context, dense: pl.DataFrame, pruned: pl.DataFrame, *, least: float) -> bool:
    """Whether all of the 95 % interval of pruned ÷ dense time is `least` or more, so that a gain is
    excluded. What has no interval (one step) is taken as it is."""
    if c.twin is None:
        return False
    before, after = _busy(c.twin, dense), _busy(c.own, pruned)
    if before is None or after is None:
        return False  # of one placement, where others were drawn
    if not (before.ns > 0).all() or not (after.ns > 0).all():
        return True  # steps without such a kernel have no ratio
    ratio = speedup_interval(after, before)
    return ratio is None or ratio[0] >= least


def _busy(side: SidePhase, rows: pl.DataFrame) -> Samples | None:
    """Busy ns of these rows in each step, by placement where that of every step is known; None
    where one of several placements alone profiled."""
    sums = np.zeros(side.kernels.num_steps, np.int64)
    by_step = rows.group_by("step").agg(pl.col("busy").sum())
    sums[by_step["step"].to_numpy()] = by_step["busy"].to_numpy()
    placement = samples_of(side.run).placement_of_step(len(sums))
    if placement is None:
        return Samples.of([sums.tolist()])
    if placement[-1] == 0:
        return None
    return Samples.of([sums[placement == one].tolist() for one in np.unique(placement)])
