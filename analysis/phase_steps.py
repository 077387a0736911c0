"""The steps of one phase among all steps of a serving engine's trace.

In: linked rows and windows of all steps. Out: those of the steps of one phase; times in ns.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from analysis.engines import PHASES, engine_step
from analysis.link import Linked
from analysis.load import NONE
from analysis.steps import Windows


def phases_of(windows: Windows) -> list[str]:
    """The phases among the steps of an engine's trace, in the order of PHASES; else empty."""
    if windows.source != "engine":
        return []
    seen = {engine_step(name) for name in windows.names}
    return [phase for phase in PHASES if phase in seen]


def only_phase(linked: Linked, windows: Windows, phase: str) -> tuple[Linked, Windows]:
    """The steps of one phase. All steps are linked first: a wall begins where the step before
    ends, of whatever phase that is. What is left out of all steps stays as it is."""
    steps = np.flatnonzero([engine_step(name) == phase for name in windows.names])
    number = np.full(len(windows), NONE)
    number[steps] = np.arange(len(steps))
    keep = number[linked.step] >= 0
    moved = np.cumsum(keep) - 1
    columns = {
        name: getattr(linked, name)[keep]
        for name in ("start", "duration", "busy", "gap", "dry", "op", "event", "launched",
                     "thread", "replayed")
    }  # fmt: skip
    above = linked.above[keep]
    chosen = dataclasses.replace(
        linked, **columns, step=number[linked.step[keep]], wall=linked.wall[steps],
        above=np.where(above >= 0, moved[np.maximum(above, 0)], NONE), tail=linked.tail[steps],
        lead_ns=linked.lead_ns if len(steps) and steps[0] == 0 else None,
    )  # fmt: skip
    names = [windows.names[i] for i in steps]
    return chosen, Windows(windows.start[steps], windows.end[steps], windows.source, names)
