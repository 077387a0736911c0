"""A step by the categories of the paper: which unit is in which, and sums by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from prunescope.analysis.ledger.categories import category
from prunescope.analysis.pipeline import analyze
from tests.analysis.finding_cases import report
from tests.analysis.ledger.test_dynamic_overhead import US, dense_rows, routed_rows

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(
    ("role", "kind", "added", "expected"),
    [
        ("up", "matmul", False, "mlp"),
        ("experts", "matmul", False, "mlp"),
        ("qkv", "matmul", False, "qkvo"),
        ("kv_b", "matmul", False, "qkvo"),
        ("up backward", "matmul", False, "mlp"),
        ("mixer_in", "matmul", False, "other_gemm"),
        ("lm_head", "matmul", False, "lm_head"),
        ("attention", "pointwise", False, "attention"),
        ("unknown", "attention", False, "attention"),
        ("kv_update", "layout", False, "cache_update"),
        ("router", "matmul", False, "extra"),
        ("residual", "matmul", True, "extra"),
        ("attn_norm", "layout", True, "preprocess"),
        ("attn_norm", "layout", False, "elementwise"),
        ("mlp_norm", "pointwise", False, "elementwise"),
        ("unknown", "comm", False, "other"),
    ],
)
def test_each_unit_has_a_category(role: str, kind: str, added: bool, expected: str) -> None:
    assert category((0, role, kind), added=added) == expected


def test_the_categories_of_a_routed_step(tmp_path: Path) -> None:
    """Dense: 480 us of q, k, v, o. Pruned: q and o take half, 280 us; a layer adds a router (7 us),
    a gather (2), a scatter (5), a copy (1), and 7 us of waiting: 324 us."""
    (phase,) = report(tmp_path, dense_rows(), routed_rows()).phases.values()
    by_name = {
        category.name: (category.dense_ns, category.pruned_ns) for category in phase.categories
    }
    assert by_name == {
        "qkvo": pytest.approx((480 * US, 280 * US)),
        "extra": pytest.approx((0, 2 * 14 * US)),
        "preprocess": pytest.approx((0, 2 * 1 * US)),
        "idle": pytest.approx((0, 2 * 7 * US)),
    }


def test_the_categories_of_a_side_sum_to_its_wall() -> None:
    for phase in analyze(ROOT / "traces/tiny-static-nk").report.phases.values():
        walls = {row.row: row.ns for row in phase.ledger or []}
        sums = [
            sum(v) for v in zip(*((c.dense_ns, c.pruned_ns) for c in phase.categories), strict=True)
        ]
        assert sums == pytest.approx([walls["dense"], walls["pruned"]], abs=1e-3)
        for entry in phase.categories:
            for ns, ends in (
                (entry.dense_ns, entry.dense_ci95),
                (entry.pruned_ns, entry.pruned_ci95),
            ):
                assert ends is None or ends[0] - 1 <= ns <= ends[1] + 1


def test_a_side_alone_has_no_categories() -> None:
    report = analyze(ROOT / "traces/tiny-static-nk/dense").report
    assert all(not phase.categories for phase in report.phases.values())
