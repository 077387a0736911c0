"""The work of one device in an export of Nsight Systems, and the waits of its streams.

In: `Tables`. Out: rows of the table of device events of their Collector: kernels, copies, fills,
graphs and waits.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cached_property, lru_cache
from itertools import chain

import numpy as np

from prunescope.analysis.schema.notice import warning
from prunescope.analysis.trace.collector import (
    COLUMNS,
    DEVICE_ROWS,
    MAX_DEVICE_ROWS,
    NONE,
    Ids,
    Ints,
    interned,
    places_in,
)
from prunescope.analysis.trace.event import DEVICE_CATEGORIES, WHOLE_GRAPH
from prunescope.analysis.trace.nsys_devices import COPY, FILL, GRAPH, KERNEL, SIZES, UNPLACED
from prunescope.analysis.trace.nsys_file import AGAIN, STRINGS
from prunescope.analysis.trace.nsys_tables import (
    DEVICE,
    NO_NAME,
    NO_TIME,
    Tables,
    placed_tables,
    processes_of,
)
from prunescope.taxonomy.lazy_pattern import lazy_pattern

NODES = "CUDA_GRAPH_NODE_EVENTS"
SYNCS, EVENTS = "CUPTI_ACTIVITY_KIND_SYNCHRONIZATION", "CUPTI_ACTIVITY_KIND_CUDA_EVENT"
_NAMES = ("demangledName", "shortName", "mangledName")  # of a kernel, the best first
_STREAM_BITS = 32  # where contexts share a device, their numbers stand before those of streams
_CLONES = 16  # how often a graph may be made from another one
_UNKNOWN = "Unknown"
_STREAM_WAITS, _STREAM_WAIT = 2, "Stream Wait Event"  # of ENUM_CUPTI_SYNC_TYPE
# As kineto names copies; of ENUM_CUDA_MEMCPY_OPER and ENUM_CUDA_MEM_KIND.
_COPIES = {1: "HtoD", 2: "DtoH", 3: "HtoA", 4: "AtoH", 5: "AtoA", 6: "AtoD", 7: "DtoA", 8: "DtoD",
           9: "HtoH", 10: "PtoP", 11: "HtoD", 12: "DtoH", 13: "DtoD"}  # fmt: skip
_MEMORY = {0: "Pageable", 1: "Pinned", 2: "Device", 3: "Array", 4: "Managed", 5: "Device Static",
           6: "Managed Static"}  # fmt: skip
_CAST = lazy_pattern(r"\(((?:unsigned |signed )?(?:bool|char|short|int|long long|long))\)(-?\d+)")
_LITERALS = {"unsigned int": "u", "long": "l", "unsigned long": "ul", "long long": "ll",
             "unsigned long long": "ull"}  # fmt: skip


class DeviceWork:
    """A pass that fills the device's table; streams and graph nodes get numbers of their own."""

    def __init__(self, tables: Tables) -> None:
        self.tables = tables
        self._contexts: Ids[tuple[int, int]] = Ids()

    def read(self) -> None:
        """Read all work of the device that the file holds."""
        self.tables.collect.tables[DEVICE].reserve(self._count_device_rows())
        for rows in chain(self._read_kernels(), self._read_copies(), self._read_fills()):
            self._add_device(rows)
        self._add_graphs()
        self._add_stream_waits()
        self._note_unnamed()

    def _count_device_rows(self) -> int:
        """Bound the number of rows of the device's work, and count those that name no device.

        Raises PrunescopeError where the device has more than MAX_DEVICE_ROWS.
        """
        tables = placed_tables(self.tables.file)
        self.tables.collect.unplaced = sum(
            self.tables.file.count(table, UNPLACED) for table in tables
        )
        of_device = f'"deviceId" IN ({self.tables.device.numbers})'
        work = sum(self.tables.file.count(table, of_device) for table in tables)
        if work > MAX_DEVICE_ROWS:
            raise self.tables.source.error(
                f"it holds {work:,} {DEVICE_ROWS} of one device, more than {MAX_DEVICE_ROWS:,}",
                "profile fewer steps: three say as much as a thousand (`nsys profile` takes "
                "--delay and --duration in seconds, or --capture-range)",
            )
        return work + self.tables.file.count(SYNCS)

    def _add_device(self, rows: dict[str, Ints]) -> None:
        """Add work of the device to its table."""
        none = np.full(len(rows["ts"]), NONE)
        rows = {**dict.fromkeys(COLUMNS[DEVICE], none), **rows}
        rows |= {
            "device": np.full(len(none), self.tables.device.index),
            "stream": self._number_streams(rows),
        }
        rows |= self._find_captures(rows["node"])
        self.tables.add(DEVICE, rows, COLUMNS[DEVICE])

    def _read_kernels(self) -> Iterator[dict[str, Ints]]:
        """Read kernels, a block at a time, under the best of the names that the file holds."""
        name = next((n for n in _NAMES if self.tables.file.has(KERNEL, n)), _NAMES[0])
        sizes = {name: name for name in SIZES}
        columns = {"registers": "registersPerThread", "node": "graphNodeId",
                  "fixed": "staticSharedMemory", "asked": "dynamicSharedMemory"}  # fmt: skip
        for rows in self.tables.events(KERNEL, name=name, **columns, **sizes):
            known = (rows["fixed"] >= 0) & (rows["asked"] >= 0)
            yield {
                **rows,
                "name": self.tables.named(rows["name"], plain_kernel, of="kernels"),
                "category": np.full(len(known), DEVICE_CATEGORIES["kernel"]),
                "grid": self.tables.sizes_of([rows[f"grid{axis}"] for axis in "XYZ"]),
                "block": self.tables.sizes_of([rows[f"block{axis}"] for axis in "XYZ"]),
                "shared_memory": np.where(known, rows["fixed"] + rows["asked"], NONE),
            }

    def _read_copies(self) -> Iterator[dict[str, Ints]]:
        """Read copies of memory, a block at a time."""
        kinds = {"copy": "copyKind", "source": "srcKind", "target": "dstKind"}
        for rows in self.tables.events(COPY, bytes="bytes", node="graphNodeId", **kinds):
            distinct = zip(*(rows[name].tolist() for name in kinds), strict=True)
            names = interned(self.tables.collect.names, [_copy_name(*kind) for kind in distinct])
            category = np.full(len(names), DEVICE_CATEGORIES["gpu_memcpy"])
            yield {**rows, "name": np.array(names, np.int64), "category": category}

    def _read_fills(self) -> Iterator[dict[str, Ints]]:
        """Read fills of memory, a block at a time."""
        for rows in self.tables.events(FILL, bytes="bytes", node="graphNodeId", memory="memKind"):
            kinds = (f"Memset ({_MEMORY.get(kind, _UNKNOWN)})" for kind in rows["memory"].tolist())
            names = interned(self.tables.collect.names, list(kinds))
            category = np.full(len(names), DEVICE_CATEGORIES["gpu_memset"])
            yield {**rows, "name": np.array(names, np.int64), "category": category}

    def _add_graphs(self) -> None:
        """Add launches of graphs whose kernels are not recorded, as one interval each."""
        known = np.sort(self.tables.device_columns("correlation")[0])
        launches = 0
        for rows in self.tables.events(GRAPH, graph="graphId"):
            alone = places_in(known, rows["correlation"]) < 0
            rows = {name: column[alone] for name, column in rows.items()}
            names = [f"{WHOLE_GRAPH}{graph}" for graph in rows["graph"].tolist()]
            launches += len(names)
            name = np.array(interned(self.tables.collect.names, names), np.int64)
            self._add_device({**rows, "name": name, "category": np.zeros(len(names), np.int64)})
        if launches:
            self.tables.caveats.append(warning("graphs-without-kernels", count=launches))

    def _add_stream_waits(self) -> None:
        """Add the times in which a stream waits for an event whose completion was recorded."""
        columns = {"process": "globalPid", "sync": "eventSyncId"}
        events = self.tables.columns(EVENTS, columns, end="timestamp", start="timestamp")
        events["process"] = processes_of(events["process"])
        known = (events["ts"] > 0) & (events["sync"] >= 0)  # 0: its completion was not recorded
        complete = {
            (process, sync): ts
            for process, sync, ts in zip(
                *(events[name][known].tolist() for name in ("process", "sync", "ts")), strict=True
            )
        }
        if not complete:
            return
        ts, dur, streams = self.tables.device_columns("ts", "dur", "stream")
        work = ts.copy(), ts + dur, streams.copy()
        for rows in self.tables.events(SYNCS, kind="syncType", sync="eventSyncId"):
            ids = zip(rows["process"].tolist(), rows["sync"].tolist(), strict=True)
            until = np.array([complete.get(key, NONE) for key in ids], np.int64)
            wanted = (rows["kind"] == _STREAM_WAITS) & (rows["ts"] != NO_TIME) & (until >= 0)
            rows, until = {name: column[wanted] for name, column in rows.items()}, until[wanted]
            called = rows["ts"] + rows["dur"]
            begin = _find_wait_begins(called, until, self._number_streams(rows), work)
            waits = begin >= 0
            rows = {name: column[waits] for name, column in rows.items()}
            name = interned(self.tables.collect.names, [_STREAM_WAIT] * len(rows["ts"]))
            none = np.full(len(name), NONE)
            rows |= {"ts": begin[waits], "dur": (until - begin)[waits], "correlation": none}
            rows |= {"name": np.array(name, np.int64), "category": np.zeros(len(name), np.int64)}
            self._add_device(rows)

    def _number_streams(self, rows: dict[str, Ints]) -> Ints:
        """Give streams of several contexts distinct numbers; those of the first context stay."""
        places = list(zip(rows["process"].tolist(), rows["context"].tolist(), strict=True))
        context = np.array(interned(self._contexts, places), np.int64)
        stream = rows["stream"]
        return np.where(stream >= 0, stream + (context << _STREAM_BITS), NONE)

    @cached_property
    def _nodes(self) -> dict[str, Ints]:
        """The nodes of graphs as they were captured, sorted by their numbers."""
        columns = {"thread": "globalTid", "node": "graphNodeId", "original": "originalGraphNodeId"}
        rows = self.tables.columns(NODES, columns, self.tables.process_filter(NODES), end="start")
        order = np.lexsort((rows["ts"], rows["node"]))
        rows = {name: column[order] for name, column in rows.items()}
        return {**rows, "thread": self.tables.threads_of(rows["thread"])}

    def _find_captures(self, node: Ints) -> dict[str, Ints]:
        """Find when and on which thread the node of each graph kernel was captured.

        A node of a graph that was made from another graph is followed to its original.
        """
        none = np.full(len(node), NONE)
        is_node = node >= 0
        if not is_node.any() or not len(self._nodes["ts"]):
            return {"captured": none, "captured_on": none}
        rows = self._nodes
        for _ in range(_CLONES):
            at = places_in(rows["node"], node)
            original = np.where(at >= 0, rows["original"][at], NONE)
            further = (
                (original >= 0) & (original != node) & (places_in(rows["node"], original) >= 0)
            )
            if not further.any():
                break
            node = np.where(further, original, node)
        at = places_in(rows["node"], node)
        known = (at >= 0) & is_node
        return {
            "captured": np.where(known, rows["ts"][at], NONE),
            "captured_on": np.where(known, rows["thread"][at], NONE),
        }

    def _note_unnamed(self) -> None:
        """Add a caveat if names of kernels are not in the file."""
        if count := self.tables.unnamed["kernels"]:
            self.tables.caveats.append(
                warning("nameless-kernels", count=count, table=STRINGS, shown=NO_NAME, again=AGAIN)
            )


def _copy_name(kind: int, source: int, target: int) -> str:
    """Return the name that kineto gives a copy."""
    ends = f"({_MEMORY.get(source, _UNKNOWN)} -> {_MEMORY.get(target, _UNKNOWN)})"
    return f"Memcpy {_COPIES.get(kind, _UNKNOWN)} {ends}"


@lru_cache(maxsize=4096)
def plain_kernel(name: str) -> str:
    """Write a kernel's name as other profilers demangle it.

    For example, `<(int)8, (bool)0>` becomes `<8, false>`.
    """
    name = name.replace("<unnamed>", "(anonymous namespace)")
    return _CAST.sub(_cpp_literal, name)


def _cpp_literal(cast: re.Match[str]) -> str:
    """Write a cast number as a literal of C++."""
    kind, number = cast[1], cast[2]
    if kind == "bool":
        return "false" if number == "0" else "true"
    return f"{number}{_LITERALS.get(kind, '')}"


def _find_wait_begins(
    called: Ints, complete: Ints, streams: Ints, work: tuple[Ints, Ints, Ints]
) -> Ints:
    """Find when each stream begins to wait, ns.

    It is NONE where the stream still works when the event is complete. The export gives the times
    of the call, which returns at once. The stream itself waits from the end of what it ran before
    until the event is complete. What begins on the stream before that was launched ahead of the
    wait, because all work behind the wait begins later.

    Args:
        called: When the call returned, ns.
        complete: When the event was complete, ns.
        streams: The stream that waits.
        work: Start (ns), end (ns) and stream of each device event.
    """
    begin = called.copy()
    start, end, on = work
    for stream in np.unique(streams).tolist():
        rows = np.flatnonzero(on == stream)
        rows = rows[np.argsort(start[rows], kind="stable")]
        waits = np.flatnonzero(streams == stream)
        before = np.searchsorted(start[rows], complete[waits], side="left") - 1
        busy_until = np.maximum.accumulate(end[rows]) if len(rows) else np.zeros(1, np.int64)
        until = np.where(before >= 0, busy_until[np.maximum(before, 0)], called[waits])
        begin[waits] = np.maximum(called[waits], until)
    return np.where(begin < complete, begin, NONE)
