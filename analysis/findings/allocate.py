"""The `allocate` command that a finding leads to where it advises to prune differently.

In: a Context. Out: an Allocation. There is none where no such command can be given: only runs of
our own know the layers of their kernels, and `allocate` cuts no experts.
"""

from __future__ import annotations

import polars as pl

from prunescope.analysis.findings.context import Context
from prunescope.analysis.ledger.experts import EXPERTS
from prunescope.analysis.schema.report import Allocation
from prunescope.taxonomy.plan import PHASES
from prunescope.taxonomy.runs.run import RECORDER
from prunescope.taxonomy.scrub import scrub


def allocation(c: Context) -> Allocation | None:
    """Return the allocation for the promised speedup; None where none can reach it.

    Dropping layers alone reaches at most the dense step over its part outside of all layers and
    their mean, as one layer has to stay. Equal layers cost the same, and a single one may have been
    disturbed or have few known kernels. Of times that are no evidence there is no such limit.
    """
    kernels, ladder = c.baseline_kernels, c.phase.ladder
    if c.baseline_phase_run is None or kernels is None or ladder is None or c.name not in PHASES:
        return None
    if (kernels.frame["role"] == EXPERTS).any():
        return None
    took = pl.col("busy") + pl.col("gap")
    by_layer = kernels.frame.group_by("layer").agg(took.sum().alias("ns"))
    outside = int(by_layer.filter(pl.col("layer").is_null())["ns"].sum())
    layers = by_layer.filter(pl.col("layer").is_not_null())["ns"]
    inside, promised = int(layers.sum()), ladder.nominal or ladder.flop
    if not outside or not inside or not promised or promised <= 1:
        return None  # nothing is known to lie in a layer, or outside of one
    most = (outside + inside) / (outside + inside / len(layers))
    if promised >= most and not c.is_disturbed:
        return None
    run = c.baseline_side.run if c.baseline_side is not None else None
    known = run.model if run is not None else None
    # The recorder knows no more than the class of a model, by which none can be loaded.
    named = known is not None and known.source != RECORDER and known.id
    return Allocation(
        model=scrub(str(named)) if named else None, speedup=round(promised, 2), phase=c.name
    )
