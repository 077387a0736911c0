"""The time of a step by the categories of arXiv 2606.09080, Figs. 2 and 6: plain values, ns."""

from __future__ import annotations

from typing import Annotated

import msgspec

from prunescope.analysis.schema.fields import meaning

# In the order of figures. The paper's Fig. 2 has mlp, qkvo, attention, elementwise, lm_head and
# idle; its Fig. 6 the sum of the GEMMs, attention, cache_update, extra, preprocess, elementwise and
# idle. `other_gemm` and `other` are ours: what neither of its models runs.
CATEGORIES = {
    "mlp": "gate, up, down",
    "qkvo": "q, k, v, o",
    "other_gemm": "other GEMMs",
    "lm_head": "LM head",
    "attention": "attention",
    "cache_update": "cache update",
    "extra": "extra op",
    "preprocess": "kernel preprocess",
    "elementwise": "elementwise",
    "other": "other kernels",
    "idle": "launch and idle",
}
GEMMS = ("mlp", "qkvo", "other_gemm", "lm_head")


class CategoryTime(msgspec.Struct, kw_only=True):
    """A category on both sides, in the time base of the ledger.

    The categories of a side sum to its wall.
    """

    name: Annotated[str, meaning("one of CATEGORIES")]
    dense_ns: float
    dense_ci95: list[float] | None = None
    pruned_ns: float
    pruned_ci95: list[float] | None = None
