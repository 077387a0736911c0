"""The GPUs of an export of Nsight Systems, and what its tables of GPU work lack.

In: an open `Database`. Out: `NsysDevice`s, which hold how the processes of the file call each GPU
that ran kernels; SQL for rows that name no device; warnings. The names of tables are
here too.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from msgspec import Struct

from prunescope.analysis.schema.notice import Notice, warning
from prunescope.analysis.trace.collector import NONE
from prunescope.analysis.trace.nsys_file import Database
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.words import plural

_ACTIVITY = "CUPTI_ACTIVITY_KIND_"
KERNEL, COPY, FILL, GRAPH, RUNTIME = (
    f"{_ACTIVITY}{kind}" for kind in ("KERNEL", "MEMCPY", "MEMSET", "GRAPH_TRACE", "RUNTIME")
)
RANGES, GPU_OF = "NVTX_EVENTS", "TARGET_INFO_CUDA_DEVICE"
WORK = (KERNEL, COPY, FILL, GRAPH)  # tables of what a GPU runs
_OF_KERNELS = (KERNEL, GRAPH)
PLACED = ("start", "end", "deviceId")
SIZES = tuple(f"{extent}{axis}" for extent in ("grid", "block") for axis in "XYZ")
# Columns without which a table is of no use; all exports since 2021 have them.
_NEEDED = {
    KERNEL: ("streamId", "globalPid", "registersPerThread", *SIZES),
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


class NsysDevice(Struct, frozen=True):
    """One GPU of a file, and how its processes call it.

    `index` is its number among those of the file.
    """

    index: int
    names: frozenset[tuple[int, int]]  # GlobalId of a process without its thread, CUDA's number

    @property
    def numbers(self) -> str:
        """The numbers that CUDA gives the GPU, as a list in SQL."""
        return ", ".join(str(number) for number in sorted({n for _, n in self.names}))

    @property
    def processes(self) -> list[int]:
        """The processes that ran on the GPU."""
        return sorted({process for process, _ in self.names})


def find_devices(file: Database) -> list[NsysDevice]:
    """Find the GPUs that ran kernels or graphs, in the order of their numbers.

    Raises PrunescopeError where there is none, or a table of kernels lacks a column.
    """
    for table in _OF_KERNELS:
        if lacking := file.lacks(table, *PLACED):
            raise file.damaged(f"its table {table} lacks {_list_columns(lacking)}")
    names = {
        (_process_of(global_id), number)
        for table in _OF_KERNELS
        for block in file.rows(table, ("globalPid", "deviceId"), group=True)
        for global_id, number in block
        if type(number) is int and 0 <= number < MOST_DEVICE
    }
    if not names:
        raise _explain_no_kernels(file)
    gpu_of = gpus_of_processes(file)
    groups: dict[tuple[int, int], set[tuple[int, int]]] = {}
    for process, number in sorted(names, key=lambda name: name[::-1]):
        gpu = (
            gpu_of.get((pid_of(process), number))
            if process != NONE
            else _common_gpu(gpu_of, number)
        )
        groups.setdefault((0, number) if gpu is None else (1, gpu), set()).add((process, number))
    if len(groups) > _MOST_DEVICES:
        raise PrunescopeError(
            f"{file.path.name} holds {len(groups):,} devices, more than {_MOST_DEVICES}",
            hint="give the export of one node",
        )
    return [NsysDevice(i, frozenset(group)) for i, group in enumerate(groups.values())]


def _explain_no_kernels(file: Database) -> PrunescopeError:
    """Return the error of a file without a device: its kernels name none, or none were recorded."""
    kernels, copies = (
        sum(file.count(table) for table in tables) for tables in (_OF_KERNELS, (COPY, FILL))
    )
    if kernels:
        return file.damaged(f"none of its {kernels:,} kernels names a device (deviceId)")
    other_work = f", only {copies:,} copies and fills" if copies else ""
    if file.has_wal:
        return PrunescopeError(
            f"{file.path.name} holds no kernel of a GPU{other_work}: what SQLite keeps in a file "
            "next to it (-wal) is not read",
            hint=f'move it into the file: `sqlite3 {file.path.name} "PRAGMA '
            'wal_checkpoint(TRUNCATE)"`, or export the report again',
        )
    return PrunescopeError(
        f"{file.path.name} holds no kernel of a GPU{other_work}",
        hint="record kernels with `nsys profile --trace cuda,nvtx` while the GPU works, and export "
        "all tables as SQLite",
    )


def gpus_of_processes(file: Database) -> dict[tuple[int, int], int]:
    """Map a process (its pid) and its number of a device to the GPU, where the file holds this.

    Of two processes that may see one GPU each, both call it 0.
    """
    if not file.has(GPU_OF, "gpuId", "cudaId", "pid"):
        return {}
    rows = (row for block in file.rows(GPU_OF, ("pid", "cudaId", "gpuId")) for row in block)
    return {
        (pid, number): gpu
        for pid, number, gpu in rows
        if type(pid) is type(number) is type(gpu) is int
    }


def _common_gpu(gpu_of: dict[tuple[int, int], int], number: int) -> int | None:
    """Return the GPU that all processes call by a number; None where they differ."""
    gpus = {gpu for (_, called), gpu in gpu_of.items() if called == number}
    return gpus.pop() if len(gpus) == 1 else None


def lacking_caveats(file: Database) -> Iterator[Notice]:
    """Yield warnings of columns that the tables lack, other than those of the kernels."""
    for table, needed in _NEEDED.items():
        if lacking := file.lacks(table, *needed):
            yield warning("lacking-columns", table=table, columns=lacking)
    yield from _mixed_processes(file)


def _mixed_processes(file: Database) -> Iterator[Notice]:
    """State that work names no process in a file of several, whose launches may have equal ids."""
    unknown = sum(
        file.count(table, _NO_PROCESS if file.has(table, "globalPid") else "") for table in WORK
    )
    if not unknown or not file.has(RUNTIME, "globalTid"):
        return
    threads = (row[0] for block in file.rows(RUNTIME, ("globalTid",), group=True) for row in block)
    processes = {_process_of(global_id) for global_id in threads} - {NONE}
    if len(processes) > 1:
        yield warning("work-without-process", count=unknown, processes=len(processes))


def _list_columns(names: list[str]) -> str:
    """Write column names as a part of a sentence."""
    return f"the column{plural(len(names))} {', '.join(names)}"


def _process_of(global_id: Any) -> int:
    """Return the process of a GlobalId, without its thread; NONE for an invalid one."""
    return global_id >> TID_BITS if type(global_id) is int else NONE


def pid_of(process: int) -> int:
    """Return the pid that the system gave a process, from its GlobalId without the thread."""
    return process & ((1 << TID_BITS) - 1)
