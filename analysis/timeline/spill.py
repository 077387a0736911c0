"""Which step a device event without a launch belongs to, or whether to none: carried over or late.

In: a Trace, its device events in order of time, which of them are linked, and the steps of those.
Out: `Placed`, of every event. A stream runs in the order of launch, and correlation ids grow with
it: both tell when an event was launched whose launch the trace lacks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prunescope.analysis.timeline.correlate import neighbouring_launches, taken
from prunescope.analysis.timeline.steps import Windows
from prunescope.analysis.trace.events import Trace
from prunescope.analysis.trace.load import NONE, Ints

Mask = NDArray[np.bool_]
_NEVER = np.iinfo(np.int64).max


@dataclass(frozen=True)
class StepPlaces:
    """`step`: of every event, -1 in none; `carry_over`: launched before the trace began; `late`:
    after its last launch; `until`: host ns by which an event without a launch had been launched."""

    step: Ints
    carry_over: Mask
    late: Mask
    until: Ints


def place(trace: Trace, events: Ints, launched: Ints, linked: Mask, windows: Windows) -> StepPlaces:
    """Where the ids tell between which launches of one step an event was launched, it is of that
    step. Else what runs before the first linked event of its stream is carried over, what runs
    after the last one late, and what runs between two of one step is of it; an event of a stream
    without any linked one is placed among those of all streams."""
    step = np.where(linked, windows.step_of(launched), NONE)
    nowhere = np.zeros(len(events), bool)
    if not linked.any():
        step[:] = 0 if len(windows) == 1 else NONE
        return StepPlaces(step, nowhere, nowhere, np.full(len(events), _NEVER))
    before, after, alone = _neighbours(trace, events, linked)
    known = neighbouring_launches(trace, events)
    free = ~linked
    by_id = free & known.both & (known.before <= trace.device["ts"][events])
    carry_over = free & ~by_id & ((before < 0) | (known.first & alone))
    late = free & ~by_id & ~carry_over & (after < 0)
    one, other = taken(step, before), taken(step, after)
    one = np.where(by_id, windows.step_of(known.before), one)
    other = np.where(by_id, windows.step_of(known.after), other)
    step = np.where(free, np.where((one == other) & ~carry_over & ~late, one, NONE), step)
    until = np.where(by_id, known.after, taken(launched, after, absent=_NEVER))
    return StepPlaces(step, carry_over, late, np.where(linked, launched, until))


def _neighbours(trace: Trace, events: Ints, linked: Mask) -> tuple[Ints, Ints, Mask]:
    """For each event without a launch the linked ones right before and after it on its stream, -1
    where there is none; `alone`: no event of its stream is linked, so they are of any stream."""
    before, after = np.full(len(events), NONE), np.full(len(events), NONE)
    alone = np.zeros(len(events), bool)
    device, stream = trace.device["device"][events], trace.device["stream"][events]
    free = {*zip(device[~linked].tolist(), stream[~linked].tolist(), strict=True)}
    for one in free:
        of_one = (device == one[0]) & (stream == one[1])
        rows, of_stream = np.flatnonzero(of_one & ~linked), np.flatnonzero(of_one & linked)
        alone[rows] = not len(of_stream)
        near = of_stream if len(of_stream) else np.flatnonzero(linked)
        near = np.concatenate(([NONE], near, [NONE]))
        at = np.searchsorted(near[1:-1], rows)
        before[rows], after[rows] = near[at], near[at + 1]
    return before, after, alone
