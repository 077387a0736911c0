"""An SQLite export of Nsight Systems as the columns of a Chrome trace, one device at a time.

In: a file that `nsys_file` opens, and which of its devices is meant. Out: a Source and a Collector,
as of a Chrome trace, times in ns as they are recorded. What is about the machine and its user
(paths, environment, command lines, hosts) is in tables that are not opened.
"""

from __future__ import annotations

from pathlib import Path

from prunescope.analysis.schema.notice import Notice, warning
from prunescope.analysis.trace.collect import Collector
from prunescope.analysis.trace.nccl_calls import ENTRIES
from prunescope.analysis.trace.nsys_devices import (
    GPU_OF,
    RANGES,
    RUNTIME,
    WORK,
    find_devices,
    lacking_caveats,
)
from prunescope.analysis.trace.nsys_file import STRINGS, Database
from prunescope.analysis.trace.nsys_gpu import GPU, METRICS, SAMPLES, add_counters, properties
from prunescope.analysis.trace.nsys_launches import add_launches, say_unlaunched
from prunescope.analysis.trace.nsys_ranges import (
    OVERHEADS,
    add_collectives,
    add_overheads,
    add_ranges,
)
from prunescope.analysis.trace.nsys_tables import Tables
from prunescope.analysis.trace.nsys_work import EVENTS, NODES, SYNCS, DeviceWork
from prunescope.analysis.trace.reader import Source
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.recorder import NSYS, PROFILER

_WANTED = (*WORK, RUNTIME, NODES, RANGES, GPU, GPU_OF, SAMPLES, METRICS, STRINGS, SYNCS, EVENTS,
           ENTRIES, *OVERHEADS)  # fmt: skip
_MEMBER = "device "


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


def read(path: Path, member: str | None) -> tuple[Source, Collector, list[Notice]]:
    """The events of one device and of the processes that used it, and warnings.

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
        tables = Tables(file, Source(path, member), chosen[0], devices)
        _read_all(tables)
    return tables.source, tables.collect, tables.caveats


def _read_all(tables: Tables) -> None:
    """All tables that the file has: launches know the work before them, and collectives both."""
    tables.caveats += lacking_caveats(tables.file)
    DeviceWork(tables).read()
    add_launches(tables)
    say_unlaunched(tables)
    add_collectives(tables)
    add_overheads(tables)
    add_ranges(tables)
    add_counters(tables)
    tables.source.meta |= {"deviceProperties": properties(tables), PROFILER: NSYS}
    if tables.file.has_wal:
        tables.caveats.append(warning("unread-wal"))
