"""Work of 2:4 sparse GEMMs, and of matrices that store their numbers with indices (CSR, CSC, COO).

2:4: the sparse weight comes first (W·Xᵀ), so M is a column count. FLOPs count what sparse tensor
cores do: 2·M·N·(K/2). The Gemm keeps the logical K. Bytes read the kept values with their indices:
9/16 of the dense weight at 16 bits (5/8 at 8 bits).

With indices: an operand of the shape of the dense matrix, and without strides. FLOPs are 2 × the
stored numbers × the rows or columns of the dense operand. How many are stored is in no argument:
`OpCall.result` has it where ops inside of the call show it, else the work is unknown. No M, N, K
say how much such a product multiplies, so that it has no Gemm.
"""

from __future__ import annotations

import math

from prunescope.analysis.ops.call import (
    NoModel,
    OpCall,
    Operand,
    Work,
    number,
    op_model,
    optional,
    size,
    tensor,
    total,
)
from prunescope.taxonomy.gemm import Gemm

# The position of the first of the two operands of a product.
PRODUCTS = {
    "aten::mm": 0,
    "aten::addmm": 1,
    "aten::_sparse_mm": 0,
    "aten::_sparse_addmm": 1,
}


def indexed_operand(call: OpCall) -> int | None:
    """Which operand of a product stores its numbers with indices: it has no strides, where the
    other one has. None where none does, or both do."""
    first = PRODUCTS.get(call.name)
    if first is None or not any(call.strides):
        return None
    bare = [not any(call.strides[i : i + 1]) for i in (first, first + 1)]
    return first + bare.index(True) if any(bare) and not all(bare) else None


@op_model("aten::_sparse_mm", "aten::_sparse_addmm", kind="gemm")
def indexed_product(call: OpCall) -> Work:
    """The product of a dense matrix and one that stores `call.result` = (numbers, bytes of their
    indices); also of `aten::mm` and `aten::addmm` with such an operand."""
    first, sparse = PRODUCTS[call.name], indexed_operand(call)
    if sparse is None or len(call.result) != len(("numbers", "bytes")):
        raise NoModel
    stored, index_bytes = call.result
    a, b = tensor(call, first, rank=2), tensor(call, first + 1, rank=2)
    if a.shape[1] != b.shape[0] or stored > (b if sparse > first else a).numel:
        raise NoModel
    dense = a if sparse > first else b
    times = a.shape[0] if sparse > first else b.shape[1]
    added = optional(call, 0) if first and number(call, first + 2) != 0 else None
    written = size(a.shape[0] * b.shape[1], dense.dtype)
    moved = [size(stored, dense.dtype), float(index_bytes), dense.bytes, written]
    moved += [] if added is None else [added.bytes]
    return Work(
        flop=2 * stored * times, bytes=total(moved), gemms=(), dtype=dense.dtype, kind="gemm"
    )


@op_model("aten::sparse_sampled_addmm", kind="gemm")
def sampled_addmm(_: OpCall) -> Work:
    """A dense product at the places of a sparse one, whose count a trace does not hold."""
    raise NoModel


def _sparse_work(gemm: Gemm, *read: Operand | None, dtype: str | None, out: str | None) -> Work:
    written = size(gemm.m * gemm.n, out)
    return Work(
        flop=gemm.flop // 2,
        bytes=total([*(t.bytes for t in read if t is not None), written]),
        gemms=(gemm,),
        dtype=dtype,
        kind="sparse_gemm",
    )


@op_model("aten::_cslt_sparse_mm", kind="sparse_gemm")
def cslt_sparse_mm(call: OpCall) -> Work:
    """Compressed weight (values, then indices: 9/16 of n·k) and dense [k, m]; bias [n]."""
    packed, dense = tensor(call, 0), tensor(call, 1, rank=2)
    k, m = dense.shape
    # cuSPARSELt stores half the values and 2 bits for each of them: 9/16 of 16 bits, 10/16 of 8.
    share = 10 if dense.dtype in ("int8", "fp8") else 9
    if k == 0 or packed.numel * 16 % (share * k):
        raise NoModel
    gemm = Gemm(m, packed.numel * 16 // (share * k), k)
    return _sparse_work(gemm, packed, dense, optional(call, 2), dtype=dense.dtype, out=dense.dtype)


@op_model("aten::_sparse_semi_structured_linear", kind="sparse_gemm")
def semi_structured_linear(call: OpCall) -> Work:
    """[.., k] x sparse values [n, k/2] with their indices; bias [n]."""
    a, values, indices = tensor(call, 0), tensor(call, 1, rank=2), tensor(call, 2)
    n, half = values.shape
    if not a.shape or a.shape[-1] != 2 * half:
        raise NoModel
    gemm = Gemm(math.prod(a.shape[:-1]), n, a.shape[-1])
    return _sparse_work(gemm, a, values, indices, optional(call, 3), dtype=a.dtype, out=a.dtype)


@op_model("aten::_sparse_semi_structured_mm", kind="sparse_gemm")
def semi_structured_mm(call: OpCall) -> Work:
    """Sparse values [n, k/2], their indices, dense [k, m]."""
    return _from_left(call, values=0, added=None)


@op_model("aten::_sparse_semi_structured_addmm", kind="sparse_gemm")
def semi_structured_addmm(call: OpCall) -> Work:
    """Added [n], sparse values [n, k/2], their indices, dense [k, m]."""
    return _from_left(call, values=1, added=0)


def _from_left(call: OpCall, *, values: int, added: int | None) -> Work:
    kept, indices = tensor(call, values, rank=2), tensor(call, values + 1)
    dense = tensor(call, values + 2, rank=2)
    if dense.shape[0] != 2 * kept.shape[1]:
        raise NoModel
    gemm = Gemm(dense.shape[1], kept.shape[0], dense.shape[0])
    bias = None if added is None else optional(call, added)
    return _sparse_work(gemm, kept, indices, dense, bias, dtype=dense.dtype, out=dense.dtype)
