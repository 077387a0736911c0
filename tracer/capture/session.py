"""One capture from models to manifests: time without the profiler, then profile, then memory.

A checked TraceRequest comes in; a Capture by variant goes out. Nothing is written outside a
temporary folder. Dense and pruned run on the same inputs and take turns: sample by sample where
both fit in memory, else in alternating blocks.
"""

from __future__ import annotations

import gc
import itertools
import random
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import msgspec
import torch

from prunescope.taxonomy.collection import no_collection
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.formats import changed, plain, read
from prunescope.taxonomy.runs.run import PhaseRun, Placement, Run
from prunescope.taxonomy.runs.run_blocks import DeviceEntry, LayerAlone, MeasuredPeaks, Pruning
from prunescope.taxonomy.timings import part
from prunescope.tracer.capture.chrome import ChromeTrace
from prunescope.tracer.capture.device_state import AchievedRates, DeviceState
from prunescope.tracer.capture.graph_mode import check_mode, record_nothing
from prunescope.tracer.capture.loops import input_ids, layer_sum_loops, loops_of
from prunescope.tracer.capture.manifest import as_json, manifest, phase_entry
from prunescope.tracer.capture.memory import peak_and_cache_bytes
from prunescope.tracer.capture.one_layer import layers_alone
from prunescope.tracer.capture.phases import Loop
from prunescope.tracer.capture.placements import (
    PlacementPlan,
    further_placement,
    placed,
    planned_placements,
    split_evenly,
)
from prunescope.tracer.capture.profiled import ProfiledSession, profile_loops
from prunescope.tracer.capture.progress import Progress
from prunescope.tracer.capture.request import LAYER_SUM_SAMPLES, TraceRequest
from prunescope.tracer.capture.routing import count_routing
from prunescope.tracer.capture.runs import Capture
from prunescope.tracer.capture.stopping import rule_of, wide_phases
from prunescope.tracer.capture.timing import (
    SamplePlan,
    heap_frozen,
    no_progress,
    take_samples,
)
from prunescope.tracer.capture.variants import (
    BaselineDoesNotFit,
    Variant,
    check_method,
    make_variants,
    variant_names,
)
from prunescope.tracer.capture.weight_stats import (
    add_stats,
    dynamic_stats,
    fixed_shares,
    skips_no_block,
)
from prunescope.tracer.machine.backends import PROFILER, backend_of
from prunescope.tracer.machine.device import (
    memory_explained,
    pick_device,
    require_feature,
    thread_count,
)
from prunescope.tracer.machine.disturbance import between, device_troubles
from prunescope.tracer.machine.disturbance import read as read_counters
from prunescope.tracer.machine.timed_calls import flush_size
from prunescope.tracer.model import compat
from prunescope.tracer.model.layers import decoder_layers
from prunescope.tracer.model.load import WEIGHT_SEED

# Dense and pruned that do not fit in memory together are loaded this often each, in turn.
_BLOCKS = 2


def capture(
    request: TraceRequest,
    progress: Progress,
    *,
    peaks: MeasuredPeaks | None,
    variants: list[Variant] | None = None,
    on_models: Callable[[list[Variant]], None] | None = None,
) -> dict[str, Capture]:
    """Run a whole capture.

    Args:
        request: The request, already checked.
        progress: The display of progress.
        peaks: The peaks of this device; None measures them before and after the capture.
        variants: Models that `make_variants` returned for this request, to be run again; None
            loads them.
        on_models: Called with the models of each block before they are timed.

    Returns:
        A capture for each variant, by its name.

    Raises:
        PrunescopeError: This machine or this model cannot do what is requested.
    """
    device = pick_device(request.device)
    require_feature(device, PROFILER)
    check_mode(request, device)
    check_method(request)
    with thread_count(request.threads), memory_explained():
        state = DeviceState(device, peaks)
        session = _Session(request, progress, state, variants, on_models)
        names = variant_names(request)
        try:
            session.run(_Block(names=names, plans=planned_placements(request), last=True))
        except (BaselineDoesNotFit, torch.OutOfMemoryError) as error:
            if len(names) == 1:
                raise
            if request.only == "layer":
                raise PrunescopeError(
                    "--only layer runs the same layer of dense and pruned, and the two models do "
                    "not fit in memory together",
                    hint="use a smaller --batch or --prompt-len, or --only model",
                ) from error
            state.achieved = AchievedRates()  # those of the attempt do not count
            # No interval exists before the last block, so that nothing can stop at a narrow one.
            session = _Session(replace(request, until=None), progress, state, None, on_models)
            _run_in_blocks(session)
            _note_blocks(request, session.captures)
        progress.stage("measure the device's peaks again")
        timing = state.close()
    for captured in session.captures.values():
        captured.run.timing = timing
    return session.captures


@dataclass(frozen=True, kw_only=True)
class _Block:
    """Variants that are in memory together, and their placements.

    `last` marks the last block of these variants, which also measures memory. `interleaved` is that
    of PhaseRun; None derives it from the number of variants.
    """

    names: tuple[str, ...]
    plans: list[PlacementPlan]
    last: bool
    interleaved: str | None = None


def _run_in_blocks(session: _Session) -> None:
    """Run dense, pruned, dense, pruned, each loaded again for its block of placements."""
    request = session.request
    plans = planned_placements(request)
    if len(plans) == 1:  # weights do not move: the samples of the one placement in two blocks
        whole, blocks = plans[0], min(_BLOCKS, request.repeats)
        plans = [replace(whole, repeats=n, steps=0) for n in split_evenly(whole.repeats, blocks)]
        plans[-1] = replace(plans[-1], steps=whole.steps)
    sizes = split_evenly(len(plans), min(_BLOCKS, len(plans)))
    for number, size in enumerate(sizes):
        block, plans = plans[:size], plans[size:]
        for name in variant_names(request):
            gc.collect()
            backend_of(session.device).empty_cache()
            last = number == len(sizes) - 1
            session.run(_Block(names=(name,), plans=block, last=last, interleaved="blocks"))


def _note_blocks(request: TraceRequest, captures: Mapping[str, Capture]) -> None:
    """Record the interval of placements in blocks beside the one that `until` asked for."""
    if request.until is None:
        return
    for phase in request.phases:
        runs = [captured.run.phases[phase] for captured in captures.values()]
        result = replace(rule_of(request), sequential=False).result(runs)
        for run in runs:
            run.until = msgspec.structs.replace(result, looks=0, ended="blocks")


class _Session:
    """The captures as they grow, block by block.

    `variants` are models that are loaded already; None loads them in each block.
    """

    def __init__(
        self,
        request: TraceRequest,
        progress: Progress,
        state: DeviceState,
        variants: list[Variant] | None = None,
        on_models: Callable[[list[Variant]], None] | None = None,
    ) -> None:
        self.request, self.progress, self.state = request, progress, state
        self.device = state.device
        self.captures: dict[str, Capture] = {}
        self._variants, self._on_models = variants, on_models
        self._rng = random.Random()  # unseeded: two captures have different placements

    def run(self, block: _Block) -> None:
        """Load the block's variants, then time and profile every phase in each placement."""
        request = self.request
        self.progress.stage(f"load {request.model}")
        variants = self._variants or make_variants(request, self.device, block.names)
        if self._on_models is not None:
            self._on_models(variants)
        if self.state.entry is None:
            self.progress.stage("measure the device's peaks")
        entry = self.state.open(variants[0].loaded.dtype)
        for variant in variants:
            if variant.name not in self.captures:
                self.progress.stage(f"count zeros of {variant.name}")
                run = _empty_run(request, variant, entry)
                run.inputs = input_ids(request, variants, length=1)[1]
                self.captures[variant.name] = Capture(run=run)
        models = [variant.model for variant in variants]
        # A single placement leaves the weights where the loader put them.
        move = max(request.placements, request.most_placements) > 1
        loops: dict[str, dict[str, Loop]] = {}
        with heap_frozen(), torch.inference_mode():
            for plan, cost_ns in placed(self._plans(block), models, self._rng, move=move):
                for phase in plan.phases:
                    # Compiled code reads weights from anywhere; a CUDA graph from fixed addresses.
                    if request.mode != "compile" or phase not in loops:
                        loops[phase] = loops_of(request, phase, variants, self.device)
                    self._time(phase, variants, loops[phase], (block, plan, cost_ns))
                    cost_ns = 0  # counted once, in the first phase of the placement
                    if plan.steps:
                        self._profile(phase, variants, loops[phase], plan)
            for phase in request.phases if block.last else ():
                self._finish(phase, variants, loops[phase])

    def _plans(self, block: _Block) -> Iterator[PlacementPlan]:
        """Yield the block's placements, then further ones.

        Further ones are of the phases whose interval is still wide.
        """
        for plan in block.plans:
            self._report_placement(plan)
            yield plan
        # Without `until` a model alone gets no further placements: it has no speedup to know.
        if block.interleaved or (len(block.names) == 1 and self.request.until is None):
            return
        rule = rule_of(self.request)
        for number in range(len(block.plans), self.request.most_placements):
            runs = {
                phase: [captured.run.phases[phase] for captured in self.captures.values()]
                for phase in self.request.phases
            }
            if not (wide := wide_phases(rule, runs)):
                return
            plan = further_placement(self.request, number, wide)
            self._report_placement(plan)
            yield plan

    def _time(
        self,
        phase: str,
        variants: list[Variant],
        loops: dict[str, Loop],
        where: tuple[_Block, PlacementPlan, int],
    ) -> None:
        """Take the unprofiled samples of a placement.

        `where` is the block, the placement in it, and the ns that moving the weights took.
        """
        block, plan, cost_ns = where
        # Code, caches of the libraries and clocks are warm after the first placement.
        warmup = self.request.warmup if plan is block.plans[0] else min(1, self.request.warmup)
        self._begin_stage(f"time {phase}", warmup + plan.repeats)
        start = time.perf_counter_ns()
        samples_planned = SamplePlan(
            warmup=warmup,
            repeats=plan.repeats,
            first_round=plan.number,
            is_adaptive=len(loops) > 1 and self.request.may_go_on,
        )
        taken = take_samples(
            loops, samples_planned, device=self.device, advance=self.progress.advance
        )
        spent_ns = time.perf_counter_ns() - start
        spent_ns -= sum(sum(ns) * loops[n].steps_per_sample for n, ns in taken.samples.items())
        interleaved = block.interleaved or ("alternating" if len(loops) > 1 else "alone")
        for variant in variants:
            entry = self._entry(phase, variant)
            samples = taken.samples[variant.name]
            entry.samples_ns += samples
            entry.interleaved = interleaved
            entry.placements.append(
                Placement(
                    samples=len(samples),
                    steps=0,
                    cost_ns=cost_ns + max(0, spent_ns),
                    retaken=taken.retaken,
                    disturbed=taken.disturbed,
                    reasons=taken.reasons,
                    switches=taken.switches,
                )
            )

    def _entry(self, phase: str, variant: Variant) -> PhaseRun:
        """Return the entry of a phase in run.json, which begins without samples."""
        phases = self.captures[variant.name].run.phases
        return phases.setdefault(phase, _empty_phase(self.request, phase, variant, self.device))

    def _report_placement(self, plan: PlacementPlan) -> None:
        """Report everything that is done in a placement as one stage of progress."""
        planned, until = len(planned_placements(self.request)), self.request.until
        if planned == 1:
            return
        steps = {"prefill": plan.steps, "decode": self.request.decode_steps}
        warmup = self.request.warmup if plan.number == 0 else min(1, self.request.warmup)
        profiled = bool(plan.steps)
        total = sum(warmup + plan.repeats + profiled * (steps[p] + 1) for p in plan.phases)
        reason = ", as intervals are wide" if plan.number >= planned else ""
        count = planned if until is None else f"at most {self.request.most_placements}"
        self.progress.stage(f"placement {plan.number + 1} of {count}{reason}", total)

    def _begin_stage(self, name: str, total: int) -> None:
        """Begin a stage of progress, unless `_report_placement` has begun one for the placement."""
        if len(planned_placements(self.request)) == 1:
            self.progress.stage(name, total)

    @part("profile")
    def _profile(
        self, phase: str, variants: list[Variant], loops: dict[str, Loop], plan: PlacementPlan
    ) -> None:
        """Profile the placement's steps: its part of the forwards, or all tokens of a decode."""
        models = [v.model for v in variants]
        count = plan.steps if phase == "prefill" else self.request.decode_steps
        before = self._entry(phase, variants[0]).steps
        self._begin_stage(f"profile {phase}", count + 1)
        traces, reasons = self._profile_undisturbed(
            loops, models, hooked=self.request.mode == "eager", steps=range(before, before + count)
        )
        for variant in variants:
            captured, entry = self.captures[variant.name], self._entry(phase, variant)
            self.state.achieved.add(traces[variant.name])
            captured.traces[phase].add(traces.pop(variant.name))
            entry.steps += count
            entry.placements[-1].steps = count
            entry.placements[-1].steps_disturbed = reasons
            # The counts of a dynamic family's modules in the profiled steps.
            stats = dynamic_stats(variant.model)
            # Recorded steps count nothing: the eager pass counts for them.
            if stats and captured.run.census is not None and self.request.mode == "eager":
                add_stats(captured.run.census.dynamic.setdefault(phase, {}), stats)

    def _profile_undisturbed(
        self, loops: dict[str, Loop], models: list[Any], *, hooked: bool, steps: range
    ) -> tuple[dict[str, ChromeTrace], list[str]]:
        """Return a trace of each variant, and what disturbed the steps.

        Disturbed steps are repeated once.
        """
        on_step = self.progress.advance
        while True:
            before = read_counters()
            session = _profile_loops(
                loops, models, hooked=hooked, steps=steps, device=self.device, on_step=on_step
            )
            disturbance = between(before, read_counters(), self.device)
            reasons = disturbance.reasons + device_troubles(self.device)
            if not reasons or on_step is no_progress:
                return session.traces(), reasons
            on_step = no_progress

    @part("profile")
    def _finish(self, phase: str, variants: list[Variant], loops: dict[str, Loop]) -> None:
        """Measure what needs no placement, after the last one.

        That is the memory of a step, the eager pass of a recorded step, and the tokens of each
        expert.
        """
        if self.request.only == "layer":
            self._time_layer_sum(phase, variants)
        for variant in variants:
            entry, run = self._entry(phase, variant), loops[variant.name].run
            entry.graphs, entry.breaks = getattr(run, "graphs", None), getattr(run, "breaks", None)
            peak, cache = peak_and_cache_bytes(loops[variant.name], variant.model, self.device)
            entry.peak_memory_bytes, entry.kv_bytes = peak, cache
            self._record_requested(phase, entry)
        if self.request.mode != "eager":
            loops = loops_of(self.request, phase, variants, self.device, record_nothing)
            self._profile_eagerly(phase, variants, loops)
        for variant in variants:
            run = self.captures[variant.name].run
            count_routing(variant.model, loops[variant.name], run, phase)
            stats = run.census.dynamic.get(phase, {}) if run.census else {}
            pruning = run.pruning
            if pruning and stats and self.request.mode != "eager":
                pruning.notes = [*(pruning.notes or ()), *fixed_shares(phase, stats)]
            if pruning and pruning.sparsity != 0 and skips_no_block(stats):
                note = (
                    f"{phase}: no block is skipped: a prompt of {self.request.prompt_len} tokens "
                    "has too few of them at this sparsity"
                )
                pruning.notes = [*(pruning.notes or ()), note]

    def _record_requested(self, phase: str, entry: PhaseRun) -> None:
        """Record in a phase what was requested of its placements, where they differ from it."""
        request, measured = self.request, len(entry.placements)
        if request.until is not None:
            runs = [captured.run.phases[phase] for captured in self.captures.values()]
            entry.until = rule_of(request).result(runs)
        elif measured > request.placements or (
            request.first_placements <= measured < request.placements
        ):
            entry.placements_requested = request.placements

    def _time_layer_sum(self, phase: str, variants: list[Variant]) -> None:
        """Time the layer, the whole model and the model without its layers, in turns."""
        self.progress.stage(f"time the whole model, {phase}", LAYER_SUM_SAMPLES)
        timed = {
            f"{name} {part}": loop
            for name, parts in layer_sum_loops(self.request, phase, variants, self.device).items()
            for part, loop in parts.items()
        }
        taken = take_samples(
            timed,
            SamplePlan(warmup=1, repeats=LAYER_SUM_SAMPLES),
            device=self.device,
            advance=self.progress.advance,
        )
        numbers = layers_alone(variants)
        for variant in variants:
            layer_ns, rest_ns, whole_ns = (
                taken.samples[f"{variant.name} {part}"] for part in ("layer", "rest", "whole")
            )
            self._entry(phase, variant).alone = LayerAlone(
                layer=numbers[variant.name],
                layers=len(decoder_layers(variant.model)[1]),
                layer_ns=median(layer_ns),
                rest_ns=median(rest_ns),
                whole_ns=median(whole_ns),
                rounds_ns=list(zip(layer_ns, rest_ns, whole_ns, strict=True)),
            )

    def _profile_eagerly(self, phase: str, variants: list[Variant], loops: dict[str, Loop]) -> None:
        """Profile one step of the same `loops` in eager mode with hooks.

        It shows the module and the shapes of each kernel, which a replay does not, and what the
        modules of dynamic families count in every step.
        """
        models = [v.model for v in variants]
        self.progress.stage(f"profile {phase}, eager", 2)
        traces = _profile_loops(
            loops,
            models,
            hooked=True,
            steps=range(1),
            device=self.device,
            on_step=self.progress.advance,
        ).traces()
        for variant in variants:
            self.state.achieved.add(traces[variant.name])
            captured = self.captures[variant.name]
            captured.eager[phase].add(traces.pop(variant.name))
            stats = dynamic_stats(variant.model)
            if stats and captured.run.census is not None:
                counted = captured.run.census.dynamic.setdefault(phase, {})
                for _ in range(self._entry(phase, variant).steps):
                    add_stats(counted, stats)


def _profile_loops(
    loops: dict[str, Loop],
    models: list[Any],
    *,
    hooked: bool,
    steps: range,
    device: torch.device,
    on_step: Callable[[], None],
) -> ProfiledSession:
    """Profile loops without garbage collection, with hooks on their models if `hooked`.

    The counters of dynamic families restart after the step that is thrown away. `on_step` is called
    after each step of every variant.
    """
    steps_done = itertools.count()

    def advance() -> None:
        if next(steps_done) == 0:
            for model in models:
                dynamic_stats(model)
        on_step()

    hooked_models = models if hooked else []
    with no_collection():  # garbage was collected before the samples
        return profile_loops(loops, hooked_models, steps=steps, device=device, advance=advance)


def _empty_phase(
    request: TraceRequest, phase: str, variant: Variant, device: torch.device
) -> PhaseRun:
    """Return the entry of a phase without samples and steps, which each placement adds."""
    config = variant.model.config
    entry = phase_entry(
        request,
        phase,
        logits=compat.logits_policy(variant.model, request.logits),
        attention=str(getattr(config, "_attn_implementation", request.attn)),
        flush_bytes=flush_size(device) if request.flush else None,
    )
    return changed(entry, steps=0)


def _empty_run(request: TraceRequest, variant: Variant, info: DeviceEntry) -> Run:
    """Return the manifest of a variant before any phase is run."""
    seeds = {"inputs": request.seed, "selection": request.seed}
    if variant.loaded.source == "preset":
        seeds["weights"] = WEIGHT_SEED
    return manifest(
        variant.name,
        variant.model,
        variant.loaded,
        info,
        seeds=seeds,
        argv=list(request.argv),
        layer_map=variant.layer_map,
        pruning=variant.pruning and read(Pruning, as_json(plain(variant.pruning))),
    )
