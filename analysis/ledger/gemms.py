"""The pairs of dense and pruned GEMMs, and the axis that moved in each.

In: the `Call`s of both sides. Out: a `Pair` for each, with the axis none, M, N, K, NK, heads, rank,
2:4, gone, added or unknown.
"""

from __future__ import annotations

from collections import Counter, defaultdict

from msgspec import Struct
from msgspec.structs import replace

from prunescope.analysis.ledger.call import OF_ATTENTION, Call, GemmKey
from prunescope.analysis.ledger.experts import (
    EXPERTS,
    ROUTER,
    find_moved_axis,
)
from prunescope.analysis.ledger.partners import (
    is_gradient,
    pair_gradients,
    pair_in_order,
)
from prunescope.taxonomy.gemm import Gemm, axis_moved
from prunescope.taxonomy.roles import UNPLACED

ALL_CALLS = 0.99  # of the dense calls
_NOWHERE: GemmKey = (None, "", "", -1)  # the key of no GEMM


class Pair(Struct, frozen=True):
    """A dense GEMM and the pruned one that replaces it.

    Attributes:
        key: The key of the pruned GEMM, else of the dense one.
        dense: The dense GEMM; None if it was added.
        pruned: The pruned GEMM; None if it was removed.
        axis: The axis that moved, one of AXES.
        groups_left: The share of its experts that is left, for the axis G; None where unknown.
    """

    key: GemmKey
    dense: Call | None
    pruned: Call | None
    axis: str
    groups_left: float | None = None

    @property
    def gemms(self) -> tuple[Gemm | None, Gemm | None]:
        """The dimensions of the dense and of the pruned GEMM; None if unknown, or if it is None."""
        old, new = self.dense, self.pruned
        return None if old is None else old.gemm, None if new is None else new.gemm

    @property
    def is_of_attention(self) -> bool:
        """Whether it is a product of attention, which has no weight."""
        return self.key[2] in OF_ATTENTION


def pair_calls(dense: dict[GemmKey, Call], pruned: dict[GemmKey, Call]) -> list[Pair]:
    """Pair dense and pruned GEMMs by key.

    Two GEMMs through a rank pair with the one that they replace.
    """
    pairs: list[Pair] = []
    paired: set[GemmKey] = set()  # dense keys whose partners have other positions
    by_unit: dict[tuple[object, ...], list[GemmKey]] = defaultdict(list)
    for key in pruned:
        by_unit[key[:3]].append(key)
    for unit, keys in by_unit.items():
        dense_keys = [k for k in dense if k[:3] == unit]
        if is_gradient(str(unit[1])) or unit[1] in UNPLACED:
            find = pair_gradients if is_gradient(str(unit[1])) else pair_in_order
            partner_of = find(dense_keys, keys, dense, pruned)
            shared = Counter(partner_of.values())
            for key in keys:
                partner = dense.get(partner_of.get(key, _NOWHERE))
                through_rank = shared[partner_of.get(key, _NOWHERE)] > 1
                axis = "rank" if through_rank else _find_axis(partner, pruned[key])
                pairs.append(Pair(key, partner, pruned[key], axis))
            pairs += [
                Pair(k, dense[k], None, "gone") for k in dense_keys if k not in partner_of.values()
            ]
            paired |= {*dense_keys}
            continue
        low_rank = _is_low_rank([pruned[k] for k in keys], [dense[k] for k in dense_keys])
        for key in keys:
            partner = dense.get((*key[:3], 0)) if low_rank else dense.get(key)
            axis = "rank" if low_rank else _find_axis(partner, pruned[key])
            pairs.append(Pair(key, partner, pruned[key], axis))
    alone = (k for k in dense if k not in pruned and k not in paired)
    pairs += [Pair(k, dense[k], None, "gone") for k in alone]
    return pairs


def mark_removed_experts(pairs: list[Pair]) -> list[Pair]:
    """Set axis G on expert GEMMs that lost experts but kept N, K and M.

    A batched GEMM over all experts counts too: its batch is then the number of experts that the
    router chooses from.
    """
    routers = {
        pair.key[0]: (pair.dense.n, pair.pruned.n)
        for pair in pairs
        if pair.key[1] == ROUTER and pair.dense and pair.pruned and pair.dense.n and pair.pruned.n
    }
    marked = []
    for pair in pairs:
        before, after = routers.get(pair.key[0], (None, None))
        if pair.key[1] == EXPERTS and (
            pair.axis == "none" or _batches_all_experts(pair, before, after)
        ):
            left = after / before if before and after else None
            marked.append(replace(pair, axis="G", groups_left=left))
        else:
            marked.append(pair)
    return marked


def _batches_all_experts(pair: Pair, before: float | None, after: float | None) -> bool:
    """Return whether each side multiplies all of its experts in one batched GEMM.

    Every expert then has as many rows as before.
    """
    if pair.axis != "M" or pair.dense is None or pair.pruned is None or not before or not after:
        return False
    batches = (pair.dense.batch, pair.pruned.batch)
    return batches == (before, after) and pair.dense.m == pair.pruned.m


def _is_low_rank(pruned: list[Call], dense: list[Call]) -> bool:
    """Return whether two pruned GEMMs replace a dense one through a rank: [T,K]→[T,r]→[T,N].

    The K of the first and the N of the second are those of the dense GEMM.
    """
    if len(dense) != 1 or len(pruned) != 2 or dense[0].group in OF_ATTENTION:
        return False
    a, b, old = pruned[0].gemm, pruned[1].gemm, dense[0].gemm
    if a is None or b is None or old is None:
        return False
    return a.n == b.k and a.n < min(old.n, old.k) and a.k == old.k and b.n == old.n


def _find_axis(dense: Call | None, pruned: Call) -> str:
    """Return the axis that moved between a dense GEMM and its pruned one."""
    if dense is None:
        return "added"
    if pruned.kind == "sparse_gemm" and dense.kind != "sparse_gemm":
        return "2:4"
    if dense.kind == "sparse_gemm" and pruned.kind != "sparse_gemm":
        return "unknown"  # a sparse GEMM became dense: no pruning does that
    old, new = dense.gemm, pruned.gemm
    if old is None or new is None:
        if (moved := _find_moved_width(dense, pruned)) is not None:
            return moved
        return "unknown" if dense.gemm != pruned.gemm or dense.op != pruned.op else "none"
    if pruned.role == dense.role == EXPERTS:
        return find_moved_axis(dense, pruned)
    return "none" if _skips_calls(dense, pruned) else axis_moved(old, new)


def _skips_calls(dense: Call, pruned: Call) -> bool:
    """Return whether the pruned side makes fewer calls, each of a size that some dense calls have.

    A step that is left out of a decode moves the mean of its keys, and no axis.
    """
    if not dense.spans or not pruned.spans or pruned.count >= ALL_CALLS * dense.count:
        return False
    pairs = zip(dense.spans, pruned.spans, strict=True)
    return all(low <= least and most <= high for (low, high), (least, most) in pairs)


def _find_moved_width(dense: Call, pruned: Call) -> str | None:
    """Return the axis of two GEMMs whose M is not known on a side.

    It is N or K or both where these moved, else unknown, because M may have moved. None where N and
    K are not known either.
    """
    if dense.n is None or dense.k is None or pruned.n is None or pruned.k is None:
        return None
    widths = [Gemm(1, round(call.n or 0), round(call.k or 0)) for call in (dense, pruned)]
    moved = axis_moved(*widths)
    return "unknown" if moved == "none" else moved
