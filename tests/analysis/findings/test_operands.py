"""GEMMs in kernels whose names say that their operands are not aligned, and those that are none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from prunescope.analysis.pipeline import analyze
from prunescope.analysis.schema.report import Finding, Phase, Report
from tests.chrome import Op, chrome, gap, k, op, save, step

ID = "unaligned-operands"
HALF = "cutlass_75_tensorop_bf16_s1688gemm_bf16_256x128_tn_align1"
TF32 = "cutlass_80_tensorop_s1688gemm_256x128_32x3_nn_align1"


def kernel(name: str) -> str:
    return f"void cutlass::Kernel2<{name}>({name}::Params)"


def of(phase: Phase) -> Finding | None:
    return next((f for f in phase.findings if f.id == ID), None)


def told(tmp_path: Path, gemm: Op, idle_us: float = 0) -> Finding | None:
    trace = chrome(step(0, gemm, gap(us=idle_us), gemm), step(1, gemm, gap(us=idle_us), gemm))
    return of(analyze(save(trace, tmp_path / "t.json")).report.phases["trace"])


def mm(name: str, n: int = 1027, dtype: str = "c10::BFloat16") -> Op:
    return op("aten::mm", [512, 1024], [1024, n], dtype=dtype,
              kernels=[k(us=100, name=kernel(name))])  # fmt: skip


@pytest.mark.parametrize(("name", "dtype"), [(HALF, "c10::BFloat16"), (TF32, "float")])
def test_kernels_for_operands_that_are_not_aligned(name: str, dtype: str, tmp_path: Path) -> None:
    finding = told(tmp_path, mm(name, dtype=dtype))
    assert finding is not None
    assert finding.id == "unaligned-operands"
    assert finding.text.startswith("200.0 µs of GEMM time is in kernels for operands that are not")
    assert finding.evidence == [f"unknown 512×1027×1024 (N = 1027): 200.0 µs, {name}"]
    assert "8 elements of 16 bits" in (finding.change or "")
    assert finding.predicted_ns is None


@pytest.mark.parametrize(
    ("name", "dtype", "odd"), [(HALF, "c10::BFloat16", " (N = 1028)"), (TF32, "float", "")]
)
def test_four_elements_of_32_bits_are_as_many_bytes_as_eight_of_16(
    name: str, dtype: str, odd: str, tmp_path: Path
) -> None:
    finding = told(tmp_path, mm(name, 1028, dtype))
    assert finding is not None
    assert finding.evidence[0].startswith(f"unknown 512×1028×1024{odd}: ")


def test_of_a_graph_without_ops_the_name_is_enough(tmp_path: Path) -> None:
    replayed = op("CompiledFunction", kernels=[k(us=100, name=kernel(TF32))])
    finding = told(tmp_path, replayed)
    assert finding is not None
    assert finding.evidence == [f"200.0 µs, {TF32}"]


@pytest.mark.parametrize(
    ("name", "idle_us"),
    [
        (TF32.replace("align1", "align4"), 0),
        (TF32.replace("align1", "align16"), 0),
        ("cutlass_80_simt_sgemm_128x32_8x5_nn_align1", 0),  # of CUDA cores all do
        ("ampere_bf16_s16816gemm_bf16_128x64_ldg8_f2f_stages_64x3_tn", 0),
        (HALF, 10_000),  # 200 of 10,200 us: less than 2 % of the step
    ],
)
def test_no_kernel_for_aligned_operands_or_of_little_time(
    name: str, idle_us: float, tmp_path: Path
) -> None:
    assert told(tmp_path, mm(name), idle_us) is None, "unaligned-operands"


@pytest.mark.parametrize(
    ("name", "said"),
    [("a100_training_graphs_nccl", "19.8"), ("h100_owlv2-large", "229.6"),
     ("h100_vit", None), ("h100_qwen1.5-0.5b_prefill", None)],
)  # fmt: skip
def test_real_traces(name: str, said: str | None, real_report: Callable[[str], Report]) -> None:
    """The sum of the rows of align1 kernels, of 215 and of 1,078 ms."""
    finding = of(real_report(f"{name}.json.gz").phases["trace"])
    assert (finding is None) is (said is None)
    if finding is not None and said is not None:
        assert finding.text.startswith(said)
