"""Files of plans, replayed GEMMs and sweeps that contradict themselves are refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest

from prunescope.taxonomy.allocations.allocation_plan import PlanOfLayers
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.formats import decode, plain
from prunescope.taxonomy.replays import (
    ReplayDevice,
    ReplayedGemm,
    ReplayPeaks,
    Replays,
    StepCurve,
    times_of,
)
from prunescope.taxonomy.runs.sweep_files import PlanFile, SweepFile

Edit = Callable[[Any], object]


def a_plan() -> dict[str, Any]:
    """A plan of two layers, the first of which keeps 2 of 4 KV heads and 3 of 4 channels."""
    phase = {"dense_ns": 100.0, "ns": 80.0, "speedup": 1.25, "range": [1.2, 1.3], "weight": 1.0}
    cut = {"layer": 0, "heads": 2, "kv_heads": 2, "dense_kv_heads": 4, "kept_kv_heads": [0, 3],
           "channels": 3, "dense_channels": 4, "kept_channels": [0, 1, 3], "loss": 0.5,
           "saves_ns": {"prefill": 10.0}}  # fmt: skip
    gone = {"layer": 1, "dropped": True, "dense_kv_heads": 4, "dense_channels": 4, "loss": 0.25}
    return {
        "kind": "allocation", "model": "m", "target": {"phase": "prefill", "speedup": 1.2},
        "expected": {
            "speedup": 1.25, "range": [1.2, 1.3], "phases": {"prefill": phase}, "loss": 0.75,
            "memory_bytes": 8.0, "dense_memory_bytes": 10.0,
            "loss_measured": 0.5, "perplexity_rel": math.expm1(0.5),
        },
        "layers": [cut, gone],
        "frontier": [{"speedup": 2.0, "loss": 1.0}, {"speedup": 1.25, "loss": 0.5}],
        "uniform": {"family": "static-nk", "kept": "3 channels", "speedup": 1.2, "loss": 0.9},
        "additivity": {"pairs": 2, "correlation": 0.5, "worst_error": 0.1},
    }  # fmt: skip


def replayed() -> dict[str, Any]:
    """A GEMM and a curve of two sizes, with three placements each."""
    peaks = ReplayPeaks(flop_per_s={"fp32": 1e12}, byte_per_s=1e10)
    warm = times_of([[100.0], [110.0], [120.0]])
    gemm = ReplayedGemm(m=8, n=16, k=32, dtype="fp32", warm=warm, flop=8192, bytes=3584,
                        dense_m=8, dense_n=32, dense_k=32)  # fmt: skip
    gemm.ideal_ns, gemm.bound = peaks.ideal_ns(gemm.gemm, "fp32") or (None, None)
    gemm.share_of_bound = gemm.ideal_ns / warm.ns if gemm.ideal_ns else None
    curve = StepCurve(axis="N", m=8, k=32, dtype="fp32", sizes=[16, 32], ns=[warm.ns] * 2,
                      ci95=[warm.ci95] * 2, placements_ns=[warm.placements_ns] * 2)  # fmt: skip
    whole = Replays(device=ReplayDevice(), peaks=peaks, gemms=[gemm], curves=[curve])
    content: dict[str, Any] = json.loads(json.dumps(plain(whole)))
    return content


def a_sweep() -> dict[str, Any]:
    """A result that is done."""
    return {"results": [{
        "id": "a", "family": "static-nk", "sparsity": 0.25, "sparsities": [0.25, 0.3],
        "phase": "prefill", "batch": 1, "prompt_len": 8, "state": "done", "run": "runs/a/pruned",
    }]}  # fmt: skip


def setting(*path: str | int, to: Any) -> Edit:
    """An edit that sets the value at a path."""

    def edit(value: Any) -> None:
        for key in path[:-1]:
            value = value[key]
        value[path[-1]] = to

    return edit


PLANS = {
    "two targets": setting("target", "memory_gb", to=3.0),
    "no target": setting("target", "speedup", to=None),
    "heads of a dropped layer": setting("layers", 1, "kv_heads", to=2),
    "indices of a dropped layer": setting("layers", 1, "kept_channels", to=[0]),
    "more heads than dense": setting("layers", 0, "dense_kv_heads", to=1),
    "an index of no head": setting("layers", 0, "kept_kv_heads", to=[0, 4]),
    "an index twice": setting("layers", 0, "kept_kv_heads", to=[0, 0]),
    "fewer indices than channels": setting("layers", 0, "kept_channels", to=[0, 1]),
    "a loss": setting("layers", 0, "loss", to=0.6),
    "a phase that is none": setting("layers", 0, "saves_ns", to={"decode": 1.0}),
    "another perplexity": setting("expected", "perplexity_rel", to=0.1),
    "no perplexity": setting("expected", "perplexity_rel", to=None),
    "a correlation of 2": setting("additivity", "correlation", to=2.0),
    "no pairs": setting("additivity", "pairs", to=0),
    "a faster point of the frontier": setting("frontier", 1, "speedup", to=9.99),
    "more loss at less speed": setting("frontier", 1, "loss", to=1.5),
    "a point twice": lambda value: value["frontier"].append(value["frontier"][1]),
    "a point of bytes": setting("frontier", 0, to={"memory_bytes": 8.0, "loss": 1.0}),
    "a point at no target": setting("frontier", 0, "speedup", to=None),
    "a uniform cut of both": setting("uniform", "memory_bytes", to=8.0),
    "a uniform cut that misses the target": setting("uniform", "speedup", to=1.1),
    "a uniform cut of bytes": lambda value: value["uniform"].update(speedup=None, memory_bytes=8.0),
    "a latency that the uniform cut misses": lambda value: value["target"].update(
        speedup=None, latency_ms=80e-6),  # 100 ns / 80 ns = 1.25
    "a target beyond the uniform cut": setting("target", "speedup", to=1.21),
    "a target that it misses": lambda value: value.update(
        target={"phase": "prefill", "speedup": 1.26}, uniform=None),
    "a latency that it misses": lambda value: value.update(  # it takes 80 ns
        target={"phase": "prefill", "latency_ms": 79e-6}, uniform=None),
    "a further target that it misses": lambda value: value.update(  # it takes 8 bytes
        further_targets=[{"phase": "prefill", "memory_gb": 7e-9}]),
    "a workload that it misses": lambda value: value.update(
        target={"phase": "chat", "speedup": 1.26}, uniform=None),
}  # fmt: skip
REPLAYS = {
    "another M": setting("gemms", 0, "m", to=9),
    "other work": setting("gemms", 0, "flop", to=8193),
    "other bytes": setting("gemms", 0, "bytes", to=3585),
    "another bound": setting("gemms", 0, "bound", to="compute"),
    "a faster memory": setting("peaks", "byte_per_s", to=2e10),
    "half of a dense shape": setting("gemms", 0, "dense_k", to=None),
    "a narrower interval": setting("gemms", 0, "warm", "ci95", to=[109.0, 110.0]),
    "a placement": setting("gemms", 0, "warm", "placements_ns", 0, to=90.0),
    "a placement below 0": setting("gemms", 0, "warm", "placements_ns", 0, to=-90.0),
    "fewer samples than placements": setting("gemms", 0, "warm", "samples", to=2),
    "a point of a curve": setting("curves", 0, "placements_ns", 0, 0, to=90.0),
    "a curve without placements of a point": setting("curves", 0, "placements_ns", to=[[1.0]]),
    "another axis": setting("curves", 0, "axis", to="K"),
    "steps without a width": setting("curves", 0, "step_ns", to=3.0),
}
SWEEPS = {
    "another sparsity": setting("results", 0, "sparsity", to=0.2),
    "a sparsity below 0": lambda value: value["results"][0].update(sparsity=-1.0, sparsities=[]),
    "a draw below 0": setting("results", 0, "draw", to=-1),
    "a warm-up below 0": setting("results", 0, "warmup", to=-1),
}


def assert_refused(content: dict[str, Any], kind: type[Any], edit: Edit) -> None:
    """Refuse the content with an edit, which is taken without it."""
    decode(json.dumps(content), kind, where="f", hint="h")
    edit(content)
    with pytest.raises(PrunescopeError, match="contradicts itself"):
        decode(json.dumps(content), kind, where="f", hint="h")


@pytest.mark.parametrize("edit", PLANS.values(), ids=PLANS)
def test_plans_that_contradict_themselves_are_refused(edit: Edit) -> None:
    assert_refused(a_plan(), PlanOfLayers, edit)


@pytest.mark.parametrize("edit", REPLAYS.values(), ids=REPLAYS)
def test_replays_that_contradict_themselves_are_refused(edit: Edit) -> None:
    assert_refused(replayed(), Replays, edit)


def test_a_sweep_names_no_folder_that_no_system_has() -> None:
    assert_refused(a_sweep(), SweepFile, setting("results", 0, "run", to="runs/a\0/pruned"))


@pytest.mark.parametrize("kind", [SweepFile, PlanFile])
@pytest.mark.parametrize("edit", SWEEPS.values(), ids=SWEEPS)
def test_sweeps_that_contradict_themselves_are_refused(kind: type[Any], edit: Edit) -> None:
    assert_refused(a_sweep(), kind, edit)
