"""Pairs of bare traces of others: low rank without modules, training at another batch or length."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prunescope.analysis.pipeline import analyze
from prunescope.analysis.schema.report import FamilyVerdict, Phase
from tests.analysis.finding_cases import FULL, NARROW, model
from tests.chrome import chrome, k, op, save

H, F = 512, 2048
BACKWARD = op("autograd::engine::evaluate_function: MmBackward0", us=0)


def mm(m: int, n: int, inner: int, us: float = 10) -> Any:
    return op("aten::mm", [m, inner], [inner, n], kernels=[k(us=us, name="ampere_sgemm_64x64_nt")])


def compared(dense: list[Any], pruned: list[Any], tmp_path: Path) -> Phase:
    paths = [
        save(chrome(*items), tmp_path / f"{name}.json")
        for name, items in (("dense", dense), ("pruned", pruned))
    ]
    (phase,) = analyze(paths[1], baseline=paths[0]).report.phases.values()
    return phase


def family(dense: list[Any], pruned: list[Any], tmp_path: Path) -> FamilyVerdict:
    named = compared(dense, pruned, tmp_path).family
    assert named is not None
    return named


def trained(tokens: int, width: int = F, slow_us: float = 10) -> list[Any]:
    """Forward, gradient of the input and of the weight (the last takes `slow_us`) of two
    linears."""
    sizes = [(H, width), (width, H)]
    forward = [mm(tokens, n, inner) for inner, n in sizes]
    back = [x for a, b in sizes for x in (mm(tokens, a, b), mm(b, a, tokens))]
    back[-1] = mm(H, width, tokens, slow_us)
    return [*forward, BACKWARD, *back]


@pytest.mark.parametrize("rank", [64, 192])
def test_low_rank_is_read_from_shapes_alone(rank: int, tmp_path: Path) -> None:
    dense = [x for _ in range(3) for x in (mm(1024, F, H), mm(1024, H, F))]
    pruned = [
        x for _ in range(3)
        for x in (mm(1024, rank, H), mm(1024, F, rank), mm(1024, rank, F), mm(1024, H, rank))
    ]  # fmt: skip
    named = family(dense, pruned, tmp_path)
    assert named.id == "static-k-lowrank", named.evidence
    assert f"6 GEMMs became two through a rank of {rank}" in " ".join(named.evidence)
    phase = compared(dense, pruned, tmp_path)
    assert {row.axis for row in phase.gemms} == {"rank"}  # each pairs with the one it replaces
    assert {(row.dense_n, row.dense_k) for row in phase.gemms} == {(F, H), (H, F)}


def test_ranks_that_differ_are_read_in_order(tmp_path: Path) -> None:
    """A rank for each; what was not factorised is there as it was."""
    dense = [mm(1024, F, H), mm(1024, H, F), mm(1024, F, H)]
    pruned = [
        mm(1024, 64, H), mm(1024, F, 64), mm(1024, 192, F), mm(1024, H, 192), mm(1024, F, H)
    ]  # fmt: skip
    named = family(dense, pruned, tmp_path)
    assert named.id == "static-k-lowrank", named.evidence
    assert (
        "2 GEMMs became two through a rank of 64 to 192 of 512, read from their shapes in order"
        in (named.evidence)
    )


def test_a_rank_that_not_all_have_is_none(tmp_path: Path) -> None:
    dense = [mm(1024, F, H), mm(1024, H, F)]
    pruned = [mm(1024, 64, H), mm(1024, F, 64), mm(1024, H, F - 512)]
    assert family(dense, pruned, tmp_path).id != "static-k-lowrank"


@pytest.mark.parametrize(("tokens", "is_outside"), [(1024, False), (512, True)])
def test_training_with_another_batch_or_length_is_no_pruning(
    tokens: int, tmp_path: Path, *, is_outside: bool
) -> None:
    """K of the gradients of weights is the number of tokens."""
    named = family(trained(1024), trained(tokens), tmp_path)
    assert (named.id == "outside") == is_outside
    assert any("tokens a step" in line for line in named.evidence) == is_outside


def test_a_narrower_model_in_training_has_as_many_tokens(tmp_path: Path) -> None:
    named = family(trained(1024), trained(1024, width=1536), tmp_path)
    assert not any("not comparable" in line for line in named.evidence)


def test_one_slow_gemm_moves_no_number_of_tokens(tmp_path: Path) -> None:
    """A GEMM of a weight's gradient that takes 900 of 950 us has M 512, the width: the tokens are M
    of four of six GEMMs, whatever these take."""
    named = family(trained(1024), trained(1024, width=1536, slow_us=900), tmp_path)
    assert not any("not comparable" in line for line in named.evidence)


def test_training_against_a_forward_pass_is_not_comparable(tmp_path: Path) -> None:
    named = family(trained(1024), [mm(1024, F, H), mm(1024, H, F)], tmp_path)
    assert named.id == "outside"
    assert any("forward, the dense one training" in line for line in named.evidence)


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

    named = family([linear("c10::BFloat16")], [linear(new)], tmp_path)
    assert named.id == "outside"
    assert said in " ".join(named.evidence)


def renamed(trace: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """The trace with other words in its module scopes."""
    text = json.dumps(trace)
    for old, new in names.items():
        text = text.replace(f".{old}", f".{new}")
    copy: dict[str, Any] = json.loads(text)
    return copy


@pytest.mark.parametrize("side", ["dense", "pruned"])
def test_linears_that_one_side_calls_otherwise_pair_by_order_and_shape(
    side: str, tmp_path: Path
) -> None:
    """The MLP's linears are called alpha, beta and gamma on one side: the family is the same."""
    words = {"gate_proj": "alpha", "up_proj": "beta", "down_proj": "gamma"}
    traces = {"dense": model(FULL), "pruned": model(NARROW)}
    traces[side] = renamed(traces[side], words)
    paths = [save(traces[name], tmp_path / f"{name}.json") for name in ("dense", "pruned")]
    phase = analyze(paths[1], baseline=paths[0]).report.phases["trace"]
    assert phase.family is not None and phase.family.id == "static-nk-mlp", phase.family
    assert phase.pairing is not None
    assert (phase.pairing.added, phase.pairing.removed) == (0, 0)


def test_two_traces_without_shapes_and_with_other_grids_are_not_the_same(tmp_path: Path) -> None:
    def bare(grid: int, us: float = 10) -> list[Any]:
        kernels = [k(us=us, name="ampere_sgemm_64x64_nt", grid=(grid, 4, 1))]
        return [op("aten::mm", kernels=kernels) for _ in range(3)]

    other, same = (family(bare(16), bare(n), tmp_path) for n in (12, 16))
    assert other.id == same.id == "unknown"
    assert "100 % of the time of the GEMMs is in other kernels or grids" in other.evidence[0]
    assert "same kernels in the same grids" in same.evidence[0]
    assert not any("nothing was pruned" in line for line in (*other.evidence, *same.evidence))


def test_what_did_not_fall_is_not_counted(tmp_path: Path) -> None:
    """Heads of half the width in attention alone: no sentence with N of 0 projections."""

    def attention(width: int) -> Any:
        q = [1, 16, 512, width]
        return op("aten::_scaled_dot_product_flash_attention", q, q, q, [], [],
                  dtype="c10::BFloat16", kernels=[k(us=10, name="flash_fwd_kernel")])  # fmt: skip

    named = family([attention(64), mm(512, F, H)], [attention(32), mm(512, F, H)], tmp_path)
    assert " 0 " not in " ".join(named.evidence), named.evidence
    assert "which GEMMs are its projections is not known" in " ".join(named.evidence)


def test_one_side_without_shapes_moves_no_axis(tmp_path: Path) -> None:
    bare = [op("aten::mm", kernels=[k(us=10, name="ampere_sgemm_64x64_nt")]) for _ in range(3)]
    named = family([mm(1024, F, H)] * 3, bare, tmp_path)
    assert named.id == "unknown"
    assert "no GEMM of the pruned side says what it multiplies" in " ".join(named.evidence)


def test_of_other_work_no_share_is_said_to_be_removed(tmp_path: Path) -> None:
    """A forward pass against training: its FLOPs are fewer, and none was pruned."""
    paths = [save(chrome(*items), tmp_path / f"{name}.json") for name, items in
             (("dense", trained(1024)), ("pruned", trained(1024)[:2]))]  # fmt: skip
    (phase,) = analyze(paths[1], baseline=paths[0]).report.phases.values()
    assert (phase.sparsity["flop"], phase.sparsity["bytes"]) == (None, None)
    assert phase.ladder is not None and phase.ladder.flop is None


@pytest.mark.parametrize("sized", [True, False])
def test_fused_projections_chain_without_modules(sized: bool, tmp_path: Path) -> None:
    """gate_up N 28672 → 21498 is twice the K of down, 14336 → 10749; qkv N 6144 → 4608 is that of
    o, 4096 → 3072, and twice 1024 → 768 of the keys and values."""

    def decoder(heads: int, channels: int) -> list[Any]:
        q = [1, heads, 512, 128] if sized else []
        name, kernels = "aten::_scaled_dot_product_flash_attention", [k(us=10, name="flash_fwd")]
        attention = op(name, q, q, q, [], [], dtype="c10::BFloat16", kernels=kernels)
        layer = [
            mm(512, 128 * (heads + heads // 2), H),
            attention,
            mm(512, H, 128 * heads),
            mm(512, 2 * channels, H),
            mm(512, H, channels),
        ]
        return layer * 4

    named = family(decoder(32, 14336), decoder(24, 10749), tmp_path)
    assert (named.id, named.confidence) == ("static-nk", 0.7), named
    other = family(decoder(32, 14336), decoder(24, 14336), tmp_path)
    assert (other.id, other.confidence) == ("static-nk-heads", 0.7), other
