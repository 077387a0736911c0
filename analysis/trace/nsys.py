"""An SQLite export of Nsight Systems as the columns of a Chrome trace, one device at a time.

In: a file that `nsys_file` opens, and which of its devices is meant. Out: a Source and a Collector,
as of a Chrome trace; times are in ns, as recorded. Tables with facts about the machine and its user
(paths, environment, command lines, hosts) are not opened.
"""

from __future__ import annotations

from pathlib import Path

from prunescope.analysis.schema.notice import Notice, warning
from prunescope.analysis.trace.collector import Collector
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
from prunescope.analysis.trace.nsys_gpu import (
    GPU,
    METRICS,
    SAMPLES,
    add_gpu_counters,
    gpu_properties,
)
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
    """List the devices of a file that ran kernels, each as the `member` of `read`.

    The list is empty if only one did. Raises PrunescopeError where the file cannot be read, or
    holds no device.
    """
    with Database(path, _WANTED) as file:
        devices = find_devices(file)
    return [f"{_MEMBER}{device.index}" for device in devices] if len(devices) > 1 else []


def device_number(member: str) -> int | None:
    """Return the number of a device in its file, from its `member`; None for any other text."""
    number = member.removeprefix(_MEMBER)
    return int(number) if number.isdecimal() and number != member else None


def read(path: Path, member: str | None) -> tuple[Source, Collector, list[Notice]]:
    """Read the events of one device and of the processes that used it.

    Args:
        path: The export.
        member: The device, as `devices_of` names it; None in a file of one device.

    Returns:
        The source, the collected tables, and warnings.

    Raises:
        PrunescopeError: The file cannot be read, or lacks the device.
    """
    with Database(path, _WANTED) as file:
        devices = find_devices(file)
        chosen = [device for device in devices if member in (None, f"{_MEMBER}{device.index}")]
        if len(chosen) != 1:
            raise PrunescopeError(
                f"{path.name} holds {len(devices)} devices, not {member or 'one'}",
                hint="give the file itself: a device of it is analysed as a rank",
            )
        tables = Tables(file, Source(path, member), chosen[0], devices)
        tables.caveats += lacking_caveats(file)
        # Launches look up the work before them, and collectives look up both.
        DeviceWork(tables).read()
        add_launches(tables)
        say_unlaunched(tables)
        add_collectives(tables)
        add_overheads(tables)
        add_ranges(tables)
        add_gpu_counters(tables)
        tables.source.meta |= {"deviceProperties": gpu_properties(tables), PROFILER: NSYS}
        if file.has_wal:
            tables.caveats.append(warning("unread-wal"))
    return tables.source, tables.collect, tables.caveats
