"""Writes databases as `nsys export --type sqlite` does, from the events of a Chrome trace.

In: a loaded Trace. Out: `write`, the database; `chrome_of`, a Chrome trace with what the database
can hold, so that the reports of both must be equal. A database cannot hold: number formats, strides
and values of an op's inputs; lists of tensors, which it flattens; ids that tie a launch to its op;
nn.Module calls and Python frames; whether a range without a namespace is an op or an annotation;
names of copies on other GPUs than NVIDIA's; metadata of the trace but the device's properties.
Nor does `write` fill what an export holds only where it was asked for: times at which events were
complete on the device (by which a stream's waits are told), payloads of NCCL, samples of counters.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from prunescope.analysis.trace.nvtx import read_range
from prunescope.analysis.trace.trace_columns import Trace

PROCESS = (1 << 24) | 77  # a GlobalId without its thread: machine 1, process 77
TABLES = {
    "StringIds": "id INTEGER NOT NULL PRIMARY KEY, value TEXT NOT NULL",
    "CUPTI_ACTIVITY_KIND_KERNEL": """start INTEGER NOT NULL, end INTEGER NOT NULL,
        deviceId INTEGER NOT NULL, contextId INTEGER NOT NULL, greenContextId INTEGER,
        streamId INTEGER NOT NULL, correlationId INTEGER, globalPid INTEGER,
        demangledName INTEGER NOT NULL, shortName INTEGER NOT NULL, mangledName INTEGER,
        launchType INTEGER, cacheConfig INTEGER, registersPerThread INTEGER NOT NULL,
        gridX INTEGER NOT NULL, gridY INTEGER NOT NULL, gridZ INTEGER NOT NULL,
        blockX INTEGER NOT NULL, blockY INTEGER NOT NULL, blockZ INTEGER NOT NULL,
        staticSharedMemory INTEGER NOT NULL, dynamicSharedMemory INTEGER NOT NULL,
        localMemoryPerThread INTEGER NOT NULL, localMemoryTotal INTEGER NOT NULL,
        gridId INTEGER NOT NULL, sharedMemoryExecuted INTEGER, graphNodeId INTEGER,
        sharedMemoryLimitConfig INTEGER""",
    "CUPTI_ACTIVITY_KIND_MEMCPY": """start INTEGER NOT NULL, end INTEGER NOT NULL,
        deviceId INTEGER NOT NULL, contextId INTEGER NOT NULL, greenContextId INTEGER,
        streamId INTEGER NOT NULL, correlationId INTEGER, globalPid INTEGER,
        bytes INTEGER NOT NULL, copyKind INTEGER NOT NULL, deprecatedSrcId INTEGER,
        srcKind INTEGER, dstKind INTEGER, graphNodeId INTEGER""",
    "CUPTI_ACTIVITY_KIND_MEMSET": """start INTEGER NOT NULL, end INTEGER NOT NULL,
        deviceId INTEGER NOT NULL, contextId INTEGER NOT NULL, greenContextId INTEGER,
        streamId INTEGER NOT NULL, correlationId INTEGER, globalPid INTEGER,
        value INTEGER NOT NULL, bytes INTEGER NOT NULL, graphNodeId INTEGER, memKind INTEGER""",
    "CUPTI_ACTIVITY_KIND_GRAPH_TRACE": """start INTEGER NOT NULL, end INTEGER NOT NULL,
        deviceId INTEGER NOT NULL, contextId INTEGER NOT NULL, streamId INTEGER NOT NULL,
        correlationId INTEGER, globalPid INTEGER, graphId INTEGER NOT NULL,
        graphExecId INTEGER NOT NULL""",
    "CUPTI_ACTIVITY_KIND_RUNTIME": """start INTEGER NOT NULL, end INTEGER NOT NULL,
        eventClass INTEGER NOT NULL, globalTid INTEGER, correlationId INTEGER,
        nameId INTEGER NOT NULL, returnValue INTEGER NOT NULL, callchainId INTEGER""",
    "CUPTI_ACTIVITY_KIND_SYNCHRONIZATION": """start INTEGER NOT NULL, end INTEGER NOT NULL,
        deviceId INTEGER NOT NULL, contextId INTEGER NOT NULL, greenContextId INTEGER,
        streamId INTEGER NOT NULL, correlationId INTEGER, globalPid INTEGER,
        deprecatedSyncType INTEGER, syncType INTEGER NOT NULL, eventId INTEGER NOT NULL,
        eventSyncId INTEGER""",
    "CUPTI_ACTIVITY_KIND_CUDA_EVENT": """timestamp INTEGER, deviceId INTEGER NOT NULL,
        contextId INTEGER NOT NULL, greenContextId INTEGER, streamId INTEGER NOT NULL,
        correlationId INTEGER, globalPid INTEGER, eventId INTEGER NOT NULL,
        eventSyncId INTEGER""",
    "PROFILER_OVERHEAD": """start INTEGER NOT NULL, end INTEGER NOT NULL, globalTid INTEGER,
        nameId INTEGER NOT NULL, overheadType INTEGER NOT NULL""",
    "NVTX_EVENTS": """start INTEGER NOT NULL, end INTEGER, eventType INTEGER NOT NULL,
        rangeId INTEGER, category INTEGER, color INTEGER, text TEXT, globalTid INTEGER,
        endGlobalTid INTEGER, textId INTEGER, domainId INTEGER, jsonText TEXT, binaryData TEXT""",
    "NVTX_PAYLOAD_SCHEMA_ENTRIES": """domainId INTEGER NOT NULL, schemaId INTEGER NOT NULL,
        idx INTEGER NOT NULL, flags INTEGER, type INTEGER, name TEXT, description TEXT,
        arrayOrUnionDetail INTEGER, offset INTEGER""",
    "TARGET_INFO_GPU": """id INTEGER NOT NULL, name TEXT, busLocation TEXT, totalMemory INTEGER,
        smCount INTEGER, uuid TEXT, chipName TEXT, threadsPerWarp INTEGER, maxWarpsPerSm INTEGER,
        maxThreadsPerBlock INTEGER, maxRegistersPerSm INTEGER, maxShmemPerSm INTEGER,
        maxShmemPerBlockOptin INTEGER, computeMajor INTEGER, computeMinor INTEGER""",
    "TARGET_INFO_CUDA_DEVICE": """gpuId INTEGER NOT NULL, cudaId INTEGER NOT NULL,
        pid INTEGER NOT NULL, uuid TEXT NOT NULL, numMultiprocessors INTEGER NOT NULL""",
    "CUDA_GRAPH_NODE_EVENTS": """start INTEGER NOT NULL, end INTEGER, eventClass INTEGER NOT NULL,
        globalTid INTEGER, nameId INTEGER NOT NULL, graphNodeId INTEGER NOT NULL,
        originalGraphNodeId INTEGER""",
    "GPU_METRICS": """timestamp INTEGER NOT NULL, typeId INTEGER NOT NULL,
        metricId INTEGER NOT NULL, value INTEGER NOT NULL""",
    "TARGET_INFO_GPU_METRICS": """typeId INTEGER NOT NULL, sourceId INTEGER NOT NULL,
        typeName TEXT NOT NULL, metricId INTEGER NOT NULL, metricName TEXT NOT NULL""",
    "META_DATA_CAPTURE": "name TEXT NOT NULL, value TEXT",
    "TARGET_INFO_SYSTEM_ENV": """globalVid INTEGER, devStateName TEXT NOT NULL,
        name TEXT NOT NULL, nameEnum INTEGER NOT NULL, value TEXT NOT NULL""",
}
PUSH_POP, START_END = 59, 60
_COPIES = {"HtoD": 1, "DtoH": 2, "DtoD": 8, "PtoP": 10}
_MEMORY = {"Pageable": 0, "Pinned": 1, "Device": 2, "Array": 3, "Managed": 4}
_CONTEXT = 1
_GPU_COLUMNS = {
    "name": "name", "totalGlobalMem": "totalMemory", "numSms": "smCount",
    "warpSize": "threadsPerWarp", "maxThreadsPerBlock": "maxThreadsPerBlock",
    "regsPerMultiprocessor": "maxRegistersPerSm", "sharedMemPerMultiprocessor": "maxShmemPerSm",
    "sharedMemPerBlockOptin": "maxShmemPerBlockOptin", "computeMajor": "computeMajor",
    "computeMinor": "computeMinor",
}  # fmt: skip
Row = dict[str, Any]


class Export:
    """A database to be filled, a dict a row; columns that are not given are 0 where they must not
    be null."""

    def __init__(self, path: Path, tables: Iterable[str] = TABLES) -> None:
        self.sql = sqlite3.connect(path, isolation_level=None)
        self.sql.execute("BEGIN")
        self.columns: dict[str, dict[str, bool]] = {}
        for table in tables:
            self.sql.execute(f"CREATE TABLE {table} ({TABLES[table]})")
            found = self.sql.execute(f"PRAGMA table_info({table})").fetchall()
            self.columns[table] = {name: bool(must) for _, name, _, must, _, _ in found}
        self.strings: dict[str, int] = {}

    def add(self, table: str, rows: Iterable[Row]) -> None:
        columns = self.columns[table]
        marks = ", ".join("?" * len(columns))
        values = (
            [row.get(name, 0 if must else None) for name, must in columns.items()] for row in rows
        )
        self.sql.executemany(f"INSERT INTO {table} VALUES ({marks})", values)

    def string(self, text: str) -> int:
        """The id of a string, which is added where it is new."""
        if text not in self.strings:
            self.strings[text] = len(self.strings) + 1
            self.sql.execute("INSERT INTO StringIds VALUES (?, ?)", (self.strings[text], text))
        return self.strings[text]

    def close(self) -> None:
        self.sql.execute("COMMIT")
        self.sql.close()


def write(trace: Trace, path: Path) -> Path:
    """The events of a trace as an export, with names of runtime calls as Nsight writes them."""
    out = Export(path)
    by_category = {
        0: "CUPTI_ACTIVITY_KIND_KERNEL", 1: "CUPTI_ACTIVITY_KIND_MEMCPY",
        2: "CUPTI_ACTIVITY_KIND_MEMSET",
    }  # fmt: skip
    for event in _rows(trace.device):
        out.add(by_category[event["category"]], [_device(out, trace, event)])
    out.add("CUPTI_ACTIVITY_KIND_RUNTIME", (_call(out, trace, row) for row in _calls(trace)))
    out.add("NVTX_EVENTS", (_range(row, text) for row, text in _ranges(trace)))
    for properties in trace._properties()[:1]:
        row = {column: properties.get(key) for key, column in _GPU_COLUMNS.items()}
        threads = properties.get("maxThreadsPerMultiprocessor")
        warps = threads // properties["warpSize"] if threads else None
        out.add("TARGET_INFO_GPU", [{**row, "id": 3, "maxWarpsPerSm": warps}])
        number = int(trace.device["device"][0])
        out.add("TARGET_INFO_CUDA_DEVICE", [{"gpuId": 3, "cudaId": number, "pid": 77, "uuid": ""}])
    out.close()
    return path


def chrome_of(trace: Trace) -> dict[str, Any]:
    """What `write` keeps of a trace, as a Chrome trace whose advice is that of an export too."""
    categories = ("kernel", "gpu_memcpy", "gpu_memset")
    events: list[Row] = []
    for event in _rows(trace.device):
        sizes = {key: list(trace.grids[event[key]]) for key in ("grid", "block") if event[key] >= 0}
        known = {"registers per thread": event["registers"], "bytes": event["bytes"],
                 "graph node id": event["node"], "shared memory": event["shared_memory"]
                 }  # fmt: skip
        args = {key: value for key, value in known.items() if value >= 0}
        if event["correlation"] >= 0:
            args["correlation"] = event["correlation"]
        args |= {"device": 0, "stream": event["stream"]}
        name, category = _plain_name(trace, event), categories[event["category"]]
        events.append(_event(event, name, category, {**sizes, **args}))
    for call in _calls(trace):
        name = trace.names[call["name"]]
        args = {"correlation": call["correlation"]} if call["correlation"] >= 0 else {}
        events.append(_event(call, name, "cuda_runtime", args))
    for row, text in _ranges(trace):
        found = read_range(text)
        if found.op:
            args = {"External id": found.op_id, "Sequence number": found.sequence}
            args = {key: value for key, value in args.items() if value >= 0}
            sizes = {"Input Dims": json.loads(found.sizes)} if found.sizes else {}
            events.append(_event(row, found.op, "cpu_op", {**args, **sizes}))
        else:
            events.append(_event(row, found.name, "user_annotation", {}))
    properties = [
        {"id": 0, **{key: p[key] for key in (*_GPU_COLUMNS, _THREADS) if p.get(key) is not None}}
        for p in trace._properties()[:1]
    ]
    return {"profiler": "Nsight Systems", "deviceProperties": properties, "traceEvents": events}


_THREADS = "maxThreadsPerMultiprocessor"


def _event(row: Row, name: str, category: str, args: Row) -> Row:
    return {"ph": "X", "cat": category, "name": name, "pid": 77, "tid": row.get("thread", 0),
            "ts": row["ts"] / 1000, "dur": row["dur"] / 1000, "args": args}  # fmt: skip


def _rows(table: dict[str, Any]) -> Iterator[Row]:
    for values in zip(*(column.tolist() for column in table.values()), strict=True):
        yield dict(zip(table, values, strict=True))


def _calls(trace: Trace) -> Iterator[Row]:
    yield from _rows(trace.launches)
    for row in _rows(trace.other_calls):
        yield {**row, "correlation": -1}


def _ranges(trace: Trace) -> Iterator[tuple[Row, str]]:
    """Ops and annotations in their order in time, the outer one first, with the text that torch
    gives them."""
    found: list[tuple[Row, str]] = []
    for row in _rows(trace.ops):
        call = trace.calls[row["call"]]
        text = trace.names[row["name"]]
        text += f", seq = {row['sequence']}" if row["sequence"] >= 0 else ""
        text += f", op_id = {row['external']}" if row["external"] > 0 else ""
        sizes = [size for one in call.shapes for size in _flat(one)]
        text += f", sizes = {json.dumps(sizes)}" if sizes else ""
        found.append((row, text))
    notes = (row for row in _rows(trace.annotations) if not row["module"])
    found += [(row, trace.names[row["name"]]) for row in notes]
    return iter(sorted(found, key=lambda one: (one[0]["ts"], -one[0]["dur"])))


def _flat(shape: Any) -> list[list[int]]:
    """The sizes that emit_nvtx writes of an input: those of each tensor of a list."""
    if not isinstance(shape, tuple):
        return [[]]
    if shape and all(isinstance(one, tuple) for one in shape):
        return [list(one) for one in shape]
    return [list(shape)]


def _device(out: Export, trace: Trace, event: Row) -> Row:
    name = _plain_name(trace, event)
    row = {
        "start": event["ts"], "end": event["ts"] + event["dur"], "deviceId": event["device"],
        "contextId": _CONTEXT, "streamId": event["stream"], "globalPid": PROCESS << 24,
        "correlationId": _known(event["correlation"]), "graphNodeId": _known(event["node"]),
    }  # fmt: skip
    if event["category"] == 0:
        for key in ("grid", "block"):
            for axis, size in zip("XYZ", _size(trace, event[key]), strict=True):
                row[f"{key}{axis}"] = size
        row |= {"registersPerThread": event["registers"], "staticSharedMemory": 0,
                "dynamicSharedMemory": event["shared_memory"]}  # fmt: skip
        return {**row, "demangledName": out.string(name), "shortName": out.string(name[:20])}
    row["bytes"] = event["bytes"]
    words = name.replace("(", "").replace(")", "").split()
    if event["category"] == 2:
        return {**row, "memKind": _MEMORY.get(words[1], 7)}
    return {**row, "copyKind": _COPIES.get(words[1], 0), "srcKind": _MEMORY.get(words[2], 7),
            "dstKind": _MEMORY.get(words[4], 7)}  # fmt: skip


def _size(trace: Trace, index: int) -> tuple[int, ...]:
    return trace.grids[index] if index >= 0 else (-1, -1, -1)


def _plain_name(trace: Trace, event: Row) -> str:
    """The name of a device event, of a copy as Nsight can give it."""
    name = trace.names[event["name"]]
    if event["category"] == 0:
        return name
    words = name.replace("(", "").replace(")", "").split()
    if event["category"] == 2:
        return f"Memset ({words[1] if len(words) > 1 and words[1] in _MEMORY else 'Unknown'})"
    if len(words) == 5 and words[1] in _COPIES:
        ends = [word if word in _MEMORY else "Unknown" for word in (words[2], words[4])]
        return f"Memcpy {words[1]} ({ends[0]} -> {ends[1]})"
    return "Memcpy Unknown (Unknown -> Unknown)"


def _call(out: Export, trace: Trace, row: Row) -> Row:
    name = trace.names[row["name"]]
    versioned = f"{name}_v7000" if name.startswith("cuda") else name
    return {"start": row["ts"], "end": row["ts"] + row["dur"], "globalTid": _thread(row),
            "nameId": out.string(versioned), "correlationId": _known(row["correlation"])
            }  # fmt: skip


def _range(row: Row, text: str) -> Row:
    return {"start": row["ts"], "end": row["ts"] + row["dur"], "eventType": PUSH_POP, "text": text,
            "globalTid": _thread(row)}  # fmt: skip


def _thread(row: Row) -> int:
    return (PROCESS << 24) | (row["thread"] + 1)


def _known(value: int) -> int | None:
    return None if value < 0 else value
