"""One capture from models to manifests: time unprofiled, count memory, profile, split.

In: a checked TraceRequest. Out: a Capture by variant; nothing is written outside a temporary
folder. Dense and pruned see the same inputs and take turns throughout: sample by sample where both
fit in memory, else in alternating blocks.
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch

from prunescope.taxonomy.collection import no_collection
from prunescope.taxonomy.formats import changed, plain, read
from prunescope.taxonomy.run import PhaseRun, Placement, Run
from prunescope.taxonomy.run_blocks import DeviceEntry, MeasuredPeaks, Pruning
from prunescope.tracer.capture.chrome import ChromeTrace
from prunescope.tracer.capture.device_state import AchievedRates, DeviceState
from prunescope.tracer.capture.graph_mode import check_mode, plainly
from prunescope.tracer.capture.loops import input_ids, loops_of
from prunescope.tracer.capture.manifest import manifest, phase_entry, scrubbed, scrubbed_argv
from prunescope.tracer.capture.memory import peak_and_cache_bytes
from prunescope.tracer.capture.phases import Loop
from prunescope.tracer.capture.placements import (
    PlacementPart,
    further_part,
    parts_of,
    place,
    shares,
    wide_phases,
)
from prunescope.tracer.capture.profiled import ProfiledSession, profile_loops
from prunescope.tracer.capture.progress import Progress
from prunescope.tracer.capture.request import TraceRequest
from prunescope.tracer.capture.runs import Capture
from prunescope.tracer.capture.timing import nobody, set_aside, take_share
from prunescope.tracer.capture.variants import (
    BaselineDoesNotFit,
    Variant,
    check_method,
    make_variants,
    variant_names,
)
from prunescope.tracer.capture.weight_stats import add_stats, dynamic_stats, skips_no_block
from prunescope.tracer.machine.device import memory_explained, pick_device, thread_count
from prunescope.tracer.machine.disturbance import between, device_troubles
from prunescope.tracer.machine.disturbance import read as read_counters
from prunescope.tracer.model import compat
from prunescope.tracer.model.load import WEIGHT_SEED

# Where dense and pruned do not fit together each is loaded this often, in turn.
_BLOCKS = 2


def capture(
    request: TraceRequest,
    progress: Progress,
    *,
    peaks: MeasuredPeaks | None,
    variants: list[Variant] | None = None,
) -> dict[str, Capture]:
    """Run everything. Raises PrunescopeError on what this machine or model cannot do.

    `variants`: those that `make_variants` gave for this request, where they are run again.
    """
    device = pick_device(request.device)
    check_mode(request, device)
    check_method(request)
    with thread_count(request.threads), memory_explained():
        around = DeviceState(device, peaks)
        session = _Session(request, device, progress, around)
        session.variants = variants
        names = variant_names(request)
        try:
            session.visit(_Visit(names=names, parts=parts_of(request), last=True))
        except (BaselineDoesNotFit, torch.OutOfMemoryError):
            if len(names) == 1:
                raise
            session = _in_blocks(session)
        progress.stage("measure the device's peaks again")
        timing = around.close()
    for captured in session.captures.values():
        captured.run.timing = timing
    return session.captures


@dataclass(frozen=True, kw_only=True)
class _Visit:
    """Variants that are in memory together, and what is done with them."""

    names: tuple[str, ...]
    parts: list[PlacementPart]
    last: bool  # of these variants: count memory too
    interleaved: str | None = None  # None: by the number of variants


def _in_blocks(tried: _Session) -> _Session:
    """Dense, pruned, dense, pruned, each loaded anew for its block of placements."""
    request, device = tried.request, tried.device
    tried.around.achieved = AchievedRates()  # what was tried is not kept
    session = _Session(request, device, tried.progress, tried.around)
    parts = parts_of(request)
    if len(parts) == 1:  # placement is not drawn: the samples of the one placement in two blocks
        whole, blocks = parts[0], min(_BLOCKS, request.repeats)
        parts = [replace(whole, repeats=n, steps=0) for n in shares(whole.repeats, blocks)]
        parts[-1] = replace(parts[-1], steps=whole.steps)
    sizes = shares(len(parts), min(_BLOCKS, len(parts)))
    for block, size in enumerate(sizes):
        own, parts = parts[:size], parts[size:]
        for name in variant_names(request):
            _release(device)
            last = block == len(sizes) - 1
            session.visit(_Visit(names=(name,), parts=own, last=last, interleaved="blocks"))
    return session


def _release(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


class _Session:
    """The captures as they grow, visit by visit."""

    def __init__(
        self,
        request: TraceRequest,
        device: torch.device,
        progress: Progress,
        around: DeviceState,
    ) -> None:
        self.request, self.device, self.progress = request, device, progress
        self.captures: dict[str, Capture] = {}
        self.around = around
        self._draw = random.Random()  # of no seed: two captures have placements of their own
        self.variants: list[Variant] | None = None  # made before; None: loaded at each visit

    def visit(self, visit: _Visit) -> None:
        """Load the visit's variants; in each placement time and profile every phase."""
        self.progress.stage(f"load {self.request.model}")
        variants = self.variants or make_variants(self.request, self.device, visit.names)
        if self.around.entry is None:
            self.progress.stage("measure the device's peaks")
        info = self.around.open(variants[0].loaded.dtype)
        for variant in variants:
            if variant.name not in self.captures:
                self.progress.stage(f"count zeros of {variant.name}")
                run = _run(self.request, variant, info)
                run.inputs = input_ids(self.request, variants, length=1)[1]
                self.captures[variant.name] = Capture(run=run)
        kept: dict[str, dict[str, Loop]] = {}
        with set_aside(), torch.inference_mode():
            for part in chain(visit.parts, self._further(visit)):
                self._seat(visit, part, variants, kept)
            for phase in self.request.phases if visit.last else ():
                self._finish(phase, variants, kept[phase])

    def _seat(
        self,
        visit: _Visit,
        part: PlacementPart,
        variants: list[Variant],
        kept: dict[str, dict[str, Loop]],
    ) -> None:
        """Time and profile each phase once. `kept`: the loops by phase, which grow."""
        self._report_placement(part)
        cost_ns = self._place(variants)
        for phase in part.phases:
            # Compiled code takes weights from anywhere; a graph is recorded where they lie.
            if self.request.mode != "compile" or phase not in kept:
                kept[phase] = loops_of(self.request, phase, variants, self.device)
            self._time(phase, variants, kept[phase], (visit, part, cost_ns))
            cost_ns = 0  # of the first phase of the placement
            if part.steps:
                self._profile(phase, variants, kept[phase], part)

    def _further(self, visit: _Visit) -> Iterator[PlacementPart]:
        """More placements than were asked for, of the phases whose interval is wide."""
        if len(visit.names) == 1 or visit.interleaved:
            return
        phases = self.request.phases
        for number in range(len(visit.parts), self.request.most_placements):
            runs = {p: [c.run.phases[p] for c in self.captures.values()] for p in phases}
            if not (wide := wide_phases(runs)):
                return
            yield further_part(self.request, number, wide)

    def _place(self, variants: list[Variant]) -> int:
        """A new placement; ns that it took. One placement alone is where the loader put the
        weights."""
        if max(self.request.placements, self.request.most_placements) == 1:
            return 0
        start = time.perf_counter_ns()
        place((variant.model for variant in variants), self._draw)
        return time.perf_counter_ns() - start

    def _time(
        self,
        phase: str,
        variants: list[Variant],
        loops: dict[str, Loop],
        where: tuple[_Visit, PlacementPart, int],
    ) -> None:
        visit, part, cost_ns = where
        # Code, caches of the libraries and clocks are warm after the first placement.
        warmup = self.request.warmup if part is visit.parts[0] else min(1, self.request.warmup)
        self._stage(f"time {phase}", warmup + part.repeats)
        start = time.perf_counter_ns()
        share = take_share(
            loops,
            warmup=warmup,
            repeats=part.repeats,
            device=self.device,
            advance=self.progress.advance,
            turn=part.number,
            settle=len(loops) > 1 and self.request.may_go_on,
        )
        spent = time.perf_counter_ns() - start
        spent -= sum(sum(ns) * loops[n].steps_per_sample for n, ns in share.samples.items())
        turns = visit.interleaved or ("alternating" if len(loops) > 1 else "alone")
        for variant in variants:
            entry = self._entry(phase, variant)
            samples = share.samples[variant.name]
            entry.samples_ns += samples
            entry.interleaved = turns
            entry.placements.append(
                Placement(
                    samples=len(samples),
                    steps=0,
                    cost_ns=cost_ns + max(0, spent),
                    retaken=share.retaken,
                    disturbed=share.disturbed,
                    reasons=share.reasons,
                    switches=share.switches,
                )
            )

    def _entry(self, phase: str, variant: Variant) -> PhaseRun:
        phases = self.captures[variant.name].run.phases
        return phases.setdefault(phase, _phase(self.request, phase, variant))

    def _report_placement(self, part: PlacementPart) -> None:
        """One stage a placement, of everything that is done in it."""
        parts = parts_of(self.request)
        if len(parts) == 1:
            return
        steps = {"prefill": part.steps, "decode": self.request.decode_steps}
        warmup = self.request.warmup if part.number == 0 else min(1, self.request.warmup)
        profiled = bool(part.steps)
        total = sum(warmup + part.repeats + profiled * (steps[p] + 1) for p in part.phases)
        more = ", as intervals are wide" if part.number >= len(parts) else ""
        self.progress.stage(f"placement {part.number + 1} of {len(parts)}{more}", total)

    def _stage(self, name: str, total: int) -> None:
        """A stage of its own where there is one placement."""
        if len(parts_of(self.request)) == 1:
            self.progress.stage(name, total)

    def _profile(
        self, phase: str, variants: list[Variant], loops: dict[str, Loop], part: PlacementPart
    ) -> None:
        """This placement's steps: its share of forwards, or the loop of a decode once."""
        models = [v.model for v in variants]
        count = part.steps if phase == "prefill" else self.request.decode_steps
        before = self._entry(phase, variants[0]).steps
        self._stage(f"profile {phase}", count + 1)
        traces, reasons = self._quietly_profiled(
            loops, models, hooked=self.request.mode == "eager", steps=range(before, before + count)
        )
        for variant in variants:
            captured, entry = self.captures[variant.name], self._entry(phase, variant)
            self.around.achieved.add(traces[variant.name])
            captured.traces[phase].add(traces.pop(variant.name))
            entry.steps += count
            entry.placements[-1].steps = count
            entry.placements[-1].steps_disturbed = reasons
            # What the modules of a dynamic family counted in the profiled steps.
            stats = dynamic_stats(variant.model)
            if stats and captured.run.census is not None:
                add_stats(captured.run.census.dynamic.setdefault(phase, {}), stats)

    def _quietly_profiled(
        self, loops: dict[str, Loop], models: list[Any], *, hooked: bool, steps: range
    ) -> tuple[dict[str, ChromeTrace], list[str]]:
        """A trace a variant, and what disturbed the steps: they are then taken again, once."""
        told = self.progress.advance
        while True:
            before = read_counters()
            session = _profiled(
                loops,
                models if hooked else [],
                steps=steps,
                device=self.device,
                advance=_Pass(models, told).advance,
            )
            seen = between(before, read_counters(), self.device)
            reasons = seen.reasons + device_troubles(self.device)
            if not reasons or told is nobody:
                return session.traces(), reasons
            told = nobody

    def _finish(self, phase: str, variants: list[Variant], loops: dict[str, Loop]) -> None:
        """After the last placement: the memory of a step, and the eager pass of a recorded one."""
        for variant in variants:
            captured, entry = self.captures[variant.name], self._entry(phase, variant)
            peak, cache = peak_and_cache_bytes(loops[variant.name], variant.model, self.device)
            entry.peak_memory_bytes, entry.kv_bytes = peak, cache
            drawn, asked = len(entry.placements), self.request.placements
            if drawn > asked or self.request.first_placements <= drawn < asked:
                entry.placements_requested = asked
            stats = captured.run.census.dynamic.get(phase, {}) if captured.run.census else {}
            pruning = captured.run.pruning
            if pruning and pruning.sparsity != 0 and skips_no_block(stats):
                note = (
                    f"{phase}: no block is skipped: a prompt of {self.request.prompt_len} tokens "
                    "has too few of them at this sparsity"
                )
                pruning.notes = [*(pruning.notes or ()), note]
        if self.request.mode != "eager":
            self._profile_eagerly(phase, variants)

    def _profile_eagerly(self, phase: str, variants: list[Variant]) -> None:
        """One step of the same loops with hooks and nothing recorded: it names the kernels and
        says what products multiply, which a replay does not."""
        loops = loops_of(self.request, phase, variants, self.device, plainly)
        models = [v.model for v in variants]
        self.progress.stage(f"profile {phase}, eager", 2)
        traces = _profiled(
            loops, models, steps=range(1), device=self.device, advance=self.progress.advance
        ).traces()
        for variant in variants:
            self.around.achieved.add(traces[variant.name])
            self.captures[variant.name].eager[phase].add(traces.pop(variant.name))


class _Pass:
    """Progress of a profiled pass; after the step thrown away, counting modules start anew."""

    def __init__(self, models: list[Any], told: Callable[[], None]) -> None:
        self.models, self.told, self.steps_done = models, told, 0

    def advance(self) -> None:
        """One index of the pass is done."""
        if self.steps_done == 0:
            for model in self.models:
                dynamic_stats(model)
        self.steps_done += 1
        self.told()


def _profiled(
    loops: dict[str, Loop],
    models: list[Any],
    *,
    steps: range,
    device: torch.device,
    advance: Callable[[], None],
) -> ProfiledSession:
    with no_collection():  # what was garbage went before the samples were taken
        return profile_loops(loops, models, steps=steps, device=device, advance=advance)


def _phase(request: TraceRequest, phase: str, variant: Variant) -> PhaseRun:
    """Without samples and steps: each placement adds its own."""
    config = variant.model.config
    entry = phase_entry(
        request,
        phase,
        logits=compat.logits_policy(variant.model, request.logits),
        attention=str(getattr(config, "_attn_implementation", request.attn)),
    )
    return changed(entry, steps=0)


def _run(request: TraceRequest, variant: Variant, info: DeviceEntry) -> Run:
    seeds = {"inputs": request.seed, "selection": request.seed}
    if variant.loaded.source == "preset":
        seeds["weights"] = WEIGHT_SEED
    return manifest(
        variant.name,
        variant.model,
        variant.loaded,
        info,
        seeds=seeds,
        argv=scrubbed_argv(request.argv, variant.loaded),
        layer_map=variant.layer_map,
        pruning=variant.pruning and read(Pruning, scrubbed(plain(variant.pruning))),
    )
