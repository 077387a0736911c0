"""The tables of an export of Nsight Systems as columns of numbers, for one device.

In: an open `Database`, and the device. Out: blocks of columns, with times in ns and the ids of the
Collector that they go to. If two processes number their launches alike, each gets ids of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from prunescope.analysis.schema.notice import Notice
from prunescope.analysis.trace.collector import (
    COLUMNS,
    MAX_ANNOTATION_NS,
    MAX_EVENT_NS,
    MAX_ROWS,
    NONE,
    Collector,
    Floats,
    Ints,
    interned,
)
from prunescope.analysis.trace.nsys_devices import PLACED, TID_BITS, WORK, NsysDevice
from prunescope.analysis.trace.nsys_file import Database
from prunescope.analysis.trace.reader import Source

DEVICE = "device"  # the Collector's table of what the device ran
NO_NAME = "?"
NO_TIME, _MOST_TIME = -(1 << 63), 1 << 61
_MOST_ID = 1 << 62
# Ids of launches have 32 bits. Where processes share a device, their numbers stand before those of
# their launches.
_ID_BITS = 33


class Tables:
    """The input and output of reading one device: the file, and the Collector for its rows.

    `caveats` are sentences about what the file lacks. `order`
    numbers the processes that used the device. `alone` holds CUDA's numbers that no other device
    has; `others` is how these processes call the other devices.
    """

    def __init__(
        self, file: Database, source: Source, device: NsysDevice, devices: Sequence[NsysDevice]
    ) -> None:
        self.file, self.source, self.device = file, source, device
        self.collect = Collector()
        self.caveats: list[Notice] = []
        self._strings: dict[int, str | None] = {}
        self.unnamed: Counter[str] = Counter()
        known = [process for process in device.processes if process != NONE]
        self.order = {process: i for i, process in enumerate(known)}
        processes = set(device.processes)
        foreign = {name for gpu in devices if gpu is not device for name in gpu.names}
        # A row with a number that no other device has needs no process.
        self.alone = {n for _, n in device.names} - {n for _, n in foreign}
        self.others = frozenset(name for name in foreign if name[0] in processes)

    def device_columns(self, *names: str) -> list[Ints]:
        """Return columns of the device's work read so far; what is written into them stays."""
        table = self.collect.tables[DEVICE].together()
        return [table[COLUMNS[DEVICE].index(name)] for name in names]

    def add(self, group: str, columns: dict[str, Ints], names: Sequence[str]) -> None:
        """Add rows to a table of the collector; drop and count those without a valid time."""
        most = MAX_ANNOTATION_NS if group == "annotation" else MAX_EVENT_NS
        kept = (columns["ts"] != NO_TIME) & (columns["dur"] >= 0) & (columns["dur"] <= most)
        self.collect.dropped[group] += int((~kept).sum())
        wanted = [columns[name] for name in names]
        self.collect.tables[group].add(
            *(wanted if kept.all() else (column[kept] for column in wanted))
        )

    def columns(
        self,
        table: str,
        wanted: dict[str, str],
        where: str = "",
        end: str = "end",
        start: str = "start",
    ) -> dict[str, Ints]:
        """Return columns of a table.

        `wanted` maps our names to those of the file; `ts` and `dur` come from the columns `start`
        and `end`.
        """
        parts: dict[str, list[Ints]] = {
            name: [np.empty(0, np.int64)] for name in ("ts", "dur", *wanted)
        }
        rows = 0
        for columns, _ in self.blocks(table, wanted, where, end=end, start=start):
            for name, column in columns.items():
                parts[name].append(column)
            rows += len(columns["ts"])
            self.refuse_too_many(rows)
        return {name: np.concatenate(parts.pop(name)) for name in list(parts)}

    def blocks(
        self,
        table: str,
        wanted: dict[str, str],
        where: str = "",
        text: str | None = None,
        end: str = "end",
        start: str = "start",
    ) -> Iterator[tuple[dict[str, Ints], Sequence[Any]]]:
        """Yield columns of a table a block at a time, and the plain values of the column `text`.

        The arguments are those of `columns`. A row with an invalid start or end has the time
        NO_TIME.
        """
        if not self.file.has(table, start, end):
            return
        read = (start, end, *wanted.values(), *([] if text is None else [text]))
        for block in self.file.rows(table, read, where=where):
            starts, ends, *values = zip(*block, strict=True)
            ts, until = as_times(starts), as_times(ends)
            both = (ts != NO_TIME) & (until != NO_TIME)
            columns = {
                "ts": np.where(both, ts, NO_TIME),
                "dur": np.where(both, until - ts, NONE),
                **{name: as_ids(value) for name, value in zip(wanted, values, strict=False)},
            }
            yield columns, () if text is None else values[-1]

    def refuse_too_many(self, rows: int) -> None:
        """Raise PrunescopeError for a table of more events than a trace may hold."""
        if rows > MAX_ROWS:
            raise self.source.error(
                f"one of its tables holds more than {MAX_ROWS:,} events",
                "capture fewer steps: three say as much as a thousand",
            )

    def events(self, table: str, **wanted: str) -> Iterator[dict[str, Ints]]:
        """Return the events of this device in one table, a block at a time."""
        columns = {"process": "globalPid", "number": "deviceId", "context": "contextId",
                   "stream": "streamId", "correlation": "correlationId", **wanted}  # fmt: skip
        where = f'"deviceId" IN ({self.device.numbers})'
        for rows, _ in self.blocks(table, columns, where if table in WORK else ""):
            rows["process"] = processes_of(rows["process"])
            mine = np.zeros(len(rows["ts"]), bool)
            for process, number in self.device.names:
                of_number = rows["number"] == number
                unknown = (process == NONE) | ((rows["process"] == NONE) & (number in self.alone))
                mine |= of_number & ((rows["process"] == process) | unknown)
            if not mine.all():
                rows = {name: column[mine] for name, column in rows.items()}
            rows["correlation"] = self.launch_ids(rows["process"], rows["correlation"])
            yield rows

    def launch_ids(self, process: Ints, correlation: Ints) -> Ints:
        """Return ids of launches that no two processes of this device share."""
        if len(self.order) < 2:
            return correlation
        known = np.array(list(self.order), np.int64)  # sorted
        number = np.minimum(np.searchsorted(known, process), len(known) - 1)
        good = (known[number] == process) & (correlation >= 0) & (correlation < 1 << _ID_BITS)
        return np.where(good, correlation + (number << _ID_BITS), NONE)

    def process_filter(self, table: str) -> str:
        """Return SQL for the rows of the processes that used the device; empty for all rows."""
        if not self.file.has(table, "globalTid") or NONE in self.device.processes:
            return ""
        return f'("globalTid" >> {TID_BITS}) IN ({", ".join(map(str, self.order))})'

    def named(self, ids: Ints, plain: Callable[[str], str], of: str) -> Ints:
        """Turn the file's ids of names into the collector's.

        `plain` rewrites each name. Rows whose name is not in the file are counted under `of`, the
        plural of what they are.
        """
        distinct, which = np.unique(ids, return_inverse=True)
        new = [i for i in distinct.tolist() if i not in self._strings]
        known = self.file.strings(i for i in new if i >= 0)
        self._strings |= {i: known.get(i) for i in new}
        texts = [self._strings[i] for i in distinct.tolist()]
        unnamed = np.array([text is None for text in texts], bool)[which.ravel()]
        self.unnamed[of] += int(unnamed.sum())
        plain_texts = [NO_NAME if text is None else plain(text) for text in texts]
        return np.array(interned(self.collect.names, plain_texts), np.int64)[which.ravel()]

    def threads_of(self, thread: Ints) -> Ints:
        """Return the collector's ids of threads."""
        distinct, which = np.unique(thread, return_inverse=True)
        keys = [divmod(global_id, 1 << TID_BITS) for global_id in distinct.tolist()]
        return np.array(interned(self.collect.threads, keys), np.int64)[which.ravel()]

    def sizes_of(self, axes: list[Ints]) -> Ints:
        """Return the collector's ids of grids or blocks; NONE where one of the axes is unknown."""
        known = np.all([axis >= 0 for axis in axes], axis=0)
        sizes = list(zip(*(axis[known].tolist() for axis in axes), strict=True))
        ids = np.full(len(known), NONE)
        ids[known] = interned(self.collect.grids, sizes)
        return ids


def as_times(values: Sequence[Any]) -> Ints:
    """Return times in ns; NO_TIME for a missing or invalid one."""
    if set(map(type, values)) != {int}:
        values = [value if type(value) is int else NO_TIME for value in values]
    ns = np.array(values, np.int64)
    return np.where(np.abs(ns) < _MOST_TIME, ns, NO_TIME)


def as_ids(values: Sequence[Any]) -> Ints:
    """Return ids and sizes; NONE for a missing or invalid one."""
    if set(map(type, values)) != {int}:
        values = [value if type(value) is int else NONE for value in values]
    ids = np.array(values, np.int64)
    return np.where((ids >= 0) & (ids < _MOST_ID), ids, NONE)


def as_numbers(values: Sequence[Any]) -> Floats:
    """Return numbers; NaN for a missing or invalid one."""
    plain = (float(value) if type(value) in (int, float) else np.nan for value in values)
    return np.fromiter(plain, np.float64, len(values))


def processes_of(global_ids: Ints) -> Ints:
    """Return the processes of GlobalIds; NONE for an invalid one."""
    return np.where(global_ids >= 0, global_ids >> TID_BITS, NONE)


def placed_tables(file: Database) -> list[str]:
    """List the tables of GPU work that state the device it ran on."""
    return [table for table in WORK if file.has(table, *PLACED)]
