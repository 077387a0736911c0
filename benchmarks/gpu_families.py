"""Slices of pruned models: `families-1b`, `families-8b` and `goldens`.

In: a Bench. Out: cells with the samples of dense and pruned in turns, and their runs archived.
Weights are random: the times of a shape do not depend on them, what is lost in quality does.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from gpu_models import captured_cell, few, peaks, prompt_of
from gpu_slice import Bench, Cell, release
from transformers import AutoConfig, AutoModelForCausalLM

from prunescope.taxonomy.families import family
from prunescope.taxonomy.presets import preset_config, preset_source
from prunescope.tracer.capture.request import TraceRequest
from prunescope.tracer.capture.variants import Prepared, make_variants
from prunescope.tracer.model.load import WEIGHT_SEED

# In order of importance. 2:4 has one sparsity.
_FAMILIES = (
    "static-nk", "static-m", "static-k-24", "dynamic-m", "static-nk-mlp", "static-nk-heads",
    "static-k-lowrank", "static-nk-cross", "static-k-mask", "dynamic-nk", "dynamic-depth",
    "dynamic-width", "token-drop", "kv-evict",
)  # fmt: skip
# Takes minutes to prune (draws and decompositions): all its cells in one go.
_SLOW_TO_PRUNE = ("static-k-24", "static-k-lowrank")
_TINY_FAMILIES = ("static-nk", "static-k-24", "dynamic-m")
# (phase, batch, prompt length, mode); `_CORE` of every family comes before `_REST` of any.
_CORE = (("prefill", 1, 1024, "eager"), ("decode", 1, 1024, "eager"), ("decode", 1, 1024, "graph"))
_REST = (
    ("decode", 8, 1024, "eager"), ("decode", 32, 1024, "eager"), ("prefill", 1, 8192, "eager"),
    ("decode", 8, 1024, "graph"), ("decode", 32, 1024, "graph"),
)  # fmt: skip
_GOLDENS = {None: 0.0, "static-nk": 0.25, "static-k-24": 0.5, "dynamic-m": 0.5}
_GOLDEN_LAYERS = 2

Setting = tuple[str, int, int, str]


def families_1b_cells(bench: Bench) -> list[Cell]:
    """Llama-3.2-1B."""
    return _cells(bench, "tiny-llama" if bench.tiny else "llama-3.2-1b")


def families_8b_cells(bench: Bench) -> list[Cell]:
    """Llama-3.1-8B."""
    return _cells(bench, "tiny-llama" if bench.tiny else "llama-3.1-8b")


def goldens_cells(bench: Bench) -> list[Cell]:
    """Two layers of Llama-3.2-1B: the smallest traces that hold every kernel."""
    return [
        Cell(
            id=method or "dense",
            what={"method": method, "sparsity": sparsity},
            run=partial(_golden, bench, method, sparsity),
        )
        for method, sparsity in _GOLDENS.items()
    ]


def _cells(bench: Bench, model: str) -> list[Cell]:
    cells = []
    for method, sparsity, settings in _plan(bench):
        for setting in settings:
            phase, batch, length, mode = setting
            what = {
                "model": model, "method": method, "sparsity": sparsity, "phase": phase,
                "batch": batch, "prompt_len": length, "mode": mode,
            }  # fmt: skip
            of = f"{method or 'dense'}-{round(100 * sparsity)}"
            cell_id = f"{of}/{phase}-{mode}-b{batch}-s{length}"
            run = partial(_family, bench, cell_id, model, (method, sparsity), setting)
            cells.append(Cell(id=cell_id, what=what, run=run, kind=f"{phase} {mode}"))
    return cells


def _plan(bench: Bench) -> Iterator[tuple[str | None, float, tuple[Setting, ...]]]:
    """(method, sparsity, settings) in order: what is most worth knowing comes first."""
    if bench.tiny:
        tiny = (("prefill", 1, 16, "eager"), ("decode", 1, 16, "graph"))
        yield from ((name, 0.5, tiny) for name in _TINY_FAMILIES)
        return
    for settings in (_CORE, _REST):
        yield None, 0.0, settings
        for sparsity in (0.5, 0.25):
            for name in _FAMILIES:
                if family(name).only not in (None, sparsity):
                    continue
                if name not in _SLOW_TO_PRUNE:
                    yield name, sparsity, _possible(name, settings)
                elif settings == _CORE:
                    yield name, sparsity, _CORE + _REST


def _possible(name: str, settings: tuple[Setting, ...]) -> tuple[Setting, ...]:
    """What a dynamic family does is decided in every step: no graph holds that."""
    dynamic = family(name).dynamics == "dynamic"
    return tuple(s for s in settings if not (dynamic and s[3] == "graph"))


def _family(
    bench: Bench, cell_id: str, model: str, point: tuple[str | None, float], setting: Setting
) -> dict[str, Any]:
    method, sparsity = point
    phase, batch, length, mode = setting
    request = TraceRequest(
        model=model, out=Path(), method=method, sparsity=sparsity, phase=phase, batch=batch,
        prompt_len=length, mode=mode, device=bench.device.type, **few(bench),
        argv=["trace", "--model", model, *_method_words(method, sparsity), "--phase", phase,
              "--batch", str(batch), "--prompt-len", str(length), "--mode", mode],
    )  # fmt: skip
    return captured_cell(bench, cell_id, request, partial(_prepared, bench, request))


def _method_words(method: str | None, sparsity: float) -> list[str]:
    return ["--method", method, "--sparsity", f"{sparsity:g}"] if method else []


def _prepared(bench: Bench, request: TraceRequest) -> Prepared:
    """Dense and pruned of a request; made once for the cells that follow each other with them."""
    key = (request.model, request.method, request.sparsity)
    if bench.kept.get("key") != key:
        peaks(bench)  # while the memory is free
        bench.kept.pop("prepared", None)
        bench.kept.pop("key", None)
        release(bench.device)
        names = ("dense", "pruned") if request.method else ("dense",)
        bench.kept["prepared"] = Prepared(variants=make_variants(request, bench.device, names))
        bench.kept["key"] = key
    return bench.kept["prepared"]


def _golden(bench: Bench, method: str | None, sparsity: float) -> dict[str, Any]:
    """Few tokens and steps; both phases. What made it lies beside the runs."""
    preset = "tiny-llama" if bench.tiny else "llama-3.2-1b"
    name = f"{preset}-{_GOLDEN_LAYERS}-layers"
    length = prompt_of(bench) // (1 if bench.tiny else 4)
    with tempfile.TemporaryDirectory(prefix="prunescope-") as home:
        folder = Path(home) / name
        _small_model(preset, folder, bench.device)
        count = {**few(bench), "steps": 2, "decode_steps": 2}
        request = TraceRequest(
            model=str(folder), out=Path(), method=method, sparsity=sparsity or 0.25,
            prompt_len=length, device=bench.device.type, **count,
            argv=["trace", "--model", name, *_method_words(method, sparsity), "--prompt-len",
                  str(length)],
        )  # fmt: skip
        origin = {
            "model": f"{preset}, its first {_GOLDEN_LAYERS} layers, random weights",
            "shape": preset_source(preset),
            "weight_seed": WEIGHT_SEED,
            "made_by": "benchmarks/gpu.py goldens",
        }
        try:
            return captured_cell(
                bench, method or "dense", request, partial(_prepared, bench, request),
                beside={"provenance.json": json.dumps(origin, indent=1)},
            )  # fmt: skip
        finally:
            bench.kept.pop("key", None)  # its folder goes


def _small_model(preset: str, folder: Path, device: torch.device) -> None:
    plain = {**preset_config(preset), "num_hidden_layers": _GOLDEN_LAYERS}
    config = AutoConfig.for_model(**plain)
    with torch.random.fork_rng(), device:
        torch.manual_seed(WEIGHT_SEED)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
