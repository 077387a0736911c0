"""The slot of every GEMM of a step: by the modules that hold them, or by the order of kernels.

In: the items of a step, the config. Out: a `Assignment` a forward pass: GEMMs with slots and
layers, attentions with layers, and what contradicts the config or keeps the order from being told.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from prunescope.analysis.shapes.alternate import by_kinds
from prunescope.analysis.shapes.assignment import Assignment
from prunescope.analysis.shapes.embed import Embedding, Refusal, embed
from prunescope.analysis.shapes.evidence import Placed, misplaced
from prunescope.analysis.shapes.items import ATTENTION, BATCHED, MIXER, Item
from prunescope.analysis.shapes.loops import by_loop, is_loop, one_expert, placed_turns
from prunescope.analysis.shapes.order import Cycle, aligned, find_cycle
from prunescope.analysis.shapes.slots import (
    GEMM,
    GROUPED,
    Layer,
    Slot,
    expert_slots,
    layer_ways,
    role_slots,
    shared_ways,
)
from prunescope.taxonomy.shape import ModelShape

_ADAPTED = 3  # GEMMs of a linear with an adapter: its own and two of a low rank
_SMALL = 0.5  # of its own time, that each of those takes at most


def place(
    items: Sequence[Item], shape: ModelShape, ranks: int, *, modules: bool
) -> list[Assignment]:
    """The assignment of every forward pass of a step."""
    if not modules and shape.mixer and ranks == 1:
        return by_kinds(items, shape)
    items = [item for item in items if item.what != MIXER]
    if not modules:
        return _by_order(items, shape, ranks)
    return [_by_modules(part, shape, ranks) for part in _calls(items)]


def _calls(items: Sequence[Item]) -> list[Sequence[Item]]:
    """A step in calls of the model: each begins where the first layer follows another one."""
    cuts, last = [0], 0
    for i, item in enumerate(items):
        if item.layer == 0 and last:
            cuts.append(i)
        last = last if item.layer is None else item.layer
    return [items[a:b] for a, b in zip(cuts, [*cuts[1:], len(items)], strict=True)]


def wrong_layers(seen: int, shape: ModelShape) -> str:
    """What is said where a trace has another number of layers."""
    return f"{seen} layers in the trace, {shape.layers} in the config"


def _by_modules(items: Sequence[Item], shape: ModelShape, ranks: int) -> Assignment:
    out = Assignment()
    layers = {item.layer for item in items if item.layer is not None}
    if len(layers) != shape.layers:
        out.problems.append(wrong_layers(len(layers), shape))
        return out
    slots, experts = role_slots(shape, ranks), expert_slots(shape, ranks)
    calls = Counter(item.layer for item in items if item.what == ATTENTION)
    out.attentions = [
        (item, item.layer) for item in items if item.what == ATTENTION and item.layer is not None
    ]
    groups = _by_role(items, shape)
    counts = [len(members) for (_, role), members in groups.items() if role == "experts"]
    turns = one_expert(shape, counts) if ranks == 1 and counts else None
    for (layer, role), members in groups.items():
        chosen = _own(members, max(1, calls[layer]))
        if role in ("experts", "shared_expert") and all(item.what == GEMM for item in members):
            found = turns if role == "experts" else _shared(members, shape, ranks)
            taken = [] if found is None else placed_turns(members, found, layer)
            out.gemms += taken
            out.unsure += [] if taken else members
            continue
        if role == "experts" and all(item.what == GROUPED for item in members):
            if len(members) == len(experts) * max(1, calls[layer]):
                out.gemms += [Placed(m, experts[i % 2], layer) for i, m in enumerate(members)]
            continue
        slot = slots.get(role)
        if slot is None or chosen is None:
            out.unsure += members
            continue
        out.gemms += [Placed(item, slot, layer) for item in chosen if item.what == GEMM]
    return out


def _shared(members: Sequence[Item], shape: ModelShape, ranks: int) -> tuple[Slot, ...] | None:
    """The GEMMs of the shared experts, their gate perhaps among them; None where not sure."""
    gate = [(Slot("shared_expert", 1, shape.hidden),)] if shape.shared_gate else []
    ways = [Layer((), own) for own in shared_ways(shape, ranks)]
    ways += [Layer((), (*own.after, *one)) for own in ways[:] for one in gate]
    ways += [Layer((), (*one, *own)) for own in shared_ways(shape, ranks) for one in gate]
    found = embed(members, [item.ns for item in members], ways) if ways else None
    return found.layer.after if isinstance(found, Embedding) else None


def _by_role(items: Sequence[Item], shape: ModelShape) -> dict[tuple[int | None, str], list[Item]]:
    """GEMMs by layer and role. Of a layer with experts the first one of no role is the router."""
    groups: dict[tuple[int | None, str], list[Item]] = defaultdict(list)
    routed: set[int | None] = set()
    for item in items:
        role = item.role
        if shape.experts and role == "unknown" and item.layer is not None and item.what == GEMM:
            role = "router" if item.layer not in routed else role
            routed.add(item.layer)
        if item.what in (GEMM, GROUPED) and (item.layer is not None) != (role == "lm_head"):
            groups[item.layer, role].append(item)
    if not groups.get((None, "lm_head")) and (head := _last(items)) is not None:
        groups[None, "lm_head"] = [head]
    return groups


def _last(items: Sequence[Item]) -> Item | None:
    """The only GEMM of no role after all layers: the head of the model."""
    layered = [i for i, item in enumerate(items) if item.layer is not None]
    after = [item for item in items[layered[-1] + 1 :] if item.what == GEMM]
    return after[0] if len(after) == 1 and after[0].role == "unknown" else None


def _own(members: list[Item], passes: int) -> list[Item] | None:
    """The GEMMs of the matrix itself among those of a module, one a pass; None where not sure: two
    are a matrix of a low rank, three one with an adapter if two of them are small."""
    each, rest = divmod(len(members), passes)
    if rest or each not in (1, _ADAPTED):
        return None
    if each == 1:
        return members
    out = []
    for at in range(0, len(members), each):
        *small, longest = sorted(members[at : at + each], key=lambda item: item.ns)
        if any(item.ns > _SMALL * longest.ns for item in small):
            return None
        out.append(longest)
    return out


def _by_order(items: Sequence[Item], shape: ModelShape, ranks: int) -> list[Assignment]:
    out = Assignment(by_order=True)
    if shape.other_layers or shape.mixer_layers:
        out.problems.append(
            "layers of several kinds cannot be told by the order of kernels: the trace has no "
            "modules"
        )
        return [out]
    items = [item for item in items if item.what != BATCHED]
    if is_loop(items, shape) and ranks == 1:
        return [by_loop(items, shape)]
    cycle = find_cycle(items)
    if cycle is None:
        seen = sum(item.what == ATTENTION for item in items)
        out.problems.append(
            f"no repetition of layers is found in the order of kernels ({seen} attentions, "
            f"{shape.layers} layers in the config)"
        )
        return [out]
    experts = shape.moe_layers > shape.layers // 2
    found = embed(cycle.sample, cycle.ns, layer_ways(shape, ranks, experts=experts))
    if isinstance(found, Refusal):
        seen = sum(item.what == ATTENTION for item in items)
        if cycle.damaged == 0 and seen % shape.layers:
            out.problems.append(wrong_layers(cycle.layers, shape))
        out.problems.append(found.why)
        return [out]
    before = found.layer.before
    first = next(i for i, slot in enumerate(found.slots) if slot is not None and slot in before)
    made = []
    for part in _passes(items, shape.layers, len(found.slots) - first):
        made.append(Assignment(by_order=True, explained=found.explained))
        _place_pass(made[-1], part, shape, ranks, found, first)
    return made


def _passes(items: Sequence[Item], layers: int, before: int) -> list[Sequence[Item]]:
    """A step in forward passes, where it holds a whole number of them: between two, more runs than
    between two layers (the head, another embedding)."""
    at = [i for i, item in enumerate(items) if item.what == ATTENTION]
    if len(at) <= layers or len(at) % layers:
        return [items]
    ends = range(layers, len(at), layers)
    if not all(_parts(items, at[i - 1], at[i]) > _parts(items, at[0], at[1]) for i in ends):
        return [items]
    cuts = [max(0, at[i] - before) for i in ends]
    return [items[a:b] for a, b in zip([0, *cuts], [*cuts, len(items)], strict=True)]


def _parts(items: Sequence[Item], first: int, last: int) -> int:
    return sum(item.what in (GEMM, GROUPED) for item in items[first:last])


def _place_pass(
    out: Assignment,
    items: Sequence[Item],
    shape: ModelShape,
    ranks: int,
    found: Embedding,
    first: int,
) -> None:
    cycle = find_cycle(items)
    if cycle is None or len(cycle.tokens) != len(found.slots):
        out.problems.append("the passes of a step differ in their kernels")
        return
    more = _extra(len(cycle.head) - (len(cycle.tokens) - first), cycle)
    placed = dict(cycle.placed)
    placed = {i: (stretch + more + 1, place) for i, (stretch, place) in placed.items()}
    placed |= _head(cycle, items, first, more)
    last = cycle.layers + more
    ends, head_of_model, extra = _tail(cycle, items, first)
    placed |= {i: (last + turn, place) for i, (turn, place) in ends.items()}
    layers = last + extra
    if layers != shape.layers:
        damaged = f" (or so: {cycle.damaged} of them lack kernels)" if cycle.damaged else ""
        out.problems.append(wrong_layers(layers, shape) + damaged)
        return
    out.attentions += [(items[i], layer + more) for i, layer in cycle.attentions.items()]
    for i, item in enumerate(items):
        if item.what == ATTENTION:
            continue
        slot = found.slots[placed[i][1]] if i in placed else None
        if slot is not None:
            stretch, place = placed[i]
            out.gemms.append(Placed(item, slot, stretch - 1 if place < first else stretch))
        elif i == head_of_model:
            out.gemms.append(Placed(item, role_slots(shape, ranks)["lm_head"], None))
        else:
            out.unsure.append(item)
    if moved := misplaced(out.gemms):
        out.unsure += [one.item for one in out.gemms if one.item.row in moved]
        out.gemms = [one for one in out.gemms if one.item.row not in moved]


def _extra(surplus: int, cycle: Cycle) -> int:
    """Layers whose attention was lost at one end of a pass."""
    return max(0, round(surplus / (len(cycle.tokens) + 1)))


def _head(cycle: Cycle, items: Sequence[Item], first: int, more: int) -> dict[int, tuple[int, int]]:
    """Stretch and place of what stands before the first attention; stretch 0 holds the projections
    of the first layer."""
    wanted = len(cycle.tokens) - first
    own = cycle.head[-wanted:] if wanted else []
    if not more and _same(cycle, items, own, first):
        return {i: (0, first + n) for n, i in enumerate(own)}
    inside = [items[i] for i in cycle.head]
    return aligned(cycle, inside, cycle.head, more + 1, first=first)


def _tail(
    cycle: Cycle, items: Sequence[Item], first: int
) -> tuple[dict[int, tuple[int, int]], int | None, int]:
    """Turn and place of what follows the last attention, the head of the model where one GEMM
    follows the last layer, and the layers whose attention was lost."""
    own, rest = cycle.tail[:first], cycle.tail[first:]
    if _same(cycle, items, own, 0) and len(own) == first:
        left = [i for i in rest if items[i].what == GEMM]
        extra = _extra(len(rest) - 1, cycle)
        if not extra:
            head = left[0] if len(left) == 1 else None
            return {i: (0, n) for n, i in enumerate(own)}, head, 0
    extra = _extra(len(cycle.tail) - first - 1, cycle)
    inside = [items[i] for i in cycle.tail]
    found = aligned(cycle, inside, cycle.tail, extra + 1)
    return {i: at for i, at in found.items() if at[0] < extra or at[1] < first}, None, extra


def _same(cycle: Cycle, items: Sequence[Item], own: Sequence[int], first: int) -> bool:
    """Whether items are the cycle's kernels from a place on."""
    tokens = cycle.tokens[first : first + len(own)]
    return [items[i].token for i in own] == tokens and all(
        cycle.low[first + n] / 1.5 <= items[i].ns <= cycle.high[first + n] * 1.5
        for n, i in enumerate(own)
    )
