"""The timing precision of this machine: a model against its own copy, for `doctor --timing`.

Seconds come in; a MachineCheck goes out, with the precision and the duration of captures by their
number of placements.
"""

from __future__ import annotations

import copy
import itertools
import math
import os
import statistics
import time
from collections import Counter
from dataclasses import dataclass

import torch

from prunescope.taxonomy.machine_check import MachineCheck
from prunescope.taxonomy.student_t import t_quantile_975
from prunescope.taxonomy.words import percent
from prunescope.tracer.calibration.texts import random_ids
from prunescope.tracer.capture.phases import PrefillLoop
from prunescope.tracer.capture.placements import PlacementPlan
from prunescope.tracer.capture.turns import TimedPlacement, time_in_turns
from prunescope.tracer.machine.device import pick_device
from prunescope.tracer.machine.disturbance import num_threads
from prunescope.tracer.machine.host import num_cores
from prunescope.tracer.model.load import load_model

MODEL = "tiny-llama"
_PROMPT, _SAMPLES, _LEAST = 256, 3, 4
_PHASE = "prefill"
_SHOWN = (4, 8, 16, 32)  # placements
_QUIET = 0.1  # share of samples that may be disturbed
_FINE = 0.05  # precision of a speedup that 8 placements should reach
_PINNED = 3  # cores from which on pinning can leave one free


@dataclass(kw_only=True)
class TimingCheck(MachineCheck):
    """A check with the numbers behind it."""

    placements: int
    bias: float  # mean log of model ÷ copy: 0 without bias
    half_width: dict[str, float]  # by placements: half of the 95 % interval of a speedup, a share
    seconds: dict[str, float]  # by placements: duration of a capture of this model
    disturbed: float  # share of disturbed samples
    switches: float  # involuntary context switches in a sample of both
    reasons: dict[str, int]  # number of placements by reason


def check_timing(seconds: float = 60.0, *, device: str = "auto") -> TimingCheck:
    """Measure how precisely this machine times a model against its own copy.

    Args:
        seconds: How long to measure; four placements are measured at least.
        device: The device as torch names it; "auto" takes a GPU where there is one.

    Returns:
        A check that holds if 8 placements find a speedup of 5 % and few samples are disturbed.
    """
    where = pick_device(device)
    measured = _measure_placements(seconds, where)
    sets = [placement.taken[_PHASE] for placement in measured]
    logs = [
        math.log(statistics.median(s.samples["a"]) / statistics.median(s.samples["b"]))
        for s in sets
    ]
    spread = statistics.stdev(logs)
    widths = {n: math.expm1(t_quantile_975(n - 1) * spread / math.sqrt(n)) for n in _SHOWN}
    each_s = statistics.median(placement.seconds for placement in measured)
    kept = sum(len(s.samples["a"]) for s in sets)
    retaken = sum(s.retaken for s in sets)
    disturbed = (retaken + sum(s.disturbed for s in sets)) / (kept + retaken)
    reasons = Counter(why for s in sets for why in s.reasons)
    quiet = disturbed <= _QUIET
    lengths = [f"{n} ({_write_seconds(n * each_s)}): ±{percent(widths[n], 1)}" for n in _SHOWN]
    says = (
        f"{MODEL} against its copy, {len(sets)} placements; half of the interval of a "
        f"speedup, by placements of a capture: {'; '.join(lengths)}; with 8 "
        f"{1 + widths[8]:.3f}× is the smallest significant speedup"
    )
    if reasons:
        says += f"; {percent(disturbed)} of the samples disturbed ({', '.join(reasons)})"
    return TimingCheck(
        check="timing",
        ok=quiet and widths[8] <= _FINE,
        says=says,
        hint=_advice(widths, reasons, quiet=quiet, threads=num_threads(where)),
        placements=len(sets),
        bias=statistics.fmean(logs),
        half_width={str(n): width for n, width in widths.items()},
        seconds={str(n): n * each_s for n in _SHOWN},
        disturbed=disturbed,
        switches=sum(s.switches for s in sets) / kept,
        reasons=dict(reasons),
    )


def _measure_placements(seconds: float, device: torch.device) -> list[TimedPlacement]:
    """Take the samples of each placement until the time is over."""
    end = time.monotonic() + seconds
    model = load_model(MODEL, dtype="auto", device=device, attn="sdpa").model
    models = {"a": model, "b": copy.deepcopy(model)}
    ids = random_ids(model.get_input_embeddings().num_embeddings, batch=1, length=_PROMPT, seed=0)
    loops = {n: PrefillLoop(m, ids.to(device), logits="last") for n, m in models.items()}
    plans = (
        PlacementPlan(number=number, repeats=_SAMPLES, steps=0, phases=(_PHASE,))
        for number in itertools.takewhile(
            lambda number: number < _LEAST or time.monotonic() < end, itertools.count()
        )
    )
    return list(time_in_turns(plans, [*models.values()], lambda _: loops))


def _write_seconds(seconds: float) -> str:
    """Write seconds as text."""
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"


def _advice(
    widths: dict[int, float], reasons: Counter[str], *, quiet: bool, threads: int
) -> str | None:
    """Return ways to improve the precision, the most useful first; None if nothing is needed."""
    wide = widths[8] > _FINE
    shared = not quiet and bool({"other processes", "waits"} & reasons.keys())
    advice = []
    if shared:
        advice.append("stop other processes on this machine")
    if not quiet and "steal" in reasons:
        advice.append("the virtual machine shares its cores: use one with dedicated cores")
    if "other processes on the device" in reasons:
        advice.append("stop other processes on the GPU")
    if "clocks held down" in reasons:
        advice.append("heat or power throttles the GPU: cool it, or lock its clocks lower")
    if shared:
        advice += _cores_apart(threads)
    elif not advice and wide:
        advice += _core_left(threads)
    if wide:
        enough = next((n for n, width in widths.items() if width <= _FINE), None)
        advice.append(
            f"--placements {enough} is enough for {percent(_FINE)}" if enough else "--placements 32"
        )
    return "; ".join(advice) or None


def _cores_apart(threads: int) -> list[str]:
    """Advise to separate the cores of timed code from those of other processes, by taskset.

    With too few cores, or without taskset, it advises a core that torch leaves free.
    """
    if not hasattr(os, "sched_getaffinity"):
        return _core_left(threads)
    ours = sorted(os.sched_getaffinity(0))
    others = sorted(set(range(os.cpu_count() or 0)) - set(ours))
    if others:
        return [
            f"or start it under taskset -c {_list_cores(others)}, off our cores {_list_cores(ours)}"
        ]
    if len(ours) < _PINNED:
        return _core_left(threads)
    return [f"taskset -c {_list_cores(ours[1:])} prunescope trace ... leaves core {ours[0]} to it"]


def _core_left(threads: int) -> list[str]:
    """Advise to leave a core to the system if torch uses all of several."""
    cores = num_cores()
    if threads < cores or cores == 1:
        return []
    return [f"try --threads {cores - 1}: one of {cores} cores is left to the system"]


def _list_cores(cores: list[int]) -> str:
    """Write cores in the syntax of taskset: 0-2,5."""
    runs: list[list[int]] = []
    for core in cores:
        if runs and core == runs[-1][-1] + 1:
            runs[-1].append(core)
        else:
            runs.append([core])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
