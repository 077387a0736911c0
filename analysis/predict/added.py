"""The kernels that only a pruned model runs, counted from the structure of its ops.

In: the pruned side. Out: kernels a forward, and ns of the bytes that they move. A routed sublayer
gathers its rows and scatters them back; a 2:4 GEMM converts layouts where its library makes its
caller do so; an estimated attention pools, scores and picks; attention on gathered rows passes its
cache once more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from prunescope.analysis.predict.constants import KERNELS, Constants
from prunescope.analysis.predict.side import PredictedSide
from prunescope.taxonomy.plan import Op

_ROUTE = 2  # gather and scatter
_LAYOUT = 2  # into the layout of the sparse kernel and out of it
_ROW_MULTIPLE = 8  # rows of a 2:4 GEMM; one more kernel pads the others
_ESTIMATE = 3  # pooled scores, softmax, top-k


def added_kernels(side: PredictedSide) -> float:
    """Kernels a forward besides the ops themselves. Routers and residual GEMMs are ops."""
    work, total = side.work, 0.0
    sparse = _LAYOUT * _copies(side) + (work.rows % _ROW_MULTIPLE != 0)
    for op in side.bounded:
        if is_router(op):
            total += op.layers * _ROUTE
        elif op.sparse:
            total += op.layers * sparse
        elif op.cls == "attention":
            again = op.rows < 1 and not work.prefill
            total += op.layers * (_ESTIMATE * op.estimated + again)
    return total


def _copies(side: PredictedSide) -> bool:
    return KERNELS[side.setting.kernel]


@dataclass(frozen=True, slots=True)
class Moved:
    """Bytes a forward that added kernels move: streamed, gathered by index, passed over a cache."""

    streamed: float
    gathered: float
    cached: float

    def ns(self, c: Constants, byte_per_s: float) -> float:
        """Their time, at `byte_per_s` of a streaming kernel."""
        total = self.streamed + self.gathered / c.gather_rate + self.cached * c.cache_passes
        return total / byte_per_s * 1e9


def moved(side: PredictedSide) -> Moved:
    """What the added kernels of a forward read and write."""
    work, ops = side.work, side.bounded
    copies, streamed, gathered, cached = _copies(side), 0.0, 0.0, 0.0
    for op in ops:
        if is_router(op):
            # [T, h]: active rows read, written; then their outputs read, added to residual rows
            # read and written.
            rows = work.rows * _active(ops)
            gathered += op.layers * 5 * rows * op.gemms[0].k * work.itemsize
        elif op.sparse and copies:
            gemm = op.gemms[0]  # the output, read and written
            streamed += op.layers * 2 * gemm.batch * gemm.m * gemm.n * work.itemsize
        elif op.cls == "attention":
            if op.estimated and work.prefill:  # queries pooled
                heads = op.gemms[0].batch // work.batch
                streamed += op.layers * work.rows * heads * op.gemms[0].k * work.itemsize
            if op.rows < 1 and not work.prefill:
                cached += op.layers * _cache(op, ops)
    return Moved(streamed, gathered, cached)


def is_router(op: Op) -> bool:
    """Whether pruning put this router in; that of a mixture of experts is the model's own."""
    return op.added and op.role == "router"


def _active(ops: Sequence[Op]) -> float:
    """Share of the rows that a routed sublayer works on."""
    return next((op.rows for op in ops if op.gathered and op.cls == "matmul"), 1.0)


def _cache(op: Op, ops: Sequence[Op]) -> float:
    """Bytes of the whole cache that an attention on a share of the rows reads a part of."""
    return op.kv_read / _active(ops)
