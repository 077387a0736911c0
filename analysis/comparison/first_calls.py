"""Whether one side is cold: it holds first calls or compilation, which the other does not.

In: a phase of both sides. Out: the Difference that says so, or None; its values are ns a step.
"""

from __future__ import annotations

from prunescope.analysis.inputs.side import SidePhase
from prunescope.analysis.schema.pair_comparison import Difference
from prunescope.taxonomy.words import ms

FIRST_CALLS = "first calls or compilation"
# Of the shorter step: two captures of one model differ by 1.4 % on a quiet machine.
_MOVES = 0.014


def unequal_first_calls(dense: SidePhase, pruned: SidePhase) -> Difference | None:
    """A Difference if one side spends more of a step in first calls than two captures differ by.
    Those that both hold, as an edited trace and its original do, say nothing against their
    difference. Our own runs are warmed up."""
    if dense.run is not None and pruned.run is not None:
        return None
    held = [one.kernels.first_call_ns / one.kernels.num_steps for one in (dense, pruned)]
    walls = [one.kernels.wall / one.kernels.num_steps for one in (dense, pruned)]
    apart = abs(held[0] - held[1]) > _MOVES * min(walls)
    return Difference(FIRST_CALLS, held[0], held[1]) if apart else None


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
