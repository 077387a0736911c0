"""The conditions of a capture: how busy the machine was, its threads, and memory that runs out.

In: the machine. Out: the `timing` note of run.json, and contexts around a capture.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.run_blocks import TimingNote
from prunescope.tracer.machine.device import load_average, num_cores

# In the words of torch: memory of the CPU, and sizes beyond 64 bits.
_TOO_LARGE = re.compile(
    "can't allocate memory|not enough memory|size calculation overflow|multiplication overflow"
    "|Overflow when unpacking|too large to convert|maximum supported dimension"
)


def timing_note(load_before: float | None) -> TimingNote:
    """How busy the machine was. A minute's average includes this process, at most its threads."""
    load_after, cores = load_average(), num_cores()
    notes = []
    if load_before is not None and load_before > cores:
        notes.append(f"load average {load_before:.1f} on {cores} cores before the capture")
    elif load_after is not None and load_after > cores + 1:
        notes.append(f"load average {load_after:.1f} on {cores} cores in the capture")
    return TimingNote(
        load_average={"before": load_before, "after": load_after}, cores=cores, notes=notes
    )


@contextmanager
def thread_count(count: int | None) -> Iterator[None]:
    """torch's CPU threads inside; as they were afterwards."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def memory_explained() -> Iterator[None]:
    """Memory that runs out, and a size that no tensor has, are a user's error, with what to change.

    torch has an exception of its own for devices alone; of a CPU it raises what the words tell.
    """
    try:
        yield
    except (RuntimeError, MemoryError, OverflowError, TypeError, ValueError) as error:
        known = isinstance(error, torch.OutOfMemoryError | MemoryError | OverflowError)
        if not known and not _TOO_LARGE.search(str(error)):
            raise
        raise PrunescopeError(
            "the model and its inputs do not fit in memory",
            hint="use a smaller --batch or --prompt-len, --dtype bfloat16, or another --device",
        ) from error
