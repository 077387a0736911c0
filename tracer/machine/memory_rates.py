"""How fast a device moves bytes, and how long the host takes to dispatch an op to it.

Out: bytes/s of a copy larger than the last-level cache (read and written) and of a read inside it,
and ns from call to call of a tiny op. Takes a second or less; medians over repeats.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from prunescope.taxonomy.dtypes import ITEMSIZE
from prunescope.tracer.machine.device import free_bytes, last_cache_bytes, synchronize

_REPEATS = 7
_BEYOND = 4  # size of the copy, in sizes of the last-level cache
_LEAST_COPY = 128 << 20
_INSIDE = 4  # size of the cached read: a quarter of the last-level cache
_LEAST_CACHE = 1 << 20
_TRIPS = 32  # reads in one measurement: a single one is too short for the clock
_DISPATCHES = 500


@dataclass(frozen=True)
class MemoryRates:
    """byte/s of a copy and of a read in the last cache; ns of the host from call to call."""

    copy_byte_per_s: float
    cache_byte_per_s: float
    dispatch_ns: float


def measure_memory(device: torch.device) -> MemoryRates:
    """Measure a device now."""
    cache = last_cache_bytes(device) or _LEAST_COPY // _BEYOND
    with torch.inference_mode():
        return MemoryRates(
            copy_byte_per_s=_copy(device, max(_LEAST_COPY, _BEYOND * cache)),
            cache_byte_per_s=_read(device, max(_LEAST_CACHE, cache // _INSIDE)),
            dispatch_ns=_dispatch(device),
        )


def better_rates(first: MemoryRates, second: MemoryRates) -> MemoryRates:
    """The higher rates and the shorter call of two measurements of one device."""
    return MemoryRates(
        copy_byte_per_s=max(first.copy_byte_per_s, second.copy_byte_per_s),
        cache_byte_per_s=max(first.cache_byte_per_s, second.cache_byte_per_s),
        dispatch_ns=min(first.dispatch_ns, second.dispatch_ns),
    )


def _copy(device: torch.device, size: int) -> float:
    """Bytes read and bytes written."""
    count = min(size, free_bytes(device) // 8) // ITEMSIZE["fp32"]
    source = torch.ones(int(count), dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _median_s(lambda: target.copy_(source), device)


def _read(device: torch.device, size: int) -> float:
    buffer = torch.ones(int(size // ITEMSIZE["fp32"]), dtype=torch.float32, device=device)

    def trips() -> None:
        for _ in range(_TRIPS):
            buffer.sum()

    return _TRIPS * buffer.nbytes / _median_s(trips, device)


def _dispatch(device: torch.device) -> float:
    """The time from call to call on the host, while the device keeps up."""
    x = torch.ones(1, device=device)

    def calls() -> None:
        for _ in range(_DISPATCHES):
            x.add_(1)

    return _median_s(calls, device) * 1e9 / _DISPATCHES


def _median_s(run: Callable[[], Any], device: torch.device) -> float:
    """Median seconds of one call until the device is done, after a warm-up."""
    run()
    synchronize(device)
    times = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        run()
        synchronize(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times)
