"""Attention that runs as products and a softmax, whose scores go through memory.

In: a Context. Out: a Finding, or None. Times are ns a step, as recorded.
"""

from __future__ import annotations

import polars as pl

from prunescope.analysis.findings.context import Context, ms
from prunescope.analysis.kernels.role import GEMM_KINDS
from prunescope.analysis.schema.report import Finding
from prunescope.taxonomy.roles import BACKWARD
from prunescope.taxonomy.words import percent

_LARGE = 0.2  # of the step
_ROLES = ("attention", f"attention{BACKWARD}")


def unfused_attention(c: Context) -> Finding | None:
    """Products and a softmax of their own take the attention of the step, and much of it."""
    rows = c.pruned.frame.filter(pl.col("role").is_in(_ROLES))
    steps, kind = c.pruned.num_steps, pl.col("kind").cast(pl.String)
    named = pl.when(kind.is_in(GEMM_KINDS)).then(pl.lit("products")).otherwise(kind).alias("part")
    sums = rows.group_by(named).agg(pl.col("busy").sum()).sort("busy", "part", descending=True)
    parts = {part: busy / steps for part, busy in sums.iter_rows() if busy}
    total = sum(parts.values())
    products, softmax = parts.get("products", 0.0), parts.get("softmax", 0.0)
    if not products or not softmax or "attention" in parts:  # those score blocks for a fused one
        return None
    if not c.phase.wall_ns or total < _LARGE * c.phase.wall_ns:
        return None
    return Finding(
        id="unfused-attention",
        severity="warning",
        text=f"attention runs unfused and takes {percent(total / c.phase.wall_ns)} of the step "
        f"({ms(total)}): its scores are written to memory and read again",
        evidence=[f"{name}: {ms(ns)}" for name, ns in parts.items()],
        change=_change(c, rows.filter(kind == "softmax").height / steps),
        predicted_ns=None,
    )


def _change(c: Context, softmaxes: float) -> str:
    """Another path where one function was called for all of them; the function for the others."""
    if c.pruned.sdpa_math >= softmaxes:
        return (
            "scaled_dot_product_attention fell back to its math path: with "
            "torch.nn.attention.sdpa_kernel(SDPBackend.FLASH_ATTENTION) torch warns what keeps it "
            "from a fused kernel (format, head size, mask)"
        )
    return (
        "one fused kernel: attn_implementation='sdpa' in from_pretrained where the model's class "
        "takes it, else torch.nn.functional.scaled_dot_product_attention in its attention"
    )
