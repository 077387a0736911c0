"""Run folders built by hand for tests of the analysis: a pair of runs from two Chrome traces."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from prunescope.taxonomy.presets import preset_config
from prunescope.taxonomy.runs.run import PhaseRun, Run, sha256_of
from prunescope.taxonomy.shape import ModelShape
from tests.chrome import save

PEAKS = {"dense_flop_per_s": {"bf16": 1e14, "fp32": 5e13}, "byte_per_s": 1e12}


def phase_run(**more: Any) -> PhaseRun:
    plain: dict[str, Any] = {
        "batch": 1, "prompt_len": 512, "positions": [0, 512], "context": 512, "logits": "last",
        "cache": "dynamic", "attention": "sdpa", "mode": "eager", "steps": 1,
        "tokens_per_step": 512, "warmup": 3,
    }  # fmt: skip
    return PhaseRun(**{**plain, **more})


def write_run(folder: Path, trace: dict[str, Any], *, phase: str = "prefill", **more: Any) -> Path:
    """A run of one phase. `phase_fields` go to its PhaseRun, `unknown` are keys that no
    version has, everything else goes to the Run."""
    folder.mkdir(parents=True, exist_ok=True)
    path = save(trace, folder / f"{phase}.trace.json.gz")
    fields = more.pop("phase_fields", {})
    told = phase_run(trace=path.name, sha256=sha256_of(path), **fields)
    shape = ModelShape.from_config(preset_config("tiny-llama")).to_dict()
    plain: dict[str, Any] = {
        "variant": folder.name, "phases": {phase: told}, "dtype": "bf16", "argv": [],
        "model": {"id": "tiny-llama", "architecture": "LlamaForCausalLM", "shape": shape},
        "device": {"kind": "cuda", "name": "NVIDIA H100 80GB HBM3", "peaks": PEAKS},
        "versions": {"torch": "2.13.0", "system": "Linux x86_64"}, "seeds": {"inputs": 0},
        "tool": "prunescope 0.1.0",
    }  # fmt: skip
    unknown = more.pop("unknown", {})
    run = json.loads(Run(**{**plain, **more}).to_json())
    (folder / "run.json").write_text(json.dumps({**run, **unknown}, indent=1))
    return folder


def write_pair(
    folder: Path, dense: dict[str, Any], pruned: dict[str, Any], *, phase: str = "prefill",
    dense_run: dict[str, Any] | None = None, pruned_run: dict[str, Any] | None = None,
) -> Path:  # fmt: skip
    """F with F/dense and F/pruned; the pruned run knows its baseline."""
    twin = write_run(folder / "dense", dense, phase=phase, **(dense_run or {}))
    known = {"path": "../dense/run.json", "sha256": sha256_of(twin / "run.json")}
    write_run(folder / "pruned", pruned, phase=phase, twin=known, **(pruned_run or {}))
    return folder
