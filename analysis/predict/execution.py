"""Why no run reaches the roofline: named costs of execution, added to it one after the other.

In: the dense and the pruned Side. Out: ns a forward that each term adds on both sides, and the
speed-up with all of them and its range. What a cost needs to know of a family it reads from the
ops of the theory (sparse, gathered, estimated, added): no term knows a family by name.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from prunescope.analysis.device.hardware import Device
from prunescope.analysis.predict.added import added_kernels, added_ns
from prunescope.analysis.predict.constants import DEFAULT, TABLE, Constants, ends
from prunescope.analysis.predict.side import Side
from prunescope.taxonomy.plan import Op, Workload

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """What the costs of one side depend on besides its ops."""

    side: Side
    device: Device
    dtype: str
    work: Workload
    launch: str = "graph"
    constants: Constants = DEFAULT

    def with_constants(self, constants: Constants) -> Scene:
        """The same scene with other constants."""
        return Scene(
            side=self.side,
            device=self.device,
            dtype=self.dtype,
            work=self.work,
            launch=self.launch,
            constants=constants,
        )


def execution(dense: Scene, pruned: Scene, terms: Collection[str] = NAMES) -> dict[str, Any]:
    """{"terms", "dense_ns", "pruned_ns", "speedup", "range", "guessed"}: the roofline and the
    terms, in order, sum to the totals."""
    rows = []
    active: set[str] = set()
    before = (dense.side.ns, pruned.side.ns)
    for term in TERMS:
        if term.name not in terms:
            continue
        active.add(term.name)
        after = (total_ns(dense, active), total_ns(pruned, active))
        rows.append(
            {
                "name": term.name,
                "dense_ns": after[0] - before[0],
                "pruned_ns": after[1] - before[1],
                "mechanism": term.mechanism,
                "figure": "; ".join(c.figure for c in TABLE.values() if c.term == term.name)
                or "shapes and SMs alone",
            }
        )
        before = after
    guessed = _guessed(dense, pruned, terms)
    return {
        "launch": dense.launch,
        "terms": rows,
        "dense_ns": before[0],
        "pruned_ns": before[1],
        "speedup": before[0] / before[1],
        "range": _range(before[0] / before[1], guessed),
        "guessed": guessed,
    }


def speedup(dense: Scene, pruned: Scene, terms: Collection[str] = NAMES) -> float:
    """Dense over pruned with `terms`."""
    return total_ns(dense, terms) / total_ns(pruned, terms)


def _guessed(dense: Scene, pruned: Scene, terms: Collection[str]) -> list[dict[str, Any]]:
    """The speed-up at both ends of each constant that moves it, the largest effect first."""
    found = []
    for name, low, high in ends(frozenset(terms)):
        there = [
            speedup(dense.with_constants(c), pruned.with_constants(c), terms) for c in (low, high)
        ]
        if max(there) - min(there) > 1e-9:
            row = TABLE[name]
            found.append(
                {
                    "name": name,
                    "term": row.term,
                    "value": row.value,
                    "from": row.low,
                    "to": row.high,
                    "unit": row.unit,
                    "speedup": [min(there), max(there)],
                }
            )
    return sorted(found, key=lambda row: row["speedup"][0] - row["speedup"][1])


def _range(value: float, guessed: list[dict[str, Any]]) -> list[float]:
    """Guesses are independent: their effects add as squares, each end by itself."""
    below = sum(min(0.0, row["speedup"][0] - value) ** 2 for row in guessed)
    above = sum(max(0.0, row["speedup"][1] - value) ** 2 for row in guessed)
    return [max(0.0, value - math.sqrt(below)), value + math.sqrt(above)]


def total_ns(scene: Scene, active: Collection[str]) -> float:
    """ns a forward with the terms in `active`; the roofline where there are none."""
    ops, c = scene.side.bounded, scene.constants
    total = sum(op.layers * op_ns(scene, op, active) for op in ops)
    kernels = kernels_of(ops)
    if "tile_wave" in active:
        kernels += sum(op.layers * op.runs * _splits_k(scene, op) for op in ops)
    extra = added_kernels(ops, scene.work) if "added" in active else 0.0
    if "added" in active:
        total += added_ns(ops, scene.work, byte_per_s=stream(scene, active), constants=c)
    if "kernel" in active:
        total += (kernels + extra) * c.ramp_ns
    if "launch" not in active:
        return total
    if scene.launch == "graph":
        return total + (kernels + extra) * c.launch_ns
    eager = sum(op.layers * op.runs * _EAGER_KERNELS.get(op.role, 1) for op in ops)
    # Host and device run side by side: whichever is slower sets the pace.
    return max(total, (eager + extra) * c.dispatch_ns)


def kernels_of(ops: Iterable[Op]) -> float:
    """Kernels that the ops start in a forward, over their layers."""
    return sum(op.layers * op.runs * _KERNELS.get(op.role, 1) for op in ops)


def op_ns(scene: Scene, op: Op, active: Collection[str]) -> float:
    """ns of one layer of an op, without the costs of a kernel's start."""
    side, c = scene.side, scene.constants
    compute, memory = op.flop / side.flop_per_s, op.bytes / side.byte_per_s
    if "tile_wave" in active and op.cls == "matmul" and compute >= memory:
        compute *= _tile_wave(op, scene.device.sm)
    if "achievable" in active:
        compute /= gemm_share(scene)
        memory /= c.stream_share
    if "elementwise" in active and op.cls == "pointwise":
        memory *= c.unfused
    if "sparse_kernel" in active and op.sparse:
        compute *= c.sparse_compute
    slower = c.gathered_kernel if "gathered" in active and op.gathered else 1.0
    return max(compute, memory) * slower * 1e9


def gemm_share(scene: Scene) -> float:
    """Share of the peak that the best published GEMM of this device reaches."""
    device = scene.device
    sheet, reached = device.peak(scene.dtype), device.achievable_flop_per_s.get(scene.dtype)
    return reached / sheet if reached and sheet else scene.constants.gemm_share


def stream(scene: Scene, active: Collection[str]) -> float:
    """Byte/s of a kernel that streams."""
    share = scene.constants.stream_share if "achievable" in active else 1.0
    return scene.side.byte_per_s * share


def _tiles(op: Op) -> int:
    gemm = op.gemms[0]
    return math.ceil(gemm.m / _TILE_M) * math.ceil(gemm.n / _TILE_N) * gemm.batch


def _splits_k(scene: Scene, op: Op) -> bool:
    """Whether K is split over idle SMs, which needs one more kernel to add the parts up."""
    sm, side = scene.device.sm, scene.side
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
