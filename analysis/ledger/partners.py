"""Which dense GEMM each pruned one replaces, where its position in a unit does not say it.

In: the keys of one unit on both sides, in any order, and their calls. Out: the dense key by the
pruned one. Two kinds of units need it. A linear has two gradients: of its input, dX = dY·W, and of
its weight, dW = dYᵀ·X, which sums over tokens. A weight that is not trained has no dW, and an
adapter has both gradients of each of its matrices. And among GEMMs without a role, positions alone
pair a head with a projection as soon as one side runs fewer GEMMs.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher

from prunescope.analysis.ledger.call import Call, GemmKey
from prunescope.analysis.ops.call import OpCall
from prunescope.taxonomy.gemm import Gemm
from prunescope.taxonomy.roles import BACKWARD

_MOST_COMPARED = 1 << 20  # pairs of equal sizes, half a second; beyond it positions decide

_SizeKey = tuple[object, ...]
_Calls = Mapping[GemmKey, Call]


def is_gradient(role: str) -> bool:
    """Return whether a role is of the backward pass."""
    return role.endswith(BACKWARD)


def is_weight_gradient(call: OpCall | None, gemm: Gemm | None, tokens: int | None) -> bool | None:
    """Return whether a gradient is that of a weight; None where nothing shows it.

    It sums over `tokens`, the rows of the step, which are then its K and not its M. Where a width
    is as large as the number of tokens, the first operand of such a gradient is transposed.
    """
    if gemm is not None and tokens is not None and (gemm.m == tokens) != (gemm.k == tokens):
        return gemm.k == tokens
    strides = call.strides[0] if call is not None and call.strides else ()
    if isinstance(strides, tuple | list) and len(strides) > 1:
        return bool(strides[-2] < strides[-1])
    return None


def pair_gradients(
    originals: Sequence[GemmKey], keys: Sequence[GemmKey], dense: _Calls, pruned: _Calls
) -> dict[GemmKey, GemmKey]:
    """Return the dense gradient of each pruned one that has any.

    Gradients of one kind (of inputs, of weights) pair if their GEMMs are equal. What is left of a
    kind pairs in order where both sides have equally many, else by FLOPs, the largest first.
    """
    partners: dict[GemmKey, GemmKey] = {}
    dense_by_kind, pruned_by_kind = _group_by_kind(originals, dense), _group_by_kind(keys, pruned)
    for kind, new_keys in pruned_by_kind.items():
        old_keys = dense_by_kind.get(kind, [])
        equal: dict[Gemm | None, list[GemmKey]] = defaultdict(list)
        for key in old_keys:
            equal[dense[key].gemm].append(key)
        for key in new_keys:
            gemm = pruned[key].gemm
            if gemm is not None and equal[gemm]:
                partners[key] = equal[gemm].pop(0)
        new_left = [key for key in new_keys if key not in partners]
        taken = {*partners.values()}
        old_left = [key for key in old_keys if key not in taken]
        if len(new_left) != len(old_left):
            new_left.sort(key=lambda key: -(pruned[key].flop or 0.0))
            old_left.sort(key=lambda key: -(dense[key].flop or 0.0))
        partners |= dict(zip(new_left, old_left, strict=False))
    return partners


def _group_by_kind(keys: Sequence[GemmKey], calls: _Calls) -> dict[bool | None, list[GemmKey]]:
    """Group gradients, in order, by whether they are those of weights."""
    kinds: dict[bool | None, list[GemmKey]] = defaultdict(list)
    for key in sorted(keys, key=lambda key: key[3]):
        kinds[calls[key].is_weight_gradient].append(key)
    return kinds


def pair_in_order(
    originals: Sequence[GemmKey], keys: Sequence[GemmKey], dense: _Calls, pruned: _Calls
) -> dict[GemmKey, GemmKey]:
    """Return the dense key of each pruned GEMM without a role that has a partner.

    Positions decide where both sides have the same ones and no pair of them differs in both N and
    K. Else GEMMs of equal N and K pair in order. Between two such pairs, GEMMs pair by position
    where both sides have equally many, else with the next one that has N or K in common.
    """
    if {*originals} == {*keys} and all(_may_pair(dense[key], pruned[key]) for key in keys):
        return {key: key for key in keys}
    before, after = (sorted(side, key=lambda key: key[3]) for side in (originals, keys))
    sizes = [_size_key(dense[key]) for key in before], [_size_key(pruned[key]) for key in after]
    times = Counter(sizes[0])
    if sum(times[size] for size in sizes[1]) > _MOST_COMPARED:
        return {key: key for key in keys if key in dense}
    partners: dict[GemmKey, GemmKey] = {}
    i = j = 0
    # The last block that the matcher gives is empty, and stands behind all GEMMs of both sides.
    matcher = SequenceMatcher(None, *sizes, autojunk=False)
    for old_begin, new_begin, length in matcher.get_matching_blocks():
        partners |= _pair_between(before[i:old_begin], after[j:new_begin], dense, pruned)
        i, j = old_begin + length, new_begin + length
        partners |= zip(after[new_begin:j], before[old_begin:i], strict=True)
    return partners


def _pair_between(
    before: list[GemmKey], after: list[GemmKey], dense: _Calls, pruned: _Calls
) -> dict[GemmKey, GemmKey]:
    """Pair the GEMMs that stand between two pairs of equal sizes."""
    if len(before) == len(after):
        return dict(zip(after, before, strict=True))
    places: dict[object, list[int]] = defaultdict(list)
    for place, key in enumerate(before):
        for width in _width_keys(dense[key]):
            places[width].append(place)
    partners: dict[GemmKey, GemmKey] = {}
    begin = 0
    for key in after:
        nexts = []
        for width in _width_keys(pruned[key]):
            at = bisect_left(places[width], begin)
            nexts += places[width][at : at + 1]
        if nexts:
            partners[key] = before[min(nexts)]
            begin = min(nexts) + 1
    return partners


def _size_key(call: Call) -> _SizeKey:
    """Return what two unpruned GEMMs share; their rows may be of different inputs."""
    if call.n is None or call.k is None:
        return call.op, call.kind
    return call.batch, round(call.n), round(call.k)


def _width_keys(call: Call) -> list[_SizeKey]:
    """Return N and K as keys; the op of a call whose sizes are unknown."""
    if call.n is None or call.k is None:
        return [_size_key(call)]
    return [("n", call.batch, round(call.n)), ("k", call.batch, round(call.k))]


def _may_pair(old: Call, new: Call) -> bool:
    """Return whether N or K is the same on both sides, or unknown on one."""
    known = None not in (old.n, old.k, new.n, new.k)
    return not known or bool({*_width_keys(old)} & {*_width_keys(new)})
