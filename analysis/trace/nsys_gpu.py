"""The GPU in an export of Nsight Systems: its properties, and samples of counters.

In: `Tables`. Out: properties under the names that kineto gives them; counters of the Collector.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from prunescope.analysis.trace.collect import Floats, Ints
from prunescope.analysis.trace.nsys_devices import gpus_of_processes, pid_of
from prunescope.analysis.trace.nsys_tables import NO_TIME, Tables, as_ids, as_numbers, as_times
from prunescope.analysis.trace.samples import kind_of_counter

GPU, SAMPLES, METRICS = "TARGET_INFO_GPU", "GPU_METRICS", "TARGET_INFO_GPU_METRICS"
_COUNTER_NAME = 80
_GPU_OF_TYPE = 0xFF  # the part of a type of samples that is the number of the GPU
_PROPERTIES = {
    "name": "name", "computeMajor": "computeMajor", "computeMinor": "computeMinor",
    "smCount": "numSms", "maxThreadsPerBlock": "maxThreadsPerBlock", "threadsPerWarp": "warpSize",
    "maxRegistersPerSm": "regsPerMultiprocessor", "maxShmemPerSm": "sharedMemPerMultiprocessor",
    "maxShmemPerBlockOptin": "sharedMemPerBlockOptin", "totalMemory": "totalGlobalMem",
}  # fmt: skip


def add_counters(tables: Tables) -> None:
    """Samples of the device's counters, of those that say how busy its parts are."""
    if not tables.file.has(METRICS, "typeId", "metricId", "metricName"):
        return
    gpu = next(iter(_gpus(tables)), None)
    rows = (
        row for b in tables.file.rows(METRICS, ("typeId", "metricId", "metricName")) for row in b
    )
    named: dict[tuple[int, int], str] = {}
    for kind, metric, name in rows:
        if type(kind) is type(metric) is int and isinstance(name, str) and kind_of_counter(name):
            named[kind, metric] = name[:_COUNTER_NAME]
    kinds = {kind for kind, _ in named if gpu is None or kind & _GPU_OF_TYPE == gpu}
    if len(kinds) != 1 or not tables.file.has(SAMPLES, "timestamp", "typeId", "value"):
        return  # samples of several devices, and it is unknown which is this one
    kind = kinds.pop()
    found: dict[int, tuple[list[Ints], list[Floats]]] = {}
    read = ("timestamp", "metricId", "value")
    for block in tables.file.rows(SAMPLES, read, where=f'"typeId" = {kind}'):
        times, metrics, values = zip(*block, strict=True)
        ts, metric, value = as_times(times), as_ids(metrics), as_numbers(values)
        for one in np.unique(metric).tolist():
            if (kind, one) in named:
                mine = (metric == one) & (ts != NO_TIME) & np.isfinite(value)
                into = found.setdefault(one, ([], []))
                into[0].append(ts[mine])
                into[1].append(value[mine])
    for one, (times_of, values_of) in found.items():
        both = np.concatenate(times_of), np.concatenate(values_of)
        tables.collect.counters[named[kind, one]] = both


def _gpus(tables: Tables) -> set[int]:
    """Numbers of the GPU behind the device, where the file says them."""
    gpu_of = gpus_of_processes(tables.file)
    known = (gpu_of.get((pid_of(process), number)) for process, number in tables.device.names)
    return {gpu for gpu in known if gpu is not None}


def _rows_of_device_number(
    tables: Tables, rows: Sequence[tuple[Any, ...]]
) -> list[tuple[Any, ...]]:
    """Those of the GPUs that CUDA calls as it calls the device, in a file that maps no numbers
    of processes to GPUs: by `cuDevice` where it is written, else by their ids."""
    numbers = {number for _, number in tables.device.names}
    if gpus_of_processes(tables.file) or len(numbers) != 1:
        return []
    by_cuda = {row[-1] for row in rows if type(row[-1]) is int}
    at = -1 if len(by_cuda) == len(rows) else 0
    return [row for row in rows if type(row[at]) is int and row[at] in numbers]


def properties(tables: Tables) -> list[dict[str, Any]]:
    """Properties of the GPU under the names that kineto gives them."""
    if not tables.file.has(GPU, "id", "name"):
        return []
    mine = _gpus(tables)
    columns = ("id", *_PROPERTIES, "maxWarpsPerSm", "cuDevice")
    rows = [row for block in tables.file.rows(GPU, columns) for row in block]
    known = [row for row in rows if row[0] in mine] or _rows_of_device_number(tables, rows)
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
    return [{"id": tables.device.index, **found}]
