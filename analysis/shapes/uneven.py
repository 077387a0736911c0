"""Which GEMM of which layer each kernel of a step runs, in a model whose layers differ.

In: items of a step in launch order, the config. Out: an `Assignment` a forward pass, as `align`
gives it. No segment between two attentions need be like another, so each is compared with what its
own layers run: a segment with as many GEMMs, of the same kinds, gets their slots, any other none.
Layers without attention make a segment longer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, product

from prunescope.analysis.schema.notice import Notice, warning
from prunescope.analysis.shapes.evidence import set_aside_misplaced
from prunescope.analysis.shapes.items import (
    ATTENTION,
    BATCHED,
    MIXER,
    Assignment,
    Item,
    Placed,
    anchors_of,
    can_run,
)
from prunescope.analysis.shapes.layer_match import misfit
from prunescope.analysis.shapes.slots import Slot, attention_ways, mlp_ways, role_slots
from prunescope.taxonomy.shape import ModelShape

_SURE = 0.25  # by which the times of one way must beat those of another
_MOST = 0.5  # of the segments, that must match for the order to be believed
Place = tuple[Slot, int | None]  # a slot and its layer; None for the head


@dataclass(frozen=True)
class _Way:
    """One way to run the model: what stands before the first attention, between two, and behind
    the last, where the head comes last."""

    segments: list[list[Place]]
    attending: list[int]  # layers with attention

    def matched(self, parts: Sequence[Sequence[Item]]) -> list[list[Place] | None]:
        """The places of each segment's items, as many at its end (the first) or its begin (the
        last) as the way has; None where they differ."""
        found: list[list[Place] | None] = []
        for number, (items, places) in enumerate(zip(parts, self.segments, strict=True)):
            wanted = places
            if number == len(parts) - 1 and len(items) == len(places) - 1:
                wanted = places[:-1]  # no head
            own = _items_of_layers(
                items, len(wanted), first=number == 0, last=number == len(parts) - 1
            )
            slots = [slot for slot, _ in wanted]
            fits = len(own) == len(wanted) and all(map(can_run, own, slots))
            found.append(wanted if fits else None)
        return found


def _items_of_layers(
    items: Sequence[Item], count: int, *, first: bool, last: bool
) -> Sequence[Item]:
    """The items of a segment that belong to layers: others may come before all and behind all."""
    if first and len(items) > count:
        return items[len(items) - count :]
    return items[:count] if last and len(items) > count else items


def align_uneven(items: Sequence[Item], shape: ModelShape, ranks: int) -> list[Assignment]:
    """The assignment of every forward pass of a step; one with `problems` where the order of the
    kernels is not that of the config's layers."""
    if shape.mixer_layers or shape.other_layers:
        return [Assignment(by_order=True, problems=[warning("layers-of-several-sizes")])]
    items = [item for item in items if item.what not in (BATCHED, MIXER)]
    ways = list(_ways(shape, ranks))
    anchors, attending = anchors_of(items), len(ways[0].attending)
    if not anchors or not attending or len(anchors) % attending:
        counts = {"attentions": len(anchors), "layers": attending}
        problem = warning("another-number-of-attentions", **counts)
        return [Assignment(by_order=True, problems=[problem])]
    passes = _passes(items, anchors, ways)
    chosen = _chosen(ways, [_parts(one) for one in passes])
    if isinstance(chosen, Notice):
        return [Assignment(by_order=True, problems=[chosen])]
    return [_assigned(one, chosen) for one in passes]


def _passes(items: Sequence[Item], anchors: list[int], ways: list[_Way]) -> list[Sequence[Item]]:
    """The forward passes of a step: between two, what follows the last attention comes first."""
    each = len(ways[0].attending)
    behind = {len(way.segments[-1]) + len(way.segments[0]): len(way.segments[-1]) for way in ways}
    cuts = [0]
    for i in range(each, len(anchors), each):
        between = anchors[i] - anchors[i - 1] - 1
        cuts.append(anchors[i - 1] + 1 + behind.get(between, between))
    return [items[a:b] for a, b in pairwise([*cuts, len(items)])]


def _parts(items: Sequence[Item]) -> list[Sequence[Item]]:
    return [items[a + 1 : b] for a, b in pairwise([-1, *anchors_of(items), len(items)])]


def _chosen(ways: list[_Way], passes: list[list[Sequence[Item]]]) -> _Way | Notice:
    """The way that most segments match; of several, the one that the times fit."""
    counts = []
    for way in ways:
        matched = [one for parts in passes for one in way.matched(parts)]
        counts.append(sum(one is not None for one in matched))
    most, total = max(counts), sum(map(len, passes))
    if most <= _MOST * total:
        return warning("segments-of-other-gemms", count=most, segments=total)
    best = [way for way, count in zip(ways, counts, strict=True) if count == most]
    costs = sorted((_cost(way, passes), number) for number, way in enumerate(best))
    if len(costs) > 1 and costs[1][0] < costs[0][0] + _SURE:
        return warning("several-orders-of-gemms", orders=len(best))
    return best[costs[0][1]]


def _cost(way: _Way, passes: list[list[Sequence[Item]]]) -> float:
    times: list[float] = []
    slots: list[Slot] = []
    for parts in passes:
        for number, (items, places) in enumerate(zip(parts, way.matched(parts), strict=True)):
            if places is not None:
                last = number == len(parts) - 1
                own = _items_of_layers(items, len(places), first=number == 0, last=last)
                pairs = [
                    (i, s) for i, (s, layer) in zip(own, places, strict=True) if layer is not None
                ]
                times += [float(item.ns) for item, _ in pairs]
                slots += [slot for _, slot in pairs]
    return misfit(times, slots)


def _assigned(items: Sequence[Item], way: _Way) -> Assignment:
    out, parts = Assignment(by_order=True), _parts(items)
    for number, (part, places) in enumerate(zip(parts, way.matched(parts), strict=True)):
        own: Sequence[Item] = ()
        if places is not None:
            own = _items_of_layers(
                part, len(places), first=number == 0, last=number == len(parts) - 1
            )
            out.gemms += [Placed(i, slot, n) for i, (slot, n) in zip(own, places, strict=True)]
        rows = {item.row for item in own}
        out.unsure += [item for item in part if item.row not in rows]
    attentions = [item for item in items if item.what == ATTENTION]
    out.attentions = list(zip(attentions, way.attending, strict=True))
    set_aside_misplaced(out)
    placed = sum(one.item.ns for one in out.gemms)
    total = placed + sum(item.ns for item in out.unsure)
    out.explained = placed / total if total else 0.0
    return out


def _ways(shape: ModelShape, ranks: int) -> Iterator[_Way]:
    """The model with q, k, v and gate, up fused or not, and experts in each of their orders: in
    all layers alike."""
    layers = [shape.like(number) for number in range(shape.layers)]
    experts = [letter.isupper() for letter in shape.layout]
    slots = [role_slots(layer, ranks) for layer in layers]
    tails = [
        _tails(layer, own, ranks, routed=routed)
        for layer, own, routed in zip(layers, slots, experts, strict=True)
    ]
    plain = max((len(t) for t, routed in zip(tails, experts, strict=True) if not routed), default=1)
    routes = max((len(t) for t, routed in zip(tails, experts, strict=True) if routed), default=1)
    usual = next((n for n, one in enumerate(layers) if one.attention_kind == "usual"), None)
    fusions = 1 if usual is None else len(attention_ways(layers[usual], slots[usual]))
    for fused, mlp, route in product(range(fusions), range(plain), range(routes)):
        segments: list[list[Place]] = [[]]
        attending = []
        for number, layer in enumerate(layers):
            own = slots[number]
            if layer.attention_kind == "usual":
                segments[-1] += _places(attention_ways(layer, own)[fused], number, layer, ranks)
                attending.append(number)
                segments.append([])
            if layer.attention_kind != "none":
                segments[-1] += _places((own["o"],), number, layer, ranks)
            tail = tails[number]
            chosen = tail[min(route if experts[number] else mlp, len(tail) - 1)]
            segments[-1] += _places(chosen, number, layer, ranks)
        segments[-1].append((slots[0]["lm_head"], None))
        yield _Way(segments, attending)


def _tails(
    layer: ModelShape, slots: dict[str, Slot], ranks: int, *, routed: bool
) -> list[tuple[Slot, ...]]:
    """The ways to run what replaces an MLP."""
    if layer.mlp_kind == "usual":
        return mlp_ways(layer, ranks, experts=routed)
    return [(slots["down"],)] if layer.mlp_kind == "linear" else [()]


def _places(slots: Sequence[Slot], number: int, layer: ModelShape, ranks: int) -> Iterator[Place]:
    """The slots of a layer, those of a low rank as the two that are stored."""
    for slot in slots:
        sizes = layer.stored(slot.role, slot.n, slot.k) if ranks == 1 else [(slot.n, slot.k)]
        for n, k in sizes:
            yield (slot if len(sizes) == 1 else Slot(slot.role, n, k)), number
