"""Findings about dynamic families, skipped layers, promise and clocks: where each must appear."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.analysis.finding_cases import (
    K,
    M,
    N,
    attention,
    clocks,
    counts,
    decode_run,
    found,
    ids,
    layers,
    method,
    mm,
    pair,
    plain,
    routed,
    sparse_attention,
)

# -- dynamic families --------------------------------------------------------------------------


def test_dynamic_m_at_batch_8_reads_all_weights(tmp_path: Path) -> None:
    runs = {"pruned_run": decode_run(8), "dense_run": {"phase_fields": {"batch": 8}}}
    result = pair(tmp_path, routed(8, 50), routed(4, 50), phase="decode", **runs)
    finding = found(result, "reads-all-weights")
    assert finding is not None
    assert "99.6 %" in finding.text  # 1 - 0.5 ** 8 = 0.99609


def test_block_sparse_attention_below_its_break_even(tmp_path: Path) -> None:
    runs = {"pruned_run": method("dynamic-nk")}
    result = pair(tmp_path, attention(), sparse_attention(50, 60), **runs)
    finding = found(result, "below-break-even")
    assert finding is not None
    assert finding.predicted_ns == pytest.approx(2 * 10_000)  # 50 + 60 - 100 us a layer
    assert "at 512 keys" in finding.text


@pytest.mark.parametrize("run", [method("token-drop"), counts("rows", 256, 512)])
def test_tokens_that_are_masked_and_computed(tmp_path: Path, run: dict[str, Any]) -> None:
    result = pair(tmp_path, routed(M, 100), routed(M, 100), pruned_run=run)
    finding = found(result, "masked-tokens")
    assert finding is not None
    assert finding.severity == "critical"
    assert "M = 512 dense and pruned" in finding.evidence
    if "census" in run:  # half of the tokens: half of 2 layers x 3 GEMMs x 100 us
        assert finding.predicted_ns == pytest.approx(300_000)


def zeroed(*zero_layers: int) -> dict[str, Any]:
    matrices = [
        {"name": f"model.layers.{i}.mlp.down_proj", "layer": i, "role": "down", "shape": [N, K],
         "zeros": 1.0 if i in zero_layers else 0.0}
        for i in range(2)
    ]  # fmt: skip
    return {"census": {"matrices": matrices}}


@pytest.mark.parametrize(
    ("run", "share"),
    [(method("static-m"), 0.5), (zeroed(1), 0.5), (counts("layers", 3, 4), 0.25)],
)
def test_layers_that_are_skipped_and_executed(
    tmp_path: Path, run: dict[str, Any], share: float
) -> None:
    result = pair(tmp_path, routed(M, 100), routed(M, 100), pruned_run=run, dense_run=zeroed())
    finding = found(result, "skipped-layers-executed")
    assert finding is not None
    assert finding.predicted_ns == pytest.approx(share * 600_000)
    assert "all 2 layers" in finding.text


# -- promise and clocks ------------------------------------------------------------------------


def sized(nominal: float, parameters: int) -> dict[str, Any]:
    return {**method("static-nk-mlp", nominal), "parameters": parameters}


def narrow(n: int, us: float) -> dict[str, Any]:
    return layers(("mlp.up_proj", mm(n=n, us=us)), ("mlp.down_proj", mm(n=K, k_=n, us=us)))


def test_nominal_and_realised_sparsity_are_both_said(tmp_path: Path) -> None:
    runs = {"pruned_run": sized(0.5, 800), "dense_run": {"parameters": 1000}}
    finding = found(pair(tmp_path, narrow(N, 100), narrow(N // 2, 60), **runs), "nominal-differs")
    assert finding is not None
    assert "nominal sparsity is 50.0 %" in finding.text
    assert "20.0 % of the parameters, 50.0 % of the FLOPs" in finding.text
    assert finding.severity == "info"


def test_bytes_that_grew_did_not_go(tmp_path: Path) -> None:
    """As with a mask beside each weight: 1200 parameters of 1000."""
    runs = {"pruned_run": sized(0.5, 1200), "dense_run": {"parameters": 1000}}
    finding = found(pair(tmp_path, narrow(N, 100), narrow(N // 2, 60), **runs), "nominal-differs")
    assert finding is not None
    assert finding.text.endswith("; the parameters grew by 20.0 %")
    assert "-" not in finding.text and "−" not in finding.text


def test_a_sparsity_that_is_what_it_says(tmp_path: Path) -> None:
    runs = {"pruned_run": sized(0.5, 520), "dense_run": {"parameters": 1000}}
    result = pair(tmp_path, narrow(N, 100), narrow(N // 2, 60), **runs)
    (phase,) = result.phases.values()
    # Activations of M x K stay: bytes fall by 45 %, within a tenth of a half.
    assert phase.sparsity["bytes"] == pytest.approx(0.45, abs=0.01)
    assert "nominal-differs" not in ids(result)


@pytest.mark.parametrize(
    ("dense", "pruned"), [((1.98e9, 1.98e9), (1.98e9, 1.2e9)), ((1.98e9, 1.98e9), (1.5e9, 1.5e9))]
)
def test_clocks_that_moved_or_differ(
    tmp_path: Path, dense: tuple[float, float], pruned: tuple[float, float]
) -> None:
    runs = {"pruned_run": clocks(*pruned), "dense_run": clocks(*dense)}
    finding = found(pair(tmp_path, plain(), plain(), **runs), "unsteady-clocks")
    assert finding is not None
    assert any("1.98 GHz" in line for line in finding.evidence)
