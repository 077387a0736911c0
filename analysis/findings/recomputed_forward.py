"""A forward pass that is computed again in the backward pass (gradient checkpointing).

In: a Context, or the kernels of a side. Out: Found, or None.
"""

from __future__ import annotations

import polars as pl

from prunescope.analysis.findings.context import Context
from prunescope.analysis.findings.registry import Found, finding
from prunescope.analysis.kernels.frame import ATTENTION, Kernels

WITHOUT = (
    "turn gradient checkpointing off, or on in both runs (it trades time for memory, and no "
    "pruning removes it)"
)
_AGAIN = 1.01  # forward calls of attention for each backward one; more is no odd call at an end


@finding("recomputed-forward", "warning")
def recomputed_forward(c: Context) -> Found | None:
    """The backward pass computes forward ops again."""
    more = forwards(c.kernels)
    if more is None or not is_recomputed(c):
        return None
    dense = None if c.baseline_kernels is None else forwards(c.baseline_kernels)
    beside = "" if dense is None else f", {dense:.3g} in the dense run"
    return Found(
        text="the backward pass computes forward ops again: attention runs forward "
        f"{more:.3g} times for each time backward{beside}",
        evidence=[f"{more:.3g} forward calls of attention a backward call"],
        change=WITHOUT,
    )


def is_recomputed(c: Context) -> bool:
    """Whether a step runs more forwards of attention than backwards; of a pair, than a dense step
    does."""
    dense = None if c.baseline_kernels is None else forwards(c.baseline_kernels)
    return (forwards(c.kernels) or 0.0) > _AGAIN * (dense or 1.0)


def forwards(kernels: Kernels) -> float | None:
    """Forward calls of fused attention for each backward one; None where one of them is not
    there."""
    rows = kernels.frame.filter((pl.col("class") == ATTENTION) & pl.col("carries_work"))
    op = pl.coalesce("op", "name").str.to_lowercase()
    back = int(rows.select(op.str.contains("backward|bwd").sum()).item() or 0)
    ahead = len(rows) - back
    return ahead / back if ahead and back else None
