"""What the system says of the device at hand: its clocks in Hz, and what nvidia-smi knows."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_CPU_CLOCK = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq")  # kHz
_CPU_INFO = Path("/proc/cpuinfo")


def read_clocks(device: torch.device) -> dict[str, float] | None:
    """{"core_hz", "memory_hz"} as far as they are known; None where nothing can be read."""
    return _gpu(device.index or 0) if device.type == "cuda" else _cpu()


def nvidia_smi(fields: str, index: int | None = None) -> list[str] | None:
    """`fields` (a,b,...) without units, a line a GPU, of all GPUs or of one; None where the driver
    does not answer."""
    return _asked(f"--query-gpu={fields}", index)


def num_processes(index: int) -> int:
    """Processes that compute on a GPU, ours among them; 0 where the driver does not say."""
    return len(_asked("--query-compute-apps=pid", index) or ())


def _asked(query: str, index: int | None) -> list[str] | None:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    words = [query, "--format=csv,noheader,nounits"]
    words += [] if index is None else [f"--id={index}"]
    try:
        done = subprocess.run(
            [tool, *words], capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return None
    return done.stdout.splitlines() if done.returncode == 0 else None


def _gpu(index: int) -> dict[str, float] | None:
    try:
        words = ",".join(nvidia_smi("clocks.sm,clocks.mem", index) or ()).split(",")
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
