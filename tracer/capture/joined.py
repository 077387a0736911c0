"""One Chrome trace of several profiler sessions, one after the other: a seating has one of its own.

In: traces of one variant as `chrome.split` gives them, steps numbered on. Out: one such trace, with
the first session's step −1; ns inside, microseconds with three decimals in the traces.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from prunescope.tracer.capture.chrome import DEVICE, PHASE, WARMUP, ChromeTrace, Event

_APART_NS = 1000  # between the last step of a session and the first of the next
_NUMBERED = ("External id", "correlation")  # a session's own numbers, that the next gives again


def joined(parts: Sequence[ChromeTrace]) -> ChromeTrace:
    """All steps of `parts` under one phase annotation; a single part as it is.

    The wall of a device step begins where the device work before it ended: the first step of a
    later session moves to where its own step −1 would have ended with the session before it.
    """
    first, *others = parts
    if not others:
        return first
    metadata = {json.dumps(e, sort_keys=True): e for p in parts for e in _events(p, "M")}
    body = [_timed(event) for event in _events(first, "X")]
    phase = next(event for event in body if event["name"] == PHASE)
    steps = [event for event in body if event is not phase]
    for part in others:
        steps += _next(steps, [_timed(event) for event in _events(part, "X")])
    phase["end_ns"] = max(event["end_ns"] for event in steps)
    cuts = [cut for part in parts for cut in part["prunescope"]["cut_ns"]]
    return {
        **first,
        "prunescope": {**first["prunescope"], "cut_ns": cuts},
        "traceEvents": [*metadata.values(), *(_plain(event) for event in (phase, *steps))],
    }


def _next(before: list[Event], part: list[Event]) -> list[Event]:
    """The kept steps of a later session, moved to follow those before."""
    thrown = next(event for event in part if event["name"] == WARMUP)
    is_kept = [e["name"] != PHASE and e["start_ns"] > thrown["end_ns"] for e in part]
    kept = [event for event, keep in zip(part, is_kept, strict=True) if keep]
    host = min(event["start_ns"] for event in kept)
    after = max(event["end_ns"] for event in before if event["cat"] not in DEVICE) + _APART_NS
    shift = after - host
    own = [e["end_ns"] for e, keep in zip(part, is_kept, strict=True) if not keep and _is_device(e)]
    theirs = [event["end_ns"] for event in before if _is_device(event)]
    if own and theirs:
        shift = max(shift, max(theirs) - max(own))
    for event in kept:
        event["start_ns"] += shift
        event["end_ns"] += shift
    for key in _NUMBERED:
        _number_on(before, kept, key)
    return kept


def _number_on(before: list[Event], after: list[Event], key: str) -> None:
    """Numbers of a later session above all before; 0 is no number."""
    used = [event["args"][key] for event in before if event.get("args", {}).get(key)]
    own = [event for event in after if event.get("args", {}).get(key)]
    first = max(used, default=0) + 1
    new = {old: first + i for i, old in enumerate(sorted({e["args"][key] for e in own}))}
    for event in own:
        event["args"] = {**event["args"], key: new[event["args"][key]]}


def _is_device(event: Event) -> bool:
    return event["cat"] in DEVICE


def _events(trace: ChromeTrace, kind: str) -> list[Event]:
    return [event for event in trace["traceEvents"] if event["ph"] == kind]


def _timed(event: Event) -> Event:
    start = round(event["ts"] * 1000)
    return {**event, "start_ns": start, "end_ns": start + round(event["dur"] * 1000)}


def _plain(event: Event) -> Event:
    start, end = event["start_ns"], event["end_ns"]
    plain = {k: v for k, v in event.items() if k not in ("start_ns", "end_ns")}
    return {**plain, "ts": start / 1000, "dur": (end - start) / 1000}
