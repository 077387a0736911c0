"""What grids and names of kernels say of M, of N and of heads."""

from __future__ import annotations

import pytest

from prunescope.analysis.shapes.config_evidence import (
    NamedSizes,
    attention_grid_contradictions,
    attention_name_contradictions,
    named_size_contradictions,
    off_the_tiles,
    peak_contradictions,
    read_named_sizes,
)
from prunescope.analysis.shapes.counts import Count, RowCounts, rows_by_tokens
from prunescope.analysis.shapes.grids import holds, meet, only, rows_of, widths_of
from prunescope.analysis.shapes.items import ATTENTION, Item, Placed
from prunescope.analysis.shapes.slots import GEMM, Slot
from prunescope.analysis.wording.sentence import sentence
from prunescope.taxonomy.presets import preset_config
from prunescope.taxonomy.shape import ModelShape

QWEN = ModelShape.from_config(preset_config("qwen1.5-0.5b"))  # 24 layers, 1024, 2816, 16 heads
QWEN3 = ModelShape.from_config(preset_config("qwen3-8b"))  # 36 layers, 8 of 32 heads are keys
SGEMM = "ampere_sgemm_128x64_tn"
FOLDED = (
    "void cutlass::Kernel2<cutlass_80_wmma_tensorop_bf16_s161616gemm_bf16_16x16_128x1_tn_align8>"
)
NVJET = "nvjet_tst_64x64_64x16_2x1_2cta_v_bz_bias_TNT"
TENSILE = "Cijk_Alik_Bljk_BBS_BH_Bias_HA_S_SAV_UserArgs_MT320x224x64_MI16x16x1_SN"


# Kernel, grid, N and M as public traces have them.
@pytest.mark.parametrize(
    ("kernel", "grid", "n", "m", "rows", "widths"),
    [
        (SGEMM, (64, 16, 1), 8192, 1024, ((961, 1024),), ((8065, 8192),)),
        (SGEMM, (16, 16, 2), 2048, 1024, ((961, 1024),), ((1921, 2048),)),  # K in two parts
        (FOLDED, (8, 48, 1), 6144, 3, ((1, 16),), ((6017, 6144),)),  # 384 tiles by 8, one by ⌈1/8⌉
        (NVJET, (140, 1, 1), 640, 888, ((769, 896),), ((513, 640),)),  # whole clusters of two
        (TENSILE, (897, 1, 1), 4096, 15360, ((15233, 15456),), ((3841, 4160),)),
    ],
)  # fmt: skip
def test_a_grid_bounds_the_other_side(
    kernel: str, grid: tuple[int, ...], n: int, m: int, rows: object, widths: object
) -> None:
    allowed = rows_of(n, kernel, grid, sm=132)
    assert holds(allowed, m) and allowed == rows
    assert widths_of(m, kernel, grid, sm=132) == widths


def test_a_grid_that_tells_nothing_and_one_that_no_m_fits() -> None:
    assert rows_of(4096, "some_gemm", (32, 8, 1), sm=132) is None
    assert rows_of(640, NVJET, (140, 1, 2), sm=132) is None  # K may be split
    assert rows_of(640, NVJET, (132, 1, 1), sm=132) is None  # workers
    assert rows_of(4096, SGEMM, (64, 16, 1), sm=132) == ()


@pytest.mark.parametrize(
    ("a", "b", "both"),
    [
        (((1, 64),), ((33, 96),), ((33, 64),)),
        (None, ((1, 2),), ((1, 2),)),
        (((1, 2),), ((3, 4),), ()),
    ],
)  # fmt: skip
def test_grids_meet(a: object, b: object, both: object) -> None:
    assert meet(a, b) == both  # type: ignore[arg-type]
    assert only(((7, 7),)) == 7 and only(((7, 8),)) is None and only(None) is None


def tokens(kind: str, blocks: int, times: int) -> list[Count]:
    return [Count(kind, at, blocks) for at in range(times)]


def test_two_kinds_of_kernels_that_run_a_block_a_token_tell_m() -> None:
    norms = tokens("norm", 888, 72) + tokens("norm", 888 * 32, 36)  # of queries too
    assert rows_by_tokens(norms, 36) is None
    assert rows_by_tokens(norms + tokens("rope", 888, 36), 36) == 888
    assert rows_by_tokens(norms + tokens("rope", 888, 5), 36) is None
    ambiguous = tokens("rope", 888, 36) + tokens("cache", 888 * 32, 36)
    assert rows_by_tokens(norms + ambiguous, 36) is None


def elementwise(kind: str, elements: int, times: int) -> list[Count]:
    return [Count(kind, at, -(-elements // 512), 512) for at in range(times)]


def test_residual_adds_and_activations_tell_m_together() -> None:
    adds, active = elementwise("adds", 8944 * 1024, 48), elementwise("activations", 8944 * 2816, 24)
    assert only(RowCounts(adds + active, QWEN, 1).allowed) == 8944
    assert RowCounts(adds, QWEN, 1).allowed is None
    assert RowCounts(adds + active, QWEN, 1).contradictions(8944) == []
    (said,) = RowCounts(adds + active, QWEN, 1).contradictions(8000)
    assert "residual adds have 9,158,656 elements" in sentence(said)
    assert RowCounts(adds + active, QWEN, 1).width(8944) is None
    narrow = elementwise("activations", 8944 * 2048, 24)
    assert RowCounts(adds + narrow, QWEN, 1).width(None) == 2048
    assert RowCounts(narrow, QWEN, 1).width(8944) == 2048
    rotated = elementwise("adds", 8944 * 2048, 48)  # adds of two sizes: which are the residual's?
    assert RowCounts(adds + rotated + active, QWEN, 1).allowed is None


def attention(name: str, grid: tuple[int, ...] | None = None) -> Item:
    return Item(row=0, step=0, form=ATTENTION, name=name, grid=grid, ns=1, role="attention",
                layer=None, instance=0, kind="attention")  # fmt: skip


LL4MI = (
    "void paged_attention_ll4mi_QKV_mfma16_kernel<0, __hip_bfloat16, __hip_bfloat16, (vllm::Fp8KV"
    "CacheDataType)0, 1, {}, 256, false, {}, 1, ck_tile::ComposedAttention<0u, false> >"
)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (LL4MI.format(128, 4), None),
        (LL4MI.format(64, 4), "heads of 64"),
        (LL4MI.format(128, 8), "8 query heads a key"),
        ("flash_fwd_kernel<Flash_fwd_kernel_traits<128, 64, 64, 4>", None),
        ("flash_fwd_kernel<Flash_fwd_kernel_traits<192, 64, 64, 4>", None),  # 128 is above its half
        ("flash_fwd_kernel<Flash_fwd_kernel_traits<96, 64, 64, 4>", "heads of 96"),
        ("fmhaSm100aKernel_QkvE4m3OBfloat16H192PagedKvCausalP16", "heads of 192"),
    ],
)
def test_the_name_of_an_attention_kernel_tells_heads(name: str, said: str | None) -> None:
    notices = attention_name_contradictions([attention(name)], QWEN3)
    assert notices == [] if said is None else said in sentence(notices[0])


def test_the_grid_of_an_attention_counts_heads() -> None:
    flash, efficient = (
        "pytorch_flash::flash_fwd_kernel<",
        "fmha_cutlassF_bf16_aligned_64x64_rf_sm80",
    )
    assert attention_grid_contradictions([attention(flash, (5, 16, 32))], QWEN3, 1) == []
    assert attention_grid_contradictions([attention(flash, (5, 16, 32))], QWEN3, 2) != []
    assert attention_grid_contradictions([attention(efficient, (4, 32, 4))], QWEN3, 1) == []
    assert attention_grid_contradictions([attention(efficient, (4, 8, 4))], QWEN3, 1) != []


def test_names_of_cache_and_norm_kernels_tell_widths() -> None:
    named = read_named_sizes(["void (anonymous namespace)::store_kvcache<2048l, 4, false, long>",
                      "_ZN5aiter24add_rmsnorm_quant_kernelIDF16bDF16bLi256ELi16ELb1ELb0E",
                      "_ZN5aiter24add_rmsnorm_quant_kernelIDF16bDF16bLi64ELi8ELb0E"])  # fmt: skip
    assert named == NamedSizes(cached=2048, norm=4096)
    assert named_size_contradictions(named, QWEN3, 1) == []  # 8 keys of 128 numbers of 2 bytes
    assert named_size_contradictions(named, QWEN3, 8) != []
    assert named_size_contradictions(NamedSizes(norm=2048), QWEN3, 1) != []
    assert (
        named_size_contradictions(NamedSizes(cached=1024), QWEN3, 1) == []
    )  # of one byte, as far as is known
    plain = read_named_sizes(["store_kvcache<1024l, 4, false, long>", LL4MI.format(128, 4)])
    assert named_size_contradictions(plain, QWEN3, 1) != []


@pytest.mark.parametrize(
    ("widths", "said"),
    [
        ({1152: 9, 896: 7, 7296: 57}, None),
        ({1152: 9, 896: 7, 7168: 57}, "N = 7,168 has 56 tiles of 128×128, and 57 blocks"),
        ({1152: 18, 896: 14, 7168: 114}, "has 112 tiles"),  # two along M
        ({1152: 9, 896: 7, 8000: 57}, "has 63 tiles"),  # the head launches more than 57
        ({1152: 9, 896: 7, 200_000: 1187}, None),  # as many workers as the device holds
        ({1152: 9, 7168: 57}, None),  # which of the two is off?
    ],
)
def test_blocks_that_are_not_the_tiles_of_a_width(widths: dict[int, int], said: str | None) -> None:
    kernel = "sm90_xmma_gemm_bf16_tilesize128x128x64_warpgroupsize1x1x1_execute_segment_k_off_k"

    def placed(role: str, n: int, blocks: int) -> Placed:
        item = Item(row=0, step=0, form=GEMM, name=kernel, grid=(blocks, 1, 1), ns=1, role=role,
                    layer=0, instance=0, kind="gemm")  # fmt: skip
        return Placed(item, Slot(role, n, 896), 0)

    gemms = [placed(f"linear {n}", n, blocks) for n, blocks in widths.items()]
    notices = off_the_tiles([*gemms, placed("lm_head", 151_936, 1187)])
    assert notices == [] if said is None else len(notices) == 1 and said in sentence(notices[0])


@pytest.mark.parametrize(
    ("kernel", "contradicts"),
    [("ampere_gemm", True), ("void mul_mat_vec_q<(ggml_type)12, 1, false>(const void *)", False)],
)
def test_bytes_of_quantised_weights_are_not_those_of_the_config(
    kernel: str, contradicts: bool
) -> None:
    """128 MB at 2 bytes a weight in 20 µs: 6,711 GB/s of 3,350, which 4.5 bits keep."""
    item = Item(0, 0, GEMM, kernel, None, 20_000, "up", 0, 0, "gemv")
    sentences = peak_contradictions(
        [Placed(item, Slot("up", 16_385, 4_096), 0)],
        None,
        flop_per_s=None,
        byte_per_s=3.35e12,
        itemsize=2,
    )
    assert bool(sentences) == contradicts
