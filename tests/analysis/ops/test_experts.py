"""Kernels of many experts: which matrices of a stack they are taken to read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from prunescope.analysis.ops.call import OpCall
from prunescope.analysis.ops.work import work_of
from prunescope.analysis.pipeline import analyze
from prunescope.analysis.schema.report import GemmRow
from tests.analysis.finding_cases import pair
from tests.chrome import chrome, k, module, op, save, step

H, F, E, BF16 = 64, 96, 16, "c10::BFloat16"


def call(name: str, *shapes: tuple[int, ...]) -> OpCall:
    return OpCall(name, shapes, (BF16,) * len(shapes))


@pytest.mark.parametrize(
    "engine", ["vllm::inplace_fused_experts", "sglang::outplace_fused_experts"]
)
def test_a_fused_kernel_reads_the_experts_that_its_tokens_choose(engine: str) -> None:
    """Two tokens choose four of 16 each: 16·(1 − 0.75²) = 7 of them."""
    work = work_of(call(engine, (2, H), (E, 2 * F, H), (E, H, F), (2, 4), (2, 4)))
    assert work is not None
    assert (work.groups, work.stack, work.kind) == (7, E, "grouped_gemm")
    assert [(gemm.m, gemm.n, gemm.k) for gemm in work.gemms] == [(8, 2 * F, H), (8, H, F)]
    assert work.flop == 2 * 8 * 3 * F * H
    assert work.bytes == 2 * (7 * 3 * F * H + 2 * 2 * H + 8 * 3 * F)


def test_a_fused_kernel_of_other_shapes_has_no_work() -> None:
    assert (
        work_of(call("vllm::inplace_fused_experts", (2, H), (E, F, 8), (E, H, F), (2, 4))) is None
    )


@pytest.mark.parametrize("stack", [(E, H, F), (E, F, H)])
def test_rows_sorted_by_expert(stack: tuple[int, ...]) -> None:
    work = work_of(call("GroupedGemm", (8, H), stack, (E,)))
    assert work is not None
    assert (work.gemms[0].n, work.gemms[0].k, work.groups, work.stack) == (F, H, 8, E)
    assert work.bytes == 2 * (8 * H + 8 * H * F + 8 * F)


@pytest.mark.parametrize(
    "shapes",
    [
        ((8, H), (E, F, H), (8, F), (E,)),  # rows, stack, result
        ((8, F), (8, H), (E, H, F)),  # the result first
        ((8, H), (8, 4), (E, F, H), (E, 6, 4)),  # with scales of blocks
    ],
)
def test_a_grouped_product_of_a_library_is_told_by_its_stack(shapes: tuple[Any, ...]) -> None:
    work = work_of(call("deep_gemm::m_grouped_bf16_gemm_nt_contiguous", *shapes))
    assert work is not None
    gemm = work.gemms[0]
    assert (gemm.m, {gemm.n, gemm.k}, work.stack, work.groups) == (8, {F, H}, E, 8)


def grouped(rows: int, tokens: int, experts: int = E) -> Any:
    """A layer with a router of `tokens` rows, and a grouped GEMM of `rows`."""
    at = "model.layers.0.mlp"
    return chrome(step(0, module(
        at,
        module(f"{at}.gate", op("aten::mm", [tokens, H], [H, experts],
                                dtype=BF16, kernels=[k(us=3, name="gemm")])),
        module(f"{at}.experts", op("aten::_grouped_mm", [rows, H], [experts, H, F], [experts],
                                   dtypes=[BF16, BF16, "int"],
                                   kernels=[k(us=3, name="grouped_gemm")])),
    )))  # fmt: skip


def experts_of(trace: Any, path: Path, baseline: Any = None) -> GemmRow:
    dense = None if baseline is None else save(baseline, path / "d.json")
    report = analyze(save(trace, path / "t.json"), baseline=dense).report
    (row,) = [g for g in report.phases["trace"].gemms if g.role == "experts"]
    return row


def test_a_grouped_gemm_reads_what_its_router_is_expected_to_choose(tmp_path: Path) -> None:
    """One token chooses four; of two tokens seven are expected, of 32 all but 0.001."""
    for tokens, read in ((1, 4.0), (2, 7.0), (32, 16 * (1 - 0.75**32))):
        row = experts_of(grouped(4 * tokens, tokens), tmp_path)
        assert row.groups == pytest.approx(read)
        assert row.bytes == pytest.approx(2 * (4 * tokens * (H + F) + read * H * F))


def test_half_of_the_experts_of_a_grouped_gemm(tmp_path: Path) -> None:
    """Two tokens, four experts each: 7 of 16 were read, and 8·(1 − 0.5²) = 6 of 8 are."""
    row = experts_of(grouped(8, 2, experts=8), tmp_path, grouped(8, 2))
    assert (row.axis, row.keep) == ("G", {"groups": 0.5})
    assert (row.dense_groups, row.groups) == (pytest.approx(7), pytest.approx(6))


def test_a_run_tells_how_many_its_grouped_kernels_read(tmp_path: Path) -> None:
    """Counted by the pruned run; of the dense one the router is taken to choose evenly."""
    counted = {"distinct_experts": {"prefill": {"0": 5.0}}}
    report = pair(tmp_path, grouped(8, 2), grouped(8, 2, experts=8), pruned_run=counted)
    (row,) = [g for g in report.phases["prefill"].gemms if g.role == "experts"]
    assert (row.dense_groups, row.groups) == (pytest.approx(7), 5)
    assert row.bytes == 2 * (8 * (H + F) + 5 * H * F)
