"""What a process of the pool runs in a test."""

from __future__ import annotations

import time
from pathlib import Path


def die_or_double(task: bytes) -> bytes:
    """The task twice; `die` ends the process."""
    if task == b"die":
        raise SystemExit(1)
    return task * 2


def begin_and_sleep(task: bytes) -> bytes:
    """Leaves a file of that name, and works for a minute."""
    Path(task.decode()).touch()
    time.sleep(60)
    return task
