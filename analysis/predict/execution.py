"""Why no run reaches the roofline: named costs of execution, added to it one after the other.

In: the dense and the pruned Side. Out: ns a forward that each term adds on both sides, and the
speed-up with all of them and its range. What a cost needs to know of a family it reads from the
ops of the theory (sparse, gathered, estimated, added): no term knows a family by name.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from prunescope.analysis.predict.added import added_kernels, added_ns
from prunescope.analysis.predict.constants import TABLE, ends
from prunescope.analysis.predict.side import Side
from prunescope.analysis.schema.prediction import Execution, Guess, TermRow
from prunescope.taxonomy.plan import Op

LAUNCHES = ("graph", "eager")
_TILE_M, _TILE_N, _MMA_K = 128, 256, 16
# Kernels of an op: a norm comes with its residual add, an attention with the cache's update.
_KERNELS = {"attn_norm": 2, "mlp_norm": 2, "attention": 2}
# Those of transformers' eager modules: casts, mean, rsqrt and products of a norm and its residual;
# products, halves and concatenation of RoPE on queries and keys; transposes around attention.
_EAGER_KERNELS = {"attn_norm": 8, "mlp_norm": 8, "rope": 12, "activation": 2, "attention": 4}


@dataclass(frozen=True, slots=True)
class Term:
    """A cost of execution and what causes it."""

    name: str
    mechanism: str


TERMS = (
    Term("achievable", "the best GEMM and the best stream stay below the data sheet"),
    Term("tile_wave", "a GEMM computes whole 128 x 256 tiles in whole waves, K in steps of 16"),
    Term("sparse_kernel", "2:4 kernels run below twice the dense rate"),
    Term("gathered", "kernels on rows chosen at run time run below the rate of contiguous rows"),
    Term("elementwise", "element-wise kernels read again what their neighbours wrote"),
    Term("kernel", "each kernel ramps up and down"),
    Term("launch", "the device idles between kernels"),
    Term("added", "kernels that only pruning needs: gather, scatter, layout, estimator, cache"),
)
NAMES = tuple(term.name for term in TERMS)


def execution(dense: Side, pruned: Side, terms: Collection[str] = NAMES) -> Execution:
    """The expected time of both sides, term by term, and the speed-up with its range."""
    rows = []
    active: set[str] = set()
    before = (dense.ns, pruned.ns)
    for term in TERMS:
        if term.name not in terms:
            continue
        active.add(term.name)
        after = (total_ns(dense, active), total_ns(pruned, active))
        rows.append(
            TermRow(
                name=term.name,
                dense_ns=after[0] - before[0],
                pruned_ns=after[1] - before[1],
                mechanism=term.mechanism,
                figure="; ".join(c.figure for c in TABLE.values() if c.term == term.name)
                or "shapes and SMs alone",
            )
        )
        before = after
    guessed = _guessed(dense, pruned, terms)
    return Execution(
        launch=dense.setting.launch,
        terms=rows,
        dense_ns=before[0],
        pruned_ns=before[1],
        speedup=before[0] / before[1],
        range=_range(before[0] / before[1], guessed),
        guessed=guessed,
    )


def speedup(dense: Side, pruned: Side, terms: Collection[str] = NAMES) -> float:
    """Dense over pruned with `terms`."""
    return total_ns(dense, terms) / total_ns(pruned, terms)


def _guessed(dense: Side, pruned: Side, terms: Collection[str]) -> list[Guess]:
    """The speed-up at both ends of each constant that moves it, the largest effect first."""
    found = []
    for name, low, high in ends(frozenset(terms)):
        there = [
            speedup(dense.with_constants(c), pruned.with_constants(c), terms) for c in (low, high)
        ]
        if max(there) - min(there) > 1e-9:
            row = TABLE[name]
            found.append(
                Guess(
                    name=name,
                    term=row.term,
                    value=row.value,
                    low=row.low,
                    high=row.high,
                    unit=row.unit,
                    speedup=[min(there), max(there)],
                )
            )
    return sorted(found, key=lambda row: row.speedup[0] - row.speedup[1])


def _range(value: float, guessed: list[Guess]) -> list[float]:
    """Guesses are independent: their effects add as squares, each end by itself."""
    below = sum(min(0.0, row.speedup[0] - value) ** 2 for row in guessed)
    above = sum(max(0.0, row.speedup[1] - value) ** 2 for row in guessed)
    return [max(0.0, value - math.sqrt(below)), value + math.sqrt(above)]


def total_ns(side: Side, active: Collection[str]) -> float:
    """ns a forward with the terms in `active`; the roofline where there are none."""
    ops, c = side.bounded, side.setting.constants
    total = sum(op.layers * op_ns(side, op, active) for op in ops)
    kernels = kernels_of(ops)
    if "tile_wave" in active:
        kernels += sum(op.layers * op.runs * _splits_k(side, op) for op in ops)
    extra = added_kernels(ops, side.work) if "added" in active else 0.0
    if "added" in active:
        total += added_ns(ops, side.work, byte_per_s=stream(side, active), constants=c)
    if "kernel" in active:
        total += (kernels + extra) * c.ramp_ns
    if "launch" not in active:
        return total
    if side.setting.launch == "graph":
        return total + (kernels + extra) * c.launch_ns
    eager = sum(op.layers * op.runs * _EAGER_KERNELS.get(op.role, 1) for op in ops)
    # Host and device run side by side: whichever is slower sets the pace.
    return max(total, (eager + extra) * c.dispatch_ns)


def kernels_of(ops: Iterable[Op]) -> float:
    """Kernels that the ops start in a forward, over their layers."""
    return sum(op.layers * op.runs * _KERNELS.get(op.role, 1) for op in ops)


def op_ns(side: Side, op: Op, active: Collection[str]) -> float:
    """ns of one layer of an op, without the costs of a kernel's start."""
    setting, c = side.setting, side.setting.constants
    compute, memory = op.flop / setting.flop_per_s, op.bytes / setting.byte_per_s
    if "tile_wave" in active and op.cls == "matmul" and compute >= memory:
        compute *= _tile_wave(op, setting.device.sm)
    if "achievable" in active:
        compute /= gemm_share(side)
        memory /= c.stream_share
    if "elementwise" in active and op.cls == "pointwise":
        memory *= c.unfused
    if "sparse_kernel" in active and op.sparse:
        compute *= c.sparse_compute
    slower = c.gathered_kernel if "gathered" in active and op.gathered else 1.0
    return max(compute, memory) * slower * 1e9


def gemm_share(side: Side) -> float:
    """Share of the peak that the best published GEMM of this device reaches."""
    device, dtype = side.setting.device, side.setting.dtype
    sheet, reached = device.peak(dtype), device.achievable_flop_per_s.get(dtype)
    return reached / sheet if reached and sheet else side.setting.constants.gemm_share


def stream(side: Side, active: Collection[str]) -> float:
    """Byte/s of a kernel that streams."""
    share = side.setting.constants.stream_share if "achievable" in active else 1.0
    return side.setting.byte_per_s * share


def _tiles(op: Op) -> int:
    gemm = op.gemms[0]
    return math.ceil(gemm.m / _TILE_M) * math.ceil(gemm.n / _TILE_N) * gemm.batch


def _splits_k(side: Side, op: Op) -> bool:
    """Whether K is split over idle SMs, which needs one more kernel to add the parts up."""
    sm = side.setting.device.sm
    return op.cls == "matmul" and side.is_compute(op) and bool(sm) and 2 * _tiles(op) <= (sm or 0)


def _tile_wave(op: Op, sm: int | None) -> float:
    """Computed over useful work; 1 where the SMs are unknown."""
    gemm = op.gemms[0]
    if not sm:
        return 1.0
    tiles = _tiles(op)
    # Below one wave libraries split K until the SMs are full.
    slots = tiles if tiles < sm else math.ceil(tiles / sm) * sm
    computed = slots * _TILE_M * _TILE_N * math.ceil(gemm.k / _MMA_K) * _MMA_K
    return computed / (gemm.m * gemm.n * gemm.k * gemm.batch)
