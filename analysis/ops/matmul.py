"""Work of dense matrix products: the GEMM, its FLOPs (2·M·N·K) and its compulsory bytes.

M counts rows of the activations, N output features, K input features. A bias is read (bytes) but
its add is not counted in FLOPs.
"""

from __future__ import annotations

import math
from dataclasses import replace

from prunescope.analysis.ops.call import (
    NoModel,
    OpCall,
    Operand,
    Work,
    broadcast,
    number,
    op_model,
    optional,
    scalar_type,
    size,
    tensor,
    total,
)
from prunescope.taxonomy.gemm import Gemm


def gemm_kind(gemm: Gemm, *, batched: bool = False) -> str:
    """gemv where one side of the product is a single vector, batched_gemm for bmm and the like."""
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
    """Work of one GEMM that reads `read` (the first two are its operands) and writes its result
    in the format `out`, that of the first operand where not given. Without a result (an expert to
    which no token was sent) nothing is read."""
    first = read[0]
    dtype = first.dtype if first is not None else None
    results = gemm.batch * gemm.m * gemm.n
    moved = [*(t.bytes for t in read if t is not None), size(results, out or dtype)]
    return Work(
        flop=gemm.flop,
        bytes=total(moved) if results else 0.0,
        gemms=(gemm,),
        dtype=dtype,
        kind=kind or gemm_kind(gemm, batched=batched),
    )


def pair(a: Operand, b: Operand) -> Gemm:
    """[m, k] x [k, n]."""
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[1] != b.shape[0]:
        raise NoModel
    return Gemm(a.shape[0], b.shape[1], a.shape[1])


def _batched(a: Operand, b: Operand) -> Gemm:
    """[b, m, k] x [b, k, n]."""
    if len(a.shape) != 3 or len(b.shape) != 3:
        raise NoModel
    if a.shape[0] != b.shape[0] or a.shape[2] != b.shape[1]:
        raise NoModel
    return Gemm(a.shape[1], b.shape[2], a.shape[2], batch=a.shape[0])


def _added(call: OpCall, index: int, beta: int) -> Operand | None:
    """The matrix that is added: not read where beta is 0."""
    return None if number(call, beta) == 0 else optional(call, index)


@op_model("aten::mm", kind="gemm")
def mm(call: OpCall) -> Work:
    """[m, k] x [k, n]."""
    a, b = tensor(call, 0), tensor(call, 1)
    return gemm_work(pair(a, b), a, b)


@op_model("aten::addmm", "aten::addmm_", "aten::_addmm_activation", kind="gemm")
def addmm(call: OpCall) -> Work:
    """[n] + [m, k] x [k, n]."""
    a, b = tensor(call, 1), tensor(call, 2)
    return gemm_work(pair(a, b), a, b, _added(call, 0, beta=3))


@op_model("aten::bmm", kind="batched_gemm")
def bmm(call: OpCall) -> Work:
    """[b, m, k] x [b, k, n]."""
    a, b = tensor(call, 0), tensor(call, 1)
    return gemm_work(_batched(a, b), a, b, batched=True)


@op_model("aten::baddbmm", "aten::baddbmm_", kind="batched_gemm")
def baddbmm(call: OpCall) -> Work:
    """[b, m, n] + [b, m, k] x [b, k, n]."""
    a, b = tensor(call, 1), tensor(call, 2)
    return gemm_work(_batched(a, b), a, b, _added(call, 0, beta=3), batched=True)


@op_model("aten::mv", kind="gemv")
def mv(call: OpCall) -> Work:
    """[m, k] x [k]."""
    a, b = tensor(call, 0, rank=2), tensor(call, 1, rank=1)
    return gemm_work(_product(a, b), a, b)


@op_model("aten::addmv", "aten::addmv_", kind="gemv")
def addmv(call: OpCall) -> Work:
    """[m] + [m, k] x [k]."""
    a, b = tensor(call, 1, rank=2), tensor(call, 2, rank=1)
    return gemm_work(_product(a, b), a, b, _added(call, 0, beta=3))


@op_model("aten::dot", "aten::vdot", "aten::matmul", kind="gemm")
def matmul(call: OpCall) -> Work:
    """Any ranks, as torch.matmul reads them."""
    a, b = tensor(call, 0), tensor(call, 1)
    gemm = _product(a, b)
    return gemm_work(gemm, a, b, batched=len(a.shape) > 2 and len(b.shape) > 2)


@op_model(
    "aten::linear",
    "mkldnn::_linear_pointwise",
    "aten::mkldnn_linear",
    "aiter::gemm_a16w16",
    kind="gemm",
)
def linear(call: OpCall) -> Work:
    """[.., k] x [n, k]ᵀ + [n]."""
    return _linear(call, bias=2, out=None)


@op_model("mkl::_mkl_linear", kind="gemm")
def mkl_linear(call: OpCall) -> Work:
    """[.., k] x packed + [n]; the packed weight has no shape, the original one gives it."""
    a, weight = tensor(call, 0), tensor(call, 2, rank=2)
    return gemm_work(rows(a, weight), a, weight, optional(call, 3))


@op_model("aten::_int_mm", kind="gemm")
def int_mm(call: OpCall) -> Work:
    """int8 [m, k] x [k, n] to int32."""
    a, b = tensor(call, 0), tensor(call, 1)
    return gemm_work(pair(a, b), a, b, out="int32")


@op_model("aten::_scaled_mm", "aten::_scaled_mm_v2", kind="gemm")
def scaled_mm(call: OpCall) -> Work:
    """fp8 or fp4 [m, k] x [k, n] with scales, then bias, result scale, out_dtype."""
    a, b = _unpacked(tensor(call, 0, rank=2), 1), _unpacked(tensor(call, 1, rank=2), 0)
    rest = [optional(call, i) for i in range(2, 6)]
    out = scalar_type(call, 6) or "bf16"  # the op's own results are 16-bit by default
    return gemm_work(pair(a, b), a, b, *rest, out=out)


@op_model("aten::_weight_int8pack_mm", kind="gemm")
def int8pack_mm(call: OpCall) -> Work:
    """[m, k] x int8 [n, k]ᵀ with scales [n]."""
    a, weight = tensor(call, 0, rank=2), tensor(call, 1, rank=2)
    return gemm_work(rows(a, weight), a, weight, optional(call, 2))


@op_model("aten::_weight_int4pack_mm", "aten::_weight_int4pack_mm_for_cpu", kind="gemm")
def int4pack_mm(call: OpCall) -> Work:
    """[m, k] x packed int4, scales and zeros [k/group, n, 2]: N is theirs, the packing varies."""
    a, weight, scales = tensor(call, 0, rank=2), tensor(call, 1), tensor(call, 3, rank=3)
    return gemm_work(Gemm(a.shape[0], scales.shape[1], a.shape[1]), a, weight, scales)


@op_model("aten::_grouped_mm", "aten::_scaled_grouped_mm", kind="grouped_gemm")
def grouped_mm(call: OpCall) -> Work:
    """One GEMM per group, its rows (or columns, or K) given by offsets.

    [t, k] x [g, k, n], [g, m, k] x [k, t], [m, t] x [t, n] over groups of t, [g, m, k] x [g, k, n].
    Offsets are values: every row of `t` is taken as used, and of the g matrices at most as many are
    read as there are rows.
    """
    a, b = tensor(call, 0), tensor(call, 1)
    scaled = call.name == "aten::_scaled_grouped_mm"
    offsets = optional(call, 4 if scaled else 2)
    groups = offsets.shape[0] if offsets is not None and len(offsets.shape) == 1 else None
    out = "bf16" if scaled else a.dtype
    ranks = (len(a.shape), len(b.shape))
    if ranks not in ((2, 3), (3, 2), (2, 2), (3, 3)) or a.shape[-1] != b.shape[-2]:
        raise NoModel
    gemm = Gemm(a.shape[-2], b.shape[-1], a.shape[-1])
    if ranks == (3, 3):
        gemm = replace(gemm, batch=a.shape[0])
    stack = next((t.shape[0] for t in (b, a) if len(t.shape) > 2), groups)
    if ranks == (2, 3):
        b = _first(b, a.shape[0])
    elif ranks == (3, 2):
        a = _first(a, b.shape[1])
    work = gemm_work(gemm, a, b, out=out, kind="grouped_gemm")
    stacked = b if len(b.shape) > 2 else a
    read = stacked.shape[0] if len(stacked.shape) > 2 else groups
    each = size(gemm.n * gemm.k, b.dtype) if ranks == (2, 3) else None
    work = replace(work, groups=read, stack=stack, each=each)
    if ranks == (2, 2):
        # K is split over the groups, and each group has a result of its own.
        if groups is None:
            raise NoModel
        more = size((groups - 1) * gemm.m * gemm.n, out)
        work = replace(work, bytes=total([work.bytes, more]))
    return work


def _first(t: Operand, count: int) -> Operand:
    """At most the first `count` matrices of a stack."""
    return Operand((min(t.shape[0], count), *t.shape[1:]), t.dtype)


def _unpacked(t: Operand, axis: int) -> Operand:
    """An fp4 element of a trace is a pair along K."""
    if t.dtype != "fp4":
        return t
    shape = tuple(n * 2 if i == axis else n for i, n in enumerate(t.shape))
    return Operand(shape, t.dtype)


def rows(a: Operand, weight: Operand) -> Gemm:
    """[.., k] x [n, k]ᵀ: all leading dimensions are rows."""
    if not a.shape or len(weight.shape) not in (1, 2) or a.shape[-1] != weight.shape[-1]:
        raise NoModel
    n = weight.shape[0] if len(weight.shape) == 2 else 1
    return Gemm(math.prod(a.shape[:-1]), n, a.shape[-1])


def _linear(call: OpCall, *, bias: int, out: str | None) -> Work:
    a, weight = tensor(call, 0), tensor(call, 1)
    return gemm_work(rows(a, weight), a, weight, optional(call, bias), out=out)


def _product(a: Operand, b: Operand) -> Gemm:
    """The GEMM of torch.matmul. A batched left side times one matrix is one GEMM of all rows."""
    if not a.shape or not b.shape:
        raise NoModel
    left = a.shape if len(a.shape) > 1 else (1, *a.shape)
    right = b.shape if len(b.shape) > 1 else (*b.shape, 1)
    if left[-1] != right[-2]:
        raise NoModel
    if len(right) == 2:
        return Gemm(math.prod(left[:-1]), right[1], left[-1])
    batch = math.prod(broadcast(left[:-2], right[:-2]))
    return Gemm(left[-2], right[-1], left[-1], batch=batch)


@op_model("aten::mkldnn_rnn_layer", kind="gemm")
def mkldnn_rnn_layer(call: OpCall) -> Work:
    """A recurrent layer: inputs [T, B, I], weights [G·H, I] and [G·H, H], two biases [G·H], states
    [B, H] each: all T steps multiply T·B rows by G·H x (I + H) numbers. FLOPs are those of the
    products of inputs and states; the Gemm is one of both."""
    x, of_inputs, of_states = tensor(call, 0, rank=3), tensor(call, 1, rank=2), tensor(call, 2)
    (steps, batch, width), (gates, inputs) = x.shape, of_inputs.shape
    if inputs != width or len(of_states.shape) != 2 or of_states.shape[0] != gates:
        raise NoModel
    hidden = of_states.shape[1]
    gemm = Gemm(steps * batch, gates, width + hidden)
    weights = [one.bytes for one in (of_inputs, of_states, tensor(call, 3), tensor(call, 4))]
    written = size(steps * batch * hidden, x.dtype)
    return Work(
        flop=gemm.flop,
        bytes=total([x.bytes, *weights, written]),
        gemms=(gemm,),
        dtype=x.dtype,
        kind="gemm",
    )
