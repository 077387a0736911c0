"""NVTX ranges of an export of Nsight Systems as ops, annotations and what NCCL sends; overheads.

In: `Tables` with the device's work and launches. Out: rows of the Collector.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from prunescope.analysis.trace.collect import COLUMNS, NONE, Ints, call_of, interned
from prunescope.analysis.trace.event import OVERHEAD
from prunescope.analysis.trace.nccl_calls import NcclRange, Payloads, collectives_of
from prunescope.analysis.trace.nsys_devices import RANGES
from prunescope.analysis.trace.nsys_tables import Tables, as_ids, places_in
from prunescope.analysis.trace.nvtx import Range, read_range

OVERHEADS = ("PROFILER_OVERHEAD", "CUPTI_ACTIVITY_KIND_OVERHEAD")
_PUSH_POP, _START_END = (59, 70), (60, 71)  # of ENUM_NSYS_EVENT_TYPE: NVTX ranges
_NCCL = "nccl"
_NCCL_CALL = re.compile(r"nccl\w{1,40}", re.ASCII)


def add_ranges(tables: Tables) -> None:
    """NVTX ranges as ops and annotations."""
    columns = {"thread": "globalTid", "type": "eventType", "text_id": "textId"}
    where, registered = tables.of_processes(RANGES), dict[int, str]()
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
        ops = zip(ranges, nested[kept], strict=True)
        _add_ops(tables, rows, [one if inside else None for one, inside in ops])
        named = np.array([bool(one.name) for one in ranges], bool)
        names = interned(tables.collect.names, [one.name for one in ranges if one.name])
        notes = {name: column[named] for name, column in rows.items()}
        notes |= {"name": np.array(names, np.int64), "module": np.zeros(len(names), np.int64)}
        tables.add("annotation", notes, COLUMNS["annotation"])


def _add_ops(tables: Tables, rows: dict[str, Ints], ranges: list[Range | None]) -> None:
    which = [i for i, one in enumerate(ranges) if one is not None and one.op]
    found = [one for one in ranges if one is not None and one.op]
    ops = {name: rows[name][which] for name in ("ts", "dur", "thread")}
    calls = [call_of(one.op, one.sizes.encode()) for one in found]
    ops |= {
        "name": np.array(interned(tables.collect.names, [one.op for one in found]), np.int64),
        "external": np.array([one.op_id for one in found], np.int64),
        "call": np.array(interned(tables.collect.calls, calls), np.int64),
        "sequence": np.array([one.sequence for one in found], np.int64),
    }
    tables.add("op", ops, COLUMNS["op"])


def add_collectives(tables: Tables) -> None:
    """Bytes that the kernels of NCCL send, where its own ranges state them."""
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
    found = collectives_of(rows, launches["ts"][launch], launches["thread"][launch])
    for index, key in found:
        (one,) = interned(tables.collect.collectives, [key])
        collective[of_nccl[index]] = one


def _nccl_rows(tables: Tables, payloads: Payloads) -> Iterator[NcclRange]:
    """The ranges of NCCL's functions."""
    columns = ("start", "end", "globalTid", "text", "textId", "binaryData", "jsonText")
    numbers = ", ".join(map(str, sorted(payloads.domains)))
    processes = tables.of_processes(RANGES)
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
    """Work of the profiler and the driver, not of the program."""
    for table in OVERHEADS:
        columns = {"thread": "globalTid", "name": "nameId"}
        rows = tables.columns(table, columns, tables.of_processes(table))
        rows["thread"] = tables.threads_of(rows["thread"])
        rows["name"] = tables.named(rows["name"], str, of="overheads of the profiler")
        tables.add(OVERHEAD, rows, COLUMNS[OVERHEAD])
