"""What a process of the pool runs in a test."""

from __future__ import annotations

import time
from pathlib import Path


def die_or_double(task: str) -> str:
    """The task twice; `die` ends the process."""
    if task == "die":
        raise SystemExit(1)
    return task * 2


def begin_and_sleep(task: str) -> str:
    """Leaves a file of that name, and works for a minute."""
    Path(task).touch()
    time.sleep(60)
    return task


def reply_late(task: str) -> str:
    """Leaves a file of that name, and replies after a second with more than a pipe holds."""
    Path(task).touch()
    time.sleep(1)
    return task * 100_000
