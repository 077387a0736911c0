"""Static K, low rank, read back: one GEMM became two."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

from prunescope.analysis.ledger.calls import Call
from prunescope.analysis.ledger.gemms import Pair
from prunescope.analysis.verdict.evidence import Detection, Evidence, most_common

Size = tuple[int, int, int]


def detect(e: Evidence) -> Detection | None:
    """GEMMs that became two, through a rank."""
    found = [p for p in e.pairs if p.axis == "rank"]
    if not found:
        return _by_shapes(e)
    roles = Counter(p.key[1] for p in found if p.key[3] == 0)
    line = f"{sum(roles.values())} GEMMs became two through a rank: {most_common(roles)}"
    return Detection([line], lambda p: float(p.axis == "rank"))


def _by_shapes(e: Evidence) -> Detection | None:
    """All linears that the pruned side lacks have a pair of GEMMs in it that it has more than the
    dense side, [T,K]→[T,r]→[T,N] of one rank, whatever their modules are called."""
    dense, pruned = _plain(p.dense for p in e.pairs), _plain(p.pruned for p in e.pairs)
    lacks, more = dense - pruned, pruned - dense
    if not lacks:
        return None
    ranks = {k for (_, _, k) in more} & {n for (_, n, _) in more}
    for rank in sorted(ranks):
        halves: Counter[Size] = Counter()
        for (m, n, k), count in lacks.items():
            halves[m, rank, k] += count
            halves[m, n, rank] += count
        if halves == more and all(rank < min(n, k) for _, n, k in lacks):
            line = (
                f"{lacks.total()} GEMMs became two through a rank of {rank}, told by their shapes"
            )
            return Detection([line], _touches({*lacks}, {*halves}), confidence=0.8)
    return None


def _plain(calls: Iterable[Call | None]) -> Counter[Size]:
    """How often each M, N, K of plain GEMMs occurs in a step, each call of one side once."""
    found: Counter[Size] = Counter()
    for call in {id(c): c for c in calls if c is not None}.values():
        if call.group not in ("qk", "pv") and call.gemm is not None and call.gemm.batch == 1:
            found[call.gemm.m, call.gemm.n, call.gemm.k] += round(call.count)
    return found


def _touches(lacks: set[Size], halves: set[Size]) -> Callable[[Pair], float]:
    def share(pair: Pair) -> float:
        old = pair.dense.gemm if pair.dense is not None else None
        new = pair.pruned.gemm if pair.pruned is not None else None
        return float(
            old is not None
            and (old.m, old.n, old.k) in lacks
            or new is not None
            and (new.m, new.n, new.k) in halves
        )

    return share
