"""Unprofiled time, variants taking turns, raw samples in ns.

A sample is one forward in prefill and the whole loop ÷ its steps in decode, between
synchronisations. The garbage collector rests meanwhile.
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
from prunescope.tracer.capture.phases import Loop
from prunescope.tracer.machine.device import synchronize
from prunescope.tracer.machine.disturbance import (
    Disturbance,
    Reading,
    between,
    device_troubles,
    read,
)

# Where weights lie moves a model's time against its copy's by 2.6 % (standard deviation over 24
# placements): what a placement's own samples leave open below that is not what makes intervals
# wide.
_PLACED = 0.026
_MOST = 4  # times as many samples as were asked for, to come below it
_SHORT_NS = 200_000_000  # a sample below this ends within a few ticks of the system's counts
_IN_A_ROW = 0.8  # of the time from the first sample to the end of the last, in samples


@dataclass
class Share:
    """Samples of every variant, ns a step, and how they were had: `taken` rounds of one each, of
    which `retaken` were taken again and `disturbed` are among those kept all the same. `switches`:
    involuntary context switches of ours in those kept."""

    samples: dict[str, list[int]]
    retaken: int = 0
    disturbed: int = 0
    reasons: list[str] = field(default_factory=list)
    switches: int = 0


@dataclass
class _Round:
    """A sample of each variant, and what disturbed them."""

    samples: dict[str, int]
    reasons: list[str]
    switches: int = 0


class Watch:
    """What ran beside samples, or steps, in a row on a device. Short ones are judged together too:
    alone they end within a few ticks of the system's counts."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._seen: list[Disturbance] = []
        self._begun: Reading | None = None
        self._ended: Reading | None = None

    @contextmanager
    def sample(self) -> Iterator[None]:
        """LaunchNeighbours each of them."""
        before = read()
        if self._begun is None:
            self._begun = before
        yield
        self._ended = read()
        self._seen.append(between(before, self._ended, self._device))

    def reasons(self) -> list[list[str]]:
        """What disturbed each of them; asks the driver of a GPU."""
        if self._begun is None or self._ended is None:
            return []
        whole = between(self._begun, self._ended, self._device)
        spent_ns = sum(seen.elapsed_ns for seen in self._seen)
        short = whole.elapsed_ns < _SHORT_NS * len(self._seen)
        # What runs while a user's loop does something else between its steps disturbs none.
        in_a_row = spent_ns >= _IN_A_ROW * whole.elapsed_ns
        together = whole.reasons if short and in_a_row else []
        troubles = device_troubles(self._device)
        return [[*(seen.reasons or together), *troubles] for seen in self._seen]

    def switches(self) -> list[int]:
        """Involuntary context switches of ours in each of them."""
        return [seen.switches for seen in self._seen]


def take_share(  # noqa: PLR0913 - how often, of what, where, and who hears of it
    loops: Mapping[str, Loop],
    *,
    warmup: int,
    repeats: int,
    device: torch.device,
    advance: Callable[[], None],
    turn: int = 0,
    settle: bool = False,
) -> Share:
    """`repeats` samples a variant after `warmup` ones that are dropped; with `settle` more of them,
    while the ratio of the first two variants is known less well than placement moves it.

    One of every variant in turn, first forwards then backwards (ABBA; `turn` counts on from the
    share before), so that drifts of the machine meet all of them alike. What is disturbed is taken
    again, up to twice as many in all; then the disturbed ones are kept, and counted.
    """
    rounds: list[_Round] = []
    with collector_resting():
        for number in range(warmup):
            _take(loops, device, backwards=bool((turn + number) % 2))
            advance()
        while (missing := repeats - sum(not r.reasons for r in rounds)) > 0:
            count = min(missing, 2 * repeats - len(rounds))
            if not count:
                break
            rounds += _rounds(
                loops,
                device,
                range(turn + len(rounds), turn + len(rounds) + count),
                advance if not rounds else nobody,
            )
        taken = len(rounds)
        while settle and len(rounds) < _MOST * repeats and _is_open(rounds):
            first = turn + len(rounds)
            rounds += _rounds(loops, device, range(first, first + 2), nobody)
    quiet = [r for r in rounds if not r.reasons]
    spare = repeats - len(quiet)
    kept = [r for r in rounds if not r.reasons or (spare := spare - 1) >= 0]
    return Share(
        samples={name: [r.samples[name] for r in kept] for name in loops},
        retaken=taken - repeats,
        disturbed=sum(bool(r.reasons) for r in kept),
        reasons=list(dict.fromkeys(why for r in rounds for why in r.reasons)),
        switches=sum(r.switches for r in kept),
    )


def _is_open(rounds: list[_Round]) -> bool:
    """Whether the standard error of the log ratio of two variants is above what placement does. It
    does not depend on which of them is faster, so that to go on by it favours none."""
    sides = [list(r.samples.values()) for r in rounds if not r.reasons]
    logs = [math.log(one / other) for one, other, *_ in sides]
    return len(logs) > 1 and statistics.stdev(logs) / math.sqrt(len(logs)) > _PLACED


def _rounds(
    loops: Mapping[str, Loop], device: torch.device, turns: range, advance: Callable[[], None]
) -> list[_Round]:
    """Rounds in a row, and what ran beside each."""
    watch, taken = Watch(device), []
    for turn in turns:
        with watch.sample():
            taken.append(_take(loops, device, backwards=bool(turn % 2)))
        advance()
    return list(map(_Round, taken, watch.reasons(), watch.switches()))


def nobody() -> None:
    """Told of rounds and steps that nobody planned."""


def _take(loops: Mapping[str, Loop], device: torch.device, *, backwards: bool) -> dict[str, int]:
    """One sample of every variant, ns a step."""
    names = list(loops)[::-1] if backwards else list(loops)
    found = {name: _sample(loops[name], device) / loops[name].steps_per_sample for name in names}
    return {name: max(1, round(ns)) for name, ns in found.items()}


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
def set_aside() -> Iterator[None]:
    """What is in memory already is not looked through for garbage inside: torch and transformers
    are a million objects that stay, and each look through them takes 0.2 s. Where the program has
    set its own objects aside, it is left to do so."""
    ours = gc.get_freeze_count() == 0
    if ours:
        gc.freeze()
    try:
        yield
    finally:
        if ours:
            gc.unfreeze()


@contextmanager
def collector_resting() -> Iterator[None]:
    """No garbage collection inside; collected once before."""
    gc.collect()
    with no_collection():
        yield
