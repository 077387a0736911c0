"""Which kernel of one layer runs which GEMM of the config.

In: the kernels of a layer in launch order with their usual times (ns), and the ways to run a layer
(orders of its slots). Out: a `LayerMatch`, the slot of each kernel, or a notice that says why.
Kernels and slots are aligned in order by dynamic programming; of the experts of a layer that run
one after the other, `one_expert` and `in_turns` say which GEMM each kernel is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from prunescope.analysis.schema.notice import Notice, warning
from prunescope.analysis.shapes.items import Item, can_run
from prunescope.analysis.shapes.slots import EXPERT, GEMM, Layer, Slot
from prunescope.taxonomy.shape import ModelShape

_SKIP = 0.5  # cost of a kernel that no slot explains, on top of its share of the time
_SURE = 0.25  # by which the best match must beat a different one
_LEAST = 0.8  # of the GEMM time of a layer that must be explained
_LAUNCH = 3_000.0  # ns, of a kernel that has next to nothing to do
_MOST = 48  # GEMMs of a layer that are looked at: seven linears with two of an adapter are 21


@dataclass(frozen=True)
class LayerMatch:
    """`slots`: of each kernel of a layer, None for one that is left out (an adapter, a helper).
    `explained`: the share of their time that has a slot."""

    layer: Layer
    slots: tuple[Slot | None, ...]
    explained: float


def match_layer(
    sample: Sequence[Item], times: Sequence[float], ways: Sequence[Layer]
) -> LayerMatch | Notice:
    """The way to run a layer that leaves out the fewest of its kernels (`sample`, with their usual
    times): slots in order, each at a kernel of its kind. Kernels are left out where their times fit
    N·K less well. A warning where no way matches, or more than one does."""
    if len(sample) > _MOST:
        return warning("too-many-gemms", gemms=len(sample))
    exact = _same_kinds(sample, times, ways)
    if isinstance(exact, Notice):
        return exact
    if exact is not None:
        return LayerMatch(exact, exact.cycle, 1.0)
    found = []
    for way in ways:
        match = _cheapest(sample, times, way.cycle)
        if match is not None:
            found.append((sum(j is None for j in match[1]), match[0], way, match[1]))
    if not found:
        counts = sorted({len(way.cycle) for way in ways})
        return warning("another-number-of-gemms", gemms=len(sample), config=counts)
    skipped, best, way, chosen = min(found, key=lambda one: (one[0], one[1]))
    slots = tuple(None if j is None else way.cycle[j] for j in chosen)
    total = sum(times)
    explained = sum(t for t, slot in zip(times, slots, strict=True) if slot) / total if total else 0
    if explained < _LEAST:
        return warning("gemm-time-unexplained", share=explained, least=_LEAST)
    rivals = [other for other in found if other[0] == skipped and other[2] is not way]
    tied = any(cost < best + _SURE for _, cost, *_ in rivals)
    if skipped and (tied or not _is_sure(sample, times, way.cycle, chosen)):
        config = len(way.cycle)
        return warning("several-choices-of-gemms", gemms=len(sample), config=config)
    return LayerMatch(way, slots, explained)


def _same_kinds(
    sample: Sequence[Item], times: Sequence[float], ways: Sequence[Layer]
) -> Layer | Notice | None:
    """The way with as many GEMMs as there are kernels, of the same kinds; of several, the one that
    the times fit. None where there is none."""
    fit = [w for w in ways if len(w.cycle) == len(sample) and all(map(can_run, sample, w.cycle))]
    if len(fit) < 2:
        return fit[0] if fit else None
    costs = sorted((misfit(times, way.cycle), n) for n, way in enumerate(fit))
    if costs[1][0] < costs[0][0] + _SURE:
        return warning("several-orders-of-gemms", orders=len(fit))
    return fit[costs[0][1]]


def misfit(times: Sequence[float], slots: Sequence[Slot]) -> float:
    """By how much times differ from N·K at one rate and a launch each; experts have rows of their
    own."""
    known = [(t, s.size) for t, s in zip(times, slots, strict=True) if s.what == GEMM and t > 0]
    rates = [size / max(t - _LAUNCH, t / 2) for t, size in known]
    return min(
        (sum(abs(math.log(t / (size / rate + _LAUNCH))) for t, size in known) for rate in rates),
        default=0.0,
    )


Choice = tuple[float, list[int | None]]  # its cost, and the slot of each kernel


def _cheapest(
    sample: Sequence[Item],
    times: Sequence[float],
    slots: Sequence[Slot],
    banned: tuple[int, int] | None = None,
) -> Choice | None:
    """The cheapest choice of kernels for all slots; None where there are too few kernels.

    The rate that N·K and times should share is not known: that of every possible pair is tried."""
    if len(sample) < len(slots):
        return None
    rates = {
        slot.size / ns
        for item, ns in zip(sample, times, strict=True)
        for slot in slots
        if can_run(item, slot) and ns > 0
    }
    tried = (_cheapest_at(rate, sample, times, slots, banned) for rate in sorted(rates))
    return min((one for one in tried if one is not None), key=lambda one: one[0], default=None)


def _cheapest_at(
    rate: float,
    sample: Sequence[Item],
    times: Sequence[float],
    slots: Sequence[Slot],
    banned: tuple[int, int] | None,
) -> Choice | None:
    """By dynamic programming: cost[i][j] of the first i kernels on the first j slots."""
    rows, columns, total = len(sample), len(slots), sum(times) or 1.0
    skip = [_SKIP + 4 * ns / total for ns in times]
    cost = [[math.inf] * (columns + 1) for _ in range(rows + 1)]
    cost[0][0] = 0.0
    for i in range(rows):
        for j in range(columns + 1):
            cost[i + 1][j] = cost[i][j] + skip[i]
            if j and (i, j - 1) != banned and can_run(sample[i], slots[j - 1]):
                off = abs(math.log(slots[j - 1].size / max(times[i], 1.0) / rate))
                cost[i + 1][j] = min(cost[i + 1][j], cost[i][j - 1] + off)
    if cost[rows][columns] == math.inf:
        return None
    j = columns
    chosen: list[int | None] = []
    for i in range(rows - 1, -1, -1):
        if cost[i + 1][j] == cost[i][j] + skip[i]:
            chosen.append(None)
        else:
            j -= 1
            chosen.append(j)
    return cost[rows][columns], chosen[::-1]


def _is_sure(
    sample: Sequence[Item],
    times: Sequence[float],
    slots: Sequence[Slot],
    chosen: Sequence[int | None],
) -> bool:
    """Whether every choice without one of the chosen pairs costs clearly more."""
    best = _cheapest(sample, times, slots)
    assert best is not None
    for i, j in enumerate(chosen):
        if j is None:
            continue
        other = _cheapest(sample, times, slots, banned=(i, j))
        if other is not None and other[0] < best[0] + _SURE:
            return False
    return True


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


def in_turns(items: Sequence[Item], turn: Sequence[Slot]) -> list[Slot]:
    """The slot of each item where they run the same GEMMs turn after turn; empty where they do not:
    two GEMMs of one size run on one kernel and grid."""
    size = len(turn)
    if len(items) % size:
        return []
    for n in range(0, len(items), size):
        if size > 2 and turn[0] == turn[1] and items[n].token != items[n + 1].token:
            return []
    return [turn[n % size] for n in range(len(items))]
