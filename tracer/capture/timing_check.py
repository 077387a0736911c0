"""How well this machine tells times apart: a model against its own copy, for `doctor --timing`.

In: seconds. Out: a check as those of `machine.doctor`, with what a capture of R seatings can tell.
"""

from __future__ import annotations

import copy
import math
import os
import random
import statistics
import time
from collections import Counter
from dataclasses import dataclass

import torch

from prunescope.taxonomy.machine_check import MachineCheck
from prunescope.taxonomy.student import student
from prunescope.taxonomy.words import percent
from prunescope.tracer.capture.phases import PrefillLoop
from prunescope.tracer.capture.seatings import place
from prunescope.tracer.capture.timing import Share, take_share
from prunescope.tracer.machine.device import num_cores, pick_device
from prunescope.tracer.model.inputs import token_ids
from prunescope.tracer.model.load import load_model

MODEL = "tiny-llama"
_PROMPT, _SAMPLES, _LEAST = 256, 3, 4
_SHOWN = (4, 8, 16, 32)  # seatings
_QUIET = 0.1  # share of samples that may be disturbed
_FINE = 0.05  # a speedup that 8 seatings should be able to tell


@dataclass(kw_only=True)
class TimingCheck(MachineCheck):
    """A check with the numbers behind it."""

    seatings: int
    bias: float  # mean log of model ÷ copy: 0 where neither is favoured
    half_width: dict[str, float]  # by seatings: half of the 95 % interval of a speedup, a share
    disturbed: float  # the share of samples that something disturbed
    reasons: dict[str, int]  # in how many seatings by what


def check_timing(seconds: float = 60.0, *, device: str = "auto") -> TimingCheck:
    """Seatings of a model and its copy for `seconds`; at least four."""
    shares = _shares(seconds, pick_device(device))
    logs = [
        math.log(statistics.median(s.samples["a"]) / statistics.median(s.samples["b"]))
        for s in shares
    ]
    spread = statistics.stdev(logs)
    widths = {n: math.expm1(student(n - 1) * spread / math.sqrt(n)) for n in _SHOWN}
    taken = sum(len(s.samples["a"]) + s.retaken for s in shares)
    disturbed = sum(s.retaken + s.disturbed for s in shares) / taken
    reasons = Counter(why for s in shares for why in s.reasons)
    quiet = disturbed <= _QUIET
    says = (
        f"{MODEL} against its copy, {len(shares)} seatings: with 8 seatings a speedup is known to "
        f"±{percent(widths[8], 1)}, {1 + widths[8]:.3f}× is the least that is told from none"
    )
    if reasons:
        says += f"; {percent(disturbed)} of the samples disturbed ({', '.join(reasons)})"
    return TimingCheck(
        check="timing",
        ok=quiet and widths[8] <= _FINE,
        says=says,
        hint=_advice(widths, reasons, quiet=quiet),
        seatings=len(shares),
        bias=statistics.fmean(logs),
        half_width={str(n): width for n, width in widths.items()},
        disturbed=disturbed,
        reasons=dict(reasons),
    )


def _shares(seconds: float, device: torch.device) -> list[Share]:
    """The samples of each seating."""
    end = time.monotonic() + seconds
    model = load_model(MODEL, dtype="auto", device=device, attn="sdpa").model
    models = {"a": model, "b": copy.deepcopy(model)}
    ids = token_ids(model.get_input_embeddings().num_embeddings, batch=1, length=_PROMPT, seed=0)
    draw = random.Random()
    shares: list[Share] = []
    while len(shares) < _LEAST or time.monotonic() < end:
        place(models.values(), draw)
        with torch.inference_mode():
            loops = {n: PrefillLoop(m, ids.to(device), logits="last") for n, m in models.items()}
            share = take_share(
                loops,
                warmup=1 if shares else 3,
                repeats=_SAMPLES,
                device=device,
                advance=lambda: None,
                turn=len(shares),
            )
        shares.append(share)
    return shares


def _advice(widths: dict[int, float], reasons: Counter[str], *, quiet: bool) -> str | None:
    """What makes it better, the most useful first; None where nothing needs to be."""
    said = []
    if not quiet and {"other processes", "waits"} & reasons.keys():
        said.append("stop what else runs here, or keep it off our cores: taskset -c")
    if not quiet and "steal" in reasons:
        said.append("the virtual machine shares its cores: ask for ones of its own")
    if "clocks held down" in reasons:
        said.append("the GPU is held down by heat or power: cool it, or lock its clocks lower")
    if not said and torch.get_num_threads() >= num_cores() > 1 and widths[8] > _FINE:
        said.append(f"leave the system a core: --threads {num_cores() - 1}")
    if widths[8] > _FINE:
        enough = next((n for n, width in widths.items() if width <= _FINE), None)
        said.append(
            f"--seatings {enough} is enough for {percent(_FINE)}" if enough else "--seatings 32"
        )
    if not quiet and hasattr(os, "sched_getaffinity") and num_cores() == (os.cpu_count() or 0) > 2:
        said.append(f"taskset -c 1-{num_cores() - 1} prunescope trace ... pins it")
    return "; ".join(said) or None
