"""The layers of a pass, from the order of its kernels alone.

In: items in launch order, the number of layers that the config has. Out: for every item the layer
and the place in the cycle from one attention to the next, or nothing where more than one would do.

Layers repeat. What most of them run is the cycle; a stretch that differs from it (kernels lost,
merged, or in another order) is aligned with it by dynamic programming, and an item is placed only
where every alignment that leaves out the fewest places it alike.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

from prunescope.analysis.shapes.items import ATTENTION, Item, Token

_APART = 1.06  # times: durations of one kernel beyond its least and most are of another one
_ALIKE = 0.5  # of the stretches: fewer are no cycle
_LONGEST = 256  # GEMMs of a layer
_CELLS = 250_000  # of one alignment


@dataclass
class Cycle:
    """What runs from one attention to the next: `sample`, GEMMs of one layer, their `tokens`, and
    usual, least and most durations (ns). `placed`: of items between attentions the stretch and
    place, where these are sure; stretch i ends with layer i's attention. `damaged`: stretches that
    differ from the cycle."""

    sample: list[Item]
    tokens: list[Token]
    ns: list[float]
    low: list[float]
    high: list[float]
    layers: int = 0
    head: list[int] = field(default_factory=list)  # items before the first attention
    tail: list[int] = field(default_factory=list)  # items after the last one
    placed: dict[int, tuple[int, int]] = field(default_factory=dict)
    attentions: dict[int, int] = field(default_factory=dict)  # item -> layer
    damaged: int = 0


def find_cycle(items: Sequence[Item]) -> Cycle | None:
    """The cycle of a pass; None where fewer than half of its layers are alike. Stretch i is what
    lies between the attentions of layers i - 1 and i; the first is the head, the last the tail."""
    at = [i for i, item in enumerate(items) if item.what == ATTENTION]
    if len(at) < 2:
        return None
    spans = [range(a + 1, b) for a, b in zip(at, at[1:], strict=False)]
    cycle = usual_cycle(items, spans)
    if cycle is None:
        return None
    _place(cycle, items, at)
    return cycle


def usual_cycle(items: Sequence[Item], spans: Sequence[range]) -> Cycle | None:
    """What most of several stretches run; None where no more than half of them are alike."""
    made = [tuple(items[i].token for i in span) for span in spans]
    (tokens, count), *_ = Counter(made).most_common(1)
    if count <= _ALIKE * len(made) or not 0 < len(tokens) <= _LONGEST:
        return None
    whole = [span for span, own in zip(spans, made, strict=True) if own == tokens]
    times = [[items[span[place]].ns for span in whole] for place in range(len(tokens))]
    low, high = zip(*(_range(one) for one in times), strict=True)
    sample = [items[i] for i in whole[0]]
    usual = [median(one) for one in times]
    return Cycle(sample, list(tokens), usual, list(low), list(high))


def _range(times: list[int]) -> tuple[float, float]:
    """The usual least and most: outliers of a tenth at either end are not counted."""
    ordered = sorted(times)
    cut = len(ordered) // 10
    return ordered[cut] / _APART, ordered[-1 - cut] * _APART


def _place(cycle: Cycle, items: Sequence[Item], at: list[int]) -> None:
    """Number the layers, and give every item of every stretch its place."""
    size, layer = len(cycle.tokens), 0
    cycle.head = list(range(at[0]))
    cycle.attentions[at[0]] = 0
    for a, b in zip(at, at[1:], strict=False):
        span = list(range(a + 1, b))
        same = tuple(items[i].token for i in span) == tuple(cycle.tokens)
        if same and not _swapped(cycle, [items[i].ns for i in span]):
            found: dict[int, tuple[int, int]] = {i: (0, place) for place, i in enumerate(span)}
            turns = 1
        else:
            turns = max(1, round((len(span) + 1) / (size + 1)))
            found = aligned(cycle, [items[i] for i in span], span, turns)
            cycle.damaged += 1
        for i, (turn, place) in found.items():
            cycle.placed[i] = (layer + turn, place)
        layer += turns
        cycle.attentions[b] = layer
    cycle.layers = layer + 1
    cycle.tail = list(range(at[-1] + 1, len(items)))


def _swapped(cycle: Cycle, times: list[int]) -> bool:
    """Whether two kernels of one name and grid seem to have changed places: one takes the time of
    the other, and not its own."""
    for place, ns in enumerate(times):
        if cycle.low[place] <= ns <= cycle.high[place]:
            continue
        own = abs(math.log(max(ns, 1) / cycle.ns[place]))
        for other, token in enumerate(cycle.tokens):
            twin = other != place and token == cycle.tokens[place]
            if twin and abs(math.log(max(ns, 1) / cycle.ns[other])) < own:
                return True
    return False


def fits(cycle: Cycle, item: Item, place: int) -> bool:
    """Whether an item may be the kernel of a place, by name, grid and time."""
    if item.token != cycle.tokens[place]:
        return False
    alone = cycle.tokens.count(item.token) == 1
    slack = 1.5 if alone else 1.0
    return cycle.low[place] / slack <= item.ns <= cycle.high[place] * slack


def aligned(
    cycle: Cycle, items: list[Item], numbers: list[int], turns: int, *, first: int = 0
) -> dict[int, tuple[int, int]]:
    """The turn and place of items of a stretch of so many turns, where they are sure; the first
    turn begins at place `first`."""
    size = len(cycle.tokens)
    places = [(turn, place) for turn in range(turns) for place in range(size)][first:]
    return {
        numbers[i]: places[j]
        for i, j in sure_pairs(items, [place for _, place in places], cycle).items()
    }


def sure_pairs(items: list[Item], places: list[int], cycle: Cycle) -> dict[int, int]:
    """Item -> index into `places`, for items that every best alignment puts at one index."""
    rows, columns = len(items), len(places)
    if rows * columns > _CELLS:
        return {}
    can = [[fits(cycle, item, place) for place in places] for item in items]
    ahead = _most(can, rows, columns)
    behind = _most([list(reversed(row)) for row in reversed(can)], rows, columns)
    best, out = ahead[rows][columns], {}
    for i in range(rows):
        seen = [
            j
            for j in range(columns)
            if can[i][j] and ahead[i][j] + 1 + behind[rows - 1 - i][columns - 1 - j] == best
        ]
        if len(seen) != 1:
            continue
        # Left out by an alignment that is as good: then it may be another kernel.
        left = any(
            ahead[i][j] + behind[rows - 1 - i][columns - j] == best for j in range(columns + 1)
        )
        if not left:
            out[i] = seen[0]
    return out


def _most(can: list[list[bool]], rows: int, columns: int) -> list[list[int]]:
    """How many pairs in order the first i items and the first j places can make."""
    table = [[0] * (columns + 1) for _ in range(rows + 1)]
    for i in range(rows):
        above, here = table[i], table[i + 1]
        for j in range(columns):
            longest = above[j + 1] if above[j + 1] >= here[j] else here[j]
            if can[i][j] and above[j] + 1 > longest:
                longest = above[j] + 1
            here[j + 1] = longest
    return table
