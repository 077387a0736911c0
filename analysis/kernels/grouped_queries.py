"""The queries of heads that share a key, folded into rows: [B, H_kv, g * S, d] for [B, H, S, d].

In: the calls of a trace and their work. Out: the work with the heads and queries of the model. An
engine folds them so that a token's g queries read each key once. The rows of attention are then g
times the tokens that the linears multiply, which the width of a projection confirms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from prunescope.analysis.kernels.role import GEMM_KINDS
from prunescope.analysis.ops.call import OpCall, Work
from prunescope.taxonomy.gemm import Gemm

_MOST = 256  # heads that share a key: more than any model has
_RANK = 4  # of the queries of attention, [B, H, S, d] or [B, S, H, d]
Linears = set[tuple[int, int]]  # M and N


def unfold_queries(calls: Sequence[OpCall], works: Sequence[Work | None]) -> list[Work | None]:
    """Return the works, those of folded attention with g times the heads and 1/g of the queries."""
    linears = {
        (gemm.m, gemm.n)
        for work in works
        if work is not None and work.kind in GEMM_KINDS
        for gemm in work.gemms
        if gemm.batch == 1
    }
    return [
        work if work is None or not linears else _unfolded(call, work, linears)
        for call, work in zip(calls, works, strict=True)
    ]


def _unfolded(call: OpCall, work: Work, linears: Linears) -> Work:
    shape: tuple[Any, ...] = call.shapes[0] if call.shapes else ()
    if work.kind != "attention" or len(work.gemms) != 2 or len(shape) != _RANK:
        return work
    scores, values = work.gemms
    sequences = shape[0]
    if not isinstance(sequences, int) or not sequences:
        return work
    group = _group(scores, sequences, linears)
    if group == 1:
        return work
    gemms = tuple(
        replace(gemm, m=gemm.m // group, batch=gemm.batch * group) for gemm in (scores, values)
    )
    flop = work.flop
    if flop is None and gemms[0].m == 1:  # of one query a sequence, causal or not
        flop = sum(2 * gemm.batch * gemm.m * gemm.n * gemm.k for gemm in gemms)
    return replace(work, gemms=gemms, flop=flop)


def _group(scores: Gemm, sequences: int, linears: Linears) -> int:
    """Return how many heads share a key; 1 where their queries are not folded."""
    rows, heads = sequences * scores.m, scores.batch // sequences
    if any(rows == m for m, _ in linears):
        return 1
    for group in range(2, min(scores.m, _MOST) + 1):
        if scores.m % group:
            continue
        tokens, width = rows // group, heads * group * scores.k
        # q alone, or with k and v.
        if {(tokens, width), (tokens, width + 2 * heads * scores.k)} & linears:
            return group
    return 1
