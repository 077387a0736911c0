"""Which GEMM of which layer each kernel of a step runs, where the trace names modules.

In: items of a step in launch order with roles and layers, the config. Out: an `Assignment` a call
of the model, or why the config contradicts its modules. Times in ns.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import pairwise

from prunescope.analysis.shapes.items import (
    ATTENTION,
    MIXER,
    Assignment,
    Item,
    Placed,
    wrong_layers,
)
from prunescope.analysis.shapes.layer_match import (
    LayerMatch,
    in_turns,
    match_layer,
    one_expert,
)
from prunescope.analysis.shapes.slots import (
    GEMM,
    GROUPED,
    Layer,
    Slot,
    expert_slots,
    role_slots,
    shared_ways,
)
from prunescope.taxonomy.shape import ModelShape

_ADAPTED = 3  # GEMMs of a linear with an adapter: its own and two of a low rank
_SMALL = 0.5  # of its own time, that each of those takes at most


def assign_by_modules(items: Sequence[Item], shape: ModelShape, ranks: int) -> list[Assignment]:
    """The assignment of every call of the model in a step: each begins where the first layer
    follows another one."""
    items = [item for item in items if item.what != MIXER]
    cuts, last = [0], 0
    for i, item in enumerate(items):
        if item.layer == 0 and last:
            cuts.append(i)
        last = last if item.layer is None else item.layer
    return [_assign_call(items[a:b], shape, ranks) for a, b in pairwise([*cuts, len(items)])]


def _assign_call(items: Sequence[Item], shape: ModelShape, ranks: int) -> Assignment:
    out = Assignment()
    layers = {item.layer for item in items if item.layer is not None}
    beyond = shape.layer_shapes and max(layers, default=0) >= shape.layers
    if len(layers) != shape.layers or beyond:
        out.problems.append(wrong_layers(len(layers), shape))
        return out
    slots, experts = _slots_by_layer(shape, ranks), expert_slots(shape, ranks)
    calls = Counter(item.layer for item in items if item.what == ATTENTION)
    out.attentions = [
        (item, item.layer) for item in items if item.what == ATTENTION and item.layer is not None
    ]
    groups = _gemms_by_role(items, shape)
    counts = [len(members) for (_, role), members in groups.items() if role == "experts"]
    turns = one_expert(shape, counts) if ranks == 1 and counts else None
    for (layer, role), members in groups.items():
        like = shape if layer is None else shape.repeat_layer(layer)
        chosen = _longest_of_each(members, max(1, calls[layer]))
        if role in ("experts", "shared_expert") and all(item.what == GEMM for item in members):
            found = turns if role == "experts" else _shared(members, shape, ranks)
            taken = [] if found is None else in_turns(members, found)
            if taken:
                out.gemms += [Placed(m, s, layer) for m, s in zip(members, taken, strict=True)]
            else:
                out.unsure += members
            continue
        if role == "experts" and all(item.what == GROUPED for item in members):
            if len(members) == len(experts) * max(1, calls[layer]):
                own = expert_slots(like, ranks)
                out.gemms += [Placed(m, own[i % 2], layer) for i, m in enumerate(members)]
            continue
        slot = slots[layer].get(role)
        pair = like.stored(role, slot.n, slot.k) if slot and ranks == 1 else []
        if len(pair) == 2 and len(members) == 2 * max(1, calls[layer]):
            out.gemms += [
                Placed(item, Slot(role, *pair[i % 2]), layer) for i, item in enumerate(members)
            ]
            continue
        if slot is None or chosen is None:
            out.unsure += members
            continue
        out.gemms += [Placed(item, slot, layer) for item in chosen if item.what == GEMM]
    return out


def _slots_by_layer(shape: ModelShape, ranks: int) -> dict[int | None, dict[str, Slot]]:
    """The slots of each layer by role; under None those of the model, for its head."""
    whole = role_slots(shape, ranks)
    layers: dict[int | None, dict[str, Slot]] = dict.fromkeys([*range(shape.layers), None], whole)
    if shape.layer_shapes:
        layers |= {n: role_slots(shape.repeat_layer(n), ranks) for n in range(shape.layers)}
    return layers


def _shared(members: Sequence[Item], shape: ModelShape, ranks: int) -> tuple[Slot, ...] | None:
    """The GEMMs of the shared experts, their gate perhaps among them; None where not sure."""
    gate = [(Slot("shared_expert", 1, shape.hidden),)] if shape.experts.shared_gate else []
    ways = [Layer((), own) for own in shared_ways(shape, ranks)]
    ways += [Layer((), (*own.after, *one)) for own in ways[:] for one in gate]
    ways += [Layer((), (*one, *own)) for own in shared_ways(shape, ranks) for one in gate]
    found = match_layer(members, [item.ns for item in members], ways) if ways else None
    return found.layer.after if isinstance(found, LayerMatch) else None


def _gemms_by_role(
    items: Sequence[Item], shape: ModelShape
) -> dict[tuple[int | None, str], list[Item]]:
    """GEMMs by layer and role. Of a layer with experts the first one of no role is the router."""
    groups: dict[tuple[int | None, str], list[Item]] = defaultdict(list)
    routed: set[int | None] = set()
    for item in items:
        role = item.role
        in_layer = item.layer is not None and item.what == GEMM
        if shape.experts.count and role == "unknown" and in_layer:
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


def _longest_of_each(members: list[Item], passes: int) -> list[Item] | None:
    """The GEMMs of the matrix itself among those of a module, one a pass. Three are a matrix with
    an adapter if two of them are small; None where not sure (two are a matrix of a low rank)."""
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
