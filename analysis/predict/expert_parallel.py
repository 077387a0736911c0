"""Expert parallelism: each device holds some of a layer's experts, whole, and serves all tokens.

In: a forward of one device, and that of the tokens of all of them. Out: the forward of the device
whose experts get most tokens, and what it exchanges. Devices share all other layers (tensor
parallelism, in side.py), or each has sequences of its own: then every token goes to the devices of
its experts and back.
"""

from __future__ import annotations

import math
from dataclasses import replace

from prunescope.analysis.predict.forward import Forward
from prunescope.taxonomy.expert_routing import fullest_rank
from prunescope.taxonomy.gemm import Gemm
from prunescope.taxonomy.plan import Op

EXPERTS = ("experts", "experts.gate", "experts.up", "experts.down", "experts.activation")


def is_expert(op: Op) -> bool:
    """Whether an op belongs to the routed experts."""
    return op.name in EXPERTS


def expert_parallel(own: Forward, everyone: Forward, devices: int) -> Forward:
    """`own` with the part of the fullest of `devices` in the experts of `everyone`'s forward, which
    is `own` where the devices share their tokens.

    The device holds ⌈E/n⌉ of E experts, and reads that share of those that get a token; its rows
    are E[max]/mean times 1/n of all.
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
        _of_device(there, rows=fullest / devices, held=held) if is_expert(there) else here
        for here, there in zip(own.ops, everyone.ops, strict=True)
    ]
    same = own.resident == own.ops
    resident = [_held(op, held) if is_expert(op) else op for op in own.resident]
    return replace(
        own,
        ops=tuple(parts),
        bounded=tuple(op for op in parts if op.bounded),
        resident=tuple(parts) if same else tuple(resident),
        allreduces=own.allreduces if own is everyone else tuple(_sent(own, fullest)),
        memo={},
    )


def _of_device(op: Op, *, rows: float, held: float) -> Op:
    """Its share of the rows and of the experts."""
    gemms = tuple(
        Gemm(
            max(1, round(gemm.m * gemm.batch * rows / max(1, round(gemm.batch * held)))),
            gemm.n,
            gemm.k,
            max(1, round(gemm.batch * held)),
        )
        for gemm in op.gemms
    )
    return replace(
        _held(op, held),
        experts=op.experts * held,
        gemms=gemms,
        flop=op.flop * rows,
        bytes=(op.bytes - op.weight_bytes) * rows + op.weight_bytes * held,
    )


def _held(op: Op, held: float) -> Op:
    return replace(
        op,
        weight_bytes=op.weight_bytes * held,
        parameters=op.parameters * held,
        stored_bytes=op.stored_bytes * held,
    )


def _sent(own: Forward, fullest: float) -> list[tuple[float, float]]:
    """(exchanges, bytes) as a sum over devices counts them, 2(n − 1)/n of the bytes: each token
    goes to k experts and comes back, two exchanges of half of that."""
    shape = own.plans[0].shape
    size = own.work.rows * shape.experts.per_token * shape.hidden * own.work.itemsize
    layers = sum(op.layers for op in own.ops if op.name == "experts.activation")
    return [(2 * layers, size * fullest / 2)]
