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
    steps, kind = c.pruned.num_steps, pl.col("kind")
    parts = {
        name: int(rows.filter(which)["busy"].sum()) / steps
        for name, which in (
            ("products", kind.is_in(GEMM_KINDS)),
            ("softmax", kind == "softmax"),
            ("fused kernels", kind == "attention"),
            ("copies, masks and other work", ~kind.is_in([*GEMM_KINDS, "softmax", "attention"])),
        )
    }
    apart = parts["products"] + parts["softmax"]
    total = sum(parts.values())
    if not parts["products"] or not parts["softmax"] or apart < parts["fused kernels"]:
        return None
    if not c.phase.wall_ns or total < _LARGE * c.phase.wall_ns:
        return None
    return Finding(
        id="unfused-attention",
        severity="warning",
        text=f"attention runs unfused and takes {percent(total / c.phase.wall_ns)} of the step "
        f"({ms(total)}): its scores are written to memory and read again",
        evidence=[f"{name}: {ms(ns)}" for name, ns in parts.items() if ns],
        change=_change(c),
        predicted_ns=None,
    )


def _change(c: Context) -> str:
    """Another path for those who called one function; the function for the others."""
    if c.pruned.sdpa_math:
        return (
            "scaled_dot_product_attention fell back to its math path: with "
            "torch.nn.attention.sdpa_kernel(SDPBackend.FLASH_ATTENTION) torch warns what keeps it "
            "from a fused kernel (format, head size, mask)"
        )
    return (
        "one fused kernel: attn_implementation='sdpa' in from_pretrained, or "
        "torch.nn.functional.scaled_dot_product_attention"
    )
