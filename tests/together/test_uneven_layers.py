"""Layers that differ: what static-m's theory says of those that go is what a trace executes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from prunescope.analysis.pipeline import analyze
from prunescope.analysis.predict.predict_request import PredictRequest
from prunescope.analysis.predict.setting import resolve
from prunescope.taxonomy.runs.run import read_run
from tests.tracer.tiny_models import tiny_model

pytestmark = pytest.mark.torch


@pytest.mark.parametrize(
    ("name", "knobs", "removed", "layout"),
    [
        ("lfm2", {"layers": "0"}, {"layer": [0]}, "fm"),
        ("lfm2", {"unit": "attention"}, {"attention": [2]}, "mfm"),  # drawn
        ("deepseek_v3", {"layers": "0"}, {"layer": [0]}, "F"),
        ("deepseek_v3", {"layers": "1"}, {"layer": [1]}, "f"),
    ],
)
def test_executed_is_theory(
    name: str, knobs: dict[str, str], removed: dict[str, list[int]], layout: str, tmp_path: Path,
    quick: Callable[..., Path],
) -> None:  # fmt: skip
    """mfm and fF. The recurrences of other hybrids execute more, in chunks, than theory counts."""
    tiny_model(name).save_pretrained(tmp_path / name)
    out = quick(
        model=str(tmp_path / name), method="static-m", sparsity=0.34, knobs=knobs, phase="prefill",
        warmup=0, repeats=1, steps=1,
    )  # fmt: skip
    run = read_run(out / "pruned")
    assert run.pruning is not None
    assert run.pruning.removed == removed
    assert run.model.shape is not None and run.model.shape["layout"] == layout
    assert run.pruning.theory is not None and run.pruning.realised is not None
    theory = run.pruning.theory["prefill"]
    assert theory["param"] == pytest.approx(run.pruning.realised["parameters"], abs=1e-6)
    phase = analyze(out).report.phases["prefill"]
    assert phase.predicted is not None
    assert phase.sparsity["flop"] == pytest.approx(theory["flop"], rel=0.01)
    assert phase.predicted["ladder"]["flop"] == pytest.approx(phase.ladder.flop, rel=0.01)


def test_a_prediction_says_that_layers_differ(tmp_path: Path) -> None:
    tiny_model("deepseek_v3").save_pretrained(tmp_path)
    asked = PredictRequest(model=str(tmp_path), device="h100-sxm", method="static-m", sparsity=0.5)
    said: list[list[str]] = []
    for knobs in ({}, {"layers": "0"}):
        warnings: list[str] = []
        resolve(replace(asked, knobs=knobs), "static-m", 0.5, warnings)
        said.append(warnings)
    assert ["average layer" in text for text in said[0]] == [True]
    assert not said[1]
