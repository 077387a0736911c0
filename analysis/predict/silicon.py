"""Which devices are the same chip, and what a chip's best published GEMM reaches.

In: a Device. Out: names of the device table that share its silicon, and FLOP/s. A100 and A800,
H100 SXM and H200 differ in memory and links alone: a rate seen on one holds for the other.
"""

from __future__ import annotations

from functools import lru_cache

from prunescope.analysis.device.hardware import DEVICES, Device

_HALF = ("bf16", "fp16")


def same_silicon(device: Device, name: str) -> bool:
    """Whether the device of this name has as many units at the same clock."""
    return name == device.name or name in _twins(device.sm, device.boost_hz)


def achievable(device: Device, dtype: str) -> float | None:
    """FLOP/s of the best published GEMM as a share of the sheet: of this device, else of its other
    half-precision format where the sheet gives both one peak, else of a device of its silicon."""
    sheet = device.peak(dtype)
    if not sheet:
        return None
    names = _HALF if dtype in _HALF else (dtype,)
    twins = [d for d in DEVICES if d.name in _twins(device.sm, device.boost_hz)]
    for one in (device, *twins):
        for name in sorted(names, key=lambda n: n != dtype):
            reached, peak = one.achievable_flop_per_s.get(name), one.peak(name)
            if reached and peak and abs(peak / sheet - 1) < 0.02:
                return reached / peak
    return None


@lru_cache
def _twins(sm: int | None, boost_hz: float | None) -> tuple[str, ...]:
    if sm is None or boost_hz is None:
        return ()
    return tuple(d.name for d in DEVICES if d.sm == sm and d.boost_hz == boost_hz)
