"""Layers that run their experts one after the other, a few GEMMs each, as many as tokens chose.

In: the items of a pass without grouped kernels, the config. Out: a `Assignment`, or why not. What
surrounds the loop is alike in all layers: output projection and router before it, the next layer's
projections behind it. N and K of an expert are known, its rows are not: the router chose them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from prunescope.analysis.shapes.assignment import Assignment
from prunescope.analysis.shapes.evidence import Placed
from prunescope.analysis.shapes.items import ATTENTION, Item, Token
from prunescope.analysis.shapes.slots import (
    EXPERT,
    GROUPED,
    Slot,
    attention_ways,
    role_slots,
)
from prunescope.taxonomy.shape import ModelShape

_MOST_ALIKE = 0.8  # of the layers: fewer have the surroundings of no loop


def is_loop(items: Sequence[Item], shape: ModelShape) -> bool:
    """Whether every layer has experts, and no kernel multiplies several of them at once."""
    return shape.moe_layers == shape.layers and not any(item.what == GROUPED for item in items)


def one_expert(shape: ModelShape, counts: Sequence[int]) -> tuple[Slot, ...] | None:
    """The GEMMs of one expert, by how many the layers run; None where more than one way divides
    them all, or none does."""
    width, hidden = shape.expert_intermediate, shape.hidden
    up, down = Slot("experts", width, hidden, EXPERT), Slot("experts", hidden, width, EXPERT)
    ways = [(up, up, down), (Slot("experts", 2 * width, hidden, EXPERT), down)]
    fit = [
        way
        for way in (ways if shape.gated else [(up, down)])
        if all(count and count % len(way) == 0 for count in counts)
    ]
    return fit[0] if len(fit) == 1 else None


def by_loop(items: Sequence[Item], shape: ModelShape) -> Assignment:
    """The assignment of one pass."""
    out = Assignment(by_order=True)
    at = [i for i, item in enumerate(items) if item.what == ATTENTION]
    if len(at) != shape.layers:
        out.problems.append(f"{len(at)} layers in the trace, {shape.layers} in the config")
        return out
    spans = [items[a + 1 : b] for a, b in pairwise([-1, *at, len(items)])]
    slots = role_slots(shape)
    after = (slots["o"], slots["router"])
    ways = [(after, before) for before in attention_ways(shape, slots)]
    found = [loop for edges in ways if (loop := _loop(spans[1:-1], edges, shape)) is not None]
    if len(found) != 1 or shape.shared_intermediate:
        beside = "beside a shared one" if shape.shared_intermediate else f"{len(found)} ways fit"
        out.problems.append(f"experts run one after the other, {beside}: their order is not sure")
        return out
    for number, span in enumerate(spans):
        found[0].place(out, span, number, slots["lm_head"] if number == len(at) else None)
    out.attentions = [(items[i], layer) for layer, i in enumerate(at)]
    return out


def _loop(
    spans: Sequence[Sequence[Item]],
    edges: tuple[tuple[Slot, ...], tuple[Slot, ...]],
    shape: ModelShape,
) -> _Loop | None:
    """The loop that all layers run between these edges; None where they do not."""
    after, before = (len(edge) for edge in edges)
    expert = one_expert(shape, [len(span) - after - before for span in spans])
    if expert is None:
        return None
    usual = []
    for part in ([span[:after] for span in spans], [span[len(span) - before :] for span in spans]):
        tokens, count = Counter(tuple(item.token for item in one) for one in part).most_common(1)[0]
        if count < _MOST_ALIKE * len(spans):
            return None
        usual.append(tokens)
    return _Loop(edges, expert, (usual[0], usual[1]))


@dataclass(frozen=True)
class _Loop:
    """`edges`: slots after an attention and before the next, with their usual tokens; `expert`:
    the GEMMs of one."""

    edges: tuple[tuple[Slot, ...], tuple[Slot, ...]]
    expert: tuple[Slot, ...]
    tokens: tuple[tuple[Token, ...], tuple[Token, ...]]

    def place(self, out: Assignment, span: Sequence[Item], number: int, head: Slot | None) -> None:
        """What runs before attention `number`: the end of the layer before it, then its own
        projections. `head`: it is the end of the pass. A stretch that is damaged is left out."""
        first = len(self.edges[0]) if number else 0
        last = len(span) - (0 if head else len(self.edges[1]))
        own, body, ahead = span[:first], span[first:last], span[last:]
        if head and len(body) % len(self.expert) == 1:
            out.gemms.append(Placed(body[-1], head, None))
            body = body[:-1]
        for part, n, layer in ((own, 0, number - 1), (ahead, 1, number)):
            if tuple(item.token for item in part) == self.tokens[n]:
                out.gemms += [Placed(i, s, layer) for i, s in zip(part, self.edges[n], strict=True)]
            else:
                out.unsure += part
        taken = placed_turns(body, self.expert, number - 1) if number else []
        out.gemms += taken
        out.unsure += [] if taken else body


def placed_turns(items: Sequence[Item], turn: Sequence[Slot], layer: int | None) -> list[Placed]:
    """Items that run the same GEMMs turn after turn; none where they do not: two GEMMs of one size
    run on one kernel and grid."""
    each = len(turn)
    if len(items) % each:
        return []
    for n in range(0, len(items), each):
        if each > 2 and turn[0] == turn[1] and items[n].token != items[n + 1].token:
            return []
    return [Placed(item, turn[n % each], layer) for n, item in enumerate(items)]
