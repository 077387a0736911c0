"""Captures of a second or so, without a measured peak; and their reports with and without what the
run says of its pruning. No test in it.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from prunescope.analysis.pipeline import analyze
from prunescope.analysis.schema.report import Phase
from prunescope.taxonomy.runs.run_blocks import MeasuredPeaks

PEAKS = MeasuredPeaks(dense_flop_per_s={"fp32": 1e11}, byte_per_s=1e10, kernel_floor_ns=1000)
FEW = {"model": "tiny-llama", "prompt_len": 32, "decode_steps": 2, "warmup": 0, "repeats": 1,
       "steps": 2, "placements": 1, "threads": 1}  # fmt: skip


def small_trace(out: Path, progress: Any = None, **options: Any) -> Path:
    """A capture of tiny-llama; options as in TraceRequest."""
    from prunescope.tracer.capture.request import TraceRequest
    from prunescope.tracer.capture.trace import trace

    set_aside()
    return trace(TraceRequest(out=out, **{**FEW, **options}), progress, peaks=PEAKS)


def traced_together(
    out: Path, requests: Mapping[str, Mapping[str, Any]], *, recorded: bool = True
) -> dict[str, Path]:
    """The runs of several pruned models by name, each beside the one dense model: all are captured
    at once. `requests`: options as in TraceRequest; `recorded`: whether a run says how its model
    was pruned."""
    import torch

    from prunescope.tracer.capture.progress import Silent
    from prunescope.tracer.capture.request import TraceRequest
    from prunescope.tracer.capture.runs import write_runs
    from prunescope.tracer.capture.session import capture
    from prunescope.tracer.capture.variants import make_variants

    set_aside()
    asked = {name: TraceRequest(out=out, **{**FEW, **own}) for name, own in requests.items()}
    first, cpu = next(iter(asked.values())), torch.device("cpu")
    variants = list(make_variants(first, cpu, ("dense",)))
    for name, request in asked.items():
        (pruned,) = make_variants(request, cpu, ("pruned",))
        pruning = pruned.pruning if recorded else None
        variants.append(replace(pruned, name=name, pruning=pruning))
    captures = capture(first, Silent(), peaks=PEAKS, variants=variants)
    folders = {name: out / f"run{number}" for number, name in enumerate(asked)}
    for name, folder in folders.items():
        captures[name].run.variant = "pruned"
        write_runs(folder, {"dense": captures["dense"], "pruned": captures[name]}, None)
    return folders


def set_aside() -> None:
    """A capture looks for garbage four times: it need not go through what was there before it."""
    gc.collect()
    gc.freeze()


# A sweep of eight results.
SMALL_SWEEP = """\
model: tiny-llama
families: [static-m, static-nk-mlp]
sparsities: [0.25, 0.5]
phases: [prefill, decode]
prompt_lens: [16]
decode_steps: 2
repeats: 2
steps: 1
placements: 2
threads: 1
"""


def quick_peaks(patch: pytest.MonkeyPatch) -> None:
    """Peaks that are not given are measured in 0.05 s, not in seconds."""
    from prunescope.tracer.capture import device_state

    quick = partial(device_state.measure_peaks, budget_s=0.05)
    patch.setattr(device_state, "measure_peaks", quick)


def same_peaks(patch: pytest.MonkeyPatch) -> None:
    """Peaks of a sweep are `PEAKS`, and take no time to measure."""
    from prunescope.tracer.capture import device_state
    from prunescope.tracer.sweep import job

    for module in (device_state, job):
        patch.setattr(module, "measure_peaks", lambda *_: PEAKS)


def phases_unrecorded(run: Path) -> dict[str, Phase]:
    """The phases of a report on a run whose record of its pruning is blanked."""
    path = run / "pruned" / "run.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "pruning": None}))
    phases = analyze(run).report.phases
    assert phases.keys() == manifest["phases"].keys()
    return phases


def saved_model(at: Path, *, seed: int = 0, **config: Any) -> Path:
    """A folder with a model of random weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    AutoModelForCausalLM.from_config(AutoConfig.for_model(**config)).save_pretrained(at)
    return at
