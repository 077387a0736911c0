"""The replay of GEMMs alone: placements, rounds in turns, warm and cold; then bounds and curves.

GemmCases and a timer of calls come in; Replays go out. Times are ns a call.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from typing import Protocol

import torch

from prunescope.taxonomy.gemm import Gemm
from prunescope.taxonomy.kept_calibrations import newest_calibration
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
from prunescope.taxonomy.timings import forwards, part
from prunescope.tracer.capture.placements import split_evenly
from prunescope.tracer.capture.progress import Progress, Silent
from prunescope.tracer.capture.timing import DisturbanceMonitor, collector_paused
from prunescope.tracer.gemm.device_timer import DeviceTimer
from prunescope.tracer.gemm.request import GemmRequest
from prunescope.tracer.gemm.steps import fit_steps
from prunescope.tracer.gemm.variants import GemmVariant, curve_shapes, pruned_axes, variants
from prunescope.tracer.machine.backends import backend_of
from prunescope.tracer.machine.device import (
    device_info,
    pick_device,
    prunescope_version,
    versions,
)
from prunescope.tracer.machine.timed_calls import TORCH_DTYPES

_FEWEST_POINTS = 4  # fewer given sizes make no curve


class GemmTimer(Protocol):
    """A timer of calls: a device, or a formula in a test."""

    def prepare(self, gemms: Iterable[Gemm]) -> None:
        """Get ready for these shapes."""

    def place(self, rng: random.Random) -> None:
        """Move the operands to another place in memory."""

    def sample(self, gemm: Gemm, *, cold: bool) -> float:
        """Return the ns of one call."""

    def kernel(self, gemm: Gemm) -> str | None:
        """Return the name of the kernel that a shape runs; None if it is unknown."""


@dataclass(frozen=True, kw_only=True)
class Rounds:
    """How many rounds are taken: `repeats` over all placements, and `warmup` in each."""

    placements: int
    repeats: int
    warmup: int
    seed: int


@dataclass
class _Samples:
    """The samples of each shape in ns, by placement.

    `disturbed` holds what disturbed the rounds that are kept.
    """

    warm: dict[Gemm, list[list[float]]] = field(default_factory=dict)
    cold: dict[Gemm, list[list[float]]] = field(default_factory=dict)
    disturbed: dict[str, None] = field(default_factory=dict)


def replay(cases: Sequence[GemmCase], request: GemmRequest) -> Replays:
    """Replay GEMMs on the device of a request.

    Args:
        cases: The GEMMs, each with the dense one that it replaces where that is known.
        request: The options of `prunescope gemm`.

    Returns:
        The times of every shape, and the curves. GEMMs of a dtype that is not replayed are
        named in `left_out`.

    Raises:
        PrunescopeError: The device is absent.
    """
    device = pick_device(request.device)
    if request.threads:
        torch.set_num_threads(request.threads)
    info = device_info(device)
    peaks = ReplayPeaks()
    if (known := newest_calibration(str(info.name))) is not None:
        peaks = ReplayPeaks(
            flop_per_s=known.dense_flop_per_s, byte_per_s=known.byte_per_s, source="calibrate"
        )
    rounds = Rounds(
        placements=max(1, min(request.placements, request.repeats)),
        repeats=request.repeats,
        warmup=request.warmup,
        seed=request.seed,
    )
    replays = Replays(
        tool=f"prunescope {prunescope_version()}",
        device=ReplayDevice(kind=info.kind, name=info.name, threads=info.threads),
        versions={name: str(version) for name, version in versions().items()},
        peaks=peaks,
        **asdict(rounds),
    )
    by_dtype: dict[str, list[GemmCase]] = {}
    for case in cases:
        by_dtype.setdefault(case.dtype, []).append(case)
    with torch.inference_mode(), backend_of(device).make_current(device):
        for dtype, same_dtype in by_dtype.items():
            if dtype not in TORCH_DTYPES:
                replays.left_out += [f"{c.role}: {dtype} is not replayed" for c in same_dtype]
                continue
            timer = DeviceTimer(device, dtype)
            replays.flush_bytes = timer.flush_bytes
            replay_cases(
                replays, same_dtype, timer, rounds, device=device, progress=request.progress
            )
    return replays


def replay_cases(
    replays: Replays,
    cases: Sequence[GemmCase],
    timer: GemmTimer,
    rounds: Rounds,
    *,
    device: torch.device | None = None,
    progress: Progress | None = None,
) -> None:
    """Add the replays of `cases` to `replays`.

    The shapes of a case run in turns, and so do the shapes of all cases that have no dense GEMM.

    Args:
        replays: The record that is completed in place.
        cases: GEMMs of one dtype.
        timer: What times a call.
        rounds: How many rounds are taken.
        device: The device whose disturbances are watched; None watches nothing.
        progress: The display of progress; None shows nothing.
    """
    given = [case for case in cases if case.dense is None]
    groups = [[case] for case in cases if case.dense is not None]
    groups += [given] if given else []
    progress = progress or Silent()
    progress.stage("GEMMs alone", len(groups))
    for group in groups:
        shapes = {v.gemm: None for case in group for v in variants(case)}
        samples = _take_samples(list(shapes), timer, rounds, device=device, cold=True)
        for case in group:
            for variant in variants(case):
                replays.gemms.append(_combine_samples(case, variant, samples, timer, replays.peaks))
        replays.disturbed = list(dict.fromkeys([*replays.disturbed, *samples.disturbed]))
        progress.advance()
    replays.curves += _fit_given_curves(given, replays.gemms)
    curved = _choose_curves(cases)
    progress.stage("curves", len(curved))
    for case, axis in curved:
        points = curve_shapes(case, axis)
        samples = _take_samples(points, timer, rounds, device=device, cold=False)
        times = {gemm: times_of(samples.warm[gemm]) for gemm in points}
        replays.curves.append(_fit_curve(case, axis, times))
        progress.advance()


@part("samples")
def _take_samples(
    shapes: Sequence[Gemm],
    timer: GemmTimer,
    rounds: Rounds,
    *,
    device: torch.device | None,
    cold: bool,
) -> _Samples:
    """Take rounds in alternating order, and repeat disturbed ones, up to twice as many in all."""
    rng, samples = random.Random(rounds.seed), _Samples()
    states = (False, True) if cold else (False,)
    with collector_paused():
        with part("warm_up"):
            timer.prepare(shapes)
        for repeats in split_evenly(rounds.repeats, rounds.placements):
            timer.place(rng)
            with part("warm_up"):
                for _ in range(rounds.warmup):
                    _take_round(shapes, timer, states, reverse_order=False)
            taken: list[tuple[dict[tuple[Gemm, bool], float], list[str]]] = []
            while (missing := repeats - sum(not reasons for _, reasons in taken)) > 0:
                count = min(missing, 2 * repeats - len(taken))
                if not count:
                    break
                taken += _take_watched_rounds(shapes, timer, states, count, device)
            kept = sorted(taken, key=lambda watched: bool(watched[1]))[:repeats]
            samples.disturbed |= dict.fromkeys(why for _, reasons in kept for why in reasons)
            for state, by_gemm in ((False, samples.warm), (True, samples.cold)):
                for gemm in shapes if state in states else ():
                    by_gemm.setdefault(gemm, []).append([times[gemm, state] for times, _ in kept])
    return samples


def _take_watched_rounds(
    shapes: Sequence[Gemm],
    timer: GemmTimer,
    states: tuple[bool, ...],
    count: int,
    device: torch.device | None,
) -> list[tuple[dict[tuple[Gemm, bool], float], list[str]]]:
    """Take rounds, each with what disturbed it."""
    watch = None if device is None else DisturbanceMonitor(device)
    taken = []
    for number in range(count):
        with nullcontext() if watch is None else watch.sample():
            taken.append(_take_round(shapes, timer, states, reverse_order=bool(number % 2)))
    reasons = [[] for _ in taken] if watch is None else watch.reasons()
    return list(zip(taken, reasons, strict=True))


@forwards()
def _take_round(
    shapes: Sequence[Gemm], timer: GemmTimer, states: tuple[bool, ...], *, reverse_order: bool
) -> dict[tuple[Gemm, bool], float]:
    """Take one sample of every shape in each state of the cache."""
    order = list(shapes)[::-1] if reverse_order else list(shapes)
    return {(gemm, cold): timer.sample(gemm, cold=cold) for gemm in order for cold in states}


def _combine_samples(
    case: GemmCase, variant: GemmVariant, samples: _Samples, timer: GemmTimer, peaks: ReplayPeaks
) -> ReplayedGemm:
    """Combine the samples of a shape with its bound and its kernel."""
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
        share_of_bound=_efficiency(ideal, warm),
        share_of_bound_cold=_efficiency(ideal, cold),
        kernel=timer.kernel(gemm),
    )


def _efficiency(ideal: tuple[float, str] | None, times: ReplayTimes) -> float | None:
    """Return the roofline efficiency of a time; None without a bound."""
    return None if ideal is None else ideal[0] / times.ns


def _choose_curves(cases: Sequence[GemmCase]) -> list[tuple[GemmCase, str]]:
    """Choose for each pruned axis the case with the most work, whose curve is measured."""
    largest: dict[str, GemmCase] = {}
    for case in sorted(cases, key=lambda case: -case.pruned.flop):
        for axis in pruned_axes(case):
            largest.setdefault(axis, case)
    return [(case, axis) for axis, case in largest.items()]


def _fit_given_curves(
    cases: Sequence[GemmCase], replayed: Sequence[ReplayedGemm]
) -> Iterable[StepCurve]:
    """Yield the curves of given shapes: those that differ in N alone, then in K alone."""
    times = {gemm.gemm: gemm.warm for gemm in replayed if gemm.warm is not None}
    for axis, fixed in (("n", "k"), ("k", "n")):
        lines: dict[tuple[int, int], list[GemmCase]] = {}
        for case in cases:
            lines.setdefault((case.pruned.m, getattr(case.pruned, fixed)), []).append(case)
        for line in lines.values():
            if len(line) >= _FEWEST_POINTS:
                yield _fit_curve(line[0], axis, {case.pruned: times[case.pruned] for case in line})


def _fit_curve(case: GemmCase, axis: str, times: Mapping[Gemm, ReplayTimes]) -> StepCurve:
    """Build the curve of a case along an axis, with the steps that fit to it."""
    sizes = [getattr(gemm, axis) for gemm in times]
    # The median over placements: one that was disturbed makes no step.
    steps = fit_steps(sizes, [statistics.median(t.placements_ns) for t in times.values()])
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
        ns=[t.ns for t in times.values()],
        ci95=[t.ci95 for t in times.values()],
        placements_ns=[t.placements_ns for t in times.values()],
        width=steps.width if steps else None,
        step_ns=steps.step_ns if steps else None,
        base_ns=steps.base_ns if steps else None,
    )
