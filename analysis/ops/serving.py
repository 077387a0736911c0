"""Work of the fused and quantised ops of serving engines (vLLM, SGLang, AITER).

Norms, activations, RoPE, caches: their results are arguments, so most read and write every tensor
argument once; bytes alone. GEMMs: orders of arguments as the engines declare them in their
bindings; where a shape does not fit the order, the call has no model. M counts rows of the
activations, N output features, K input features.
"""

from __future__ import annotations

from prunescope.analysis.ops.call import (
    NoModel,
    OpCall,
    Operand,
    Work,
    bytes_only,
    op_model,
    operands,
    optional,
    scalar_type,
    size,
    tensor,
)
from prunescope.analysis.ops.matmul import gemm_work, pair, rows
from prunescope.taxonomy.gemm import Gemm


@op_model(
    "_C::rms_norm",
    "sgl_kernel::rmsnorm",
    "sgl_kernel::gemma_rmsnorm",
    "aiter::rmsnorm",
    "aiter::add_rmsnorm",
    "aiter::rmsnorm2d_fwd",
    "aiter::rmsnorm2d_fwd_with_add",
    "aiter::layernorm2d_fwd",
    kind="norm",
)
def norm(call: OpCall) -> Work:
    """Result, input, (residual in and out,) weight: once each."""
    return bytes_only([t.bytes for t in operands(call)], kind="norm")


@op_model(
    "_C::fused_add_rms_norm",
    "sgl_kernel::fused_add_rmsnorm",
    "sgl_kernel::gemma_fused_add_rmsnorm",
    kind="norm",
)
def add_norm(call: OpCall) -> Work:
    """Input and residual are both read and overwritten; weight."""
    x, residual, weight = tensor(call, 0), tensor(call, 1), tensor(call, 2)
    return bytes_only([x.bytes, x.bytes, residual.bytes, residual.bytes, weight.bytes], kind="norm")


@op_model(
    "_C::silu_and_mul",
    "_C::gelu_and_mul",
    "_C::gelu_tanh_and_mul",
    "_C::mul_and_silu",
    "sgl_kernel::silu_and_mul",
    "sgl_kernel::gelu_and_mul",
    "sgl_kernel::gelu_tanh_and_mul",
    "aiter::silu_and_mul",
    "aiter::gelu_and_mul",
    kind="activation",
)
def gated_activation(call: OpCall) -> Work:
    """Result [.., f], input [.., 2·f]."""
    return bytes_only([t.bytes for t in operands(call)], kind="activation")


@op_model(
    "_C::rotary_embedding", "sgl_kernel::rotary_embedding", "vllm::rotary_embedding", kind="rope"
)
def rotary(call: OpCall) -> Work:
    """Positions [T], q [T, ..], k [T, ..], head size, cos and sin table [P, d]: T rows of it."""
    positions, q, k, table = (tensor(call, i) for i in (0, 1, 2, 4))
    rows = size(positions.numel * table.shape[-1], table.dtype) if table.shape else None
    return bytes_only([positions.bytes, q.bytes, q.bytes, k.bytes, k.bytes, rows], kind="rope")


@op_model(
    "_C_cache_ops::reshape_and_cache_flash",
    "_C_cache_ops::reshape_and_cache",
    "sglang::store_cache",
    kind="gather_scatter",
)
def store_cache(call: OpCall) -> Work:
    """New k and v, the caches, the slots [T]: new ones are written in the cache's format."""
    k, v, k_cache, v_cache, slots = (tensor(call, i) for i in range(5))
    written = [size(k.numel, k_cache.dtype), size(v.numel, v_cache.dtype)]
    return bytes_only([k.bytes, v.bytes, slots.bytes, *written], kind="gather_scatter")


@op_model(
    "_C::static_scaled_fp8_quant",
    "_C::dynamic_scaled_fp8_quant",
    "_C::dynamic_per_token_scaled_fp8_quant",
    "_C::static_scaled_int8_quant",
    "_C::dynamic_scaled_int8_quant",
    "sgl_kernel::sgl_per_token_quant_fp8",
    "sgl_kernel::sgl_per_tensor_quant_fp8",
    kind="quantise",
)
def quantise(call: OpCall) -> Work:
    """Result, input, scales: once each."""
    return bytes_only([t.bytes for t in operands(call)], kind="quantise")


_TILE = 16  # rows and columns of a tile that Marlin packs


@op_model(
    "_C::cutlass_scaled_mm",
    "_C::cutlass_scaled_mm_azp",
    "sgl_kernel::cutlass_scaled_mm",
    kind="gemm",
)
def scaled_into(call: OpCall) -> Work:
    """Result [m, n], a [m, k], b [k, n], scales, bias: the result is an argument."""
    out, a, b = (tensor(call, i, rank=2) for i in range(3))
    gemm = pair(a, b)
    if out.shape != (gemm.m, gemm.n):
        raise NoModel
    return gemm_work(gemm, a, b, *operands(call)[3:], out=out.dtype)


@op_model(
    "sgl_kernel::fp8_scaled_mm",
    "sgl_kernel::int8_scaled_mm",
    "sgl_kernel::fp8_blockwise_scaled_mm",
    kind="gemm",
)
def scaled(call: OpCall) -> Work:
    """a [m, k], b [k, n], scales of both, out_dtype, bias."""
    a, b = tensor(call, 0, rank=2), tensor(call, 1, rank=2)
    return _scaled(call, pair(a, b), a, b)


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
    """a [m, k], weight [n, k], scales of both, out_dtype."""
    a, weight = tensor(call, 0, rank=2), tensor(call, 1, rank=2)
    return _scaled(call, rows(a, weight), a, weight)


def _scaled(call: OpCall, gemm: Gemm, a: Operand, weight: Operand) -> Work:
    """Results are 16-bit unless the call has an `out_dtype`."""
    out = scalar_type(call, 4) or "bf16"
    return gemm_work(gemm, a, weight, optional(call, 2), optional(call, 3), out=out)


@op_model(
    "_C::marlin_gemm",
    "_C::gptq_marlin_gemm",
    "_C::gptq_marlin_24_gemm",
    "sgl_kernel::gptq_marlin_gemm",
    kind="gemm",
)
def marlin(call: OpCall) -> Work:
    """a [m, k], weights of 4 or 8 bits packed in tiles of 16, [k/16, n·16·bits/32] int32, and
    scales [k/group, n], from which N is known."""
    a = tensor(call, 0, rank=2)
    rest = operands(call)[1:]
    packed = [t for t in rest if t.dtype == "int32" and len(t.shape) == 2]
    fits = [t for t in packed if t.shape[0] * _TILE == a.shape[1]]
    for weight in fits:
        columns = {weight.shape[1] * 32 // (_TILE * bits) for bits in (4, 8)}
        scales = [t for t in rest if t.dtype != "int32" and len(t.shape) == 2]
        for scale in scales:
            if scale.shape[1] in columns and a.shape[1] % max(1, scale.shape[0]) == 0:
                gemm = Gemm(a.shape[0], scale.shape[1], a.shape[1])
                return gemm_work(gemm, a, weight, scale)
    raise NoModel
