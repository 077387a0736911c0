"""An SQLite export of Nsight Systems as the columns of a Chrome trace, one device at a time.

In: a file that `nsys_file` opens, and which of its devices is meant. Out: a Source and a Collector,
as of a Chrome trace, times in ns as they are recorded. Of two processes that number their launches
alike, each has ids of its own. What is about the machine and its user (paths, environment,
command lines, hosts) is in tables that are not opened.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from prunescope.analysis.trace.collect import (
    COLUMNS,
    DEVICE_ROWS,
    MAX_ANNOTATION_NS,
    MAX_DEVICE_ROWS,
    MAX_EVENT_NS,
    MAX_ROWS,
    NONE,
    Collector,
    Floats,
    Ids,
    Ints,
    interned,
)
from prunescope.analysis.trace.event import DEVICE_CATEGORIES, OVERHEAD, WHOLE_GRAPH
from prunescope.analysis.trace.nccl_calls import ENTRIES, Payloads, Row, collectives_of
from prunescope.analysis.trace.nsys_devices import (
    COPY,
    FILL,
    GPU_OF,
    GRAPH,
    KERNEL,
    MOST_DEVICE,
    PLACED,
    RANGES,
    RUNTIME,
    TID_BITS,
    UNPLACED,
    WORK,
    Device,
    find_devices,
    gpus_of_processes,
    lacking_caveats,
    pid_of,
)
from prunescope.analysis.trace.nsys_file import AGAIN, STRINGS, Database
from prunescope.analysis.trace.nvtx import Range, read_range
from prunescope.analysis.trace.reader import Source
from prunescope.analysis.trace.samples import kind_of_counter
from prunescope.analysis.trace.stream_waits import begins_of_waits
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.recorder import NSYS, PROFILER

_SAMPLES, _METRICS = "GPU_METRICS", "TARGET_INFO_GPU_METRICS"
_NODES = "CUDA_GRAPH_NODE_EVENTS"
_WAITS, _EVENTS = "CUPTI_ACTIVITY_KIND_SYNCHRONIZATION", "CUPTI_ACTIVITY_KIND_CUDA_EVENT"
_OVERHEADS = ("PROFILER_OVERHEAD", "CUPTI_ACTIVITY_KIND_OVERHEAD")
_GPU = "TARGET_INFO_GPU"
_WANTED = (*WORK, RUNTIME, _NODES, RANGES, _GPU, GPU_OF, _SAMPLES, _METRICS, STRINGS, _WAITS,
           _EVENTS, ENTRIES, *_OVERHEADS)  # fmt: skip
_MEMBER = "device "
_PUSH_POP, _START_END = (59, 70), (60, 71)  # of ENUM_NSYS_EVENT_TYPE: NVTX ranges
_NAMES = ("demangledName", "shortName", "mangledName")  # of a kernel, the best first
# Ids of launches have 32 bits. Where processes or contexts share a device, their numbers stand
# before those of their launches and streams.
_ID_BITS, _STREAM_BITS = 33, 32
_NO_TIME, _MOST_TIME = -(1 << 63), 1 << 61
_MOST_ID = 1 << 62
_COUNTER_NAME = 80
_GPU_OF_TYPE = 0xFF  # the part of a type of samples that is the number of the GPU
_DEVICE = "device"
_CLONES = 16  # times that a graph is made from another one
_NO_NAME, _UNKNOWN, _NCCL = "?", "Unknown", "nccl"
# Of ENUM_CUPTI_SYNC_TYPE, those in which the host waits, and that in which a stream does.
_HOST_WAITS = {1: "EventSynchronize", 3: "StreamSynchronize", 4: "ContextSynchronize"}
_STREAM_WAITS, _STREAM_WAIT = 2, "Stream Wait Event"
# As kineto names copies; of ENUM_CUDA_MEMCPY_OPER and ENUM_CUDA_MEM_KIND.
_COPIES = {1: "HtoD", 2: "DtoH", 3: "HtoA", 4: "AtoH", 5: "AtoA", 6: "AtoD", 7: "DtoA", 8: "DtoD",
           9: "HtoH", 10: "PtoP", 11: "HtoD", 12: "DtoH", 13: "DtoD"}  # fmt: skip
_MEMORY = {0: "Pageable", 1: "Pinned", 2: "Device", 3: "Array", 4: "Managed", 5: "Device Static",
           6: "Managed Static"}  # fmt: skip
_PROPERTIES = {
    "name": "name", "computeMajor": "computeMajor", "computeMinor": "computeMinor",
    "smCount": "numSms", "maxThreadsPerBlock": "maxThreadsPerBlock", "threadsPerWarp": "warpSize",
    "maxRegistersPerSm": "regsPerMultiprocessor", "maxShmemPerSm": "sharedMemPerMultiprocessor",
    "maxShmemPerBlockOptin": "sharedMemPerBlockOptin", "totalMemory": "totalGlobalMem",
}  # fmt: skip
_NCCL_CALL = re.compile(r"nccl\w{1,40}", re.ASCII)
_VERSION = re.compile(r"_v\d{4,5}$")
_CAST = re.compile(r"\(((?:unsigned |signed )?(?:bool|char|short|int|long long|long))\)(-?\d+)")
_LITERALS = {"unsigned int": "u", "long": "l", "unsigned long": "ul", "long long": "ll",
             "unsigned long long": "ull"}  # fmt: skip


def devices_of(path: Path) -> list[str]:
    """The devices of a file that ran kernels, each as the `member` of `read`; empty where one did.

    Raises PrunescopeError where the file cannot be read, or holds none.
    """
    with Database(path, _WANTED) as file:
        found = find_devices(file)
    return [f"{_MEMBER}{device.index}" for device in found] if len(found) > 1 else []


def device_number(member: str) -> int | None:
    """The number of a device in its file, of a `member`."""
    number = member.removeprefix(_MEMBER)
    return int(number) if number.isdecimal() and number != member else None


def read(path: Path, member: str | None) -> tuple[Source, Collector, list[str]]:
    """The events of one device and of the processes that used it, and caveats as sentences.

    Raises PrunescopeError where the file cannot be read, or lacks the device.
    """
    with Database(path, _WANTED) as file:
        devices = find_devices(file)
        chosen = [one for one in devices if member in (None, f"{_MEMBER}{one.index}")]
        if len(chosen) != 1:
            raise PrunescopeError(
                f"{path.name} holds {len(devices)} devices, not {member or 'one'}",
                hint="give the file itself: a device of it is analysed as a rank",
            )
        reader = _Reader(file, Source(path, member), chosen[0], devices)
        reader.read()
    return reader.source, reader.collect, reader.caveats


class _Reader:
    """Fills a Collector with the events of one device. `caveats`: what the file lacks, as
    sentences."""

    def __init__(
        self, file: Database, source: Source, device: Device, devices: Sequence[Device]
    ) -> None:
        self.file, self.source, self.device = file, source, device
        self.collect = Collector()
        self.caveats: list[str] = []
        self._contexts: Ids[tuple[int, int]] = Ids()
        self._strings: dict[int, str | None] = {}
        self._unnamed: Counter[str] = Counter()
        known = [process for process in device.processes if process != NONE]
        self.order = {process: i for i, process in enumerate(known)}
        processes = set(device.processes)
        others = [one for one in devices if one is not device]
        # Numbers that no other device has: of them a row needs no process.
        self.alone = {n for _, n in device.names} - {n for one in others for _, n in one.names}
        self.others = frozenset(
            name for one in others for name in one.names if name[0] in processes
        )

    def read(self) -> None:
        """All tables that the file has."""
        self.caveats += lacking_caveats(self.file)
        self.collect.tables[_DEVICE].reserve(self._device_rows())
        for rows in self._work():
            self._add_device(rows)
        self._graphs()
        self._stream_waits()
        self._say_unnamed()
        self._launches()
        self._say_unlaunched()
        self._collectives()
        self._overhead()
        self._ranges()
        self._counters()
        self.source.meta |= {"deviceProperties": self._properties(), PROFILER: NSYS}
        if self.file.has_wal:
            self.caveats.append(
                "changes that SQLite keeps in a file next to it (-wal) were not read"
            )

    def _device_rows(self) -> int:
        """How many rows of the device's work there are at most. Those that name no device are
        counted apart."""
        tables = _placed(self.file)
        self.collect.unplaced = sum(self.file.count(table, UNPLACED) for table in tables)
        of_device = f'"deviceId" IN ({self.device.numbers})'
        work = sum(self.file.count(table, of_device) for table in tables)
        if work > MAX_DEVICE_ROWS:
            raise self.source.error(
                f"it holds {work:,} {DEVICE_ROWS} of one device, more than {MAX_DEVICE_ROWS:,}",
                "profile fewer steps: three say as much as a thousand (`nsys profile` takes "
                "--delay and --duration in seconds, or --capture-range)",
            )
        return work + self.file.count(_WAITS)

    def _so_far(self, *names: str) -> list[Ints]:
        """Columns of the device's work as far as it was read; what is written into them stays."""
        table = self.collect.tables[_DEVICE].together()
        return [table[COLUMNS[_DEVICE].index(name)] for name in names]

    def _add_device(self, rows: dict[str, Ints]) -> None:
        """Work of the device into its table."""
        none = np.full(len(rows["ts"]), NONE)
        rows = {**dict.fromkeys(COLUMNS[_DEVICE], none), **rows}
        rows |= {"device": np.full(len(none), self.device.index), "stream": self._streams(rows)}
        rows |= self._captured(rows["node"])
        self._add(_DEVICE, rows, COLUMNS[_DEVICE])

    def _add(self, group: str, columns: dict[str, Ints], names: Sequence[str]) -> None:
        """Rows with a time into a table of the collector."""
        most = MAX_ANNOTATION_NS if group == "annotation" else MAX_EVENT_NS
        kept = (columns["ts"] != _NO_TIME) & (columns["dur"] >= 0) & (columns["dur"] <= most)
        self.collect.dropped[group] += int((~kept).sum())
        wanted = [columns[name] for name in names]
        self.collect.tables[group].add(*(wanted if kept.all() else (one[kept] for one in wanted)))

    def _table(
        self,
        table: str,
        wanted: dict[str, str],
        where: str = "",
        end: str = "end",
        start: str = "start",
    ) -> dict[str, Ints]:
        """Columns of a table under our names; `ts` and `dur` of its start and end."""
        found: dict[str, list[Ints]] = {
            name: [np.empty(0, np.int64)] for name in ("ts", "dur", *wanted)
        }
        rows = 0
        for columns, _ in self._blocks(table, wanted, where, end=end, start=start):
            for name, column in columns.items():
                found[name].append(column)
            rows += len(columns["ts"])
            self._refuse_too_many(rows)
        return {name: np.concatenate(found.pop(name)) for name in list(found)}

    def _blocks(
        self,
        table: str,
        wanted: dict[str, str],
        where: str = "",
        text: str | None = None,
        end: str = "end",
        start: str = "start",
    ) -> Iterator[tuple[dict[str, Ints], Sequence[Any]]]:
        """The same a block at a time, and the column `text` as it is."""
        if not self.file.has(table, start, end):
            return
        read = (start, end, *wanted.values(), *([] if text is None else [text]))
        for block in self.file.rows(table, read, where=where):
            starts, ends, *values = zip(*block, strict=True)
            ts, until = _times(starts), _times(ends)
            both = (ts != _NO_TIME) & (until != _NO_TIME)
            columns = {
                "ts": np.where(both, ts, _NO_TIME),
                "dur": np.where(both, until - ts, NONE),
                **{name: _ids(value) for name, value in zip(wanted, values, strict=False)},
            }
            yield columns, () if text is None else values[-1]

    def _refuse_too_many(self, rows: int) -> None:
        if rows > MAX_ROWS:
            raise self.source.error(
                f"one of its tables holds more than {MAX_ROWS:,} events",
                "capture fewer steps: three say as much as a thousand",
            )

    def _events(self, table: str, **wanted: str) -> Iterator[dict[str, Ints]]:
        """The events of this device in one table, a block at a time."""
        columns = {"process": "globalPid", "number": "deviceId", "context": "contextId",
                   "stream": "streamId", "correlation": "correlationId", **wanted}  # fmt: skip
        where = f'"deviceId" IN ({self.device.numbers})'
        for rows, _ in self._blocks(table, columns, where if table in WORK else ""):
            rows["process"] = _shifted(rows["process"])
            mine = np.zeros(len(rows["ts"]), bool)
            for process, number in self.device.names:
                of_number = rows["number"] == number
                unknown = (process == NONE) | ((rows["process"] == NONE) & (number in self.alone))
                mine |= of_number & ((rows["process"] == process) | unknown)
            if not mine.all():
                rows = {name: column[mine] for name, column in rows.items()}
            rows["correlation"] = self._ids_of(rows["process"], rows["correlation"])
            yield rows

    def _ids_of(self, process: Ints, correlation: Ints) -> Ints:
        """Ids of launches that no two processes of this device share."""
        if len(self.order) < 2:
            return correlation
        known = np.array(list(self.order), np.int64)  # sorted
        number = np.minimum(np.searchsorted(known, process), len(known) - 1)
        good = (known[number] == process) & (correlation >= 0) & (correlation < 1 << _ID_BITS)
        return np.where(good, correlation + (number << _ID_BITS), NONE)

    def _work(self) -> Iterator[dict[str, Ints]]:
        """Kernels, copies and fills of the device, a block at a time."""
        yield from self._kernels()
        yield from self._copies()
        yield from self._fills()

    def _kernels(self) -> Iterator[dict[str, Ints]]:
        name = next((n for n in _NAMES if self.file.has(KERNEL, n)), _NAMES[0])
        sizes = {f"{what}{axis}": f"{what}{axis}" for what in ("grid", "block") for axis in "XYZ"}
        others = {"registers": "registersPerThread", "node": "graphNodeId",
                  "fixed": "staticSharedMemory", "asked": "dynamicSharedMemory"}  # fmt: skip
        for rows in self._events(KERNEL, name=name, **others, **sizes):
            known = (rows["fixed"] >= 0) & (rows["asked"] >= 0)
            yield {
                **rows,
                "name": self._named(rows["name"], plain_kernel, of="kernels"),
                "category": np.full(len(known), DEVICE_CATEGORIES["kernel"]),
                "grid": self._sizes([rows[f"grid{axis}"] for axis in "XYZ"]),
                "block": self._sizes([rows[f"block{axis}"] for axis in "XYZ"]),
                "shared_memory": np.where(known, rows["fixed"] + rows["asked"], NONE),
            }

    def _copies(self) -> Iterator[dict[str, Ints]]:
        kinds = {"copy": "copyKind", "source": "srcKind", "target": "dstKind"}
        for rows in self._events(COPY, bytes="bytes", node="graphNodeId", **kinds):
            distinct = zip(*(rows[name].tolist() for name in kinds), strict=True)
            names = interned(self.collect.names, [_copy_name(*kind) for kind in distinct])
            category = np.full(len(names), DEVICE_CATEGORIES["gpu_memcpy"])
            yield {**rows, "name": np.array(names, np.int64), "category": category}

    def _fills(self) -> Iterator[dict[str, Ints]]:
        for rows in self._events(FILL, bytes="bytes", node="graphNodeId", memory="memKind"):
            kinds = (f"Memset ({_MEMORY.get(kind, _UNKNOWN)})" for kind in rows["memory"].tolist())
            names = interned(self.collect.names, list(kinds))
            category = np.full(len(names), DEVICE_CATEGORIES["gpu_memset"])
            yield {**rows, "name": np.array(names, np.int64), "category": category}

    def _graphs(self) -> None:
        """Launches of graphs that were recorded as one interval each: those whose kernels are not
        there."""
        known = np.sort(self._so_far("correlation")[0])
        launches = 0
        for rows in self._events(GRAPH, graph="graphId"):
            alone = _places(known, rows["correlation"]) < 0
            rows = {name: column[alone] for name, column in rows.items()}
            names = [f"{WHOLE_GRAPH}{graph}" for graph in rows["graph"].tolist()]
            launches += len(names)
            name = np.array(interned(self.collect.names, names), np.int64)
            self._add_device({**rows, "name": name, "category": np.zeros(len(names), np.int64)})
        if launches:
            self.caveats.append(
                f"{launches:,} launches of CUDA graphs are one interval each, without their "
                "kernels: profile with --cuda-graph-trace=node"
            )

    def _stream_waits(self) -> None:
        """Times in which a stream waits for an event, of events whose completion was recorded."""
        columns = {"process": "globalPid", "sync": "eventSyncId"}
        events = self._table(_EVENTS, columns, end="timestamp", start="timestamp")
        events["process"] = _shifted(events["process"])
        known = (events["ts"] > 0) & (events["sync"] >= 0)  # 0: its completion was not recorded
        complete = {
            (process, sync): ts
            for process, sync, ts in zip(
                *(events[name][known].tolist() for name in ("process", "sync", "ts")), strict=True
            )
        }
        if not complete:
            return
        ts, dur, streams = self._so_far("ts", "dur", "stream")
        work = ts.copy(), ts + dur, streams.copy()
        for rows in self._events(_WAITS, kind="syncType", sync="eventSyncId"):
            ids = zip(rows["process"].tolist(), rows["sync"].tolist(), strict=True)
            until = np.array([complete.get(one, NONE) for one in ids], np.int64)
            wanted = (rows["kind"] == _STREAM_WAITS) & (rows["ts"] != _NO_TIME) & (until >= 0)
            rows, until = {name: column[wanted] for name, column in rows.items()}, until[wanted]
            called = rows["ts"] + rows["dur"]
            begin = begins_of_waits(called, until, self._streams(rows), work)
            waits = begin >= 0
            rows = {name: column[waits] for name, column in rows.items()}
            name = interned(self.collect.names, [_STREAM_WAIT] * len(rows["ts"]))
            none = np.full(len(name), NONE)
            rows |= {"ts": begin[waits], "dur": (until - begin)[waits], "correlation": none}
            rows |= {"name": np.array(name, np.int64), "category": np.zeros(len(name), np.int64)}
            self._add_device(rows)

    def _streams(self, rows: dict[str, Ints]) -> Ints:
        """Streams, told apart where several contexts number theirs alike: those of the first
        context keep their numbers."""
        places = list(zip(rows["process"].tolist(), rows["context"].tolist(), strict=True))
        context = np.array(interned(self._contexts, places), np.int64)
        stream = rows["stream"]
        return np.where(stream >= 0, stream + (context << _STREAM_BITS), NONE)

    @cached_property
    def _nodes(self) -> dict[str, Ints]:
        """The nodes of graphs as they were captured, by their numbers."""
        columns = {"thread": "globalTid", "node": "graphNodeId", "original": "originalGraphNodeId"}
        rows = self._table(_NODES, columns, self._of_processes(_NODES), end="start")
        order = np.lexsort((rows["ts"], rows["node"]))
        rows = {name: column[order] for name, column in rows.items()}
        return {**rows, "thread": self._threads(rows["thread"])}

    def _captured(self, node: Ints) -> dict[str, Ints]:
        """When and on which thread the node of each graph kernel was captured. A node of a graph
        that was made from another graph is followed to its original."""
        none = np.full(len(node), NONE)
        is_node = node >= 0
        if not is_node.any() or not len(self._nodes["ts"]):
            return {"captured": none, "captured_on": none}
        rows = self._nodes
        for _ in range(_CLONES):
            at = _places(rows["node"], node)
            original = np.where(at >= 0, rows["original"][at], NONE)
            further = (original >= 0) & (original != node) & (_places(rows["node"], original) >= 0)
            if not further.any():
                break
            node = np.where(further, original, node)
        at = _places(rows["node"], node)
        known = (at >= 0) & is_node
        return {
            "captured": np.where(known, rows["ts"][at], NONE),
            "captured_on": np.where(known, rows["thread"][at], NONE),
        }

    def _launches(self) -> None:
        """The runtime calls of the processes, without launches of work that is not in the table of
        this device."""
        columns = {"thread": "globalTid", "correlation": "correlationId", "name": "nameId"}
        elsewhere = self._launched_elsewhere()
        where = self._of_processes(RUNTIME)
        calls = self.file.count(RUNTIME, where)
        self._refuse_too_many(calls)
        self.collect.tables["launch"].reserve(calls)
        for rows, _ in self._blocks(RUNTIME, columns, where):
            ids = self._ids_of(_shifted(rows["thread"]), rows["correlation"])
            here = _places(elsewhere, ids) < 0
            rows = {name: column[here] for name, column in rows.items()}
            none = np.full(len(rows["ts"]), NONE)
            rows |= {"correlation": ids[here], "external": none, "kernel": none}
            rows["thread"] = self._threads(rows["thread"])
            rows["name"] = self._named(rows["name"], _plain_call, of="calls of CUDA")
            self._add("launch", rows, COLUMNS["launch"])
        if self.file.count(_WAITS, f'"syncType" IN ({", ".join(map(str, _HOST_WAITS))})'):
            self._waits()

    def _say_unlaunched(self) -> None:
        """A caveat where nothing that ran has its launch in the file."""
        (ids,) = self._so_far("correlation")
        called = np.sort(self.collect.tables["launch"].frozen()["correlation"])
        if len(ids) and not (_places(called, ids) >= 0).any():
            self.caveats.append(
                f"none of its {len(ids):,} {DEVICE_ROWS} has its launch in the file: which step, "
                "op or layer they are of is unknown, and all of it counts as one step (calls of "
                "CUDA are recorded by `nsys profile --trace cuda`)"
            )

    def _waits(self) -> None:
        """Waits of the host for the device whose call is not in the file, as calls. They hold no
        thread: they are those of the only thread of their process that launches, where one does."""
        calls = self.collect.tables["launch"].frozen()
        called = np.sort(calls["correlation"])
        launched = np.sort(self._so_far("correlation")[0])
        launching = np.unique(calls["thread"][_places(launched, calls["correlation"]) >= 0])
        threads = list(self.collect.threads)
        of_process: dict[int, list[int]] = {}
        for one in launching.tolist():
            of_process.setdefault(threads[one][0], []).append(one)
        columns = {"process": "globalPid", "correlation": "correlationId", "kind": "syncType"}
        for rows, _ in self._blocks(_WAITS, columns):
            process = _shifted(rows["process"])
            ids = self._ids_of(process, rows["correlation"])
            found = (of_process.get(one, ()) for one in process.tolist())
            thread = np.array([f[0] if len(f) == 1 else NONE for f in found], np.int64)
            alone = np.isin(rows["kind"], list(_HOST_WAITS)) & (thread >= 0)
            alone &= _places(called, ids) < 0
            rows = {name: column[alone] for name, column in rows.items()}
            names = interned(self.collect.names, [_HOST_WAITS[i] for i in rows["kind"].tolist()])
            none = np.full(len(names), NONE)
            rows |= {"thread": thread[alone], "name": np.array(names, np.int64)}
            rows |= {"correlation": none, "external": none, "kernel": none}
            self._add("launch", rows, COLUMNS["launch"])

    def _collectives(self) -> None:
        """What the kernels of NCCL send, where its own ranges say it."""
        payloads = Payloads(self.file)
        rows = list(self._nccl_rows(payloads)) if payloads.domains else []
        if not rows:
            return
        names = [i for name, i in self.collect.names.items() if name.startswith(_NCCL)]
        name, correlation, collective = self._so_far("name", "correlation", "collective")
        of_nccl = np.flatnonzero(np.isin(name, names))
        launches = self.collect.tables["launch"].frozen()
        order = np.argsort(launches["correlation"], kind="stable")
        at = _places(launches["correlation"][order], correlation[of_nccl])
        of_nccl, launch = of_nccl[at >= 0], order[at[at >= 0]]
        found = collectives_of(rows, launches["ts"][launch], launches["thread"][launch])
        for index, key in found:
            (one,) = interned(self.collect.collectives, [key])
            collective[of_nccl[index]] = one

    def _nccl_rows(self, payloads: Payloads) -> Iterator[Row]:
        """The ranges of NCCL's functions."""
        columns = ("start", "end", "globalTid", "text", "textId", "binaryData", "jsonText")
        numbers = ", ".join(map(str, sorted(payloads.domains)))
        processes = self._of_processes(RANGES)
        where = f'"domainId" IN ({numbers})' + (f" AND {processes}" if processes else "")
        registered: dict[int, str] = {}
        for block in self.file.rows(RANGES, columns, where=where):
            new = {row[4] for row in block if type(row[4]) is int} - registered.keys()
            registered |= {**dict.fromkeys(new, ""), **self.file.strings(new)}
            thread = self._threads(_ids([row[2] for row in block]))
            for i, (start, end, _, text, text_id, binary, plain) in enumerate(block):
                name = text if isinstance(text, str) and text else registered.get(text_id, "")
                if type(start) is type(end) is int and _NCCL_CALL.fullmatch(name):
                    yield Row(start, end, int(thread[i]), name, payloads.fields(binary, plain))

    def _overhead(self) -> None:
        """What the profiler and the driver did beside the program."""
        for table in _OVERHEADS:
            columns = {"thread": "globalTid", "name": "nameId"}
            rows = self._table(table, columns, self._of_processes(table))
            rows["thread"] = self._threads(rows["thread"])
            rows["name"] = self._named(rows["name"], str, of="overheads of the profiler")
            self._add(OVERHEAD, rows, COLUMNS[OVERHEAD])

    def _launched_elsewhere(self) -> Ints:
        """Ids of launches whose work ran on another device, or names none, in order."""
        found = [np.empty(0, np.int64)]
        numbers = ", ".join(str(number) for number in sorted({n for _, n in self.others}))
        columns = {"process": "globalPid", "number": "deviceId", "correlation": "correlationId"}
        for table in _placed(self.file) if self.others or self.collect.unplaced else ():
            where = f'"deviceId" IN ({numbers}) OR {UNPLACED}'
            for rows, _ in self._blocks(table, columns, where):
                process = _shifted(rows["process"])
                pairs = zip(process.tolist(), rows["number"].tolist(), strict=True)
                there = [
                    not 0 <= number < MOST_DEVICE or (one, number) in self.others
                    for one, number in pairs
                ]
                ids = self._ids_of(process, rows["correlation"])[np.array(there, bool)]
                found.append(ids[ids >= 0])
        return np.sort(np.concatenate(found))

    def _of_processes(self, table: str) -> str:
        """SQL for the rows of the processes that used the device."""
        if not self.file.has(table, "globalTid") or NONE in self.device.processes:
            return ""
        return f'("globalTid" >> {TID_BITS}) IN ({", ".join(map(str, self.order))})'

    def _ranges(self) -> None:
        """NVTX ranges as ops and annotations."""
        columns = {"thread": "globalTid", "type": "eventType", "text_id": "textId"}
        where, registered = self._of_processes(RANGES), dict[int, str]()
        rows_there = self.file.count(RANGES, where)
        self._refuse_too_many(rows_there)
        for group in ("op", "annotation"):
            self.collect.tables[group].reserve(rows_there)
        for rows, texts in self._blocks(RANGES, columns, where, "text"):
            nested = np.isin(rows["type"], (*_PUSH_POP, NONE))
            kept = np.flatnonzero((nested | np.isin(rows["type"], _START_END)) & (rows["dur"] >= 0))
            ids = rows["text_id"].tolist()
            new = {i for i in ids if i >= 0} - registered.keys()
            registered |= {**dict.fromkeys(new, ""), **self.file.strings(new)}
            words = (texts[i] or registered.get(ids[i], "") for i in kept.tolist())
            ranges = [read_range(text if isinstance(text, str) else "") for text in words]
            rows = {name: column[kept] for name, column in rows.items()}
            rows["thread"] = self._threads(rows["thread"])
            ops = zip(ranges, nested[kept], strict=True)
            self._add_ops(rows, [one if inside else None for one, inside in ops])
            named = np.array([bool(one.name) for one in ranges], bool)
            names = interned(self.collect.names, [one.name for one in ranges if one.name])
            notes = {name: column[named] for name, column in rows.items()}
            notes |= {"name": np.array(names, np.int64), "module": np.zeros(len(names), np.int64)}
            self._add("annotation", notes, COLUMNS["annotation"])

    def _add_ops(self, rows: dict[str, Ints], ranges: list[Range | None]) -> None:
        which = [i for i, one in enumerate(ranges) if one is not None and one.op]
        found = [one for one in ranges if one is not None and one.op]
        ops = {name: rows[name][which] for name in ("ts", "dur", "thread")}
        calls = [(one.op, one.sizes.encode(), b"", b"", b"") for one in found]
        ops |= {
            "name": np.array(interned(self.collect.names, [one.op for one in found]), np.int64),
            "external": np.array([one.op_id for one in found], np.int64),
            "call": np.array(interned(self.collect.calls, calls), np.int64),
            "sequence": np.array([one.sequence for one in found], np.int64),
        }
        self._add("op", ops, COLUMNS["op"])

    def _counters(self) -> None:
        """Samples of the device's counters, of those that say how busy its parts are."""
        if not self.file.has(_METRICS, "typeId", "metricId", "metricName"):
            return
        gpu = next(iter(self._gpus()), None)
        rows = (
            row for b in self.file.rows(_METRICS, ("typeId", "metricId", "metricName")) for row in b
        )
        named: dict[tuple[int, int], str] = {}
        for kind, metric, name in rows:
            if (
                type(kind) is type(metric) is int
                and isinstance(name, str)
                and kind_of_counter(name)
            ):
                named[kind, metric] = name[:_COUNTER_NAME]
        kinds = {kind for kind, _ in named if gpu is None or kind & _GPU_OF_TYPE == gpu}
        if len(kinds) != 1 or not self.file.has(_SAMPLES, "timestamp", "typeId", "value"):
            return  # samples of several devices, and nothing says which is this one
        kind = kinds.pop()
        found: dict[int, tuple[list[Ints], list[Floats]]] = {}
        read = ("timestamp", "metricId", "value")
        for block in self.file.rows(_SAMPLES, read, where=f'"typeId" = {kind}'):
            times, metrics, values = zip(*block, strict=True)
            ts, metric, value = _times(times), _ids(metrics), _numbers(values)
            for one in np.unique(metric).tolist():
                if (kind, one) in named:
                    mine = (metric == one) & (ts != _NO_TIME) & np.isfinite(value)
                    into = found.setdefault(one, ([], []))
                    into[0].append(ts[mine])
                    into[1].append(value[mine])
        for one, (times_of, values_of) in found.items():
            both = np.concatenate(times_of), np.concatenate(values_of)
            self.collect.counters[named[kind, one]] = both

    def _gpus(self) -> set[int]:
        """Numbers of the GPU behind the device, where the file says them."""
        gpu_of = gpus_of_processes(self.file)
        known = (gpu_of.get((pid_of(process), number)) for process, number in self.device.names)
        return {gpu for gpu in known if gpu is not None}

    def _named(self, ids: Ints, plain: Callable[[str], str], of: str) -> Ints:
        """Ids of names in the collector, from those of the file. Rows whose name is not in the file
        are counted: `of` what they are."""
        distinct, which = np.unique(ids, return_inverse=True)
        new = [i for i in distinct.tolist() if i not in self._strings]
        known = self.file.strings(i for i in new if i >= 0)
        self._strings |= {i: known.get(i) for i in new}
        texts = [self._strings[i] for i in distinct.tolist()]
        unnamed = np.array([text is None for text in texts], bool)[which.ravel()]
        self._unnamed[of] += int(unnamed.sum())
        plain_texts = [_NO_NAME if text is None else plain(text) for text in texts]
        return np.array(interned(self.collect.names, plain_texts), np.int64)[which.ravel()]

    def _say_unnamed(self) -> None:
        """A caveat where names of kernels are not in the file."""
        if count := self._unnamed["kernels"]:
            self.caveats.append(
                f"{count:,} of its kernels have no name in the file ({STRINGS}): they are shown "
                f"as {_NO_NAME}, and what they do is unknown; {AGAIN}"
            )

    def _sizes(self, axes: list[Ints]) -> Ints:
        """Ids of grids or blocks, NONE where one of the axes is not known."""
        known = np.all([axis >= 0 for axis in axes], axis=0)
        sizes = list(zip(*(axis[known].tolist() for axis in axes), strict=True))
        out = np.full(len(known), NONE)
        out[known] = interned(self.collect.grids, sizes)
        return out

    def _threads(self, thread: Ints) -> Ints:
        """Ids of threads in the collector."""
        distinct, which = np.unique(thread, return_inverse=True)
        keys = [divmod(one, 1 << TID_BITS) for one in distinct.tolist()]
        return np.array(interned(self.collect.threads, keys), np.int64)[which.ravel()]

    def _of_number(self, rows: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
        """Those of the GPUs that CUDA calls as it calls the device, in a file that maps no numbers
        of processes to GPUs: by `cuDevice` where it is written, else by their ids."""
        numbers = {number for _, number in self.device.names}
        if gpus_of_processes(self.file) or len(numbers) != 1:
            return []
        by_cuda = {row[-1] for row in rows if type(row[-1]) is int}
        at = -1 if len(by_cuda) == len(rows) else 0
        return [row for row in rows if type(row[at]) is int and row[at] in numbers]

    def _properties(self) -> list[dict[str, Any]]:
        """What the file says of the GPU, under the names that kineto gives them."""
        if not self.file.has(_GPU, "id", "name"):
            return []
        mine = self._gpus()
        columns = ("id", *_PROPERTIES, "maxWarpsPerSm", "cuDevice")
        rows = [row for block in self.file.rows(_GPU, columns) for row in block]
        known = [row for row in rows if row[0] in mine] or self._of_number(rows)
        if not known and len({row[1:-1] for row in rows}) == 1:  # of one kind all of them
            known = rows
        if not known or not isinstance(known[0][1], str):
            return []
        values = dict(zip(columns, known[0], strict=True))
        found = {
            key: value
            for column, key in _PROPERTIES.items()
            if type(value := values[column]) is int or column == "name"
        }
        threads, warps = values["threadsPerWarp"], values["maxWarpsPerSm"]
        if type(threads) is type(warps) is int:
            found["maxThreadsPerMultiprocessor"] = threads * warps
        return [{"id": self.device.index, **found}]


def _copy_name(kind: int, source: int, target: int) -> str:
    """As kineto names a copy."""
    ends = f"({_MEMORY.get(source, _UNKNOWN)} -> {_MEMORY.get(target, _UNKNOWN)})"
    return f"Memcpy {_COPIES.get(kind, _UNKNOWN)} {ends}"


def _plain_call(name: str) -> str:
    """The name of a call without the version of CUDA that it is of."""
    return _VERSION.sub("", name)


@lru_cache(maxsize=4096)
def plain_kernel(name: str) -> str:
    """A kernel's name as other profilers demangle it: `<(int)8, (bool)0>` is `<8, false>`."""
    name = name.replace("<unnamed>", "(anonymous namespace)")
    return _CAST.sub(_literal, name)


def _literal(found: re.Match[str]) -> str:
    kind, number = found[1], found[2]
    if kind == "bool":
        return "false" if number == "0" else "true"
    return f"{number}{_LITERALS.get(kind, '')}"


def _times(values: Sequence[Any]) -> Ints:
    """Times in ns, _NO_TIME for what is none."""
    if set(map(type, values)) != {int}:
        values = [value if type(value) is int else _NO_TIME for value in values]
    ns = np.array(values, np.int64)
    return np.where(np.abs(ns) < _MOST_TIME, ns, _NO_TIME)


def _ids(values: Sequence[Any]) -> Ints:
    """Ids and sizes, NONE for what is none."""
    if set(map(type, values)) != {int}:
        values = [value if type(value) is int else NONE for value in values]
    found = np.array(values, np.int64)
    return np.where((found >= 0) & (found < _MOST_ID), found, NONE)


def _places(ordered: Ints, wanted: Ints) -> Ints:
    """Where each value is first in an ordered column; NONE for one that is not."""
    if not len(ordered):
        return np.full(len(wanted), NONE)
    at = np.minimum(np.searchsorted(ordered, wanted), len(ordered) - 1)
    return np.where((ordered[at] == wanted) & (wanted >= 0), at, NONE)


def _numbers(values: Sequence[Any]) -> Floats:
    """Numbers, NaN for what is none."""
    plain = (float(value) if type(value) in (int, float) else np.nan for value in values)
    return np.fromiter(plain, np.float64, len(values))


def _shifted(global_ids: Ints) -> Ints:
    """The processes of GlobalIds."""
    return np.where(global_ids >= 0, global_ids >> TID_BITS, NONE)


def _placed(file: Database) -> list[str]:
    """The tables of work of GPUs that say on which device it ran."""
    return [table for table in WORK if file.has(table, *PLACED)]
