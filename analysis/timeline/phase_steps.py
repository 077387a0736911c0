"""Some of the steps of a trace: those of one phase of a serving engine, or that a pattern picks.

In: linked rows and windows of all steps. Out: those of the steps that are kept; times in ns.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from prunescope.analysis.timeline.engines import PHASES, engine_step
from prunescope.analysis.timeline.intervals import GENERATION, Windows
from prunescope.analysis.timeline.launches import lost_launches
from prunescope.analysis.timeline.link import PER_ROW, Linked
from prunescope.analysis.trace.collect import NONE, Ints
from prunescope.analysis.trace.events import Trace


def phases_of(windows: Windows) -> list[str]:
    """The phases among the steps of an engine or of generated text, in the order of PHASES; else
    empty."""
    if windows.source not in ("engine", GENERATION):
        return []
    seen = {engine_step(name) for name in windows.names}
    return [phase for phase in PHASES if phase in seen]


def only_phase(
    trace: Trace, linked: Linked, windows: Windows, phase: str
) -> tuple[Linked, Windows]:
    """The steps of one phase. What is in no step stays the same: the other phases are reported
    too."""
    steps = np.flatnonzero([engine_step(name) == phase for name in windows.names])
    return _only(trace, linked, windows, steps)


def only_picked(trace: Trace, linked: Linked, windows: Windows) -> tuple[Linked, Windows]:
    """The steps that `--phase-pattern` picks, all of them where it picks none of others; those are
    left out, and named."""
    if windows.picked is None:
        return linked, windows
    chosen, kept = _only(trace, linked, windows, windows.picked)
    others = ~np.isin(linked.step, windows.picked)
    chosen.left_out = {
        "events": linked.left_out["events"] + int(others.sum()),
        "ns": linked.left_out["ns"] + int(linked.duration[others].sum()),
    }
    return chosen, kept


def _only(trace: Trace, linked: Linked, windows: Windows, steps: Ints) -> tuple[Linked, Windows]:
    """Some of the steps. All are linked first: a wall begins where the step before ends, whether
    that is kept or not."""
    number = np.full(len(windows), NONE)
    number[steps] = np.arange(len(steps))
    keep = number[linked.step] >= 0
    moved = np.cumsum(keep) - 1
    columns = {name: getattr(linked, name)[keep] for name in PER_ROW}
    above = linked.above[keep]
    names = [windows.names[i] for i in steps]
    first = len(steps) > 0 and steps[0] == 0
    kept = Windows(windows.start[steps], windows.end[steps], windows.source, names)
    chosen = dataclasses.replace(
        linked,
        **columns,
        step=number[linked.step[keep]],
        wall=linked.wall[steps],
        above=np.where(above >= 0, moved[np.maximum(above, 0)], NONE),
        trailing_idle=linked.trailing_idle[steps],
        launch_latency_ns=linked.launch_latency_ns if first else None,
        launch_latency_busy_ns=linked.launch_latency_busy_ns if first else None,
        launch_latency_work=linked.launch_latency_work if first else {},
        launches=lost_launches(trace, kept) if trace.on_device else linked.launches,
    )
    return chosen, kept
