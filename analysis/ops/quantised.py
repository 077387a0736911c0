"""The work of products with quantised or packed weights.

The ops are those of torch.ao, torchao, bitsandbytes, AWQ, GPTQ, FBGEMM, GGUF and the engines that
use them. K is the width of the activations. N is given by the weight, its scales, an argument, or
what the call returned (`OpCall.result`); where none of them gives it, the call has no model. Bytes
count the weight as it is stored. FLOPs are those of the product; unpacking is not counted.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import pairwise

from msgspec.structs import replace

from prunescope.analysis.ops.call import (
    Model,
    NoModel,
    OpCall,
    Operand,
    Work,
    byte_size,
    bytes_only,
    integers,
    library_op,
    op_model,
    operands,
    optional,
    require,
    scalar_type,
    tensor,
    tensors_at,
)
from prunescope.analysis.ops.matmul import gemm_work, linear_gemm, matrix_gemm
from prunescope.taxonomy.gemm import Gemm
from prunescope.taxonomy.lazy_pattern import lazy_pattern

_BYTE = 8  # bits
# Packed weights whose shape no trace holds: N is read from what the op makes.
_PACKED = {
    "quantized::linear": "int8",
    "quantized::linear_relu": "int8",
    "quantized::linear_leaky_relu": "int8",
    "quantized::linear_tanh": "int8",
    "quantized::linear_dynamic": "int8",
    "quantized::linear_relu_dynamic": "int8",
    "quantized::linear_with_input_q_dq_qweight_dq_output_fp32": "int8",
    "quantized::linear_with_input_q_dq_qweight_dq_relu_output_fp32": "int8",
    "quantized::linear_dynamic_fp16": "fp16",
    "quantized::linear_relu_dynamic_fp16": "fp16",
    "prepacked::linear_clamp_run": "fp32",
}


@op_model(*_PACKED, kind="gemm", needs_result=True)
def packed_linear(call: OpCall) -> Work:
    """Model [.., k] x a packed weight of unknown shape, whose result is [.., n]."""
    a = tensor(call, 0)
    require(len(call.result) >= 1 and math.prod(call.result[:-1]) == math.prod(a.shape[:-1]))
    stored = _PACKED[call.name]
    weight = Operand((call.result[-1], a.shape[-1]), stored)
    return replace(gemm_work(linear_gemm(a, weight), a, weight), dtype=stored)


@op_model(
    "onednn::qlinear_pointwise",
    "onednn::qlinear_pointwise_binary",
    "onednn::linear_dynamic_fp16",
    "onednn::linear_relu_dynamic_fp16",
    kind="gemm",
)
def onednn_linear(call: OpCall) -> Work:
    """Model [.., k], scale, zero point and a packed weight of k x n.

    The fp16 ops have the weight second.
    """
    a = tensor(call, 0)
    weight = tensor(call, 1 if "fp16" in call.name else 3, rank=2)
    return gemm_work(_gemm_of_either_layout(a, weight), a, weight)


_WEIGHT_ROWS = (
    "aten::fbgemm_linear_int8_weight_fp32_activation", "aten::fbgemm_linear_int8_weight",
    "bitsandbytes::int8_linear_matmul", "bitsandbytes::int8_scaled_mm", "quanto::qbytes_mm",
    "torchao::float8_linear_cpu", "fbgemm::f8f8bf16", "fbgemm::f8f8bf16_cublas",
    "fbgemm::f8f8bf16_lite", "fbgemm::f8f8bf16_tensorwise", "fbgemm::f8f8bf16_rowwise",
    "fbgemm::f8f8bf16_blockwise", "fbgemm::i8i8bf16", "fbgemm::i8i8bf16_dynamic", "mslk::f8f8bf16",
    "mslk::f8f8bf16_rowwise", "mslk::f8f8bf16_tensorwise", "mslk::f8f8bf16_blockwise",
    "mslk::i8i8bf16", "vllm::apply_w8a8_block_fp8_linear", "vllm::w8a8_triton_block_scaled_mm_func",
    "vllm::w8a8_block_fp8_matmul", "vllm::padded_cutlass", "vllm::fp8_gemm_nt",
    "sglang::deep_gemm_fp8_fp8_bf16_nt", "vllm::rocm_unquantized_gemm",
    "vllm::rocm_aiter_tuned_gemm",
)  # fmt: skip


@op_model(*_WEIGHT_ROWS, kind="gemm")
def weight_rows(call: OpCall) -> Work:
    """Model a [.., k], weight [n, k], then scales, which may be blocks of either, and a bias."""
    a, weight = tensor(call, 0), tensor(call, 1, rank=2)
    read = tensors_at(call, range(2, len(call.shapes)))
    return gemm_work(linear_gemm(a, weight), a, weight, *read, out=_result_dtype(a))


def _result_dtype(a: Operand) -> str:
    """Return the format of a product's result: that of float activations, else bf16."""
    return a.dtype if a.dtype in ("bf16", "fp16", "fp32") else "bf16"


@op_model("bitsandbytes::int8_mixed_scaled_mm", kind="gemm")
def mixed_rows(call: OpCall) -> Work:
    """Model a [.., k] as it was and in int8, weight [n, k] in int8, and the scales of both.

    The product of the outliers is an op of its own.
    """
    a, quantised, weight = tensor(call, 0), tensor(call, 1), tensor(call, 2, rank=2)
    scales = [optional(call, 3), optional(call, 4)]
    return gemm_work(linear_gemm(quantised, weight), quantised, weight, a, *scales, out=a.dtype)


@op_model("bitsandbytes::gemv_4bit", "bitsandbytes::gemm_4bit", kind="gemm")
def four_bit(call: OpCall) -> Work:
    """Model a [.., k], a weight of two numbers per byte, its shape [n, k], absmax and code.

    absmax has a number per block.
    """
    a, weight = tensor(call, 0), tensor(call, 1)
    shape = integers(call, 2)
    if shape is None or len(shape) != 2 or not a.shape or shape[1] != a.shape[-1]:
        raise NoModel
    gemm = Gemm(math.prod(a.shape[:-1]), _check_not_negative(shape[0]), a.shape[-1])
    return gemm_work(gemm, a, weight, optional(call, 3), optional(call, 4))


@op_model(
    "_C::awq_gemm", "vllm::awq_gemm", "quanto::gemm_f16i4_awq", "sgl_kernel::awq_gemm", kind="gemm"
)
def awq(call: OpCall) -> Work:
    """Model a [m, k], weight [k, n·4/32] in int32, scales [k/group, n] and zeros."""
    a, weight = tensor(call, 0), tensor(call, 1, rank=2)
    scales = tensor(call, 2, rank=2)
    require(a.shape and weight.shape[0] == a.shape[-1] and scales.shape[1] % weight.shape[1] == 0)
    gemm = Gemm(math.prod(a.shape[:-1]), scales.shape[1], a.shape[-1])
    return gemm_work(gemm, a, weight, scales, optional(call, 3))


@op_model("_C::gptq_gemm", "sgl_kernel::gptq_gemm", kind="gemm")
def gptq(call: OpCall) -> Work:
    """Model a [m, k], weight [k·bits/32, n] in int32, zeros, scales [k/group, n] and g_idx."""
    a, weight = tensor(call, 0), tensor(call, 1, rank=2)
    scales = tensor(call, 3, rank=2)
    require(a.shape and scales.shape[1] == weight.shape[1])
    require(0 < weight.shape[0] < a.shape[-1])
    gemm = Gemm(math.prod(a.shape[:-1]), weight.shape[1], a.shape[-1])
    return gemm_work(gemm, a, weight, scales, optional(call, 2))


@op_model("_C::machete_mm", kind="gemm")
def machete(call: OpCall) -> Work:
    """Model a [m, k] and a weight of k x n in 4 or 8 bits, packed along k in int32.

    Scales have n columns.
    """
    a, weight = tensor(call, 0, rank=2), tensor(call, 1, rank=2)
    scales = tensors_at(call, (4, 7))
    widths = {t.shape[-1] for t in scales if t.shape} or {weight.shape[1]}
    require(len(widths) == 1)
    gemm = Gemm(a.shape[0], widths.pop(), a.shape[1])
    require(weight.numel * 32 in (gemm.n * gemm.k * bits for bits in (4, 8)))
    return gemm_work(gemm, a, weight, *scales)


@op_model(
    "_C::cutlass_scaled_fp4_mm",
    "sgl_kernel::cutlass_scaled_fp4_mm",
    "vllm::cutlass_fp4_gemm",
    kind="gemm",
)
def fp4_into(call: OpCall) -> Work:
    """Model result [m, n], a [m, k/2] and weight [n, k/2] of two numbers per byte.

    Scales of blocks follow.
    """
    result, a, weight = (tensor(call, i, rank=2) for i in range(3))
    require(a.shape[1] == weight.shape[1] and result.shape == (a.shape[0], weight.shape[0]))
    gemm = Gemm(a.shape[0], weight.shape[0], 2 * a.shape[1])
    work = gemm_work(gemm, a, weight, *operands(call)[3:], out=result.dtype)
    return replace(work, dtype="fp4")


@op_model("_C::ggml_mul_mat_vec_a8", "_C::ggml_mul_mat_a8", "_C::ggml_mul_mat_vec", kind="gemm")
def ggml(call: OpCall) -> Work:
    """Model weight [n, bytes of a row], a [m, k], type and n."""
    return _gguf_work(tensor(call, 1), weight=tensor(call, 0, rank=2))


@op_model("vllm::_fused_mul_mat_gguf", kind="gemm")
def gguf(call: OpCall) -> Work:
    """Model a [.., k], weight [n, bytes of a row] and type."""
    return _gguf_work(tensor(call, 0), weight=tensor(call, 1, rank=2))


def _gguf_work(a: Operand, *, weight: Operand) -> Work:
    """Return the work of a product with a weight whose rows are blocks of GGUF.

    The type alone tells how many numbers a block holds, so a row only has to fit k numbers of at
    least one bit and at most 32.
    """
    require(a.shape and 1 <= _BYTE * weight.shape[1] / max(1, a.shape[-1]) <= 32)
    gemm = Gemm(math.prod(a.shape[:-1]), weight.shape[0], a.shape[-1])
    return gemm_work(gemm, a, weight)


@op_model("_rocm_C::wvSplitK", "_rocm_C::wvSplitKQ", "_rocm_C::LLMM1", kind="gemv")
def skinny(call: OpCall) -> Work:
    """Model weight [n, k] and a [m, k] of few rows."""
    weight, a = tensor(call, 0, rank=2), tensor(call, 1, rank=2)
    return gemm_work(linear_gemm(a, weight), a, weight)


@op_model("bitsandbytes::dequantize_4bit", kind="quantise")
def dequantise_four_bit(call: OpCall) -> Work:
    """Model the packed weight, absmax, block size, type, shape and dtype of the result."""
    packed, shape = tensor(call, 0), integers(call, 4)
    if shape is None:
        raise NoModel
    result = byte_size(math.prod(map(_check_not_negative, shape)), scalar_type(call, 5) or "bf16")
    scales = optional(call, 1)
    return bytes_only(
        [packed.bytes, None if scales is None else scales.bytes, result], kind="quantise"
    )


def _check_not_negative(value: int) -> int:
    """Return a size; raise NoModel where it is negative."""
    require(value >= 0)
    return value


def _gemm_of_either_layout(a: Operand, weight: Operand) -> Gemm:
    """Return the GEMM of [.., k] x [n, k]ᵀ or [.., k] x [k, n].

    For a square weight both are the same.
    """
    require(a.shape)
    if weight.shape[1] == a.shape[-1]:
        return linear_gemm(a, weight)
    flat = Operand((math.prod(a.shape[:-1]), a.shape[-1]))
    return matrix_gemm(flat, weight)


# An op of a library, named after a product.
_PRODUCT = lazy_pattern(r"(?<![a-z])(?:\w*?(?:gemm|gemv|matmul|scaled_mm|linear)|mm)(?![a-z])\w*")
# Such ops have several weights or none, or only convert one.
_OTHER_WORK = lazy_pattern(
    r"group|moe|expert|batch|bmm|sparse|backward|pack|shuffle|lora|att(?:ention|n)"
    r"|(?:^|_)(?:de)?quantize(?:$|_)"
)


def library_product_model(name: str) -> Model | None:
    """Return the model of an op that a library names after a product; None for other names.

    Limitations: the name alone decides, so that an op with such a name which does other work is
    modelled wrongly where its shapes fit.
    """
    own = library_op(name)
    is_product = own is not None and _PRODUCT.search(own) and not _OTHER_WORK.search(own)
    return work_by_sizes if is_product else None


def work_by_sizes(call: OpCall) -> Work:
    """Model activations [.., k] and a weight that the arguments tell by their sizes.

    N is given by two numbers in a row among the arguments, n and k; else by the only other matrix
    with a side of k.

    Limitations: the arguments are recognised by their sizes alone. Raises NoModel where they fit in
    two ways.
    """
    a = tensor(call, 0)
    require(len(a.shape) >= 2)
    k, count = a.shape[-1], math.prod(a.shape[:-1])
    read = tensors_at(call, range(1, len(call.shapes)))
    stated = _stated_widths(call, k)
    widths = stated or _widths(k, (t for t in read if len(t.shape) == 2))
    require(len(widths) == 1 and (stated or not any(_is_result_first(a, t, read) for t in read)))
    return gemm_work(Gemm(count, widths.pop(), k), a, *read, out=_result_dtype(a))


def _stated_widths(call: OpCall, k: int) -> set[int]:
    """Return the numbers right before k, among the arguments that are one whole number each."""
    arguments = [integers(call, i) for i in range(len(call.shapes))]
    numbers = [n[0] if n is not None and len(n) == 1 else None for n in arguments]
    neighbours = pairwise(numbers)
    return {n for n, after in neighbours if n is not None and n > 1 and after == k}


def _widths(k: int, matrices: Iterable[Operand]) -> set[int]:
    """Return the other side of each matrix with a side of k."""
    return {
        t.shape[0] if t.shape[1] == k else t.shape[1]
        for t in matrices
        if k in t.shape and 1 not in t.shape  # a side of 1: scales of rows or columns
    }


def _is_result_first(first: Operand, second: Operand, tensors: list[Operand]) -> bool:
    """Return whether the first operand may be the result [m, n] of [m, k] and a third, [k, n]."""
    if len(second.shape) != 2 or second.shape[0] != first.shape[0]:
        return False
    n, k = first.shape[-1], second.shape[-1]
    return any(set(t.shape) == {n, k} for t in tensors if t is not second and len(t.shape) == 2)
