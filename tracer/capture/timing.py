"""Unprofiled times of the variants in turn: raw samples in ns.

A sample is one forward in prefill, and in decode the time of the whole loop ÷ its steps. It is
taken between two waits for the device, with the garbage collector off.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from prunescope.taxonomy.collection import no_collection
from prunescope.taxonomy.timings import add_forward, part
from prunescope.tracer.capture.phases import Sampled
from prunescope.tracer.machine.device import synchronize
from prunescope.tracer.machine.disturbance import DisturbanceMonitor

# Spread between placements: the standard deviation of the log ratio of a model's time to its own
# copy's, over 24 placements. Once a placement's own standard error is below it, more samples do not
# narrow the interval.
_PLACEMENT_SD = 0.026
MAX_ROUNDS = 4  # at most so many times the requested samples are taken to get below it


@dataclass
class SampleSet:
    """The samples of one placement: ns a step, by variant.

    `retaken` counts rounds (one sample of each variant) that were repeated because something
    disturbed them, and `disturbed` those that were kept although disturbed. `reasons` names what
    disturbed any of them. `switches` counts involuntary context switches of this process in the
    rounds that were kept.
    """

    samples: dict[str, list[int]]
    retaken: int = 0
    disturbed: int = 0
    reasons: list[str] = field(default_factory=list)
    switches: int = 0


@dataclass
class _Round:
    """One sample of each variant, and what disturbed them."""

    samples: dict[str, int]
    reasons: list[str]
    switches: int = 0


def no_progress() -> None:
    """Ignore the progress of rounds and steps that no progress bar has planned."""


@dataclass(frozen=True, kw_only=True)
class SamplePlan:
    """How many samples of each variant are taken in one placement.

    `repeats` are kept after `warmup` ones. `first_round` is the number of the first round, by which
    the order of the variants alternates. If `is_adaptive`, up to four times as many samples are
    taken, until the standard error of the ratio of the first two variants is below its variation
    between placements.
    """

    warmup: int
    repeats: int
    first_round: int = 0
    is_adaptive: bool = False


@part("samples")
def take_samples(
    loops: Mapping[str, Sampled],
    plan: SamplePlan,
    *,
    device: torch.device,
    advance: Callable[[], None] = no_progress,
) -> SampleSet:
    """Take the planned samples of each variant.

    The variants take turns, in alternating order (ABBA), so that drifts of the machine affect all
    of them equally. Disturbed rounds are repeated, up to twice `repeats` in all; after that they
    are kept and counted. `advance` is called after each planned round.
    """
    turn, repeats = plan.first_round, plan.repeats
    rounds: list[_Round] = []
    with collector_paused():
        with part("warm_up"):
            for number in range(plan.warmup):
                _take_round(loops, device, reverse_order=bool((turn + number) % 2))
                advance()
        while (missing := repeats - sum(not r.reasons for r in rounds)) > 0:
            count = min(missing, 2 * repeats - len(rounds))
            if not count:
                break
            rounds += _take_rounds(
                loops,
                device,
                range(turn + len(rounds), turn + len(rounds) + count),
                advance if not rounds else no_progress,
            )
        taken = len(rounds)
        while plan.is_adaptive and len(rounds) < MAX_ROUNDS * repeats and _is_imprecise(rounds):
            first = turn + len(rounds)
            rounds += _take_rounds(loops, device, range(first, first + 2), no_progress)
    quiet = [r for r in rounds if not r.reasons]
    spare = repeats - len(quiet)
    kept = [r for r in rounds if not r.reasons or (spare := spare - 1) >= 0]
    return SampleSet(
        samples={name: [r.samples[name] for r in kept] for name in loops},
        retaken=taken - repeats,
        disturbed=sum(bool(r.reasons) for r in kept),
        reasons=list(dict.fromkeys(why for r in rounds for why in r.reasons)),
        switches=sum(r.switches for r in kept),
    )


def _is_imprecise(rounds: list[_Round]) -> bool:
    """Return whether the log ratio of two variants is known less precisely than placements vary.

    Its standard error does not depend on which variant is faster, so that stopping by it favours
    neither.
    """
    sides = [list(r.samples.values()) for r in rounds if not r.reasons]
    logs = [math.log(first / second) for first, second, *_ in sides]
    return len(logs) > 1 and statistics.stdev(logs) / math.sqrt(len(logs)) > _PLACEMENT_SD


def _take_rounds(
    loops: Mapping[str, Sampled], device: torch.device, turns: range, advance: Callable[[], None]
) -> list[_Round]:
    """Take consecutive rounds, each with what disturbed it."""
    watch, taken = DisturbanceMonitor(device), []
    for turn in turns:
        with watch.sample():
            taken.append(_take_round(loops, device, reverse_order=bool(turn % 2)))
        advance()
    return list(map(_Round, taken, watch.reasons(), watch.switches()))


def _take_round(
    loops: Mapping[str, Sampled], device: torch.device, *, reverse_order: bool
) -> dict[str, int]:
    """Take one sample of every variant, in ns a step."""
    names = list(loops)[::-1] if reverse_order else list(loops)
    times = {
        name: _take_sample(loops[name], device) / loops[name].steps_per_sample for name in names
    }
    return {name: max(1, round(ns)) for name, ns in times.items()}


@dataclass
class Timed:
    """The result of `timed`: ns between two waits for the device, 1 at least."""

    ns: int = 0


@contextmanager
def timed(device: torch.device) -> Iterator[Timed]:
    """Time the block between two waits for the device."""
    result = Timed()
    synchronize(device)
    start = time.perf_counter_ns()
    yield result
    synchronize(device)
    result.ns = max(1, time.perf_counter_ns() - start)


def _take_sample(loop: Sampled, device: torch.device) -> int:
    """Prepare a sample, run it, and return its ns."""
    loop.prepare()
    with timed(device) as elapsed:
        output = loop.sample()
    # Freed after the clock was read: giving back logits of [B, S, V] takes time.
    del output
    add_forward(elapsed.ns)
    return elapsed.ns


@contextmanager
def heap_frozen() -> Iterator[None]:
    """Keep the objects that exist already out of garbage collection.

    torch and transformers are a million objects that stay, and each collection would look at them
    for 0.2 s. Does nothing if the program has frozen objects of its own.
    """
    freezes = gc.get_freeze_count() == 0
    if freezes:
        gc.freeze()
    try:
        yield
    finally:
        if freezes:
            gc.unfreeze()


@contextmanager
def collector_paused() -> Iterator[None]:
    """Collect garbage once, then not inside the block."""
    gc.collect()
    with no_collection():
        yield
