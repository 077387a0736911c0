"""The work of fused attention: two logical GEMMs per head.

They are QKᵀ [S_q, S_kv, d] and PV [S_q, d, S_kv]. FLOPs are 2·(d_qk + d_v) for each pair of a query
and a key that it sees; a causal query of S sees (S + 1)/2 keys on average. Bytes count q, k, v and
o (and a mask) once each, at their own sizes.
"""

from __future__ import annotations

import math

from msgspec import Struct

from prunescope.analysis.ops.call import (
    NoModel,
    OpCall,
    Operand,
    Work,
    byte_size,
    flag,
    integers,
    number,
    op_model,
    optional,
    require,
    sum_known,
    tensor,
)
from prunescope.taxonomy.gemm import Gemm


class Signature(Struct, frozen=True):
    """The positions of an op's arguments. None: the op has no such argument."""

    causal: int
    mask: int | None = None
    window: int | None = None
    rows_first: bool = False  # [B, S, H, d], else [B, H, S, d]


class AttentionSizes(Struct, frozen=True):
    """The sizes of one attention call; heads are those of the queries."""

    batch: int
    heads: int
    queries: int
    keys: int
    head_dim: int
    value_head_dim: int


_SDPA = {
    "aten::_scaled_dot_product_flash_attention": Signature(causal=4),
    "aten::_scaled_dot_product_flash_attention_for_cpu": Signature(causal=4, mask=5),
    "aten::_scaled_dot_product_efficient_attention": Signature(causal=6, mask=3),
    "aten::_scaled_dot_product_cudnn_attention": Signature(causal=6, mask=3),
    "aten::_scaled_dot_product_fused_attention_overrideable": Signature(causal=5, mask=3),
    "aten::_scaled_dot_product_attention_math": Signature(causal=5, mask=3),
    "aten::_scaled_dot_product_attention_math_for_mps": Signature(causal=5, mask=3),
    "aten::scaled_dot_product_attention": Signature(causal=5, mask=3),
    "flash_attn::_flash_attn_forward": Signature(causal=5, window=6, rows_first=True),
}
_PLAIN_FLASH = Signature(causal=8, window=11, rows_first=True)
_CUDNN = Signature(causal=10, mask=3)


def seen_pairs(queries: int, keys: int, *, causal: bool, window: int | None = None) -> int:
    """Count the (query, key) pairs of one head: all of them, or those whose key the query sees.

    The last query sees the last key (the mask is aligned at the bottom right), so S queries over S
    keys make S·(S+1)/2 pairs, and one query over L keys makes L. `window` is the number of keys
    before its own that a query sees; None means all.
    """
    if not causal:
        return queries * keys
    seen = min(queries, keys)  # queries before the first key see nothing
    full = seen * keys - seen * (seen - 1) // 2
    if window is None:
        return full
    # A query that could see v keys sees min(v, window + 1): take away what is beyond the window.
    over = max(0, keys - (window + 1))
    lost = max(0, over - seen)
    return full - (over * (over + 1) - lost * (lost + 1)) // 2


def attention_work(
    sizes: AttentionSizes,
    *read: Operand | None,
    causal: bool | None,
    window: int | None = None,
) -> Work:
    """Return the work of one fused attention call.

    `read` are q, k, v and the mask, q first. FLOPs are None where the call has several queries and
    it is unknown whether it is causal.
    """
    q = read[0]
    one_query = sizes.queries == 1
    flop = None
    if causal is not None or one_query:
        pairs = seen_pairs(sizes.queries, sizes.keys, causal=bool(causal), window=window)
        heads = sizes.batch * sizes.heads
        flop = 2 * heads * pairs * (sizes.head_dim + sizes.value_head_dim)
    dtype = q.dtype if q is not None else None
    written = sizes.batch * sizes.heads * sizes.queries * sizes.value_head_dim
    return Work(
        flop=flop,
        bytes=sum_known([*(t.bytes for t in read if t is not None), byte_size(written, dtype)]),
        gemms=logical_gemms(sizes),
        dtype=dtype,
        kind="attention",
        causal=causal,
    )


def logical_gemms(sizes: AttentionSizes) -> tuple[Gemm, Gemm]:
    """Return the GEMMs of an attention call: QKᵀ, then PV, whose batch counts heads."""
    batch = sizes.batch * sizes.heads
    return (
        Gemm(sizes.queries, sizes.keys, sizes.head_dim, batch=batch),
        Gemm(sizes.queries, sizes.value_head_dim, sizes.keys, batch=batch),
    )


def _sizes_of_tensors(q: Operand, k: Operand, v: Operand, *, rows_first: bool) -> AttentionSizes:
    """Return the sizes of [.., H, S, d] or [B, S, H, d] tensors.

    k and v may have fewer heads than q (GQA). Raises NoModel where the three do not fit together.
    """
    rank = len(q.shape)
    require(rank >= 3 and len(k.shape) == rank and len(v.shape) == rank)
    require(not rows_first or rank == 4)
    heads, rows = (-2, -3) if rows_first else (-3, -2)
    groups_fit = k.shape[heads] > 0 and q.shape[heads] % k.shape[heads] == 0
    same_rows = k.shape[rows] == v.shape[rows] and q.shape[-1] == k.shape[-1]
    require(groups_fit and same_rows)
    batch = math.prod(q.shape) // (
        max(q.shape[heads], 1) * max(q.shape[rows], 1) * max(q.shape[-1], 1)
    )
    return AttentionSizes(
        batch, q.shape[heads], q.shape[rows], k.shape[rows], q.shape[-1], v.shape[-1]
    )


def _fused_work(call: OpCall, signature: Signature) -> Work:
    """Return the work of an unpacked call. A window of a non-causal call is not modelled."""
    q, k, v = tensor(call, 0), tensor(call, 1), tensor(call, 2)
    sizes = _sizes_of_tensors(q, k, v, rows_first=signature.rows_first)
    mask = optional(call, signature.mask) if signature.mask is not None else None
    causal = flag(call, signature.causal)
    left = integers(call, signature.window) if signature.window is not None else None
    window = left[0] if left and left[0] >= 0 else None
    require(window is None or causal)  # no decoder has a window around the query
    return attention_work(sizes, q, k, v, mask, causal=causal, window=window)


@op_model(*_SDPA, kind="attention")
def scaled_dot_product(call: OpCall) -> Work:
    """Model attention over q [.., H, S, d], k and v [.., H_kv, S_kv, d]."""
    return _fused_work(call, _SDPA[call.name])


@op_model("aten::_flash_attention_forward", kind="attention")
def flash_forward(call: OpCall) -> Work:
    """Model attention over q [B, S, H, d], or packed [T, H, d] with cumulative lengths."""
    if optional(call, 3) is None:
        return _fused_work(call, _PLAIN_FLASH)
    return _packed_work(call, lengths=(3, 4), longest=(5, 6), causal=flag(call, 8))


@op_model("aten::_cudnn_attention_forward", kind="attention")
def cudnn_forward(call: OpCall) -> Work:
    """Model attention over q [B, H, S, d]; packed calls are not modelled."""
    require(optional(call, 4) is None)
    return _fused_work(call, _CUDNN)


@op_model("aten::_efficient_attention_forward", kind="attention")
def efficient_forward(call: OpCall) -> Work:
    """Model attention over q [B, S, H, d]; packed calls are not modelled.

    The mask type is 0 for none, 1 for causal from the top left, and 2 for causal from the bottom
    right.
    """
    require(optional(call, 4) is None)
    q, k, v = tensor(call, 0), tensor(call, 1), tensor(call, 2)
    sizes = _sizes_of_tensors(q, k, v, rows_first=True)
    mask_type = integers(call, 9)
    causal = None if not mask_type else mask_type[0] != 0
    return attention_work(sizes, q, k, v, optional(call, 3), causal=causal)


@op_model("flash_attn::_flash_attn_varlen_forward", kind="attention")
def flash_varlen(call: OpCall) -> Work:
    """Model packed attention: q [T, H, d], cumulative lengths [n + 1] of queries and keys."""
    return _packed_work(call, lengths=(3, 4), longest=(5, 6), causal=flag(call, 9))


@op_model("aiter::mha_batch_prefill", kind="attention")
def paged_prefill(call: OpCall) -> Work:
    """Model packed q [T, H, d] over a paged cache [pages, H_kv, d] with one key per page."""
    q, k, v = tensor(call, 0, rank=3), tensor(call, 1, rank=3), tensor(call, 2, rank=3)
    sizes = _sizes_of_packed(call, q, lengths=(3, 4), longest=(6, 7))
    rows = sizes.batch * sizes.keys
    read_k = Operand((rows, *k.shape[1:]), k.dtype)
    read_v = Operand((rows, *v.shape[1:]), v.dtype)
    return attention_work(sizes, q, read_k, read_v, causal=flag(call, 12))


def _packed_work(
    call: OpCall, *, lengths: tuple[int, int], longest: tuple[int, int], causal: bool | None
) -> Work:
    """Return the work of packed sequences. `lengths` and `longest` are argument positions."""
    q, k, v = tensor(call, 0, rank=3), tensor(call, 1, rank=3), tensor(call, 2, rank=3)
    sizes = _sizes_of_packed(call, q, lengths=lengths, longest=longest)
    require(sizes.batch * sizes.keys == k.shape[0])
    return attention_work(sizes, q, k, v, causal=causal)


def _sizes_of_packed(
    call: OpCall, q: Operand, *, lengths: tuple[int, int], longest: tuple[int, int]
) -> AttentionSizes:
    """Return the sizes of packed sequences that are all as long as the longest one.

    The lengths themselves are values, which a trace does not hold. Raises NoModel where the
    sequences do not fill q at the length of the longest.
    """
    ends = tensor(call, lengths[0], rank=1)
    most_q, most_k = number(call, longest[0]), number(call, longest[1])
    count = ends.shape[0] - 1
    if count < 1 or most_q is None or most_k is None or count * most_q != q.shape[0]:
        raise NoModel
    value_head_dim = tensor(call, 2).shape[-1]
    return AttentionSizes(count, q.shape[1], int(most_q), int(most_k), q.shape[2], value_head_dim)
