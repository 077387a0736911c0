"""Detectors of families that remove layers, or replace a GEMM by two of a low rank.

In: Evidence. Out: a Detection, or None.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

from prunescope.analysis.ledger.call import OF_ATTENTION, Call
from prunescope.analysis.ledger.gemms import Pair
from prunescope.analysis.verdict.detectors import detector
from prunescope.analysis.verdict.evidence import Detection, Evidence
from prunescope.analysis.wording.verdict import most_common
from prunescope.taxonomy.roles import UNPLACED

_Size = tuple[int, int, int]  # M, N, K
# What a sublayer ends with: linear attention and state-space mixers stand in attention's place.
_ATTENTION_ENDS = ("o", "mixer_out")
_MLP_ENDS = ("down", "experts")


@detector("static-m")
def static_m(e: Evidence) -> Detection | None:
    """Detect that whole layers, or all GEMMs of an attention or MLP sublayer, were removed."""
    removed, here = e.removed_and_kept_roles()
    if not here:  # no layer is known on the pruned side: none is known to be removed
        return None
    layers = [i for i in removed if i not in here]
    attention = [
        i for i in removed if i in here and _end_is_removed(_ATTENTION_ENDS, removed[i], here[i])
    ]
    mlp = [i for i in removed if i in here and _end_is_removed(_MLP_ENDS, removed[i], here[i])]
    # The router and experts are one sublayer: some of them here means that it is.
    mlp = [i for i in mlp if not here[i] & {*_MLP_ENDS, "router", "shared_expert"}]
    weights = e.removed_weights()
    if weights:  # weights of layers that a router skips are still stored
        layers = [i for i in layers if any((i, role) in weights for role in removed[i])]
        attention = [i for i in attention if any((i, end) in weights for end in _ATTENTION_ENDS)]
        mlp = [i for i in mlp if any((i, end) in weights for end in _MLP_ENDS)]
    if not layers and not attention and not mlp:
        return None
    total = e.units.alignment.num_dense
    lines = []
    for rows, unit in (
        (layers, "layers"),
        (attention, "attention sublayers"),
        (mlp, "MLP sublayers"),
    ):
        if rows:
            which = f": {_list_numbers(sorted(rows))}" if e.units.alignment.exact else ""
            lines.append(f"{len(rows)} of {total} {unit} removed{which}")
    touched = {*layers, *attention, *mlp}
    return Detection(
        lines, lambda p: float(p.key[0] in touched and p.pruned is None), proven=bool(weights)
    )


def _end_is_removed(ends: tuple[str, ...], removed: set[str], here: set[str]) -> bool:
    """Return whether the GEMM with which a sublayer ends was removed."""
    return any(end in removed and end not in here for end in ends)


def _list_numbers(values: list[int]) -> str:
    """List up to twelve numbers."""
    shown = ", ".join(map(str, values[:12]))
    return shown + (", …" if len(values) > 12 else "")


@detector("static-k-lowrank")
def static_k_lowrank(e: Evidence) -> Detection | None:
    """Detect GEMMs that became two, through a rank."""
    through_rank = [p for p in e.pairs if p.axis == "rank" and p.key[1] not in UNPLACED]
    if not through_rank:
        return _detect_by_shapes(e) or _detect_by_order(e)
    roles = Counter(p.key[1] for p in through_rank if p.key[3] == 0)
    line = (
        f"{sum(roles.values())} GEMMs became two through a rank"
        f"{_describe_ranks(through_rank)}: {most_common(roles)}"
    )
    return Detection([line], lambda p: float(p.axis == "rank"))


def _describe_ranks(pairs: Iterable[Pair]) -> str:
    """Return the ranks that are kept of those that the dense GEMMs can have: ` of 64 of 512`."""
    sizes = {
        (new.n, min(old.n, old.k))
        for pair in pairs
        for old, new in [pair.gemms]
        if old is not None and new is not None and new.k == old.k
    }
    if not sizes:
        return ""
    kept, whole = ({size[i] for size in sizes} for i in (0, 1))
    return f" of {_spell_range(kept)} of {_spell_range(whole)}"


def _spell_range(sizes: set[int]) -> str:
    """Return one size, or the least and the most of several."""
    return f"{min(sizes)}" if len(sizes) == 1 else f"{min(sizes)} to {max(sizes)}"


_NARROWED = ("static-nk", "static-nk-heads", "static-nk-mlp", "static-nk-cross")


def _detect_by_shapes(e: Evidence) -> Detection | None:
    """Detect a rank where modules have other names on the two sides.

    Every linear that only the dense side has must be replaced by two GEMMs that only the pruned
    side has, [T,K]→[T,r]→[T,N] with one rank for all.
    """
    dense, pruned = _count_plain(p.dense for p in e.pairs), _count_plain(p.pruned for p in e.pairs)
    lacks, more = dense - pruned, pruned - dense
    if not lacks:
        return None
    ranks = {k for (_, _, k) in more} & {n for (_, n, _) in more}
    for rank in sorted(ranks):
        halves: Counter[_Size] = Counter()
        for (m, n, k), count in lacks.items():
            halves[m, rank, k] += count
            halves[m, n, rank] += count
        if halves == more and all(rank < min(n, k) for _, n, k in lacks):
            line = (
                f"{lacks.total()} GEMMs became two through a rank of {rank} of "
                f"{_spell_range({min(n, k) for _, n, k in lacks})}, read from their shapes"
            )
            # All that moved is of the rank: no GEMM is left that could have become narrower.
            touches = _touch_sizes({*lacks}, {*halves})
            return Detection([line], touches, confidence=0.8, explains=_NARROWED)
    return None


def _detect_by_order(e: Evidence) -> Detection | None:
    """Detect ranks where no module names the GEMMs.

    Every GEMM must be there in order, in its shape or as two through a rank of its own.
    """
    replaced = {id(p.dense): p.dense for p in e.pairs if p.axis == "rank" and p.dense is not None}
    if not replaced or any(p.axis not in ("rank", "none") for p in e.pairs):
        return None
    count = round(sum(call.count for call in replaced.values()))
    ranks = _describe_ranks(p for p in e.pairs if p.axis == "rank")
    line = f"{count} GEMMs became two through a rank{ranks}, read from their shapes in order"
    return Detection([line], lambda p: float(p.axis == "rank"), confidence=0.8, explains=_NARROWED)


def _count_plain(calls: Iterable[Call | None]) -> Counter[_Size]:
    """Count how often each M, N, K of plain GEMMs occurs in a step, each call of one side once."""
    counts: Counter[_Size] = Counter()
    for call in {id(c): c for c in calls if c is not None}.values():
        if call.group not in OF_ATTENTION and call.gemm is not None and call.gemm.batch == 1:
            counts[call.gemm.m, call.gemm.n, call.gemm.k] += round(call.count)
    return counts


def _touch_sizes(lacks: set[_Size], halves: set[_Size]) -> Callable[[Pair], float]:
    """Touch the pairs whose dense GEMM or whose halves have one of these sizes."""

    def share(pair: Pair) -> float:
        old, new = (None if gemm is None else (gemm.m, gemm.n, gemm.k) for gemm in pair.gemms)
        return float(old in lacks or new in halves)

    return share
