"""A trace as compact columns: the type that the loader fills and everything else reads.

Every column is int64; times are in ns, and -1 is an absent id. The warnings about what was lost or
repaired while a trace was read are here too.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from msgspec import Struct, field
from msgspec.structs import replace
from numpy.typing import NDArray

from prunescope.analysis.ops.call import OpCall
from prunescope.analysis.schema.notice import Notice, note, warning
from prunescope.analysis.trace.collector import COLUMNS, Floats, Ints, are_among, unique_ids
from prunescope.analysis.trace.reader import Source
from prunescope.taxonomy.recorder import recorder_of
from prunescope.taxonomy.scrub import scrub_all, scrub_values


def _empty(group: str) -> dict[str, Ints]:
    return {name: np.empty(0, np.int64) for name in COLUMNS[group]}


class Collective(NamedTuple):
    """A collective as torch records it; None where a value is not recorded.

    `sent` and `received` count the elements that one rank sends and receives, `ranks` the ranks of
    the group; `dtype` is the number format in torch's spelling.
    """

    name: str
    sent: int | None
    received: int | None
    ranks: int | None
    dtype: str | None


class Trace(Struct, dict=True):
    """One trace. Every `dict` maps a column name to an int64 array; -1 is an absent id.

    Tables of events:
    - `device`: kernels, copies and fills. Its `label` (how torch annotates a kernel of a graph) is
      an id in `names`; `captured` and `captured_on` say when and on which thread the graph node was
      captured.
    - `waits`: times in which a stream waits for an event, which is no work.
    - `launches`: runtime calls with a correlation id; `other_calls`: those without one.
    - `ops`: host ops; `annotations`: NVTX ranges, record_function and modules; `frames`: Python
      frames of 0.1 ms or more; `overhead`: recorded work of the profiler and the driver.
    - `memory`: bytes allocated and reserved on the device, by the host's time (`ts`).

    Interned values:
    - `names`: the strings; `calls`: the distinct op calls, decoded; `grids`: the distinct grids and
      blocks; `collectives`: what device events send to other ranks.
    - `counters`: times and values of samples of the device, by the profiler's name for them.

    Numbers of events:
    - `dropped`: events without a valid time, `kernels_dropped` of them on the device.
    - `unplaced`: device events that name no device, which are left out.
    - `twice`: device events (in a CPU trace: ops) that the file repeats.
    - `stacks`: recorded calls of Python functions, short ones included.
    - `untimed`: kernels with hardware counters and without times of their own.
    - `unread`: events of a device whose category is not known, by category: number, and ns.

    `caveats` warnings about what times.
    """

    source: Source
    names: list[str]
    calls: list[OpCall]
    device: dict[str, Ints]
    launches: dict[str, Ints]
    ops: dict[str, Ints]
    annotations: dict[str, Ints]
    grids: list[tuple[int, ...]]
    collectives: list[Collective] = field(default_factory=list)
    memory: dict[str, Ints] = field(default_factory=dict)
    counters: dict[str, tuple[Ints, Floats]] = field(default_factory=dict)
    dropped: int = 0
    kernels_dropped: int = 0
    unplaced: int = 0
    twice: int = 0
    stacks: int = 0
    untimed: int = 0
    unread: dict[str, list[int]] = field(default_factory=dict)
    caveats: list[Notice] = field(default_factory=list)
    frames: dict[str, Ints] = field(default_factory=lambda: _empty("frame"))
    other_calls: dict[str, Ints] = field(default_factory=lambda: _empty("frame"))
    overhead: dict[str, Ints] = field(default_factory=lambda: _empty("overhead"))
    waits: dict[str, Ints] = field(default_factory=lambda: _empty("device"))

    def __post_init__(self) -> None:
        """Remove secrets, and paths of people and of their machine, from all strings."""
        names = scrub_all(self.names)
        if names is not self.names and names != self.names:
            new = dict(zip(self.names, names, strict=True))
            self.names = names
            self.calls = [replace(call, name=new.get(call.name, call.name)) for call in self.calls]
        # The first profilers on kineto wrote the same properties under another key.
        older = self.source.meta.get("computeProperties")
        if older and not self.source.meta.get("deviceProperties"):
            self.source.meta["deviceProperties"] = older
        if properties := self.source.meta.get("deviceProperties"):
            self.source.meta["deviceProperties"] = scrub_values(properties)

    @property
    def on_device(self) -> bool:
        """Whether the trace holds device events; else its host ops stand for its kernels."""
        return len(self.device["ts"]) > 0

    @cached_property
    def launches_by_id(self) -> tuple[Ints, Ints]:
        """The sorted correlation ids of the launches, and the row of each.

        Of launches with equal ids the earliest comes first, then the longest. The value is valid
        once the trace is loaded, after which launches no longer change.
        """
        ids = self.launches["correlation"]
        rows = np.lexsort((-self.launches["dur"], self.launches["ts"], ids))
        return ids[rows], rows

    @cached_property
    def launches_named(self) -> NDArray[np.bool_]:
        """A mask of the launches that device events name; valid once the trace is loaded."""
        return are_among(self.launches["correlation"], self.device["correlation"])

    def without_shapes(self) -> Trace:
        """Return a copy of the trace as if no shapes had been recorded."""
        return replace(self, calls=[OpCall(call.name, (), ()) for call in self.calls])

    @property
    def device_name(self) -> str | None:
        """The device that most device events ran on, as the profiler names it; None if unknown."""
        return str(self.device_properties.get("name") or "") or None

    @property
    def device_properties(self) -> dict[str, Any]:
        """The profiler's properties of the device that most device events ran on; empty if none."""
        known = self._properties()
        if not known:
            return {}
        used = self.device["device"]
        ids, counts = np.unique(used[used >= 0], return_counts=True)
        most_used = int(ids[np.argmax(counts)]) if len(ids) else None
        return next((p for p in known if p.get("id") == most_used), known[0])

    def _properties(self) -> list[dict[str, Any]]:
        """Return the profiler's properties of each device."""
        listed = self.source.meta.get("deviceProperties")
        return [p for p in listed if isinstance(p, dict)] if isinstance(listed, list) else []

    def times_of_devices(self, events: Ints) -> dict[str, int]:
        """Sum the durations of device events by device, largest sum first.

        Args:
            events: Rows of `device`; negative ones are ignored.

        Returns:
            The sum in ns by the device's number and name, for example "0 (NVIDIA A100)".
        """
        events = events[events >= 0]
        ids, times = self.device["device"][events], self.device["dur"][events]
        known = self._properties()
        times_by_label: dict[str, int] = {}
        for device in unique_ids(ids[ids >= 0]).tolist():
            name = next((p.get("name") for p in known if p.get("id") == device), None)
            label = f"{device} ({name[:80]})" if isinstance(name, str) and name else str(device)
            times_by_label[label] = int(times[ids == device].sum())
        return dict(sorted(times_by_label.items(), key=lambda item: -item[1]))


def trace_warnings(trace: Trace) -> list[Notice]:
    """Return warnings of what was lost, repaired or dropped while the trace was read."""
    source, work = trace.source, len(trace.device["ts"])
    warnings = []
    if source.cut:
        warnings.append(warning("trace-cut"))
        if not trace.on_device:
            warnings.append(warning("no-device-events-before-cut"))
    if source.behind:
        warnings.append(warning("bytes-behind-trace", bytes=source.behind))
    if lost := trace.kernels_dropped:
        warnings.append(warning("kernels-dropped", dropped=lost, whole=lost + work))
    if lost := trace.unplaced:
        warnings.append(warning("work-without-device", dropped=lost, whole=lost + work))
    if lost := source.malformed + trace.dropped - trace.kernels_dropped:
        warnings.append(warning("malformed-events", dropped=lost))
    if trace.twice:
        events = "device events" if trace.on_device else "host ops"
        warnings.append(warning("repeated-events", count=trace.twice, events=events))
    if trace.untimed:
        warnings.append(warning("untimed-kernels", count=trace.untimed))
    warnings += trace.caveats
    if source.repaired:
        warnings.append(warning("repaired-json"))
    return [notice.about(file=source.name) for notice in warnings]


def recorded_waits(trace: Trace) -> list[Notice]:
    """Note that the device recorded waits of streams among its work; empty if it did not."""
    count, ns = len(trace.waits["ts"]), int(trace.waits["dur"].sum())
    return [note("stream-waits", count=count, ns=ns)] if count else []


def unread_work(trace: Trace) -> list[Notice]:
    """Note how many events of a device are of categories that are not read; empty if none are."""
    if not trace.unread:
        return []
    count, ns = (sum(counts[i] for counts in trace.unread.values()) for i in (0, 1))
    categories = sorted(trace.unread, key=lambda name: -trace.unread[name][1])[:3]
    return [note("unread-device-work", count=count, ns=ns, categories=categories)]


def lacks_device_events(trace: Trace) -> bool:
    """Return whether a trace names or uses a GPU (it launches, or calls NCCL) and holds no events.

    The events that it lacks are those of the device.
    """
    if trace.on_device:
        return False
    launched = len(trace.launches["ts"]) > 0
    return bool(trace.device_name or launched) or _calls_nccl(trace)


def _calls_nccl(trace: Trace) -> bool:
    """Return whether annotations name collectives of NCCL, which only GPUs carry out."""
    return any(name.startswith(("nccl:", "rccl:")) for name in trace.names)


def host_instead(trace: Trace) -> list[Notice]:
    """Return a that host ops stand for the kernels of a trace that names or uses a GPU.

    The list is empty if the has holds device events, or is cut off.
    """
    if trace.source.cut or not lacks_device_events(trace):
        return []
    name, recorder = trace.device_name, recorder_of(trace.source.meta).device
    return [
        warning("host-instead-of-device", file=trace.source.name, device=name, recorder=recorder)
    ]


def is_partial(trace: Trace) -> bool:
    """Return whether the trace holds only a part of what ran: it is cut off, or lost kernels."""
    return trace.source.cut or trace.kernels_dropped + trace.unplaced > 0


LEFT_OUT = "prunescope.left_out"  # a key next to traceEvents
STACKS = "stacks"
FRAME = "a Python function"  # the name of a frame whose own is left out
_MAX_EVENTS = 2**53  # JSON readers agree on integers up to here


def stacks_left_out(meta: Mapping[str, Any]) -> int:
    """Return how many recorded calls of Python functions trimming left out.

    The metadata around the events (`meta`) states that number; without a valid one the result is 0.
    """
    left_out = meta.get(LEFT_OUT)
    count = left_out.get(STACKS) if isinstance(left_out, dict) else None
    valid = isinstance(count, int) and not isinstance(count, bool) and 0 < count <= _MAX_EVENTS
    return int(count) if valid and count is not None else 0
