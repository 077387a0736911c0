"""Which kernel of a layer runs which GEMM that the config predicts.

In: the GEMMs of one layer with their usual times, and the ways in which the config's layer may run.
Out: the slot of each, by dynamic programming: slots in order, each at a kernel of its kind, kernels
left out (helpers, adapters) where their times fit N·K less well. Times in ns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from prunescope.analysis.shapes.items import Item
from prunescope.analysis.shapes.slots import GEMM, GROUPED, Layer, Slot
from prunescope.taxonomy.words import percent

_SKIP = 0.5  # of a kernel that no slot explains, beside its share of the time
_SURE = 0.25  # by which the best embedding must beat one that differs
_LEAST = 0.8  # of the GEMM time of a layer that must be explained
_NEVER = math.inf
_LAUNCH = 3_000.0  # ns, of a kernel that has next to nothing to do
_MOST = 48  # GEMMs of a layer that are looked at: seven linears with two of an adapter are 21


@dataclass(frozen=True)
class Embedding:
    """`slots`: of each kernel, None for what is left out. `explained`: share of their time."""

    layer: Layer
    slots: tuple[Slot | None, ...]
    explained: float


@dataclass(frozen=True)
class Refusal:
    """Why no way fits."""

    why: str


def embed(
    sample: Sequence[Item], times: Sequence[float], ways: Sequence[Layer]
) -> Embedding | Refusal:
    """The way that leaves out the fewest kernels; a Refusal where none fits, or it is not sure."""
    if len(sample) > _MOST:
        return Refusal(f"a layer runs {len(sample)} GEMMs, more than any that the config predicts")
    exact = _in_order(sample, times, ways)
    if isinstance(exact, Refusal):
        return exact
    if exact is not None:
        return Embedding(exact, exact.cycle, 1.0)
    found = []
    for way in ways:
        own = _best(sample, times, way.cycle)
        if own is not None:
            found.append((sum(j is None for j in own[1]), own[0], way, own[1]))
    if not found:
        return Refusal(_no_way(sample, ways))
    left, best, way, chosen = min(found, key=lambda one: (one[0], one[1]))
    slots = tuple(None if j is None else way.cycle[j] for j in chosen)
    total = sum(times)
    explained = sum(t for t, slot in zip(times, slots, strict=True) if slot) / total if total else 0
    if explained < _LEAST:
        return Refusal(
            f"{percent(explained)} of the GEMM time of a layer is explained by the config, less "
            f"than {percent(_LEAST)}"
        )
    rivals = [o for o in found if o[0] == left and o[2] is not way]
    tied = any(cost < best + _SURE for _, cost, *_ in rivals)
    if left and (tied or not _is_sure(sample, times, way.cycle, chosen)):
        return Refusal(
            f"a layer runs {len(sample)} GEMMs, the config predicts {len(way.cycle)}, and more "
            "than one choice of them fits"
        )
    return Embedding(way, slots, explained)


def _in_order(
    sample: Sequence[Item], times: Sequence[float], ways: Sequence[Layer]
) -> Layer | Refusal | None:
    """The way with as many GEMMs as there are kernels, of the same kinds; of several, the one that
    the times fit. None where there is none."""
    fit = [w for w in ways if len(w.cycle) == len(sample) and all(map(_fits, sample, w.cycle))]
    if len(fit) < 2:
        return fit[0] if fit else None
    costs = sorted((_misfit(times, way.cycle), n) for n, way in enumerate(fit))
    if costs[1][0] < costs[0][0] + _SURE:
        return Refusal(f"the GEMMs of a layer may run in {len(fit)} orders, by their times")
    return fit[costs[0][1]]


def _misfit(times: Sequence[float], slots: Sequence[Slot]) -> float:
    """By how much times differ from N·K at one rate and a launch each; experts have rows of their
    own."""
    known = [(t, s.size) for t, s in zip(times, slots, strict=True) if s.what == GEMM and t > 0]
    rates = [size / max(t - _LAUNCH, t / 2) for t, size in known]
    return min(
        (sum(abs(math.log(t / (size / rate + _LAUNCH))) for t, size in known) for rate in rates),
        default=0.0,
    )


def _no_way(sample: Sequence[Item], ways: Sequence[Layer]) -> str:
    counts = sorted({len(way.cycle) for way in ways})
    return (
        f"a layer runs {len(sample)} GEMMs beside attention in the trace, "
        f"{' or '.join(map(str, counts))} in the config"
    )


def _fits(item: Item, slot: Slot) -> bool:
    return item.what == slot.what and item.what in (GEMM, GROUPED)


def _best(
    sample: Sequence[Item],
    times: Sequence[float],
    slots: Sequence[Slot],
    banned: tuple[int, int] | None = None,
) -> tuple[float, list[int | None]] | None:
    """The cheapest embedding and its cost: the slot index of each kernel. One kernel too few: none.

    The rate that N·K and times should share is not known: every pair that may match is tried."""
    if len(sample) < len(slots):
        return None
    if len(sample) == len(slots):
        return None
    pairs = [
        (i, j)
        for i, item in enumerate(sample)
        for j, slot in enumerate(slots)
        if _fits(item, slot) and times[i] > 0
    ]
    rates = sorted({slots[j].size / times[i] for i, j in pairs})
    tried = (_embedded(sample, times, slots, rate, banned) for rate in rates)
    return min((one for one in tried if one is not None), key=lambda one: one[0], default=None)


def _embedded(
    sample: Sequence[Item],
    times: Sequence[float],
    slots: Sequence[Slot],
    rate: float,
    banned: tuple[int, int] | None,
) -> tuple[float, list[int | None]] | None:
    rows, columns, total = len(sample), len(slots), sum(times) or 1.0
    cost = [[_NEVER] * (columns + 1) for _ in range(rows + 1)]
    cost[0][0] = 0.0
    for i in range(rows):
        skip = _skip(times[i], total)
        for j in range(columns + 1):
            cost[i + 1][j] = cost[i][j] + skip
            if j and (i, j - 1) != banned and _fits(sample[i], slots[j - 1]):
                off = abs(math.log(slots[j - 1].size / max(times[i], 1.0) / rate))
                cost[i + 1][j] = min(cost[i + 1][j], cost[i][j - 1] + off)
    if cost[rows][columns] == _NEVER:
        return None
    return cost[rows][columns], _back(sample, times, slots, cost, total)


def _skip(time: float, total: float) -> float:
    """The cost of a kernel that no slot explains."""
    return _SKIP + 4 * time / total


def _back(
    sample: Sequence[Item],
    times: Sequence[float],
    slots: Sequence[Slot],
    cost: list[list[float]],
    total: float,
) -> list[int | None]:
    j = len(slots)
    out: list[int | None] = []
    for i in range(len(sample) - 1, -1, -1):
        if cost[i + 1][j] == cost[i][j] + _skip(times[i], total):
            out.append(None)
        else:
            j -= 1
            out.append(j)
    return out[::-1]


def _is_sure(
    sample: Sequence[Item],
    times: Sequence[float],
    slots: Sequence[Slot],
    chosen: Sequence[int | None],
) -> bool:
    best = _best(sample, times, slots)
    assert best is not None
    for i, j in enumerate(chosen):
        if j is None:
            continue
        other = _best(sample, times, slots, banned=(i, j))
        if other is not None and other[0] < best[0] + _SURE:
            return False
    return True
