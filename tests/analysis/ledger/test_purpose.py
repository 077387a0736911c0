"""What new work is for: the same answer for the overhead of a family and for the findings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from prunescope.analysis.ledger.purpose import (
    ESTIMATOR,
    GATHER,
    INDEX,
    LAYOUT,
    MASK,
    OTHER,
    PURPOSES,
    ROUTER,
    SCATTER,
    NewWork,
    purpose,
)
from tests.analysis.finding_cases import found, layers, mm, report, sdpa
from tests.analysis.ledger.test_dynamic_overhead import blocks, dense_rows, parts, routed_rows

CASES = [
    (NewWork("q", "gather_scatter", "aten::index_select"), ROUTER, GATHER),
    (NewWork("q", "gather_scatter", "aten::index_add_"), ROUTER, SCATTER),
    (NewWork("q", "gather_scatter", "aten::masked_scatter_"), ROUTER, SCATTER),
    (NewWork("mlp", "routing", "aten::topk"), ROUTER, INDEX),
    (NewWork("router", "gemv", "aten::mm"), ROUTER, ROUTER),
    (NewWork("router", "gemm", "aten::mm"), ESTIMATOR, ESTIMATOR),
    (NewWork("attention", "batched_gemm", "aten::bmm"), ESTIMATOR, ESTIMATOR),
    (NewWork("attention", "batched_gemm", "aten::bmm"), "", ESTIMATOR),
    (NewWork("attention", "reduction", "aten::mean"), ESTIMATOR, ESTIMATOR),
    (NewWork("router", "elementwise", "aten::arange"), ROUTER, INDEX),
    (NewWork("router", "elementwise", "aten::add", ("long int",)), ROUTER, INDEX),
    (NewWork("router", "elementwise", "aten::add", ("c10::BFloat16",)), ROUTER, ROUTER),
    (NewWork("gate", "elementwise", "aten::where"), ROUTER, MASK),
    (NewWork("gate", "elementwise", "aten::ge"), "", MASK),
    (NewWork("gate", "elementwise", "aten::bitwise_and", ("unsigned char",)), "", OTHER),
    (NewWork("gate", "elementwise", "aten::bitwise_and", ("bool", "bool")), "", MASK),
    (NewWork("gate", "gemm", "masked_gemm_kernel"), "", OTHER),
    (NewWork("gate", "layout", "aten::copy_"), ROUTER, LAYOUT),
    (NewWork("gate", "elementwise", "aten::mul"), ROUTER, OTHER),
]


@pytest.mark.parametrize(("work", "scorer", "wanted"), CASES)
def test_what_it_is_for(work: NewWork, scorer: str, wanted: str) -> None:
    assert purpose(work, {scorer}, fused=True) == wanted
    assert wanted in PURPOSES


def test_both_scorers_run_and_a_product_in_batches_estimates() -> None:
    both = {ROUTER, ESTIMATOR}
    assert purpose(NewWork("router", "batched_gemm", "bmm"), both, fused=True) == ESTIMATOR
    assert purpose(NewWork("router", "gemv", "mv"), both, fused=True) == ROUTER


def test_products_of_an_eager_attention_estimate_nothing() -> None:
    product = NewWork("attention", "batched_gemm", "aten::bmm")
    assert purpose(product, {ESTIMATOR}, fused=False) == OTHER


FULL = layers(("self_attn", sdpa(100)), ("mlp.up_proj", mm()))


@pytest.mark.parametrize(
    ("dense", "pruned", "finding", "of_it"),
    [
        (dense_rows(), routed_rows(), "added-routing", (ROUTER, INDEX)),
        (dense_rows(), routed_rows(), "added-gather-scatter", (GATHER, SCATTER)),
        (FULL, blocks(), "added-estimator", (ESTIMATOR, INDEX)),
    ],
)
def test_the_finding_and_the_overhead_agree(
    dense: dict[str, Any], pruned: dict[str, Any], finding: str, of_it: tuple[str, ...],
    tmp_path: Path,
) -> None:  # fmt: skip
    analysed = report(tmp_path, dense, pruned)
    (phase,) = analysed.phases.values()
    said = found(analysed, finding)
    assert phase.overhead is not None and said is not None
    ns = parts(phase.overhead)
    assert said.predicted_ns == pytest.approx(sum(ns[part] or 0.0 for part in of_it))
