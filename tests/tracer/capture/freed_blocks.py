"""A process that takes 200 MB in small blocks, frees them, and prints how many bytes the system got
back. No test in it: `python -m tests.tracer.capture.freed_blocks`."""

from __future__ import annotations

import sys

import psutil

from prunescope.tracer.capture.memory import release


def freed() -> int:
    """Of blocks too small to be mapped on their own, and one above them that keeps the heap from
    shrinking."""
    blocks = [b"x" * int("100000") for _ in range(2000)]
    last = b"x" * int("100000")
    full: int = psutil.Process().memory_info().rss
    del blocks
    release()
    assert last
    return full - int(psutil.Process().memory_info().rss)


if __name__ == "__main__":
    sys.stdout.write(f"{freed()}\n")
