"""The time of one op on a device: achievable rates, tiles and waves, sparse and gathered kernels.

In: a side and an Op; the names of the terms that count. Out: its OpCost, and ns of one layer
without what a kernel's start costs; and how many kernels start. What a cost needs to know of a
family it reads from the op (sparse, gathered, estimated, added): nothing here knows a family by
name.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, NamedTuple

from prunescope.analysis.device.hardware import Device
from prunescope.analysis.predict.constants import DEFAULT, SPARSE, Constants, SparseRate
from prunescope.analysis.predict.side import PredictedSide
from prunescope.analysis.predict.silicon import same_silicon
from prunescope.analysis.predict.tiles import Choice, Pace, tile_choices
from prunescope.taxonomy.plan import Op

if TYPE_CHECKING:
    from prunescope.analysis.predict.setting import Setting

# Kernels of an op: a norm comes with its residual add, an attention with the cache's update.
KERNELS = {"attn_norm": 2, "mlp_norm": 2, "attention": 2}


class OpCost(NamedTuple):
    """What an op costs before constants: `cuts` are the ways to cut its GEMM, with K whole first,
    and seconds at the peak; `plain` those without tiles, `memory` those at the bandwidth."""

    layers: float
    plain: float
    memory: float
    cuts: tuple[tuple[float, float, Choice], ...]  # seconds, bytes of all partial sums
    pointwise: bool
    sparse: float  # its rate over half of the dense time; 0: no 2:4 GEMM
    gathered: bool


def op_cost(side: PredictedSide, op: Op) -> OpCost:
    """The op_cost of one layer of an op."""
    setting, union = side.setting, op.union
    # Rows that need other inputs each compute what any of them needs.
    plain = (op.gemms[0].flop * union if union else op.flop) / setting.flop_per_s
    cuts: tuple[tuple[float, float, Choice], ...] = ()
    if op.cls == "matmul" and setting.device.sm:
        gemm = op.gemms[0]
        m, n, gathered = gemm.m, gemm.n, op.rows < 1
        spread = (side.work.rows * op.rows * (1 - op.rows)) ** 0.5 if gathered else 0.0
        sums = 8.0 * gemm.batch * m * n  # bytes of a part's float32 sums, written and read
        pace = Pace(
            plain / (setting.ceiling or DEFAULT.gemm_share),
            sums / (setting.byte_per_s * DEFAULT.stream_share),
            (DEFAULT.ramp_ns(setting.device) + DEFAULT.launch_ns) / 1e9,
        )
        k = max(1, round(gemm.k * (union or 1)))
        size = m, n, k, gemm.batch
        choices = tile_choices(size, setting.device.sm, pace, spread, sparse=op.sparse)
        cuts = tuple([(plain * c.factor, sums * c.parts * (c.parts > 1), c) for c in choices])
    return OpCost(
        op.layers,
        plain,
        op.bytes / setting.byte_per_s,
        cuts,
        op.cls == "pointwise",
        sparse_rate(setting.device, setting.kernel).value if op.sparse else 0.0,
        op.rows < 1,
    )


def op_ns(side: PredictedSide, op: Op, active: Collection[str]) -> float:
    """ns of one layer of an op, without the costs of a kernel's start."""
    return op_cost_ns(op_cost(side, op), rates(side.setting, side.setting.constants, active))


class Rates(NamedTuple):
    """Constants as the terms in use let them count. `share`: of the GEMM peak."""

    tiles: bool
    share: float
    stream: float  # of the sheet's bandwidth
    stream_byte_per_s: float
    pointwise: float
    sparse: float
    gathered: float
    start: float  # seconds that one more kernel takes


def rates(setting: Setting, c: Constants, active: Collection[str]) -> Rates:
    """What multiplies the op_cost of each op."""
    reached = "achievable" in active
    share = c.stream_share if reached else 1.0
    ramp = c.ramp_ns(setting.device) if "kernel" in active else 0.0
    start = ramp + (c.launch_ns if "launch" in active else 0.0)
    return Rates(
        "tile_wave" in active,
        (setting.ceiling or c.gemm_share) if reached else 1.0,
        share,
        setting.byte_per_s * share,
        c.unfused if "elementwise" in active else 1.0,
        c.sparse_rate if "sparse_kernel" in active else 0.0,
        c.gathered_kernel if "gathered" in active else 1.0,
        start / 1e9,
    )


def op_cost_ns(one: OpCost, r: Rates) -> float:
    """ns of one layer. Compute pays for whole tiles and waves, and for the sums of a split K,
    before it meets memory: the slower of both sets the time. The kernel that adds up comes after.
    """
    if r.tiles and one.cuts:
        longest = _cheapest(one, r)[0]
    else:
        memory = one.memory / r.stream * (r.pointwise if one.pointwise else 1.0)
        longest = max(one.plain / r.share * (one.sparse * r.sparse or 1.0), memory)
    return longest * (r.gathered if one.gathered else 1.0) * 1e9


def _cheapest(one: OpCost, r: Rates) -> tuple[float, Choice]:
    """Seconds of the cut of a GEMM that takes least time, and that cut."""
    memory, slower = one.memory / r.stream, one.sparse * r.sparse or 1.0
    best, found = math.inf, one.cuts[0][2]
    for seconds, sums, choice in one.cuts:  # what a grid of predictions does most
        compute = seconds / r.share * slower + sums / r.stream_byte_per_s
        took = compute if compute > memory else memory
        if choice.adds_up:
            took += r.start
        if took < best:
            best, found = took, choice
    return best, found


def tile(side: PredictedSide, op: Op) -> Choice | None:
    """How a GEMM is cut; None where the units of the device are not known."""
    r = rates(side.setting, side.setting.constants, ("achievable", "kernel", "launch"))
    return cut_of(op_cost(side, op), r)


def cut_of(one: OpCost, r: Rates) -> Choice | None:
    """The cut of a GEMM that takes least time; None where there is none to choose."""
    return _cheapest(one, r)[1] if one.cuts else None


def kernels_of(ops: Iterable[Op]) -> float:
    """Kernels that the ops start in a forward, over their layers."""
    return sum(op.layers * op.runs * KERNELS.get(op.role, 1) for op in ops)


def sparse_rate(device: Device, library: str) -> SparseRate:
    """The 2:4 rate of a library on this silicon, else that of devices not seen."""
    for row in SPARSE:
        seen = any(same_silicon(device, name) for name in row.devices)
        if library in row.libraries and seen:
            return row
    return SPARSE[-1]
