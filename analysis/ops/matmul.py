"""The work of dense matrix products: the GEMM, its FLOPs (2·M·N·K) and its compulsory bytes.

M counts rows of the activations, N output features, K input features. A bias is read (bytes), but
its addition is not counted in FLOPs.
"""

from __future__ import annotations

import math

from msgspec.structs import replace

from prunescope.analysis.ops.call import (
    NoModel,
    OpCall,
    Operand,
    Work,
    broadcast,
    byte_size,
    number,
    op_model,
    optional,
    require,
    scalar_type,
    sum_known,
    tensor,
    tensors_at,
)
from prunescope.taxonomy.gemm import Gemm


def gemm_kind(gemm: Gemm, *, batched: bool = False) -> str:
    """Return batched_gemm for bmm and the like, gemv for a product by one vector, else gemm."""
    if batched or gemm.batch > 1:
        return "batched_gemm"
    return "gemv" if 1 in (gemm.m, gemm.n) else "gemm"


def gemm_work(
    gemm: Gemm,
    *read: Operand | None,
    out: str | None = None,
    batched: bool = False,
    kind: str | None = None,
) -> Work:
    """Return the work of one GEMM.

    Args:
        gemm: M, N, K and the batch.
        read: The tensors that it reads; the first two are its operands.
        out: The format of the result; None: that of the first operand.
        batched: Whether the op is a batched one, whatever its batch.
        kind: A kind to give; None: the kind that the GEMM has.

    Returns:
        The work. Without a result (an expert to which no token was sent) nothing is read.
    """
    first = read[0]
    dtype = first.dtype if first is not None else None
    results = gemm.batch * gemm.m * gemm.n
    moved = [*(t.bytes for t in read if t is not None), byte_size(results, out or dtype)]
    return Work(
        flop=gemm.flop,
        bytes=sum_known(moved) if results else 0.0,
        gemms=(gemm,),
        dtype=dtype,
        kind=kind or gemm_kind(gemm, batched=batched),
    )


def matrix_gemm(a: Operand, b: Operand) -> Gemm:
    """Return the GEMM of [m, k] x [k, n]; raise NoModel where the shapes do not fit."""
    require(len(a.shape) == 2 and len(b.shape) == 2 and a.shape[1] == b.shape[0])
    return Gemm(a.shape[0], b.shape[1], a.shape[1])


def _stack_gemm(a: Operand, b: Operand) -> Gemm:
    """Return the GEMM of [b, m, k] x [b, k, n]; raise NoModel where the shapes do not fit."""
    require(len(a.shape) == 3 and len(b.shape) == 3)
    require(a.shape[0] == b.shape[0] and a.shape[2] == b.shape[1])
    return Gemm(a.shape[1], b.shape[2], a.shape[2], batch=a.shape[0])


def _added(call: OpCall, index: int, beta: int) -> Operand | None:
    """Return the matrix that is added; None where beta is 0, so that it is not read."""
    return None if number(call, beta) == 0 else optional(call, index)


@op_model("aten::mm", kind="gemm")
def mm(call: OpCall) -> Work:
    """Model [m, k] x [k, n]."""
    a, b = tensor(call, 0), tensor(call, 1)
    return gemm_work(matrix_gemm(a, b), a, b)


@op_model("aten::addmm", "aten::addmm_", "aten::_addmm_activation", kind="gemm")
def addmm(call: OpCall) -> Work:
    """Model [n] + [m, k] x [k, n]."""
    a, b = tensor(call, 1), tensor(call, 2)
    return gemm_work(matrix_gemm(a, b), a, b, _added(call, 0, beta=3))


@op_model("aten::bmm", kind="batched_gemm")
def bmm(call: OpCall) -> Work:
    """Model [b, m, k] x [b, k, n]."""
    a, b = tensor(call, 0), tensor(call, 1)
    return gemm_work(_stack_gemm(a, b), a, b, batched=True)


@op_model("aten::baddbmm", "aten::baddbmm_", kind="batched_gemm")
def baddbmm(call: OpCall) -> Work:
    """Model [b, m, n] + [b, m, k] x [b, k, n]."""
    a, b = tensor(call, 1), tensor(call, 2)
    return gemm_work(_stack_gemm(a, b), a, b, _added(call, 0, beta=3), batched=True)


@op_model("aten::mv", kind="gemv")
def mv(call: OpCall) -> Work:
    """Model [m, k] x [k]."""
    a, b = tensor(call, 0, rank=2), tensor(call, 1, rank=1)
    return gemm_work(_matmul_gemm(a, b), a, b)


@op_model("aten::addmv", "aten::addmv_", kind="gemv")
def addmv(call: OpCall) -> Work:
    """Model [m] + [m, k] x [k]."""
    a, b = tensor(call, 1, rank=2), tensor(call, 2, rank=1)
    return gemm_work(_matmul_gemm(a, b), a, b, _added(call, 0, beta=3))


@op_model("aten::dot", "aten::vdot", "aten::matmul", kind="gemm")
def matmul(call: OpCall) -> Work:
    """Model a product of any ranks, as torch.matmul reads them."""
    a, b = tensor(call, 0), tensor(call, 1)
    gemm = _matmul_gemm(a, b)
    return gemm_work(gemm, a, b, batched=len(a.shape) > 2 and len(b.shape) > 2)


@op_model(
    "aten::linear",
    "mkldnn::_linear_pointwise",
    "aten::mkldnn_linear",
    "aiter::gemm_a16w16",
    kind="gemm",
)
def linear(call: OpCall) -> Work:
    """Model [.., k] x [n, k]ᵀ + [n]."""
    a, weight = tensor(call, 0), tensor(call, 1)
    return gemm_work(linear_gemm(a, weight), a, weight, optional(call, 2))


@op_model("mkl::_mkl_linear", kind="gemm")
def mkl_linear(call: OpCall) -> Work:
    """Model [.., k] x packed + [n]; the packed weight has no shape, the original one gives it."""
    a, weight = tensor(call, 0), tensor(call, 2, rank=2)
    return gemm_work(linear_gemm(a, weight), a, weight, optional(call, 3))


@op_model("aten::_int_mm", kind="gemm")
def int_mm(call: OpCall) -> Work:
    """Model int8 [m, k] x [k, n] to int32."""
    a, b = tensor(call, 0), tensor(call, 1)
    return gemm_work(matrix_gemm(a, b), a, b, out="int32")


@op_model("aten::_scaled_mm", "aten::_scaled_mm_v2", kind="gemm")
def scaled_mm(call: OpCall) -> Work:
    """Model fp8 or fp4 [m, k] x [k, n] with scales, a bias, a result scale and an out_dtype."""
    a, b = _unpacked(tensor(call, 0, rank=2), 1), _unpacked(tensor(call, 1, rank=2), 0)
    result = scalar_type(call, 6) or "bf16"  # the op's own results are 16-bit by default
    return gemm_work(matrix_gemm(a, b), a, b, *tensors_at(call, range(2, 6)), out=result)


@op_model("aten::_weight_int8pack_mm", kind="gemm")
def int8pack_mm(call: OpCall) -> Work:
    """Model [m, k] x int8 [n, k]ᵀ with scales [n]."""
    a, weight = tensor(call, 0, rank=2), tensor(call, 1, rank=2)
    return gemm_work(linear_gemm(a, weight), a, weight, optional(call, 2))


@op_model("aten::_weight_int4pack_mm", "aten::_weight_int4pack_mm_for_cpu", kind="gemm")
def int4pack_mm(call: OpCall) -> Work:
    """Model [m, k] x packed int4, with scales and zeros [k/group, n, 2].

    N is read from the scales, as the packing of the weight varies.
    """
    a, weight, scales = tensor(call, 0, rank=2), tensor(call, 1), tensor(call, 3, rank=3)
    return gemm_work(Gemm(a.shape[0], scales.shape[1], a.shape[1]), a, weight, scales)


@op_model("aten::_grouped_mm", "aten::_scaled_grouped_mm", kind="grouped_gemm")
def grouped_mm(call: OpCall) -> Work:
    """Model one GEMM per group, whose rows (or columns, or K) are given by offsets.

    The forms are [t, k] x [g, k, n], [g, m, k] x [k, t], [m, t] x [t, n] over groups of t, and [g,
    m, k] x [g, k, n]. Offsets are values: every row of `t` is taken as used, and of the g matrices
    at most as many are read as there are rows.
    """
    a, b = tensor(call, 0), tensor(call, 1)
    scaled = call.name == "aten::_scaled_grouped_mm"
    offsets = optional(call, 4 if scaled else 2)
    groups = offsets.shape[0] if offsets is not None and len(offsets.shape) == 1 else None
    result = "bf16" if scaled else a.dtype
    ranks = (len(a.shape), len(b.shape))
    require(ranks in ((2, 3), (3, 2), (2, 2), (3, 3)) and a.shape[-1] == b.shape[-2])
    gemm = Gemm(a.shape[-2], b.shape[-1], a.shape[-1])
    if ranks == (3, 3):
        gemm = replace(gemm, batch=a.shape[0])
    stack = next((t.shape[0] for t in (b, a) if len(t.shape) > 2), groups)
    if ranks == (2, 3):
        b = _first(b, a.shape[0])
    elif ranks == (3, 2):
        a = _first(a, b.shape[1])
    work = gemm_work(gemm, a, b, out=result, kind="grouped_gemm")
    stacked = b if len(b.shape) > 2 else a
    read = stacked.shape[0] if len(stacked.shape) > 2 else groups
    each = byte_size(gemm.n * gemm.k, b.dtype) if ranks == (2, 3) else None
    work = replace(work, groups=read, stack=stack, each=each)
    if ranks == (2, 2):
        # K is split over the groups, and each group has a result of its own.
        if groups is None:
            raise NoModel
        more = byte_size((groups - 1) * gemm.m * gemm.n, result)
        work = replace(work, bytes=sum_known([work.bytes, more]))
    return work


def _first(t: Operand, count: int) -> Operand:
    """Return at most the first `count` matrices of a stack."""
    return Operand((min(t.shape[0], count), *t.shape[1:]), t.dtype)


def _unpacked(t: Operand, axis: int) -> Operand:
    """Return an operand with all numbers of an fp4 tensor.

    An element of such a tensor in a trace is a pair along K.
    """
    if t.dtype != "fp4":
        return t
    shape = tuple(n * 2 if i == axis else n for i, n in enumerate(t.shape))
    return Operand(shape, t.dtype)


def linear_gemm(a: Operand, weight: Operand) -> Gemm:
    """Return the GEMM of [.., k] x [n, k]ᵀ, whose leading dimensions are all rows."""
    require(a.shape and len(weight.shape) in (1, 2) and a.shape[-1] == weight.shape[-1])
    n = weight.shape[0] if len(weight.shape) == 2 else 1
    return Gemm(math.prod(a.shape[:-1]), n, a.shape[-1])


def _matmul_gemm(a: Operand, b: Operand) -> Gemm:
    """Return the GEMM of torch.matmul.

    A batched left side times one matrix is one GEMM of all rows.
    """
    require(a.shape and b.shape)
    left = a.shape if len(a.shape) > 1 else (1, *a.shape)
    right = b.shape if len(b.shape) > 1 else (*b.shape, 1)
    require(left[-1] == right[-2])
    if len(right) == 2:
        return Gemm(math.prod(left[:-1]), right[1], left[-1])
    batch = math.prod(broadcast(left[:-2], right[:-2]))
    return Gemm(left[-2], right[-1], left[-1], batch=batch)


@op_model("aten::mkldnn_rnn_layer", kind="gemm")
def mkldnn_rnn_layer(call: OpCall) -> Work:
    """Model a recurrent layer as one GEMM of its inputs and its states.

    Its arguments are inputs [T, B, I], weights [G·H, I] and [G·H, H], two biases [G·H] and states
    [B, H] each. All T steps together multiply T·B rows by G·H x (I + H) numbers.
    """
    x, input_weight, state_weight = (
        tensor(call, 0, rank=3),
        tensor(call, 1, rank=2),
        tensor(call, 2),
    )
    (steps, batch, width), (gates, inputs) = x.shape, input_weight.shape
    require(inputs == width and len(state_weight.shape) == 2 and state_weight.shape[0] == gates)
    hidden = state_weight.shape[1]
    gemm = Gemm(steps * batch, gates, width + hidden)
    weights = [t.bytes for t in (input_weight, state_weight, tensor(call, 3), tensor(call, 4))]
    written = byte_size(steps * batch * hidden, x.dtype)
    return Work(
        flop=gemm.flop,
        bytes=sum_known([x.bytes, *weights, written]),
        gemms=(gemm,),
        dtype=x.dtype,
        kind="gemm",
    )
