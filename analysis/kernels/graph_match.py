"""The kernels of graph launches, found among the launches of an eager pass.

In: names, GEMM shapes and grids on both sides, in order. Out: for every replayed kernel its eager
launch, and M of all passes that match equally well, if their shapes differ. Names are aligned as in
Myers, "An O(ND) Difference Algorithm and Its Variations" (1986): the fewest are left out, in time
that grows with their number. The layers of a model repeat: a search for the longest equal run would
move all of them by a layer where one kernel is missing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from difflib import SequenceMatcher
from typing import Any

import numpy as np
from msgspec import Struct

from prunescope.analysis.trace.collector import NONE, Ints, Mask

UNNAMED = "?"
_ONE_PASS = 1.5  # times the kernels of a launch: more launches are several passes
_SLACK = 1 / 16  # share of the kernels of a launch that may be lost or left out, at first
_MOST = 0.9  # share of the kernels of a launch: a place with as many ends the search
Grid = tuple[int, ...] | None
Size = tuple[int, int, int] | None  # M, N, K of a GEMM


class Launches(Struct, frozen=True):
    """The launches of an eager pass, or some of them, in order.

    Attributes:
        names: The name of the kernel of each.
        sizes: M, N, K of its GEMM; None for other kernels and unknown sizes.
        grids: The grid of its GEMM; None likewise.
        at: Where each stands in the whole eager pass.
    """

    names: list[str]
    sizes: list[Size]
    grids: list[Grid]
    at: Ints

    @property
    def named(self) -> bool:
        """Whether the pass names its kernels; a capture on CUDA does not."""
        return any(name != UNNAMED for name in self.names)

    def only(self, keep: Ints) -> Launches:
        """Return some of the launches."""
        return Launches(
            [self.names[i] for i in keep],
            [self.sizes[i] for i in keep],
            [self.grids[i] for i in keep],
            self.at[keep],
        )


class GraphPart(Struct, frozen=True):
    """The kernels of one graph launch in one order.

    Attributes:
        rows: Their rows in the frame.
        names: Their names.
        grids: Their grids.
        whole: Whether it is the only launch of its step.
    """

    rows: Ints
    names: tuple[str, ...]
    grids: tuple[Grid, ...]
    whole: bool


class MatchedLaunches(Struct):
    """The eager launches behind the rows of one graph launch.

    Attributes:
        rows: The rows in the frame.
        at: The eager launch behind each row, -1 where there is none.
        compared: How many GEMMs have a grid on both sides.
        rivals: M of the passes that match as well and have other shapes.
        batch: The batch of the step, by its annotation; None without one.
    """

    rows: Ints
    at: Ints
    compared: int = 0
    rivals: tuple[int, ...] = ()
    batch: int | None = None


class _Best(Struct, frozen=True):
    """The places in which most kernels of a launch are found.

    Attributes:
        places: For each place, the index of every kernel.
        score: How many of the kernels are there.
        rivals: M of each place, where they differ in shapes.
    """

    places: list[Ints]
    score: int
    rivals: tuple[int, ...]


class Order:
    """A search for the kernels of one graph launch after the other among the eager launches.

    A launch goes on where the one before ended (a step in pieces, a graph each), or starts anew
    where that finds more of it (the whole step once more). Where the eager pass does not name its
    kernels, only equal counts are matched.
    """

    def __init__(self, launches: Launches) -> None:
        self.launches = launches
        self.next = 0
        self.places: dict[tuple[str, ...], list[Ints]] = {}
        self.known: dict[tuple[Any, ...], _Best] = {}

    def find(self, ways: list[GraphPart]) -> MatchedLaunches:
        """Find the kernels of one launch, in the best of several orders of them."""
        if not self.launches.named:
            return self._counted(ways[-1])
        tried = [(way, self._best(way)) for way in ways]
        way, best = max(tried, key=lambda pair: pair[1].score)
        place = next((p for p in best.places if _first(p) >= self.next), best.places[0])
        self.next = max(self.next if (place < 0).all() else 0, int(place.max(initial=NONE)) + 1)
        same, differs = self._grids(way, place)
        at = np.where((place >= 0) & ~differs, self.launches.at[np.maximum(place, 0)], NONE)
        return MatchedLaunches(way.rows, at, int((same | differs).sum()), best.rivals)

    def _counted(self, part: GraphPart) -> MatchedLaunches:
        count = len(self.launches.names)
        at = self.launches.at if len(part.rows) == count else np.full(len(part.rows), NONE)
        return MatchedLaunches(part.rows, at)

    def _best(self, part: GraphPart) -> _Best:
        """Return the places that hold the most of a launch's kernels, with their grids."""
        key = part.names, part.grids, part.whole
        if key not in self.known:
            places = self._places(part.names)
            scores = [self._score(part, place) for place in places]
            most = max(scores)
            best = [p for p, score in zip(places, scores, strict=True) if score == most]
            self.known[key] = _Best(best, most, self._rivals(part, best))
        return self.known[key]

    def _places(self, names: tuple[str, ...]) -> list[Ints]:
        """Return every run of exactly these kernels; without one, places that have some."""
        if names not in self.places:
            wanted, there = list(names), self.launches.names
            self.places[names] = list(_runs(wanted, there)) or _nearly(wanted, there)
        return self.places[names]

    def _score(self, part: GraphPart, place: Ints) -> int:
        return int((place >= 0).sum()) - int(self._grids(part, place)[1].sum())

    def _grids(self, part: GraphPart, place: Ints) -> tuple[Mask, Mask]:
        """Return two masks of kernels: those with the grid of the eager GEMM, and those without.

        A GEMM of a different batch or length has kernels of the same names and other grids. A
        kernel whose grid is unknown on a side is in neither mask.
        """
        there = [self.launches.grids[i] if i >= 0 else None for i in place]
        both = list(zip(part.grids, there, strict=True))
        same = np.array([a is not None and a == b for a, b in both], bool)
        known = np.array([a is not None and b is not None for a, b in both], bool)
        return same, known & ~same

    def _rivals(self, part: GraphPart, places: list[Ints]) -> tuple[int, ...]:
        """Return M of each of several places, where their shapes differ.

        Only M is compared where a launch is a piece of a step, whose layers may differ in N and K,
        and where kernels were lost.
        """
        shapes: dict[object, int] = {}
        for place in places:
            kernel_sizes = [self.launches.sizes[i] for i in place if i >= 0]
            sizes = [size for size in kernel_sizes if size is not None]
            rows = [m for m, _, _ in sizes]
            whole = len(kernel_sizes) == len(place)
            key: object = frozenset(rows)
            if whole:
                key = tuple(sizes) if part.whole else tuple(rows)
            if rows:
                shapes.setdefault(key, Counter(rows).most_common(1)[0][0])
        return tuple(shapes.values()) if len(shapes) > 1 else ()


def _first(place: Ints) -> int:
    return int(place[place >= 0].min(initial=np.iinfo(np.int64).max))


def _runs(replayed: list[str], names: list[str]) -> Iterator[Ints]:
    """Yield every place where the whole run of replayed kernels stands."""
    size = len(replayed)
    for at in range(len(names) - size + 1):
        if names[at] == replayed[0] and names[at : at + size] == replayed:
            yield np.arange(at, at + size)


def _nearly(replayed: list[str], names: list[str]) -> list[Ints]:
    """Return partial matches for replayed kernels that stand nowhere as a whole.

    With one pass that is an alignment with all of it. With several it is an alignment around each
    occurrence of the rarest kernel name, so that a match does not span two passes if most of it is
    in one.
    """
    size, count = len(replayed), Counter(names)
    shared = [name for name in dict.fromkeys(replayed) if count[name]]
    if not shared or len(names) <= _ONE_PASS * size:
        return [align(replayed, names)]
    rare = min(shared, key=lambda name: count[name])
    first = replayed.index(rare)
    places: list[Ints] = []
    for slack in (max(1, int(_SLACK * size)), size):
        places = [
            _aligned(replayed, names, max(0, at - first - slack), at - first + size + slack)
            for at, name in enumerate(names)
            if name == rare
        ]
        if max(int((place >= 0).sum()) for place in places) >= _MOST * size:
            break
    return places


def _aligned(replayed: list[str], names: list[str], begin: int, end: int) -> Ints:
    """Return the index of each replayed kernel in `names`, searched in names[begin:end]."""
    index = align(replayed, names[begin:end])
    return np.where(index >= 0, index + begin, NONE)


_MOST_LEFT_OUT = 400  # left out on both sides; its square is the time and memory of the search
_MOST_COMPARED = 1 << 20  # equal pairs of names that a search for the longest runs may look at


def align(here: Sequence[Hashable], there: Sequence[Hashable]) -> Ints:
    """Return the index in `there` of each name of `here`, growing, -1 where it is left out."""
    index = np.full(len(here), NONE)
    both = min(len(here), len(there))
    head = next((i for i in range(both) if here[i] != there[i]), both)
    left = both - head
    tail = next((i for i in range(left) if here[-1 - i] != there[-1 - i]), left)
    index[:head] = np.arange(head)
    index[len(here) - tail :] = np.arange(len(there) - tail, len(there))
    middle = here[head : len(here) - tail], there[head : len(there) - tail]
    for i, j in _middle(*middle):
        index[head + i] = head + j
    return index


def _middle(here: Sequence[Hashable], there: Sequence[Hashable]) -> list[tuple[int, int]]:
    """Pair equal names of two lists, in order."""
    shared = set(here) & set(there)
    a = [i for i, name in enumerate(here) if name in shared]
    b = [j for j, name in enumerate(there) if name in shared]
    x, y = [here[i] for i in a], [there[j] for j in b]
    pairs = _fewest(x, y)
    if pairs is None:
        pairs = _longest_runs(x, y)
    return [(a[i], b[j]) for i, j in pairs]


def _fewest(x: Sequence[Hashable], y: Sequence[Hashable]) -> list[tuple[int, int]] | None:
    """Pair equal names so that the fewest are left out; None where those exceed _MOST_LEFT_OUT."""
    reach = {1: 0}  # on the diagonal i - j: the furthest i that is reached
    seen: list[dict[int, int]] = []
    for left_out in range(min(_MOST_LEFT_OUT, len(x) + len(y)) + 1):
        seen.append(dict(reach))
        for diagonal in range(-left_out, left_out + 1, 2):
            i = _step(reach, diagonal, left_out)
            while i < len(x) and 0 <= i - diagonal < len(y) and x[i] == y[i - diagonal]:
                i += 1
            reach[diagonal] = i
            if i >= len(x) and i - diagonal >= len(y):
                return _back(seen, len(x), len(y))
    return None


def _step(reach: dict[int, int], diagonal: int, left_out: int) -> int:
    """Return where a diagonal begins: after one more name of `there` is left out, or of `here`."""
    down = diagonal == -left_out or (
        diagonal != left_out and reach[diagonal - 1] < reach[diagonal + 1]
    )
    return reach[diagonal + 1] if down else reach[diagonal - 1] + 1


def _back(seen: list[dict[int, int]], i: int, j: int) -> list[tuple[int, int]]:
    """Return the pairs of equal names on the way back from the end."""
    pairs: list[tuple[int, int]] = []
    for left_out in range(len(seen) - 1, -1, -1):
        diagonal = i - j
        begin = _step(seen[left_out], diagonal, left_out)
        while i > begin and j > 0:
            i, j = i - 1, j - 1
            pairs.append((i, j))
        down = begin == seen[left_out].get(diagonal + 1)
        i, j = (begin, begin - diagonal - 1) if down else (begin - 1, begin - diagonal)
    return pairs


def _longest_runs(x: Sequence[Hashable], y: Sequence[Hashable]) -> list[tuple[int, int]]:
    """Pair equal names of two lists that differ in much; empty where that would take long."""
    count = Counter(y)
    if sum(count[name] for name in x) > _MOST_COMPARED:
        return []
    matcher = SequenceMatcher(None, x, y, autojunk=False)
    return [
        (here + k, there + k)
        for here, there, size in matcher.get_matching_blocks()
        for k in range(size)
    ]
