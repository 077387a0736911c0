"""Whether one side is cold: it holds first calls or compilation, which the other does not.

In: a phase of both sides. Out: the Difference that says so, or None; its values are ns a step.
"""

from __future__ import annotations

from prunescope.analysis.inputs.side import SidePhase
from prunescope.analysis.schema.pair_comparison import Difference
from prunescope.taxonomy.words import ms

FIRST_CALLS = "first calls or compilation"
# Two captures of one model differ by 1.4 % on a quiet machine: less does not move their ratio.
_MOVES = 0.014


def unequal_first_calls(dense: SidePhase, pruned: SidePhase) -> Difference | None:
    """That the ratio of the two walls is another one without first calls."""
    held = [one.kernels.first_call_ns / one.kernels.num_steps for one in (dense, pruned)]
    walls = [one.kernels.wall / one.kernels.num_steps for one in (dense, pruned)]
    rest = [wall - ns for wall, ns in zip(walls, held, strict=True)]
    if not any(held) or min(*walls, *rest) <= 0:
        return None
    moved = walls[0] / walls[1] / (rest[0] / rest[1])
    return Difference(FIRST_CALLS, held[0], held[1]) if abs(moved - 1) > _MOVES else None


def first_calls_text(one: Difference) -> str | None:
    """The difference in words; None for another kind of difference."""
    if one.kind != FIRST_CALLS:
        return None
    sides = (("the baseline", one.dense), ("the pruned run", one.pruned))
    held = [(name, ns) for name, ns in sides if isinstance(ns, int | float) and ns > 0]
    most = max(held, key=lambda side: side[1])
    others = [f"{name} {ms(ns)}" for name, ns in held if name != most[0]]
    rest = others[0] if others else f"{next(n for n, _ in sides if n != most[0])} none"
    return f"{most[0]} holds first calls or compilation, {ms(most[1])} a step, and {rest}"
