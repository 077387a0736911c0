"""The causes of idle time of a device, and their words."""

from __future__ import annotations

# Every ns of a gap has one of these causes; kernels/idle.py finds it.
CAUSE_WORDS = {
    "host": "a late host",
    "first_call": "first calls or compilation",
    "allocator": "calls of the allocator",
    "collective": "collectives of host threads",
    "sync": "waits of the host",
    "memcpy": "copies of the host",
    "blocked": "streams that wait",
    "device": "launched in time",
    "unknown": "unattributed",
    "other_step": "work of a later step",
}
CAUSES = tuple(CAUSE_WORDS)
