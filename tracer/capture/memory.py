"""The peak memory of one step in bytes: weights, the filled cache and what a forward adds to them.

A device reports it by its allocator. For a CPU, a separate pass reads the profiler's allocation
events.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from prunescope.taxonomy.timings import forwards
from prunescope.tracer.capture.phases import Loop
from prunescope.tracer.machine.backends import backend_of
from prunescope.tracer.machine.device import synchronize
from prunescope.tracer.model import compat
from prunescope.tracer.model.packed_weights import weight_bytes

_STEP = "prunescope.memory"


def release() -> None:
    """Collect garbage, and give freed blocks back to the system.

    glibc keeps the blocks of a deleted model, so that a process with several captures would grow.
    """
    gc.collect()
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def peak_and_cache_bytes(
    loop: Loop, model: torch.nn.Module, device: torch.device
) -> tuple[int | None, int]:
    """Return the peak of one step with weights and cache, and the bytes of the cache.

    The peak is None if neither the allocator nor the profiler counted anything, or if the size of
    the weights is not known.
    """
    loop.cache = None
    loop.run = None  # a recorded step holds its old cache and the memory of a graph
    used = _used_on_cpu(loop) if device.type == "cpu" else _used_on_gpu(loop, device)
    loop.prepare()
    with forwards():
        output = loop.sample()
    del output
    weights = weight_bytes(model)
    peak = None if used is None or weights is None else weights + used
    return peak, compat.cache_bytes(loop.cache)


def _used_on_gpu(loop: Loop, device: torch.device) -> int | None:
    """Return the peak of what a step and its cache allocate; None where no peak is counted."""
    backend = backend_of(device)
    if backend.peak is None:
        return None
    synchronize(device)
    before = backend.allocated_bytes(device)
    loop.prepare_step(-1)
    synchronize(device)
    held = backend.allocated_bytes(device)
    backend.reset_peak(device)
    with forwards():
        output = loop.step(-1)
        synchronize(device)
    del output
    # A replayed graph allocates nothing: its memory was allocated by the capture.
    recorded = getattr(loop.run, "peak_bytes", 0)
    return max(backend.peak_bytes(device), held + recorded) - before


def _used_on_cpu(loop: Loop) -> int | None:
    """Return the peak of what a step allocates on a CPU, its cache included; None without events.

    The cache is made within the session, because the profiler does not know earlier blocks.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as session:
        loop.prepare_step(-1)
        with forwards(), record_function(_STEP):
            output = loop.step(-1)
        del output
    results = getattr(session.profiler, "kineto_results", None)
    if results is None:
        return None
    events = results.events()
    start_ns = next(e.start_ns() for e in events if e.name() == _STEP)
    held = peak = 0
    for at_ns, change in sorted(
        (e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"
    ):
        held += change
        if at_ns >= start_ns:
            peak = max(peak, held)
    return peak or None
