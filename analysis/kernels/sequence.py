"""The alignment of two sequences of products, as a diff aligns lines.

In: what each side runs, in order: kind and dimensions. Out: the pairs of places. Equal products
pair first, then those that differ along dimensions that moved alike everywhere, then those that
differ along one dimension. What has nothing in common stays alone.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from prunescope.analysis.ops.pairs_in_order import pair_in_order
from prunescope.taxonomy.gemm import Gemm

Places = NDArray[np.int64]
Move = tuple[str, int, int]  # axis, size before and after

_MOST_COMPARED = 1 << 24  # pairs of places, about half a second
_EQUAL, _SAME_WEIGHT, _ALIKE, _ONE_AXIS, _GREW, _TWO_AXES = 1000, 900, 800, 600, 300, 100
_MORE = 50  # for each move: of two products that may be the partner, the one that moved less is
_GAP = 40  # runs stay whole where the products are equally similar
_OF_ACTIVATIONS = ("attention", "batched_gemm")
_OFTEN = 2  # times: a move that is made once is not made everywhere


class Product(Struct, frozen=True):
    """One product of a sequence: what identifies it before it has a name.

    Attributes:
        kind: The kind of product; of one without known sizes, its op or kernel.
        sizes: Its size by axis; empty where not known.
    """

    kind: str
    sizes: tuple[tuple[str, int], ...] = ()

    def moves_to(self, partner: Product) -> tuple[Move, ...] | None:
        """Return the axes that differ; None where the two are no products of one kind."""
        if self.kind != partner.kind or len(self.sizes) != len(partner.sizes):
            return None
        both = zip(self.sizes, partner.sizes, strict=True)
        return tuple((axis, old, new) for (axis, old), (_, new) in both if old != new)


def product_of_gemms(kind: str, gemms: Sequence[Gemm]) -> Product:
    """Describe a product by its logical GEMMs: a fused attention has two."""
    first = gemms[0]
    sizes = [("batch", first.batch), ("m", first.m), ("n", first.n), ("k", first.k)]
    if len(gemms) > 1:
        sizes.append(("width", gemms[1].n))
    return Product(kind, tuple(sizes))


def product_of_convolution(image: tuple[int, ...], weight: tuple[int, ...]) -> Product:
    """Describe a convolution by the size of its kernel, and by what a GEMM calls M, N and K."""
    rows = image[0] * math.prod(image[2:])
    sizes = (("m", rows), ("n", weight[0]), ("k", image[1]))
    return Product(f"convolution {weight[2:]}", sizes)


def align_products(old: Sequence[Product], new: Sequence[Product]) -> list[tuple[int, int]]:
    """Pair the places of two sequences in order.

    Two products through a rank pair with the one that they replace.

    Returns:
        The pairs of places, (old, new), both rising. Where several alignments are equally good, it
        is the one nearest to the front. Of sequences too long to compare only what begins and ends
        alike is paired.
    """
    joined, places = _join_through_ranks(new, frozenset(old))
    pairs = _align(old, new)
    if len(joined) == len(new):
        return pairs
    as_ranks = _align(old, joined)
    sums = [
        sum(compare(old[i], side[j], None) for i, j in aligned)
        for side, aligned in ((new, pairs), (joined, as_ranks))
    ]
    if sums[1] <= sums[0]:  # two narrower ones look like a rank of a third
        return pairs
    return [(i, place) for i, j in as_ranks for place in places[j]]


def _align(old: Sequence[Product], new: Sequence[Product]) -> list[tuple[int, int]]:
    """Align two sequences, of which only what lies between equal ends is compared."""
    begin = _count_equal(zip(old, new, strict=False))
    left_old, left_new = old[begin:], new[begin:]
    end = _count_equal(zip(reversed(left_old), reversed(left_new), strict=False))
    pairs = [(i, i) for i in range(begin)]
    inner = [side[: len(side) - end] for side in (left_old, left_new)]
    if len(inner[0]) * len(inner[1]) <= _MOST_COMPARED:
        pairs += [(begin + i, begin + j) for i, j in _align_inner(*inner)]
    return pairs + [(len(old) - i, len(new) - i) for i in range(end, 0, -1)]


def _join_through_ranks(
    new: Sequence[Product], old: frozenset[Product]
) -> tuple[list[Product], list[range]]:
    """Join each two products through a rank that together multiply what one of the old ones does.

    Returns:
        The products, and the places of each in the sequence.
    """
    joined: list[Product] = []
    places: list[range] = []
    place = 0
    while place < len(new):
        whole = _whole_of(*new[place : place + 2]) if place + 1 < len(new) else None
        is_replaced = whole in old and not old.issuperset(new[place : place + 2])
        joined.append(whole if whole is not None and is_replaced else new[place])
        places.append(range(place, place + 1 + is_replaced))
        place = places[-1].stop
    return joined, places


def _whole_of(first: Product, second: Product) -> Product | None:
    """Return the product that two multiply together through a rank; None if they do not."""
    a, b = dict(first.sizes), dict(second.sizes)
    if first.kind != second.kind or a.keys() != {"batch", "m", "n", "k"} or a.keys() != b.keys():
        return None
    if a["m"] != b["m"] or a["n"] != b["k"] or a["n"] >= min(a["k"], b["n"]):
        return None
    return Product(first.kind, tuple((a | {"n": b["n"]}).items()))


def _count_equal(both: Iterable[tuple[Product, Product]]) -> int:
    """Count the equal pairs at the beginning."""
    count = 0
    for a, b in both:
        if a != b:
            break
        count += 1
    return count


def _align_inner(old: Sequence[Product], new: Sequence[Product]) -> list[tuple[int, int]]:
    """Align twice: the first alignment shows which moves are made everywhere."""
    if not old or not new:
        return []
    first = _align_with(old, new, None)
    usual = _find_usual_moves([(old[i], new[j]) for i, j in first])
    return _align_with(old, new, usual)


def _find_usual_moves(pairs: Sequence[tuple[Product, Product]]) -> frozenset[Move]:
    """Return the moves that pairs make more than once, and more often than any other of a size."""
    counts: Counter[Move] = Counter()
    for a, b in pairs:
        counts.update(a.moves_to(b) or ())
    best: dict[tuple[str, int], Move] = {}
    for move, count in counts.items():
        if count >= _OFTEN and count > counts[best.get(move[:2], ("", 0, 0))]:
            best[move[:2]] = move
    return frozenset(best.values())


def _align_with(
    old: Sequence[Product], new: Sequence[Product], usual: frozenset[Move] | None
) -> list[tuple[int, int]]:
    """Align two sequences; `usual` holds the moves made everywhere, None before they are known."""
    kinds = [list(dict.fromkeys(side)) for side in (old, new)]
    table = np.array([[compare(a, b, usual) for a in kinds[0]] for b in kinds[1]], np.int32)
    places = [{product: i for i, product in enumerate(side)} for side in kinds]
    rows = np.array([places[1][product] for product in new])
    columns = np.array([places[0][product] for product in old])
    return [(i, j) for j, i in pair_in_order(table[rows][:, columns], gap=_GAP)]


def compare(old: Product, new: Product, usual: frozenset[Move] | None) -> int:
    """Return how similar two products are; 0 where they do not pair.

    Args:
        old: The dense product.
        new: The pruned product.
        usual: The moves that are made everywhere alike; None before they are known.
    """
    moves = old.moves_to(new)
    if moves is None:
        return 0
    if not moves:
        return _EQUAL
    if all(axis == "m" for axis, _, _ in moves):
        return _SAME_WEIGHT
    if old.kind in _OF_ACTIVATIONS and not _scale_alike(moves):
        return 0
    unusual = [move for move in moves if usual is None or move not in usual]
    if usual is not None and not unusual:
        return _ALIKE - _MORE * len(moves)
    of_weight = [move for move in unusual if move[0] != "m"]
    if len(of_weight) <= 1:
        return _ONE_AXIS if all(b < a for _, a, b in of_weight) else _GREW
    return _TWO_AXES if usual is None and all(b < a for _, a, b in of_weight) else 0


def _scale_alike(moves: Sequence[Move]) -> bool:
    """Return whether queries and keys moved in one ratio, where queries did.

    Else one attends to another sequence: a decoder to its encoder.
    """
    ratios = {new / old for axis, old, new in moves if axis not in ("batch", "width") and old}
    return len(ratios) <= 1 or all(axis != "m" for axis, _, _ in moves)


def find_repeats(products: Sequence[Product]) -> list[int | None]:
    """Return the number of the part, each right behind the other, that repeats: its layer.

    Parts of one kind are as long as the longest run of them allows, and of runs that cover as much
    the shortest parts are taken.

    Returns:
        The number of the part of each place, from 0 on; None for what does not repeat.
    """
    ids: dict[Product, int] = {}
    row = np.array([ids.setdefault(product, len(ids)) for product in products])
    numbers: list[int | None] = [None] * len(row)
    # By period: how many places from each on equal the one a period later.
    runs = {period: _runs_of_equals(row, period) for period in range(1, len(row) // 2 + 1)}
    place = count = 0
    while place < len(row):
        best_cover, best_period = 0, 0
        for period, run in runs.items():
            if place < len(run) and run[place] >= period:
                cover = (run[place] // period + 1) * period
                if cover > best_cover:
                    best_cover, best_period = int(cover), period
        if best_period < _LEAST_PART:
            place += 1
            continue
        for offset in range(best_cover):
            numbers[place + offset] = count + offset // best_period
        count += best_cover // best_period
        place += best_cover
    return numbers


_LEAST_PART = 2  # products: equal ones next to each other are q, k and v of one layer


def _runs_of_equals(row: Places, period: int) -> Places:
    """Return for each place how many places from it on equal the one a period later."""
    equal = row[:-period] == row[period:]
    ends = np.flatnonzero(~equal)
    places = np.arange(len(equal))
    following = np.searchsorted(ends, places)
    stops = np.append(ends, len(equal))[following]
    return stops - places
