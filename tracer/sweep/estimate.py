"""How long a sweep will take, roughly, before anything is run.

In: a Plan, the dense shape and the peaks of the device. Out: seconds. Dense theory at a share of
the peaks, plus what experience says about loading, profiling and writing; dense and pruned count
alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from prunescope.taxonomy.families import family
from prunescope.taxonomy.plan import Workload
from prunescope.taxonomy.run_blocks import MeasuredPeaks
from prunescope.taxonomy.scoring import scoring_of
from prunescope.taxonomy.shape import ModelShape
from prunescope.taxonomy.sweep_files import Planned
from prunescope.tracer.capture.request import LAYER_SUM_SAMPLES
from prunescope.tracer.machine import peaks as machine_peaks
from prunescope.tracer.machine.device import pick_device, thread_count
from prunescope.tracer.quality.quality import decode_sizes, window_sizes
from prunescope.tracer.sweep.plan import SweepConfig, is_checkpoint, model_name
from prunescope.tracer.sweep.state import KeptPeaks, read_json

_TURNS, _BUDGET_S = 3, 2.0  # of a measurement of the peaks
ATTAINED = 0.4  # of the peaks, by a whole model in eager mode
_LOAD_S, _RESULT_S = 3.0, 1.5
_PLACEMENT_S = 0.2  # weights are copied
_PASS_S = 0.5  # a profiler starts, its trace is split and written
_PROFILED = 1.5  # a profiled step, in plain ones
_OP_S = 15e-6  # host time of an op
# A training step in forwards: frozen weights need no gradients, so that the way back is as long as
# the way there; the rest is adapters, the loss in float32 and the optimizer.
_STEP_FORWARDS = 2.6


def peaks_here(folder: Path, config: SweepConfig, dtype: str) -> list[MeasuredPeaks]:
    """The peaks that this sweep has measured, or those of now: with the threads of the sweep, as
    threads beyond the cores that are free wait for each other, and up to three times where other
    work ran concurrently, which lowers a peak and never raises one."""
    with thread_count(config.threads):
        kept = sorted(folder.glob(f"peaks-*-{dtype}-{torch.get_num_threads()}.json"))
        read = (read_json(path, KeptPeaks) for path in kept)
        found: list[MeasuredPeaks] = [peaks for peaks in read if peaks is not None]
        while not found or (found[-1].disturbed and len(found) < _TURNS):
            found.append(
                machine_peaks.measure_peaks(pick_device("auto"), dtype, budget_s=_BUDGET_S)
            )
    return found


def estimate_s(results: Sequence[Planned], config: SweepConfig, forward: ForwardTimes) -> float:
    """Seconds for `results`: samples, profiled steps, quality of each model, and overheads."""
    placed = min(config.placements, config.repeats)
    passes = min(config.steps, placed)  # of the profiler; the first step of each is thrown away
    total = 0.0
    for result in results:
        sampled = result.warmup + placed - 1 + config.repeats + 2  # two more count memory
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
    total += _scoring_s(results, config, forward, "prefill")
    total += _scoring_s(results, config, forward, "decode")
    return total + len({model_name(result) for result in results}) * _LOAD_S


def decode_scoring_s(
    results: Sequence[Planned], config: SweepConfig, forward: ForwardTimes
) -> float:
    """The part of `estimate_s` that scores models token by token, in seconds."""
    return _scoring_s(results, config, forward, "decode")


def _scoring_s(
    results: Sequence[Planned], config: SweepConfig, forward: ForwardTimes, scoring: str
) -> float:
    """Seconds to score each model, and the dense one, in one way: behind each length of prompts."""
    of_way = [r for r in results if scoring_of(r.family, r.phase) == scoring]
    pruned = {(model_name(result), window_sizes(result.prompt_len)) for result in of_way}
    dense = {("", windows) for _, windows in pruned}
    total = 0.0
    for _, (window, tokens) in [*pruned, *dense]:
        if scoring == "prefill":
            seconds = forward.seconds("prefill", 1, window, logits="all")
        else:
            prompt, decoded = decode_sizes(window)
            seconds = forward.seconds("prefill", 1, prompt)
            seconds += decoded * forward.seconds("decode", 1, prompt)
        total += seconds * tokens / window
    return total * (1 if config.other_text is None else 2)


def num_trainings(results: Sequence[Planned], config: SweepConfig) -> int:
    """The number of trainings: one for each model of `results`, and one of the dense model."""
    if config.recover is None:
        return 0
    keys = {model_name(result) for result in results if not is_checkpoint(result.family)}
    return len(keys) + 1 if keys else 0


def training_s(results: Sequence[Planned], config: SweepConfig, forward: ForwardTimes) -> float:
    """Seconds for the trainings that `results` need, by dense steps; pruned ones are shorter."""
    wanted = config.recover
    if wanted is None:
        return 0.0
    step = forward.seconds("prefill", wanted.batch, wanted.length, logits="all")
    return num_trainings(results, config) * wanted.steps * step * _STEP_FORWARDS


class ForwardTimes:
    """The seconds of dense forwards of one model on one device, each computed once."""

    def __init__(self, shape: ModelShape, peaks: MeasuredPeaks, itemsize: float) -> None:
        assert peaks.byte_per_s is not None
        self.shape, self.itemsize = shape, itemsize
        self.flop_per_s = max(peaks.dense_flop_per_s.values()) * ATTAINED
        self.byte_per_s = peaks.byte_per_s * ATTAINED
        self._known: dict[tuple[str, int, int, str], float] = {}

    def seconds(self, phase: str, batch: int, length: int, *, logits: str = "last") -> float:
        """Seconds of one dense forward."""
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
