"""Which other widths the trace would fit as well: a config that fits is not the only one.

In: GEMMs with slots, M where it is known. Out: a sentence with the interval of N of each role, by
its grid and by its time beside those of other GEMMs: what `evidence` would not contradict.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

from prunescope.analysis.shapes.evidence import (
    Placed,
    Usual,
    head_rows,
    time_limit,
    usual_times,
    width_allowed,
)
from prunescope.analysis.shapes.grids import Intervals, meet, written
from prunescope.analysis.shapes.slots import GEMM, Slot


def fitting_widths(
    gemms: Sequence[Placed], rows: int | None, sm: int | None, *, heads: Sequence[int] = ()
) -> list[str]:
    """At most one sentence; none where nothing bounds a width. `heads`: what M of the head may
    be."""
    with_head = tuple(heads) == (rows,)
    of_slot: dict[Slot, list[Placed]] = defaultdict(list)
    for one in gemms:
        if one.slot.what == GEMM:
            of_slot[one.slot].append(one)
    usual = usual_times(gemms, with_head=with_head)
    told = []
    for slot, members in of_slot.items():
        m = head_rows(members[0], heads, sm) if slot.role == "lm_head" else rows
        by_grid = _by_grid(members, m, sm) if m is not None else None
        allowed = meet(by_grid, _by_time(slot, usual))
        if allowed:
            how = "grid" if allowed == by_grid else "time" if by_grid is None else "grid and time"
            told.append(f"{slot.role} {written(allowed)} by its {how}")
    return [f"the trace fits N of {', '.join(told)}: of these the config is one"] if told else []


def _by_grid(members: Sequence[Placed], rows: int, sm: int | None) -> Intervals | None:
    allowed: Intervals | None = None
    for one in {member.item.token: member for member in members}.values():
        allowed = meet(allowed, width_allowed(one, rows, sm))
    return allowed


def _by_time(slot: Slot, usual: Usual) -> Intervals | None:
    """N with which N·K/time is as near to that of each other GEMM as two of them may be: nearer on
    one kernel than on two."""
    low, high = 0.0, math.inf
    for (own, name), ns in usual.items():
        if own != slot:
            continue
        for (other, kernel), theirs in usual.items():
            if other != slot:
                limit = time_limit(ns, theirs, same=name == kernel)
                n = other.size / theirs * ns / slot.k
                low, high = max(low, n / limit), min(high, n * limit)
    return ((math.ceil(low), int(high)),) if 0 < low < high < math.inf else None
