"""Predictions from a measured step against edits of it with known truth, gaps kept.

The truth of an edit is arithmetic on the recorded kernels: those of the part that is pruned take a
share of their time, or all kernels of every second layer are gone with the gaps before them.
docs/predict.md prints the score.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import polars as pl
import pytest

from prunescope.analysis.inputs.options import Options
from prunescope.analysis.pipeline import Analysis, analyze
from prunescope.analysis.predict.predict_request import PredictRequest
from prunescope.analysis.predict_from import predict_from
from prunescope.analysis.schema.prediction import FamilyRow
from prunescope.taxonomy.errors import PrunescopeError

PAGE = Path(__file__).parents[2] / "docs/predict.md"  # keeps the score
Real = Callable[[str], Path]
DECODE, PREFILL = (f"mi300x_sglang_qwen3-8b_{n}.json.gz" for n in ("decode_graph", "prefilldecode"))
CAPTURE = "mi300x_sglang_qwen3-8b_decode_capture_bs32.json.gz"
H100, B200 = "h100_qwen1.5-0.5b_prefill.json.gz", "b200_eager.json.gz"
MODELS = {DECODE: "qwen3-8b", PREFILL: "qwen3-8b", H100: "qwen1.5-0.5b", B200: "gpt-oss-120b"}
ROLE, KIND = pl.col("role"), pl.col("kind")
OF_EXPERTS = (ROLE == "experts") & KIND.is_in(["grouped_gemm", "activation"])
# Kernels of an edit, and whether the gaps before them go with them.
MLP = ROLE.is_in(["gate", "up", "gate_up", "down", "activation"]) | OF_EXPERTS
HEADS = ROLE.is_in(["q", "k", "v", "qkv", "o", "attention", "rope", "kv_update", "qk_norm"])
EDITS = {
    "static-nk-mlp": (MLP, False),
    "static-nk-heads": (HEADS, False),
    "static-m": (pl.col("layer").is_not_null(), True),
    "static-experts": (OF_EXPERTS, False),
}
CASES = [
    (DECODE, "static-nk-mlp", 0.5), (DECODE, "static-nk-mlp", 0.25),
    (DECODE, "static-nk-heads", 0.5), (DECODE, "static-m", 0.5),
    (PREFILL, "static-nk-mlp", 0.5), (PREFILL, "static-nk-heads", 0.5), (PREFILL, "static-m", 0.5),
    (H100, "static-nk-mlp", 0.5), (H100, "static-nk-heads", 0.5), (H100, "static-m", 0.5),
    (B200, "static-nk-mlp", 0.5), (B200, "static-experts", 0.5),
]  # fmt: skip


@cache
def measured(path: Path, eager: Path | None) -> Analysis:
    return analyze(path, options=Options(model=MODELS[path.name], eager_trace=eager))


def truth(trace: Path, eager: Path | None, family: str, sparsity: float) -> float:
    """Return the wall over that of the edit."""
    analysis = measured(trace, eager)
    ((name, phase),) = analysis.report.phases.items()
    rows, with_gaps = EDITS[family]
    chosen = analysis.frames[name].filter(rows)
    saved = chosen["busy"].sum() + (chosen["gap"].sum() if with_gaps else 0)
    return phase.wall_ns / (phase.wall_ns - sparsity * saved / phase.steps)


def predicted(trace: Path, family: str, sparsity: float) -> FamilyRow:
    request = PredictRequest(MODELS[trace.name], from_run=trace, method=family, sparsity=sparsity)
    ((_, phase),) = predict_from(request).phases.items()
    return phase.families[0]


def test_twelve_edits_with_known_truth(real_trace: Real) -> None:
    """All lie in the range. Half of the heads of a decode step is furthest from the prediction:
    GEMMs so small are predicted to shrink by less than half, as their tiles do."""
    outside, page = [], PAGE.read_text(encoding="utf-8")
    for name, family, sparsity in CASES:
        eager = real_trace(CAPTURE) if name == DECODE else None
        true = truth(real_trace(name), eager, family, sparsity)
        row = predicted(real_trace(name), family, sparsity)
        low, high = row.range
        if not low <= true <= high:
            outside.append((name, family))
        assert f"| {true:.2f}× | {row.expected:.2f}× | {low:.2f} to {high:.2f}" in page
    assert outside == []


def test_a_decode_step_of_an_engine_by_hand(real_trace: Real) -> None:
    """gate_up 2.418, down 1.462 and activation 0.324 ms halved: 10.498 - 2.102 = 8.396 ms, 1.25×.
    The batch and the keys are those of the trace, though the command names neither."""
    request = PredictRequest(
        "qwen3-8b", from_run=real_trace(DECODE), method="static-nk-mlp", sparsity=0.5
    )
    (phase,) = predict_from(request).phases.values()
    assert (phase.batch, phase.context, phase.tp) == (32, 1025, 1)
    assert phase.predicted is not None
    step = phase.predicted.execution
    assert step.dense_ns == pytest.approx(10.498e6, abs=500)
    assert 1.18 <= step.speedup <= 1.25 and step.range[0] <= 1.25 <= step.range[1]
    assert phase.families[0].bound == pytest.approx(10.498 / 8.396, rel=2e-3)


def test_a_size_that_the_trace_contradicts_is_said(real_trace: Real) -> None:
    """The step has 32 rows: a batch of 4 was replaced without a word, and 32 needs none."""
    said = {}
    for batch in (4, 32):
        request = PredictRequest(
            "qwen3-8b", from_run=real_trace(DECODE), method="static-nk-mlp", batch=batch
        )
        said[batch] = [text for text in predict_from(request).warnings if "--batch" in text]
    assert said == {4: ["decode: the trace has batch 32, and --batch 4 is not used"], 32: []}


def test_a_phase_that_the_trace_contradicts_is_refused(real_trace: Real) -> None:
    """A step that is annotated as decode was headed "prefill", in the memory of one prompt."""
    request = PredictRequest(
        "qwen3-8b", from_run=real_trace(DECODE), method="static-nk-mlp", phase="prefill"
    )
    with pytest.raises(PrunescopeError, match="no prefill: its steps are those of a decode"):
        predict_from(request)


def test_a_rank_of_tensor_parallelism_is_one(real_trace: Real) -> None:
    """qkv 640 × 2,880 is an eighth of gpt-oss's 5,120 × 2,880: one of eight devices."""
    request = PredictRequest(
        "gpt-oss-120b", from_run=real_trace(B200), method="static-nk-mlp", sparsity=0.5
    )
    (phase,) = predict_from(request).phases.values()
    assert phase.tp == 8 and any("one of 8 devices" in note for note in phase.notes)
    assert {"communication", "routing", "experts"} <= phase.shares.keys()


def test_another_model_than_the_recorded_one_is_refused(real_trace: Real) -> None:
    """Qwen1.5-0.5B has 24 layers, whose linears have K 1,024 and 2,816; Qwen2.5-0.5B has 24 of 896
    and 4,864, Llama 3.1 8B 32. The linears of gpt-oss-20b are those of gpt-oss-120b, in 24 of 36
    layers."""
    for trace, model, why in (
        (H100, "qwen2.5-0.5b", "sizes that qwen2.5-0.5b does not have"),
        (H100, "llama-3.1-8b", "projection of 24 layers, and llama-3.1-8b has 32"),
        (B200, "gpt-oss-20b", "projection of 36 layers, and gpt-oss-20b has 24"),
    ):
        request = PredictRequest(model, from_run=real_trace(trace), method="static-nk-mlp")
        with pytest.raises(PrunescopeError, match=why):
            predict_from(request)


def test_each_rank_is_a_table_of_its_own(real_trace: Real, tmp_path: Path) -> None:
    """One of two ranks stood for both."""
    for rank in (0, 1):
        shutil.copy(real_trace(H100), tmp_path / f"rank{rank}.json.gz")
    request = PredictRequest(MODELS[H100], from_run=tmp_path, method="static-m", sparsity=0.5)
    assert list(predict_from(request).phases) == ["rank0", "rank1"]


def test_too_much_unknown_time_is_refused(real_trace: Real) -> None:
    """A config of another model is refused, and then 73 % of the step has no role."""
    request = PredictRequest("llama-3.1-8b", from_run=real_trace(DECODE), method="static-nk-mlp")
    with pytest.raises(PrunescopeError, match="kernels whose role is unknown") as refused:
        predict_from(request)
    assert "--eager-trace" in str(refused.value.hint)
