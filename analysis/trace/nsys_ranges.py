"""The NVTX ranges of an export of Nsight Systems, and the overheads of its profiler.

In: `Tables` with the device's work and launches. Out: rows of the Collector: ops, annotations and
what NCCL sends; overheads.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from prunescope.analysis.trace.collector import COLUMNS, NONE, Ints, call_of, interned, places_in
from prunescope.analysis.trace.event import OVERHEAD
from prunescope.analysis.trace.nccl_calls import NcclRange, Payloads, collectives_of
from prunescope.analysis.trace.nsys_devices import RANGES
from prunescope.analysis.trace.nsys_tables import Tables, as_ids
from prunescope.analysis.trace.nvtx import Range, read_range
from prunescope.taxonomy.lazy_pattern import lazy_pattern

OVERHEADS = ("PROFILER_OVERHEAD", "CUPTI_ACTIVITY_KIND_OVERHEAD")
_PUSH_POP, _START_END = (59, 70), (60, 71)  # of ENUM_NSYS_EVENT_TYPE: NVTX ranges
_NCCL = "nccl"
_NCCL_CALL = lazy_pattern(r"nccl\w{1,40}", re.ASCII)


def add_ranges(tables: Tables) -> None:
    """Add NVTX ranges as ops and annotations."""
    columns = {"thread": "globalTid", "type": "eventType", "text_id": "textId"}
    where, registered = tables.process_filter(RANGES), dict[int, str]()
    rows_there = tables.file.count(RANGES, where)
    tables.refuse_too_many(rows_there)
    for group in ("op", "annotation"):
        tables.collect.tables[group].reserve(rows_there)
    for rows, texts in tables.blocks(RANGES, columns, where, "text"):
        nested = np.isin(rows["type"], (*_PUSH_POP, NONE))
        kept = np.flatnonzero((nested | np.isin(rows["type"], _START_END)) & (rows["dur"] >= 0))
        ids = rows["text_id"].tolist()
        new = {i for i in ids if i >= 0} - registered.keys()
        registered |= {**dict.fromkeys(new, ""), **tables.file.strings(new)}
        words = (texts[i] or registered.get(ids[i], "") for i in kept.tolist())
        ranges = [read_range(text if isinstance(text, str) else "") for text in words]
        rows = {name: column[kept] for name, column in rows.items()}
        rows["thread"] = tables.threads_of(rows["thread"])
        _add_ops(tables, rows, {i: r for i, r in enumerate(ranges) if nested[kept[i]] and r.op})
        named = np.array([bool(nvtx.name) for nvtx in ranges], bool)
        names = interned(tables.collect.names, [nvtx.name for nvtx in ranges if nvtx.name])
        notes = {name: column[named] for name, column in rows.items()}
        notes |= {"name": np.array(names, np.int64), "module": np.zeros(len(names), np.int64)}
        tables.add("annotation", notes, COLUMNS["annotation"])


def _add_ops(tables: Tables, rows: dict[str, Ints], ops: dict[int, Range]) -> None:
    """Add ops; `ops` maps their row in `rows` to what the text of their range says."""
    columns = {name: rows[name][list(ops)] for name in ("ts", "dur", "thread")}
    names = interned(tables.collect.names, [op.op for op in ops.values()])
    calls = [call_of(op.op, op.sizes.encode()) for op in ops.values()]
    columns |= {
        "name": np.array(names, np.int64),
        "external": np.array([op.op_id for op in ops.values()], np.int64),
        "call": np.array(interned(tables.collect.calls, calls), np.int64),
        "sequence": np.array([op.sequence for op in ops.values()], np.int64),
    }
    tables.add("op", columns, COLUMNS["op"])


def add_collectives(tables: Tables) -> None:
    """Set the bytes that NCCL's kernels send, where its own ranges state them."""
    payloads = Payloads(tables.file)
    rows = list(_nccl_rows(tables, payloads)) if payloads.domains else []
    if not rows:
        return
    names = [i for name, i in tables.collect.names.items() if name.startswith(_NCCL)]
    name, correlation, collective = tables.device_columns("name", "correlation", "collective")
    of_nccl = np.flatnonzero(np.isin(name, names))
    launches = tables.collect.tables["launch"].frozen()
    order = np.argsort(launches["correlation"], kind="stable")
    at = places_in(launches["correlation"][order], correlation[of_nccl])
    of_nccl, launch = of_nccl[at >= 0], order[at[at >= 0]]
    for index, key in collectives_of(rows, launches["ts"][launch], launches["thread"][launch]):
        collective[of_nccl[index]] = tables.collect.collectives[key]


def _nccl_rows(tables: Tables, payloads: Payloads) -> Iterator[NcclRange]:
    """Read the ranges of NCCL's functions."""
    columns = ("start", "end", "globalTid", "text", "textId", "binaryData", "jsonText")
    numbers = ", ".join(map(str, sorted(payloads.domains)))
    processes = tables.process_filter(RANGES)
    where = f'"domainId" IN ({numbers})' + (f" AND {processes}" if processes else "")
    registered: dict[int, str] = {}
    for block in tables.file.rows(RANGES, columns, where=where):
        new = {row[4] for row in block if type(row[4]) is int} - registered.keys()
        registered |= {**dict.fromkeys(new, ""), **tables.file.strings(new)}
        thread = tables.threads_of(as_ids([row[2] for row in block]))
        for i, (start, end, _, text, text_id, binary, plain) in enumerate(block):
            name = text if isinstance(text, str) and text else registered.get(text_id, "")
            if type(start) is type(end) is int and _NCCL_CALL.fullmatch(name):
                yield NcclRange(start, end, int(thread[i]), name, payloads.fields(binary, plain))


def add_overheads(tables: Tables) -> None:
    """Add the recorded work of the profiler and the driver, which is not the program's."""
    for table in OVERHEADS:
        columns = {"thread": "globalTid", "name": "nameId"}
        rows = tables.columns(table, columns, tables.process_filter(table))
        rows["thread"] = tables.threads_of(rows["thread"])
        rows["name"] = tables.named(rows["name"], str, of="overheads of the profiler")
        tables.add(OVERHEAD, rows, COLUMNS[OVERHEAD])
