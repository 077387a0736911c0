"""Which kernel of one layer runs which GEMM of the config.

In: the kernels of a layer in launch order with their usual times (ns), and the ways to run a layer
(orders of its slots). Out: a `LayerMatch`, the slot of each kernel, or a notice that says why.
Kernels and slots are paired in order as two sides are. For the experts of a layer that run one
after the other, `slots_of_expert` and `slots_in_turns` find which GEMM each kernel is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from prunescope.analysis.ops.pairs_in_order import pair_in_order
from prunescope.analysis.schema.notice import Notice, warning
from prunescope.analysis.shapes.items import Item, can_run
from prunescope.analysis.shapes.slots import EXPERT, GEMM, Layer, Slot
from prunescope.taxonomy.shape import ModelShape

_SKIP = 0.5  # cost of a kernel that no slot explains, on top of its share of the time
_SURE = 0.25  # by which the best match must beat a different one
_LEAST = 0.8  # of the GEMM time of a layer that must be explained
_LAUNCH = 3_000.0  # ns that a kernel takes with next to no work
_TAKEN = 1e6  # for each slot that has a kernel, above all costs
_MOST = 48  # GEMMs of a layer: seven linears with two of an adapter each are 21


@dataclass(frozen=True)
class LayerMatch:
    """The slot of each kernel of a layer.

    A slot is None for a kernel that is left out (an adapter, an auxiliary kernel). `explained` is
    the share of the kernels' time that has a slot.
    """

    layer: Layer
    slots: tuple[Slot | None, ...]
    explained: float


def match_layer(
    sample: Sequence[Item], times: Sequence[float], ways: Sequence[Layer]
) -> LayerMatch | Notice:
    """Find the way to run a layer that leaves out the fewest of its kernels.

    Its slots are matched in order, each at a kernel of its form. Kernels are left out where their
    times fit N·K less well.

    Args:
        sample: The kernels of the layer, in launch order.
        times: Their usual times, ns.
        ways: The ways to run the layer.

    Returns:
        The match, or a warning where no way matches, or more than one does.
    """
    if len(sample) > _MOST:
        return warning("too-many-gemms", gemms=len(sample))
    exact = _match_same_kinds(sample, times, ways)
    if isinstance(exact, Notice):
        return exact
    if exact is not None:
        return LayerMatch(exact, exact.cycle, 1.0)
    matches = []
    for way in ways:
        match = _cheapest_choice(sample, times, way.cycle)
        if match is not None:
            matches.append((sum(j is None for j in match[1]), match[0], way, match[1]))
    if not matches:
        counts = sorted({len(way.cycle) for way in ways})
        return warning("another-number-of-gemms", gemms=len(sample), config=counts)
    skipped, best, way, chosen = min(matches, key=lambda ranked: (ranked[0], ranked[1]))
    slots = tuple(None if j is None else way.cycle[j] for j in chosen)
    total = sum(times)
    explained = sum(t for t, slot in zip(times, slots, strict=True) if slot) / total if total else 0
    if explained < _LEAST:
        return warning("gemm-time-unexplained", share=explained, least=_LEAST)
    rivals = [rival for rival in matches if rival[0] == skipped and rival[2] is not way]
    tied = any(cost < best + _SURE for _, cost, *_ in rivals)
    if skipped and (tied or not _is_sure(sample, times, way.cycle, chosen)):
        config = len(way.cycle)
        return warning("several-choices-of-gemms", gemms=len(sample), config=config)
    return LayerMatch(way, slots, explained)


def _match_same_kinds(
    sample: Sequence[Item], times: Sequence[float], ways: Sequence[Layer]
) -> Layer | Notice | None:
    """Return the way with as many GEMMs as there are kernels, of the same forms; None without any.

    If there are several, the times decide.
    """
    fit = [w for w in ways if len(w.cycle) == len(sample) and all(map(can_run, sample, w.cycle))]
    if len(fit) < 2:
        return fit[0] if fit else None
    costs = sorted((misfit(times, way.cycle), n) for n, way in enumerate(fit))
    if costs[1][0] < costs[0][0] + _SURE:
        return warning("several-orders-of-gemms", orders=len(fit))
    return fit[costs[0][1]]


def misfit(times: Sequence[float], slots: Sequence[Slot]) -> float:
    """Return by how much times differ from N·K at one rate and a launch each.

    Experts are left out, because they have rows of their own.
    """
    known = [(t, s.size) for t, s in zip(times, slots, strict=True) if s.form == GEMM and t > 0]
    rates = [size / max(t - _LAUNCH, t / 2) for t, size in known]
    return min(
        (sum(abs(math.log(t / (size / rate + _LAUNCH))) for t, size in known) for rate in rates),
        default=0.0,
    )


Choice = tuple[float, list[int | None]]  # its cost, and the slot of each kernel


def _cheapest_choice(
    sample: Sequence[Item],
    times: Sequence[float],
    slots: Sequence[Slot],
    banned: tuple[int, int] | None = None,
) -> Choice | None:
    """Return the cheapest choice of kernels for all slots; None where there are too few kernels.

    The rate that N·K and times should share is not known: that of every possible pair is tried.
    """
    if len(sample) < len(slots):
        return None
    rates = {
        slot.size / ns
        for item, ns in zip(sample, times, strict=True)
        for slot in slots
        if can_run(item, slot) and ns > 0
    }
    tried = (_cheapest_at_rate(rate, sample, times, slots, banned) for rate in sorted(rates))
    return min(
        (choice for choice in tried if choice is not None),
        key=lambda choice: choice[0],
        default=None,
    )


def _cheapest_at_rate(
    rate: float,
    sample: Sequence[Item],
    times: Sequence[float],
    slots: Sequence[Slot],
    banned: tuple[int, int] | None,
) -> Choice | None:
    """Return the cheapest choice at one rate; None where a slot has no kernel.

    A `banned` pair of a kernel and a slot is not chosen.
    """
    total = sum(times) or 1.0
    skip = [_SKIP + 4 * ns / total for ns in times]
    # What a pair saves: the kernel's skip, less what its time is off, and any slot above all that.
    saved = np.zeros((len(sample), len(slots)))
    for i, (item, ns) in enumerate(zip(sample, times, strict=True)):
        for j, slot in enumerate(slots):
            if (i, j) != banned and can_run(item, slot):
                saved[i, j] = _TAKEN + skip[i] - abs(math.log(slot.size / max(ns, 1.0) / rate))
    pairs = pair_in_order(saved)
    if len(pairs) < len(slots):
        return None
    chosen: list[int | None] = [None] * len(sample)
    for i, j in pairs:
        chosen[i] = j
    cost = sum(skip) - sum(float(saved[pair]) - _TAKEN for pair in pairs)
    return cost, chosen


def _is_sure(
    sample: Sequence[Item],
    times: Sequence[float],
    slots: Sequence[Slot],
    chosen: Sequence[int | None],
) -> bool:
    """Return whether every choice without one of the chosen pairs costs clearly more."""
    best = _cheapest_choice(sample, times, slots)
    assert best is not None
    for i, j in enumerate(chosen):
        if j is None:
            continue
        rival = _cheapest_choice(sample, times, slots, banned=(i, j))
        if rival is not None and rival[0] < best[0] + _SURE:
            return False
    return True


def slots_of_expert(shape: ModelShape, counts: Sequence[int]) -> tuple[Slot, ...] | None:
    """Return the GEMMs of one expert, by how many the layers run.

    None means that more than one way divides all counts, or that none does.
    """
    width, hidden = shape.experts.intermediate, shape.hidden
    up, down = Slot("experts", width, hidden, EXPERT), Slot("experts", hidden, width, EXPERT)
    ways = [(up, up, down), (Slot("experts", 2 * width, hidden, EXPERT), down)]
    fit = [
        way
        for way in (ways if shape.mlp.gated else [(up, down)])
        if all(count and count % len(way) == 0 for count in counts)
    ]
    return fit[0] if len(fit) == 1 else None


def slots_in_turns(items: Sequence[Item], turn: Sequence[Slot]) -> list[Slot]:
    """Return the slot of each item where they run the same GEMMs turn after turn.

    The list is empty where they do not. Two GEMMs of one size have to run on one kernel and grid.
    """
    size = len(turn)
    if len(items) % size:
        return []
    for n in range(0, len(items), size):
        if size > 2 and turn[0] == turn[1] and items[n].token != items[n + 1].token:
            return []
    return [turn[n % size] for n in range(len(items))]
