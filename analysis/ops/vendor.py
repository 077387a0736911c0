"""Work of the fused ops of serving engines (vLLM, SGLang, AITER): norms, activations, RoPE, caches.

Their results are arguments, so most read and write every tensor argument once. Bytes alone.
"""

from __future__ import annotations

from prunescope.analysis.ops.call import OpCall, Work, op_model, operands, size, tensor
from prunescope.analysis.ops.pointwise import bytes_only


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
    """New k and v, the caches, the slots [T]: what is new is written in the cache's format."""
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
