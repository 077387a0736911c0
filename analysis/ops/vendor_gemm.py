"""Work of the quantised and scaled GEMMs of serving engines (vLLM, SGLang, AITER).

Orders of arguments as the engines declare them in their bindings. Where a shape does not fit the
order, the call has no model. M counts rows of the activations, N output features, K input features.
"""

from __future__ import annotations

from prunescope.analysis.ops.call import (
    NoModel,
    OpCall,
    Operand,
    Work,
    op_model,
    operands,
    optional,
    scalar_type,
    tensor,
)
from prunescope.analysis.ops.matmul import gemm_work, pair, rows
from prunescope.taxonomy.gemm import Gemm

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
    """Results are 16-bit unless the call tells another format."""
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
    scales [k/group, n], which tell N."""
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
