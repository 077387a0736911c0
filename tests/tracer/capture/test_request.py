"""Mistakes are named before any work, and nothing is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.tracer.capture.request import TraceRequest
from prunescope.tracer.capture.trace import trace


@pytest.mark.parametrize(
    "options, problem",
    [
        ({"sparsity": 1.5}, "outside"),
        ({"sparsity": -0.1}, "outside"),
        ({"sparsity": float("nan")}, "outside"),
        ({"method": "static-q"}, "static-q"),
        ({"phase": "train"}, "phase"),
        ({"logits": "some"}, "logits"),
        ({"mode": "fast"}, "mode"),
        ({"batch": 0}, "--batch"),
        ({"prompt_len": 0}, "--prompt-len"),
        ({"decode_steps": 0}, "--decode-steps"),
        ({"repeats": 0}, "--repeats"),
        ({"steps": 0}, "--steps"),
        ({"warmup": -1}, "--warmup"),
        ({"threads": 0}, "--threads"),
        ({"threads": 999_999_999}, "--threads 999999999 is too large"),
        ({"batch": 2_000_000_000}, "no memory holds"),
        ({"batch": 2_000_000_000, "phase": "decode", "no_baseline": True}, "no memory holds"),
        ({"batch": 99_999_999_999_999}, "--batch 99999999999999 is too large"),
        ({"prompt_len": 99_999_999_999}, "--prompt-len 99999999999 is too large"),
        ({"decode_steps": 99_999_999_999}, "--decode-steps 99999999999 is too large"),
        ({"repeats": 10**4400}, "--repeats is too large"),
        ({"steps": 10**20}, "--steps"),
        ({"warmup": 10**20}, "--warmup"),
        ({"seed": 10**4400}, "--seed"),
        ({"seed": -1}, "--seed"),
        ({"dtype": "float3"}, "float3"),
        ({"no_baseline": True, "baseline_model": "tiny-llama"}, "more than one"),
        ({"knobs": {"unit": "layer"}}, "without --method"),
        ({"baseline": Path("nowhere")}, "there is no run"),
    ],
)
def test_bad_values(options: dict[str, Any], problem: str, tmp_path: Path) -> None:
    request = TraceRequest(**{"model": "tiny-llama", "out": tmp_path / "x", **options})
    with pytest.raises(PrunescopeError, match=problem) as caught:
        trace(request)
    assert caught.value.hint
    assert caught.value.exit_code == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.torch
@pytest.mark.parametrize(
    "options, problem",
    [
        ({"model": "/nonexistent/model"}, "no model folder"),
        ({"model": "./nonexistent"}, "no model folder"),
        ({"model": "nonexistent.gguf"}, "no file"),
        ({"model": "tiny-lama"}, "no preset is called 'tiny-lama'"),
        ({"device": "gpu"}, "not a device"),
        ({"device": "cuda:9"}, "torch sees"),
        ({"device": "mps"}, "torch sees 0"),
        ({"device": "meta"}, "device meta is none of cuda, xpu, mps, npu, cpu"),
        ({"attn": "magic"}, "has no such attention"),
        ({"device": "cpu", "mode": "graph"}, "a CPU has none"),
        ({"method": "static-m", "knobs": {"depth": "3"}}, "no option 'depth'"),
        ({"method": "nomodule.here:prune"}, "cannot be imported"),
        ({"method": "json:prune"}, "no function 'prune'"),
        ({"method": "operator:mul", "knobs": {"a": "b"}}, "--set has no effect"),
    ],
)
def test_bad_models_devices_and_methods(
    options: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    request = TraceRequest(**{"model": "tiny-llama", "out": tmp_path / "x", **options})
    with pytest.raises(PrunescopeError, match=problem) as caught:
        trace(request)
    assert caught.value.hint
    assert list(tmp_path.iterdir()) == []


@pytest.mark.torch
def test_an_unknown_preset_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(PrunescopeError) as caught:
        trace(TraceRequest(model="tiny-lama", out=tmp_path / "x"))
    assert "tiny-llama" in caught.value.hint


def test_an_existing_folder_is_refused_first(tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    with pytest.raises(PrunescopeError, match="exists already"):
        trace(TraceRequest(model="/nonexistent", out=out))


def test_overwrite_leaves_foreign_folders_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(PrunescopeError, match="does not replace it"):
        trace(TraceRequest(model="/nonexistent", out=tmp_path, overwrite=True))
    assert (tmp_path / "thesis.tex").exists()


@pytest.mark.torch
def test_overwrite_replaces_at_the_end_only(quick: Callable[..., Path], tmp_path: Path) -> None:
    out = quick(phase="decode", out=tmp_path / "run")
    before = (out / "dense" / "run.json").read_bytes()
    with pytest.raises(PrunescopeError):
        quick(model="/nonexistent", out=out, overwrite=True)
    assert (out / "dense" / "run.json").read_bytes() == before
    quick(phase="decode", out=out, overwrite=True, seed=1)
    assert (out / "dense" / "run.json").read_bytes() != before
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
