"""The processor of this machine: the cores that we may use, and how busy they are.

The system's own files are read; a value is None where the system does not report it. torch is not
imported here.
"""

from __future__ import annotations

import os


def num_cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def load_average() -> float | None:
    """Return the number of runnable processes, averaged over the last minute; None if unknown."""
    try:
        return os.getloadavg()[0]
    except (OSError, AttributeError):
        return None


def load_notes(before: float | None, after: float | None, cores: int) -> list[str]:
    """Say why times are not valid, by the load averages before and after a capture.

    The load after a capture includes this process, and may therefore be higher by one. The list is
    empty for a quiet machine.
    """
    if before is not None and before > cores:
        return [f"load average {before:.1f} on {cores} cores before the capture"]
    if after is not None and after > cores + 1:
        return [f"load average {after:.1f} on {cores} cores in the capture"]
    return []
