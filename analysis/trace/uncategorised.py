"""Events without a category: which table each belongs to, by its process or its arguments.

Two formats have none. torch.autograd's profiler (before torch.profiler, and without kineto) writes
ops as "CPU functions" and, in old versions, the time between two CUDA events around each op as
"CUDA functions". Ascend's profiler writes the tasks of an NPU with a `Task Type`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunescope.analysis.trace.event import DEVICE_CATEGORIES, Event
from prunescope.taxonomy.lazy_pattern import lazy_pattern

OLD_OPS, _OLD_KERNELS = "CPU functions", "CUDA functions"
# Tasks of an NPU that wait, record events or maintain the queue; every other one is work, whether
# its type is known to us or not (newer profilers call most tasks "Other").
_IDLES = lazy_pattern(
    r"(?:\w*_)?(?:EVENT|NOTIFY|WAIT|RECORD|BARRIER|LABEL|SYNC|PROFILING|PROFILER|MAINTAIN?[A-Z]*|NOP"
    r"|PLACE_?HOLDER|WRITE_VALUE|CMO|STREAM_\w+|MODEL_\w+|TIMEOUT\w*|FLIP)(?:_\w*)?",
    re.IGNORECASE,
)
_MOVES = lazy_pattern(r"\w*(?:SDMA|MEMCPY|PCIE_DMA)", re.IGNORECASE)


def table_of(event: Event) -> str | None:
    """Return the table that an event belongs to: "op", "device", or None for neither."""
    if event.ph != "X":
        return None
    if event.pid in (OLD_OPS, _OLD_KERNELS):
        return "op" if event.pid == OLD_OPS else "device"
    return None if _task_category(event) is None else "device"


def category_of(event: Event) -> int:
    """Return the number of a device event's category, whether the event names it or not."""
    if event.cat is not None:
        return DEVICE_CATEGORIES[event.cat]
    return _task_category(event) or DEVICE_CATEGORIES["kernel"]


def _task_category(event: Event) -> int | None:
    """Return the category of a task of an NPU; None if it neither computes nor moves data."""
    task = event.args.task_type if event.args is not None else None
    if not isinstance(task, str):
        return None
    if _MOVES.match(task) or _MOVES.match(event.name):
        return DEVICE_CATEGORIES["gpu_memcpy"]
    if _IDLES.fullmatch(task) or _IDLES.fullmatch(event.name):
        return None
    return DEVICE_CATEGORIES["kernel"]


def is_timed_around_ops(threads: Iterable[tuple[Any, Any]]) -> bool:
    """Return whether the threads (process, thread) are those of torch.autograd's profiler."""
    return any(pid == OLD_OPS for pid, _ in threads)


def holds_no_other(device: dict[str, NDArray[np.int64]]) -> NDArray[np.bool_]:
    """Mark the intervals of a stream that hold no other one.

    The time of an op around the ops that it calls is theirs.
    """
    start, end = device["ts"], device["ts"] + device["dur"]
    order = np.lexsort((-device["dur"], start, device["stream"]))
    keep = np.ones(len(start), bool)
    inner, outer = order[1:], order[:-1]
    holds = (device["stream"][inner] == device["stream"][outer]) & (end[inner] <= end[outer])
    keep[outer[holds]] = False
    return keep
