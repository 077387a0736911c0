"""This machine as an entry of the device table, measured in three passes of a few seconds.

Out: the object of `devices --json` plus "measured", which says whether the passes agree. Rates are
FLOP/s and bytes/s. The newest one of a device is kept in the user's cache.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from prunescope.taxonomy.atomic_write import write_file
from prunescope.tracer.machine.cache import cache_folder
from prunescope.tracer.machine.device import device_info, last_cache_bytes, pick_device
from prunescope.tracer.machine.memory_rates import measure_memory
from prunescope.tracer.machine.peaks import STATISTIC, measure_peaks

PASSES = 3
AGREE = 0.1  # passes further apart than this share of their median do not
_MEMORY = ("copy_byte_per_s", "cache_byte_per_s", "dispatch_ns")
_VENDORS = {"cuda": "NVIDIA", "rocm": "AMD"}
_MARKS = re.compile(r"\((r|tm|c)\)|\b(processor|cpu)\b|@.*", re.IGNORECASE)


def calibrate(device: str = "auto", *, budget_s: float = 3.0) -> dict[str, Any]:
    """Measure a device, `budget_s` seconds a pass; keep and return its entry.

    Raises PrunescopeError where the device is unknown or absent.
    """
    place = pick_device(device)
    passes = [
        {**measure_peaks(place, "bf16", budget_s=budget_s), **measure_memory(place)}
        for _ in range(PASSES)
    ]
    info = device_info(place)
    entry = {
        "name": slug(info["name"]),
        "aliases": [info["name"]],
        "vendor": _VENDORS.get(info["kind"], info["name"].split()[0]),
        "dense_flop_per_s": _rates(passes, statistics.median),
        "byte_per_s": round(statistics.median(one["byte_per_s"] for one in passes)),
        "sm": info["properties"].get("multi_processor_count"),
        "l2_bytes": last_cache_bytes(place),
        "source": "measured by prunescope calibrate",
        "verified": False,  # no second witness
        "measured": _measured(passes),
    }
    _keep(entry)
    return entry


def newest(name: str) -> dict[str, Any] | None:
    """The newest entry of a device, by the name torch gives it; None where there is none."""
    try:
        found: dict[str, Any] = json.loads(_kept(slug(name)).read_bytes())
    except (OSError, ValueError):
        return None
    return found


def slug(name: str) -> str:
    """A device id from a device's name: "NVIDIA L4" is nvidia-l4."""
    return re.sub(r"[^a-z0-9]+", "-", _MARKS.sub(" ", name).lower()).strip("-")


def _rates(passes: list[dict[str, Any]], statistic: Any) -> dict[str, float]:
    names = passes[0]["dense_flop_per_s"]
    return {name: statistic([one["dense_flop_per_s"][name] for one in passes]) for name in names}


def _measured(passes: list[dict[str, Any]]) -> dict[str, Any]:
    rates = _rates(passes, _spread)
    bandwidth = _spread([one["byte_per_s"] for one in passes])
    memory = {name: [one[name] for one in passes] for name in _MEMORY}
    return {
        "statistic": f"median over {PASSES} passes of the {STATISTIC}",
        "passes": PASSES,
        "repeats": passes[0]["repeats"],
        "threads": passes[0]["threads"],
        "kernel_floor_ns": round(statistics.median(one["kernel_floor_ns"] for one in passes)),
        # (largest - smallest) / median over the passes
        "spread": {
            "dense_flop_per_s": rates,
            "byte_per_s": bandwidth,
            **{name: _spread(found) for name, found in memory.items()},
        },
        "agree": max([*rates.values(), bandwidth]) <= AGREE,
        **{name: round(statistics.median(found)) for name, found in memory.items()},
        "gemm_sweep": [row for one in passes for row in one["gemm_sweep"]],
    }


def _spread(values: Iterable[float]) -> float:
    found = list(values)
    return (max(found) - min(found)) / statistics.median(found)


def _kept(name: str) -> Path:
    return cache_folder() / "devices" / f"{name}.json"


def _keep(entry: dict[str, Any]) -> None:
    path = _kept(entry["name"])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, json.dumps(entry, indent=1).encode())
    except OSError:
        return  # a cache that cannot be written is no reason to withhold what was measured
