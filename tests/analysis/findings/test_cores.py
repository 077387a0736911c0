"""GEMMs on CUDA cores are named with the reason; those on tensor cores are not."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from prunescope.analysis.pipeline import analyze
from prunescope.analysis.schema.report import Finding, Phase, Report
from prunescope.taxonomy.words import shortened
from tests.chrome import Op, chrome, k, op, save, step

SIMT = ("void cutlass::Kernel2<cutlass_80_simt_sgemm_128x32_8x5_nn_align1>"
        "(cutlass_80_simt_sgemm_128x32_8x5_nn_align1::Params)")  # fmt: skip


FINDING = "cuda-cores"
TF32 = ("void cutlass::Kernel<cutlass_80_tensorop_s1688gemm_128x256_32x3_nn_align1>"
        "(cutlass_80_tensorop_s1688gemm_128x256_32x3_nn_align1::Params)")  # fmt: skip


def phase_of(tmp_path: Path, *items: Op, device: str | None = None) -> Phase:
    trace = chrome(step(0, *items), step(1, *items))
    if device is not None:
        trace["deviceProperties"][0]["name"] = device
    return analyze(save(trace, tmp_path / "t.json")).report.phases["trace"]


def about_cores(phase: Phase) -> Finding | None:
    return next((f for f in phase.findings if f.id == FINDING), None)


def mm(name: str, n: int = 64, dtype: str = "float") -> Op:
    return op("aten::mm", [512, 64], [64, n], dtype=dtype, kernels=[k(us=5, name=name)])


def large(name: str, n: int = 1024, dtype: str = "float", m: int = 2048) -> Op:
    """8.6 GFLOP: 128 us at the 67 TFLOP/s of an H100's CUDA cores."""
    return op("aten::mm", [m, 2048], [2048, n], dtype=dtype, kernels=[k(us=150, name=name)])


def told(
    tmp_path: Path, name: str, n: int = 1024, dtype: str = "float", device: str | None = None
) -> Finding | None:
    return about_cores(phase_of(tmp_path, large(name, n, dtype), device=device))


@pytest.mark.parametrize(
    ("name", "n", "dtype", "reason", "change"),
    [
        ("volta_sgemm_128x32_nt", 1024, "float", "not a 16-bit format", "TF32"),
        (SIMT, 1024, "float", "not a 16-bit format", "TF32"),
        ("volta_hgemm_128x32_nt", 1027, "c10::Half", "N = 1027 is not aligned", "multiples of 8"),
        ("volta_hgemm_128x32_nt", 1024, "c10::Half", "chosen by the library", None),
    ],
)
def test_named(
    name: str, n: int, dtype: str, reason: str, change: str | None, tmp_path: Path
) -> None:
    finding = told(tmp_path, name, n, dtype)
    assert finding is not None
    assert "take 150.0 µs of the busy time run on CUDA cores" in finding.text
    assert reason in finding.evidence[0]
    assert finding.change is None if change is None else change in (finding.change or "")


@pytest.mark.parametrize(
    ("device", "formats"),
    [
        ("NVIDIA A100-SXM4-80GB", "run in bf16 or fp16, or allow TF32"),
        ("Tesla V100-SXM2-16GB", "run in fp16"),
        ("A device of next year", "run in a 16-bit format, or allow TF32"),
    ],
)
def test_no_format_is_advised_that_the_device_lacks(
    device: str, formats: str, tmp_path: Path
) -> None:
    finding = told(tmp_path, "volta_sgemm_128x32_nt", device=device)
    assert finding is not None
    assert finding.id == "cuda-cores"
    assert (finding.change or "").split(" (")[0] == formats


@pytest.mark.parametrize(
    ("device", "rates"),
    [
        ("NVIDIA GeForce RTX 3060", "2 times as fast in bf16 and fp16"),  # 25.5 / 12.7
        ("NVIDIA A100-SXM4-40GB", "16 times as fast in bf16 and fp16, 8 times as fast in tf32"),
    ],
)
def test_how_much_faster_matrix_units_are_is_that_of_the_device(
    device: str, rates: str, tmp_path: Path
) -> None:
    finding = told(tmp_path, "ampere_sgemm_128x64_tn", device=device)
    assert finding is not None
    assert finding.text.endswith(f"; this device's tensor cores multiply {rates}")
    assert ("TF32" in (finding.change or "")) == ("tf32" in rates)


def test_what_waits_for_memory_loses_nothing_on_cuda_cores(tmp_path: Path) -> None:
    """16 rows of 2048 × 1024: 8.4 MB and 67 MFLOP, 5.4 µs and 3.4 µs of an A100."""
    phase = phase_of(tmp_path, large("ampere_sgemm_32x32_tn", m=16), device="NVIDIA A100-SXM4-40GB")
    assert about_cores(phase) is None


def test_of_an_op_without_shapes_only_the_kernel_on_plain_cores_is_named(tmp_path: Path) -> None:
    """No format is known: none is spoken of, and no size is printed that nobody knows."""
    mixed = op("CompiledFunctionBackward",
               kernels=[k(us=50, name=TF32), k(us=5, name="ampere_sgemm_128x64_nn")])  # fmt: skip
    finding = about_cores(phase_of(tmp_path, mixed))
    assert finding is not None
    assert "take 5.0 µs of the busy time run on CUDA cores" in finding.text
    assert finding.evidence == ["ampere_sgemm_128x64_nn: 5.0 µs"]
    assert not re.search("bit|TF32|bf16|fp", finding.change or "")


def test_a_product_on_tensor_cores_is_judged_by_the_peak_of_tf32(tmp_path: Path) -> None:
    """512·64·64 products: 4.2 MFLOP at 156 TFLOP/s, not at 19.5."""
    phase = phase_of(tmp_path, mm(TF32), device="NVIDIA A100-SXM4-80GB")
    (row,) = phase.gemms
    assert row.dtype == "tf32"
    assert (row.ideal_ns or 0) < 2 * 512 * 64 * 64 / 19.5e12 * 1e9


@pytest.mark.parametrize(
    ("name", "dtype", "runs"),
    [
        (TF32, "float", "tf32"),
        ("sm80_xmma_gemm_f32f32_tf32f32_f32_tn_n_tilesize128x128x32_stage3", "float", "tf32"),
        ("cutlass3x_sm90_tensorop_s64x128x8gemm_f32_f32_f32_f32_f32_128x128x32", "float", "tf32"),
        ("ampere_tf32_s1688gemm_128x128_ldg8_stages_32x3_nn", "float", "tf32"),
        (SIMT, "float", "fp32"),
        ("ampere_sgemm_128x64_nn", "float", "fp32"),
        ("triton_tem_fused_mm_3", "float", "fp32"),
        ("cutlass_80_tensorop_bf16_s16816gemm_bf16_64x64", "c10::BFloat16", "bf16"),
    ],
)  # fmt: skip
def test_the_format_that_a_kernel_multiplies_in(
    name: str, dtype: str, runs: str, tmp_path: Path
) -> None:
    assert [g.dtype for g in phase_of(tmp_path, mm(name, dtype=dtype)).gemms] == [runs]


def test_long_names_are_cut_between_words() -> None:
    assert shortened("ampere_sgemm_128x64_nn") == "ampere_sgemm_128x64_nn"
    assert shortened(SIMT, 60) == "void cutlass::Kernel2<cutlass_80_simt_sgemm_128x32_8x5_nn…"
    assert shortened("x" * 100) == "x" * 79 + "…"


@pytest.mark.parametrize(
    "name",
    ["ampere_bf16_s16816gemm_bf16_128x64_ldg8_f2f_stages_64x3_tn", "nvjet_tst_64x64_64x16_2x1_v",
     "cutlass_80_tensorop_s1688gemm_64x64_32x6_tn_align4", "volta_fp16_s884gemm_fp16_128x64_nn",
     "void gemv2T_kernel_val<int, int, float>", "Cijk_Alik_Bljk_SB_MT64x64x16"],
)  # fmt: skip
def test_not_named(name: str, tmp_path: Path) -> None:
    assert "cuda-cores" not in {f.id for f in phase_of(tmp_path, mm(name)).findings}


def test_real_traces(real_report: Callable[[str], Report]) -> None:
    """Only the V100's linears ran on CUDA cores.

    They ran in fp32, without any TF32 to allow; those of the H100 ran in bf16, and most of the
    A100's in TF32, on tensor cores.
    """
    v100 = about_cores(real_report("v100_legacy_graphs.json.gz").phases["trace"])
    assert v100 is not None
    assert all("volta_sgemm" in line and "None" not in line for line in v100.evidence)
    assert "TF32" not in (v100.change or "")
    assert about_cores(real_report("h100_qwen1.5-0.5b_prefill.json.gz").phases["trace"]) is None
    a100 = about_cores(real_report("a100_training_graphs_nccl.json.gz").phases["trace"])
    assert a100 is None or not [line for line in a100.evidence if "tensorop" in line]


def test_fp32_on_tensor_cores_of_a_real_trace(
    real_report: Callable[[str], Report],
) -> None:
    phase = real_report("a100_legacy_flows.json.gz").phases["trace"]
    formats = {(("tensorop" in name), g.dtype) for g in phase.gemms for name in g.kernels[:1]}
    assert formats == {(True, "tf32"), (False, "fp32")}
    assert not [f for f in phase.findings if f.id == "above-peak"]
