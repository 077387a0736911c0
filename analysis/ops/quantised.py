"""Work of products with quantised or packed weights, of torch.ao, torchao, bitsandbytes, AWQ, GPTQ,
FBGEMM, GGUF and the engines that use them.

K is the width of the activations. N is given by the weight, its scales, an argument, or what the
call returned (`OpCall.result`); where none of them gives it, the call has no model. Bytes
count the weight as it is stored. FLOPs are those of the product; unpacking is not counted.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import replace

from prunescope.analysis.ops.call import (
    Model,
    NoModel,
    OpCall,
    Operand,
    Work,
    bytes_only,
    integers,
    op_model,
    operands,
    optional,
    scalar_type,
    size,
    tensor,
)
from prunescope.analysis.ops.matmul import gemm_work, pair, rows
from prunescope.taxonomy.gemm import Gemm

_BYTE = 8  # bits
_HALF = ("bf16", "fp16")
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
    """[.., k] x a packed weight of unknown shape; its result is [.., n]."""
    a = tensor(call, 0)
    if len(call.result) < 1 or math.prod(call.result[:-1]) != math.prod(a.shape[:-1]):
        raise NoModel
    stored = _PACKED[call.name]
    weight = Operand((call.result[-1], a.shape[-1]), stored)
    return replace(gemm_work(rows(a, weight), a, weight), dtype=stored)


@op_model(
    "onednn::qlinear_pointwise",
    "onednn::qlinear_pointwise_binary",
    "onednn::linear_dynamic_fp16",
    "onednn::linear_relu_dynamic_fp16",
    kind="gemm",
)
def onednn_linear(call: OpCall) -> Work:
    """[.., k], scale, zero point, packed weight of k x n; the fp16 ops have the weight second."""
    a = tensor(call, 0)
    weight = tensor(call, 1 if "fp16" in call.name else 3, rank=2)
    return gemm_work(_either_way(a, weight), a, weight)


@op_model(
    "aten::fbgemm_linear_int8_weight_fp32_activation",
    "aten::fbgemm_linear_int8_weight",
    "bitsandbytes::int8_linear_matmul",
    "bitsandbytes::int8_scaled_mm",
    "quanto::qbytes_mm",
    "torchao::float8_linear_cpu",
    "fbgemm::f8f8bf16",
    "fbgemm::f8f8bf16_cublas",
    "fbgemm::f8f8bf16_lite",
    "fbgemm::f8f8bf16_tensorwise",
    "fbgemm::f8f8bf16_rowwise",
    "fbgemm::f8f8bf16_blockwise",
    "fbgemm::i8i8bf16",
    "fbgemm::i8i8bf16_dynamic",
    "mslk::f8f8bf16",
    "mslk::f8f8bf16_rowwise",
    "mslk::f8f8bf16_tensorwise",
    "mslk::f8f8bf16_blockwise",
    "mslk::i8i8bf16",
    "vllm::apply_w8a8_block_fp8_linear",
    "vllm::w8a8_triton_block_scaled_mm_func",
    "vllm::w8a8_block_fp8_matmul",
    "vllm::padded_cutlass",
    "vllm::fp8_gemm_nt",
    "sglang::deep_gemm_fp8_fp8_bf16_nt",
    "vllm::rocm_unquantized_gemm",
    "vllm::rocm_aiter_tuned_gemm",
    kind="gemm",
)
def weight_rows(call: OpCall) -> Work:
    """a [.., k], weight [n, k], then scales, which may be blocks of either, and a bias."""
    a, weight = tensor(call, 0), tensor(call, 1, rank=2)
    read = [t for i in range(2, len(call.shapes)) if (t := optional(call, i)) is not None]
    out = a.dtype if a.dtype in (*_HALF, "fp32") else "bf16"
    return gemm_work(rows(a, weight), a, weight, *read, out=out)


@op_model("bitsandbytes::int8_mixed_scaled_mm", kind="gemm")
def mixed_rows(call: OpCall) -> Work:
    """a [.., k] as it was and in int8, weight [n, k] in int8, scales of both; outliers apart."""
    a, quantised, weight = tensor(call, 0), tensor(call, 1), tensor(call, 2, rank=2)
    scales = [optional(call, 3), optional(call, 4)]
    return gemm_work(rows(quantised, weight), quantised, weight, a, *scales, out=a.dtype)


@op_model("bitsandbytes::gemv_4bit", "bitsandbytes::gemm_4bit", kind="gemm")
def four_bit(call: OpCall) -> Work:
    """a [.., k], weight of two numbers a byte, its shape [n, k], absmax a block, code."""
    a, weight = tensor(call, 0), tensor(call, 1)
    shape = integers(call, 2)
    if shape is None or len(shape) != 2 or not a.shape or shape[1] != a.shape[-1]:
        raise NoModel
    gemm = Gemm(math.prod(a.shape[:-1]), _positive(shape[0]), a.shape[-1])
    return gemm_work(gemm, a, weight, optional(call, 3), optional(call, 4))


@op_model(
    "_C::awq_gemm", "vllm::awq_gemm", "quanto::gemm_f16i4_awq", "sgl_kernel::awq_gemm", kind="gemm"
)
def awq(call: OpCall) -> Work:
    """a [m, k], weight [k, n·4/32] in int32, scales [k/group, n], zeros."""
    a, weight = tensor(call, 0), tensor(call, 1, rank=2)
    scales = tensor(call, 2, rank=2)
    if not a.shape or weight.shape[0] != a.shape[-1] or scales.shape[1] % weight.shape[1]:
        raise NoModel
    gemm = Gemm(math.prod(a.shape[:-1]), scales.shape[1], a.shape[-1])
    return gemm_work(gemm, a, weight, scales, optional(call, 3))


@op_model("_C::gptq_gemm", "sgl_kernel::gptq_gemm", kind="gemm")
def gptq(call: OpCall) -> Work:
    """a [m, k], weight [k·bits/32, n] in int32, zeros, scales [k/group, n], g_idx."""
    a, weight = tensor(call, 0), tensor(call, 1, rank=2)
    scales = tensor(call, 3, rank=2)
    if not a.shape or scales.shape[1] != weight.shape[1]:
        raise NoModel
    if not 0 < weight.shape[0] < a.shape[-1]:
        raise NoModel
    gemm = Gemm(math.prod(a.shape[:-1]), weight.shape[1], a.shape[-1])
    return gemm_work(gemm, a, weight, scales, optional(call, 2))


@op_model("_C::machete_mm", kind="gemm")
def machete(call: OpCall) -> Work:
    """a [m, k], weight of k x n in 4 or 8 bits, packed along k in int32, scales of n columns."""
    a, weight = tensor(call, 0, rank=2), tensor(call, 1, rank=2)
    scales = [t for i in (4, 7) if (t := optional(call, i)) is not None]
    widths = {t.shape[-1] for t in scales if t.shape} or {weight.shape[1]}
    if len(widths) != 1:
        raise NoModel
    gemm = Gemm(a.shape[0], widths.pop(), a.shape[1])
    if weight.numel * 32 not in (gemm.n * gemm.k * bits for bits in (4, 8)):
        raise NoModel
    return gemm_work(gemm, a, weight, *scales)


@op_model(
    "_C::cutlass_scaled_fp4_mm",
    "sgl_kernel::cutlass_scaled_fp4_mm",
    "vllm::cutlass_fp4_gemm",
    kind="gemm",
)
def fp4_into(call: OpCall) -> Work:
    """Result [m, n], a [m, k/2] and weight [n, k/2] of two numbers a byte, scales of blocks."""
    out, a, weight = (tensor(call, i, rank=2) for i in range(3))
    if a.shape[1] != weight.shape[1] or out.shape != (a.shape[0], weight.shape[0]):
        raise NoModel
    gemm = Gemm(a.shape[0], weight.shape[0], 2 * a.shape[1])
    work = gemm_work(gemm, a, weight, *operands(call)[3:], out=out.dtype)
    return replace(work, dtype="fp4")


@op_model("_C::ggml_mul_mat_vec_a8", "_C::ggml_mul_mat_a8", "_C::ggml_mul_mat_vec", kind="gemm")
def ggml(call: OpCall) -> Work:
    """Weight [n, bytes of a row], a [m, k], type, n."""
    weight, a = tensor(call, 0, rank=2), tensor(call, 1)
    return _gguf_weight(a, weight)


@op_model("vllm::_fused_mul_mat_gguf", kind="gemm")
def gguf(call: OpCall) -> Work:
    """a [.., k], weight [n, bytes of a row], type."""
    return _gguf_weight(tensor(call, 0), tensor(call, 1, rank=2))


def _gguf_weight(a: Operand, weight: Operand) -> Work:
    """A weight whose rows are blocks of GGUF, of which the type alone gives how many numbers they
    hold: at least a bit and at most 32 each."""
    if not a.shape or not 1 <= _BYTE * weight.shape[1] / max(1, a.shape[-1]) <= 32:
        raise NoModel
    gemm = Gemm(math.prod(a.shape[:-1]), weight.shape[0], a.shape[-1])
    return gemm_work(gemm, a, weight)


@op_model("_rocm_C::wvSplitK", "_rocm_C::wvSplitKQ", "_rocm_C::LLMM1", kind="gemv")
def skinny(call: OpCall) -> Work:
    """Weight [n, k], a [m, k] of few rows."""
    weight, a = tensor(call, 0, rank=2), tensor(call, 1, rank=2)
    return gemm_work(rows(a, weight), a, weight)


@op_model("bitsandbytes::dequantize_4bit", kind="quantise")
def dequantise_four_bit(call: OpCall) -> Work:
    """Packed, absmax, block size, type, shape, dtype of the result."""
    packed, shape = tensor(call, 0), integers(call, 4)
    if shape is None:
        raise NoModel
    result = size(math.prod(map(_positive, shape)), scalar_type(call, 5) or "bf16")
    scales = optional(call, 1)
    return bytes_only(
        [packed.bytes, None if scales is None else scales.bytes, result], kind="quantise"
    )


def _positive(value: int) -> int:
    if value < 0:
        raise NoModel
    return value


def _either_way(a: Operand, weight: Operand) -> Gemm:
    """[.., k] x [n, k]ᵀ or [k, n]; of a square weight it does not matter."""
    if not a.shape:
        raise NoModel
    if weight.shape[1] == a.shape[-1]:
        return rows(a, weight)
    flat = Operand((math.prod(a.shape[:-1]), a.shape[-1]))
    return pair(flat, weight)


# An op of a library, named after a product.
_PRODUCT = re.compile(r"(?<![a-z])(?:\w*?(?:gemm|gemv|matmul|scaled_mm|linear)|mm)(?![a-z])\w*")
_NAMESPACE = re.compile(r"(?!aten::|prim::|torch::|autograd::)[A-Za-z_]\w{0,60}::")
# Of several weights, of none, or of one that is only converted.
_OTHER_WORK = re.compile(
    r"group|moe|expert|batch|bmm|sparse|backward|pack|shuffle|lora|att(?:ention|n)"
    r"|(?:^|_)(?:de)?quantize(?:$|_)"
)


def custom_product(name: str) -> Model | None:
    """The model of an op that a library names after a product and that has none of its own."""
    if not _NAMESPACE.match(name):
        return None
    own = name.rpartition("::")[2].lower()[:200]
    return by_sizes if _PRODUCT.search(own) and not _OTHER_WORK.search(own) else None


def by_sizes(call: OpCall) -> Work:
    """Activations [.., k] first, and n given by two numbers in a row among the arguments, n and k;
    else by the only other matrix with a side of k. Where the shapes fit in two ways, none is given.
    """
    a = tensor(call, 0)
    if len(a.shape) < 2:
        raise NoModel
    k, count = a.shape[-1], math.prod(a.shape[:-1])
    others = [t for i in range(1, len(call.shapes)) if (t := optional(call, i)) is not None]
    stated = _stated_widths(call, k)
    widths = stated or _widths(k, (t for t in others if len(t.shape) == 2))
    if len(widths) != 1 or (not stated and any(_is_result_first(a, t, others) for t in others)):
        raise NoModel
    out = a.dtype if a.dtype in (*_HALF, "fp32") else "bf16"
    return gemm_work(Gemm(count, widths.pop(), k), a, *others, out=out)


def _stated_widths(call: OpCall, k: int) -> set[int]:
    """The numbers right before k among the arguments that are one whole number each."""
    found = [integers(call, i) for i in range(len(call.shapes))]
    numbers = [one[0] if one is not None and len(one) == 1 else None for one in found]
    near = zip(numbers, numbers[1:], strict=False)
    return {n for n, here in near if n is not None and n > 1 and here == k}


def _widths(k: int, matrices: Iterable[Operand]) -> set[int]:
    """The other sides of matrices with a side of k."""
    found: set[int] = set()
    for t in matrices:
        if 1 in t.shape:
            continue  # scales of rows or columns
        if k in t.shape:
            found.add(t.shape[0] if t.shape[1] == k else t.shape[1])
    return found


def _is_result_first(first: Operand, second: Operand, others: list[Operand]) -> bool:
    """Whether the first operand may be the result [m, n] of [m, k] and a third, [k, n]."""
    if len(second.shape) != 2 or second.shape[0] != first.shape[0]:
        return False
    n, k = first.shape[-1], second.shape[-1]
    return any(set(t.shape) == {n, k} for t in others if t is not second and len(t.shape) == 2)
