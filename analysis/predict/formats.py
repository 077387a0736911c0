"""The number formats of a forward whose linear layers alone are in 8 bits or fewer.

A Forward in one format and the formats of a setting give the Forward as engines run it. The linear
layers of the blocks multiply in the narrow format; attention, its cache, lm_head, routers and all
that is element-wise stay in 16 bits, and a kernel before each GEMM quantises its input. Weights
that are stored in fewer bits than they are multiplied in (W4A16) are read as stored.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial

from msgspec.structs import replace

from prunescope.analysis.predict.forward import Forward
from prunescope.taxonomy.plan import Op

WIDE = 2.0  # bytes of a number that stays in 16 bits
# The roles of the GEMMs that formats of 8 bits or fewer replace.
LINEAR = frozenset({
    "q", "k", "v", "q_a", "q_b", "kv_a", "kv_b", "o", "gate", "up", "down", "experts",
    "shared_expert", "mixer_in", "mixer_out",
})  # fmt: skip
# The roles of GEMMs that share their input with one before them.
_SHARED_INPUT = frozenset({"k", "v", "up", "kv_a"})


def with_wide_rest(whole: Forward) -> Forward:
    """Return a forward in a format below 16 bits with all but its linear layers in 16 bits."""
    size = whole.work.itemsize
    if size >= WIDE:
        return whole
    own = whole.work.kv_itemsize is not None  # the cache has a format of its own
    wider = 1.0 if own else WIDE / size
    return whole.with_ops(
        lambda ops: _mixed_ops(ops, size, cache_wider=wider), kv_share=whole.kv_share * wider
    )


def with_stored_itemsize(
    whole: Forward, itemsize: float, *, indices_shrink: bool = True
) -> Forward:
    """Return a forward whose linear layers store a number in `itemsize` bytes.

    `indices_shrink`: whether the 2-bit indices of 2:4 weights take as much less; Marlin keeps them
    whole.
    """
    narrow = partial(
        _stored_op,
        itemsize=itemsize,
        before=whole.work.itemsize,
        indices_shrink=indices_shrink,
    )
    return whole.with_ops(partial(map, narrow))


def _stored_op(op: Op, *, itemsize: float, before: float, indices_shrink: bool) -> Op:
    """Return an op that stores its weights in `itemsize` bytes per number instead of `before`.

    The indices of 2:4 weights are a ninth of what is stored at 16 bits.
    """
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


def _mixed_ops(ops: Iterable[Op], size: float, *, cache_wider: float) -> Iterator[Op]:
    """Yield the ops in 16 bits, except for linear layers.

    Each of these comes behind the kernel that quantises its input, unless it shares its input with
    one before it. `cache_wider`: how many times the bytes of a cached number grow.
    """
    for op in ops:
        if op.role not in LINEAR:
            yield _widen(op, WIDE / size, cache_wider)
            continue
        gemm = op.gemms[0]
        rows = gemm.m * gemm.batch
        if op.role not in _SHARED_INPUT:
            yield _quantising_op(op, rows * gemm.k * (WIDE + size))
        yield replace(op, bytes=op.bytes + (WIDE - size) * rows * gemm.n)


def _widen(op: Op, times: float, cache_times: float) -> Op:
    """Return an op with `times` as many bytes, those of its cache `cache_times` as many."""
    return replace(
        op,
        bytes=(op.bytes - op.kv_read) * times + op.kv_read * cache_times,
        weight_bytes=op.weight_bytes * times,
        stored_bytes=op.stored_bytes * times,
        kv_read=op.kv_read * cache_times,
        kv_write=op.kv_write * cache_times,
    )


def _quantising_op(op: Op, size: float) -> Op:
    """Return the kernel that scales and rounds the input of a GEMM.

    It reads the input in 16 bits and writes it in fewer.
    """
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
