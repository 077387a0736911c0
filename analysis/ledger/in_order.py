"""Which dense GEMM each pruned one is, where neither has a role: by their order and sizes.

In: the keys of one unit on both sides, in any order, and their calls. Out: the dense key by the
pruned one. Places alone pair a head with a projection as soon as one side runs fewer GEMMs.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Mapping
from difflib import SequenceMatcher

from prunescope.analysis.ledger.call import Call, GemmKey

_MOST_COMPARED = 1 << 20  # pairs of equal sizes, half a second; of more, places decide

_Size = tuple[object, ...]


def partners_in_order(
    originals: list[GemmKey],
    keys: list[GemmKey],
    dense: Mapping[GemmKey, Call],
    pruned: Mapping[GemmKey, Call],
) -> dict[GemmKey, GemmKey]:
    """The dense key of each pruned GEMM that has a partner. Where both sides have the same places,
    and none pairs GEMMs of which both N and K differ, places decide. Else GEMMs of equal N and K
    pair in order, and between these as many of one side as of the other by their places, or those
    that have N or K in common."""
    if {*originals} == {*keys} and all(_may_be_one(dense[key], pruned[key]) for key in keys):
        return {key: key for key in keys}
    before, after = (sorted(side, key=lambda key: key[3]) for side in (originals, keys))
    sizes = [_size(dense[key]) for key in before], [_size(pruned[key]) for key in after]
    times = Counter(sizes[0])
    if sum(times[size] for size in sizes[1]) > _MOST_COMPARED:
        return {key: key for key in keys if key in dense}
    found: dict[GemmKey, GemmKey] = {}
    i = j = 0
    # Ends with a block of no length behind both.
    matcher = SequenceMatcher(None, *sizes, autojunk=False)
    for here, there, length in matcher.get_matching_blocks():
        found |= _between(before[i:here], after[j:there], dense, pruned)
        i, j = here + length, there + length
        found |= zip(after[there:j], before[here:i], strict=True)
    return found


def _between(
    before: list[GemmKey],
    after: list[GemmKey],
    dense: Mapping[GemmKey, Call],
    pruned: Mapping[GemmKey, Call],
) -> dict[GemmKey, GemmKey]:
    """Pairs of GEMMs that stand between pairs of equal sizes."""
    if len(before) == len(after):
        return dict(zip(after, before, strict=True))
    places: dict[object, list[int]] = defaultdict(list)
    for place, key in enumerate(before):
        for width in _widths(dense[key]):
            places[width].append(place)
    found: dict[GemmKey, GemmKey] = {}
    begin = 0
    for key in after:
        nexts = []
        for width in _widths(pruned[key]):
            at = bisect_left(places[width], begin)
            nexts += places[width][at : at + 1]
        if nexts:
            found[key] = before[min(nexts)]
            begin = min(nexts) + 1
    return found


def _size(call: Call) -> _Size:
    """The key that two unpruned GEMMs share; their rows may be of another input."""
    if call.n is None or call.k is None:
        return call.op, call.kind
    return call.batch, round(call.n), round(call.k)


def _widths(call: Call) -> list[_Size]:
    """N and K, as keys; of a call that no model reads its op."""
    if call.n is None or call.k is None:
        return [_size(call)]
    return [("n", call.batch, round(call.n)), ("k", call.batch, round(call.k))]


def _may_be_one(old: Call, new: Call) -> bool:
    """Whether N or K is the same on both sides, or not known on one."""
    known = None not in (old.n, old.k, new.n, new.k)
    return not known or bool({*_widths(old)} & {*_widths(new)})
