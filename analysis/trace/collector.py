"""The events of a trace, collected a block at a time into compact integer columns.

In: lists of typed events (see reader.py). Out: int64 tables of device events, launches, host ops
and annotations; times are in ns, strings and op calls are ids, -1 is an absent id. Each block is
converted as whole columns, because a Python step for each event would cost more than decoding it.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable
from decimal import Decimal
from typing import Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from prunescope.analysis.trace.counter_samples import Floats as Floats
from prunescope.analysis.trace.counter_samples import Ints as Ints
from prunescope.analysis.trace.counter_samples import Mask as Mask
from prunescope.analysis.trace.counter_samples import Sample, rows_of
from prunescope.analysis.trace.event import (
    DEVICE_CATEGORIES,
    LAUNCH_CATEGORIES,
    LEAN_STRUCTS,
    MEMORY,
    OP_CATEGORIES,
    OVERHEAD,
    SNAPSHOT,
    Args,
    Event,
    decode_json,
    is_unread,
)
from prunescope.analysis.trace.uncategorised import category_of, table_of
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.lazy_pattern import lazy_pattern

MODULE = "nn.Module: "
OWN_PREFIX = "prunescope."  # of the annotations of our own runs
OWN_STEP = lazy_pattern(r"prunescope\.step#\d+$")
MAX_ROWS = 20_000_000  # events of one kind: 2 GB of columns
# Kernels, copies and fills of a device: at its peak an analysis holds 1.4 kB of each, 7 GB of all.
MAX_DEVICE_ROWS = 5_000_000
NONE = -1  # an absent id in an integer column
_MAX_NAME = 1 << 14  # characters of a name that are kept
_MAX_US = 2_300_000_000_000_000  # 73 years: the ns between any two times fit 63 bits
MAX_EVENT_NS = 3600 * 10**9  # of a kernel, op or launch
MAX_ANNOTATION_NS = 1 << 62  # an annotation may hold a whole run
_MAX_ID = 1 << 62
_SPARSE = 16  # distinct numbers a row, above which counting takes longer than sorting
_NO_TIME = -(1 << 63)
_MOST_DIGITS = 19  # of a whole number in 63 bits
_NO_ARGS = Args()
_DECIMAL = lazy_pattern(r"-?\d{1,18}(?:\.\d{0,20})?", re.ASCII)
_DEVICE, _LAUNCH, _OP, _ANNOTATION, _FRAME = "device", "launch", "op", "annotation", "frame"
SAMPLES = "samples"
DEVICE_ROWS = "kernels, copies and fills"
_MEMORY, _HOST = "memory", msgspec.Raw(b"0")  # the table, a type of device
_LONG_FRAME = 100  # µs: shorter frames of Python are of no use, and are most of them
# CUPTI's range profiler: kineto spreads its kernels evenly over the span of the capture.
_COUNTERS = "cuda_profiler_range"
_CATEGORIES, _SHOWN = 100, 60  # of events that are not read: how many are counted, characters
_GROUPS = {
    **dict.fromkeys(OP_CATEGORIES, _OP),
    "user_annotation": _ANNOTATION, "python_function": _ANNOTATION, OVERHEAD: OVERHEAD,
    MEMORY: _MEMORY,
    **dict.fromkeys(DEVICE_CATEGORIES, _DEVICE), **dict.fromkeys(LAUNCH_CATEGORIES, _LAUNCH),
}  # fmt: skip
_LEAN_GROUPS = [(kind, _GROUPS.get(category, "")) for category, kind in LEAN_STRUCTS.items()]
COLUMNS = {
    _DEVICE: ("ts", "dur", "name", "category", "correlation", "external", "stream", "device",
              "grid", "block", "registers", "shared_memory", "bytes", "node", "label", "captured",
              "captured_on", "collective"),
    _LAUNCH: ("ts", "dur", "name", "correlation", "external", "thread", "kernel"),
    _OP: ("ts", "dur", "name", "external", "thread", "call", "sequence"),
    _ANNOTATION: ("ts", "dur", "name", "thread", "module"),
    _FRAME: ("ts", "dur", "name", "thread"),
    OVERHEAD: ("ts", "dur", "name", "thread"),
    _MEMORY: ("ts", "allocated", "reserved"),
    SAMPLES: ("ts", "name", "device", "value"),  # the value: the bits of a double
}  # fmt: skip
Key = TypeVar("Key", bound=Hashable)
# Name; dims, types, strides and concrete inputs as JSON, with a byte between that no JSON has: one
# text is made in a fifth of the time of four.
Call = tuple[str, bytes]
_BETWEEN = b"\xff"


class Ids(dict[Key, int]):
    """The ids of keys, numbered in the order in which the keys were first looked up."""

    def __missing__(self, key: Key) -> int:
        self[key] = new = len(self)
        return new


class Columns:
    """Growing integer columns of one kind of event, kept as one array for each block.

    `most` is the number of rows that are accepted; the error for more calls them `kind`.
    """

    def __init__(
        self, names: tuple[str, ...], most: int = MAX_ROWS, kind: str = "events of one kind"
    ) -> None:
        self.names = names
        self.most, self.kind = most, kind
        self.blocks: list[Ints] = []
        self.count = 0
        self._room = np.empty((len(names), 0), np.int64)

    def reserve(self, rows: int) -> None:
        """Reserve one array for so many rows, so that they need not be copied at the end.

        The columns must still be empty. The memory of rows that do not come is never touched.
        """
        self._room = np.empty((len(self.names), min(rows, self.most)), np.int64)

    def add(self, *columns: Iterable[int]) -> None:
        """Append the rows of a block, given one column after the other."""
        self.append(np.array([np.asarray(column, np.int64) for column in columns]))

    def append(self, block: Ints) -> None:
        """Append the rows of a block, whose array has a row for each column of the table."""
        begin, self.count = self.count, self.count + block.shape[1]
        if self.count > self.most:
            raise PrunescopeError(
                f"the trace holds more than {self.most:,} {self.kind}",
                hint="capture fewer steps: three say as much as a thousand",
            )
        if self.blocks or self.count > self._room.shape[1]:
            self.blocks.append(block)
        else:
            self._room[:, begin : self.count] = block

    def together(self) -> Ints:
        """Return all rows as one array, which has a row for each column of the table.

        They stand in the order of the file. What a caller writes into the array stays.
        """
        if self.blocks:
            in_room = self.count - sum(block.shape[1] for block in self.blocks)
            self._room = np.concatenate([self._room[:, :in_room], *self.blocks], axis=1)
            self.blocks = []
        return self._room[:, : self.count]

    def frozen(self) -> dict[str, Ints]:
        """Return the columns by name as numpy arrays, in the order of the file."""
        return dict(zip(self.names, self.together(), strict=True))


class Collector:
    """The tables of a trace while they grow.

    `dropped` counts by table the events without a valid time, `unplaced` the device events that
    name no device.
    """

    def __init__(self) -> None:
        self.tables = {group: Columns(names) for group, names in COLUMNS.items()}
        self.tables[_DEVICE] = Columns(COLUMNS[_DEVICE], MAX_DEVICE_ROWS, DEVICE_ROWS)
        self.names: Ids[str] = Ids()
        self.threads: Ids[tuple[Any, Any]] = Ids()
        self.calls: Ids[Call] = Ids()
        self.grids: Ids[tuple[int, ...]] = Ids()
        self.collectives: Ids[tuple[bytes, ...]] = Ids()
        self.counters: dict[str, tuple[Ints, Floats]] = {}
        self.dropped = dict.fromkeys(COLUMNS, 0)
        self.unplaced = 0
        self.stacks = 0  # calls of Python functions
        self.uncategorised = 0  # ops and device events without a category
        # Number and ns of the events of a device whose category is not known, by category.
        self.unread: dict[str, list[int]] = {}
        self.untimed = 0  # kernels with hardware counters and without times of their own

    def add(self, events: list[Event]) -> None:
        """Take the useful events of a block: a third of a trace with stacks, or less."""
        groups: dict[str, list[Event]] = {group: [] for group in COLUMNS if group != SAMPLES}
        whole = bool(events) and isinstance(events[0], Event)
        if whole:
            self._sort(events, groups)
        else:
            ignored: list[Event] = []
            add_to = {kind: groups.get(group, ignored).append for kind, group in _LEAN_GROUPS}
            for event in events:
                add_to[type(event)](event)
        self._memory([e for e in groups.pop(_MEMORY) if e.name == SNAPSHOT])
        annotations = groups[_ANNOTATION]
        groups[_ANNOTATION] = [
            e for e in annotations if e.name.startswith(MODULE) or e.cat != "python_function"
        ]
        groups[_FRAME] = [
            e
            for e in annotations
            if (us := e.dur) is not None
            and (us >= _LONG_FRAME if type(us) is float else is_long_frame(us))
            and e.cat == "python_function"
        ]
        self.stacks += sum(e.cat == "python_function" for e in annotations)
        # Profilers before kineto, and Ascend's, write annotations among the ops.
        groups[_ANNOTATION] += [
            e
            for e in groups[_OP]
            if (whole or e.cat == "Operator") and e.name.startswith("ProfilerStep#")
        ]
        take = {
            _DEVICE: self._device,
            _LAUNCH: self._launch,
            _OP: self._op,
            _ANNOTATION: self._annotation,
            _FRAME: self._on_thread,
            OVERHEAD: self._on_thread,
        }
        for group, events_of_group in groups.items():
            timed, ts, dur = self._timed(group, events_of_group)
            if timed:
                args = [e.args or _NO_ARGS for e in timed]
                names = _shortened([e.name for e in timed])
                named = interned(self.names, names)
                self.tables[group].add(ts, dur, named, *take[group](timed, args, names))

    def _sort(self, events: list[Event], groups: dict[str, list[Event]]) -> None:
        """Sort the whole events of a block by the table that they belong to."""
        for event in events:
            group = _GROUPS.get(event.cat) if event.cat is not None else table_of(event)
            if group is not None and (event.ph == "X" or group == _MEMORY):
                groups[group].append(event)
                self.uncategorised += event.cat is None
            elif group is None and is_unread(event):
                self._count_unread(event)
        self.untimed += sum(event.cat == _COUNTERS for event in events)

    def _count_unread(self, event: Event) -> None:
        """Count an event of a device that is not read, and its time."""
        [ns] = nanoseconds([event.dur]).tolist()
        counts = self.unread.setdefault(str(event.cat)[:_SHOWN], [0, 0])
        if len(self.unread) <= _CATEGORIES and 0 <= ns <= MAX_EVENT_NS:
            counts[0] += 1
            counts[1] += ns

    def _memory(self, events: list[Event]) -> None:
        """Take snapshots of the memory that is allocated and reserved on a device."""
        snapshots = [
            (e.ts, _to_bytes(e.args.allocated), _to_bytes(e.args.reserved))
            for e in events
            if e.args is not None and e.args.device_type != _HOST
        ]
        if snapshots:
            times, *sizes = zip(*snapshots, strict=True)
            columns = np.array([nanoseconds(list(times)), *sizes])
            self.tables[_MEMORY].append(columns[:, columns[0] != _NO_TIME])

    def add_samples(self, samples: list[Sample]) -> None:
        """Take the useful counters of a block."""
        if rows := list(rows_of(samples)):
            times, names, devices, values = zip(*rows, strict=True)
            bits = np.array(values, np.float64).view(np.int64)
            named = interned(self.names, list(names))
            columns = np.array([nanoseconds(list(times)), named, devices, bits])
            self.tables[SAMPLES].append(columns[:, columns[0] != _NO_TIME])

    def _timed(self, group: str, events: list[Event]) -> tuple[list[Event], Ints, Ints]:
        """Return the events that have a valid start and duration, with both in ns.

        A kernel, op or launch of more than an hour is invalid. The other events are counted in
        `dropped`.
        """
        ts = nanoseconds([e.ts for e in events])
        dur = nanoseconds([e.dur for e in events])
        good = (
            (ts != _NO_TIME)
            & (dur >= 0)
            & (dur <= (MAX_ANNOTATION_NS if group in (_ANNOTATION, _FRAME) else MAX_EVENT_NS))
        )
        if good.all():
            return events, ts, dur
        kept = [e for e, ok in zip(events, good, strict=True) if ok]
        self.dropped[group] += len(events) - len(kept)
        return kept, ts[good], dur[good]

    def _on_threads(self, events: list[Event]) -> list[int]:
        return interned(self.threads, [(e.pid, e.tid) for e in events])

    def _device(self, events: list[Event], args: list[Args], _: list[str]) -> list[Iterable[int]]:
        return [
            [category_of(e) for e in events],
            to_ids([a.correlation for a in args]),
            _external_ids(args),
            *self._places(events, args),
            self._sizes([a.grid for a in args]),
            self._sizes([a.block for a in args]),
            to_ids([a.registers for a in args]),
            to_ids([a.shared_memory for a in args]),
            to_ids([a.bytes for a in args]),
            to_ids([a.graph_node for a in args]),
            self._labels(args),
            [NONE] * len(args),
            [NONE] * len(args),
            self._collectives(args),
        ]

    def _collectives(self, args: list[Args]) -> list[int]:
        """Return the ids of what collectives record about their messages; NONE for other events."""
        recorded = [a for a in args if a.collective]
        if not recorded:
            return [NONE] * len(args)
        keys = [
            tuple(bytes(raw) for raw in (a.collective, a.sent, a.received, a.group, a.dtype))
            for a in recorded
        ]
        ids = iter(interned(self.collectives, keys))
        return [next(ids) if a.collective else NONE for a in args]

    def _labels(self, args: list[Args]) -> list[int]:
        """Return the ids of the annotations of graph kernels; NONE for other events."""
        raws = [a.module or a.label or a.label_legacy for a in args]
        if not any(raws):
            return [NONE] * len(args)
        words = [
            _decode_label(raw) if a.graph_node else "" for raw, a in zip(raws, args, strict=True)
        ]
        ids = iter(interned(self.names, _shortened([word for word in words if word])))
        return [next(ids) if word else NONE for word in words]

    def _places(self, events: list[Event], args: list[Args]) -> Iterable[list[int]]:
        """Return the streams and devices of events.

        They are those of the arguments, else those of the rows on which the events are drawn.
        """
        streams, devices = [a.stream for a in args], [a.device for a in args]
        if None in streams:
            streams = [e.tid if s is None else s for e, s in zip(events, streams, strict=True)]
        if None in devices:
            devices = [e.pid if d is None else d for e, d in zip(events, devices, strict=True)]
        return to_ids(streams), to_ids(devices)

    def _launch(self, events: list[Event], args: list[Args], _: list[str]) -> list[Iterable[int]]:
        kernel = [a.kernel if isinstance(a.kernel, str) else None for a in args]
        ids = iter(interned(self.names, _shortened([name for name in kernel if name is not None])))
        return [
            to_ids([a.correlation for a in args]),
            _external_ids(args),
            self._on_threads(events),
            [NONE if name is None else next(ids) for name in kernel],
        ]

    def _op(self, events: list[Event], args: list[Args], names: list[str]) -> list[Iterable[int]]:
        calls = [
            (name, _BETWEEN.join((a.dims or a.dims_legacy, a.types, a.strides, a.concrete)))
            for name, a in zip(names, args, strict=True)
        ]
        return [
            _external_ids(args),
            self._on_threads(events),
            interned(self.calls, calls),
            to_ids([a.sequence for a in args]),
        ]

    def _annotation(
        self, events: list[Event], _args: list[Args], _names: list[str]
    ) -> list[Iterable[int]]:
        module = [int(e.cat == "python_function") for e in events]
        return [self._on_threads(events), module]

    def _on_thread(
        self, events: list[Event], _args: list[Args], _names: list[str]
    ) -> list[Iterable[int]]:
        return [self._on_threads(events)]

    def _sizes(self, sizes: list[list[int] | None]) -> list[int]:
        """Return the ids of grids or blocks; NONE where the size is missing."""
        known = interned(self.grids, [tuple(size) for size in sizes if size])
        ids = iter(known)
        return [next(ids) if size else NONE for size in sizes]


def call_of(name: str, dims: bytes) -> Call:
    """Return the key of an op call of which only the sizes of its inputs are known, as JSON."""
    return name, _BETWEEN.join((dims, b"", b"", b""))


def parts_of(call: Call) -> list[bytes]:
    """Split the key of an op call into dims, types, strides and concrete inputs, each as JSON.

    A part that was not recorded is empty.
    """
    return call[1].split(_BETWEEN, 3)


def _to_bytes(raw: int | msgspec.Raw | None) -> int:
    """Return a number of bytes; NONE for a missing or invalid one."""
    if not isinstance(raw, msgspec.Raw):
        return NONE if raw is None else raw
    text = bytes(raw)
    return int(text) if text.isdigit() and len(text) < _MOST_DIGITS else NONE


def _decode_label(raw: msgspec.Raw) -> str:
    """Decode a JSON string; any other value gives an empty text."""
    label = decode_json(bytes(raw))
    return label if isinstance(label, str) else ""


def interned(table: Ids[Key], keys: list[Key]) -> list[int]:
    """Return the id of every key; new keys get the next ids, in their order."""
    return list(map(table.__getitem__, keys))


def unique_ids(ids: Ints) -> Ints:
    """Return the distinct values of a column, in ascending order.

    Most ids are small, and counting them takes a tenth of the time of numpy's `unique`.
    """
    if not len(ids):
        return ids
    least, most = int(ids.min()), int(ids.max())
    if most - least > _SPARSE * len(ids):
        return np.unique(ids)
    return np.flatnonzero(np.bincount(ids - least)) + least


def are_among(values: Ints, ids: Ints) -> NDArray[np.bool_]:
    """Return a mask of the values that are among the ids.

    It is faster than numpy's `isin` for many ids, because `isin` sorts the values as well.
    """
    known = unique_ids(ids)
    if not len(known):
        return np.zeros(len(values), bool)
    at = np.searchsorted(known, values)
    return np.asarray(known[np.minimum(at, len(known) - 1)] == values)


def places_in(ordered: Ints, wanted: Ints) -> Ints:
    """Return where each value is first in a sorted column; NONE for one that is not in it."""
    if not len(ordered):
        return np.full(len(wanted), NONE)
    at = np.minimum(np.searchsorted(ordered, wanted), len(ordered) - 1)
    return np.where((ordered[at] == wanted) & (wanted >= 0), at, NONE)


def is_long_frame(us: Any) -> bool:
    """Return whether a Python frame of `us` µs is long enough to be of use."""
    return isinstance(us, int | float | Decimal) and us >= _LONG_FRAME


def _shortened(names: list[str]) -> list[str]:
    """Cut names that are longer than _MAX_NAME characters."""
    if max(map(len, names), default=0) <= _MAX_NAME:
        return names
    return [n if len(n) <= _MAX_NAME else f"{n[:_MAX_NAME]}…" for n in names]


def to_ids(values: list[Any]) -> list[int]:
    """Return ids as integers: NONE for a missing or invalid id; a string of digits is parsed."""
    types = set(map(type, values))
    if types == {type(None)}:
        return [NONE] * len(values)
    if types == {int, type(None)}:
        values = [NONE if value is None else value for value in values]
        types = {int}
    if types == {int} and min(values) >= NONE and max(values) < _MAX_ID:
        return values
    return [_to_id(value) for value in values]


def _to_id(value: Any) -> int:
    """Return one id of any type as an integer, NONE for an invalid one."""
    if type(value) is int or isinstance(value, float):
        return int(value) if 0 <= value < _MAX_ID else NONE
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20:
        return number if (number := int(value)) < _MAX_ID else NONE
    return NONE


def _external_ids(args: list[Args]) -> list[int]:
    """Return the ids by which ops are named, under the current or the legacy argument."""
    return to_ids([a.external_id_legacy if a.external_id is None else a.external_id for a in args])


def nanoseconds(us: list[Any]) -> Ints:
    """Round times in µs to the nearest ns; a missing or invalid time becomes _NO_TIME.

    The whole part and the fraction are rounded separately. The doubles of both are exact up to 2^42
    µs, and the reader gives decimals beyond.
    """
    if not set(map(type, us)) <= {int, float, type(None)}:
        return np.array([_exact_ns(t) for t in us], np.int64)
    try:
        values = np.array(us, np.float64)  # None becomes NaN
    except OverflowError:  # a whole number that no double holds
        return np.array([_exact_ns(t) for t in us], np.int64)
    with np.errstate(invalid="ignore"):
        good = np.abs(values) < _MAX_US
        values = np.where(good, values, 0.0)
        whole = np.floor(values)
        fraction = np.rint((values - whole) * 1000)
        ns = whole.astype(np.int64) * 1000 + fraction.astype(np.int64)
    return np.where(good, ns, _NO_TIME)


def _exact_ns(us: Any) -> int:
    """Round one time in µs, of any type, to the nearest ns by decimal arithmetic."""
    if type(us) is str:  # Ascend's profiler writes decimals as texts
        us = Decimal(us) if _DECIMAL.fullmatch(us) else None
    if type(us) not in (int, float, Decimal) or not -_MAX_US < us < _MAX_US:
        return _NO_TIME
    return int((Decimal(us) * 1000).to_integral_value())
