"""What the system says of the clocks of the device at hand, in Hz."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from prunescope.tracer.machine.gpu_tools import nvidia_smi

if TYPE_CHECKING:
    import torch

_CPU_CLOCK = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq")  # kHz
_CPU_INFO = Path("/proc/cpuinfo")


def read_clocks(device: torch.device) -> dict[str, float] | None:
    """{"core_hz", "memory_hz"} as far as they are known; None where nothing can be read."""
    return _gpu(device) if device.type == "cuda" else _cpu()


def _gpu(device: torch.device) -> dict[str, float] | None:
    try:
        words = ",".join(nvidia_smi("clocks.sm,clocks.mem", device) or ()).split(",")
        core, memory = (float(word) * 1e6 for word in words)
    except ValueError:
        return None
    return {"core_hz": core, "memory_hz": memory}


def _cpu() -> dict[str, float] | None:
    try:
        if _CPU_CLOCK.is_file():
            return {"core_hz": float(_CPU_CLOCK.read_text()) * 1e3}
        found = re.search(r"^cpu MHz\s*:\s*([\d.]+)", _CPU_INFO.read_text(errors="replace"), re.M)
    except (OSError, ValueError):
        return None
    return {"core_hz": float(found.group(1)) * 1e6} if found else None
