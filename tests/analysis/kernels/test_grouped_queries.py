"""Queries of heads that share a key, folded into rows of attention."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from prunescope.analysis.pipeline import analyze
from prunescope.analysis.schema.report import Phase
from tests.chrome import chrome, k, op, save


def linear(m: int, n: int) -> Any:
    return op("aten::mm", [m, 256], [256, n], kernels=[k(us=5, name="gemm_kernel")])


def attention(q: list[int], keys: int) -> Any:
    kv = [q[0], 4, keys, q[-1]]
    return op("aten::_scaled_dot_product_flash_attention", q, kv, kv, [], [],
              kernels=[k(us=3, name="flash_kernel")])  # fmt: skip


def told(tmp_path: Path, *items: Any) -> Phase:
    head = op("aten::mm", [1, 256], [256, 999], kernels=[k(us=1, name="gemm_kernel")])
    cache = op("_C_cache_ops::reshape_and_cache_flash", kernels=[k(us=0.001, name="cache_kernel")])
    return analyze(save(chrome(*items, cache, head), tmp_path / "t.json")).report.phases["trace"]


def scores(phase: Phase) -> tuple[Any, ...]:
    [row] = [row for row in phase.gemms if row.group == "qk"]
    return row.batch, row.m, row.n, row.k, row.flop


@pytest.mark.parametrize("width", [256, 512])
def test_a_query_of_a_group_of_two(width: int, tmp_path: Path) -> None:
    """8 heads of 32 channels share 4 keys; the linears multiply one row, q alone or with k and v:
    8 · 2 · 32 · 65 FLOPs each for QKᵀ and PV."""
    phase = told(tmp_path, linear(1, width), attention([1, 4, 2, 32], 65), linear(1, 256))
    assert scores(phase) == (8, 1, 65, 32, 2 * 8 * 65 * 32)
    assert phase.phase_kind is not None
    assert phase.phase_kind["kind"] == "decode"
    assert "attention has 1 query at a time" in phase.phase_kind["evidence"]


def test_of_a_batch_and_of_a_prompt(tmp_path: Path) -> None:
    phase = told(tmp_path, linear(3, 256), attention([3, 4, 2, 32], 65))
    assert scores(phase)[:4] == (24, 1, 65, 32)
    phase = told(tmp_path, linear(64, 256), attention([1, 4, 128, 32], 64))
    assert scores(phase)[:4] == (8, 64, 64, 32)


def test_two_queries_of_two_rows_are_two(tmp_path: Path) -> None:
    """A draft of two tokens; and rows of which no projection tells."""
    phase = told(tmp_path, linear(2, 128), attention([1, 4, 2, 32], 65))
    assert scores(phase)[:4] == (4, 2, 65, 32)
    phase = told(tmp_path, linear(1, 200), attention([1, 4, 2, 32], 65))
    assert scores(phase)[:4] == (4, 2, 65, 32)
