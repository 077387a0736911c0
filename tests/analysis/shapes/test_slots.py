"""The GEMMs that a config predicts, and which kernel of a layer runs which of them."""

from __future__ import annotations

import pytest

from prunescope.analysis.schema.notice import Notice
from prunescope.analysis.shapes.items import Item
from prunescope.analysis.shapes.layer_match import LayerMatch, match_layer
from prunescope.analysis.shapes.slots import (
    GEMM,
    GROUPED,
    expert_slots,
    formats,
    layer_ways,
    role_slots,
)
from prunescope.taxonomy.presets import preset_config
from prunescope.taxonomy.shape import ModelShape


def shape_of(preset: str) -> ModelShape:
    return ModelShape.from_config(preset_config(preset))


def widths(preset: str, ranks: int = 1) -> dict[str, tuple[int, int]]:
    return {role: (s.n, s.k) for role, s in role_slots(shape_of(preset), ranks).items()}


def item(name: str, form: str = GEMM) -> Item:
    return Item(row=0, step=0, form=form, name=name, grid=None, ns=1, role="unknown", layer=None,
                instance=0, kind="gemm")  # fmt: skip


def test_fused_and_single_projections_of_grouped_queries() -> None:
    told = widths("qwen3-8b")
    assert told["q"] == (4096, 4096) and told["k"] == told["v"] == (1024, 4096)
    assert told["qkv"] == (6144, 4096)  # 32 + 2 · 8 heads of 128
    assert told["gate_up"] == (24576, 4096) and told["down"] == (4096, 12288)


def test_latent_attention_goes_through_its_ranks() -> None:
    told = widths("deepseek-v2-lite")
    assert told["kv_a"] == (576, 2048)  # rank 512 and 64 that carry positions
    assert told["kv_b"] == (4096, 512)  # 16 heads of 128 + 128
    assert told["q"] == (3072, 2048)  # 16 heads of 128 + 64


def test_ranks_share_rows_of_some_matrices_and_columns_of_others() -> None:
    told = widths("gpt-oss-120b", ranks=8)
    assert told["qkv"] == (640, 2880)  # 8 query heads and one key and value of 64
    assert told["o"] == (2880, 512) and told["router"] == (128, 2880)
    assert told["lm_head"] == (25136, 2880)  # 201,088 rows, over 8


def test_keys_of_fewer_heads_than_ranks_are_there_more_than_once() -> None:
    told = widths("qwen3-8b", ranks=16)
    assert told["k"] == (128, 4096) and told["q"] == (256, 4096)
    assert told["qkv"] == (512, 4096)


def test_experts_are_two_products_of_one_expert_each() -> None:
    up, down = expert_slots(shape_of("mixtral-8x7b"))
    assert (up.n, up.k) == (28672, 4096) and (down.n, down.k) == (4096, 14336)


def test_adapters_next_to_the_matrices_are_left_out() -> None:
    ways = layer_ways(shape_of("qwen3-8b"))
    sizes = {"o": 16.8, "gate": 50.3, "up": 50.3, "down": 50.3, "q": 16.8, "k": 4.2, "v": 4.2}
    names, times = [], []
    for role, size in sizes.items():
        names += [role, f"{role}.a", f"{role}.b"]
        times += [3 * size, 4.0, 4.0]
    told = match_layer([item(name) for name in names], times, ways)
    assert isinstance(told, LayerMatch)
    placed = {n: slot.role for n, slot in zip(names, told.slots, strict=True) if slot is not None}
    assert placed == {role: role for role in sizes}
    assert told.explained > 0.8


def test_a_choice_that_times_do_not_decide_is_refused() -> None:
    ways = layer_ways(shape_of("qwen3-8b"))
    times = [50.0, 150.0, 150.0, 150.0, 50.0, 12.0, 12.0, 12.0]  # one more like k and v
    told = match_layer([item(f"g{n}") for n in range(8)], times, ways)
    assert isinstance(told, Notice)


def test_too_few_kernels_are_refused_with_both_counts() -> None:
    told = match_layer([item("a"), item("b")], [1.0, 1.0], layer_ways(shape_of("qwen3-8b")))
    assert isinstance(told, Notice)
    assert (told.numbers["gemms"], told.numbers["config"]) == (2, [4, 5, 6, 7])


def test_experts_are_grouped_kernels() -> None:
    ways = layer_ways(shape_of("gpt-oss-120b"), 8, experts=True)
    names = [("o", GEMM), ("router", GEMM), ("up", GROUPED), ("down", GROUPED), ("qkv", GEMM)]
    told = match_layer([item(n, form) for n, form in names], [6.0, 6.0, 100.0, 57.0, 8.0], ways)
    assert isinstance(told, LayerMatch)
    roles = [slot.role for slot in told.slots if slot is not None]
    assert roles == ["o", "router", "experts", "experts", "qkv"]


@pytest.mark.parametrize(
    ("kernel", "told"),
    [
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n", ("bf16", "bf16")),
        ("marlin::Marlin<__nv_bfloat16, 4>", ("bf16", "fp4")),
        ("nvjet_qqtst_128x64_e4m3", ("fp8", "fp8")),
        ("bmm_MxE4m3_MxE2m1MxE4m3_Fp32_t128x16x256", ("fp8", "fp4")),
        ("a_gemm", ("bf16", "bf16")),
    ],
)
def test_formats_come_from_the_kernels_name(kernel: str, told: tuple[str, str]) -> None:
    assert formats(kernel, "bf16") == told
