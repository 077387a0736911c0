"""Replays GEMMs alone: placements, rounds in turns, warm and cold; then bounds, curves, intervals.

In: GemmCases and what times a call. Out: Replays. Times in ns a call.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Protocol

import torch

from prunescope.taxonomy.gemm import Gemm
from prunescope.taxonomy.replays import (
    GemmCase,
    ReplayDevice,
    ReplayedGemm,
    ReplayPeaks,
    Replays,
    ReplayTimes,
    StepCurve,
    times_of,
)
from prunescope.tracer.capture.placements import split_evenly
from prunescope.tracer.capture.progress import Progress, Silent
from prunescope.tracer.capture.timing import DisturbanceMonitor, collector_paused
from prunescope.tracer.gemm.device_timer import DeviceTimer
from prunescope.tracer.gemm.request import GemmRequest
from prunescope.tracer.gemm.steps import fit
from prunescope.tracer.gemm.variants import GemmVariant, curve_of, moved, variants
from prunescope.tracer.machine.calibrate import newest
from prunescope.tracer.machine.device import (
    device_info,
    pick_device,
    prunescope_version,
    versions,
)
from prunescope.tracer.machine.timed_calls import TORCH_DTYPES

_FEWEST_POINTS = 4  # of a curve over sizes that were given


class GemmTimer(Protocol):
    """A timer of calls: a device, or a formula in a test."""

    def prepare(self, gemms: Iterable[Gemm]) -> None:
        """Get ready for these shapes."""

    def place(self, rng: random.Random) -> None:
        """Put their operands elsewhere."""

    def sample(self, gemm: Gemm, *, cold: bool) -> float:
        """ns of a call."""

    def kernel(self, gemm: Gemm) -> str | None:
        """The kernel's name, where it is known."""


@dataclass(frozen=True, kw_only=True)
class Rounds:
    """How many rounds are taken: `repeats` in all, over `placements`, after `warmup` in each."""

    placements: int
    repeats: int
    warmup: int
    seed: int


@dataclass
class _Samples:
    """ns by placement of each shape, warm and cold, and what disturbed rounds that are kept."""

    warm: dict[Gemm, list[list[float]]] = field(default_factory=dict)
    cold: dict[Gemm, list[list[float]]] = field(default_factory=dict)
    disturbed: dict[str, None] = field(default_factory=dict)


def replay(cases: Sequence[GemmCase], request: GemmRequest) -> Replays:
    """Replay GEMMs on the device of the request. Raises PrunescopeError for an absent device."""
    device = pick_device(request.device)
    if request.threads:
        torch.set_num_threads(request.threads)
    info = device_info(device)
    peaks = ReplayPeaks()
    if (known := newest(str(info.name))) is not None:
        peaks = ReplayPeaks(
            flop_per_s=known.dense_flop_per_s, byte_per_s=known.byte_per_s, source="calibrate"
        )
    count = max(1, min(request.placements, request.repeats))
    rounds = Rounds(
        placements=count, repeats=request.repeats, warmup=request.warmup, seed=request.seed
    )
    found = Replays(
        tool=f"prunescope {prunescope_version()}",
        device=ReplayDevice(kind=info.kind, name=info.name, threads=info.threads),
        versions={name: str(version) for name, version in versions().items()},
        peaks=peaks,
        placements=count,
        repeats=request.repeats,
        warmup=request.warmup,
        seed=request.seed,
    )
    by_dtype: dict[str, list[GemmCase]] = {}
    for case in cases:
        by_dtype.setdefault(case.dtype, []).append(case)
    current = nullcontext() if device.type == "cpu" else torch.cuda.device(device)
    with torch.inference_mode(), current:
        for dtype, of_dtype in by_dtype.items():
            if dtype not in TORCH_DTYPES:
                found.left_out += [f"{one.role}: {dtype} is not replayed" for one in of_dtype]
                continue
            timer = DeviceTimer(device, dtype)
            found.flush_bytes = timer.flush_bytes
            replay_cases(found, of_dtype, timer, rounds, device=device, progress=request.progress)
    return found


def replay_cases(
    found: Replays,
    cases: Sequence[GemmCase],
    timer: GemmTimer,
    rounds: Rounds,
    *,
    device: torch.device | None = None,
    progress: Progress | None = None,
) -> None:
    """Add the replays of `cases`, all of one dtype, to `found`: the shapes of a case run in turns,
    and so do all that have no dense GEMM. `device`: whose disturbances are watched, if any."""
    given = [case for case in cases if case.dense is None]
    groups = [[case] for case in cases if case.dense is not None]
    groups += [given] if given else []
    progress = progress or Silent()
    progress.stage("GEMMs alone", len(groups))
    for group in groups:
        shapes = {v.gemm: None for case in group for v in variants(case)}
        samples = _samples(list(shapes), timer, rounds, device=device, cold=True)
        for case in group:
            for variant in variants(case):
                found.gemms.append(_replayed(case, variant, samples, timer, found.peaks))
        found.disturbed = list(dict.fromkeys([*found.disturbed, *samples.disturbed]))
        progress.advance()
    found.curves += _curves_of_given(given, found.gemms)
    curved = _curved(cases)
    progress.stage("curves", len(curved))
    for case, axis in curved:
        points = curve_of(case, axis)
        samples = _samples(points, timer, rounds, device=device, cold=False)
        times = {gemm: times_of(samples.warm[gemm]) for gemm in points}
        found.curves.append(_curve(case, axis, times))
        progress.advance()


def _samples(
    shapes: Sequence[Gemm],
    timer: GemmTimer,
    rounds: Rounds,
    *,
    device: torch.device | None,
    cold: bool,
) -> _Samples:
    """Rounds in alternating order; a disturbed one is taken again, up to twice as many in all."""
    rng, found = random.Random(rounds.seed), _Samples()
    states = (False, True) if cold else (False,)
    with collector_paused():
        timer.prepare(shapes)
        for repeats in split_evenly(rounds.repeats, rounds.placements):
            timer.place(rng)
            for _ in range(rounds.warmup):
                _round(shapes, timer, states, reverse_order=False)
            taken: list[tuple[dict[tuple[Gemm, bool], float], list[str]]] = []
            while (missing := repeats - sum(not reasons for _, reasons in taken)) > 0:
                count = min(missing, 2 * repeats - len(taken))
                if not count:
                    break
                taken += _watched(shapes, timer, states, count, device)
            quiet = sorted(taken, key=lambda one: bool(one[1]))[:repeats]
            found.disturbed |= dict.fromkeys(why for _, reasons in quiet for why in reasons)
            for state, sides in ((False, found.warm), (True, found.cold)):
                for gemm in shapes if state in states else ():
                    sides.setdefault(gemm, []).append([one[gemm, state] for one, _ in quiet])
    return found


def _watched(
    shapes: Sequence[Gemm],
    timer: GemmTimer,
    states: tuple[bool, ...],
    count: int,
    device: torch.device | None,
) -> list[tuple[dict[tuple[Gemm, bool], float], list[str]]]:
    """Rounds with what disturbed each."""
    watch = None if device is None else DisturbanceMonitor(device)
    taken = []
    for number in range(count):
        with nullcontext() if watch is None else watch.sample():
            taken.append(_round(shapes, timer, states, reverse_order=bool(number % 2)))
    reasons = [[] for _ in taken] if watch is None else watch.reasons()
    return list(zip(taken, reasons, strict=True))


def _round(
    shapes: Sequence[Gemm], timer: GemmTimer, states: tuple[bool, ...], *, reverse_order: bool
) -> dict[tuple[Gemm, bool], float]:
    """Take one sample of every shape in each state of the cache."""
    order = list(shapes)[::-1] if reverse_order else list(shapes)
    return {(gemm, cold): timer.sample(gemm, cold=cold) for gemm in order for cold in states}


def _replayed(
    case: GemmCase, variant: GemmVariant, samples: _Samples, timer: GemmTimer, peaks: ReplayPeaks
) -> ReplayedGemm:
    gemm = variant.gemm
    warm, cold = times_of(samples.warm[gemm]), times_of(samples.cold[gemm])
    ideal = peaks.ideal_ns(gemm, case.dtype)
    dense = case.dense if "pruned" in variant.reasons else None
    return ReplayedGemm(
        reasons=variant.reasons,
        role=case.role,
        phase=case.phase,
        batch=gemm.batch,
        m=gemm.m,
        n=gemm.n,
        k=gemm.k,
        dtype=case.dtype,
        dense_m=dense.m if dense else None,
        dense_n=dense.n if dense else None,
        dense_k=dense.k if dense else None,
        align=variant.align,
        warm=warm,
        cold=cold,
        flop=gemm.flop,
        bytes=gemm.bytes(TORCH_DTYPES[case.dtype].itemsize),
        ideal_ns=ideal[0] if ideal else None,
        bound=ideal[1] if ideal else None,
        share_of_bound=_share(ideal, warm),
        share_of_bound_cold=_share(ideal, cold),
        kernel=timer.kernel(gemm),
    )


def _share(ideal: tuple[float, str] | None, times: ReplayTimes) -> float | None:
    return None if ideal is None else ideal[0] / times.ns


def _curved(cases: Sequence[GemmCase]) -> list[tuple[GemmCase, str]]:
    """The pruned GEMM with the most work, by axis."""
    found: dict[str, GemmCase] = {}
    for case in sorted(cases, key=lambda one: -one.pruned.flop):
        for axis in moved(case):
            found.setdefault(axis, case)
    return [(case, axis) for axis, case in found.items()]


def _curves_of_given(
    cases: Sequence[GemmCase], replayed: Sequence[ReplayedGemm]
) -> Iterable[StepCurve]:
    """A curve over N of the shapes that differ in it alone, and over K."""
    times = {one.gemm: one.warm for one in replayed if one.warm is not None}
    for axis, fixed in (("n", "k"), ("k", "n")):
        lines: dict[tuple[int, int], list[GemmCase]] = {}
        for case in cases:
            lines.setdefault((case.pruned.m, getattr(case.pruned, fixed)), []).append(case)
        for line in lines.values():
            if len(line) >= _FEWEST_POINTS:
                yield _curve(line[0], axis, {case.pruned: times[case.pruned] for case in line})


def _curve(case: GemmCase, axis: str, times: Mapping[Gemm, ReplayTimes]) -> StepCurve:
    sizes = [getattr(gemm, axis) for gemm in times]
    # The median over placements: one that was disturbed makes no step.
    steps = fit(sizes, [statistics.median(one.placements_ns) for one in times.values()])
    gemm = case.pruned
    return StepCurve(
        axis=axis.upper(),
        role=case.role,
        phase=case.phase,
        batch=gemm.batch,
        m=gemm.m,
        n=None if axis == "n" else gemm.n,
        k=None if axis == "k" else gemm.k,
        dtype=case.dtype,
        sizes=sizes,
        ns=[one.ns for one in times.values()],
        ci95=[one.ci95 for one in times.values()],
        placements_ns=[one.placements_ns for one in times.values()],
        width=steps.width if steps else None,
        step_ns=steps.step_ns if steps else None,
        base_ns=steps.base_ns if steps else None,
    )
