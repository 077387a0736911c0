"""Time of a call on a device, as raw samples, and the kernels that it launches.

In: functions that do the same on different copies of their data. Out: ns a call. "graph": CUDA
events around a replay of many calls, so the device's own time; "loop": events around the same calls
from Python, with what launching costs where that is longer; on a CPU the loop's wall time.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from gpu_slice import reason_of
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from prunescope.tracer.machine.device import last_cache_bytes, synchronize

Call = Callable[[], object]
SAMPLES, FEW_SAMPLES = 20, 3
_SAMPLE_NS = 2e6  # a sample is as many calls as take this long
_MOST_CALLS = 256
_MOST_COPIES = 32


def copies(num_bytes: int, device: torch.device) -> int:
    """How many copies of an operand exceed the last cache three times over: a model's weights come
    from memory, and one copy used again and again would not."""
    cache = last_cache_bytes(device) if device.type == "cuda" else None
    return 1 if not cache else max(1, min(_MOST_COPIES, math.ceil(3 * cache / num_bytes)))


def timed(calls: Sequence[Call], device: torch.device, *, tiny: bool) -> dict[str, Any]:
    """{"loop": …, "graph": …}, each {"samples_ns", "calls"} or {"why"}; `calls` take turns."""
    samples = FEW_SAMPLES if tiny else SAMPLES
    for call in calls:
        call()
    synchronize(device)
    if device.type == "cpu":
        return {"loop": _wall(calls, samples=samples), "copies": len(calls)}
    once_ns = _events(lambda: [call() for call in calls], samples=3)[1] / len(calls)
    wanted = min(_MOST_CALLS, round(_SAMPLE_NS / max(once_ns, 1.0)))
    rounds = max(1, wanted // len(calls))
    count = rounds * len(calls)

    def loop() -> None:
        for _ in range(rounds):
            for call in calls:
                call()

    found = {"loop": _sampled(loop, count, samples), "copies": len(calls)}
    try:
        replay = captured(loop, device)
    except RuntimeError as error:
        return found | {"graph": {"why": reason_of(error.__context__ or error)}}
    return found | {"graph": _sampled(replay, count, samples)}


def captured(run: Call, device: torch.device) -> Callable[[], None]:
    """`run` as a CUDA graph. Raises RuntimeError where it cannot be one."""
    graph = torch.cuda.CUDAGraph()
    synchronize(device)
    # A capture that fails leaves its own stream current: the outer context brings ours back.
    with torch.cuda.stream(torch.cuda.current_stream(device)), torch.cuda.graph(graph):
        run()
    return graph.replay


def wall_ns(run: Call, device: torch.device, *, samples: int) -> list[int]:
    """Host time of `run` and of waiting for the device, each time; run once before."""
    found = []
    run()
    synchronize(device)
    for _ in range(samples):
        start = time.perf_counter_ns()
        run()
        synchronize(device)
        found.append(time.perf_counter_ns() - start)
    return found


def named(call: Call, device: torch.device) -> dict[str, Any]:
    """{"kernels": names of those that one call launches, in order}; nothing on a CPU."""
    if device.type == "cpu":
        return {}
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as session:
        call()
        synchronize(device)
    events = [e for e in session.events() or [] if e.device_type == DeviceType.CUDA]
    events.sort(key=lambda e: e.time_range.start)
    return {"kernels": [e.name[:200] for e in events[:8]]}


def _sampled(run: Call, count: int, samples: int) -> dict[str, Any]:
    ns = [round(t / count, 1) for t in _events(run, samples=samples)]
    return {"samples_ns": ns, "calls": count}


def _events(run: Call, *, samples: int) -> list[float]:
    """Times between events, in ns; the first run is a warm-up of its own and left out."""
    run()
    pairs = []
    for _ in range(samples):
        first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        first.record()
        run()
        last.record()
        pairs.append((first, last))
    torch.cuda.synchronize()
    return [first.elapsed_time(last) * 1e6 for first, last in pairs]


def _wall(calls: Sequence[Call], *, samples: int) -> dict[str, Any]:
    found = []
    for _ in range(samples):
        start = time.perf_counter_ns()
        for call in calls:
            call()
        found.append(round((time.perf_counter_ns() - start) / len(calls), 1))
    return {"samples_ns": found, "calls": len(calls)}
