"""Unprofiled time, variants taking turns, raw samples in ns.

A sample is one forward in prefill and the whole loop ÷ its steps in decode, between
synchronisations. The garbage collector rests meanwhile.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from prunescope.tracer.capture.phases import Loop
from prunescope.tracer.machine.device import synchronize


def interleaved_samples(
    loops: Mapping[str, Loop],
    *,
    warmup: int,
    repeats: int,
    device: torch.device,
    advance: Callable[[], None],
) -> dict[str, list[int]]:
    """`repeats` samples a variant, in ns a step, after `warmup` samples that are dropped.

    One of every variant in turn: drifts of the machine meet all of them alike.
    """
    samples: dict[str, list[int]] = {name: [] for name in loops}
    with collector_resting():
        for repeat in range(warmup + repeats):
            for name, loop in loops.items():
                elapsed_ns = _sample(loop, device)
                if repeat >= warmup:
                    samples[name].append(max(1, round(elapsed_ns / loop.steps_per_sample)))
            advance()
    return samples


@dataclass
class Timed:
    """What `timed` measured: ns between two synchronisations, 1 at least."""

    ns: int = 0


@contextmanager
def timed(device: torch.device) -> Iterator[Timed]:
    """Times what runs inside, between synchronisations of the device."""
    found = Timed()
    synchronize(device)
    start = time.perf_counter_ns()
    yield found
    synchronize(device)
    found.ns = max(1, time.perf_counter_ns() - start)


def _sample(loop: Loop, device: torch.device) -> int:
    loop.prepare()
    with timed(device) as found:
        output = loop.sample()
    # Freed after the clock was read: a [B, S, V] of logits is not free to give back.
    del output
    return found.ns


@contextmanager
def collector_resting() -> Iterator[None]:
    """No garbage collection inside; collected once before."""
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
