"""Number formats of a forward whose linear layers alone are in 8 bits or fewer.

In: a Forward in one format, and the formats of a setting. Out: the Forward as engines run it. The
linear layers of the blocks multiply in the narrow format; attention, its cache, lm_head, routers
and all that is element-wise stay in 16 bits, and a kernel before each GEMM quantises its input.
Weights that are stored in fewer bits than they are multiplied in (W4A16) are read as stored.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from prunescope.analysis.predict.forward import Forward
from prunescope.taxonomy.plan import Op

WIDE = 2.0  # bytes of a number that stays in 16 bits
# The GEMMs that formats of 8 bits or fewer replace.
LINEAR = frozenset({
    "q", "k", "v", "q_a", "q_b", "kv_a", "kv_b", "o", "gate", "up", "down", "experts",
    "shared_expert", "mixer_in", "mixer_out",
})  # fmt: skip
# GEMMs that share their input with one before them.
_SHARED_INPUT = frozenset({"k", "v", "up", "kv_a"})


def mixed(whole: Forward) -> Forward:
    """A forward in a format below 16 bits, with everything but its linear layers in 16 bits."""
    size = whole.work.itemsize
    if size >= WIDE:
        return whole
    ops = tuple(_mixed_ops(whole.ops, size))
    kept = ops if whole.resident == whole.ops else tuple(_mixed_ops(whole.resident, size))
    return replace(
        whole,
        ops=ops,
        bounded=tuple(op for op in ops if op.bounded),
        resident=kept,
        kv_share=whole.kv_share * WIDE / size,
        memo={},
    )


def stored_as(whole: Forward, itemsize: float, *, indices_shrink: bool = True) -> Forward:
    """A forward whose linear layers store a number in `itemsize` bytes. `indices_shrink`: whether
    the 2-bit indices of 2:4 weights take as much less; Marlin keeps them whole."""
    size = whole.work.itemsize
    ops = tuple(_stored(op, itemsize, size, indices_shrink=indices_shrink) for op in whole.ops)
    kept = ops
    if whole.resident != whole.ops:
        kept = tuple(
            _stored(op, itemsize, size, indices_shrink=indices_shrink) for op in whole.resident
        )
    return replace(
        whole, ops=ops, bounded=tuple(op for op in ops if op.bounded), resident=kept, memo={}
    )


def _stored(op: Op, itemsize: float, before: float, *, indices_shrink: bool) -> Op:
    """The indices of 2:4 weights are a ninth of what is stored at 16 bits."""
    if op.role not in LINEAR:
        return op
    indices = 1 / (4 * before + 1) if op.sparse and not indices_shrink else 0.0
    share = indices + (1 - indices) * itemsize / before
    return replace(
        op,
        bytes=op.bytes - op.weight_bytes * (1 - share),
        weight_bytes=op.weight_bytes * share,
        stored_bytes=op.stored_bytes * share,
    )


def _mixed_ops(ops: Iterable[Op], size: float) -> Iterator[Op]:
    for op in ops:
        if op.role not in LINEAR:
            yield _widened(op, WIDE / size)
            continue
        gemm = op.gemms[0]
        rows = gemm.m * gemm.batch
        if op.role not in _SHARED_INPUT:
            yield _quantise(op, rows * gemm.k * (WIDE + size))
        yield replace(op, bytes=op.bytes + (WIDE - size) * rows * gemm.n)


def _widened(op: Op, times: float) -> Op:
    return replace(
        op,
        bytes=op.bytes * times,
        weight_bytes=op.weight_bytes * times,
        stored_bytes=op.stored_bytes * times,
        kv_read=op.kv_read * times,
        kv_write=op.kv_write * times,
    )


def _quantise(op: Op, size: float) -> Op:
    """The kernel that scales and rounds the input of a GEMM: read in 16 bits, written in fewer."""
    return Op(
        name=f"{op.name}.quantise",
        role="quantise",
        group="other",
        cls="pointwise",
        layers=op.layers,
        flop=0,
        bytes=size,
        rows=op.rows,
        runs=op.runs,
    )
