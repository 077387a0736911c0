"""One capture from models to manifests: time unprofiled, count memory, profile, split.

In: a checked TraceRequest. Out: a Capture by variant; nothing is written outside a temporary
folder. Dense and pruned see the same inputs and take turns throughout.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from taxonomy.errors import PrunescopeError
from taxonomy.run import Run
from tracer import compat
from tracer.calibrate import newest
from tracer.capture import profile_loops
from tracer.census import census, dynamic_stats
from tracer.chrome import split
from tracer.clocks import read_clocks
from tracer.machine import (
    device_info,
    load_average,
    num_cores,
    pick_device,
    prunescope_version,
    versions,
)
from tracer.manifest import model_entry, phase_entry, scrubbed, scrubbed_argv
from tracer.memory import peak_and_cache_bytes, weight_bytes
from tracer.models import WEIGHT_SEED
from tracer.peaks import measure_peaks
from tracer.phases import DecodeLoop, Loop, PrefillLoop, token_ids
from tracer.progress import Progress
from tracer.request import TraceRequest
from tracer.runs import Capture
from tracer.timing import collector_resting, interleaved_samples
from tracer.variants import Variant, check_method, make_variants


def capture(
    request: TraceRequest, progress: Progress, *, peaks: dict[str, Any] | None
) -> dict[str, Capture]:
    """Run everything. Raises PrunescopeError on what this machine or model cannot do."""
    device = pick_device(request.device)
    _check_mode(request, device)
    check_method(request)
    with _threads(request.threads), _memory_errors():
        load_before = load_average()
        progress.stage(f"load {request.model}")
        variants = make_variants(request, device)
        dtype = variants[0].loaded.dtype
        progress.stage("measure the device's peaks")
        info = device_info(device)
        info["peaks"] = peaks or measure_peaks(device, dtype)
        info["calibration"] = newest(info["name"])
        info["clocks"] = {"before": read_clocks(device)}
        progress.stage("count zeros")
        captures = {v.name: Capture(run=_run(request, v, info)) for v in variants}
        with torch.inference_mode():
            for phase in request.phases:
                _run_phase(request, phase, variants, captures, device, progress)
        info["clocks"]["after"] = read_clocks(device)
        timing = _timing_note(load_before)
    for captured in captures.values():
        captured.run.extra["timing"] = timing
    return captures


def _run(request: TraceRequest, variant: Variant, info: dict[str, Any]) -> Run:
    seeds = {"inputs": request.seed, "selection": request.seed}
    if variant.loaded.source == "preset":
        seeds["weights"] = WEIGHT_SEED
    model = variant.model
    return Run(
        variant=variant.name,
        model=model_entry(variant.loaded, model),
        phases={},
        dtype=variant.loaded.dtype,
        device=info,
        versions=versions(),
        seeds=seeds,
        argv=scrubbed_argv(request.argv, request.model),
        weight_bytes=weight_bytes(model),
        parameters=sum(p.numel() for p in model.parameters()),
        layer_map=variant.layer_map,
        pruning=None if variant.pruning is None else scrubbed(variant.pruning),
        census=census(model),
        tool=f"prunescope {prunescope_version()}",
    )


def _run_phase(  # noqa: PLR0913
    request: TraceRequest,
    phase: str,
    variants: list[Variant],
    captures: dict[str, Capture],
    device: torch.device,
    progress: Progress,
) -> None:
    loops = _loops(request, phase, variants, device)
    models = {v.name: v.model for v in variants}
    entries = {
        v.name: phase_entry(
            request,
            phase,
            logits=compat.logits_policy(v.model, request.logits),
            attention=str(getattr(v.model.config, "_attn_implementation", request.attn)),
        )
        for v in variants
    }
    progress.stage(f"time {phase}", request.warmup + request.repeats)
    samples = interleaved_samples(
        loops,
        warmup=request.warmup,
        repeats=request.repeats,
        device=device,
        advance=progress.advance,
    )
    for name, entry in entries.items():
        entry.samples_ns = samples[name]
        entry.interleaved = "alternating" if len(loops) > 1 else "alone"
        peak, cache = peak_and_cache_bytes(loops[name], models[name], device)
        entry.peak_memory_bytes, entry.kv_bytes = peak, cache
    steps = next(iter(entries.values())).steps
    progress.stage(f"profile {phase}", steps + 1)
    profiled = _Pass(list(models.values()), progress)
    traces = _profile(loops, models, steps, device, profiled.advance)
    for name, captured in captures.items():
        captured.traces[phase] = traces[name]
        captured.run.phases[phase] = entries[name]
        _keep_stats(captured.run, phase, models[name])


def _profile(
    loops: dict[str, Loop],
    models: dict[str, Any],
    steps: int,
    device: torch.device,
    advance: Callable[[], None],
) -> dict[str, dict[str, Any]]:
    with tempfile.TemporaryDirectory(prefix="prunescope-") as folder:
        raw = Path(folder) / "session.json"
        with collector_resting():
            turns = profile_loops(
                loops, models.values(), steps=steps, device=device, raw=raw, advance=advance
            )
        return split(raw.read_bytes(), turns)


def _keep_stats(run: Run, phase: str, model: Any) -> None:
    """What the modules of a dynamic family counted in the profiled steps goes into the census."""
    stats = dynamic_stats(model)
    if stats and run.census is not None:
        run.census.setdefault("dynamic", {})[phase] = scrubbed(stats)


def _loops(
    request: TraceRequest, phase: str, variants: list[Variant], device: torch.device
) -> dict[str, Loop]:
    vocabulary = min(v.model.get_input_embeddings().num_embeddings for v in variants)
    length = request.prompt_len + (request.decode_steps if phase == "decode" else 0)
    ids = token_ids(vocabulary, batch=request.batch, length=length, seed=request.seed).to(device)
    loops: dict[str, Loop] = {}
    for variant in variants:
        if phase == "prefill":
            loops[variant.name] = PrefillLoop(variant.model, ids, logits=request.logits)
        else:
            loops[variant.name] = DecodeLoop(
                variant.model, ids, prompt_len=request.prompt_len, logits=request.logits
            )
    return loops


def _check_mode(request: TraceRequest, device: torch.device) -> None:
    if request.mode == "eager":
        return
    if device.type == "cpu":
        raise PrunescopeError(
            f"--mode {request.mode} on the CPU gives a trace without kernels: compiled code runs "
            "inside one op that the profiler cannot look into",
            hint="use --mode eager, or a GPU",
        )
    raise PrunescopeError(
        f"--mode {request.mode} cannot be captured yet",
        hint="use --mode eager; `analyze --eager-trace` reads graph replays of your own",
    )


def _timing_note(load_before: float | None) -> dict[str, Any]:
    """How busy the machine was. A minute's average includes this process, at most its threads."""
    load_after, cores = load_average(), num_cores()
    notes = []
    if load_before is not None and load_before > cores:
        notes.append(
            f"load average {load_before:.1f} on {cores} cores before the capture: timing not valid"
        )
    elif load_after is not None and load_after > cores + 1:
        notes.append(
            f"load average {load_after:.1f} on {cores} cores in the capture: timing not valid"
        )
    return {
        "load_average": {"before": load_before, "after": load_after},
        "cores": cores,
        "notes": notes,
    }


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _memory_errors() -> Iterator[None]:
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise PrunescopeError(
            "dense and pruned do not fit in memory together",
            hint="capture them one after the other: --no-baseline without a method first, then "
            "--baseline RUN, or use a smaller --batch or --prompt-len",
        ) from error


class _Pass:
    """Progress of a profiled pass; after the step thrown away, counting modules start anew."""

    def __init__(self, models: list[Any], progress: Progress) -> None:
        self.models, self.progress, self.steps_done = models, progress, 0

    def advance(self) -> None:
        """One index of the pass is done."""
        if self.steps_done == 0:
            for model in self.models:
                dynamic_stats(model)
        self.steps_done += 1
        self.progress.advance()
