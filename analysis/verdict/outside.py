"""Pairs that are no pruning, or an extension that no family of the paper holds.

In: Evidence. Out: a Reason, or None; REASONS is the order in which they are tried.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from prunescope.analysis.comparison.differences import gemm_formats
from prunescope.analysis.comparison.more_calls import ON_WEIGHTS
from prunescope.analysis.comparison.other_inputs import other_inputs
from prunescope.analysis.kernels.frame import MATMUL, Kernels
from prunescope.analysis.ledger.call import Call
from prunescope.analysis.ledger.gemms import Pair
from prunescope.analysis.schema.notice import Notice, caveat
from prunescope.analysis.schema.pair_comparison import INPUTS, PARALLELISM
from prunescope.analysis.verdict.evidence import Evidence, Reason
from prunescope.taxonomy.dtypes import QUANTISED
from prunescope.taxonomy.roles import GROUPS

_LINEARS = GROUPS.keys() - {"lm_head", "router"}
_OTHER_LINEARS = ("mixer_in", "mixer_out", "experts", "shared_expert")
_ROUTED = ("experts", "shared_expert")
_SAME = 1e-3


def conditions(e: Evidence) -> Reason | None:
    """Return the first difference between the runs that makes the traces incomparable."""
    difference = next(
        (difference for difference in e.differences if difference.hides_pruning), None
    )
    if difference is None:
        return None
    notices = [caveat("not-comparable", difference=difference)]
    if difference.kind == PARALLELISM and (all_ranks := _compare_all_ranks(e)) is not None:
        notices.append(all_ranks)
    if difference.kind == INPUTS:
        notices += _list_moved(e)
    return Reason(kind=difference.kind, notices=tuple(notices))


def _compare_all_ranks(e: Evidence) -> Notice | None:
    """Compare the FLOPs of all ranks of both sides, as if each rank did as much as the traced one.

    None is returned where one of the numbers is unknown.
    """
    old, new = e.ranks
    sums = [
        sum(c.flop * c.count for c in calls.values() if c.flop is not None)
        for calls in (_distinct(p.dense for p in e.pairs), _distinct(p.pruned for p in e.pairs))
    ]
    if old is None or new is None or not all(sums):
        return None
    share = sums[1] * new / (sums[0] * old)
    return caveat("work-of-all-ranks", dense=old, pruned=new, share=share)


def _distinct(calls: Iterable[Call | None]) -> dict[int, Call]:
    """Return each call once: two GEMMs through a rank share a dense one."""
    return {id(call): call for call in calls if call is not None}


OTHER_WORK = "other-work"  # a kind of Reason


def replaced(e: Evidence) -> Reason | None:
    """Return a reason where no linear of the model is a GEMM: other ops replace them."""
    linears = [p for p in e.pairs if p.key[1] in _LINEARS and p.dense is not None]
    if not linears or any(p.pruned is not None for p in linears):
        return None
    # GEMMs whose place in the model is not known may be theirs: then it is unknown whether they
    # were removed.
    elsewhere = [p.pruned for p in e.pairs if p.dense is None and p.key[1] == "unknown"]
    if sum(c.count for c in elsewhere if c is not None and c.gemm is not None) >= len(linears):
        return None
    here = {p.key[:2] for p in linears}
    # A product of which no call is a GEMM is the work of a kernel of unknown kind.
    kinds = Counter(
        f"{key[1]} ({key[2] if is_added else 'unknown'})"
        for key, is_added, is_there in zip(
            e.units.keys, e.units.added, e.units.pruned.present, strict=True
        )
        if key[:2] in here and (is_added or (is_there and key[2] == MATMUL))
    )
    if not kinds and any(p.key[1] in _OTHER_LINEARS and p.pruned is not None for p in e.pairs):
        return None  # the layers that have such linears were removed, others were not
    return _reason("replaced-linears", gemms=len(linears), others=kinds.most_common(3))


def _reason(kind: str, **numbers: Any) -> Reason:
    """Return a reason of one notice."""
    return Reason(kind=kind, notices=(caveat(kind, **numbers),))


_SMALLER = ("N", "K", "NK", "heads", "rank", "gone")


def other_dtype(e: Evidence) -> Reason | None:
    """Return a reason where weights are in another number format, and no GEMM is smaller."""
    if (formats := _other_formats(e)) is None or any(p.axis in _SMALLER for p in e.pairs):
        return None
    return _reason("other-formats", **formats)


def _other_formats(e: Evidence) -> dict[str, Any] | None:
    """Return both formats, and whether weights are unpacked to the dense one; None if equal."""
    dtypes = gemm_dtypes(e) or e.unpacked
    if dtypes is None:
        return None
    return {"dense": dtypes[0], "pruned": dtypes[1], "unpacked": dtypes == e.unpacked}


def quantised_too(e: Evidence) -> Notice | None:
    """Return a caveat if the pruned model also runs in another dtype; else None."""
    formats = _other_formats(e)
    return None if formats is None else caveat("formats-besides", **formats)


def gemm_dtypes(e: Evidence) -> tuple[str, str] | None:
    """Return the formats of the GEMMs of both sides, where they differ."""
    return min(gemm_formats(e.pairs), default=None)


def inputs(e: Evidence) -> Reason | None:
    """Return a reason where rows of every linear changed in one ratio: another batch or length."""
    changed = other_inputs(e.pairs, e.convolutions)
    if changed is None:
        return None
    notices = (caveat("not-comparable", difference=changed), *_list_moved(e))
    return Reason(kind=changed.kind, notices=notices)


def _list_moved(e: Evidence) -> list[Notice]:
    """Return a caveat that names the linears of other N or K, besides another batch or length."""
    roles: Counter[str] = Counter()
    for pair in e.pairs:
        old, new = pair.gemms
        is_linear = not pair.is_of_attention and pair.key[1] not in _ROUTED
        if is_linear and old and new and (old.n, old.k) != (new.n, new.k):
            roles[pair.key[1]] += 1
    return [caveat("moved-besides", roles=roles)] if roles else []


def larger(e: Evidence) -> Reason | None:
    """Return a reason where GEMMs are larger than their dense partners, and none is smaller."""
    found: list[Pair] = []
    for pair in e.pairs:
        if pair.pruned is None:
            return None  # what was removed is smaller
        if pair.dense is None or pair.axis == "rank":
            continue
        old, new = pair.dense.gemm, pair.pruned.gemm
        if old is None or new is None:
            continue
        if (new.n, new.k, new.batch) != (old.n, old.k, old.batch):
            if new.n < old.n or new.k < old.k or new.batch < old.batch:
                return None
            found.append(pair)
    if not found:
        return None
    return _reason("larger-gemms", roles=Counter(p.key[1] for p in found))


def other_attention(e: Evidence) -> Reason | None:
    """Return a reason where other ops compute attention, and no linear moved."""

    def ops(side: Callable[[Pair], Call | None]) -> set[str]:
        calls = (side(p) for p in e.pairs if p.is_of_attention)
        return {c.op for c in calls if c is not None and c.op}

    dense, pruned = ops(lambda p: p.dense), ops(lambda p: p.pruned)
    linears = {p.axis for p in e.pairs if not p.is_of_attention}
    if dense and pruned and not dense & pruned and linears <= {"none"}:
        return _reason("other-attention", dense=sorted(dense), pruned=sorted(pruned))
    return None


def other_work(e: Evidence) -> Reason | None:
    """Return a reason where no GEMM moved, and other units came or went."""
    added, removed = _names(e, e.units.added), _names(e, e.units.removed)
    if not added and not removed:
        return None
    hidden = e.hidden()
    units = [
        caveat("other-units", change=change, counts=counts, some_unknown=bool(hidden))
        for change, counts in (("added", added), ("gone", removed))
        if counts
    ]
    return Reason(kind=OTHER_WORK, notices=(*units, *hidden), confidence=0.7)


def more_ops(e: Evidence) -> Reason | None:
    """Return a reason where pointwise ops run more often within the units, and nothing else moved.

    No GEMM moved and no unit came. Where the activation op differs, these ops compute it.
    """
    more_calls = e.more_calls
    if not more_calls or e.activation is not None:
        return None
    ops = [calls.notice for calls in more_calls[:3]]
    ops += [caveat("and-more", count=len(more_calls) - 3)] if len(more_calls) > 3 else []
    often = caveat("called-more-often", ops=ops)
    return Reason(kind=OTHER_WORK, notices=(often, *e.hidden()), confidence=0.7)


def _names(e: Evidence, where: np.ndarray) -> Counter[str]:
    """Count the units of a mask by role and class."""
    keys = zip(e.units.keys, where, strict=True)
    # Work on weights that no module places is named op by op, by `more_ops`.
    named = ((role, cls) for (_, role, cls), is_chosen in keys if is_chosen and cls != ON_WEIGHTS)
    return Counter(f"{role} ({cls})" for role, cls in named)


def activation(e: Evidence) -> Reason | None:
    """Return the reason that the activation op differs, if the run lists its weights.

    These then have no zeros and none was removed.
    """
    return e.activation if e.stats_pruned is not None else None


def other_activation(dense: Kernels, pruned: Kernels) -> Reason | None:
    """Return a reason where both sides compute the activation with different ops."""
    old, new = (
        {
            str(op).rstrip("_")
            for op in kernels.frame["op"].filter(kernels.frame["role"] == "activation").unique()
            if op is not None
        }
        for kernels in (dense, pruned)
    )
    removed, added = sorted(old - new), sorted(new - old)
    if not removed or not added:
        return None
    return _reason("other-activation", dense=removed, pruned=added)


# When a reason is tried.
FIRST = "before the detectors"
NO_DYNAMIC = "where no dynamic family was detected, whose M and attention differ by their nature"
NOTHING_MOVED = "where no family was detected and no GEMM moved"

# In this order; the first that holds is the verdict's.
REASONS: tuple[tuple[str, Callable[[Evidence], Reason | None]], ...] = (
    (FIRST, conditions),  # with other settings, all that follows is meaningless
    (FIRST, replaced),
    (NO_DYNAMIC, other_dtype),
    (NO_DYNAMIC, inputs),
    (NO_DYNAMIC, larger),
    (NO_DYNAMIC, other_attention),
    (NOTHING_MOVED, other_work),
    (NOTHING_MOVED, activation),
    (NOTHING_MOVED, more_ops),
)


def reason(e: Evidence, when: str) -> Reason | None:
    """Return the first reason that holds, of those tried at a time."""
    reasons = (holds(e) for time, holds in REASONS if time == when)
    return next((why for why in reasons if why is not None), None)


def is_quantised(e: Evidence) -> bool:
    """Return whether weights are packed, so that no count of parameters holds them.

    Other kernels show it, a format of fewer bits, or a GEMM as large as before whose matrix the run
    lists smaller or not at all.
    """
    packed = e.removed_weights() | e.smaller_weights()
    # A list of experts is smaller where there are fewer of them, each as large as before.
    whole = {p.key[:2] for p in e.pairs if p.axis == "none" and p.key[1] != "experts"}
    dtypes = gemm_dtypes(e)
    fewer_bits = dtypes is not None and dtypes[1] in QUANTISED
    return bool(replaced(e) or fewer_bits or e.unpacked or packed & whole)


def has_other_routes(e: Evidence) -> bool:
    """Return whether only the rows of each expert differ, because the router chose others."""
    experts = [p for p in e.pairs if p.key[1] == "experts"]
    moved = [p for p in e.pairs if p.key[1] != "experts" and p.axis != "none"]
    weights_d, rows_d = _experts(p.dense for p in experts)
    weights_p, rows_p = _experts(p.pruned for p in experts)
    same = weights_d == weights_p and abs(rows_d - rows_p) <= _SAME * rows_d
    return bool(experts) and not moved and same


def _experts(calls: Iterable[Call | None]) -> tuple[set[tuple[int, int]], float]:
    """Return the weights [N, K] of the expert GEMMs, and the rows per step that all of them see."""
    weights: set[tuple[int, int]] = set()
    rows = 0.0
    for call in calls:
        if call is not None and call.gemm is not None and call.m is not None:
            weights.add((call.gemm.n, call.gemm.k))
            rows += call.all_rows
    return weights, rows
