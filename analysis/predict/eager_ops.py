"""An op of the model as eager modules run it: the ops that launch, the calls, the traffic.

A setting and an Op of a forward give an EagerOp, and the bytes that it moves beyond a fused kernel.
"""

from __future__ import annotations

from dataclasses import dataclass

from prunescope.analysis.predict.eager_attention import (
    EAGER_LAUNCHES,
    FUSED_LAUNCHES,
    attention_bytes,
)
from prunescope.analysis.predict.setting import Setting
from prunescope.analysis.predict.side import PredictedSide
from prunescope.taxonomy.plan import Op


@dataclass(frozen=True, slots=True)
class EagerOp:
    """An op as eager modules run it.

    It has ops that launch a kernel, views, module calls, and its traffic over that of the fused
    kernel.
    """

    launches: int
    views: int
    modules: int
    traffic: float = 1.0


# Counted in transformers' Llama. A norm has cast, square, mean, eps, rsqrt, product, cast, product
# and the sum of its residual: 42 bytes per element in 16 bits (float32 in between), 8 where fused.
# RoPE has, on queries and on keys, product, negation, concatenation, product and sum: 18 bytes per
# element for 4. An activation moves 10 for 6. Attention has two concatenations into the cache,
# scores, scale, mask, softmax, cast, values and a copy.
_NORM = EagerOp(9, 0, 1, 42 / 8)
_EAGER = {
    "attn_norm": _NORM,
    "mlp_norm": _NORM,
    "rope": EagerOp(10, 6, 1, 18 / 4),
    "activation": EagerOp(2, 0, 1, 10 / 6),
    "attention": EagerOp(EAGER_LAUNCHES, 10, 1),
}
# An expert in a loop calls its linear layers and its activation. It also finds its tokens (a number
# is compared, four are read back, a mask is searched), gathers their rows and gates, multiplies by
# the gates and adds to the output (Qwen3MoeExperts.forward, by the ops of a profile).
_EXPERT_ACTIVATION = EagerOp(2 + 10, 8, 2, 10 / 6)
_FUSED_ATTENTION = EagerOp(FUSED_LAUNCHES, 6, 1)
_LINEAR, _OTHER = EagerOp(1, 2, 1), EagerOp(1, 0, 0)


def eager_op(op: Op, setting: Setting) -> EagerOp:
    """Return an op as eager modules run it."""
    if op.cls == "attention" and setting.attn != "eager":
        return _FUSED_ATTENTION
    if op.experts and op.role == "activation" and setting.loops_experts:
        return _EXPERT_ACTIVATION
    return _EAGER.get(op.role) or (_LINEAR if op.cls == "matmul" else _OTHER)


def eager_bytes(side: PredictedSide, op: Op) -> float:
    """Return the bytes that one layer of an op moves beyond its fused kernel."""
    more = (eager_op(op, side.setting).traffic - 1) * op.bytes
    return more + attention_bytes(side, op) if op.cls == "attention" else more
