"""The time of an op on a device whose times `prunescope calibrate` measured by size.

A side and an Op give the ns of one layer, as eager modules run it: its GEMMs at their own sizes,
and its element-wise ops by the bytes of each, without the calls of the ops. These times take the
place of peak times efficiency and of the traffic of a stream.
"""

from __future__ import annotations

from prunescope.analysis.predict.eager_modules import eager_bytes, eager_op, kv_expansions
from prunescope.analysis.predict.side import PredictedSide
from prunescope.taxonomy.plan import Op


def calibrated_ns(side: PredictedSide, op: Op) -> float | None:
    """Return the ns of one layer of an op; None where nothing measured fits it.

    Nothing fits on a device that was not calibrated, and for convolutions, scans, formats that
    `calibrate` does not multiply in and 2:4 GEMMs.
    """
    if op.cls == "pointwise":
        return _stream_ns(side, op)
    if op.cls == "attention":
        return _attention_ns(side, op)
    return _matmul_ns(side, op) if op.cls == "matmul" and not op.sparse else None


def _matmul_ns(side: PredictedSide, op: Op) -> float | None:
    """Return the ns of a GEMM: its measured time, or that of reading its weights from memory.

    The measurement has its operands in a cache, where a model has its weights only if the cache
    holds all of them. An expert is a GEMM of its own; another batch counts as so many rows.
    """
    times, gemm = side.setting.device.times, op.gemms[0]
    if times is None:
        return None
    calls, rows = (gemm.batch, gemm.m) if op.experts else (1, gemm.batch * gemm.m)
    ns = times.gemm_ns(side.setting.dtype, m=rows, n=gemm.n, k=gemm.k * (op.union or 1))
    if ns is None:
        return None
    ns *= calls * (op.runs if op.union else op.flop / gemm.flop)
    if not _is_cold(side):
        return ns
    return max(ns, times.cold_weight_ns(side.setting.dtype) * op.weight_bytes / side.work.itemsize)


def _attention_ns(side: PredictedSide, op: Op) -> float | None:
    """Return the ns of an attention: its two products, and the ops around them by their bytes."""
    times = side.setting.device.times
    if times is None:
        return None
    products = 0.0
    for gemm in op.gemms:
        ns = times.gemm_ns(side.setting.dtype, m=gemm.batch * gemm.m, n=gemm.n, k=gemm.k)
        if ns is None:
            return None
        products += ns
    computed = op.flop / sum(gemm.flop for gemm in op.gemms)  # causality and chance
    others = eager_op(op, side.setting).launches + kv_expansions(side.setting, op) - len(op.gemms)
    return products * computed + _streams_ns(side, op, max(1, others), eager_bytes(side, op))


def _stream_ns(side: PredictedSide, op: Op) -> float | None:
    """Return the ns of the element-wise ops that an op consists of."""
    if side.setting.device.times is None:
        return None
    moved = op.bytes + eager_bytes(side, op)
    return _streams_ns(side, op, eager_op(op, side.setting).launches, moved)


def _streams_ns(side: PredictedSide, op: Op, launches: int, moved: float) -> float:
    """Return the ns of so many element-wise ops that move `moved` bytes together."""
    times = side.setting.device.times
    assert times is not None
    return op.runs * launches * times.stream_ns(moved / (op.runs or 1) / launches)


def _is_cold(side: PredictedSide) -> bool:
    """Return whether the weights of a forward do not fit into the last cache of its device."""
    cache = side.setting.device.llc_bytes
    return cache is None or side.forward.weight_bytes > cache
