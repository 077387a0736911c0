"""Pairs of bare traces of others: low rank without modules, training at another batch or length."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from prunescope.analysis.pipeline import analyze
from prunescope.analysis.schema.report import Family
from tests.chrome import chrome, k, op, save

H, F = 512, 2048
BACKWARD = op("autograd::engine::evaluate_function: MmBackward0", us=0)


def mm(m: int, n: int, inner: int) -> Any:
    return op("aten::mm", [m, inner], [inner, n], kernels=[k(us=10, name="ampere_sgemm_64x64_nt")])


def family(dense: list[Any], pruned: list[Any], tmp_path: Path) -> Family:
    paths = [
        save(chrome(*items), tmp_path / f"{name}.json")
        for name, items in (("dense", dense), ("pruned", pruned))
    ]
    (phase,) = analyze(paths[1], baseline=paths[0]).report.phases.values()
    assert phase.family is not None
    return phase.family


def trained(tokens: int, width: int = F) -> list[Any]:
    """Forward, gradient of the input and of the weight of two linears."""
    sizes = [(H, width), (width, H)]
    forward = [mm(tokens, n, inner) for inner, n in sizes]
    back = [x for a, b in sizes for x in (mm(tokens, a, b), mm(b, a, tokens))]
    return [*forward, BACKWARD, *back]


@pytest.mark.parametrize("rank", [64, 192])
def test_low_rank_is_read_from_shapes_alone(rank: int, tmp_path: Path) -> None:
    dense = [x for _ in range(3) for x in (mm(1024, F, H), mm(1024, H, F))]
    pruned = [
        x for _ in range(3)
        for x in (mm(1024, rank, H), mm(1024, F, rank), mm(1024, rank, F), mm(1024, H, rank))
    ]  # fmt: skip
    found = family(dense, pruned, tmp_path)
    assert found.id == "static-k-lowrank", found.evidence
    assert f"6 GEMMs became two through a rank of {rank}" in " ".join(found.evidence)


def test_a_rank_that_not_all_have_is_none(tmp_path: Path) -> None:
    dense = [mm(1024, F, H), mm(1024, H, F)]
    pruned = [mm(1024, 64, H), mm(1024, F, 64), mm(1024, H, F - 512)]
    assert family(dense, pruned, tmp_path).id != "static-k-lowrank"


@pytest.mark.parametrize(("tokens", "is_outside"), [(1024, False), (512, True)])
def test_training_with_another_batch_or_length_is_no_pruning(
    tokens: int, tmp_path: Path, *, is_outside: bool
) -> None:
    """K of the gradients of weights is the number of tokens."""
    found = family(trained(1024), trained(tokens), tmp_path)
    assert (found.id == "outside") == is_outside
    assert any("tokens a step" in line for line in found.evidence) == is_outside


def test_a_narrower_model_in_training_has_as_many_tokens(tmp_path: Path) -> None:
    found = family(trained(1024), trained(1024, width=1536), tmp_path)
    assert not any("not comparable" in line for line in found.evidence)


def test_training_against_a_forward_pass_is_not_comparable(tmp_path: Path) -> None:
    found = family(trained(1024), [mm(1024, F, H), mm(1024, H, F)], tmp_path)
    assert found.id == "outside"
    assert any("forward, the dense one training" in line for line in found.evidence)


@pytest.mark.parametrize(
    ("new", "said"),
    [("c10::Half", "another number format"), ("c10::Float8_e4m3fn", "quantisation")],
)
def test_another_number_format_is_not_always_quantisation(
    new: str, said: str, tmp_path: Path
) -> None:
    def linear(dtype: str) -> Any:
        kernels = [k(us=10, name="gemm_kernel")]
        return op("aten::mm", [1024, H], [H, F], dtype=dtype, kernels=kernels)

    found = family([linear("c10::BFloat16")], [linear(new)], tmp_path)
    assert found.id == "outside"
    assert said in " ".join(found.evidence)
