"""Which GEMM of which layer each kernel of a step runs, where the trace names modules.

In: items of a step in launch order with roles and layers, the config. Out: an `AssignedPass`
for each call of the model, or why the config contradicts its modules. Times in ns.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import pairwise

from prunescope.analysis.shapes.items import (
    ATTENTION,
    MIXER,
    AssignedPass,
    Item,
    Placed,
    wrong_layers,
)
from prunescope.analysis.shapes.layer_match import (
    LayerMatch,
    match_layer,
    slots_in_turns,
    slots_of_expert,
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
_SMALL = 0.5  # share of the linear's own time that each of those two takes at most


def assign_by_modules(items: Sequence[Item], shape: ModelShape, ranks: int) -> list[AssignedPass]:
    """Assign the kernels of every call of the model in a step.

    A call begins where the first layer follows another one.
    """
    items = [item for item in items if item.form != MIXER]
    cuts, last = [0], 0
    for i, item in enumerate(items):
        if item.layer == 0 and last:
            cuts.append(i)
        last = last if item.layer is None else item.layer
    return [_assign_call(items[a:b], shape, ranks) for a, b in pairwise([*cuts, len(items)])]


def _assign_call(items: Sequence[Item], shape: ModelShape, ranks: int) -> AssignedPass:
    """Assign the kernels of one call of the model."""
    assignment = AssignedPass()
    layers = {item.layer for item in items if item.layer is not None}
    beyond = shape.layer_shapes and max(layers, default=0) >= shape.layers
    if len(layers) != shape.layers or beyond:
        assignment.problems.append(wrong_layers(len(layers), shape))
        return assignment
    slots, experts = _slots_by_layer(shape, ranks), expert_slots(shape, ranks)
    calls = Counter(item.layer for item in items if item.form == ATTENTION)
    assignment.attentions = [
        (item, item.layer) for item in items if item.form == ATTENTION and item.layer is not None
    ]
    groups = _gemms_by_role(items, shape)
    counts = [len(members) for (_, role), members in groups.items() if role == "experts"]
    turns = slots_of_expert(shape, counts) if ranks == 1 and counts else None
    for (layer, role), members in groups.items():
        like = shape if layer is None else shape.repeat_layer(layer)
        chosen = _own_gemms(members, max(1, calls[layer]))
        if role in ("experts", "shared_expert") and all(item.form == GEMM for item in members):
            cycle = turns if role == "experts" else _shared_slots(members, shape, ranks)
            assigned = [] if cycle is None else slots_in_turns(members, cycle)
            if assigned:
                assignment.gemms += [
                    Placed(m, s, layer) for m, s in zip(members, assigned, strict=True)
                ]
            else:
                assignment.unsure += members
            continue
        if role == "experts" and all(item.form == GROUPED for item in members):
            if len(members) == len(experts) * max(1, calls[layer]):
                own = expert_slots(like, ranks)
                assignment.gemms += [Placed(m, own[i % 2], layer) for i, m in enumerate(members)]
            continue
        slot = slots[layer].get(role)
        pair = like.stored(role, slot.n, slot.k) if slot and ranks == 1 else []
        if len(pair) == 2 and len(members) == 2 * max(1, calls[layer]):
            assignment.gemms += [
                Placed(item, Slot(role, *pair[i % 2]), layer) for i, item in enumerate(members)
            ]
            continue
        if slot is None or chosen is None:
            assignment.unsure += members
            continue
        assignment.gemms += [Placed(item, slot, layer) for item in chosen if item.form == GEMM]
    return assignment


def _slots_by_layer(shape: ModelShape, ranks: int) -> dict[int | None, dict[str, Slot]]:
    """Return the slots of each layer by role; under None those of the model, for its head."""
    whole = role_slots(shape, ranks)
    layers: dict[int | None, dict[str, Slot]] = dict.fromkeys([*range(shape.layers), None], whole)
    if shape.layer_shapes:
        layers |= {n: role_slots(shape.repeat_layer(n), ranks) for n in range(shape.layers)}
    return layers


def _shared_slots(
    members: Sequence[Item], shape: ModelShape, ranks: int
) -> tuple[Slot, ...] | None:
    """Return the GEMMs of the shared experts, perhaps with their gate; None if not certain."""
    orders = shared_ways(shape, ranks)
    if shape.experts.shared_gate:
        gate = Slot("shared_expert", 1, shape.hidden)
        orders = [*orders, *((*own, gate) for own in orders), *((gate, *own) for own in orders)]
    ways = [Layer((), order) for order in orders]
    match = match_layer(members, [item.ns for item in members], ways) if ways else None
    return match.layer.after if isinstance(match, LayerMatch) else None


def _gemms_by_role(
    items: Sequence[Item], shape: ModelShape
) -> dict[tuple[int | None, str], list[Item]]:
    """Group GEMMs by layer and role.

    In a layer with experts the first GEMM without a role is the router.
    """
    groups: dict[tuple[int | None, str], list[Item]] = defaultdict(list)
    routed: set[int | None] = set()
    for item in items:
        role = item.role
        in_layer = item.layer is not None and item.form == GEMM
        if shape.experts.count and role == "unknown" and in_layer:
            role = "router" if item.layer not in routed else role
            routed.add(item.layer)
        if item.form in (GEMM, GROUPED) and (item.layer is not None) != (role == "lm_head"):
            groups[item.layer, role].append(item)
    if not groups.get((None, "lm_head")) and (head := _find_head(items)) is not None:
        groups[None, "lm_head"] = [head]
    return groups


def _find_head(items: Sequence[Item]) -> Item | None:
    """Return the only GEMM without role after all layers: the head of the model."""
    layered = [i for i, item in enumerate(items) if item.layer is not None]
    after = [item for item in items[layered[-1] + 1 :] if item.form == GEMM]
    return after[0] if len(after) == 1 and after[0].role == "unknown" else None


def _own_gemms(members: list[Item], passes: int) -> list[Item] | None:
    """Return the GEMMs of the matrix itself among those of a module, one in each pass.

    Three GEMMs are a matrix with an adapter if two of them are small. The result is None where it
    is not certain (two are a matrix of a low rank).
    """
    each, remainder = divmod(len(members), passes)
    if remainder or each not in (1, _ADAPTED):
        return None
    if each == 1:
        return members
    own = []
    for at in range(0, len(members), each):
        *small, longest = sorted(members[at : at + each], key=lambda item: item.ns)
        if any(item.ns > _SMALL * longest.ns for item in small):
            return None
        own.append(longest)
    return own
