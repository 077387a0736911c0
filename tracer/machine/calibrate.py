"""This machine as an entry of the device table, measured in three passes of a few seconds.

Out: the object of `devices --json` plus "measured", with whether the passes agree. Rates are FLOP/s
and bytes/s. The newest result of a device is kept in the user's cache.
"""

from __future__ import annotations

import json
import re
import statistics
from functools import reduce
from pathlib import Path

import torch

from prunescope.taxonomy.atomic_write import write_file
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.formats import UnknownVersion, decode_file, plain
from prunescope.taxonomy.run_blocks import (
    CalibratedDevice,
    CalibrationPasses,
    MeasuredPeaks,
    Spread,
)
from prunescope.tracer.machine.device import (
    cache_folder,
    device_info,
    last_cache_bytes,
    pick_device,
)
from prunescope.tracer.machine.disturbance import watched
from prunescope.tracer.machine.memory_rates import MemoryRates, better_rates, measure_memory
from prunescope.tracer.machine.peaks import STATISTIC, better_peaks, measure_peaks

PASSES = 3
AGREE = 0.1  # largest spread of passes that agree, as a share of their median
_VENDORS = {"cuda": "NVIDIA", "rocm": "AMD"}
_NOT_IN_SLUG = re.compile(r"\((r|tm|c)\)|\b(processor|cpu)\b|@.*", re.IGNORECASE)


def calibrate(device: str = "auto", *, budget_s: float = 3.0) -> CalibratedDevice:
    """Measure a device, `budget_s` seconds a pass; store and return its entry.

    A peak is the best of the passes, as a disturbance lowers it. Raises PrunescopeError for an
    unknown or absent device.
    """
    place = pick_device(device)
    peaks, memory = [], []
    disturbed: list[str] = []
    for _ in range(PASSES):
        peaks.append(measure_peaks(place, "bf16", budget_s=budget_s))
        rates, reasons = _memory(place)
        memory.append(rates)
        disturbed += reasons
    info = device_info(place)
    name = str(info.name)
    best = reduce(better_peaks, peaks)
    entry = CalibratedDevice(
        name=slug(name),
        aliases=[name],
        vendor=_VENDORS.get(str(info.kind), name.split()[0]),
        dense_flop_per_s=best.dense_flop_per_s,
        byte_per_s=None if best.byte_per_s is None else round(best.byte_per_s),
        sm=info.properties.get("multi_processor_count"),
        l2_bytes=last_cache_bytes(place),
        source="measured by prunescope calibrate",
        verified=False,  # no independent source confirms it
        measured=_measured(peaks, memory, list(dict.fromkeys([*best.disturbed, *disturbed]))),
    )
    _keep(entry)
    return entry


def _memory(device: torch.device) -> tuple[MemoryRates, list[str]]:
    """Memory rates, and what disturbed them. Disturbed rates are measured once more, and the better
    ones count; then the reasons are those of the second measurement."""
    found, reasons = watched(lambda: measure_memory(device), device)
    if not reasons:
        return found, []
    again, still = watched(lambda: measure_memory(device), device)
    return better_rates(found, again), still


def newest(name: str) -> CalibratedDevice | None:
    """The newest stored entry of a device, by its name in torch; None if there is none. Raises
    PrunescopeError if a newer prunescope wrote it."""
    path = _kept(slug(name))
    try:
        return decode_file(path, CalibratedDevice, where=str(path), hint="run calibrate again")
    except UnknownVersion:
        raise
    except (OSError, PrunescopeError):  # a damaged one counts as none
        return None


def slug(name: str) -> str:
    """A device id from a device's name: "NVIDIA L4" is nvidia-l4."""
    return re.sub(r"[^a-z0-9]+", "-", _NOT_IN_SLUG.sub(" ", name).lower()).strip("-")


def _measured(
    passes: list[MeasuredPeaks], memory: list[MemoryRates], disturbed: list[str]
) -> CalibrationPasses:
    dense = passes[0].dense_flop_per_s
    spread = Spread(
        dense_flop_per_s={n: _spread([one.dense_flop_per_s[n] for one in passes]) for n in dense},
        byte_per_s=_spread([one.byte_per_s for one in passes if one.byte_per_s is not None]),
        copy_byte_per_s=_spread([one.copy_byte_per_s for one in memory]),
        cache_byte_per_s=_spread([one.cache_byte_per_s for one in memory]),
        dispatch_ns=_spread([one.dispatch_ns for one in memory]),
    )
    floors = [one.kernel_floor_ns for one in passes if one.kernel_floor_ns is not None]
    return CalibrationPasses(
        statistic=f"best of {PASSES} passes of the {STATISTIC}",
        passes=PASSES,
        repeats=passes[0].repeats,
        threads=passes[0].threads,
        kernel_floor_ns=round(min(floors)),
        spread=spread,
        agree=max([*spread.dense_flop_per_s.values(), spread.byte_per_s]) <= AGREE,
        copy_byte_per_s=round(statistics.median(one.copy_byte_per_s for one in memory)),
        cache_byte_per_s=round(statistics.median(one.cache_byte_per_s for one in memory)),
        dispatch_ns=round(statistics.median(one.dispatch_ns for one in memory)),
        gemm_sweep=[row for one in passes for row in one.gemm_sweep],
        disturbed=disturbed,
    )


def _spread(values: list[float]) -> float:
    """(largest − smallest) ÷ median."""
    return (max(values) - min(values)) / statistics.median(values)


def _kept(name: str) -> Path:
    return cache_folder() / "devices" / f"{name}.json"


def _keep(entry: CalibratedDevice) -> None:
    path = _kept(entry.name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, json.dumps(plain(entry), indent=1).encode())
    except OSError:
        return  # the entry is returned even if the cache cannot be written
