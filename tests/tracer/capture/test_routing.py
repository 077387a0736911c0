"""The tokens of experts in run.json and in the report, of a capture of a tiny mixture."""

from __future__ import annotations

from pathlib import Path

import pytest

from prunescope.analysis.pipeline import analyze
from prunescope.taxonomy.runs.run import read_run
from tests.small_capture import small_trace
from tests.tracer.mixtures import DENSE_FIRST, MIXTURES, TOP_K, E, mixture

pytestmark = [pytest.mark.torch, pytest.mark.four_layers]
BATCH, PROMPT, STEPS = 2, 8, 3
QUICK = "deepseek_v3"


@pytest.mark.parametrize(
    "model_type",
    [QUICK, *(pytest.param(m, marks=pytest.mark.slow) for m in MIXTURES if m != QUICK)],
)
@pytest.mark.parametrize(
    ("method", "experts", "a_token"),
    [("static-experts", E // 2, TOP_K), ("static-topk", E, TOP_K // 2)],
)
def test_a_capture_counts_tokens_of_experts(
    tmp_path: Path, model_type: str, method: str, experts: int, a_token: int
) -> None:
    """Every token of a prompt of 2 x 8 goes to k experts, and so does every one of 2 x 3 decoded
    ones; a decode step has 2 k pairs of a token and an expert. Nothing stays hooked."""
    mixture(model_type).save_pretrained(tmp_path / "m")
    layers = {"1"} if model_type in DENSE_FIRST else {"0", "1"}
    out = small_trace(
        tmp_path / "run", model=str(tmp_path / "m"), method=method, sparsity=0.5, batch=BATCH,
        prompt_len=PROMPT, decode_steps=STEPS,
    )  # fmt: skip
    dense, pruned = (read_run(out / name) for name in ("dense", "pruned"))
    for run, total, k in ((dense, E, TOP_K), (pruned, experts, a_token)):
        assert {*run.routing} == {*run.distinct_experts} == {"prefill", "decode"}
        for phase, tokens in (("prefill", BATCH * PROMPT), ("decode", BATCH * STEPS)):
            assert run.routing[phase].keys() == layers
            counts = run.routing[phase]["1"]
            assert (len(counts), sum(counts)) == (total, tokens * k)
            distinct = run.distinct_experts[phase]["1"]
            assert k <= distinct <= min(total, (tokens if phase == "prefill" else BATCH) * k)
    assert dense.routing["prefill"]["1"] != pruned.routing["prefill"]["1"]
    report = analyze(out).report
    for phase in report.phases.values():
        assert phase.routing is not None
        layer = phase.routing.layers[-1]
        assert (layer.layer, layer.experts, layer.dense_experts) == (1, experts, E)


def test_a_model_without_experts_has_no_counts(static_m: Path) -> None:
    assert read_run(static_m / "dense").routing == {}
    assert "routing" not in (static_m / "dense" / "run.json").read_text()
    assert analyze(static_m).report.phases["decode"].routing is None
