"""A forward pass that is computed again in the backward pass (gradient checkpointing).

In: a Context, or the kernels of a side. Out: Found, or None.
"""

from __future__ import annotations

import polars as pl

from prunescope.analysis.findings.context import Context
from prunescope.analysis.findings.registry import Found, finding
from prunescope.analysis.kernels.columns import is_one_of
from prunescope.analysis.kernels.frame import ATTENTION, Kernels
from prunescope.taxonomy.roles import BACKWARD
from prunescope.taxonomy.words import shortened

WITHOUT = (
    "turn gradient checkpointing off, or on in both runs (it trades time for memory, and no "
    "pruning removes it)"
)
_BACKWARD_OP = "backward|bwd"


@finding("recomputed-forward", "warning")
def recomputed_forward(c: Context) -> Found | None:
    """The backward pass computes forward ops again."""
    if not is_recomputed(c):
        return None
    calls = recomputed(c.kernels)
    names = calls["op"].drop_nulls().unique().sort().to_list()
    often = len(calls) / c.kernels.num_steps
    return Found(
        text="the backward pass computes forward ops again: attention runs forward in it, "
        f"{often:,.4g} × a step",
        evidence=[shortened(name) for name in names[:3]],
        change=WITHOUT,
    )


def is_recomputed(c: Context) -> bool:
    """Whether the backward pass attends forward; of a pair, whether that of the dense step does
    not."""
    dense = c.baseline_kernels
    return len(recomputed(c.kernels)) > 0 and (dense is None or not len(recomputed(dense)))


def recomputed(kernels: Kernels) -> pl.DataFrame:
    """The calls of fused attention in the backward pass that compute no gradient. (A forward that
    has no backward pass, of frozen layers or of a teacher, is in none.)"""
    frame = kernels.frame
    backward = [role for role in kernels.values("role") if role.endswith(BACKWARD)]
    attends = (frame["class"] == ATTENTION) & frame["carries_work"]
    rows = frame[["op", "name"]].filter(attends & is_one_of(frame["role"], backward))
    op = pl.coalesce("op", "name").str.to_lowercase()
    return rows if rows.is_empty() else rows.filter(op.str.contains(_BACKWARD_OP).not_())
