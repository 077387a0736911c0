"""One Chrome trace of several profiler sessions, one after the other: a seating has one of its own.

In: traces of one variant as `chrome.split` gives them, steps numbered on. Out: one such trace, with
the first session's step −1; ns inside, microseconds with three decimals in the traces.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from prunescope.tracer.capture.chrome import DEVICE, PHASE, WARMUP, ChromeTrace, Event

_APART_NS = 1000  # between the last step of a session and the first of the next
_NUMBERED = ("External id", "correlation")  # a session's own numbers, that the next gives again


def joined(parts: Sequence[ChromeTrace]) -> ChromeTrace:
    """All steps of `parts` under one phase annotation; a single part as it is. The events are those
    of `parts`, moved and numbered on.

    The wall of a device step begins where the device work before it ended: the first step of a
    later session moves to where its own step −1 would have ended with the session before it.
    """
    first, *others = parts
    if not others:
        return first
    metadata = {json.dumps(e, sort_keys=True): e for p in parts for e in _events(p, "M")}
    phase, *steps = _events(first, "X")
    assert phase["name"] == PHASE
    before = steps
    used = dict.fromkeys(_NUMBERED, 0)
    for part in others:
        for key in _NUMBERED:
            used[key] = max(used[key], *_numbers(before, key), 0)
        before = _next(before, _events(part, "X"), used)
        steps += before
    end = max(_end_ns(event) for event in steps)
    phase = {**phase, "dur": (end - _start_ns(phase)) / 1000}
    cuts = [cut for part in parts for cut in part["prunescope"]["cut_ns"]]
    return {
        **first,
        "prunescope": {**first["prunescope"], "cut_ns": cuts},
        "traceEvents": [*metadata.values(), phase, *steps],
    }


def _next(before: list[Event], part: list[Event], used: dict[str, int]) -> list[Event]:
    """The kept steps of a later session, moved to follow those of the session before it."""
    thrown_end = _end_ns(next(event for event in part if event["name"] == WARMUP))
    kept: list[Event] = []
    thrown: list[Event] = []
    for event in part:
        of_kept = event["name"] != PHASE and _start_ns(event) > thrown_end
        (kept if of_kept else thrown).append(event)
    host_end = max(_end_ns(event) for event in before if event["cat"] not in DEVICE)
    shift = host_end + _APART_NS - min(_start_ns(event) for event in kept)
    own = [_end_ns(event) for event in thrown if event["cat"] in DEVICE]
    theirs = [_end_ns(event) for event in before if event["cat"] in DEVICE]
    if own and theirs:
        shift = max(shift, max(theirs) - max(own))
    for event in kept:
        event["ts"] = (_start_ns(event) + shift) / 1000
    for key in _NUMBERED:
        _number_on(kept, key, used[key])
    return kept


def _numbers(events: Iterable[Event], key: str) -> list[int]:
    """The session's own numbers of the kind; 0 is no number."""
    return [event["args"][key] for event in events if event.get("args", {}).get(key)]


def _number_on(events: list[Event], key: str, used: int) -> None:
    """Numbers of the kind begin above `used`."""
    new = {old: used + 1 + i for i, old in enumerate(sorted(set(_numbers(events, key))))}
    for event in events:
        if event.get("args", {}).get(key):
            event["args"] = {**event["args"], key: new[event["args"][key]]}


def _events(trace: ChromeTrace, kind: str) -> list[Event]:
    return [event for event in trace["traceEvents"] if event["ph"] == kind]


def _start_ns(event: Event) -> int:
    return round(event["ts"] * 1000)


def _end_ns(event: Event) -> int:
    return _start_ns(event) + round(event["dur"] * 1000)
