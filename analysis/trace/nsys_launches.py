"""The calls of CUDA and the waits of the host in an export of Nsight Systems.

In: `Tables` with the device's work. Out: rows of the table of launches of their Collector.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from prunescope.analysis.schema.notice import warning
from prunescope.analysis.trace.collector import (
    COLUMNS,
    NONE,
    Ints,
    interned,
    places_in,
)
from prunescope.analysis.trace.nsys_devices import MOST_DEVICE, RUNTIME, UNPLACED
from prunescope.analysis.trace.nsys_tables import Tables, placed_tables, processes_of
from prunescope.analysis.trace.nsys_work import SYNCS
from prunescope.taxonomy.lazy_pattern import lazy_pattern

# Of ENUM_CUPTI_SYNC_TYPE, those in which the host waits.
_HOST_WAITS = {1: "EventSynchronize", 3: "StreamSynchronize", 4: "ContextSynchronize"}
_VERSION = lazy_pattern(r"_v\d{4,5}$")  # of CUDA, behind the name of a call


def add_launches(tables: Tables) -> None:
    """Add the runtime calls of the processes, and waits of the host without a call.

    Launches of work that is not in the table of this device are left out.
    """
    columns = {"thread": "globalTid", "correlation": "correlationId", "name": "nameId"}
    elsewhere = _find_launches_elsewhere(tables)
    where = tables.process_filter(RUNTIME)
    calls = tables.file.count(RUNTIME, where)
    tables.refuse_too_many(calls)
    tables.collect.tables["launch"].reserve(calls)
    for rows, _ in tables.blocks(RUNTIME, columns, where):
        ids = tables.launch_ids(processes_of(rows["thread"]), rows["correlation"])
        here = places_in(elsewhere, ids) < 0
        rows = {name: column[here] for name, column in rows.items()}
        none = np.full(len(rows["ts"]), NONE)
        rows |= {"correlation": ids[here], "external": none, "kernel": none}
        rows["thread"] = tables.threads_of(rows["thread"])
        rows["name"] = tables.named(rows["name"], partial(_VERSION.sub, ""), of="calls of CUDA")
        tables.add("launch", rows, COLUMNS["launch"])
    if tables.file.count(SYNCS, f'"syncType" IN ({", ".join(map(str, _HOST_WAITS))})'):
        _add_host_waits(tables)


def _find_launches_elsewhere(tables: Tables) -> Ints:
    """Return the sorted ids of launches whose work ran on another device, or names no device."""
    ids_elsewhere = [np.empty(0, np.int64)]
    numbers = ", ".join(str(number) for number in sorted({n for _, n in tables.others}))
    columns = {"process": "globalPid", "number": "deviceId", "correlation": "correlationId"}
    for table in placed_tables(tables.file) if tables.others or tables.collect.unplaced else ():
        where = f'"deviceId" IN ({numbers}) OR {UNPLACED}'
        for rows, _ in tables.blocks(table, columns, where):
            process = processes_of(rows["process"])
            pairs = zip(process.tolist(), rows["number"].tolist(), strict=True)
            there = [
                not 0 <= number < MOST_DEVICE or (process_of_row, number) in tables.others
                for process_of_row, number in pairs
            ]
            ids = tables.launch_ids(process, rows["correlation"])[np.array(there, bool)]
            ids_elsewhere.append(ids[ids >= 0])
    return np.sort(np.concatenate(ids_elsewhere))


def _add_host_waits(tables: Tables) -> None:
    """Add the waits of the host for the device whose call is not in the file, as calls.

    These records hold no thread. If only one thread of their process launches, the wait is taken to
    be on that thread; else it is left out.
    """
    calls = tables.collect.tables["launch"].frozen()
    called = np.sort(calls["correlation"])
    launched = np.sort(tables.device_columns("correlation")[0])
    launching = np.unique(calls["thread"][places_in(launched, calls["correlation"]) >= 0])
    threads = list(tables.collect.threads)
    threads_of_process: dict[int, list[int]] = {}
    for launcher in launching.tolist():
        threads_of_process.setdefault(threads[launcher][0], []).append(launcher)
    columns = {"process": "globalPid", "correlation": "correlationId", "kind": "syncType"}
    for rows, _ in tables.blocks(SYNCS, columns):
        process = processes_of(rows["process"])
        ids = tables.launch_ids(process, rows["correlation"])
        launchers = (threads_of_process.get(number, ()) for number in process.tolist())
        thread = np.array([own[0] if len(own) == 1 else NONE for own in launchers], np.int64)
        alone = np.isin(rows["kind"], list(_HOST_WAITS)) & (thread >= 0)
        alone &= places_in(called, ids) < 0
        rows = {name: column[alone] for name, column in rows.items()}
        names = interned(tables.collect.names, [_HOST_WAITS[i] for i in rows["kind"].tolist()])
        none = np.full(len(names), NONE)
        rows |= {"thread": thread[alone], "name": np.array(names, np.int64)}
        rows |= {"correlation": none, "external": none, "kernel": none}
        tables.add("launch", rows, COLUMNS["launch"])


def say_unlaunched(tables: Tables) -> None:
    """Add a caveat if nothing that ran has its launch in the file."""
    (ids,) = tables.device_columns("correlation")
    called = np.sort(tables.collect.tables["launch"].frozen()["correlation"])
    if len(ids) and not (places_in(called, ids) >= 0).any():
        tables.caveats.append(warning("work-without-launches", count=len(ids)))
