"""Expert parallelism: each device holds some of a layer's experts, whole, and serves all tokens.

A forward of one device, and that of the tokens of all devices, give the forward of the device whose
experts get most tokens, and what it exchanges. Devices share all other layers (tensor parallelism,
in side.py), or each has sequences of its own: then every token goes to the devices of its experts
and back.
"""

from __future__ import annotations

import math

from msgspec.structs import replace

from prunescope.analysis.predict.forward import Forward
from prunescope.taxonomy.expert_routing import fullest_rank
from prunescope.taxonomy.gemm import Gemm
from prunescope.taxonomy.plan import Op

EXPERTS = ("experts", "experts.gate", "experts.up", "experts.down", "experts.activation")


def is_expert(op: Op) -> bool:
    """Return whether an op belongs to the routed experts."""
    return op.name in EXPERTS


def share_experts(own: Forward, everyone: Forward, devices: int) -> Forward:
    """Return `own` with the experts of the fullest of `devices`.

    `everyone` is the forward of the tokens of all devices, which is `own` where the devices share
    their tokens. The device holds ⌈E/n⌉ of E experts, and reads that share of those that get a
    token; its rows are E[max]/mean times 1/n of all.
    """
    shape = everyone.plans[0].shape
    held = math.ceil(shape.experts.count / devices) / shape.experts.count
    fullest = fullest_rank(
        everyone.work.routing,
        everyone.work.phase,
        experts=shape.experts.count,
        per_token=shape.experts.per_token,
        tokens=everyone.work.rows,
        ranks=devices,
    )
    parts = [
        _part_of_device(shared, rows=fullest / devices, held=held) if is_expert(shared) else op
        for op, shared in zip(own.ops, everyone.ops, strict=True)
    ]
    resident = parts
    if own.resident != own.ops:
        resident = [_scale_weights(op, held) if is_expert(op) else op for op in own.resident]
    return replace(
        own,
        ops=tuple(parts),
        bounded=tuple(op for op in parts if op.bounded),
        resident=tuple(resident),
        allreduces=own.allreduces if own is everyone else tuple(_exchanges(own, fullest)),
        memo={},
    )


def _part_of_device(op: Op, *, rows: float, held: float) -> Op:
    """Return an op with a device's share of the rows and of the experts."""
    gemms = []
    for gemm in op.gemms:
        batch = max(1, round(gemm.batch * held))
        m = max(1, round(gemm.m * gemm.batch * rows / batch))
        gemms.append(Gemm(m, gemm.n, gemm.k, batch))
    return replace(
        _scale_weights(op, held),
        experts=op.experts * held,
        gemms=tuple(gemms),
        flop=op.flop * rows,
        bytes=(op.bytes - op.weight_bytes) * rows + op.weight_bytes * held,
    )


def _scale_weights(op: Op, held: float) -> Op:
    """Return an op with a share of its weights."""
    return replace(
        op,
        weight_bytes=op.weight_bytes * held,
        parameters=op.parameters * held,
        stored_bytes=op.stored_bytes * held,
    )


def _exchanges(own: Forward, fullest: float) -> list[tuple[float, float]]:
    """Return (exchanges, bytes) in the form of a sum over devices.

    Such a sum counts 2(n − 1)/n of the bytes: each token goes to k experts and comes back, which is
    two exchanges of half of that.
    """
    shape = own.plans[0].shape
    size = own.work.rows * shape.experts.per_token * shape.hidden * own.work.itemsize
    layers = sum(op.layers for op in own.ops if op.name == "experts.activation")
    return [(2 * layers, size * fullest / 2)]
