"""The profiled pass: steps of the variants in turn, in one session of torch.profiler.

Steps of variants come in, of a capture or of a user's loop; a Chrome trace for each variant goes
out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.profiler import profile, record_function

from prunescope.taxonomy.atomic_write import scratch_folder
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.timings import add_forward, part
from prunescope.tracer.capture.chrome import PHASE, STEP, WARMUP, ChromeTrace, Turn, split
from prunescope.tracer.capture.phases import Loop
from prunescope.tracer.capture.scopes import module_scopes
from prunescope.tracer.machine.backends import backend_of
from prunescope.tracer.machine.device import synchronize


class ProfiledSession:
    """A session of the profiler from the first step to the last, with hooks on `models`."""

    def __init__(self, models: Iterable[torch.nn.Module], device: torch.device) -> None:
        self._models, self._device = list(models), device
        self._turns: list[Turn] = []
        self._stack = ExitStack()

    def __enter__(self) -> ProfiledSession:
        activities = backend_of(self._device).activities()
        with ExitStack() as stack:
            for model in self._models:
                stack.enter_context(module_scopes(model))
            self._profile = stack.enter_context(profile(activities=activities, record_shapes=True))
            stack.enter_context(record_function(PHASE))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    @contextmanager
    def turn(self, variant: str, label: str) -> Iterator[None]:
        """Annotate one step of a variant: the block is the step.

        The device is waited for within the annotation, so that the step's device work does not run
        into the next step.
        """
        synchronize(self._device)
        begun = time.perf_counter_ns()
        with record_function(label):
            yield
            synchronize(self._device)
        ended = time.perf_counter_ns()
        add_forward(ended - begun)
        self._turns.append(Turn(variant, label, (begun, ended)))

    @part("profile")
    def traces(self) -> dict[str, ChromeTrace]:
        """Return a Chrome trace for each variant of a closed session.

        Raises:
            PrunescopeError: The profiler's times are no evidence: the clock was set meanwhile.
        """
        with scratch_folder() as folder:
            raw = folder / "session.json"
            self._profile.export_chrome_trace(str(raw))
            try:
                return split(raw.read_bytes(), self._turns)
            except ValueError as error:
                raise PrunescopeError(
                    "the times of the profiled steps contradict each other, as if the clock of "
                    "this machine had been set while they ran",
                    hint="trace again, without whatever sets the clock",
                ) from error


def label_of(index: int) -> str:
    """Return the annotation of profiled step `index`; step −1 is the one that is thrown away."""
    return WARMUP if index < 0 else f"{STEP}{index}"


@part("profile")
def profile_loops(
    loops: Mapping[str, Loop],
    models: Iterable[torch.nn.Module],
    *,
    steps: range,
    device: torch.device,
    advance: Callable[[], None],
) -> ProfiledSession:
    """Profile step −1 and steps 0 … n−1 of each loop, in alternating order of the loops.

    Step −1 is thrown away, because it includes the profiler's start. The others are numbered by
    `steps` in the trace. Returns the closed session.
    """
    with ProfiledSession(models, device) as session:
        for index, number in enumerate((-1, *steps), -1):
            order = list(loops.items())
            for name, loop in order if number % 2 == 0 else order[::-1]:
                loop.prepare_step(index)
                with session.turn(name, label_of(number)):
                    output = loop.step(index)
                del output
            advance()
    return session
