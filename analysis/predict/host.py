"""Eager mode: the host dispatches op after op beside the device, and modules run unfused.

In: a side. Out: the ops that the host dispatches for a forward, and what a layer's op moves
beyond its fused kernel. Counted in transformers' Llama: module calls, ops that launch, views.
"""

from __future__ import annotations

from dataclasses import dataclass

from prunescope.analysis.predict.side import PredictedSide
from prunescope.taxonomy.plan import Op


@dataclass(frozen=True, slots=True)
class Eager:
    """One op as eager modules run it: ops that launch a kernel, views, module calls, and its
    traffic over that of the fused kernel."""

    launches: int
    views: int
    modules: int
    traffic: float = 1.0


# A norm: cast, square, mean, eps, rsqrt, product, cast, product; with its residual's sum. 42 bytes
# an element in 16 bit (float32 between), 8 where fused. RoPE, on queries and keys each: product,
# negation, concatenation, product, sum; 18 bytes an element for 4. An activation: 10 for 6.
# Attention: two concatenations into the cache, scores, scale, mask, softmax, cast, values, copy.
_NORM = Eager(9, 0, 1, 42 / 8)
_EAGER = {
    "attn_norm": _NORM,
    "mlp_norm": _NORM,
    "rope": Eager(10, 6, 1, 18 / 4),
    "activation": Eager(2, 0, 1, 10 / 6),
    "attention": Eager(9, 10, 1),
}
_LINEAR, _OTHER = Eager(1, 2, 1), Eager(1, 0, 0)


def host_ops(side: PredictedSide) -> tuple[float, float]:
    """Ops of a forward that launch a kernel, and module calls with half of each view."""
    launches = calls = 0.0
    for op in side.bounded:
        one, times = eager_of(op), op.layers * op.runs
        launches += times * (one.launches + _repeats(side, op))
        calls += times * (one.modules + 0.5 * one.views)
    return launches, calls


def eager_bytes(side: PredictedSide, op: Op) -> float:
    """Bytes that one layer of an op moves beyond its fused kernel.

    Attention in decode copies the cache to append to it, and expands the keys and values of grouped
    queries; in both phases it writes scores b bytes each, scales and masks them, and takes the
    softmax in float32: 8b + 8 bytes a score.
    """
    b = side.work.itemsize
    more = (eager_of(op).traffic - 1) * op.bytes
    if op.cls != "attention":
        return more
    scores = op.gemms[0]
    more += (8 * b + 8) * scores.batch * scores.m * scores.n
    cache = op.kv_read
    if side.work.prefill:
        return more
    more += 2 * cache
    return more + _repeats(side, op) / 2 * (1 + side.setting.shape.group) * cache


def eager_of(op: Op) -> Eager:
    """How eager modules run an op."""
    return _EAGER.get(op.role) or (_LINEAR if op.cls == "matmul" else _OTHER)


def _repeats(side: PredictedSide, op: Op) -> int:
    """Copies of keys and values for the queries that share them."""
    return 2 * (op.cls == "attention" and side.setting.shape.group > 1)
