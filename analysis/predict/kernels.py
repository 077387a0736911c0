"""The time of one op on a device: achievable rates, tiles and waves, sparse and gathered kernels.

In: a Side and an Op; the names of the terms that count. Out: ns of one layer of the op, without
what a kernel's start costs, and how many kernels start. What a cost needs to know of a family it
reads from the op (sparse, gathered, estimated, added): nothing here knows a family by name.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable

from prunescope.analysis.device.hardware import Device
from prunescope.analysis.predict.constants import SPARSE, SparseRate
from prunescope.analysis.predict.side import Side
from prunescope.analysis.predict.silicon import same_silicon
from prunescope.analysis.predict.tiles import Choice, tile_choices
from prunescope.taxonomy.plan import Op

# Kernels of an op: a norm comes with its residual add, an attention with the cache's update.
KERNELS = {"attn_norm": 2, "mlp_norm": 2, "attention": 2}


def op_ns(side: Side, op: Op, active: Collection[str]) -> float:
    """ns of one layer of an op, without the costs of a kernel's start.

    Compute pays for whole tiles and waves before it meets memory: the slower of both sets the time.
    """
    setting = side.setting
    c = setting.constants
    compute, memory = op.flop / setting.flop_per_s, op.bytes / setting.byte_per_s
    if "tile_wave" in active and op.cls == "matmul":
        compute = _best(side, op, active)[1]
    if "achievable" in active:
        compute /= gemm_share(side)
        memory /= c.stream_share
    if "elementwise" in active and op.cls == "pointwise":
        memory *= c.unfused
    if "sparse_kernel" in active and op.sparse:
        compute *= sparse_rate(setting.device, setting.kernel).value * c.sparse_rate
    slower = c.gathered_kernel if "gathered" in active and op.gathered else 1.0
    return max(compute, memory) * slower * 1e9


def tile(side: Side, op: Op) -> Choice | None:
    """How a GEMM is cut; None where the units of the device are not known."""
    return _best(side, op, ("achievable",))[0] if op.cls == "matmul" else None


def _best(side: Side, op: Op, active: Collection[str]) -> tuple[Choice | None, float]:
    """The cut of a GEMM and the seconds that it computes at the peak.

    The parts of a K write float32 sums and a last kernel reads them: memory that only pays where
    it saves more waves.
    """
    setting, gemm, spread = side.setting, op.gemms[0], 0.0
    seconds = op.flop / setting.flop_per_s
    if not setting.device.sm:
        return None, seconds
    if op.gathered:
        spread = (side.work.rows * op.rows * (1 - op.rows)) ** 0.5
    sizes = (gemm.m, gemm.n, gemm.k, gemm.batch)
    share = gemm_share(side) if "achievable" in active else 1.0
    best: tuple[Choice | None, float] = (None, math.inf)
    for choice in tile_choices(sizes, setting.device.sm, spread):
        sums = 8.0 * choice.parts * gemm.batch * gemm.m * gemm.n if choice.parts > 1 else 0.0
        now = seconds * choice.factor + sums / stream(side, active) * share
        if now < best[1]:
            best = (choice, now)
    return best


def kernels_of(ops: Iterable[Op]) -> float:
    """Kernels that the ops start in a forward, over their layers."""
    return sum(op.layers * op.runs * KERNELS.get(op.role, 1) for op in ops)


def reductions(side: Side) -> float:
    """Kernels a forward that add up the parts of a K that was split, where compute binds."""
    found = 0.0
    for op in side.bounded:
        if op.cls == "matmul" and side.is_compute(op):
            choice = tile(side, op)
            found += op.layers * op.runs * (choice is not None and choice.parts > 1)
    return found


def gemm_share(side: Side) -> float:
    """Share of the peak that the best published GEMM of this silicon reaches."""
    setting = side.setting
    return setting.ceiling or setting.constants.gemm_share


def sparse_rate(device: Device, library: str) -> SparseRate:
    """The 2:4 rate of a library on this silicon, else that of devices not seen."""
    for row in SPARSE:
        seen = any(same_silicon(device, name) for name in row.devices)
        if library in row.libraries and seen:
            return row
    return SPARSE[-1]


def stream(side: Side, active: Collection[str]) -> float:
    """Byte/s of a kernel that streams."""
    share = side.setting.constants.stream_share if "achievable" in active else 1.0
    return side.setting.byte_per_s * share
