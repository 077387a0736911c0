"""This machine as an entry of the device table, measured in three passes of a few seconds each.

The entry is the object of `devices --json` plus "measured", which says whether the passes agree and
has the times of a CPU by the size of an op. Rates are FLOP/s and bytes/s. The newest entry of each
device is kept in the user's cache.
"""

from __future__ import annotations

import json
import statistics
from contextlib import suppress
from functools import reduce

import torch

from prunescope.taxonomy.atomic_write import write_file
from prunescope.taxonomy.formats import plain
from prunescope.taxonomy.kept_calibrations import calibration_path, slug
from prunescope.taxonomy.runs.run_blocks import (
    CalibratedDevice,
    CalibrationPasses,
    MeasuredPeaks,
    Spread,
)
from prunescope.tracer.machine.backends import backend_of
from prunescope.tracer.machine.device import device_info, last_cache_bytes, pick_device
from prunescope.tracer.machine.disturbance import watched
from prunescope.tracer.machine.memory_rates import MemoryRates, better_rates, measure_memory
from prunescope.tracer.machine.peaks import STATISTIC, better_peaks, measure_peaks
from prunescope.tracer.machine.times_by_size import PassTimes, least_times, measure_times

PASSES = 3
AGREE = 0.1  # largest spread of passes that agree, as a share of their median


def calibrate(device: str = "auto", *, budget_s: float = 3.0) -> CalibratedDevice:
    """Measure a device in three passes, and store and return its entry.

    Each peak is the best of the passes, because a disturbance can only lower it.

    Args:
        device: The name of the device as torch writes it; "auto" takes a GPU where there is one.
        budget_s: The time that the peaks of one pass may take, in seconds.

    Returns:
        The entry of the device table, also where the user's cache cannot be written.

    Raises:
        PrunescopeError: The device is unknown or absent.
    """
    torch_device = pick_device(device)
    peaks, memory, by_size = [], [], []
    disturbed: list[str] = []
    for _ in range(PASSES):
        peaks.append(measure_peaks(torch_device, "bf16", budget_s=budget_s))
        rates, reasons = _measure_memory_watched(torch_device)
        memory.append(rates)
        disturbed += reasons
        if torch_device.type == "cpu":
            by_size.append(measure_times(torch_device))
    info = device_info(torch_device)
    name = str(info.name)
    best = reduce(better_peaks, peaks)
    entry = CalibratedDevice(
        name=slug(name),
        aliases=[name],
        vendor=backend_of(torch_device).vendor or name.split()[0],
        dense_flop_per_s=best.dense_flop_per_s,
        byte_per_s=None if best.byte_per_s is None else round(best.byte_per_s),
        sm=info.properties.get("multi_processor_count"),
        l2_bytes=last_cache_bytes(torch_device),
        source="measured by prunescope calibrate",
        verified=False,  # no independent source confirms it
        measured=_combine_passes(
            peaks, memory, by_size, list(dict.fromkeys([*best.disturbed, *disturbed]))
        ),
    )
    path = calibration_path(entry.name)
    with suppress(OSError):  # the entry is returned even if the cache cannot be written
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, json.dumps(plain(entry), indent=1).encode())
    return entry


def _measure_memory_watched(device: torch.device) -> tuple[MemoryRates, list[str]]:
    """Measure memory rates, and return them with what disturbed them.

    Disturbed rates are measured a second time. The better rates of both then count, and the reasons
    are those of the second measurement.
    """
    first, reasons = watched(lambda: measure_memory(device), device)
    if not reasons:
        return first, []
    second, second_reasons = watched(lambda: measure_memory(device), device)
    return better_rates(first, second), second_reasons


def _combine_passes(
    passes: list[MeasuredPeaks],
    memory: list[MemoryRates],
    by_size: list[PassTimes],
    disturbed: list[str],
) -> CalibrationPasses:
    """Combine the passes into the block "measured".

    Rates of memory are medians over the passes; the kernel floor and the times by size are their
    minimum, because a disturbance can only lengthen a time.
    """
    copies = [rates.copy_byte_per_s for rates in memory]
    cached_reads = [rates.cache_byte_per_s for rates in memory]
    dispatches = [rates.dispatch_ns for rates in memory]
    spread = Spread(
        dense_flop_per_s={
            dtype: _spread([peaks.dense_flop_per_s[dtype] for peaks in passes])
            for dtype in passes[0].dense_flop_per_s
        },
        byte_per_s=_spread([p.byte_per_s for p in passes if p.byte_per_s is not None]),
        copy_byte_per_s=_spread(copies),
        cache_byte_per_s=_spread(cached_reads),
        dispatch_ns=_spread(dispatches),
    )
    least = least_times(by_size)
    floors = [p.kernel_floor_ns for p in passes if p.kernel_floor_ns is not None]
    return CalibrationPasses(
        statistic=f"best of {PASSES} passes of the {STATISTIC}",
        passes=PASSES,
        repeats=passes[0].repeats,
        threads=passes[0].threads,
        kernel_floor_ns=round(min(floors)) if floors else None,
        spread=spread,
        agree=max([*spread.dense_flop_per_s.values(), spread.byte_per_s]) <= AGREE,
        copy_byte_per_s=round(statistics.median(copies)),
        cache_byte_per_s=round(statistics.median(cached_reads)),
        dispatch_ns=round(statistics.median(dispatches)),
        gemm_sweep=[row for peaks in passes for row in peaks.gemm_sweep],
        op_ns=None if least.cost is None else max(1, round(least.cost.op_ns)),
        forward_ns=None if least.cost is None else round(least.cost.forward_ns),
        gemms=least.gemms,
        streams=least.streams,
        disturbed=disturbed,
    )


def _spread(values: list[float]) -> float:
    """Return (largest − smallest) ÷ median."""
    return (max(values) - min(values)) / statistics.median(values)
