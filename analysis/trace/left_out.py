"""What a trimmed trace says of the events that were left out of it.

In: the metadata around the events of a trace. Out: counts; 0 where it says nothing that holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LEFT_OUT = "prunescope.left_out"  # a key beside traceEvents
STACKS = "stacks"
_MOST = 2**53  # of events: JSON readers agree up to here


def stacks_left_out(meta: Mapping[str, Any]) -> int:
    """Calls of Python functions that were recorded and left out."""
    said = meta.get(LEFT_OUT)
    count = said.get(STACKS) if isinstance(said, dict) else None
    known = isinstance(count, int) and not isinstance(count, bool) and 0 < count <= _MOST
    return int(count) if known and count is not None else 0
