"""The link from device events to launches, ops and steps.

In: a Trace, rows of its device events, the windows of its steps. Out: rows of launches (by
correlation id) and of ops (by External id where there is no launch), -1 where there is none; and
the step of every event. A stream runs in the order of launch, and correlation ids grow with it.
Both show when an event without a launch in the trace was launched, or that it is in no step because
it was carried over from before the trace, or is late.
"""

from __future__ import annotations

import numpy as np
from msgspec import Struct

from prunescope.analysis.schema.notice import Notice, note
from prunescope.analysis.timeline.intervals import Windows, innermost
from prunescope.analysis.trace.collector import NONE, Ints, Mask, places_in, unique_ids
from prunescope.analysis.trace.trace_columns import Trace

_AS_A_RULE = 0.5  # share of correlation ids that name a launch
_TRUSTED = 0.9  # share of kernels whose External id names an op that can have launched them


def launch_of(trace: Trace, events: Ints) -> Ints:
    """Return the row of the launch that each device event names; -1 where there is none."""
    return lookup(*trace.launches_by_id, taken(trace.device["correlation"], events))


def op_by_external_id(trace: Trace, events: Ints, launch: Ints) -> Ints:
    """Return the row of the op that the External id of an event without a launch names, else -1.

    No event begins before its op. Where correlation ids find their launches as a rule, an event
    whose id finds none was launched outside of the trace, whatever its External id is. No id is
    used if the launches show that the ids name other ops (older profilers number ops and kernels
    separately), or if ops did not begin in the order of their kernels.
    """
    ops, device = trace.ops, trace.device
    none = np.full(len(launch), NONE)
    if not len(ops["ts"]) or (launch >= 0).all():
        return none
    order = np.argsort(ops["external"], kind="stable")
    op = lookup(ops["external"][order], order, device["external"][events])
    begin = taken(ops["ts"], op)
    end = begin + taken(ops["dur"], op, absent=0)
    can = (op >= 0) & (begin <= device["ts"][events])
    both = (launch >= 0) & (op >= 0)
    at = taken(trace.launches["ts"], launch)
    right = [(begin <= at)[both] & (at <= end)[both]]
    counted = taken(device["correlation"], events) >= 0
    alone = can & (launch < 0)
    if counted.any() and (launch >= 0)[counted].mean() >= _AS_A_RULE:
        alone &= ~counted
    stream = device["stream"][events]
    for number in unique_ids(stream[alone]):  # a stream runs in the order of launch
        rows = np.flatnonzero(alone & (stream == number))
        right.append(np.maximum.accumulate(begin[rows]) <= end[rows])
    checks = np.concatenate(right)
    trusted = len(checks) and checks.mean() > _TRUSTED
    return np.where(alone, op, NONE) if trusted else none


def op_of_launch(trace: Trace, launch: Ints, kernel_external: Ints) -> Ints:
    """Return the row of the host op behind each launch, -1 where there is none.

    It is the op that the External id names, else the innermost op around the launch.
    `kernel_external` are the External ids of the kernels, for launches without one.
    """
    ops = trace.ops
    if not len(ops["ts"]):
        return np.full(len(launch), NONE)
    external = taken(trace.launches["external"], launch)
    external = np.where(external >= 0, external, kernel_external)
    order = np.argsort(ops["external"], kind="stable")
    op = lookup(ops["external"][order], order, external)
    ts = taken(trace.launches["ts"], launch, absent=0)
    thread = taken(trace.launches["thread"], launch)
    # An id that clashes (older profilers number ops and launches apart) names a distant op.
    good = (op >= 0) & (ops["ts"][op] <= ts) & (ts <= ops["ts"][op] + ops["dur"][op])
    missing = ~good & (launch >= 0)
    inner = innermost({**ops, "order": ops["external"]}, thread[missing], ts[missing])
    op = np.where(good, op, NONE)
    op[missing] = inner
    return op


class LaunchNeighbours(Struct, frozen=True):
    """The launches with the next smaller and the next larger correlation id, for each device event.

    `before` and `after` are their host times in ns, valid where `both` is set. `first` marks events
    whose id is smaller than that of every launch.
    """

    before: Ints
    after: Ints
    both: Mask
    first: Mask


def neighbouring_launches(trace: Trace, events: Ints) -> LaunchNeighbours:
    """Find between which launches each device event was launched, where ids grow with launch order.

    An id above those of all launches is ignored: it may come from another counter.
    """
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
    """Return notes on device events of the steps have no launch; `op` are the rows of their ops."""
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
    """Return `column[rows]`, and `absent` where a row is -1."""
    if not len(column):
        return np.full(len(rows), absent)
    return np.where(rows >= 0, column[rows], absent)


def lookup(ordered: Ints, rows: Ints, wanted: Ints) -> Ints:
    """Return `rows[i]` of the first `ordered[i] == wanted`, -1 where there is none.

    A `wanted` of -1 is never found.
    """
    return taken(rows, places_in(ordered, wanted))


_NEVER = np.iinfo(np.int64).max


class StepsOfEvents(Struct, frozen=True):
    """The step of every device event, and why an event is in none.

    `step` is -1 outside of all steps. `carry_over` marks events that were launched before the trace
    began, `late` those after its last launch. `until` is the host time (ns) by which an event had
    been launched.
    """

    step: Ints
    carry_over: Mask
    late: Mask
    until: Ints


def steps_of_events(
    trace: Trace, events: Ints, launched: Ints, linked: Mask, windows: Windows
) -> StepsOfEvents:
    """Find the step of every event.

    An event with a launch or op (`linked`) is in the step of the time `launched`. One whose id lies
    between those of two launches of one step belongs to that step. Of the others, what runs before
    the first linked event of its stream is carried over, what runs after the last one is late, and
    what runs between two events of one step belongs to it. An event of a stream without any linked
    one is placed among those of all streams.
    """
    step = np.where(linked, windows.step_of(launched), NONE)
    nowhere = np.zeros(len(events), bool)
    if not linked.any():
        step[:] = 0 if len(windows) == 1 else NONE
        return StepsOfEvents(step, nowhere, nowhere, np.full(len(events), _NEVER))
    before, after, alone = _linked_neighbours(trace, events, linked)
    known = neighbouring_launches(trace, events)
    free = ~linked
    by_id = free & known.both & (known.before <= trace.device["ts"][events])
    carry_over = free & ~by_id & ((before < 0) | (known.first & alone))
    late = free & ~by_id & ~carry_over & (after < 0)
    step_before, step_after = taken(step, before), taken(step, after)
    step_before = np.where(by_id, windows.step_of(known.before), step_before)
    step_after = np.where(by_id, windows.step_of(known.after), step_after)
    step = np.where(
        free, np.where((step_before == step_after) & ~carry_over & ~late, step_before, NONE), step
    )
    until = np.where(by_id, known.after, taken(launched, after, absent=_NEVER))
    return StepsOfEvents(step, carry_over, late, np.where(linked, launched, until))


def _linked_neighbours(trace: Trace, events: Ints, linked: Mask) -> tuple[Ints, Ints, Mask]:
    """Find the linked events right before and after each event without a launch on its stream.

    A row is -1 where there is none. The third result marks events on whose stream no event is
    linked; their neighbours are of any stream.
    """
    before, after = np.full(len(events), NONE), np.full(len(events), NONE)
    alone = np.zeros(len(events), bool)
    device, stream = trace.device["device"][events], trace.device["stream"][events]
    streams = {*zip(device[~linked].tolist(), stream[~linked].tolist(), strict=True)}
    for own_device, own_stream in streams:
        own = (device == own_device) & (stream == own_stream)
        rows, of_stream = np.flatnonzero(own & ~linked), np.flatnonzero(own & linked)
        alone[rows] = not len(of_stream)
        near = of_stream if len(of_stream) else np.flatnonzero(linked)
        near = np.concatenate(([NONE], near, [NONE]))
        at = np.searchsorted(near[1:-1], rows)
        before[rows], after[rows] = near[at], near[at + 1]
    return before, after, alone
