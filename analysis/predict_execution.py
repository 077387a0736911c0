"""Why no run reaches the roofline: named costs of execution, added to it one after the other.

In: the dense and the pruned Side. Out: ns a forward that each term adds on both sides, and the
speed-up with all of them. Every constant names its mechanism and the published figure it is read
from (arXiv 2606.09080: one GPU, CUDA graphs): elsewhere it is an estimate.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from analysis.hardware import Device
from analysis.predict_side import Side
from taxonomy.family import Family
from taxonomy.plan import Op, Workload

# Share of the data sheet's bandwidth that a kernel streams at.
_STREAM = 0.85
# Traffic of the element-wise kernels over that of perfectly fused ones.
_UNFUSED = 2.0
# ns from a kernel's start to its first useful work and from its last to its end.
_RAMP_NS = 2600.0
# ns of idle device between two kernels of a replayed graph.
_LAUNCH_NS = 1700.0
# Time of a 2:4 kernel over half the dense time, and over 9/16 of the dense bytes.
_SPARSE_COMPUTE, _SPARSE_MEMORY = 1.63, 1.25
_TILE_M, _TILE_N = 128, 256

# Kernels of an element-wise role: a norm comes with its residual add.
_KERNELS = {"attn_norm": 2, "mlp_norm": 2, "rope": 1, "activation": 1, "attention": 2}
# Kernels a layer that a family adds besides its GEMMs: mask to index, gather, scatter for each
# sublayer; layout copies around each sparse GEMM; pooling, softmax and top-k of the estimator.
_ADDED_KERNELS = {"dynamic-m": 30, "static-k-24": 11, "dynamic-nk": 3}
_ROUTED = ("q", "attention", "o", "gate", "up", "down", "activation", "mlp_norm", "experts")


@dataclass(frozen=True, slots=True)
class Term:
    """A cost of execution: what causes it, and where its constant comes from."""

    name: str
    mechanism: str
    figure: str


TERMS = (
    Term("achievable", "the best GEMM and the best stream stay below the data sheet",
         "published GEMM ceiling of the device; lm_head in decode, Fig. 2: 1,525 of 1,792 GB/s"),
    Term("tile_wave", "a GEMM computes whole 128 x 256 tiles in whole waves over the SMs",
         "speed-up steps of N-pruned GEMMs"),
    Term("sparse_kernel", "2:4 kernels run below twice the dense rate",
         "Fig. 6, 2:4: 64.11 of 67.32 ms, 413.60 of 464.15 us"),
    Term("elementwise", "element-wise kernels read again what their neighbours wrote",
         "Fig. 2, prefill: 10.8 % of 2.19 s"),
    Term("kernel", "each kernel ramps up and down",
         "Fig. 2, decode: element-wise 3.4 % of 14.97 ms over 6 kernels of 32 layers"),
    Term("launch", "the device idles between kernels", "Fig. 2, decode: graph launch 5.2 %"),
    Term("added", "gather, scatter, layout and estimator kernels of the family",
         "Fig. 6, decode: dynamic M 597.93 of 464.15 us; non-GEMM share of 2:4 +287 %"),
)  # fmt: skip
NAMES = tuple(term.name for term in TERMS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """What the costs of one side depend on besides its ops."""

    side: Side
    device: Device
    dtype: str
    work: Workload
    family: Family | None = None
    sparsity: float = 0


def execution(dense: Scene, pruned: Scene, terms: Collection[str] = NAMES) -> dict[str, Any]:
    """{"terms": [...], "dense_ns", "pruned_ns", "speedup"}: the roofline and the terms, in order,
    sum to the totals."""
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
                "figure": term.figure,
            }
        )
        before = after
    return {
        "terms": rows,
        "dense_ns": before[0],
        "pruned_ns": before[1],
        "speedup": before[0] / before[1],
    }


def speedup(dense: Scene, pruned: Scene, terms: Collection[str] = NAMES) -> float:
    """Dense over pruned with `terms`."""
    return total_ns(dense, terms) / total_ns(pruned, terms)


def total_ns(scene: Scene, active: Collection[str]) -> float:
    """ns a forward with the terms in `active`; the roofline where there are none."""
    total = sum(op.layers * _op_ns(scene, op, active) for op in scene.side.bounded)
    kernels = sum(op.layers * _kernels(scene, op) for op in scene.side.bounded)
    if "added" in active and scene.family:
        layers = max((op.layers for op in scene.side.bounded if op.role == "attn_norm"), default=0)
        extra = _ADDED_KERNELS.get(scene.family.id, 0) * layers * _runs(scene)
        total += extra * (_RAMP_NS + _LAUNCH_NS) + _moved_ns(scene, layers)
    each = _RAMP_NS * ("kernel" in active) + _LAUNCH_NS * ("launch" in active)
    return total + kernels * each


def _op_ns(scene: Scene, op: Op, active: Collection[str]) -> float:
    side = scene.side
    compute, memory = op.flop / side.flop_per_s, op.bytes / side.byte_per_s
    if "tile_wave" in active and op.cls == "matmul" and compute >= memory:
        compute *= _tile_wave(op, scene.device.sm)
    if "achievable" in active:
        reached = scene.device.achievable_flop_per_s.get(scene.dtype, side.flop_per_s)
        compute, memory = compute * side.flop_per_s / reached, memory / _STREAM
    if "elementwise" in active and op.cls == "pointwise":
        memory *= _UNFUSED
    kind = scene.family.id if scene.family else "dense"
    if kind == "static-k-24" and "sparse_kernel" in active and op.group in _SPARSE_GROUPS:
        compute, memory = compute * _SPARSE_COMPUTE, memory * _SPARSE_MEMORY
    return max(compute, memory) * 1e9


_SPARSE_GROUPS = ("qkv", "o", "gate_up", "down")


def _tile_wave(op: Op, sm: int | None) -> float:
    """Computed over useful elements of the output; 1 where the SMs are unknown."""
    gemm = op.gemms[0]
    if not sm:
        return 1.0
    tiles = math.ceil(gemm.m / _TILE_M) * math.ceil(gemm.n / _TILE_N) * gemm.batch
    # Below one wave libraries split K until the SMs are full.
    slots = tiles if tiles < sm else math.ceil(tiles / sm) * sm
    computed = slots * _TILE_M * _TILE_N
    return computed / (gemm.m * gemm.n * gemm.batch)


def _kernels(scene: Scene, op: Op) -> float:
    """Kernels of an op in one layer; a routed op does not run where no token is active."""
    count = _KERNELS.get(op.role, 1)
    return count * _runs(scene) if op.role in _ROUTED else count


def _runs(scene: Scene) -> float:
    if scene.family is None or scene.family.id != "dynamic-m":
        return 1.0
    return float(1 - scene.sparsity**scene.work.rows)


def _moved_ns(scene: Scene, layers: float) -> float:
    """Gather and scatter of the active rows (read and written, twice a sublayer); for 2:4 a layout
    copy of each sparse GEMM's output."""
    side, work = scene.side, scene.work
    kind = scene.family.id if scene.family else "dense"
    elements = 0.0
    if kind == "dynamic-m":
        hidden = next(op.gemms[0].k for op in side.bounded if op.role == "k")
        elements = layers * 2 * 4 * (1 - scene.sparsity) * work.rows * hidden
    elif kind == "static-k-24":
        sparse = [op for op in side.bounded if op.cls == "matmul" and op.group in _SPARSE_GROUPS]
        elements = sum(op.layers * 2 * op.gemms[0].m * op.gemms[0].n for op in sparse)
    return elements * work.itemsize / (side.byte_per_s * _STREAM) * 1e9
