"""The join of several profiler sessions' Chrome traces, one for each placement, into one trace.

Traces of one variant from `chrome.split`, with consecutive step numbers, come in one at a time: the
events of a session take thirty times the memory of their text, which compresses to a tenth. A file
with one trace goes out, including the first session's step −1. Times are ns inside, and
microseconds with three decimals in the traces.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from prunescope.taxonomy.collection import no_collection
from prunescope.tracer.capture.chrome import DEVICE, PHASE, WARMUP, ChromeTrace, Event

_LEVEL = 6  # level 8 of gzip takes twice the time for 8 % less
_GZIP = 31  # zlib's largest window, with a header of gzip that has no name and no time
_encoded = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode
_GAP_NS = 1000  # between the last step of a session and the first of the next
_NUMBERED = ("External id", "correlation")  # ids that start again in each session


class Joined:
    """All steps of one or several sessions under one phase annotation.

    It is a gzipped Chrome trace in memory, whose bytes depend on the content alone. A device step
    begins when the device work before it ends: the first step of a later session moves so that its
    own step −1 would end with the session before it.
    """

    def __init__(self) -> None:
        self._join = _Join()
        self._packed = bytearray()
        self._packer = zlib.compressobj(_LEVEL, wbits=_GZIP)

    @no_collection()  # a million small dicts
    def add(self, part: ChromeTrace) -> None:
        """Append the next session, whose events are shifted and renumbered in place."""
        is_first = not self._join.head
        events = self._join.add(part)
        if is_first:  # first, for readers of a truncated file
            head = {key: value for key, value in self._join.head.items() if key != "prunescope"}
            self._put(f'{_encoded(head)[:-1]}{"," if head else ""}"traceEvents":[')
        self._put(f"{_encoded(events)[1:-1]}," if events else "")

    def write(self, path: Path) -> str:
        """Write the trace of the sessions so far, and return its sha256."""
        # The phase annotation comes last, as it ends with the last session.
        entry = _encoded(self._join.head["prunescope"])
        end = f'{_encoded(self._join.phase())}],"prunescope":{entry}}}'
        packer = self._packer.copy()
        packed = self._packed + packer.compress(end.encode()) + packer.flush()
        path.write_bytes(packed)
        return hashlib.sha256(packed).hexdigest()

    def _put(self, text: str) -> None:
        self._packed += self._packer.compress(text.encode())


class _Join:
    """The state of the sessions so far. `head` is the trace without its events."""

    def __init__(self) -> None:
        self.head: dict[str, Any] = {}
        self._phase: Event | None = None
        self._metadata: set[str] = set()
        self._used = dict.fromkeys(_NUMBERED, 0)
        # End of the last session on the host and on the device (None: no device events), and of
        # all sessions.
        self._host_end = self._end = 0
        self._device_end: int | None = None

    def add(self, part: ChromeTrace) -> list[Event]:
        """Return the events that a session adds, without the phase annotation."""
        events = _events(part, "X")
        if self._phase is None:
            self._phase, *events = events
            assert self._phase["name"] == PHASE
            self.head = {key: value for key, value in part.items() if key != "traceEvents"}
            self.head["prunescope"] = {**part["prunescope"], "cut_ns": []}
        else:
            events = self._move_after(events)
        self.head["prunescope"]["cut_ns"] += part["prunescope"]["cut_ns"]
        self._host_end = max(_end_ns(event) for event in events if event["cat"] not in DEVICE)
        device_ends = (_end_ns(event) for event in events if event["cat"] in DEVICE)
        self._device_end = max(device_ends, default=None)
        self._end = max(self._end, self._host_end, self._device_end or 0)
        for key in _NUMBERED:
            self._used[key] = max(self._used[key], *_ids(events, key), 0)
        return [e for e in _events(part, "M") if self._is_new(e)] + events

    def phase(self) -> Event:
        """Return the annotation around all sessions."""
        phase = self._phase
        assert phase is not None
        return {**phase, "dur": (self._end - _start_ns(phase)) / 1000}

    def _is_new(self, event: Event) -> bool:
        """Return whether a metadata event was not there before, and remember it."""
        text = json.dumps(event, sort_keys=True)
        is_known = text in self._metadata
        self._metadata.add(text)
        return not is_known

    def _move_after(self, events: list[Event]) -> list[Event]:
        """Return the kept steps of a later session, shifted to follow the session before it."""
        thrown_end = _end_ns(next(event for event in events if event["name"] == WARMUP))
        kept: list[Event] = []
        thrown: list[Event] = []
        for event in events:
            is_kept = event["name"] != PHASE and _start_ns(event) > thrown_end
            (kept if is_kept else thrown).append(event)
        shift = self._host_end + _GAP_NS - min(_start_ns(event) for event in kept)
        device_ends = [_end_ns(event) for event in thrown if event["cat"] in DEVICE]
        if device_ends and self._device_end is not None:
            shift = max(shift, self._device_end - max(device_ends))
        for event in kept:
            event["ts"] = (_start_ns(event) + shift) / 1000
        for key in _NUMBERED:
            _renumber(kept, key, self._used[key])
        return kept


def _ids(events: Iterable[Event], key: str) -> list[int]:
    """Return the ids of a kind in a session; 0 is not an id."""
    return [event["args"][key] for event in events if event.get("args", {}).get(key)]


def _renumber(events: list[Event], key: str, used: int) -> None:
    """Renumber the ids of a kind from above `used`."""
    new = {old: used + 1 + i for i, old in enumerate(sorted(set(_ids(events, key))))}
    for event in events:
        if event.get("args", {}).get(key):
            event["args"] = {**event["args"], key: new[event["args"][key]]}


def _events(trace: ChromeTrace, kind: str) -> list[Event]:
    """Return the events of a kind ("X" or "M")."""
    return [event for event in trace["traceEvents"] if event["ph"] == kind]


def _start_ns(event: Event) -> int:
    return round(event["ts"] * 1000)


def _end_ns(event: Event) -> int:
    return _start_ns(event) + round(event["dur"] * 1000)
