"""Which GEMM of which layer each kernel of a step runs, in a model whose layers differ.

In: items of a step in launch order, the config. Out: an `AssignedPass` for each forward pass, as
`align` gives it. The segments between two attentions need not be alike, so each is compared with
what its own layers run: a segment with as many GEMMs, of the same forms, gets their slots, and any
other none. Layers without attention make a segment longer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, product

from prunescope.analysis.schema.notice import Notice, warning
from prunescope.analysis.shapes.config_evidence import set_aside_misplaced
from prunescope.analysis.shapes.items import (
    ATTENTION,
    BATCHED,
    MIXER,
    AssignedPass,
    Item,
    Placed,
    anchors_of,
    can_run,
)
from prunescope.analysis.shapes.layer_match import misfit
from prunescope.analysis.shapes.slots import Slot, attention_ways, mlp_ways, role_slots
from prunescope.taxonomy.shape import ModelShape

_SURE = 0.25  # by which the times of one way must beat those of another
_MOST = 0.5  # share of the segments that must match, for the order to be trusted
Place = tuple[Slot, int | None]  # a slot and its layer; None for the head
Pair = tuple[Item, Place]


@dataclass(frozen=True)
class _Way:
    """One way to run the model.

    Its segments stand before the first attention, between two, and behind the last one, where the
    head comes last.
    """

    segments: list[list[Place]]
    attending: list[int]  # layers with attention

    def match_parts(self, parts: Sequence[Sequence[Item]]) -> list[list[Pair] | None]:
        """Pair the items of each segment with their places; None where the segment differs.

        Other items may come before the first segment, and behind the last one, which may lack the
        head.
        """
        matches: list[list[Pair] | None] = []
        last = len(parts) - 1
        for number, (items, places) in enumerate(zip(parts, self.segments, strict=True)):
            count = len(places)
            if number == last and len(items) == count - 1:
                count -= 1  # no head
            if number == 0:
                items = items[max(0, len(items) - count) :]
            elif number == last:
                items = items[:count]
            pairs = list(zip(items, places, strict=False))
            fits = len(items) == count and all(can_run(item, slot) for item, (slot, _) in pairs)
            matches.append(pairs if fits else None)
        return matches


def align_uneven(items: Sequence[Item], shape: ModelShape, ranks: int) -> list[AssignedPass]:
    """Assign the kernels of every forward pass of a step, in a model whose layers differ.

    The result is one assignment with `problems` where the order of the kernels is not that of the
    config's layers.
    """
    if shape.mixer_layers or shape.other_layers:
        return [AssignedPass(by_order=True, problems=[warning("layers-of-several-sizes")])]
    items = [item for item in items if item.form not in (BATCHED, MIXER)]
    ways = list(_enumerate_ways(shape, ranks))
    anchors, attending = anchors_of(items), len(ways[0].attending)
    if not anchors or not attending or len(anchors) % attending:
        counts = {"attentions": len(anchors), "layers": attending}
        problem = warning("another-number-of-attentions", **counts)
        return [AssignedPass(by_order=True, problems=[problem])]
    passes = _passes(items, anchors, ways)
    chosen = _choose_way(ways, [_split_at_attention(items_of_pass) for items_of_pass in passes])
    if isinstance(chosen, Notice):
        return [AssignedPass(by_order=True, problems=[chosen])]
    return [_assign(items_of_pass, chosen) for items_of_pass in passes]


def _passes(items: Sequence[Item], anchors: list[int], ways: list[_Way]) -> list[Sequence[Item]]:
    """Split a step into forward passes; what follows the last attention of a pass comes first."""
    each = len(ways[0].attending)
    behind = {len(way.segments[-1]) + len(way.segments[0]): len(way.segments[-1]) for way in ways}
    cuts = [0]
    for i in range(each, len(anchors), each):
        between = anchors[i] - anchors[i - 1] - 1
        cuts.append(anchors[i - 1] + 1 + behind.get(between, between))
    return [items[a:b] for a, b in pairwise([*cuts, len(items)])]


def _split_at_attention(items: Sequence[Item]) -> list[Sequence[Item]]:
    """Split the items of a pass at its attentions."""
    return [items[a + 1 : b] for a, b in pairwise([-1, *anchors_of(items), len(items)])]


def _choose_way(ways: list[_Way], passes: list[list[Sequence[Item]]]) -> _Way | Notice:
    """Return the way that most segments match; of several, the one that the times fit.

    A warning is returned where too few segments match, or the times do not decide.
    """
    counts = []
    for way in ways:
        matches = [match for parts in passes for match in way.match_parts(parts)]
        counts.append(sum(match is not None for match in matches))
    most, total = max(counts), sum(map(len, passes))
    if most <= _MOST * total:
        return warning("segments-of-other-gemms", count=most, segments=total)
    best = [way for way, count in zip(ways, counts, strict=True) if count == most]
    costs = sorted((_cost(way, passes), number) for number, way in enumerate(best))
    if len(costs) > 1 and costs[1][0] < costs[0][0] + _SURE:
        return warning("several-orders-of-gemms", orders=len(best))
    return best[costs[0][1]]


def _cost(way: _Way, passes: list[list[Sequence[Item]]]) -> float:
    """Return how badly the times of all matching segments fit a way."""
    pairs = [
        (float(item.ns), slot)
        for parts in passes
        for match in way.match_parts(parts)
        for item, (slot, layer) in match or ()
        if layer is not None
    ]
    return misfit([ns for ns, _ in pairs], [slot for _, slot in pairs])


def _assign(items: Sequence[Item], way: _Way) -> AssignedPass:
    """Assign the kernels of one pass in the chosen way."""
    assignment, parts = AssignedPass(by_order=True), _split_at_attention(items)
    for part, match in zip(parts, way.match_parts(parts), strict=True):
        assignment.gemms += [Placed(item, slot, layer) for item, (slot, layer) in match or ()]
        rows = {item.row for item, _ in match or ()}
        assignment.unsure += [item for item in part if item.row not in rows]
    attentions = [item for item in items if item.form == ATTENTION]
    assignment.attentions = list(zip(attentions, way.attending, strict=True))
    set_aside_misplaced(assignment)
    placed = sum(gemm.item.ns for gemm in assignment.gemms)
    total = placed + sum(item.ns for item in assignment.unsure)
    assignment.explained = placed / total if total else 0.0
    return assignment


def _enumerate_ways(shape: ModelShape, ranks: int) -> Iterator[_Way]:
    """Yield the ways to run the model, which are the same in all layers.

    q, k, v and gate, up are fused or not, and experts run in each of their orders.
    """
    layers = [shape.repeat_layer(number) for number in range(shape.layers)]
    experts = [letter.isupper() for letter in shape.layout]
    slots = [role_slots(layer, ranks) for layer in layers]
    tails = [
        _tails(layer, own, ranks, routed=routed)
        for layer, own, routed in zip(layers, slots, experts, strict=True)
    ]
    plain = max((len(t) for t, routed in zip(tails, experts, strict=True) if not routed), default=1)
    routes = max((len(t) for t, routed in zip(tails, experts, strict=True) if routed), default=1)
    usual = (n for n, layer in enumerate(layers) if layer.attention.kind == "usual")
    fusions = next((len(attention_ways(layers[n], slots[n])) for n in usual), 1)
    for fused, mlp, route in product(range(fusions), range(plain), range(routes)):
        segments: list[list[Place]] = [[]]
        attending = []
        for number, layer in enumerate(layers):
            own = slots[number]
            if layer.attention.kind == "usual":
                segments[-1] += _stored_places(
                    attention_ways(layer, own)[fused], number, layer, ranks
                )
                attending.append(number)
                segments.append([])
            if layer.attention.kind != "none":
                segments[-1] += _stored_places((own["o"],), number, layer, ranks)
            tail = tails[number]
            chosen = tail[min(route if experts[number] else mlp, len(tail) - 1)]
            segments[-1] += _stored_places(chosen, number, layer, ranks)
        segments[-1].append((slots[0]["lm_head"], None))
        yield _Way(segments, attending)


def _tails(
    layer: ModelShape, slots: dict[str, Slot], ranks: int, *, routed: bool
) -> list[tuple[Slot, ...]]:
    """Return the ways to run the MLP of a layer, or what replaces it."""
    if layer.mlp.kind == "usual":
        return mlp_ways(layer, ranks, experts=routed)
    return [(slots["down"],)] if layer.mlp.kind == "linear" else [()]


def _stored_places(
    slots: Sequence[Slot], number: int, layer: ModelShape, ranks: int
) -> Iterator[Place]:
    """Yield the slots of a layer, one of a low rank as the two that are stored."""
    for slot in slots:
        sizes = layer.stored(slot.role, slot.n, slot.k) if ranks == 1 else [(slot.n, slot.k)]
        for n, k in sizes:
            yield (slot if len(sizes) == 1 else Slot(slot.role, n, k)), number
