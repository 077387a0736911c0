"""Tiles by name, orientation by grid, waves by residency: each number as a sum in a comment."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from prunescope.analysis.device.hardware import Device
from prunescope.analysis.device.tiles import (
    Launch,
    Tile,
    grid_in_blocks,
    resident_blocks,
    shape_loss,
    tile_of,
    wave_model,
)
from prunescope.taxonomy.gemm import Gemm

SM132 = Device(
    name="test", vendor="nvidia", dense_flop_per_s={}, byte_per_s=None, source="test", sm=132,
    max_threads_per_sm=2048, registers_per_sm=65536, shared_bytes_per_sm=233472,
    max_blocks_per_sm=32, warp=32,
)  # fmt: skip
XMMA = "sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize{}_warpgroupsize1x1x1_execute_segment"
CUTLASS = "void cutlass::Kernel2<cutlass_{0}>(cutlass_{0}::Params)"


@pytest.mark.parametrize(
    ("name", "tile"),
    [
        (XMMA.format("128x64x64"), Tile(128, 64, 64)),
        ("sm80_xmma_sparse_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64_stage3_warpsize2x2x1"
         "_sptensor16x8x32_kernel", Tile(128, 128, 64)),
        ("nvjet_tst_128x256_64x4_1x2_h_bz_coopA_NTN", Tile(128, 256, 64, (1, 2))),
        ("nvjet_tst_64x64_64x16_2x1_2cta_v_bz_bias_TNT", Tile(64, 64, 64, (2, 1))),
        ("nvjet_hsh_192x8_64x8_4x1_v_bz_splitK_TNT", Tile(192, 8, 64, (4, 1))),
        (CUTLASS.format("80_wmma_tensorop_bf16_s161616gemm_bf16_16x16_128x2_tn_align8"),
         Tile(16, 16, 128)),
        (CUTLASS.format("80_tensorop_bf16_s16816gemm_relu_bf16_128x64_64x6_tn_align8"),
         Tile(128, 64, 64)),
        (CUTLASS.format("75_tensorop_bf16_s1688gemm_bf16_256x128_tn_align1"), Tile(256, 128)),
        (CUTLASS.format("80_simt_sgemm_128x32_8x5_nn_align1"), Tile(128, 32, 8)),
        ("void cutlass::device_kernel<cutlass3x_sm90_tensorop_s64x128x16gemm_bf16_bf16_f32_bf16"
         "_bf16_128x256x64_2x1x1_0_tnn_align8_warpspecialized_pingpong_epi_tma>",
         Tile(128, 256, 64, (2, 1))),
        ("cutlass3x_sm100_tensorop_s128x64x16gemm_bf16_bf16_f32_void_bf16_128x64x64_0_tnn_align8",
         Tile(128, 64, 64)),
        ("ampere_bf16_s16816gemm_bf16_128x64_ldg8_f2f_stages_64x3_tn", Tile(128, 64, 64)),
        ("ampere_fp16_s16816gemm_fp16_256x128_ldg8_relu_f2f_stages_32x3_tn", Tile(256, 128, 32)),
        ("volta_sgemm_32x128_nt", Tile(32, 128)),
        ("ampere_sgemm_32x32_sliced1x4_tn", Tile(32, 32)),
        ("Cijk_Alik_Bljk_BBS_BH_Bias_HA_S_SAV_UserArgs_MT320x224x64_MI16x16x1_SN_LDSB0",
         Tile(320, 224, 64)),
        ("void gemv2T_kernel_val<int, int, __nv_bfloat16, 128, 16, 4, 4>", None),
        ("void cublasLt::splitKreduce_kernel<32, 16, int>", None),
        ("tilesize0x0x64", None),
        ("", None),
    ],
)  # fmt: skip
def test_tile_by_name(name: str, tile: Tile | None) -> None:
    assert tile_of(name) == tile


def test_the_grid_tells_the_orientation() -> None:
    # 5184 x 768 with 256 x 128: rows along M 21·6 = 126, along N 3·41 = 123
    gemm, tile = Gemm(5184, 768, 1024), Tile(256, 128, 64)
    straight = wave_model(gemm, tile, Launch((126, 1, 1)), None)
    swapped = wave_model(gemm, tile, Launch((123, 1, 1)), None)
    assert straight is not None
    assert swapped is not None
    assert (straight.fit, straight.swapped, straight.tiles) == ("exact", False, 126)
    assert (swapped.fit, swapped.swapped, swapped.tiles) == ("exact", True, 123)
    # 5184·768 / (126·256·128) and / (123·256·128)
    assert straight.tile_efficiency == pytest.approx(0.964286, abs=1e-6)
    assert swapped.tile_efficiency == pytest.approx(0.987805, abs=1e-6)
    assert (straight.waves, straight.wave_efficiency, straight.resident) == (None, None, None)


def test_fewer_blocks_than_tiles_are_persistent_and_column_major() -> None:
    # 8944 x 1024 with 128 x 128: 8·70 = 560 tiles on 132 SMs, 4.2424 waves of 5
    launch = Launch((30, 4, 1), (384, 1, 1), 168, 231424)
    estimate = wave_model(Gemm(8944, 1024, 1024), Tile(128, 128, 64), launch, SM132)
    assert estimate is not None
    assert (estimate.fit, estimate.swapped, estimate.resident) == ("persistent", True, 1)
    assert estimate.waves == pytest.approx(560 / 132)
    assert estimate.wave_efficiency == pytest.approx(560 / 132 / 5)
    assert estimate.tile_efficiency == pytest.approx(8944 * 1024 / (560 * 128 * 128))
    loss = shape_loss(estimate)
    assert loss == pytest.approx(1 / (560 / 132 / 5) / (8944 * 1024 / (560 * 128 * 128)))


@pytest.mark.parametrize(
    ("gemm", "tile", "grid", "fit", "tiles", "split"),
    [
        # 41·21 = 861 tiles a matrix; a swizzle of 8 makes 41·8 by ⌈21/8⌉ = 984 blocks
        (Gemm(5185, 5185, 64, batch=16), Tile(256, 128), (328, 3, 16), "padded", 13776, 1),
        # ⌈25136/192⌉ = 131 tiles, in clusters of 4: 132 blocks
        (Gemm(1, 25136, 2880), Tile(192, 8, 64, (4, 1)), (132, 1, 1), "padded", 131, 1),
        # 12 tiles, swizzled to 16, five parts of K
        (Gemm(5, 768, 3072), Tile(64, 64, 64), (8, 2, 5), "padded", 60, 5),
        # 8·8 tiles, four parts of K along z
        (Gemm(512, 512, 8192), Tile(64, 64), (8, 8, 4), "split", 256, 4),
        # 8·8 tiles, four parts of K in a grid of one dimension
        (Gemm(512, 512, 8192), Tile(64, 64), (256, 1, 1), "split", 256, 4),
        (Gemm(788, 768, 3072), Tile(128, 64), (98, 1, 1), "unexplained", 78, 1),
    ],
)
def test_how_tiles_explain_a_grid(
    gemm: Gemm, tile: Tile, grid: tuple[int, ...], fit: str, tiles: int, split: int
) -> None:
    estimate = wave_model(gemm, tile, Launch(grid), None)
    assert estimate is not None
    assert (estimate.fit, estimate.tiles, estimate.split_k) == (fit, tiles, split)
    assert 0 < estimate.tile_efficiency <= 1


def test_full_waves_lose_nothing() -> None:
    # 16·33 = 528 tiles, 2 blocks on each of 132 SMs: two whole waves
    launch = Launch((528, 1, 1), (256, 1, 1), 128, 0)
    estimate = wave_model(Gemm(16 * 64, 33 * 64, 64), Tile(64, 64), launch, SM132)
    assert estimate is not None
    assert (estimate.resident, estimate.waves, estimate.wave_efficiency) == (2, 2.0, 1.0)
    assert shape_loss(estimate) == 1.0


@pytest.mark.parametrize(
    ("threads", "registers", "shared", "blocks"),
    [
        (1024, 32, 0, 2),  # threads: 2048 / 1024
        (256, 128, 0, 2),  # registers: 65536 / (8 warps · 32·128)
        (128, 252, 32768, 2),  # 65536 / (4 warps · 8192: 252·32 = 8064 in units of 256) = 2
        (128, 100, 98304, 2),  # shared: 233472 / (98304 + 1024 reserved)
        (32, 16, 0, 32),  # the block limit
        (384, 168, 231424, 1),
    ],
)
def test_residency_is_the_least_of_the_limits(
    threads: int, registers: int, shared: int, blocks: int
) -> None:
    assert resident_blocks(Launch((1,), (threads, 1, 1), registers, shared), SM132) == blocks


def test_residency_is_unknown_without_launch_or_limits() -> None:
    launch = Launch((1,), (128, 1, 1), 32, 0)
    assert resident_blocks(launch, None) is None
    assert resident_blocks(replace(launch, registers=None), SM132) is None
    assert resident_blocks(launch, replace(SM132, registers_per_sm=None)) is None


def test_work_items_are_not_blocks() -> None:
    assert grid_in_blocks((16384, 3, 2), (256, 1, 1)) == (64, 3, 2)
    assert grid_in_blocks((100,), (64, 1, 1)) == (2,)


def test_nothing_to_estimate() -> None:
    assert wave_model(Gemm(0, 8, 8), Tile(64, 64), Launch((1,)), None) is None
    assert wave_model(Gemm(8, 8, 8), Tile(64, 64), Launch((0, 1, 1)), None) is None
    assert shape_loss(None) is None
