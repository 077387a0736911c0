"""An SQLite export of Nsight Systems as the columns of a Chrome trace, one device at a time.

In: a file that `nsys_file` opens, and which of its devices is meant. Out: a Source and a Collector,
as of a Chrome trace, times in ns as they are recorded. Of two processes that number their launches
alike, each has ids of its own. What is about the machine and its user (paths, environment,
command lines, hosts) is in tables that are not opened.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from prunescope.analysis.trace.collect import (
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
from prunescope.analysis.trace.event import DEVICE_CATEGORIES, OVERHEAD
from prunescope.analysis.trace.nccl_calls import ENTRIES, Payloads, Row, collectives_of
from prunescope.analysis.trace.nsys_file import STRINGS, Database
from prunescope.analysis.trace.nvtx import Range, read_range
from prunescope.analysis.trace.reader import Source
from prunescope.analysis.trace.samples import kind_of_counter
from prunescope.analysis.trace.stream_waits import begins_of_waits
from prunescope.taxonomy.errors import PrunescopeError

_ACTIVITY = "CUPTI_ACTIVITY_KIND_"
_KERNEL, _COPY, _FILL, _GRAPH, _RUNTIME = (
    f"{_ACTIVITY}{kind}" for kind in ("KERNEL", "MEMCPY", "MEMSET", "GRAPH_TRACE", "RUNTIME")
)
_SAMPLES, _METRICS = "GPU_METRICS", "TARGET_INFO_GPU_METRICS"
_NODES = "CUDA_GRAPH_NODE_EVENTS"
_WAITS, _EVENTS = f"{_ACTIVITY}SYNCHRONIZATION", f"{_ACTIVITY}CUDA_EVENT"
_OVERHEADS = ("PROFILER_OVERHEAD", f"{_ACTIVITY}OVERHEAD")
_RANGES, _GPU, _GPU_OF = "NVTX_EVENTS", "TARGET_INFO_GPU", "TARGET_INFO_CUDA_DEVICE"
_WANTED = (_KERNEL, _COPY, _FILL, _GRAPH, _RUNTIME, _NODES, _RANGES, _GPU, _GPU_OF, _SAMPLES,
           _METRICS, STRINGS, _WAITS, _EVENTS, ENTRIES, *_OVERHEADS)  # fmt: skip
PROFILER, NSYS = "profiler", "Nsight Systems"  # a key and its value in the metadata
_MEMBER = "device "
_MOST_DEVICES = 1024
_PUSH_POP, _START_END = (59, 70), (60, 71)  # of ENUM_NSYS_EVENT_TYPE: NVTX ranges
_NAMES = ("demangledName", "shortName", "mangledName")  # of a kernel, the best first
# A GlobalId is a machine, a process and a thread; ids of launches have 32 bits. Where processes or
# contexts share a device, their numbers stand before those of their launches and streams.
_TID_BITS, _ID_BITS, _STREAM_BITS = 24, 33, 32
_MANY = 1_000_003  # a prime: sums of multiples of it wrap, and equal places stay equal
_NO_TIME, _MOST_TIME = -(1 << 63), 1 << 61
_MOST_ID = 1 << 62
_COUNTER_NAME = 80
_GPU_OF_TYPE = 0xFF  # the part of a type of samples that is the number of the GPU
_CLONES = 16  # times that a graph is made from another one
_NO_NAME, _UNKNOWN, _NCCL = "?", "Unknown", "nccl"
# Of ENUM_CUPTI_SYNC_TYPE, those in which the host waits, and that in which a stream does.
_HOST_WAITS = {1: "EventSynchronize", 3: "StreamSynchronize", 4: "ContextSynchronize"}
_STREAM_WAITS, _STREAM_WAIT = 2, "Stream Wait Event"
_ON_DEVICE = (*COLUMNS["device"], "process", "context")
_PLACED = ("ts", "dur", "process", "context", "stream")  # when and where something ran
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


@dataclass(frozen=True)
class _Device:
    """One GPU of a file: what its processes call it. `index`: its number among those of the
    file."""

    index: int
    names: frozenset[tuple[int, int]]  # GlobalId of a process without its thread, CUDA's number

    @property
    def numbers(self) -> str:
        """CUDA's numbers of it, as a list of SQL."""
        return ", ".join(str(number) for number in sorted({n for _, n in self.names}))

    @property
    def processes(self) -> list[int]:
        """The processes that ran on it."""
        return sorted({process for process, _ in self.names})


def devices_of(path: Path) -> list[str]:
    """The devices of a file that ran kernels, each as the `member` of `read`; empty where one did.

    Raises PrunescopeError where the file cannot be read, or holds none.
    """
    with Database(path, _WANTED) as file:
        found = _devices(file)
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
        devices = _devices(file)
        chosen = [one for one in devices if member in (None, f"{_MEMBER}{one.index}")]
        if len(chosen) != 1:
            raise PrunescopeError(
                f"{path.name} holds {len(devices)} devices, not {member or 'one'}",
                hint="give the file itself: a device of it is analysed as a rank",
            )
        reader = _Reader(file, Source(path, member), chosen[0], devices)
        reader.read()
    return reader.source, reader.collect, reader.caveats


def _devices(file: Database) -> list[_Device]:
    """The GPUs that ran kernels or graphs (copies alone, where none did), by their numbers."""
    names: set[tuple[int, int]] = set()
    for tables in ((_KERNEL, _GRAPH), (_COPY, _FILL)):
        for table in tables:
            if file.has(table, "start", "end", "deviceId"):
                blocks = file.rows(table, ("globalPid", "deviceId"), group=True)
                names |= {
                    (_process(one), number)
                    for block in blocks
                    for one, number in block
                    if type(number) is int and number >= 0
                }
        if names:
            break
    if not names:
        raise PrunescopeError(
            f"{file.path.name} holds no kernel of a GPU",
            hint="profile with `nsys profile --trace cuda,nvtx`, and export it as SQLite",
        )
    gpu_of = _gpu_of(file)
    groups: dict[tuple[int, int], set[tuple[int, int]]] = {}
    for process, number in sorted(names, key=lambda name: name[::-1]):
        gpu = gpu_of.get((_pid(process), number))
        groups.setdefault((0, number) if gpu is None else (1, gpu), set()).add((process, number))
    if len(groups) > _MOST_DEVICES:
        raise PrunescopeError(
            f"{file.path.name} holds {len(groups):,} devices, more than {_MOST_DEVICES}",
            hint="give the export of one node",
        )
    return [_Device(i, frozenset(group)) for i, group in enumerate(groups.values())]


def _process(global_id: Any) -> int:
    return global_id >> _TID_BITS if type(global_id) is int else NONE


def _gpu_of(file: Database) -> dict[tuple[int, int], int]:
    """The GPU behind what a process (its pid) calls a device, where the file says so: of two
    processes that may see one GPU each, both call it 0."""
    if not file.has(_GPU_OF, "gpuId", "cudaId", "pid"):
        return {}
    rows = (row for block in file.rows(_GPU_OF, ("pid", "cudaId", "gpuId")) for row in block)
    return {
        (pid, number): gpu
        for pid, number, gpu in rows
        if type(pid) is type(number) is type(gpu) is int
    }


class _Reader:
    """Fills a Collector with the events of one device. `caveats`: what the file lacks, as
    sentences."""

    def __init__(
        self, file: Database, source: Source, device: _Device, devices: Sequence[_Device]
    ) -> None:
        self.file, self.source, self.device = file, source, device
        self.collect = Collector()
        self.caveats: list[str] = []
        self.order = {process: i for i, process in enumerate(device.processes)}
        processes = set(device.processes)
        others = [one for one in devices if one is not device]
        self.others = frozenset(
            name for one in others for name in one.names if name[0] in processes
        )

    def read(self) -> None:
        """All tables that the file has."""
        parts = [self._kernels(), self._copies(), self._fills()]
        parts.append(self._graphs(np.concatenate([part["correlation"] for part in parts])))
        parts.append(self._stream_waits(parts))
        device = {name: np.concatenate([part.pop(name) for part in parts]) for name in _ON_DEVICE}
        del parts
        device |= {"stream": self._streams(device), **self._captures(device)}
        self._add("device", device, COLUMNS["device"])
        launched = device["correlation"]
        del device
        self._launches(launched)
        self._collectives()
        self._overhead()
        self._ranges()
        self._counters()
        self.source.meta |= {"deviceProperties": self._properties(), PROFILER: NSYS}
        if self.file.has_wal:
            self.caveats.append(
                "changes that SQLite keeps in a file beside it (-wal) were not read"
            )

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

    def _events(self, table: str, **wanted: str) -> dict[str, Ints]:
        """The events of this device in one table, with a value for every column of ours."""
        columns = {"process": "globalPid", "number": "deviceId", "context": "contextId",
                   "stream": "streamId", "correlation": "correlationId", "bytes": "bytes",
                   "node": "graphNodeId", **wanted}  # fmt: skip
        where = f'"deviceId" IN ({self.device.numbers})' if self.file.has(table, "deviceId") else ""
        rows = self._table(table, columns, where)
        rows["process"] = _shifted(rows["process"])
        pairs = np.stack((rows["process"], rows["number"]), axis=1)
        mine = np.zeros(len(pairs), bool)
        for process, number in self.device.names:
            mine |= (pairs[:, 0] == process) & (pairs[:, 1] == number)
        if not mine.all():
            rows = {name: column[mine] for name, column in rows.items()}
        rows["correlation"] = self._ids_of(rows["process"], rows["correlation"])
        rows["device"] = np.full(len(rows["ts"]), self.device.index)
        none = np.full(len(rows["ts"]), NONE)
        return {**dict.fromkeys(_ON_DEVICE, none), **rows}

    def _ids_of(self, process: Ints, correlation: Ints) -> Ints:
        """Ids of launches that no two processes of this device share."""
        if len(self.order) < 2:
            return correlation
        known = np.array(list(self.order), np.int64)  # sorted
        number = np.minimum(np.searchsorted(known, process), len(known) - 1)
        good = (known[number] == process) & (correlation >= 0) & (correlation < 1 << _ID_BITS)
        return np.where(good, correlation + (number << _ID_BITS), NONE)

    def _kernels(self) -> dict[str, Ints]:
        name = next((n for n in _NAMES if self.file.has(_KERNEL, n)), _NAMES[0])
        sizes = {f"{what}{axis}": f"{what}{axis}" for what in ("grid", "block") for axis in "XYZ"}
        shared = {"fixed": "staticSharedMemory", "asked": "dynamicSharedMemory"}
        rows = self._events(_KERNEL, name=name, registers="registersPerThread", **shared, **sizes)
        known = (rows["fixed"] >= 0) & (rows["asked"] >= 0)
        none = np.full(len(known), NONE)
        return {
            **rows,
            "name": self._named(rows["name"], plain_kernel),
            "category": np.full(len(known), DEVICE_CATEGORIES["kernel"]),
            "grid": self._sizes([rows[f"grid{axis}"] for axis in "XYZ"]),
            "block": self._sizes([rows[f"block{axis}"] for axis in "XYZ"]),
            "shared_memory": np.where(known, rows["fixed"] + rows["asked"], none),
            "bytes": none,
        }

    def _copies(self) -> dict[str, Ints]:
        rows = self._events(_COPY, copy="copyKind", source="srcKind", target="dstKind")
        kinds = zip(*(rows[name].tolist() for name in ("copy", "source", "target")), strict=True)
        names = interned(self.collect.names, [_copy_name(*kind) for kind in kinds])
        category = np.full(len(names), DEVICE_CATEGORIES["gpu_memcpy"])
        return {**rows, "name": np.array(names, np.int64), "category": category}

    def _fills(self) -> dict[str, Ints]:
        rows = self._events(_FILL, memory="memKind")
        kinds = (f"Memset ({_MEMORY.get(kind, _UNKNOWN)})" for kind in rows["memory"].tolist())
        names = interned(self.collect.names, list(kinds))
        category = np.full(len(names), DEVICE_CATEGORIES["gpu_memset"])
        return {**rows, "name": np.array(names, np.int64), "category": category}

    def _graphs(self, known: Ints) -> dict[str, Ints]:
        """Launches of graphs that were recorded as one interval each; `known`: ids of the launches
        whose kernels are there."""
        rows = self._events(_GRAPH, graph="graphId")
        alone = ~np.isin(rows["correlation"], known[known >= 0])
        rows = {name: column[alone] for name, column in rows.items()}
        names = [f"CUDA graph {graph}" for graph in rows["graph"].tolist()]
        if names:
            self.caveats.append(
                f"{len(names):,} launches of CUDA graphs are one interval each, without their "
                "kernels: profile with --cuda-graph-trace=node"
            )
        name = np.array(interned(self.collect.names, names), np.int64)
        return {**rows, "name": name, "category": np.zeros(len(names), np.int64)}

    def _stream_waits(self, parts: Sequence[dict[str, Ints]]) -> dict[str, Ints]:
        """Times in which a stream waits for an event, of events whose completion was recorded.
        `parts`: the work of the device."""
        rows = self._events(_WAITS, kind="syncType", sync="eventSyncId")
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
        ids = zip(rows["process"].tolist(), rows["sync"].tolist(), strict=True)
        until = np.array([complete.get(one, NONE) for one in ids], np.int64)
        wanted = (rows["kind"] == _STREAM_WAITS) & (rows["ts"] != _NO_TIME) & (until >= 0)
        rows, until = {name: column[wanted] for name, column in rows.items()}, until[wanted]
        work = {name: np.concatenate([part[name] for part in parts]) for name in _PLACED}
        begin = begins_of_waits(
            rows["ts"] + rows["dur"],
            until,
            _of_contexts(rows),
            (work["ts"], work["ts"] + work["dur"], _of_contexts(work)),
        )
        waits = begin >= 0
        rows = {name: column[waits] for name, column in rows.items()}
        name = interned(self.collect.names, [_STREAM_WAIT] * len(rows["ts"]))
        return {
            **rows,
            "ts": begin[waits],
            "dur": (until - begin)[waits],
            "name": np.array(name, np.int64),
            "category": np.zeros(len(name), np.int64),
            "correlation": np.full(len(name), NONE),
        }

    def _streams(self, device: dict[str, Ints]) -> Ints:
        """Streams, told apart where several contexts number theirs alike."""
        pairs = np.stack((device["process"], device["context"]), axis=1)
        contexts, which = np.unique(pairs, axis=0, return_inverse=True)
        if len(contexts) < 2:
            return device["stream"]
        return np.where(
            device["stream"] >= 0, device["stream"] + (which.ravel() << _STREAM_BITS), NONE
        )

    def _captures(self, device: dict[str, Ints]) -> dict[str, Ints]:
        """When and on which thread the node of each graph kernel was captured. A node of a graph
        that was made from another graph is followed to its original."""
        none = np.full(len(device["ts"]), NONE)
        if not (device["node"] >= 0).any() or not self.file.has(_NODES, "start", "graphNodeId"):
            return {"captured": none, "captured_on": none}
        columns = {"thread": "globalTid", "node": "graphNodeId", "original": "originalGraphNodeId"}
        rows = self._table(_NODES, columns, self._of_processes(_NODES), end="start")
        order = np.lexsort((rows["ts"], rows["node"]))
        rows = {name: column[order] for name, column in rows.items()}
        node = device["node"]
        for _ in range(_CLONES):
            at = _places(rows["node"], node)
            original = np.where(at >= 0, rows["original"][at], NONE)
            further = (original >= 0) & (original != node) & (_places(rows["node"], original) >= 0)
            if not further.any():
                break
            node = np.where(further, original, node)
        at = _places(rows["node"], node)
        thread = self._threads(rows["thread"])
        known = (at >= 0) & (device["node"] >= 0)
        return {
            "captured": np.where(known, rows["ts"][at], NONE),
            "captured_on": np.where(known, thread[at], NONE),
        }

    def _launches(self, launched: Ints) -> None:
        """The runtime calls of the processes, without launches on other devices. `launched`: ids of
        the launches of this one."""
        columns = {"thread": "globalTid", "correlation": "correlationId", "name": "nameId"}
        rows = self._table(_RUNTIME, columns, self._of_processes(_RUNTIME))
        process = _shifted(rows["thread"])
        rows["correlation"] = self._ids_of(process, rows["correlation"])
        here = ~np.isin(rows["correlation"], self._launched_elsewhere())
        rows = {name: column[here] for name, column in rows.items()}
        none = np.full(len(rows["ts"]), NONE)
        rows["thread"] = self._threads(rows["thread"])
        rows["name"] = self._named(rows["name"], _plain_call)
        self._add("launch", {**rows, "external": none, "kernel": none}, COLUMNS["launch"])
        self._waits(rows, process[here], launched)

    def _waits(self, calls: dict[str, Ints], process: Ints, launched: Ints) -> None:
        """Waits of the host for the device whose call is not in the file, as calls. They hold no
        thread: they are those of the only thread of their process that launches, where one does."""
        columns = {"process": "globalPid", "correlation": "correlationId", "kind": "syncType"}
        rows = self._table(_WAITS, columns)
        of = rows["process"] = _shifted(rows["process"])
        ids = self._ids_of(of, rows["correlation"])
        alone = np.isin(rows["kind"], list(_HOST_WAITS)) & ~np.isin(ids, calls["correlation"])
        launches = np.isin(calls["correlation"], launched)
        launches &= calls["correlation"] >= 0
        thread = np.full(len(of), NONE)
        for one in self.order:
            threads = np.unique(calls["thread"][launches & (process == one)])
            if len(threads) == 1:
                thread[of == one] = threads[0]
        rows = {name: column[alone & (thread >= 0)] for name, column in rows.items()}
        names = interned(self.collect.names, [_HOST_WAITS[i] for i in rows["kind"].tolist()])
        none = np.full(len(names), NONE)
        rows |= {"thread": thread[alone & (thread >= 0)], "name": np.array(names, np.int64)}
        rows |= {"correlation": none, "external": none, "kernel": none}
        self._add("launch", rows, COLUMNS["launch"])

    def _collectives(self) -> None:
        """What the kernels of NCCL send, where its own ranges say it."""
        payloads = Payloads(self.file)
        rows = list(self._nccl_rows(payloads)) if payloads.domains else []
        if not rows:
            return
        names = [i for name, i in self.collect.names.items() if name.startswith(_NCCL)]
        device = self.collect.tables["device"].blocks[0]
        column = {name: i for i, name in enumerate(COLUMNS["device"])}
        of_nccl = np.flatnonzero(np.isin(device[column["name"]], names))
        launches = self.collect.tables["launch"].frozen()
        order = np.argsort(launches["correlation"], kind="stable")
        at = _places(launches["correlation"][order], device[column["correlation"]][of_nccl])
        of_nccl, launch = of_nccl[at >= 0], order[at[at >= 0]]
        found = collectives_of(rows, launches["ts"][launch], launches["thread"][launch])
        for index, key in found:
            (one,) = interned(self.collect.collectives, [key])
            device[column["collective"], of_nccl[index]] = one

    def _nccl_rows(self, payloads: Payloads) -> Iterator[Row]:
        """The ranges of NCCL's functions."""
        columns = ("start", "end", "globalTid", "text", "textId", "binaryData", "jsonText")
        numbers = ", ".join(map(str, sorted(payloads.domains)))
        processes = self._of_processes(_RANGES)
        where = f'"domainId" IN ({numbers})' + (f" AND {processes}" if processes else "")
        registered: dict[int, str] = {}
        for block in self.file.rows(_RANGES, columns, where=where):
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
            rows["name"] = self._named(rows["name"], str)
            self._add(OVERHEAD, rows, COLUMNS[OVERHEAD])

    def _launched_elsewhere(self) -> Ints:
        """Ids of launches whose work ran on another device."""
        found = [np.empty(0, np.int64)]
        numbers = ", ".join(str(number) for number in sorted({n for _, n in self.others}))
        columns = {"process": "globalPid", "number": "deviceId", "correlation": "correlationId"}
        for table in (_KERNEL, _COPY, _FILL, _GRAPH) if self.others else ():
            rows = self._table(table, columns, f'"deviceId" IN ({numbers})')
            process = _shifted(rows["process"])
            pairs = zip(process.tolist(), rows["number"].tolist(), strict=True)
            there = np.array([pair in self.others for pair in pairs], bool)
            ids = self._ids_of(process, rows["correlation"])[there]
            found.append(ids[ids >= 0])
        return np.concatenate(found)

    def _of_processes(self, table: str) -> str:
        """SQL for the rows of the processes that used the device."""
        if not self.file.has(table, "globalTid") or NONE in self.order:
            return ""
        return f'("globalTid" >> {_TID_BITS}) IN ({", ".join(map(str, self.order))})'

    def _ranges(self) -> None:
        """NVTX ranges as ops and annotations."""
        columns = {"thread": "globalTid", "type": "eventType", "text_id": "textId"}
        where, registered = self._of_processes(_RANGES), dict[int, str]()
        for rows, texts in self._blocks(_RANGES, columns, where, "text"):
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
        gpu_of = _gpu_of(self.file)
        known = (gpu_of.get((_pid(process), number)) for process, number in self.device.names)
        return {gpu for gpu in known if gpu is not None}

    def _named(self, ids: Ints, plain: Callable[[str], str]) -> Ints:
        """Ids of names in the collector, from those of the file."""
        distinct, which = np.unique(ids, return_inverse=True)
        known = self.file.strings(i for i in distinct.tolist() if i >= 0)
        texts = [plain(known.get(i, _NO_NAME)) for i in distinct.tolist()]
        return np.array(interned(self.collect.names, texts), np.int64)[which.ravel()]

    def _sizes(self, axes: list[Ints]) -> Ints:
        """Ids of grids or blocks, NONE where one of the axes is not known."""
        sizes = np.stack(axes, axis=1)
        distinct, which = np.unique(sizes, axis=0, return_inverse=True)
        ids = [
            NONE if NONE in size else interned(self.collect.grids, [tuple(size)])[0]
            for size in distinct.tolist()
        ]
        return np.array(ids, np.int64)[which.ravel()]

    def _threads(self, thread: Ints) -> Ints:
        """Ids of threads in the collector."""
        distinct, which = np.unique(thread, return_inverse=True)
        keys = [divmod(one, 1 << _TID_BITS) for one in distinct.tolist()]
        return np.array(interned(self.collect.threads, keys), np.int64)[which.ravel()]

    def _properties(self) -> list[dict[str, Any]]:
        """What the file says of the GPU, under the names that kineto gives them."""
        if not self.file.has(_GPU, "id", "name"):
            return []
        mine = self._gpus()
        columns = ("id", *_PROPERTIES, "maxWarpsPerSm")
        rows = [row for block in self.file.rows(_GPU, columns) for row in block]
        known = [row for row in rows if row[0] in mine]
        if not known and len({row[1:] for row in rows}) == 1:  # of one kind all of them
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
    return np.where(global_ids >= 0, global_ids >> _TID_BITS, NONE)


def _of_contexts(rows: dict[str, Ints]) -> Ints:
    """A number for each stream of each context of a process."""
    return (rows["process"] * _MANY + rows["context"]) * _MANY + rows["stream"]


def _pid(process: int) -> int:
    """The number of a process in the system, of its GlobalId."""
    return process & ((1 << _TID_BITS) - 1)
