from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunescope.taxonomy import keep
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.families import family
from prunescope.taxonomy.families.static_k_24 import checked
from prunescope.taxonomy.plan import Workload
from prunescope.taxonomy.presets import preset_config
from prunescope.taxonomy.shape import ModelShape

WORK = Workload(phase="prefill", prompt_len=512)
SHAPE = ModelShape.from_config(preset_config("llama-3.1-8b"))


def test_roundings_by_hand() -> None:
    assert [keep.aligned(x) for x in (0, 1, 16, 16.9, 17)] == [0, 16, 16, 16, 32]
    assert keep.kept_intermediate(14336, 0.5) == 7168
    assert keep.kept_intermediate(1536, 0.3) == 1088  # int(1075.2) = 1075 -> 1088
    assert keep.kept_hidden(576, 0.25) == 432
    assert keep.removed_layers(30, 0.25) == 7  # 7 of 30: int(7.5)
    assert keep.removed_layers(10, 0.3) == 3
    assert keep.low_rank(14336, 4096, 0.5) == 1600  # 14336*4096/18432/2 = 1592.9 -> 1592 -> 1600


@pytest.mark.parametrize(
    ("align", "kept"),
    # int(14336 · 0.7) = 10035, which is 3 modulo 4 and 3 modulo 16
    [("1", 10_035), ("2", 10_036), ("4", 10_036), ("8", 10_040), ("16", 10_048), ("32", 10_048),
     ("64", 10_048), ("128", 10_112), ("odd", 10_035), ("even", 10_038), ("paper", 10_048)],
)  # fmt: skip
def test_alignments_by_hand(align: str, kept: int) -> None:
    assert keep.kept_intermediate(14_336, 0.3, align) == kept
    assert keep.kept_hidden(14_336, 0.3, align) == kept
    point = family("static-nk-mlp").point(0.3, {"align": align})
    ops = family("static-nk-mlp").theory(SHAPE, WORK, point)
    assert next(op.gemms[0].n for op in ops if op.role == "gate") == kept


def test_alignment_of_what_a_sparsity_aligns_by_itself() -> None:
    assert keep.kept_intermediate(14_336, 0.5, "1") == 7168  # 1024 · 7
    assert keep.kept_intermediate(14_336, 0.5, "odd") == 7169
    assert keep.kept_intermediate(14_336, 0.5, "even") == 7170  # 2 · 3585
    assert keep.kept_intermediate(352, 0.1, "128") == 352  # 316 -> 384 > 352
    just = [f"just-{n}" for n in (1, 2, 4, 8, 16, 128)]
    kept = [keep.kept_intermediate(14_336, 0.5, align) for align in just]
    assert kept == [7169, 7170, 7172, 7176, 7184, 7296]  # 7168 is a multiple of 256 too
    assert [keep.kept_hidden(4096, 0.5, align) for align in just[:3]] == [2049, 2050, 2052]
    assert [keep.low_rank(14_336, 4096, 0.5, a) for a in ("1", "odd", "128")] == [1592, 1593, 1664]
    assert keep.low_rank(14_336, 4096, 0.5, "just-16") == 1616  # 1600 = 64 · 25
    with pytest.raises(PrunescopeError, match="align"):
        family("static-nk-mlp").point(0.3, {"align": "3"})


def test_alignments_in_words() -> None:
    words = {a: keep.aligned_words(a) for a in ("1", "16", "odd", "even", "just-8", "paper", "x%s")}
    assert words == {
        "1": "whole numbers", "16": "multiples of 16", "odd": "odd numbers", "paper":
        "multiples of 16", "even": "numbers that 2 divides and 4 does not", "just-8":
        "numbers that 8 divides and 16 does not", "x%s": "multiples of x%s",
    }  # fmt: skip


def test_layers_by_name() -> None:
    assert keep.named_layers(" 1, 6,7", 8) == [1, 6, 7]
    for text, problem in (
        ("3,3", "names layer 3 twice"), ("3, 03", "layer 3 twice"), ("8", "does not name layers"),
        ("x", "does not name"), (",", "does not name"), ("0,1,2", "leaves no layer"),
    ):  # fmt: skip
        with pytest.raises(PrunescopeError, match=problem):
            keep.named_layers(text, 3 if "leaves" in problem else 8)


def test_three_kv_heads_are_coarse() -> None:
    # 3*0.75 = 2.25 and 3*0.625 = 1.875 both round to 2
    assert [keep.kept_kv_heads(3, s) for s in (0.0, 0.25, 0.375, 0.75, 0.99)] == [3, 2, 2, 1, 1]
    assert keep.kept_kv_heads(3, 0.375, "paper") == 1
    with pytest.raises(PrunescopeError, match="0 heads"):
        keep.kept_kv_heads(3, 0.75, "paper")
    with pytest.raises(PrunescopeError, match="rounding"):
        keep.kept_kv_heads(3, 0.75, "up")


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 1.5, float("nan"), float("inf")])
def test_a_sparsity_outside_the_range_is_refused(sparsity: float) -> None:
    with pytest.raises(PrunescopeError):
        keep.check_sparsity(sparsity)


def test_impossible_requests() -> None:
    with pytest.raises(PrunescopeError, match=r"0\.5"):
        checked(0.25)
    with pytest.raises(PrunescopeError, match="saves nothing"):
        keep.low_rank(64, 128, 0.01)  # int(42.2) -> 48, break-even 42.7
    assert keep.low_rank_or_dense(64, 128, 0.01) is None
    with pytest.raises(PrunescopeError) as none_left:
        keep.low_rank(576, 1536, 0.999)  # int(0.419) = 0 of 418.9
    assert "--sparsity 0.997 is the most" in none_left.value.hint
    assert keep.low_rank(576, 1536, 0.997) == 16
    with pytest.raises(PrunescopeError, match="leaves 0"):
        keep.kept_intermediate(10, 0.95)


@given(st.integers(16, 20_000), st.floats(0, 0.9))
def test_kept_channels_are_aligned_and_close(total: int, sparsity: float) -> None:
    kept = keep.kept_intermediate(total, sparsity)
    assert 0 < kept <= total
    assert kept % 16 == 0 or kept == total
    assert kept - total * (1 - sparsity) < 16 + 1e-6


@given(st.integers(1, 128), st.floats(0, 0.999))
def test_heads_never_vanish(heads: int, sparsity: float) -> None:
    assert 1 <= keep.kept_kv_heads(heads, sparsity) <= heads


@given(st.integers(16, 9_000), st.integers(16, 9_000), st.floats(0.0, 0.99))
def test_a_rank_that_is_given_saves(n: int, k: int, sparsity: float) -> None:
    rank = keep.low_rank_or_dense(n, k, sparsity)
    assert rank is None or rank * (n + k) < n * k


def test_groups_of_experts_keep_as_many_each() -> None:
    """Of 16 experts in 4 groups 11 would stay; 2.75 of a group are 3, so 12.

    A token that opens two groups for 4 experts needs 2 of each; one ranked by its two best has two.
    """
    groups = {"groups": 4, "open_groups": 2, "ranked_by": 2}
    assert keep.kept_experts(16, 4, 0.3) == 11
    assert [keep.kept_experts(16, 4, s, **groups) for s in (0, 0.3, 0.5, 0.9)] == [16, 12, 8, 8]
    assert keep.kept_experts(256, 8, 0.99, groups=8, open_groups=4, ranked_by=2) == 16
    assert keep.kept_experts(16, 2, 0.9, groups=4, open_groups=2, ranked_by=1) == 4
    assert keep.kept_experts(16, 4, 0.5, groups=4, open_groups=1) == 16  # a group has to serve all
