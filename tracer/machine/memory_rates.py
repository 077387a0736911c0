"""How fast a device moves bytes, and how long the host takes to dispatch an op to it.

The rates are bytes/s of a copy larger than the last-level cache (bytes read plus bytes written) and
of a read that fits into it; the dispatch is ns from call to call of a tiny op. All are medians over
repeats, and take a second or less.
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
_BEYOND = 4  # the copy is so many times as large as the last-level cache
_LEAST_COPY = 128 << 20
_INSIDE = 4  # the cached read is so many times smaller than the last-level cache
_LEAST_CACHE = 1 << 20
_TRIPS = 32  # reads in one measurement: a single one is too short for the clock
_DISPATCHES = 500


@dataclass(frozen=True)
class MemoryRates:
    """The rates of a copy and of a read inside the last-level cache, and the ns of a dispatch."""

    copy_byte_per_s: float
    cache_byte_per_s: float
    dispatch_ns: float


def measure_memory(device: torch.device) -> MemoryRates:
    """Measure the memory rates and the dispatch time of a device now."""
    cache = last_cache_bytes(device) or _LEAST_COPY // _BEYOND
    with torch.inference_mode():
        return MemoryRates(
            copy_byte_per_s=_measure_copy(device, max(_LEAST_COPY, _BEYOND * cache)),
            cache_byte_per_s=_measure_read(device, max(_LEAST_CACHE, cache // _INSIDE)),
            dispatch_ns=_measure_dispatch(device),
        )


def better_rates(first: MemoryRates, second: MemoryRates) -> MemoryRates:
    """Combine two measurements of one device: the higher rates and the shorter dispatch."""
    return MemoryRates(
        copy_byte_per_s=max(first.copy_byte_per_s, second.copy_byte_per_s),
        cache_byte_per_s=max(first.cache_byte_per_s, second.cache_byte_per_s),
        dispatch_ns=min(first.dispatch_ns, second.dispatch_ns),
    )


def _measure_copy(device: torch.device, size: int) -> float:
    """Measure a copy of `size` bytes, in bytes read plus bytes written per second."""
    count = min(size, free_bytes(device) // 8) // ITEMSIZE["fp32"]
    source = torch.ones(int(count), dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _median_s(lambda: target.copy_(source), device)


def _measure_read(device: torch.device, size: int) -> float:
    """Measure reads of a buffer of `size` bytes that stays in the cache, in bytes per second."""
    buffer = torch.ones(int(size // ITEMSIZE["fp32"]), dtype=torch.float32, device=device)

    def trips() -> None:
        for _ in range(_TRIPS):
            buffer.sum()

    return _TRIPS * buffer.nbytes / _median_s(trips, device)


def _measure_dispatch(device: torch.device) -> float:
    """Measure the ns from call to call on the host, while the device keeps up."""
    x = torch.ones(1, device=device)

    def calls() -> None:
        for _ in range(_DISPATCHES):
            x.add_(1)

    return _median_s(calls, device) * 1e9 / _DISPATCHES


def _median_s(run: Callable[[], Any], device: torch.device) -> float:
    """Return the median seconds of one call until the device is done, after a warm-up call."""
    run()
    synchronize(device)
    times = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        run()
        synchronize(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times)
