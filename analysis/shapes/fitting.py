"""Which other widths the trace would fit as well: a config that fits is not the only one.

In: GEMMs with slots, M where it is known. Out: a sentence with the interval of N of each role, by
its grid, else by the time of other GEMMs on the same kernel.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from statistics import median

from prunescope.analysis.shapes.evidence import Placed, time_limit, width_allowed
from prunescope.analysis.shapes.grids import Intervals, meet, written
from prunescope.analysis.shapes.slots import GEMM, Slot


def fitting_widths(gemms: Sequence[Placed], rows: int | None, sm: int | None) -> list[str]:
    """At most one sentence; none where nothing bounds a width."""
    of_slot: dict[Slot, list[Placed]] = defaultdict(list)
    for one in gemms:
        if one.slot.what == GEMM and one.slot.role != "lm_head":
            of_slot[one.slot].append(one)
    told = []
    for slot, members in of_slot.items():
        allowed = _by_grid(members, rows, sm) if rows is not None else None
        how = "grid"
        if allowed is None:
            allowed, how = _by_time(slot, of_slot), "time"
        if allowed:
            told.append(f"{slot.role} {written(allowed)} by its {how}")
    return [f"the trace fits N of {', '.join(told)}: of these the config is one"] if told else []


def _by_grid(members: Sequence[Placed], rows: int, sm: int | None) -> Intervals | None:
    allowed: Intervals | None = None
    for one in {member.item.token: member for member in members}.values():
        allowed = meet(allowed, width_allowed(one, rows, sm))
    return allowed


def _by_time(slot: Slot, of_slot: dict[Slot, list[Placed]]) -> Intervals | None:
    """N with which N·K would take a GEMM's time as others on its kernel take theirs."""
    own = of_slot[slot]
    ns, name = median(one.item.ns for one in own), own[0].item.name
    rates, limits = [], []
    for other, members in of_slot.items():
        if other is not slot and members[0].item.name == name:
            usual = median(one.item.ns for one in members)
            rates.append(other.size / usual)
            limits.append(time_limit(usual, ns, same=True))
    if not rates:
        return None
    low = max(rate / limit for rate, limit in zip(rates, limits, strict=True)) * ns / slot.k
    high = min(rate * limit for rate, limit in zip(rates, limits, strict=True)) * ns / slot.k
    return ((int(low), int(high)),) if low < high else None
