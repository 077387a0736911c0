"""The processor of this machine: its name, the cores that we may use, and how busy they are.

In: the system's own files. Out: plain values; None where the system does not tell. No torch here.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path

CPU_INFO = Path("/proc/cpuinfo")


def cpu_name() -> str:
    """The name of the CPU as Linux or Python gives it."""
    try:
        lines = CPU_INFO.read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def num_cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def load_average() -> float | None:
    """Runnable processes, averaged over the last minute; None if unknown."""
    try:
        return os.getloadavg()[0]
    except (OSError, AttributeError):
        return None


def load_notes(before: float | None, after: float | None, cores: int) -> list[str]:
    """Why times are not valid, by the load averages around them; that after includes us."""
    if before is not None and before > cores:
        return [f"load average {before:.1f} on {cores} cores before the capture"]
    if after is not None and after > cores + 1:
        return [f"load average {after:.1f} on {cores} cores in the capture"]
    return []
