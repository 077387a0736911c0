"""The paper's study scaled to a tiny model, end to end; a layer alone beside the whole model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from msgspec import to_builtins

from prunescope.analysis.paper.gemm_speedups import speedup_curves
from prunescope.analysis.paper.paper_files import paper_set
from prunescope.analysis.pareto.pareto import judge
from prunescope.analysis.pipeline import analyze
from prunescope.taxonomy.runs.sweep_files import DONE, read_sweep
from prunescope.tracer.sweep.request import SweepRequest
from prunescope.tracer.sweep.sweep import plan_of, run_plan, summary
from tests.analysis.paper.test_paper_figures import replays
from tests.small_capture import same_peaks

SCALED: dict[str, Any] = {
    "model": "tiny-llama", "mode": "eager", "dtype": "float32", "batches": [1],
    "prompt_lens": [16], "sparsities": [0.5], "draws": 1, "repeats": 2, "placements": 1, "steps": 1,
    "warmup": 1, "decode_steps": 2, "threads": 1,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    from prunescope.tracer.sweep import job

    monkeypatch.setattr(job, "TOKENS", 256)
    monkeypatch.setattr(job, "_was_disturbed", lambda _out: False)
    same_peaks(monkeypatch)


@pytest.mark.slow
def test_the_study_runs_end_to_end_on_a_cpu(tmp_path: Path) -> None:
    """Three of its families: whole, one layer alone, and static-nk at six alignments."""
    own = {**SCALED, "families": ["static-k-24", "static-nk", "dynamic-nk"]}
    request = SweepRequest(own, out=tmp_path / "s", preset="paper")
    plan = plan_of(request)
    run_plan(request, plan)
    counts = summary(request, plan)["plan"]
    assert (counts["results"], counts["done"], counts["failed"]) == (18, 18, 0)
    found = judge(tmp_path / "s")
    prefill, decode = (found.phases[name].points for name in ("prefill", "decode"))
    assert (len(prefill), len(decode)) == (3 + 3 + 6, 3 + 3)
    assert all(one.flush and one.logits == "all" for one in prefill)
    assert sum(one.only == "layer" for one in prefill) == 3
    drawn = {one.stem.removeprefix("paper-") for one in paper_set(found).figures}
    assert {"shares", "layer", "alignment", "overhead"} <= drawn


@pytest.mark.slow
def test_every_kind_of_figure_is_drawn_of_a_scaled_study(tmp_path: Path) -> None:
    """As docs/paper.md scales it, in one phase; the GEMM's curve is made up."""
    own = {**SCALED, "families": ["static-nk", "dynamic-m"], "phases": ["prefill"],
           "batches": [1, 2], "prompt_lens": [16, 32], "only": ["model", "layer"],
           "set": {"align": [1, 16]}, "recover": "steps=2,rank=4,length=128", "placements": 2,
           "steps": 2}  # fmt: skip
    request = SweepRequest(own, out=tmp_path / "s", preset="paper")
    run_plan(request, plan_of(request))
    found = paper_set(judge(tmp_path / "s"), speedup_curves([replays()]))
    names = ["shares", "speedup-0.5", "layer", "alignment", "gemms", "recovery", "overhead"]
    drawn = [one.stem.removeprefix("paper-") for one in found.figures]
    assert (drawn, found.missing) == (names, [])
    for one in found.figures:
        assert "n = " in one.caption and "interval" in one.caption, one.stem
        assert one.rows


@pytest.mark.torch
def test_a_layer_alone_is_a_point_with_its_closure(tmp_path: Path) -> None:
    """A key of the sweep file, of sweep.json and of a point; other settings are other cells."""
    own = {**SCALED, "families": ["static-nk-mlp"], "only": ["model", "layer"], "set": {}}
    request = SweepRequest({**own, "phases": ["prefill"]}, out=tmp_path / "s", preset="paper")
    run_plan(request, plan_of(request))
    results = read_sweep(tmp_path / "s").results
    assert [(one.only, one.state) for one in results] == [("model", DONE), ("layer", DONE)]
    assert results[1].id == results[0].id + "-layer"
    phase = judge(tmp_path / "s").phases["prefill"]
    points = {one.only: one for one in phase.points}
    assert len(phase.cells) == 2 and "closure" not in to_builtins(points["model"])
    found = to_builtins(points["layer"])["closure"]
    assert set(found) == {"dense", "pruned"}
    for side in found.values():
        assert (side["layer"], side["layers"]) == (0, 2)
        whole = side["layers"] * side["layer_ns"] + side["rest_ns"]
        assert side["ratio"] == pytest.approx(whole / side["whole_ns"])
        low, high = side["ratio_ci95"]
        assert low <= side["ratio"] <= high
        assert side["whole_ns"] > side["layer_ns"]
    # One MLP of one layer, and no head: more of its FLOPs are gone than of the model's.
    assert (points["layer"].flop_sparsity or 0) > (points["model"].flop_sparsity or 0)
    assert "one layer alone" in points["layer"].where
    said = {
        one.only: analyze(tmp_path / "s" / str(one.run)).report.phases["prefill"] for one in results
    }
    assert {
        name for name, one in said.items() if "layer-alone" in {f.id for f in one.findings}
    } == {"layer"}
    assert said["layer"].predicted is None  # the theory is of whole models
