"""The time of a forward: its roofline, and named costs of execution added one after the other.

In: a Side and the names of the terms that count. Out: ns a forward. What a cost needs to know of a
family it reads from the ops of the theory (sparse, gathered, estimated, added): no term knows a
family by name.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from prunescope.analysis.predict.added import added_kernels, added_ns
from prunescope.analysis.predict.host import eager_bytes, eager_kernels, host_ns
from prunescope.analysis.predict.kernels import kernels_of, op_ns, reductions, stream
from prunescope.analysis.predict.side import Side

LAUNCHES = ("graph", "eager")


@dataclass(frozen=True, slots=True)
class Term:
    """A cost of execution and what causes it."""

    name: str
    mechanism: str


TERMS = (
    Term("achievable", "the best GEMM and the best stream stay below the data sheet"),
    Term("tile_wave", "a GEMM computes whole tiles in whole waves: the best of a few tiles"),
    Term("sparse_kernel", "2:4 kernels run below twice the dense rate"),
    Term("gathered", "kernels on rows chosen at run time run below the rate of contiguous rows"),
    Term("elementwise", "element-wise kernels read again what their neighbours wrote"),
    Term("eager", "modules run op by op: norms in float32, scores in memory, the cache copied"),
    Term("kernel", "each kernel ramps up and down"),
    Term("launch", "the device idles between kernels"),
    Term("added", "kernels that only pruning needs: gather, scatter, layout, estimator, cache"),
)
NAMES = tuple(term.name for term in TERMS)


def speedup(dense: Side, pruned: Side, terms: Collection[str] = NAMES) -> float:
    """Dense over pruned with `terms`."""
    return total_ns(dense, terms) / total_ns(pruned, terms)


def total_ns(side: Side, active: Collection[str]) -> float:
    """ns a forward with the terms in `active`; the roofline where there are none."""
    setting, ops = side.setting, side.bounded
    c, eager = setting.constants, setting.launch == "eager"
    total = sum(op.layers * op_ns(side, op, active) for op in ops)
    if "eager" in active and eager:
        rate = stream(side, active)
        total += sum(op.layers * eager_bytes(side, op) for op in ops) / rate * 1e9
    extra = added_kernels(side) if "added" in active else 0.0
    if "added" in active:
        total += added_ns(side, byte_per_s=stream(side, active))
    kernels = eager_kernels(side) if eager and "eager" in active else kernels_of(ops)
    if "tile_wave" in active:
        kernels += reductions(side)
    if "kernel" in active:
        total += (kernels + extra) * c.ramp_ns(setting.device)
    if "launch" not in active:
        return total
    total += (kernels + extra) * c.launch_ns
    # Host and device run side by side: whichever is slower sets the pace.
    return max(total, host_ns(side, extra)) if eager else total
