"""Split the raw Chrome trace of a profiler session into a trace for each variant.

The trace that kineto wrote and the variant of each step come in. Chrome traces (dicts) go out, each
with the steps of one variant, times from 0, and no names of hosts, users, paths or environment
variables. Times are integer ns inside, and microseconds with three decimals in the traces.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from decimal import Decimal
from functools import lru_cache
from typing import Any, Dict

from prunescope.taxonomy.collection import no_collection
from prunescope.taxonomy.scrub import scrub, scrub_values

PHASE = "prunescope.phase"
STEP = "prunescope.step#"
WARMUP = "prunescope.step#warmup"

DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")
_RUNTIME = (
    "cuda_runtime", "cuda_driver", "hip_runtime", "hip_driver", "xpu_runtime", "xpu_driver",
)  # fmt: skip
_HOST_EVENTS = ("cpu_op", "user_annotation", *_RUNTIME)
# Arguments that are dropped: numbers internal to the profiler, paths, and, on a CPU, links to
# launches, which a CPU does not have.
_DROPPED_ARGS = {
    "Ev Idx", "Record function id", "Fwd thread id", "kernel_file", "stack", "kernel_hash",
    "kernel_backend",
}  # fmt: skip
_DROPPED_OF_CPU = _DROPPED_ARGS | {"External id"}
_METADATA = ("process_name", "process_labels", "process_sort_index", "thread_name")
_TOP_LEVEL = ("schemaVersion", "deviceProperties", "record_shapes", "displayTimeUnit")

_BACKWARD = "autograd::engine::evaluate_function"  # ops of a backward pass begin so
_DECIMALS = 3  # kineto writes microseconds with so many

_scrubbed = lru_cache(maxsize=1 << 14)(scrub)  # few names, each many times

Event = Dict[str, Any]  # in Chrome's format
ChromeTrace = Dict[str, Any]  # {"traceEvents": [Event, ...], ...}
_SET_NS = 500_000_000  # a clock that differs by more was set; a busy host takes less from a step


@dataclass(frozen=True)
class Turn:
    """One profiled step of the session: its variant, and the label of its annotation.

    `host_ns` is its begin and its end on a clock that nobody sets; None if they were not taken.
    """

    variant: str
    label: str
    host_ns: tuple[int, int] | None = None


@dataclass
class _Window:
    """The host interval of a step, and the events that belong to the step."""

    turn: Turn
    start_ns: int
    end_ns: int
    host: list[Event] = field(default_factory=list)
    device: list[Event] = field(default_factory=list)

    @property
    def device_end_ns(self) -> int | None:
        """The end of the step's device work; None if it has none."""
        return max((e["end_ns"] for e in self.device), default=None)


def has_backward(trace: ChromeTrace) -> bool:
    """Return whether a trace holds a backward pass."""
    return any(str(e.get("name", "")).startswith(_BACKWARD) for e in trace["traceEvents"])


@no_collection()  # a million small dicts
def split(raw: bytes | str, turns: Iterable[Turn]) -> dict[str, ChromeTrace]:
    """Split a raw trace into a trace for each variant.

    Raises:
        ValueError: The steps of the trace are not those of `turns`, or lie elsewhere: the clock of
            the profiler, which is that of the machine, was set meanwhile.
    """
    trace = json.loads(raw, parse_float=_Decimal)  # no JSON if a time ran backwards
    events = [_add_times(e) for e in trace["traceEvents"] if e.get("ph") == "X"]
    windows = _find_windows(events, list(turns))
    _check_clock(windows)
    stray_ends = _assign_events(events, windows)
    phase = next(e for e in events if e["name"] == PHASE)
    head = {key: _to_floats(trace[key]) for key in _TOP_LEVEL if key in trace}
    metadata = _metadata_events(trace["traceEvents"])
    split_traces = {}
    for variant in dict.fromkeys(w.turn.variant for w in windows):
        cut_ns = _close_ranks(variant, windows, stray_ends)
        body = _variant_events([w for w in windows if w.turn.variant == variant], phase)
        split_traces[variant] = {
            **head,
            "prunescope": {"variant": variant, "cut_ns": cut_ns},
            "traceEvents": metadata + body,
        }
    return split_traces


class _Decimal(str):
    """A decimal number as text, because a float of many microseconds would lose ns."""

    __slots__ = ()


def _to_floats(value: Any) -> Any:
    """Return `value` with its decimals as floats, at any depth."""
    if isinstance(value, _Decimal):
        return float(value)
    if isinstance(value, list):
        return [_to_floats(item) for item in value]
    if isinstance(value, dict):
        return {key: _to_floats(item) for key, item in value.items()}
    return value


def _add_times(event: Event) -> Event:
    """Add the start and the end in ns to an event, in place, and return it."""
    event["start_ns"] = start = _to_ns(event["ts"])
    event["end_ns"] = start + _to_ns(event["dur"])
    return event


def _to_ns(us: _Decimal | int) -> int:
    """Convert microseconds to integer ns without loss."""
    if isinstance(us, int):
        return us * 1000
    whole, _, part = us.partition(".")
    if len(part) == _DECIMALS and part.isdecimal() and whole.isdecimal():
        return int(whole + part)
    return round(Decimal(us) * 1000)


def _find_windows(events: list[Event], turns: list[Turn]) -> list[_Window]:
    """Return the window of each step; the annotations of the steps must be those of `turns`."""
    steps = sorted(
        (e for e in events if e.get("cat") == "user_annotation" and e["name"].startswith(STEP)),
        key=lambda e: e["start_ns"],
    )
    if [e["name"] for e in steps] != [t.label for t in turns]:
        raise ValueError(f"the trace has steps {[e['name'] for e in steps]}, not {turns}")
    return [_Window(turn, e["start_ns"], e["end_ns"]) for turn, e in zip(turns, steps)]


def _check_clock(windows: list[_Window]) -> None:
    """Raise ValueError if a step lies elsewhere on the profiler's clock than on the host's."""
    timed = [(w, w.turn.host_ns) for w in windows if w.turn.host_ns is not None]
    for window, (begun_ns, ended_ns) in timed:
        first, (first_ns, _) = timed[0]
        apart_ns = max(
            abs((window.start_ns - first.start_ns) - (begun_ns - first_ns)),
            abs((window.end_ns - first.start_ns) - (ended_ns - first_ns)),
        )
        if apart_ns > _SET_NS:
            raise ValueError(f"the clock was set by {apart_ns / 1e9:.1f} s while steps ran")


def _assign_events(events: list[Event], windows: list[_Window]) -> list[int]:
    """Assign each event to a window, and return the ends of device events outside of all windows.

    A host event belongs to the window that contains its start. A device event belongs to the window
    of its launch, or of its start if the launch is unknown. Device events outside of all windows
    are work between the steps.
    """
    launches: dict[Any, _Window | None] = {}
    for event in events:
        if event.get("cat") in _HOST_EVENTS:
            window = _window_at(windows, event["start_ns"])
            if window is not None:
                window.host.append(event)
            if event["cat"] in _RUNTIME:
                launches[event.get("args", {}).get("correlation")] = window
    stray = []
    for event in events:
        if event.get("cat") in DEVICE:
            key = event.get("args", {}).get("correlation")
            window = launches[key] if key in launches else _window_at(windows, event["start_ns"])
            if window is None:
                stray.append(event["end_ns"])
            else:
                window.device.append(event)
    return stray


def _window_at(windows: list[_Window], time_ns: int) -> _Window | None:
    """Return the window that contains a time; None if there is none."""
    low, high = 0, len(windows)  # bisect takes no key before Python 3.10
    while low < high:
        middle = (low + high) // 2
        if windows[middle].start_ns <= time_ns:
            low = middle + 1
        else:
            high = middle
    return windows[low - 1] if low and time_ns <= windows[low - 1].end_ns else None


def _close_ranks(variant: str, windows: list[_Window], stray_ends: list[int]) -> list[int]:
    """Move the variant's steps forward over those of the others, as if it had run alone.

    A device step begins when the device work before it ends. That work belongs to another variant,
    which goes to another file. So each step moves until the end of its predecessor takes the place
    of that work, but never so far that host windows overlap. Steps on a CPU are their annotations,
    and do not move.

    Returns the ns that were removed before each step.
    """
    cuts, shift_ns = [], 0
    previous: _Window | None = None
    latest_end: int | None = None
    for window in windows:
        before = [end for end in stray_ends if end <= window.start_ns]
        ends = [*before, *([latest_end] if latest_end is not None else [])]
        if window.turn.variant == variant:
            if previous is not None and previous.device_end_ns is not None and ends:
                device_gap = max(ends) - previous.device_end_ns
                cut = max(0, min(device_gap, window.start_ns - previous.end_ns))
                shift_ns += cut
                cuts.append(cut)
            for event in (*window.host, *window.device):
                event["shift_ns"] = shift_ns
            previous = window
        if window.device_end_ns is not None:
            latest_end = max(latest_end or 0, window.device_end_ns)
    return cuts


def _variant_events(windows: list[_Window], phase: Event) -> list[Event]:
    """Return the events of one variant, times from 0, within one phase annotation."""
    on_device = any(w.device for w in windows)
    events = [e for w in windows for e in (*_kept_host_events(w, on_device=on_device), *w.device)]
    start = min(e["start_ns"] - e["shift_ns"] for e in events)
    end = max(e["end_ns"] - e["shift_ns"] for e in events)
    whole = {**phase, "start_ns": start, "end_ns": end, "shift_ns": 0}
    return [_to_chrome(e, start, on_device=on_device) for e in (whole, *events)]


def _kept_host_events(window: _Window, *, on_device: bool) -> list[Event]:
    """Return the host events of a step that are kept.

    Of the step that is thrown away, a CPU trace keeps the annotation alone. A device trace keeps
    all events, because the first kept step begins when the kernels of that step end.
    """
    if on_device or window.turn.label != WARMUP:
        return window.host
    return [e for e in window.host if e["name"] == WARMUP]


def _to_chrome(event: Event, origin_ns: int, *, on_device: bool) -> Event:
    """Return an event in Chrome's format, with times from the origin.

    Private arguments and paths are dropped.
    """
    dropped = _DROPPED_ARGS if on_device else _DROPPED_OF_CPU
    args = {
        key: value
        for key, value in event.get("args", {}).items()
        if key not in dropped and not (isinstance(value, str) and value.startswith("/"))
    }
    plain = {
        "ph": "X",
        "cat": event["cat"],
        "name": _scrubbed(event["name"]),
        "pid": event["pid"],
        "tid": event["tid"],
        "ts": (event["start_ns"] - event["shift_ns"] - origin_ns) / 1000,
        "dur": (event["end_ns"] - event["start_ns"]) / 1000,
    }
    if not args:
        return plain
    # Most values are shapes, which are integers.
    return {**plain, "args": args if event["cat"] == "cpu_op" else _to_floats(args)}


def _metadata_events(events: list[Event]) -> list[Event]:
    """Return the events that name processes and threads, once each."""
    kept: dict[str, Event] = {}
    for event in events:
        if event.get("ph") == "M" and event.get("name") in _METADATA:
            plain = {key: event[key] for key in ("ph", "name", "pid", "tid")}
            plain["args"] = scrub_values(event["args"])
            kept[json.dumps(plain, sort_keys=True)] = plain
    return list(kept.values())
