"""This machine as an entry of the device table, measured in three passes of a few seconds.

Out: the object of `devices --json` plus "measured", which says whether the passes agree. Rates are
FLOP/s and bytes/s. The newest one of a device is kept in the user's cache.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable
from pathlib import Path

from prunescope.taxonomy import json_fields
from prunescope.taxonomy.atomic_write import write_file
from prunescope.taxonomy.run_blocks import (
    CalibratedDevice,
    CalibrationPasses,
    MeasuredPeaks,
    Spread,
)
from prunescope.tracer.machine.cache import cache_folder
from prunescope.tracer.machine.device import device_info, last_cache_bytes, pick_device
from prunescope.tracer.machine.memory_rates import MemoryRates, measure_memory
from prunescope.tracer.machine.peaks import STATISTIC, measure_peaks

Statistic = Callable[[list[float]], float]
PASSES = 3
AGREE = 0.1  # passes further apart than this share of their median do not
_VENDORS = {"cuda": "NVIDIA", "rocm": "AMD"}
_MARKS = re.compile(r"\((r|tm|c)\)|\b(processor|cpu)\b|@.*", re.IGNORECASE)


def calibrate(device: str = "auto", *, budget_s: float = 3.0) -> CalibratedDevice:
    """Measure a device, `budget_s` seconds a pass; keep and return its entry.

    Raises PrunescopeError where the device is unknown or absent.
    """
    place = pick_device(device)
    peaks, memory = [], []
    for _ in range(PASSES):
        peaks.append(measure_peaks(place, "bf16", budget_s=budget_s))
        memory.append(measure_memory(place))
    info = device_info(place)
    name = str(info.name)
    entry = CalibratedDevice(
        name=slug(name),
        aliases=[name],
        vendor=_VENDORS.get(str(info.kind), name.split()[0]),
        dense_flop_per_s=_rates(peaks, statistics.median),
        byte_per_s=round(statistics.median(_bandwidths(peaks))),
        sm=info.properties.get("multi_processor_count"),
        l2_bytes=last_cache_bytes(place),
        source="measured by prunescope calibrate",
        verified=False,  # no second witness
        measured=_measured(peaks, memory),
    )
    _keep(entry)
    return entry


def newest(name: str) -> CalibratedDevice | None:
    """The newest entry of a device, by the name torch gives it; None where there is none."""
    try:
        found = json.loads(_kept(slug(name)).read_bytes())
        return json_fields.read(CalibratedDevice, found)
    except (OSError, ValueError, TypeError, AttributeError):  # none, or of another version
        return None


def slug(name: str) -> str:
    """A device id from a device's name: "NVIDIA L4" is nvidia-l4."""
    return re.sub(r"[^a-z0-9]+", "-", _MARKS.sub(" ", name).lower()).strip("-")


def _rates(passes: list[MeasuredPeaks], statistic: Statistic) -> dict[str, float]:
    names = passes[0].dense_flop_per_s
    return {name: statistic([one.dense_flop_per_s[name] for one in passes]) for name in names}


def _bandwidths(passes: list[MeasuredPeaks]) -> list[float]:
    return [one.byte_per_s for one in passes if one.byte_per_s is not None]


def _measured(passes: list[MeasuredPeaks], memory: list[MemoryRates]) -> CalibrationPasses:
    spread = Spread(
        dense_flop_per_s=_rates(passes, _spread),
        byte_per_s=_spread(_bandwidths(passes)),
        copy_byte_per_s=_spread([one.copy_byte_per_s for one in memory]),
        cache_byte_per_s=_spread([one.cache_byte_per_s for one in memory]),
        dispatch_ns=_spread([one.dispatch_ns for one in memory]),
    )
    floors = [one.kernel_floor_ns for one in passes if one.kernel_floor_ns is not None]
    return CalibrationPasses(
        statistic=f"median over {PASSES} passes of the {STATISTIC}",
        passes=PASSES,
        repeats=passes[0].repeats,
        threads=passes[0].threads,
        kernel_floor_ns=round(statistics.median(floors)),
        spread=spread,
        agree=max([*spread.dense_flop_per_s.values(), spread.byte_per_s]) <= AGREE,
        copy_byte_per_s=round(statistics.median(one.copy_byte_per_s for one in memory)),
        cache_byte_per_s=round(statistics.median(one.cache_byte_per_s for one in memory)),
        dispatch_ns=round(statistics.median(one.dispatch_ns for one in memory)),
        gemm_sweep=[row for one in passes for row in one.gemm_sweep],
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
        write_file(path, json.dumps(json_fields.plain(entry), indent=1).encode())
    except OSError:
        return  # a cache that cannot be written is no reason to withhold what was measured
