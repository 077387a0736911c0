"""Slices of whole models: `graph` (eager against CUDA graphs) and `observer` (the profiler's cost).

In: a Bench. Out: cells with raw samples in ns a step. The model is the dense one, random weights.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from gpu_slice import Bench, CannotHere, Cell, reason_of
from torch.profiler import ProfilerActivity, profile

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.formats import plain
from prunescope.taxonomy.run import PhaseRun, read_run
from prunescope.taxonomy.run_blocks import MeasuredPeaks
from prunescope.tracer.capture.graph_mode import StaticDecode, check_mode, cuda_graph, plainly
from prunescope.tracer.capture.phases import DecodeLoop, Loop, PrefillLoop
from prunescope.tracer.capture.scopes import module_scopes
from prunescope.tracer.capture.timing import Share, take_share
from prunescope.tracer.capture.trace import TraceRequest, trace
from prunescope.tracer.capture.variants import Prepared, Variant
from prunescope.tracer.machine.peaks import measure_peaks
from prunescope.tracer.model.inputs import token_ids
from prunescope.tracer.model.load import Loaded, load_model

# What a profiled pass may switch on; "as traced" is what `prunescope trace` does.
OBSERVERS: dict[str, dict[str, bool]] = {
    "as traced": {"profiler": True, "record_shapes": True, "scopes": True},
    "profiler alone": {"profiler": True},
    "shapes": {"profiler": True, "record_shapes": True},
    "scopes": {"profiler": True, "scopes": True},
    "scopes without a profiler": {"scopes": True},
    "stacks": {"profiler": True, "with_stack": True},
    "all": {"profiler": True, "record_shapes": True, "with_stack": True, "scopes": True},
}
_BLOCKS = 2  # unprofiled and profiled take turns this often


def graph_cells(bench: Bench) -> list[Cell]:
    """For each batch: samples of the three loops in turns, then an eager and a graph trace."""
    cells = []
    for batch in (1,) if bench.tiny else (1, 8, 32):
        what = {"batch": batch, "prompt_len": prompt_of(bench)}
        run = partial(_modes, bench, batch)
        cells.append(Cell(id=f"times/b{batch}", what=what, run=run, kind="times"))
        for mode in ("eager", "graph"):
            traced = partial(_dense_trace, bench, mode, batch)
            cell_id = f"trace/{mode}/b{batch}"
            cells.append(Cell(id=cell_id, what={**what, "mode": mode}, run=traced, kind="trace"))
    return cells


def observer_cells(bench: Bench) -> list[Cell]:
    """Profiled and unprofiled samples of each phase with each thing that can be recorded."""
    return [
        Cell(
            id=f"{phase}/b{batch}/{name}",
            what={"phase": phase, "batch": batch, "observer": name},
            run=partial(_observed, bench, phase, batch, name),
            kind=phase,
        )
        for phase, batch in (("decode", 1), ("prefill", 1), ("decode", 32))
        for name in OBSERVERS
        if not (bench.tiny and batch > 1)
    ]


def prompt_of(bench: Bench) -> int:
    """Tokens of a prompt before a decode step."""
    return 16 if bench.tiny else 1024


def few(bench: Bench) -> dict[str, int]:
    """Samples and steps of a capture."""
    if bench.tiny:
        return {"warmup": 1, "repeats": 2, "steps": 1, "decode_steps": 2}
    return {"warmup": 3, "repeats": 20, "steps": 3, "decode_steps": 4}


def dense_model(bench: Bench) -> Loaded:
    """The dense model, once for all cells."""
    if "dense" not in bench.kept:
        name = "tiny-llama" if bench.tiny else "llama-3.2-1b"
        # A loop may hold inference mode: weights made in it are none that autograd knows.
        with torch.inference_mode(mode=False):
            bench.kept["dense"] = load_model(name, dtype="auto", device=bench.device, attn="sdpa")
    return bench.kept["dense"]


def peaks(bench: Bench) -> MeasuredPeaks:
    """The device's peaks, once for all cells."""
    if "peaks" not in bench.kept:
        budget_s = 0.1 if bench.tiny else 3.5
        bench.kept["peaks"] = measure_peaks(bench.device, "bf16", budget_s=budget_s)
    return bench.kept["peaks"]


def captured_cell(
    bench: Bench,
    cell_id: str,
    request: TraceRequest,
    prepared: Callable[[], Prepared],
    *,
    beside: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Trace as `request` says, archive the runs, and return their samples and sizes.

    `prepared` gives the models; `beside`: texts to be archived with the runs, by file name.
    """
    try:
        check_mode(request, bench.device)
    except PrunescopeError as error:
        raise CannotHere(str(error)) from error
    begun = time.monotonic()
    models = prepared()
    found: dict[str, Any] = {"runs": {}, "prepare_seconds": round(time.monotonic() - begun, 3)}
    with tempfile.TemporaryDirectory(prefix="prunescope-") as folder:
        out = Path(folder) / "run"
        request.out = out
        trace(request, peaks=peaks(bench), prepared=models)
        for name in sorted(p.name for p in out.iterdir() if p.is_dir()):
            run = read_run(out / name)
            found["runs"][name] = {
                "weight_bytes": run.weight_bytes,
                "timing": plain(run.timing),
                "phases": {phase: _kept(entry) for phase, entry in run.phases.items()},
            }
        for name, text in (beside or {}).items():
            (out / name).write_text(text, encoding="utf-8")
        found["archived"] = bench.keep(cell_id, out)
    return found


def _kept(entry: PhaseRun) -> dict[str, Any]:
    """What a slice keeps of a phase: raw samples, and what the run says of how they were had."""
    return {
        "samples_ns": entry.samples_ns,
        "peak_memory_bytes": entry.peak_memory_bytes,
        "kv_bytes": entry.kv_bytes,
        "interleaved": entry.interleaved,
        "placements": plain(entry.placements),
        "disturbed": entry.is_disturbed,
    }


def _dense_trace(bench: Bench, mode: str, batch: int) -> dict[str, Any]:
    loaded = dense_model(bench)
    request = TraceRequest(
        model=loaded.id, out=Path(), phase="decode", mode=mode, batch=batch,
        prompt_len=prompt_of(bench), device=bench.device.type, **few(bench),
        argv=["trace", "--model", loaded.id, "--phase", "decode", "--mode", mode, "--batch",
              str(batch)],
    )  # fmt: skip
    prepared = Prepared(variants=[Variant(name="dense", model=loaded.model, loaded=loaded)])
    return captured_cell(bench, f"trace/{mode}/b{batch}", request, lambda: prepared)


def _modes(bench: Bench, batch: int) -> dict[str, Any]:
    """One decode step: eager on a growing cache, eager on a static one, and as a CUDA graph."""
    found: dict[str, Any] = {}
    with torch.inference_mode():
        ids = _ids(bench, batch, phase="decode")
        options: dict[str, Any] = {"prompt_len": prompt_of(bench), "logits": "last"}
        model = dense_model(bench).model
        loops: dict[str, Loop] = {
            "eager": DecodeLoop(model, ids, **options),
            "eager-static": StaticDecode(model, ids, record=plainly, **options),
        }
        if bench.device.type == "cpu":
            found["graph"] = {"why": "a CPU has no graphs"}
        else:
            graph = StaticDecode(model, ids, record=cuda_graph, **options)
            try:
                graph.prepare()
                loops["graph"] = graph
            except PrunescopeError as error:
                found["graph"] = {"why": reason_of(error)}
        count = few(bench)
        share = _share(bench, loops, warmup=count["warmup"], repeats=count["repeats"])
        return found | {name: _timed([share], name) for name in loops}


def _share(bench: Bench, loops: Mapping[str, Loop], *, warmup: int, repeats: int) -> Share:
    return take_share(
        loops, warmup=warmup, repeats=repeats, device=bench.device, advance=lambda: None
    )


def _timed(shares: Sequence[Share], name: str) -> dict[str, Any]:
    """Samples of one loop in ns, and what ran beside those of all."""
    return {
        "samples_ns": [ns for share in shares for ns in share.samples[name]],
        "retaken": sum(share.retaken for share in shares),
        "disturbed": sum(share.disturbed for share in shares),
        "reasons": list(dict.fromkeys(why for share in shares for why in share.reasons)),
    }


def _ids(bench: Bench, batch: int, *, phase: str) -> torch.Tensor:
    table = dense_model(bench).model.get_input_embeddings()
    length = prompt_of(bench) + (few(bench)["decode_steps"] if phase == "decode" else 0)
    ids = token_ids(table.num_embeddings, batch=batch, length=length, seed=0)
    return ids.to(bench.device)


def _observed(bench: Bench, phase: str, batch: int, name: str) -> dict[str, Any]:
    """Alternating blocks of unprofiled and profiled samples; the first profiled one is dropped."""
    model, ids = dense_model(bench).model, _ids(bench, batch, phase=phase)
    loop: Loop = (
        PrefillLoop(model, ids, logits="last")
        if phase == "prefill"
        else DecodeLoop(model, ids, prompt_len=prompt_of(bench), logits="last")
    )
    repeats = max(1, few(bench)["repeats"] // 4)
    block = partial(_share, bench, {"": loop}, warmup=1, repeats=repeats)
    bare: list[Share] = []
    watched: list[Share] = []
    with torch.inference_mode():
        for _ in range(_BLOCKS):
            bare.append(block())
            with _observer(bench, model, OBSERVERS[name]):
                watched.append(block())
    return {"unprofiled": _timed(bare, ""), "profiled": _timed(watched, "")}


def _observer(bench: Bench, model: Any, options: dict[str, bool]) -> ExitStack:
    activities = [ProfilerActivity.CPU]
    if bench.device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    switches = {k: v for k, v in options.items() if k in ("record_shapes", "with_stack")}
    hooks: AbstractContextManager[Any] = (
        module_scopes(model) if options.get("scopes") else nullcontext()
    )
    stack = ExitStack()
    stack.enter_context(hooks)
    if options.get("profiler"):
        stack.enter_context(profile(activities=activities, **switches))
    return stack
