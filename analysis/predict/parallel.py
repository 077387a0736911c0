"""Tensor parallelism: what one of several devices runs of a forward, and what they exchange.

In: a Forward and the number of devices. Out: a Forward of one device. Rows of q, k, v, gate and up
are split along N, o and down along K, heads, caches and the vocabulary alike (Megatron's way); what
attention and the MLP put out is added up over all devices. Norms, routers and the maps between two
residual bases (SliceGPT) run whole on each.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import groupby

from prunescope.analysis.predict.side import Forward
from prunescope.taxonomy.gemm import Gemm
from prunescope.taxonomy.plan import Op
from prunescope.taxonomy.shape import ModelShape

_ALONG_N = frozenset({"q", "k", "v", "q_b", "kv_b", "gate", "up", "lm_head", "mixer_in"})
_ALONG_K = frozenset({"o", "down", "mixer_out"})
_WITH_WIDTH = frozenset({"rope", "activation", "attention", "conv", "scan", "kv_update"})
_EXPERTS = frozenset({"experts", "shared_expert"})


def of_one(forward: Forward, devices: int, shape: ModelShape) -> Forward:
    """One device's part. Fewer key/value heads than devices stand on several of them, and a latent
    cache on each. An expert's matrices are split as an MLP's; of a pair of low rank the
    factor at the split side is, and the other stands on every device."""
    if devices == 1:
        return forward
    cache = 1.0 if shape.kv_rank is not None else 1 / min(devices, shape.kv_heads)
    ops = tuple(_split_all(forward.ops, devices, cache))
    kept = ops if forward.resident == forward.ops else _split_all(forward.resident, devices, cache)
    left = sum(op.layers * op.stored_bytes for op in kept)
    was = sum(op.layers * op.stored_bytes for op in forward.resident)
    share = left / was if was else 1.0
    return Forward(
        work=forward.work,
        ops=ops,
        bounded=tuple(op for op in ops if op.bounded),
        resident=forward.resident,
        plans=forward.plans,
        held=share,
        cache=cache,
        exchanged=tuple(_exchanged(forward.ops, forward.work.itemsize)),
    )


def _weights(ops: Iterable[Op]) -> Iterator[list[Op]]:
    """The ops of one weight together: a pair of low rank is two in a row. The same weight in
    another stack of layers comes later, and is another."""
    return (list(group) for _, group in groupby(ops, key=lambda op: op.name))


def _split_all(ops: Iterable[Op], devices: int, cache: float) -> list[Op]:
    found = []
    for parts in _weights(ops):
        for index, op in enumerate(parts):
            first, last = index == 0, index == len(parts) - 1
            if op.role in _WITH_WIDTH:
                found.append(_shrunk(op, devices, cache))
            else:
                found.append(_split(op, devices, first=first, last=last))
    return found


def _split(op: Op, devices: int, *, first: bool, last: bool) -> Op:
    group_k = op.role in _ALONG_K or (op.role in _EXPERTS and op.group == "down")
    group_n = op.role in _ALONG_N or (op.role in _EXPERTS and not group_k)
    if group_k and first:
        return _cut(op, devices, along_k=True)
    if group_n and last:
        return _cut(op, devices, along_k=False)
    return op


def _cut(op: Op, devices: int, *, along_k: bool) -> Op:
    gemm = op.gemms[0]
    n, k = (gemm.n, -(-gemm.k // devices)) if along_k else (-(-gemm.n // devices), gemm.k)
    moved = (op.bytes - op.weight_bytes) * (n + k) / (gemm.n + gemm.k)
    weights = op.weight_bytes / devices
    return replace(
        op,
        gemms=(Gemm(gemm.m, n, k, gemm.batch),),
        flop=op.flop / devices,
        bytes=moved + weights,
        weight_bytes=weights,
        parameters=op.parameters / devices,
        stored_bytes=op.stored_bytes / devices,
    )


def _shrunk(op: Op, devices: int, cache: float) -> Op:
    """Work of a width: its heads or channels; the part of an attention's cache that it reads."""
    gemms = tuple(
        Gemm(g.m, g.n, g.k, max(1, g.batch // devices)) if op.cls == "attention" else g
        for g in op.gemms
    )
    return replace(
        op,
        gemms=gemms,
        flop=op.flop / devices,
        bytes=(op.bytes - op.kv_read) / devices + op.kv_read * cache,
        kv_read=op.kv_read * cache,
        kv_write=op.kv_write * cache,
    )


def _exchanged(ops: tuple[Op, ...], itemsize: float) -> list[tuple[float, float]]:
    """(sublayers, bytes that each adds up over the devices): what the first GEMM split along K puts
    out. Routed experts add up their tokens first."""
    found = []
    for op, *_ in _weights(ops):
        if op.role in _ALONG_K or (op.role == "experts" and op.group == "down"):
            found.append((op.layers * op.runs, op.gemms[0].m * op.gemms[0].n * itemsize))
    return found
