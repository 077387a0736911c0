"""A model as eager modules run it: ops that launch, calls, traffic, copies of the cache.

A setting says how attention is run (`--attn`) and what holds its keys (`--cache`); an Op gives the
ops of a layer and the bytes beyond those of one fused kernel. Attention is counted in transformers
4.57:

- `eager_attention_forward` (models/llama/modeling_llama.py) expands grouped keys and values
  (`repeat_kv`), and writes scores, scales and masks them, takes their softmax in float32.
- `sdpa_attention_forward` (integrations/sdpa_attention.py) expands them too, unless there is no
  mask (`use_gqa_in_sdpa`), and runs one fused kernel. From 5.24 on at the latest it packs the
  queries of a group instead where each sequence has one (`pack_gqa`), and expands none in decode.
- `flash_attention_forward` (integrations/flash_attention.py) hands grouped heads to a kernel that
  reads them as they are.
- `DynamicLayer.update` (cache_utils.py) concatenates: it reads all keys and values and writes them
  anew. `StaticLayer.update` writes the new ones in place (`index_copy_`).
"""

from __future__ import annotations

from msgspec import Struct

from prunescope.analysis.predict.setting import Setting
from prunescope.analysis.predict.side import PredictedSide
from prunescope.taxonomy.plan import Op

# Ops of an attention that launch: with a dynamic cache two concatenations; scores, scale, mask,
# softmax, cast, values and a copy, or the fused kernel and a copy. A static cache has two copies
# into place instead of the concatenations.
EAGER_LAUNCHES, FUSED_LAUNCHES = 9, 4


def has_scores_in_memory(setting: Setting) -> bool:
    """Return whether scores are written out: by eager modules without a fused kernel."""
    return setting.launch == "eager" and setting.attn == "eager"


def kv_expansions(setting: Setting, op: Op) -> int:
    """Count the ops that expand keys and values for the queries that share them."""
    expands = op.cls == "attention" and setting.attn != "flash"
    return 2 if expands and setting.shape.attention.group > 1 else 0


def attention_bytes(side: PredictedSide, op: Op) -> float:
    """Return the bytes that a layer of attention moves beyond its fused kernel.

    Scores in memory: b bytes each, scaled and masked, and a softmax in float32, 8b + 8 together. In
    decode a dynamic cache is read and written to append to it. Expanding keys and values reads them
    and writes G times as many, which the kernel then reads: 2G of them beyond the one that the
    fused kernel reads.
    """
    setting, b, more = side.setting, side.work.itemsize, 0.0
    scores = op.gemms[0]
    if has_scores_in_memory(setting):
        more += (8 * b + 8) * scores.batch * scores.m * scores.n
    if side.work.prefill:
        return more
    if setting.cache == "dynamic":
        more += 2 * op.kv_read
    expanded = kv_expansions(setting, op) / 2
    return more + expanded * 2 * setting.shape.attention.group * op.kv_read


class EagerOp(Struct, frozen=True):
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
