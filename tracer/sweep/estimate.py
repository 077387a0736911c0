"""A rough estimate of how long a sweep will take, before anything is run.

In: planned results, the dense shape and the peaks of the device. Out: seconds. The estimate is
dense theory at a share of the peaks, plus what loading, profiling and writing took in the past.
Pruned models count like dense ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch

from prunescope.taxonomy.families import family
from prunescope.taxonomy.plan import Workload
from prunescope.taxonomy.runs.run_blocks import MeasuredPeaks
from prunescope.taxonomy.runs.sweep_files import Planned
from prunescope.taxonomy.scoring import scoring_of
from prunescope.taxonomy.shape import ModelShape
from prunescope.tracer.capture.request import LAYER_SUM_SAMPLES
from prunescope.tracer.machine import peaks as machine_peaks
from prunescope.tracer.machine.device import pick_device, thread_count
from prunescope.tracer.quality.quality import CONTEXT, decode_sizes, window_sizes
from prunescope.tracer.sweep.plan import SweepConfig, is_checkpoint, model_name
from prunescope.tracer.sweep.state import KeptPeaks, read_json

_TURNS, _BUDGET_S = 3, 2.0  # the most measurements of the peaks, and the seconds of each
ATTAINED = 0.4  # the share of the peaks that a whole model attains in eager mode
_LOAD_S, _RESULT_S = 3.0, 1.5
_PLACEMENT_S = 0.2  # to copy the weights
_PASS_S = 0.5  # to start a profiler, and to split and write its trace
_PROFILED = 1.5  # the time of a profiled step in that of a plain one
_OP_S = 15e-6  # host time of an op
# The time of a training step in that of a forward. Frozen weights need no gradients, so that the
# backward pass takes as long as the forward one; adapters, the loss in float32 and the optimizer
# take the rest.
_STEP_FORWARDS = 2.6


def peaks_here(folder: Path, config: SweepConfig, dtype: str) -> list[MeasuredPeaks]:
    """Return the peaks that this sweep has measured, or measure them now.

    They are measured with the threads of the sweep, as threads beyond the free cores wait for each
    other. A measurement is repeated up to three times if other work disturbed it, which lowers a
    peak and never raises it.

    Args:
        folder: The folder of the sweep.
        config: The configuration of the sweep.
        dtype: The name of the number format to measure.
    """
    with thread_count(config.threads):
        kept = sorted(folder.glob(f"peaks-*-{dtype}-{torch.get_num_threads()}.json"))
        read = (read_json(path, KeptPeaks) for path in kept)
        measured: list[MeasuredPeaks] = [peaks for peaks in read if peaks is not None]
        while not measured or (measured[-1].disturbed and len(measured) < _TURNS):
            measured.append(
                machine_peaks.measure_peaks(pick_device("auto"), dtype, budget_s=_BUDGET_S)
            )
    return measured


def estimate_s(results: Sequence[Planned], config: SweepConfig, forward: ForwardTimes) -> float:
    """Return the seconds of results: samples, profiled steps, quality and overheads.

    Args:
        results: The results to run.
        config: The configuration of their sweep.
        forward: The times of dense forwards.
    """
    placed = min(config.placements, config.repeats)
    passes = min(config.steps, placed)  # of the profiler; the first step of each is dropped
    total = 0.0
    for result in results:
        sampled = result.warmup + placed - 1 + config.repeats + 2  # two more steps measure memory
        # A layer alone is a share of a step; the whole model runs once in each placement, for the
        # inputs of the layer, and for its layer sum.
        share = 1 / forward.shape.layers if result.only == "layer" else 1.0
        whole = placed + 2 * (LAYER_SUM_SAMPLES + 1) if result.only == "layer" else 0
        if result.phase == "prefill":
            step = forward.seconds("prefill", result.batch, result.prompt_len, logits=result.logits)
            profiled = config.steps + passes
            total += 2 * step * (share * (sampled + _PROFILED * profiled) + whole)
        else:
            step = forward.seconds("decode", result.batch, result.prompt_len)
            fill = forward.seconds("prefill", result.batch, result.prompt_len)
            profiled = passes * (config.decode_steps + 1)
            steps = share * (config.decode_steps * sampled + _PROFILED * profiled)
            total += 2 * (fill * (2 + placed * (whole > 0)) + step * steps)
            total += 2 * step * config.decode_steps * whole
        total += _RESULT_S + placed * _PLACEMENT_S + passes * _PASS_S
    total += scoring_s(results, config, forward, "prefill")
    total += scoring_s(results, config, forward, "decode")
    return total + len({model_name(result) for result in results}) * _LOAD_S


def scoring_s(
    results: Sequence[Planned], config: SweepConfig, forward: ForwardTimes, scoring: str
) -> float:
    """Return the seconds to score each model and the dense one, for each length of prompts.

    Args:
        results: The results whose models are scored.
        config: The configuration of their sweep.
        forward: The times of dense forwards.
        scoring: The way of scoring to count, "prefill" or "decode".
    """
    pruned = {
        (model_name(result), window_sizes(result.prompt_len))
        for result in results
        if scoring_of(result.family, result.phase) == scoring
    }
    dense = {("", windows) for _, windows in pruned}
    total = 0.0
    for _, (window, tokens) in [*pruned, *dense]:
        if scoring == "prefill":
            seconds = forward.seconds("prefill", 1, window, logits="all")
        else:
            windows = math.ceil(tokens / window)
            prompt, decoded = decode_sizes(window, windows, ends=window > CONTEXT)
            seconds = forward.seconds("prefill", 1, prompt)
            seconds += decoded * forward.seconds("decode", 1, prompt)
        total += seconds * tokens / window
    return total * (1 if config.other_text is None else 2)


def num_trainings(results: Sequence[Planned], config: SweepConfig) -> int:
    """Return the number of trainings: one per model of the results, and one of the dense model."""
    if config.recover is None:
        return 0
    keys = {model_name(result) for result in results if not is_checkpoint(result.family)}
    return len(keys) + 1 if keys else 0


def training_s(results: Sequence[Planned], config: SweepConfig, forward: ForwardTimes) -> float:
    """Return the seconds of the trainings that results need.

    Limitations: all steps count as those of the dense model, and those of pruned models are
    shorter.
    """
    recovery = config.recover
    if recovery is None:
        return 0.0
    step = forward.seconds("prefill", recovery.batch, recovery.length, logits="all")
    return num_trainings(results, config) * recovery.steps * step * _STEP_FORWARDS


class ForwardTimes:
    """The seconds of dense forwards of one model on one device, each computed once."""

    def __init__(self, shape: ModelShape, peaks: MeasuredPeaks, itemsize: float) -> None:
        assert peaks.byte_per_s is not None
        self.shape, self.itemsize = shape, itemsize
        self.flop_per_s = max(peaks.dense_flop_per_s.values()) * ATTAINED
        self.byte_per_s = peaks.byte_per_s * ATTAINED
        self._known: dict[tuple[str, int, int, str], float] = {}

    def seconds(self, phase: str, batch: int, length: int, *, logits: str = "last") -> float:
        """Return the seconds of one dense forward."""
        key = phase, batch, length, logits
        if key not in self._known:
            self._known[key] = self._seconds(phase, batch, length, logits)
        return self._known[key]

    def _seconds(self, phase: str, batch: int, length: int, logits: str) -> float:
        dense = family("dense")
        work = Workload(
            phase=phase,
            batch=batch,
            prompt_len=length,
            context=length + 1 if phase == "decode" else None,
            logits=logits,
            itemsize=self.itemsize,
        )
        return sum(
            op.layers * (_OP_S + op.seconds(flop_per_s=self.flop_per_s, byte_per_s=self.byte_per_s))
            for op in dense.theory(self.shape, work, dense.point(0.0))
        )
