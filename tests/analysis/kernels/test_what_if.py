"""Which GEMMs tell what a neighbouring dimension would cost, and the reason where one does not."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prunescope.analysis.pipeline import analyze
from prunescope.analysis.report import measured, phase_tables
from prunescope.analysis.schema.anatomy import Anatomy
from prunescope.analysis.schema.report import Phase, Report
from tests.chrome import Op, chrome, k, op, save, step

TILE = "ampere_bf16_s16816gemm_bf16_128x256_ldg8_f2f_stages_32x3_tn"
BF16 = "c10::BFloat16"
COVER = op("aten::mul", [1 << 20], [1 << 20], kernels=[k(us=300, stream=9)])


def phase_of(tmp_path: Path, *items: Op) -> Phase:
    trace = chrome(step(0, *items), step(1, *items))
    trace["deviceProperties"][0]["name"] = "NVIDIA RTX PRO 6000 Blackwell Workstation Edition"
    return analyze(save(trace, tmp_path / "t.json")).report.phases["trace"]


def anatomy_of(phase: Phase) -> Anatomy:
    assert phase.anatomy is not None
    return phase.anatomy


def mm(n: int, inner: int = 4096, *, gap_us: float = 0, **launch: Any) -> Op:
    """4096 rows in tiles of 256 x 128, a block of 96 KiB on each of 188 SMs; 400 us."""
    tiles = 32 * -(-n // 256)
    sizes = {"registers": 128, "shared": 98304, **launch}
    kernel = k(us=400, name=TILE, grid=(tiles, 1, 1), block=(256, 1, 1), gap_us=gap_us, **sizes)
    return op("aten::mm", [4096, inner], [inner, n], dtype=BF16, kernels=[kernel])


def test_a_gemm_that_ran_in_part_under_another_kernel_claims_nothing(tmp_path: Path) -> None:
    """Of 400 us 150 run under an elementwise kernel: 250 count."""
    alone = anatomy_of(phase_of(tmp_path, mm(4096)))
    found = anatomy_of(phase_of(tmp_path, COVER, mm(2944, 3435, gap_us=-150), mm(4096)))
    shapes = {(s.axis, s.n): s for s in found.shapes}
    for axis in ("N", "K"):
        shape = shapes[axis, 2944]
        assert (shape.refused or "").startswith("hidden in part under other kernels")
        assert (shape.below, shape.above, shape.curve) == (None, None, [])
    assert shapes["N", 4096].refused is None
    assert found.fit == alone.fit


def test_a_gemm_that_begins_first_is_no_hidden_one(tmp_path: Path) -> None:
    under = op("aten::mul", [1 << 20], [1 << 20], kernels=[k(us=300, stream=9, gap_us=-300)])
    (shape,) = anatomy_of(phase_of(tmp_path, mm(2944), under)).shapes
    assert shape.refused is None
    assert shape.below is not None


def test_the_fit_is_of_the_time_that_kernels_ran(tmp_path: Path) -> None:
    """Three calls, of which one has 1 us under the kernel before: less than a hundredth of all."""
    calls = mm(4096), mm(4096), mm(4096)
    apart = anatomy_of(phase_of(tmp_path, *calls)).fit
    near = anatomy_of(phase_of(tmp_path, COVER, mm(4096, gap_us=-1), *calls[1:])).fit
    assert apart is not None
    assert near == apart


def test_a_trace_without_registers_says_that_they_are_what_is_missing(
    tmp_path: Path, real_report: Callable[[str], Report]
) -> None:
    trace = chrome(step(0, mm(4096)), step(1, mm(4096)))
    for event in trace["traceEvents"]:
        event["args"].pop("registers per thread", None)
    found = analyze(save(trace, tmp_path / "t.json")).report.phases["trace"]
    (shape,) = anatomy_of(found).shapes
    assert (shape.refused or "").startswith("the trace holds no registers or shared memory")
    for name in ("mi300x_compile_triton", "mi300x_sglang_qwen3-8b_prefilldecode"):
        phase = real_report(f"{name}.json.gz").phases["trace"]
        told = {s.refused for s in anatomy_of(phase).shapes if s.role != "attention"}
        assert told == {shape.refused}
        assert phase_tables.shapes_table(phase) is None
        (line,) = [x for x in measured.idle_and_tiles(phase) if x.startswith("no nearest good dim")]
        assert shape.refused in line


def test_a_device_without_limits_or_peaks_says_so(tmp_path: Path) -> None:
    trace = chrome(step(0, mm(4096)), step(1, mm(4096)))
    trace["deviceProperties"] = []
    found = analyze(save(trace, tmp_path / "t.json")).report.phases["trace"]
    (shape,) = anatomy_of(found).shapes
    assert shape.refused == "how many tiles run at a time on this device is not known"


@pytest.mark.parametrize("tiles", [512, 513])
def test_the_sentence_is_there_only_where_no_table_is(tiles: int, tmp_path: Path) -> None:
    kernel = k(us=400, name=TILE, grid=(tiles, 1, 1), block=(256, 1, 1), registers=128,
               shared=98304)  # fmt: skip
    gemm = op("aten::mm", [4096, 4096], [4096, 4096], dtype=BF16, kernels=[kernel])
    phase = phase_of(tmp_path, gemm)
    said = [x for x in measured.idle_and_tiles(phase) if x.startswith("no nearest good dimensions")]
    shown = phase_tables.shapes_table(phase) is not None
    assert shown is (tiles == 512)
    assert len(said) == (tiles == 513)
    if said:
        assert "the kernel's name states no tile that fits (100.0 % of" in said[0]


def test_what_alignment_is_worth_is_as_uncertain_as_the_aligned_gemms_differ(
    tmp_path: Path,
) -> None:
    """One unaligned GEMM tells the factor that is applied to it. All take as long."""
    aligned = (4096, 2048, 1024)
    found = anatomy_of(phase_of(tmp_path, mm(4096, 3435), *(mm(n) for n in aligned)))
    fit = found.fit
    assert fit is not None
    assert fit.spread is not None
    (shape,) = [s for s in found.shapes if s.axis == "K"]
    assert shape.below is not None
    assert (shape.below.value, shape.k) == (3424, 3435)
    assert shape.below.low_ns is not None
    assert shape.below.high_ns is not None
    far = [math.log(4096 / 3424) + math.log(4096 / n) for n in aligned]
    apart = math.log(3435 / 3424) + sum(far) / len(far)
    took = [shape.busy_ns + change for change in (shape.below.low_ns, shape.below.high_ns)]
    assert math.log(took[1] / took[0]) == pytest.approx(2 * 1.96 * fit.spread * math.sqrt(apart))


def test_two_unaligned_gemms_of_a_real_trace_promise_no_sure_gain(
    real_report: Callable[[str], Report],
) -> None:
    """OWLv2's scores, 5185 tokens: all other GEMMs of the trace have a K 16 times as large."""
    phase = real_report("h100_owlv2-large.json.gz").phases["trace"]
    scores = next(s for s in anatomy_of(phase).shapes if s.n == 5185)
    assert scores.below is not None
    assert scores.below.change_ns is not None
    assert scores.below.high_ns is not None
    assert scores.below.change_ns < 0 < scores.below.high_ns
