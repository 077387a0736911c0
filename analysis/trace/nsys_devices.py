"""The GPUs of an export of Nsight Systems, and what its tables of GPU work lack.

In: an open `Database`. Out: `NsysDevice`s: what the processes of the file call each GPU that ran
kernels; SQL for rows that name no device; warnings. Names of tables stand here too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from prunescope.analysis.schema.notice import Notice, warning
from prunescope.analysis.trace.collect import NONE
from prunescope.analysis.trace.nsys_file import Database
from prunescope.taxonomy.errors import PrunescopeError

_ACTIVITY = "CUPTI_ACTIVITY_KIND_"
KERNEL, COPY, FILL, GRAPH, RUNTIME = (
    f"{_ACTIVITY}{kind}" for kind in ("KERNEL", "MEMCPY", "MEMSET", "GRAPH_TRACE", "RUNTIME")
)
RANGES, GPU_OF = "NVTX_EVENTS", "TARGET_INFO_CUDA_DEVICE"
WORK = (KERNEL, COPY, FILL, GRAPH)  # tables of what a GPU runs
_OF_KERNELS = (KERNEL, GRAPH)
PLACED = ("start", "end", "deviceId")
# Columns without which a table is of no use; all exports since 2021 have them.
_SIZES = tuple(f"{what}{axis}" for what in ("grid", "block") for axis in "XYZ")
_NEEDED = {
    KERNEL: ("streamId", "globalPid", "registersPerThread", *_SIZES),
    **dict.fromkeys((COPY, FILL), (*PLACED, "streamId", "globalPid")),
    RUNTIME: ("start", "end", "globalTid", "correlationId", "nameId"),
    RANGES: ("start", "end", "globalTid"),
}
MOST_DEVICE = 1 << 31  # CUDA's numbers of devices have 32 bits, and a sign
UNPLACED = (
    f""" typeof("deviceId") <> 'integer' OR "deviceId" NOT BETWEEN 0 AND {MOST_DEVICE - 1} """
)
_NO_PROCESS = """ typeof("globalPid") <> 'integer' """
# A GlobalId is a machine, a process and a thread.
TID_BITS = 24
_MOST_DEVICES = 1024


@dataclass(frozen=True)
class NsysDevice:
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


def find_devices(file: Database) -> list[NsysDevice]:
    """The GPUs that ran kernels or graphs, by their numbers.

    Raises PrunescopeError where there is none, or a table of kernels lacks a column.
    """
    for table in _OF_KERNELS:
        if lacking := file.lacks(table, *PLACED):
            raise file.damaged(f"its table {table} lacks {_columns(lacking)}")
    names = {
        (_process(one), number)
        for table in _OF_KERNELS
        for block in file.rows(table, ("globalPid", "deviceId"), group=True)
        for one, number in block
        if type(number) is int and 0 <= number < MOST_DEVICE
    }
    if not names:
        raise _no_kernels(file)
    gpu_of = gpus_of_processes(file)
    groups: dict[tuple[int, int], set[tuple[int, int]]] = {}
    for process, number in sorted(names, key=lambda name: name[::-1]):
        gpu = gpu_of.get((pid_of(process), number)) if process != NONE else _only(gpu_of, number)
        groups.setdefault((0, number) if gpu is None else (1, gpu), set()).add((process, number))
    if len(groups) > _MOST_DEVICES:
        raise PrunescopeError(
            f"{file.path.name} holds {len(groups):,} devices, more than {_MOST_DEVICES}",
            hint="give the export of one node",
        )
    return [NsysDevice(i, frozenset(group)) for i, group in enumerate(groups.values())]


def _no_kernels(file: Database) -> PrunescopeError:
    """Why a file has no device: its kernels name none, or none were recorded."""
    kernels, copies = (
        sum(file.count(table) for table in tables) for tables in (_OF_KERNELS, (COPY, FILL))
    )
    if kernels:
        return file.damaged(f"none of its {kernels:,} kernels names a device (deviceId)")
    others = f", only {copies:,} copies and fills" if copies else ""
    if file.has_wal:
        return PrunescopeError(
            f"{file.path.name} holds no kernel of a GPU{others}: what SQLite keeps in a file "
            "next to it (-wal) is not read",
            hint=f'move it into the file: `sqlite3 {file.path.name} "PRAGMA '
            'wal_checkpoint(TRUNCATE)"`, or export the report again',
        )
    return PrunescopeError(
        f"{file.path.name} holds no kernel of a GPU{others}",
        hint="record kernels with `nsys profile --trace cuda,nvtx` while the GPU works, and export "
        "all tables as SQLite",
    )


def gpus_of_processes(file: Database) -> dict[tuple[int, int], int]:
    """The GPU behind what a process (its pid) calls a device, where the file says so: of two
    processes that may see one GPU each, both call it 0."""
    if not file.has(GPU_OF, "gpuId", "cudaId", "pid"):
        return {}
    rows = (row for block in file.rows(GPU_OF, ("pid", "cudaId", "gpuId")) for row in block)
    return {
        (pid, number): gpu
        for pid, number, gpu in rows
        if type(pid) is type(number) is type(gpu) is int
    }


def _only(gpu_of: dict[tuple[int, int], int], number: int) -> int | None:
    """The GPU that all processes call by a number; None where they differ."""
    found = {gpu for (_, one), gpu in gpu_of.items() if one == number}
    return found.pop() if len(found) == 1 else None


def lacking_caveats(file: Database) -> Iterator[Notice]:
    """Warnings of columns that tables other than that of the kernels lack."""
    for table, needed in _NEEDED.items():
        if lacking := file.lacks(table, *needed):
            yield warning("lacking-columns", table=table, columns=lacking)
    yield from _mixed_processes(file)


def _mixed_processes(file: Database) -> Iterator[Notice]:
    """Work that names no process, in a file of several, whose launches have equal ids."""
    unknown = sum(
        file.count(table, _NO_PROCESS if file.has(table, "globalPid") else "") for table in WORK
    )
    if not unknown or not file.has(RUNTIME, "globalTid"):
        return
    threads = (row[0] for block in file.rows(RUNTIME, ("globalTid",), group=True) for row in block)
    processes = {_process(one) for one in threads} - {NONE}
    if len(processes) > 1:
        yield warning("work-without-process", count=unknown, processes=len(processes))


def _columns(names: list[str]) -> str:
    return f"the column{'s' * (len(names) > 1)} {', '.join(names)}"


def _process(global_id: Any) -> int:
    return global_id >> TID_BITS if type(global_id) is int else NONE


def pid_of(process: int) -> int:
    """The number of a process in the system, of its GlobalId."""
    return process & ((1 << TID_BITS) - 1)
