"""Attention that runs as products and a softmax is named, with what would run it as one kernel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from prunescope.analysis.pipeline import analyze
from prunescope.analysis.schema.report import Phase
from tests.analysis.finding_cases import found, mm, pointwise, sdpa
from tests.chrome import Op, chrome, k, module, op, save, step

SCORES = [16, 512, 512]


def bmm(a: list[int], b: list[int], us: float) -> Op:
    return op("aten::bmm", a, b, dtype="c10::BFloat16", kernels=[k(us=us, name="a_gemm_kernel")])


def eager(us: float) -> list[Any]:
    """Scores, their softmax, and the values: `us` each, and a mask of 1."""
    return [
        bmm([16, 512, 64], [16, 64, 512], us),
        pointwise("aten::add", SCORES, SCORES, us=1),
        pointwise("aten::_softmax", SCORES, us=us, kernel="softmax_warp_forward"),
        bmm(SCORES, [16, 512, 64], us),
    ]


def ran(tmp_path: Path, *items: Any, others: float = 100) -> Phase:
    layer = "model.layers.0"
    trace = chrome(
        step(0, module(f"{layer}.self_attn", *items), module(f"{layer}.mlp.up_proj", mm(us=others)))
    )
    (phase,) = analyze(save(trace, tmp_path / "t.json")).report.phases.values()
    return phase


def test_products_and_a_softmax_are_unfused(tmp_path: Path) -> None:
    said = found(ran(tmp_path, *eager(50)), "unfused-attention")
    assert said is not None and said.severity == "warning"
    assert "takes 60 % of the step (151.0 µs)" in said.text  # 151 of 251 us
    assert said.evidence == [
        "GEMMs: 100.0 µs", "softmax: 50.0 µs", "elementwise: 1.0 µs",
    ]  # fmt: skip
    assert said.change is not None and "attn_implementation='sdpa'" in said.change
    # A fused one multiplies as much: 2 products of 2 x 16 x 512 x 512 x 64 FLOPs at 989.4 TFLOP/s.
    assert said.predicted_ns == pytest.approx(151e3 - 1085, abs=2)


def test_one_that_was_asked_for_as_one_fell_back(tmp_path: Path) -> None:
    shape = [1, 16, 512, 64]
    whole = op("aten::_scaled_dot_product_attention_math", shape, shape, shape, inner=eager(50))
    said = found(ran(tmp_path, whole), "unfused-attention")
    assert said is not None and said.change is not None
    assert "fell back to its math path" in said.change


@pytest.mark.parametrize(
    ("items", "others"), [([sdpa(150)], 100.0), (eager(5), 900.0), (eager(50)[:2], 10.0)]
)
def test_a_fused_one_a_small_one_and_one_without_softmax_are_not(
    items: list[Any], others: float, tmp_path: Path
) -> None:
    assert found(ran(tmp_path, *items, others=others), "unfused-attention") is None
