"""The kernels that only a pruned model runs, counted from the structure of its ops.

In: the pruned Side. Out: kernels a forward, and ns of the bytes that they move. A routed sublayer
gathers its rows and scatters them back; a 2:4 GEMM converts layouts where its library makes its
caller do so; an estimated attention pools, scores and picks; attention on gathered rows passes its
cache once more.
"""

from __future__ import annotations

from collections.abc import Sequence

from prunescope.analysis.predict.constants import KERNELS
from prunescope.analysis.predict.side import Side
from prunescope.taxonomy.plan import Op

_ROUTE = 2  # gather and scatter
_LAYOUT = 2  # into the layout of the sparse kernel and out of it
_ROW_MULTIPLE = 8  # rows of a 2:4 GEMM; one more kernel pads the others
_ESTIMATE = 3  # pooled scores, softmax, top-k


def added_kernels(side: Side) -> float:
    """Kernels a forward besides the ops themselves. Routers and residual GEMMs are ops."""
    return sum(op.layers * _kernels(side, op) for op in side.bounded)


def _kernels(side: Side, op: Op) -> int:
    work = side.work
    return (
        _ROUTE * is_router(op)
        + (_LAYOUT * _copies(side) + (work.rows % _ROW_MULTIPLE != 0)) * op.sparse
        + _ESTIMATE * op.estimated
        + (op.gathered and op.cls == "attention" and not work.prefill)
    )


def _copies(side: Side) -> bool:
    return KERNELS[side.setting.kernel]


def added_ns(side: Side, *, byte_per_s: float) -> float:
    """ns to move what the added kernels read and write, at `byte_per_s` of a streaming kernel."""
    return sum(added_op_ns(op, side, byte_per_s) for op in side.bounded)


def added_op_ns(op: Op, side: Side, byte_per_s: float) -> float:
    """ns that the kernels added around one op move, over its layers."""
    work, c, ops = side.work, side.setting.constants, side.bounded
    moved = 0.0
    if is_router(op):
        # [T, h]: active rows read, written; then their outputs read, added to residual rows read
        # and written.
        width, rows = op.gemms[0].k, work.rows * _active(ops)
        moved += 5 * rows * width * work.itemsize / c.gather_rate
    if op.sparse and _copies(side):
        gemm = op.gemms[0]
        moved += 2 * gemm.batch * gemm.m * gemm.n * work.itemsize  # the output, read and written
    if op.estimated and work.prefill:
        heads = op.gemms[0].batch // work.batch
        moved += work.rows * heads * op.gemms[0].k * work.itemsize  # queries pooled
    if op.gathered and op.cls == "attention" and not work.prefill:
        moved += c.cache_passes * _cache(op, ops)
    return op.layers * moved / byte_per_s * 1e9


def is_router(op: Op) -> bool:
    """Whether pruning put this router in; that of a mixture of experts is the model's own."""
    return op.added and op.role == "router"


def _active(ops: Sequence[Op]) -> float:
    """Share of the rows that a routed sublayer works on."""
    return next((op.rows for op in ops if op.gathered and op.cls == "matmul"), 1.0)


def _cache(op: Op, ops: Sequence[Op]) -> float:
    """Bytes of the whole cache that an attention on a share of the rows reads a part of."""
    return op.kv_read / _active(ops)
