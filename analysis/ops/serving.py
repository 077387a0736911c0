"""The work of the fused and quantised ops of serving engines (vLLM, SGLang, AITER).

The results of norms, activations, RoPE and caches are arguments, so most of these ops read or write
every tensor argument once, and their work is bytes alone. GEMMs have their arguments in the order
in which the engines declare them in their bindings; where a shape does not fit that order, the call
has no model. M counts rows of the activations, N output features, K input features.
"""

from __future__ import annotations

from functools import partial

from prunescope.analysis.ops.call import (
    NoModel,
    OpCall,
    Operand,
    Work,
    byte_size,
    bytes_only,
    op_model,
    operands,
    require,
    scalar_type,
    tensor,
    tensors_at,
)
from prunescope.analysis.ops.matmul import gemm_work, linear_gemm, matrix_gemm
from prunescope.taxonomy.gemm import Gemm

# Ops whose results are arguments, which read or write each argument once.
_ONCE_EACH = {
    "norm": (
        "_C::rms_norm", "sgl_kernel::rmsnorm", "sgl_kernel::gemma_rmsnorm", "aiter::rmsnorm",
        "aiter::add_rmsnorm", "aiter::rmsnorm2d_fwd", "aiter::rmsnorm2d_fwd_with_add",
        "aiter::layernorm2d_fwd",
    ),
    "activation": (
        "_C::silu_and_mul", "_C::gelu_and_mul", "_C::gelu_tanh_and_mul", "_C::mul_and_silu",
        "sgl_kernel::silu_and_mul", "sgl_kernel::gelu_and_mul", "sgl_kernel::gelu_tanh_and_mul",
        "aiter::silu_and_mul", "aiter::gelu_and_mul",
    ),
    "quantise": (
        "_C::static_scaled_fp8_quant", "_C::dynamic_scaled_fp8_quant",
        "_C::dynamic_per_token_scaled_fp8_quant", "_C::static_scaled_int8_quant",
        "_C::dynamic_scaled_int8_quant", "sgl_kernel::sgl_per_token_quant_fp8",
        "sgl_kernel::sgl_per_tensor_quant_fp8",
    ),
}  # fmt: skip


def _each_argument_once(call: OpCall, *, kind: str) -> Work:
    """Return the work of an op that reads or writes each tensor argument once."""
    return bytes_only([t.bytes for t in operands(call)], kind=kind)


for _kind, _names in _ONCE_EACH.items():
    op_model(*_names, kind=_kind)(partial(_each_argument_once, kind=_kind))


@op_model(
    "_C::fused_add_rms_norm",
    "sgl_kernel::fused_add_rmsnorm",
    "sgl_kernel::gemma_fused_add_rmsnorm",
    kind="norm",
)
def add_norm(call: OpCall) -> Work:
    """Model a norm whose input and residual are both read and overwritten.

    It reads a weight, too.
    """
    x, residual, weight = tensor(call, 0), tensor(call, 1), tensor(call, 2)
    return bytes_only([x.bytes, x.bytes, residual.bytes, residual.bytes, weight.bytes], kind="norm")


@op_model(
    "_C::rotary_embedding", "sgl_kernel::rotary_embedding", "vllm::rotary_embedding", kind="rope"
)
def rotary(call: OpCall) -> Work:
    """Model positions [T], q [T, ..], k [T, ..], head size, and T rows of a table [P, d].

    The table holds cosines and sines.
    """
    positions, q, k, table = (tensor(call, i) for i in (0, 1, 2, 4))
    taken = byte_size(positions.numel * table.shape[-1], table.dtype) if table.shape else None
    return bytes_only([positions.bytes, q.bytes, q.bytes, k.bytes, k.bytes, taken], kind="rope")


@op_model(
    "_C_cache_ops::reshape_and_cache_flash",
    "_C_cache_ops::reshape_and_cache",
    "sglang::store_cache",
    kind="gather_scatter",
)
def store_cache(call: OpCall) -> Work:
    """Model new k and v, the caches and the slots [T].

    K and v are written in the cache's format.
    """
    k, v, k_cache, v_cache, slots = (tensor(call, i) for i in range(5))
    written = [byte_size(k.numel, k_cache.dtype), byte_size(v.numel, v_cache.dtype)]
    return bytes_only([k.bytes, v.bytes, slots.bytes, *written], kind="gather_scatter")


_TILE = 16  # rows and columns of a tile that Marlin packs


@op_model(
    "_C::cutlass_scaled_mm",
    "_C::cutlass_scaled_mm_azp",
    "sgl_kernel::cutlass_scaled_mm",
    kind="gemm",
)
def scaled_into(call: OpCall) -> Work:
    """Model result [m, n], a [m, k], b [k, n], scales and bias: the result is an argument."""
    result, a, b = (tensor(call, i, rank=2) for i in range(3))
    gemm = matrix_gemm(a, b)
    require(result.shape == (gemm.m, gemm.n))
    return gemm_work(gemm, a, b, *operands(call)[3:], out=result.dtype)


@op_model(
    "sgl_kernel::fp8_scaled_mm",
    "sgl_kernel::int8_scaled_mm",
    "sgl_kernel::fp8_blockwise_scaled_mm",
    kind="gemm",
)
def scaled(call: OpCall) -> Work:
    """Model a [m, k], b [k, n], scales of both, out_dtype and bias."""
    a, b = tensor(call, 0, rank=2), tensor(call, 1, rank=2)
    return _scaled_work(call, matrix_gemm(a, b), a, b)


@op_model(
    "vllm::rocm_aiter_gemm_w8a8_blockscale",
    "vllm::rocm_aiter_gemm_a8w8_blockscale",
    "vllm::rocm_aiter_gemm_w8a8",
    "aiter::gemm_a8w8_blockscale",
    "aiter::gemm_a8w8",
    "aiter::gemm_a8w8_bpreshuffle",
    kind="gemm",
)
def scaled_rows(call: OpCall) -> Work:
    """Model a [m, k], weight [n, k], scales of both and out_dtype."""
    a, weight = tensor(call, 0, rank=2), tensor(call, 1, rank=2)
    return _scaled_work(call, linear_gemm(a, weight), a, weight)


def _scaled_work(call: OpCall, gemm: Gemm, a: Operand, weight: Operand) -> Work:
    """Return the work of a scaled product.

    Its result is 16-bit unless the call has an `out_dtype`.
    """
    result = scalar_type(call, 4) or "bf16"
    return gemm_work(gemm, a, weight, *tensors_at(call, (2, 3)), out=result)


@op_model(
    "_C::marlin_gemm",
    "_C::gptq_marlin_gemm",
    "_C::gptq_marlin_24_gemm",
    "sgl_kernel::gptq_marlin_gemm",
    kind="gemm",
)
def marlin(call: OpCall) -> Work:
    """Model a [m, k] and a weight of 4 or 8 bits that is packed in tiles of 16.

    The weight is [k/16, n·16·bits/32] in int32. Its bits are in no shape: the scales [k/group, n]
    tell N.
    """
    a = tensor(call, 0, rank=2)
    matrices = [t for t in operands(call)[1:] if len(t.shape) == 2]
    scales = [t for t in matrices if t.dtype != "int32"]
    for weight in matrices:
        if weight.dtype != "int32" or weight.shape[0] * _TILE != a.shape[1]:
            continue
        columns = {weight.shape[1] * 32 // (_TILE * bits) for bits in (4, 8)}
        for scale in scales:
            if scale.shape[1] in columns and a.shape[1] % max(1, scale.shape[0]) == 0:
                gemm = Gemm(a.shape[0], scale.shape[1], a.shape[1])
                return gemm_work(gemm, a, weight, scale)
    raise NoModel
