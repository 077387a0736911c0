"""The work of 2:4 sparse GEMMs, and of matrices that store numbers with indices (CSR, CSC, COO).

In a 2:4 GEMM the sparse weight comes first (W·Xᵀ), so M is a column count. FLOPs count what sparse
tensor cores do, 2·M·N·(K/2), while the Gemm keeps the logical K. Bytes read the kept values with
their indices: 9/16 of the dense weight at 16 bits (5/8 at 8 bits).

A matrix with indices is an operand of the shape of the dense matrix, without strides. FLOPs are 2 ×
the stored numbers × the rows or columns of the dense operand. No argument tells how many numbers
are stored: `OpCall.result` has the count where ops inside of the call show it, else the work is
unknown. No M, N, K tell how much such a product multiplies, so it has no Gemm.
"""

from __future__ import annotations

import math

from prunescope.analysis.ops.call import (
    NoModel,
    OpCall,
    Operand,
    Work,
    byte_size,
    number,
    op_model,
    optional,
    require,
    sum_known,
    tensor,
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
    """Return the index of the operand that stores its numbers with indices: it has no strides.

    Returns None where none of the two operands of a product does, or both do.
    """
    first = PRODUCTS.get(call.name)
    if first is None or not any(call.strides):
        return None
    bare = [not any(call.strides[i : i + 1]) for i in (first, first + 1)]
    return first + bare.index(True) if any(bare) and not all(bare) else None


@op_model("aten::_sparse_mm", "aten::_sparse_addmm", kind="gemm")
def indexed_product(call: OpCall) -> Work:
    """Model the product of a dense matrix and one that stores numbers with indices.

    `call.result` is (numbers, bytes of their indices). `aten::mm` and `aten::addmm` with such an
    operand have this model, too.
    """
    first, sparse = PRODUCTS[call.name], indexed_operand(call)
    if sparse is None or len(call.result) != len(("numbers", "bytes")):
        raise NoModel
    stored, index_bytes = call.result
    a, b = tensor(call, first, rank=2), tensor(call, first + 1, rank=2)
    require(a.shape[1] == b.shape[0] and stored <= (b if sparse > first else a).numel)
    dense = a if sparse > first else b
    times = a.shape[0] if sparse > first else b.shape[1]
    added = optional(call, 0) if first and number(call, first + 2) != 0 else None
    written = byte_size(a.shape[0] * b.shape[1], dense.dtype)
    moved = [byte_size(stored, dense.dtype), float(index_bytes), dense.bytes, written]
    moved += [] if added is None else [added.bytes]
    return Work(
        flop=2 * stored * times, bytes=sum_known(moved), gemms=(), dtype=dense.dtype, kind="gemm"
    )


@op_model("aten::sparse_sampled_addmm", kind="gemm")
def sampled_addmm(_: OpCall) -> Work:
    """Refuse a dense product at the places of a sparse one, whose count a trace does not hold."""
    raise NoModel


def _sparse_work(gemm: Gemm, *read: Operand | None, dtype: str | None) -> Work:
    """Return the work of a 2:4 GEMM that reads `read` and writes its result in `dtype`."""
    written = byte_size(gemm.m * gemm.n, dtype)
    return Work(
        flop=gemm.flop // 2,
        bytes=sum_known([*(t.bytes for t in read if t is not None), written]),
        gemms=(gemm,),
        dtype=dtype,
        kind="sparse_gemm",
    )


@op_model("aten::_cslt_sparse_mm", kind="sparse_gemm")
def cslt_sparse_mm(call: OpCall) -> Work:
    """Model a compressed weight (values, then indices: 9/16 of n·k), dense [k, m] and bias [n]."""
    packed, dense = tensor(call, 0), tensor(call, 1, rank=2)
    k, m = dense.shape
    # cuSPARSELt stores half the values and 2 bits for each of them: 9/16 of 16 bits, 10/16 of 8.
    share = 10 if dense.dtype in ("int8", "fp8") else 9
    require(k != 0 and packed.numel * 16 % (share * k) == 0)
    gemm = Gemm(m, packed.numel * 16 // (share * k), k)
    return _sparse_work(gemm, packed, dense, optional(call, 2), dtype=dense.dtype)


@op_model("aten::_sparse_semi_structured_linear", kind="sparse_gemm")
def semi_structured_linear(call: OpCall) -> Work:
    """Model [.., k] x sparse values [n, k/2] with their indices, and bias [n]."""
    a, values, indices = tensor(call, 0), tensor(call, 1, rank=2), tensor(call, 2)
    n, half = values.shape
    require(a.shape and a.shape[-1] == 2 * half)
    gemm = Gemm(math.prod(a.shape[:-1]), n, a.shape[-1])
    return _sparse_work(gemm, a, values, indices, optional(call, 3), dtype=a.dtype)


@op_model("aten::_sparse_semi_structured_mm", kind="sparse_gemm")
def semi_structured_mm(call: OpCall) -> Work:
    """Model sparse values [n, k/2], their indices and dense [k, m]."""
    return _sparse_times_dense(call, values=0)


@op_model("aten::_sparse_semi_structured_addmm", kind="sparse_gemm")
def semi_structured_addmm(call: OpCall) -> Work:
    """Model an added [n], sparse values [n, k/2], their indices and dense [k, m]."""
    return _sparse_times_dense(call, values=1)


def _sparse_times_dense(call: OpCall, *, values: int) -> Work:
    """Return the work of sparse values x dense.

    `values` is the position of the values; the bias is before them where that is not 0.
    """
    kept, indices = tensor(call, values, rank=2), tensor(call, values + 1)
    dense = tensor(call, values + 2, rank=2)
    require(dense.shape[0] == 2 * kept.shape[1])
    gemm = Gemm(dense.shape[1], kept.shape[0], dense.shape[0])
    bias = optional(call, 0) if values else None
    return _sparse_work(gemm, kept, indices, dense, bias, dtype=dense.dtype)
