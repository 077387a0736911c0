"""Models that are timed in turns over placements, without the profiler.

Models and their loops come in; the samples of each placement go out. `trace` profiles beside its
samples, and so has a session of its own; all others that time models against one another do it
here.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from prunescope.tracer.capture.phases import Sampled
from prunescope.tracer.capture.placements import PlacementPlan, placed
from prunescope.tracer.capture.timing import SamplePlan, SampleSet, no_progress, take_samples


@dataclass(frozen=True)
class TimedPlacement:
    """The samples of a placement, by phase, and its duration in seconds."""

    taken: dict[str, SampleSet]
    seconds: float


def time_in_turns(
    plans: Iterable[PlacementPlan],
    models: Sequence[torch.nn.Module],
    make_loops: Callable[[str], Mapping[str, Sampled]],
    *,
    warmup: int = 3,
    advance: Callable[[], None] = no_progress,
    mode: Callable[[], AbstractContextManager[object]] = torch.inference_mode,
) -> Iterator[TimedPlacement]:
    """Move the weights of models for each placement, and time their loops in turns.

    Args:
        plans: The placements; in a single one of them the weights move, too.
        models: The models, whose weights all move by the same means.
        make_loops: Takes a phase, and returns the loop of each model by its name.
        warmup: Rounds to discard in the first placement; later ones discard one.
        advance: Called after each planned round.
        mode: The context of the samples.

    Yields:
        The samples of each placement.
    """
    device = next(models[0].parameters()).device
    rng, begun = random.Random(), time.perf_counter()  # unseeded: placements differ each time
    for plan, _ in placed(plans, models, rng, move=True):
        taken: dict[str, SampleSet] = {}
        with mode():
            for phase in plan.phases:
                samples = SamplePlan(
                    warmup=warmup if plan.number == 0 else min(1, warmup),
                    repeats=plan.repeats,
                    first_round=plan.number,
                )
                taken[phase] = take_samples(
                    make_loops(phase), samples, device=device, advance=advance
                )
        yield TimedPlacement(taken, time.perf_counter() - begun)
        begun = time.perf_counter()
