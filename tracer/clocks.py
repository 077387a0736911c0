"""Clocks of the device at hand, in Hz, where the system lets them be read."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import torch

_CPU_CLOCK = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq")  # kHz
_CPU_INFO = Path("/proc/cpuinfo")


def read_clocks(device: torch.device) -> dict[str, float] | None:
    """{"core_hz", "memory_hz"} as far as they are known; None where nothing can be read."""
    return _gpu(device.index or 0) if device.type == "cuda" else _cpu()


def _gpu(index: int) -> dict[str, float] | None:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    query = ["--query-gpu=clocks.sm,clocks.mem", "--format=csv,noheader,nounits", f"--id={index}"]
    try:
        done = subprocess.run(
            [tool, *query], capture_output=True, text=True, timeout=20, check=False
        )
        core, memory = (float(part) * 1e6 for part in done.stdout.split(","))
    except (OSError, ValueError, subprocess.TimeoutExpired):
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
