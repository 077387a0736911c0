"""The layers of a hybrid, from the order of its kernels: attention and mixers alternate.

In: the items of a step with its mixers, the config. Out: a `Assignment` a forward pass. Marks (an
attention, the scans and convolutions of a mixer) must come in the order of the config's layers.
Between two marks runs what follows the one and precedes the other: a cycle of its own for each pair
of kinds. A stretch that is not its pair's usual one is left out: it may be damaged.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from prunescope.analysis.shapes.assignment import Assignment
from prunescope.analysis.shapes.embed import Embedding, Refusal, embed
from prunescope.analysis.shapes.evidence import Placed
from prunescope.analysis.shapes.items import ATTENTION, BATCHED, MIXER, Item
from prunescope.analysis.shapes.order import Cycle, usual_cycle
from prunescope.analysis.shapes.slots import GEMM, Slot, pair_ways, role_slots
from prunescope.taxonomy.shape import ModelShape

Pair = tuple[str, str]  # letters of two marks: f attention, m mixer


@dataclass(frozen=True)
class Part:
    """What runs between two marks of a kind each: the usual kernels, their slots, and how many of
    them belong to the first mark's layer."""

    cycle: Cycle
    found: Embedding
    first: int

    @property
    def ahead(self) -> int:
        """How many kernels precede the second mark in its own layer."""
        return len(self.cycle.tokens) - self.first


def by_kinds(items: Sequence[Item], shape: ModelShape) -> list[Assignment]:
    """The assignment of every forward pass of a step."""
    items = _marked([item for item in items if item.what != BATCHED])
    marks = [i for i, item in enumerate(items) if item.what in (ATTENTION, MIXER)]
    seen = "".join("f" if items[i].what == ATTENTION else "m" for i in marks)
    orders = [one for one in _orders(shape) if one]
    order = next((one for one in orders if seen == one * max(1, len(seen) // len(one))), None)
    if order is None:
        return [Assignment(by_order=True, problems=[_wrong_order(seen, shape)])]
    parts = _parts(items, marks, order, shape)
    if isinstance(parts, str):
        return [Assignment(by_order=True, problems=[parts])]
    hybrid = _Hybrid(items, shape, order, parts)
    passes = [marks[n : n + len(order)] for n in range(0, len(marks), len(order))]
    edges = [0, *(hybrid.cut(a[-1], b[0]) for a, b in pairwise(passes)), len(items)]
    return [
        hybrid.assignment(own, begin, end)
        for own, begin, end in zip(passes, edges, edges[1:], strict=False)
    ]


def _orders(shape: ModelShape) -> list[str]:
    """The marks of a pass: one a layer, or, where a mixer stands beside attention, two."""
    if shape.other_layers:
        return [shape.order.replace("s", "f")]
    return ["mf" * shape.layers, "fm" * shape.layers]


def _marked(items: list[Item]) -> list[Item]:
    """One mark a run of mixer kernels; a mixer kernel beside an attention is none of a mixer."""
    out: list[Item] = []
    for item in items:
        last = out[-1].what if out else None
        if item.what == MIXER and last in (MIXER, ATTENTION):
            continue
        if item.what == ATTENTION and last == MIXER:
            out.pop()
        out.append(item)
    return out


def _wrong_order(seen: str, shape: ModelShape) -> str:
    mixers = shape.other_layers or shape.mixer_layers
    return (
        f"{seen.count('f')} attentions and {seen.count('m')} mixers in the trace, "
        f"{shape.attention_layers} and {mixers} in the config, or in another order"
    )


def _parts(
    items: Sequence[Item], marks: Sequence[int], order: str, shape: ModelShape
) -> dict[Pair, Part] | str:
    """The usual kernels of each pair of kinds, and their slots; why not, where not sure."""
    groups: dict[Pair, list[range]] = defaultdict(list)
    for n in range(1, len(marks)):
        if n % len(order):
            pair = order[n % len(order) - 1], order[n % len(order)]
            groups[pair].append(range(marks[n - 1] + 1, marks[n]))
    out: dict[Pair, Part] = {}
    for pair, members in groups.items():
        cycle = usual_cycle(items, members)
        if cycle is None:
            return f"of {len(members)} layers of a kind no more than half run the same kernels"
        found = embed(cycle.sample, cycle.ns, pair_ways(shape, *pair))
        if isinstance(found, Refusal):
            return found.why
        first = next(i for i, s in enumerate(found.slots) if s in found.layer.before)
        out[pair] = Part(cycle, found, first)
    ways: dict[tuple[str, bool], set[tuple[Slot, ...]]] = defaultdict(set)
    for (left, right), part in out.items():
        ways[left, True].add(part.found.layer.after)
        ways[right, False].add(part.found.layer.before)
    if shape.other_layers and any(len(own) > 1 for own in ways.values()):
        return "layers of one kind would run in several ways"
    return out


class _Hybrid:
    """A step of a hybrid, by its parts."""

    def __init__(
        self, items: Sequence[Item], shape: ModelShape, order: str, parts: dict[Pair, Part]
    ) -> None:
        self.items, self.shape, self.order, self.parts = items, shape, order, parts
        self.per = len(order) // shape.layers  # marks a layer
        self.into = next(part for (_, right), part in parts.items() if right == order[0])
        self.out = next(part for (left, _), part in parts.items() if left == order[-1])

    def cut(self, last: int, first: int) -> int:
        """Where the pass that begins before mark `first` begins: `last` is the mark before it."""
        return max(last + 1, first - self.into.ahead)

    def assignment(self, marks: Sequence[int], begin: int, end: int) -> Assignment:
        """One pass, from item to item."""
        explained = min(part.found.explained for part in self.parts.values())
        out = Assignment(by_order=True, explained=explained)
        into = range(max(begin, marks[0] - self.into.ahead), marks[0])
        self._place(out, into, self.into, 0, skip=self.into.first)
        out.unsure += self.items[begin : into.start]
        for n, (a, b) in enumerate(pairwise(marks), 1):
            self._place(out, range(a + 1, b), self.parts[self.order[n - 1], self.order[n]], n)
        stop = min(end, marks[-1] + 1 + self.out.first)
        self._place(out, range(marks[-1] + 1, stop), self.out, len(marks), upto=self.out.first)
        rest = self.items[stop:end]
        heads = [item for item in rest if item.what == GEMM]
        if len(heads) == 1:
            out.gemms.append(Placed(heads[0], role_slots(self.shape)["lm_head"], None))
        else:
            out.unsure += rest
        out.attentions = [
            (self.items[i], n // self.per)
            for n, i in enumerate(marks)
            if self.items[i].what == ATTENTION
        ]
        return out

    def _place(
        self,
        out: Assignment,
        span: range,
        part: Part,
        number: int,
        *,
        skip: int = 0,
        upto: int | None = None,
    ) -> None:
        """Give the kernels before mark `number` their slots, where they are the usual ones."""
        places = range(len(part.cycle.tokens))[skip:upto]
        own = [self.items[i] for i in span]
        if [item.token for item in own] != [part.cycle.tokens[place] for place in places]:
            out.unsure += own
            return
        for item, place in zip(own, places, strict=True):
            slot = part.found.slots[place]
            if slot is None:
                out.unsure.append(item)
                continue
            mark = number - 1 if place < part.first else number
            out.gemms.append(Placed(item, slot, mark // self.per))
