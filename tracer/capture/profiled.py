"""The profiled pass: steps of the variants take turns in one session of torch.profiler.

In: loops by variant. Out: the session's raw Chrome trace and the order in which the steps ran.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from prunescope.tracer.capture.chrome import PHASE, STEP, WARMUP, Turn
from prunescope.tracer.capture.phases import Loop
from prunescope.tracer.capture.scopes import module_scopes
from prunescope.tracer.machine.device import synchronize


def profile_loops(
    loops: Mapping[str, Loop],
    models: Iterable[torch.nn.Module],
    *,
    steps: int,
    device: torch.device,
    raw: Path,
    advance: Callable[[], None],
) -> list[Turn]:
    """Profile step −1 (thrown away: it pays for the profiler's start) and 0 … steps−1 of each loop.

    Writes the Chrome trace to `raw` and returns one Turn a step, in order of time. Every step ends
    with a synchronisation inside its annotation, so that no device work leaks into the next turn.
    """
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    turns: list[Turn] = []
    with ExitStack() as stack:
        for model in models:
            stack.enter_context(module_scopes(model))
        session = stack.enter_context(profile(activities=activities, record_shapes=True))
        stack.enter_context(record_function(PHASE))
        for index in range(-1, steps):
            for name, loop in loops.items():
                label = WARMUP if index < 0 else f"{STEP}{index}"
                loop.prepare_step(index)
                synchronize(device)
                with record_function(label):
                    output = loop.step(index)
                    synchronize(device)
                del output
                turns.append(Turn(variant=name, label=label))
            advance()
    session.export_chrome_trace(str(raw))
    return turns
