"""The device memory that torch's allocator held in the steps of a phase.

In: a Trace with snapshots (`profile_memory=True`), the windows of its steps. Out: a sentence.
"""

from __future__ import annotations

from prunescope.analysis.timeline.intervals import Windows
from prunescope.analysis.trace.events import Trace

_GB = 1e9


def memory_notes(trace: Trace, windows: Windows) -> list[str]:
    """A note with the most that was allocated at once in the steps; none without snapshots."""
    if not trace.on_device or not trace.memory or not len(trace.memory["ts"]):
        return []
    inside = windows.step_of(trace.memory["ts"]) >= 0
    allocated, reserved = (trace.memory[name][inside] for name in ("allocated", "reserved"))
    if not len(allocated) or allocated.max() < 0:
        return []
    of = f" ({reserved.max() / _GB:,.3g} GB were reserved)" if reserved.max() > 0 else ""
    return [
        f"the allocator held at most {allocated.max() / _GB:,.3g} GB of device memory in "
        f"the steps{of}, by {len(allocated):,} snapshots"
    ]
