"""The GPU in an export of Nsight Systems: its properties, and samples of its counters.

In: `Tables`. Out: properties under the names that kineto gives them; counters of the Collector.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from prunescope.analysis.trace.collector import Floats, Ints
from prunescope.analysis.trace.counter_samples import kind_of_counter
from prunescope.analysis.trace.nsys_devices import gpus_of_processes, pid_of
from prunescope.analysis.trace.nsys_tables import NO_TIME, Tables, as_ids, as_numbers, as_times

GPU, SAMPLES, METRICS = "TARGET_INFO_GPU", "GPU_METRICS", "TARGET_INFO_GPU_METRICS"
_COUNTER_NAME = 80
_GPU_OF_TYPE = 0xFF  # the bits of a sample's type that are the number of the GPU
_PROPERTIES = {
    "name": "name", "computeMajor": "computeMajor", "computeMinor": "computeMinor",
    "smCount": "numSms", "maxThreadsPerBlock": "maxThreadsPerBlock", "threadsPerWarp": "warpSize",
    "maxRegistersPerSm": "regsPerMultiprocessor", "maxShmemPerSm": "sharedMemPerMultiprocessor",
    "maxShmemPerBlockOptin": "sharedMemPerBlockOptin", "totalMemory": "totalGlobalMem",
}  # fmt: skip


def add_gpu_counters(tables: Tables) -> None:
    """Add the samples of those counters that say how busy the parts of the GPU are.

    Nothing is added if several devices were sampled and it is unknown which of them is this one.
    """
    if not tables.file.has(METRICS, "typeId", "metricId", "metricName"):
        return
    gpu = next(iter(_gpu_numbers(tables)), None)
    rows = (
        row
        for rows in tables.file.rows(METRICS, ("typeId", "metricId", "metricName"))
        for row in rows
    )
    named: dict[tuple[int, int], str] = {}
    for kind, metric, name in rows:
        if type(kind) is type(metric) is int and isinstance(name, str) and kind_of_counter(name):
            named[kind, metric] = name[:_COUNTER_NAME]
    kinds = {kind for kind, _ in named if gpu is None or kind & _GPU_OF_TYPE == gpu}
    if len(kinds) != 1 or not tables.file.has(SAMPLES, "timestamp", "typeId", "value"):
        return  # samples of several devices, and it is unknown which is this one
    kind = kinds.pop()
    samples: dict[int, tuple[list[Ints], list[Floats]]] = {}
    read = ("timestamp", "metricId", "value")
    for block in tables.file.rows(SAMPLES, read, where=f'"typeId" = {kind}'):
        times, metrics, values = zip(*block, strict=True)
        ts, metric_of_row, value = as_times(times), as_ids(metrics), as_numbers(values)
        for metric in np.unique(metric_of_row).tolist():
            if (kind, metric) in named:
                wanted = (metric_of_row == metric) & (ts != NO_TIME) & np.isfinite(value)
                blocks_of_times, blocks_of_values = samples.setdefault(metric, ([], []))
                blocks_of_times.append(ts[wanted])
                blocks_of_values.append(value[wanted])
    for metric, (times_of, values_of) in samples.items():
        counter = np.concatenate(times_of), np.concatenate(values_of)
        tables.collect.counters[named[kind, metric]] = counter


def _gpu_numbers(tables: Tables) -> set[int]:
    """Return the numbers of the GPU behind the device, where the file states them."""
    gpu_of = gpus_of_processes(tables.file)
    known = (gpu_of.get((pid_of(process), number)) for process, number in tables.device.names)
    return {gpu for gpu in known if gpu is not None}


def _rows_with_cuda_number(
    tables: Tables, rows: Sequence[tuple[Any, ...]]
) -> list[tuple[Any, ...]]:
    """Return the rows of GPUs that have the device's CUDA number.

    This is for a file that maps no numbers of processes to GPUs; with such a map, or several
    numbers, the result is empty. The last column (`cuDevice`) is compared if all rows have a
    distinct one, else the first (the GPU's id).
    """
    numbers = {number for _, number in tables.device.names}
    if gpus_of_processes(tables.file) or len(numbers) != 1:
        return []
    by_cuda = {row[-1] for row in rows if type(row[-1]) is int}
    at = -1 if len(by_cuda) == len(rows) else 0
    return [row for row in rows if type(row[at]) is int and row[at] in numbers]


def gpu_properties(tables: Tables) -> list[dict[str, Any]]:
    """Return the properties of the GPU under the names that kineto gives them; empty if unknown."""
    if not tables.file.has(GPU, "id", "name"):
        return []
    mine = _gpu_numbers(tables)
    columns = ("id", *_PROPERTIES, "maxWarpsPerSm", "cuDevice")
    rows = [row for block in tables.file.rows(GPU, columns) for row in block]
    known = [row for row in rows if row[0] in mine] or _rows_with_cuda_number(tables, rows)
    if not known and len({row[1:-1] for row in rows}) == 1:  # all GPUs are of one kind
        known = rows
    if not known or not isinstance(known[0][1], str):
        return []
    values = dict(zip(columns, known[0], strict=True))
    known_properties = {
        key: value
        for column, key in _PROPERTIES.items()
        if type(value := values[column]) is int or column == "name"
    }
    threads, warps = values["threadsPerWarp"], values["maxWarpsPerSm"]
    if type(threads) is type(warps) is int:
        known_properties["maxThreadsPerMultiprocessor"] = threads * warps
    return [{"id": tables.device.index, **known_properties}]
