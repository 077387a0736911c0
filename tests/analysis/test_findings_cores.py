"""GEMMs on CUDA cores are named with the reason; those on tensor cores are not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from analysis.pipeline import analyze
from analysis.report.model import Finding
from tests.chrome import chrome, k, op, save, step

SIMT = ("void cutlass::Kernel2<cutlass_80_simt_sgemm_128x32_8x5_nn_align1>"
        "(cutlass_80_simt_sgemm_128x32_8x5_nn_align1::Params)")  # fmt: skip


def told(tmp_path: Path, name: str, n: int = 64, dtype: str = "float") -> Finding | None:
    gemm = op("aten::mm", [512, 64], [64, n], dtype=dtype, kernels=[k(us=5, name=name)])
    report = analyze(save(chrome(step(0, gemm), step(1, gemm)), tmp_path / "t.json")).report
    findings = report.phases["trace"].findings
    return next((f for f in findings if f.id == "cuda-cores"), None)


@pytest.mark.parametrize(
    ("name", "n", "dtype", "reason", "change"),
    [
        ("volta_sgemm_128x32_nt", 64, "float", "not a 16-bit format", "TF32"),
        (SIMT, 64, "float", "not a 16-bit format", "TF32"),
        ("volta_hgemm_128x32_nt", 67, "c10::Half", "N = 67 is not aligned", "8 divides"),
        ("volta_hgemm_128x32_nt", 64, "c10::Half", "chosen by the library", "8 divides"),
    ],
)
def test_named(name: str, n: int, dtype: str, reason: str, change: str, tmp_path: Path) -> None:
    finding = told(tmp_path, name, n, dtype)
    assert finding is not None
    assert "5.0 µs run on CUDA cores" in finding.text
    assert reason in finding.evidence[0]
    assert change in (finding.change or "")


@pytest.mark.parametrize(
    "name",
    ["ampere_bf16_s16816gemm_bf16_128x64_ldg8_f2f_stages_64x3_tn", "nvjet_tst_64x64_64x16_2x1_v",
     "cutlass_80_tensorop_s1688gemm_64x64_32x6_tn_align4", "volta_fp16_s884gemm_fp16_128x64_nn",
     "void gemv2T_kernel_val<int, int, float>", "Cijk_Alik_Bljk_SB_MT64x64x16"],
)  # fmt: skip
def test_not_named(name: str, tmp_path: Path) -> None:
    assert told(tmp_path, name) is None


def test_real_traces(real_trace: Callable[[str], Path]) -> None:
    """The V100's linears ran in fp32; the H100's in bf16 on tensor cores."""
    v100 = analyze(real_trace("v100_legacy_graphs.json.gz")).report.phases["trace"]
    (finding,) = [f for f in v100.findings if f.id == "cuda-cores"]
    assert "volta_sgemm" in finding.evidence[0]
    h100 = analyze(real_trace("h100_qwen1.5-0.5b_prefill.json.gz")).report.phases["trace"]
    assert not [f for f in h100.findings if f.id == "cuda-cores"]
