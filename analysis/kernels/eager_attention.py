"""Attention of separate ops: two batched products around a softmax.

In: kinds and op calls of rows in the order of their launch. Out: the rows from QKᵀ to PV of each,
where the sizes fit: with S queries and L keys, [b, S, d] x [b, d, L] and then [b, S, L] x [b, L,
d_v].
"""

from __future__ import annotations

from collections.abc import Sequence

from prunescope.analysis.ops.call import OpCall
from prunescope.analysis.ops.work import work_of
from prunescope.taxonomy.gemm import Gemm

_PRODUCTS = ("gemm", "gemv", "sparse_gemm", "batched_gemm", "grouped_gemm")


def eager_attentions(kinds: Sequence[str], calls: Sequence[OpCall | None]) -> list[tuple[int, int]]:
    """Return the first and last row of each attention: those of its two products."""
    attentions: list[tuple[int, int]] = []
    first, scores, softmax = -1, None, False
    known: dict[int, Gemm | None] = {}
    for i, kind in enumerate(kinds):
        if kind == "softmax":
            softmax = True
            continue
        if kind not in _PRODUCTS:
            continue
        call = calls[i]
        if call is not None and call is calls[first] and first >= 0 and not softmax:
            continue  # a second kernel of the first product
        gemm = None
        if call is not None and kind == "batched_gemm":
            if id(call) not in known:
                known[id(call)] = _product(call)
            gemm = known[id(call)]
        if softmax and scores is not None and gemm is not None and _reads(gemm, scores):
            attentions.append((first, i))
            first, scores, softmax = -1, None, False
        else:
            first, scores, softmax = i, gemm, False
    return attentions


def _reads(values: Gemm, scores: Gemm) -> bool:
    """Return whether the second product multiplies what the first one gave."""
    return (values.batch, values.m, values.k) == (scores.batch, scores.m, scores.n)


def _product(call: OpCall) -> Gemm | None:
    work = work_of(call)
    gemm = None if work is None else work.single_gemm
    return gemm if gemm is not None and gemm.batch > 1 else None
