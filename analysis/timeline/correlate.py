"""Device events to launches, ops and steps.

In: a Trace, rows of its device events, the windows of its steps. Out: rows of launches (by
correlation id) and of ops (by External id where there is no launch), -1 where there is none; and
the step of every event. A stream runs in the order of launch, and correlation ids grow with it:
both show when an event without a launch in the trace was launched, or that it is of no step:
carried over from before the trace, or late.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from prunescope.analysis.schema.notice import Notice, note
from prunescope.analysis.timeline.intervals import Windows, innermost
from prunescope.analysis.trace.collect import NONE, Ints, Mask, unique_ids
from prunescope.analysis.trace.events import Trace

_AS_A_RULE = 0.5  # share of correlation ids that name a launch
_TRUSTED = 0.9  # share of kernels whose External id names an op that can have launched them


def launch_of(trace: Trace, events: Ints) -> Ints:
    """Row of the launch with the correlation id of each device event, -1 where there is none."""
    return lookup(*trace.launches_by_id, taken(trace.device["correlation"], events))


def op_by_external_id(trace: Trace, events: Ints, launch: Ints) -> Ints:
    """Row of the op that the External id of a device event without a launch names, else -1.

    No event begins before its op. Where correlation ids find their launches as a rule, one that
    finds none was launched outside of the trace, whatever its External id says. No id is used if
    the launches show that the ids name other ops (older profilers number ops and kernels
    separately), or if ops did not begin in the order of their kernels.
    """
    ops, device = trace.ops, trace.device
    none = np.full(len(launch), NONE)
    if not len(ops["ts"]) or (launch >= 0).all():
        return none
    order = np.argsort(ops["external"], kind="stable")
    found = lookup(ops["external"][order], order, device["external"][events])
    begin = taken(ops["ts"], found)
    end = begin + taken(ops["dur"], found, absent=0)
    can = (found >= 0) & (begin <= device["ts"][events])
    both = (launch >= 0) & (found >= 0)
    at = taken(trace.launches["ts"], launch)
    right = [(begin <= at)[both] & (at <= end)[both]]
    counted = taken(device["correlation"], events) >= 0
    alone = can & (launch < 0)
    if counted.any() and (launch >= 0)[counted].mean() >= _AS_A_RULE:
        alone &= ~counted
    stream = device["stream"][events]
    for one in unique_ids(stream[alone]):  # a stream runs in the order of launch
        rows = np.flatnonzero(alone & (stream == one))
        right.append(np.maximum.accumulate(begin[rows]) <= end[rows])
    checks = np.concatenate(right)
    trusted = len(checks) and checks.mean() > _TRUSTED
    return np.where(alone, found, NONE) if trusted else none


def op_of_launch(trace: Trace, launch: Ints, kernel_external: Ints) -> Ints:
    """Row of the host op behind each launch: by External id, else the innermost op around it."""
    ops = trace.ops
    if not len(ops["ts"]):
        return np.full(len(launch), NONE)
    external = taken(trace.launches["external"], launch)
    external = np.where(external >= 0, external, kernel_external)
    order = np.argsort(ops["external"], kind="stable")
    found = lookup(ops["external"][order], order, external)
    ts = taken(trace.launches["ts"], launch, absent=0)
    thread = taken(trace.launches["thread"], launch)
    # An id that clashes (older profilers number ops and launches apart) names a distant op.
    good = (found >= 0) & (ops["ts"][found] <= ts) & (ts <= ops["ts"][found] + ops["dur"][found])
    missing = ~good & (launch >= 0)
    inner = innermost({**ops, "order": ops["external"]}, thread[missing], ts[missing])
    found = np.where(good, found, NONE)
    found[missing] = inner
    return found


@dataclass(frozen=True)
class LaunchNeighbours:
    """By device event, the host ns of the launches with the next smaller and larger correlation
    id, where there are both (`both`); `first`: its id is smaller than that of every launch."""

    before: Ints
    after: Ints
    both: Mask
    first: Mask


def neighbouring_launches(trace: Trace, events: Ints) -> LaunchNeighbours:
    """Between which launches each device event was launched, where ids grow with launch order. An
    id above all launches' is ignored: it may come from another counter."""
    order = np.argsort(trace.launches["ts"], kind="stable")
    ids, ts = trace.launches["correlation"][order], trace.launches["ts"][order]
    own = taken(trace.device["correlation"], events)
    if len(ids) < 2 or (np.diff(ids) >= 0).mean() < _TRUSTED:
        none = np.zeros(len(own), bool)
        return LaunchNeighbours(own, own, none, none)
    order = np.argsort(ids, kind="stable")
    ids, ts = ids[order], ts[order]
    low, high = np.searchsorted(ids, own, "left") - 1, np.searchsorted(ids, own, "right")
    both = (low >= 0) & (high < len(ids))
    before, after = ts[np.maximum(low, 0)], ts[np.minimum(high, len(ids) - 1)]
    return LaunchNeighbours(before, after, both, (own >= 0) & (low < 0))


def unlinked(trace: Trace, events: Ints, op: Ints) -> list[Notice]:
    """Return notes on device events of the steps without a launch; `op`: rows of their ops."""
    if not trace.on_device:
        return []
    alone = launch_of(trace, events) < 0
    cause = "other-ids"
    if (taken(trace.device["correlation"], events[alone]) < 0).all():
        cause = "no-ids"
    elif not len(trace.launches["ts"]):
        cause = "no-launches"
    numbers = {"events": len(events), "cause": cause}
    by_op, lost = int((alone & (op >= 0)).sum()), int((alone & (op < 0)).sum())
    notes = [note("linked-by-external-id", count=by_op, **numbers)] if by_op else []
    return notes + ([note("events-without-op", count=lost, **numbers)] if lost else [])


def taken(column: Ints, rows: Ints, absent: int = NONE) -> Ints:
    """column[rows], `absent` where a row is -1."""
    if not len(column):
        return np.full(len(rows), absent)
    return np.where(rows >= 0, column[rows], absent)


def lookup(ordered: Ints, rows: Ints, wanted: Ints) -> Ints:
    """rows[i] for the first ordered[i] == wanted, -1 where absent or wanted is -1."""
    if not len(ordered):
        return np.full(len(wanted), NONE)
    at = np.minimum(np.searchsorted(ordered, wanted), len(ordered) - 1)
    return np.where((ordered[at] == wanted) & (wanted >= 0), rows[at], NONE)


_NEVER = np.iinfo(np.int64).max


@dataclass(frozen=True)
class StepsOfEvents:
    """`step`: of every event, -1 in none; `carry_over`: launched before the trace began; `late`:
    after its last launch; `until`: host ns by which an event without a launch had been launched."""

    step: Ints
    carry_over: Mask
    late: Mask
    until: Ints


def steps_of_events(
    trace: Trace, events: Ints, launched: Ints, linked: Mask, windows: Windows
) -> StepsOfEvents:
    """The step of every event. If its id lies between those of two launches of one step, it belongs
    to that step. Else what runs before the first linked event of its stream is carried over, what
    runs after the last one late, and what runs between two of one step is of it; an event of a
    stream without any linked one is placed among those of all streams."""
    step = np.where(linked, windows.step_of(launched), NONE)
    nowhere = np.zeros(len(events), bool)
    if not linked.any():
        step[:] = 0 if len(windows) == 1 else NONE
        return StepsOfEvents(step, nowhere, nowhere, np.full(len(events), _NEVER))
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
    return StepsOfEvents(step, carry_over, late, np.where(linked, launched, until))


def _neighbours(trace: Trace, events: Ints, linked: Mask) -> tuple[Ints, Ints, Mask]:
    """The linked events right before and after each event without a launch on its stream, -1
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
