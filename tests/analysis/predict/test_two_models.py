"""Two models against each other, and models whose layers differ, on one device."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rich.console import Console

from prunescope.analysis.predict.predict import PredictRequest, predict
from prunescope.analysis.report.predict_tables import prediction
from prunescope.analysis.schema.prediction import PredictedPoint, Prediction
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.presets import preset_config

WIDTHS = [14336, 7168, 14336, 3584] * 8
LLAMA = preset_config("llama-3.1-8b")
# Minitron's width-pruned 4B of the 8B: hidden 3072, 9216 channels.
MINITRON = {**LLAMA, "hidden_size": 3072, "intermediate_size": 9216, "head_dim": 128}


def config(folder: Path, name: str, plain_config: dict[str, Any]) -> str:
    path = folder / name
    path.mkdir()
    (path / "config.json").write_text(json.dumps(plain_config))
    return str(path)


def point_of(told: Prediction) -> PredictedPoint:
    (point,) = told.points
    return point


def compared(other: str, **options: Any) -> Prediction:
    asked = {"device": "h100-sxm", "phase": "decode", "batch": 1, "prompt_len": 1024, **options}
    return predict(PredictRequest("llama-3.1-8b", pruned_model=other, **asked))


def test_a_model_against_itself_gains_nothing() -> None:
    phase = point_of(compared("llama-3.1-8b")).phases["decode"]
    assert phase.ladder is not None and phase.predicted is not None
    assert phase.ladder.flop == phase.ladder.roofline == phase.predicted.execution.speedup == 1
    assert {row.axis for row in phase.gemms} == {"none"}


def test_uneven_layers_against_the_dense_model_by_hand(tmp_path: Path) -> None:
    other = config(tmp_path, "uneven", {**LLAMA, "intermediate_size": WIDTHS})
    told = compared(other)
    phase = point_of(told).phases["decode"]
    assert phase.ladder is not None and phase.predicted is not None and phase.baseline is not None
    gone = 3 * 4096 * (32 * 14336 - sum(WIDTHS))
    assert phase.baseline.parameters - phase.parameters == gone
    assert phase.baseline.flop - phase.flop == 2 * gone
    assert phase.baseline.weight_bytes - phase.weight_bytes == 2 * gone
    assert phase.baseline.kv_bytes == phase.kv_bytes
    low, high = phase.predicted.execution.range
    assert low < phase.predicted.execution.speedup < high
    assert phase.predicted.execution.speedup > 1
    assert phase.ladder.nominal == phase.ladder.flop and phase.predicted.break_even is None
    assert phase.sparsity is not None and phase.sparsity["nominal"] is None
    rows = {(row.role, row.n, row.k): row for row in phase.gemms}
    assert rows["gate", 7168, 4096].count == 8 and rows["gate", 14336, 4096].count == 16
    assert rows["q", 4096, 4096].count == 32  # equal sublayers once
    assert (rows["gate", 7168, 4096].dense_n, rows["gate", 7168, 4096].axis) == (14336, "N")
    assert rows["down", 4096, 3584].axis == "K"
    assert told.subject.model["pruned"]["layers_differ"] == "3584–14336 MLP channels"
    assert len(told.subject.model["pruned"]["shape"]["layer_shapes"]) == 32
    file = StringIO()
    Console(width=100, file=file).print(prediction(msgspec.to_builtins(told), explain=True))
    shown = file.getvalue()
    assert "layers of uneven differ: 3584–14336 MLP channels" in shown
    assert "faster than dense" not in shown


def test_layers_without_attention_are_gone(tmp_path: Path) -> None:
    kv = [8] * 24 + [0] * 8
    heads = [32] * 24 + [0] * 8
    other = config(
        tmp_path, "o", {**LLAMA, "num_key_value_heads": kv, "num_attention_heads": heads}
    )
    phase = point_of(compared(other)).phases["decode"]
    assert phase.baseline is not None and phase.kv_bytes == phase.baseline.kv_bytes * 24 // 32
    gone = [row for row in phase.gemms if row.axis == "gone"]
    assert {row.role for row in gone} == {"q", "k", "v", "o", "attention"}


def test_a_narrower_stream(tmp_path: Path) -> None:
    told = compared(config(tmp_path, "minitron", MINITRON), new_tokens=64)
    point = point_of(told)
    phase = point.phases["decode"]
    assert phase.ladder is not None and phase.ladder.roofline > 1.5
    assert {row.axis for row in phase.gemms if row.role == "gate"} == {"NK"}
    assert told.baseline == {"name": "llama-3.1-8b, dense"}
    assert point.answer is not None and point.answer.pruned_memory is not None
    assert point.answer.pruned_memory.weight_bytes < point.answer.dense_memory.weight_bytes


@pytest.mark.parametrize("tp", [1, 2, 8])
def test_uneven_heads_are_shared_out_layer_by_layer(tp: int, tmp_path: Path) -> None:
    heads = [32] * 16 + [16] * 16
    kv = [8] * 16 + [4] * 16
    uneven = {**LLAMA, "num_attention_heads": heads, "num_key_value_heads": kv}
    phase = point_of(compared(config(tmp_path, "h", uneven), tp=tp)).phases["decode"]
    assert phase.baseline is not None
    whole = 2 * 2 * 128 * 1024 * 32 * 8
    assert phase.baseline.kv_bytes == whole // tp
    # Half of the layers have 4 KV heads, which 8 devices hold twice.
    assert phase.kv_bytes == whole // 2 // tp + whole // 4 // min(tp, 4)


@pytest.mark.parametrize("method", ["static-nk", "static-m", "static-k-lowrank", "dynamic-m"])
def test_families_on_a_model_whose_layers_differ(method: str, tmp_path: Path) -> None:
    model = config(tmp_path, "uneven", {**LLAMA, "intermediate_size": WIDTHS})
    asked = {"device": "h100-sxm", "phase": "prefill", "prompt_len": 1024}
    told = predict(PredictRequest(model, method=method, sparsity=0.5, **asked))
    phase = point_of(told).phases["prefill"]
    assert phase.ladder is not None and 1 < phase.ladder.flop < 3
    pairs = {(r.role, r.dense_n, r.dense_k) for r in phase.gemms if r.role == "gate"}
    if method == "static-nk":
        assert {n for _, n, _ in pairs} == {3584, 7168, 14336}
    axes = {row.axis for row in phase.gemms if row.role in ("gate", "up", "down")}
    assert axes <= {"N", "K", "M", "rank", "none", "gone"}


@pytest.mark.parametrize("options", [{"method": "static-m"}, {"sparsity": 0.5}, {"depth": 0.2}])
def test_options_that_contradict_another_model(options: dict[str, Any]) -> None:
    with pytest.raises(PrunescopeError, match="cannot be combined with --pruned-model"):
        compared("llama-3.1-8b", **options)
