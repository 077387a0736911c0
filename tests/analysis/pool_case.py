"""What a process of the pool runs in a test."""

from __future__ import annotations


def die_or_double(task: bytes) -> bytes:
    """The task twice; `die` ends the process."""
    if task == b"die":
        raise SystemExit(1)
    return task * 2
