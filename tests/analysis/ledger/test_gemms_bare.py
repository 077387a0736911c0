"""The GEMM table where little is known: no shapes, wrapper ops, kernels that run beside others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prunescope.analysis.pipeline import analyze
from prunescope.analysis.report.gemm_table import gemm_table
from prunescope.analysis.schema.report import Phase, Report
from tests.chrome import Op, chrome, k, op, save, step

SGEMM, ADD = "ampere_sgemm_128x64_nn", "void at::native::vectorized_elementwise_kernel<4>"
PAGED = "void paged_attention_ll4mi_QKV_mfma16_kernel<__hip_bfloat16>"


def phase_of(tmp_path: Path, *steps: Any) -> Phase:
    return analyze(save(chrome(*steps), tmp_path / "t.json")).report.phases["trace"]


def mm(m: int, us: float, **kernel: Any) -> Op:
    return op("aten::mm", [m, 64], [64, 32], kernels=[k(us=us, name=SGEMM, **kernel)])


def test_a_wrapper_without_shapes_lends_a_gemm_nothing(tmp_path: Path) -> None:
    """Of a compiled region, each GEMM kernel is a call; what else it launches is no auxiliary."""
    kernels = [k(us=50, name=SGEMM), k(us=30, name=ADD), k(us=5, name=SGEMM)]
    region = op("CompiledFunctionBackward", kernels=kernels)
    (row,) = phase_of(tmp_path, step(0, region)).gemms
    assert (row.busy_ns, row.count, row.auxiliary_ns) == (55_000, 2, 0)
    assert (row.m, row.op) == (None, "CompiledFunctionBackward")


def test_what_a_wrapper_launches_has_a_class_of_its_own(tmp_path: Path) -> None:
    """The sum of a compiled region takes 10 us less, its product 5: a row each, of its class."""

    def region(gemm: float, add: float, name: str) -> Path:
        kernels = [k(us=gemm, name=SGEMM), k(us=add, name=ADD)]
        return save(chrome(step(0, op("CompiledFunction", kernels=kernels))), tmp_path / name)

    dense, pruned = region(50, 30, "dense.json"), region(45, 20, "pruned.json")
    ledger = analyze(pruned, baseline=dense).report.phases["trace"].ledger
    assert ledger is not None
    parts = {part.cls: part.ns for row in ledger for part in row.parts if part.ns}
    assert (parts["matmul"], parts["pointwise"]) == (-5_000, -10_000)


def test_steps_that_differ_do_not_mix_their_shapes(tmp_path: Path) -> None:
    """GEMMs of no layer and role, in another order and number a step, are told by their shapes."""
    rows = phase_of(tmp_path, step(0, mm(100, 4), mm(300, 6)), step(1, mm(300, 8))).gemms
    sizes = {(g.m, g.count, g.busy_ns) for g in rows}
    assert sizes == {(100, 0.5, 2_000), (300, 1.0, 7_000)}


def test_attention_without_shapes_is_no_gemm(tmp_path: Path) -> None:
    kernels = [k(us=9, name=PAGED), k(us=4, name=SGEMM)]
    phase = phase_of(tmp_path, *kernels)
    assert phase.kinds["attention"] > 0
    assert {g.kind for g in phase.gemms} == {"gemm"}
    path = save(chrome(*kernels), tmp_path / "u.json")
    pair = analyze(path, baseline=path).report.phases["trace"]
    assert {g.kind for g in pair.gemms} == {"gemm"}


def test_a_gemm_beside_another_kernel_says_how_long_it_ran(tmp_path: Path) -> None:
    """10 us of a GEMM run wholly beside 20 us of another kernel: busy 0, duration 10 us."""
    wide = op("aten::add", [4096, 4096], [4096, 4096], kernels=[k(us=20, stream=9, name=ADD)])
    phase = phase_of(tmp_path, step(0, wide, mm(100, 10, gap_us=-15)))
    (row,) = phase.gemms
    assert (row.busy_ns, row.duration_ns) == (0, 10_000)
    assert row.efficiency == pytest.approx((row.ideal_ns or 0) / 10_000)
    (kernel,) = [shown for shown in phase.kernels if shown.name == SGEMM]
    assert kernel.efficiency == pytest.approx(row.efficiency)
    table = gemm_table(phase)
    assert table.rows[0][0].text.endswith("‖")
    (note,) = [n for n in table.notes if n.startswith("‖")]
    assert "0.00 of 10.00 µs" in note


def test_kinds_that_ran_beside_others_are_said(tmp_path: Path) -> None:
    """A GEMM of 10 us beside 20 us of a sum has no busy time of its own, and ran all the same; so
    did the sum, which is given those 10 us, beside the GEMM."""
    wide = op("aten::add", [4096, 4096], [4096, 4096], kernels=[k(us=20, stream=9, name=ADD)])
    phase = phase_of(tmp_path, step(0, wide, mm(100, 10, gap_us=-15)))
    assert phase.kinds["gemm"] == 0
    (note,) = [n for n in phase.notes if "ran concurrently" in n]
    assert "gemm 10.0 µs (10.0 µs concurrently)" in note
    assert "elementwise 20.0 µs (10.0 µs concurrently)" in note
    assert not [n for n in phase_of(tmp_path, step(0, wide)).notes if "ran concurrently" in n]


def test_communication_says_for_how_long_nothing_ran_beside_it(tmp_path: Path) -> None:
    """30 us of a reduction begin first and are given all of their time, 20 us of it beside a GEMM;
    a second reduction runs 5 us of its 10 beside the first one, which hides none of it."""
    ring = "ncclKernel_AllReduce_RING_LL_Sum_float(ncclWorkElem)"
    comm = op("c10d::allreduce_", kernels=[k(us=30, stream=9, name=ring)])
    more = op("c10d::allreduce_", kernels=[k(us=10, gap_us=-5, stream=11, name=ring)])
    phase = phase_of(tmp_path, step(0, comm, more, mm(100, 20, gap_us=-30)))
    assert phase.wall_ns == 35_000
    assert (phase.kinds["comm"], phase.kinds["gemm"]) == (35_000, 0)
    (note,) = [n for n in phase.notes if "ran concurrently" in n]
    assert "comm 40.0 µs (30.0 µs concurrently), gemm 20.0 µs (20.0 µs" in note
    (said,) = [n for n in phase.notes if "last rank" in n]
    assert (
        "communication kernels ran 35.0 µs a step, 15.0 µs of it exposed (nothing else ran)" in said
    )
    assert "the 35.0 µs of them that count as busy" in said


def test_the_roofline_takes_the_run_time_of_a_gemm_beside_another(tmp_path: Path) -> None:
    """10 us of a GEMM, 8 of them beside another kernel: busy for 2, it ran no faster for that."""
    wide = op("aten::add", [4096, 4096], [4096, 4096], kernels=[k(us=20, stream=9, name=ADD)])
    anatomy = phase_of(tmp_path, step(0, wide, mm(100, 10, gap_us=-8))).anatomy
    assert anatomy is not None
    (point,) = [candidate for candidate in anatomy.points if candidate.kind == "gemm"]
    assert (point.busy_ns, point.clock_ns) == (2_000, 10_000)


def test_a_gemm_alone_ran_as_long_as_it_was_busy(tmp_path: Path) -> None:
    phase = phase_of(tmp_path, step(0, mm(100, 10)))
    assert [(g.busy_ns, g.duration_ns) for g in phase.gemms] == [(10_000, 10_000)]
    assert not [n for n in gemm_table(phase).notes if "‖" in n]


def test_gemms_of_a_real_trace_with_streams(real_report: Callable[[str], Report]) -> None:
    """5.5 ms a step of the V100's GEMMs run beside other kernels, 3.7 ms in rows mostly so. Each
    step covered anew, from the end of the one before or of the spill: 32.779 ms in six steps."""
    phase = real_report("v100_legacy_graphs.json.gz").phases["trace"]
    beside = [g for g in phase.gemms if g.busy_ns < 0.5 * (g.duration_ns or 0)]
    assert sum(g.duration_ns or 0 for g in beside) == pytest.approx(3_692_500)
    hidden = sum((g.duration_ns or 0) - g.busy_ns for g in phase.gemms)
    assert hidden == pytest.approx(32_779_000 / 6)
    assert any(n.startswith("‖") for n in gemm_table(phase).notes)
    gemm = sum(ns for kind, ns in phase.kinds.items() if "gemm" in kind or kind == "gemv")
    assert sum(g.busy_ns - g.auxiliary_ns for g in phase.gemms) == pytest.approx(gemm)


def test_a_replay_lists_no_attention_among_its_gemms(real_trace: Callable[[str], Path]) -> None:
    path = real_trace("mi300x_sglang_qwen3-8b_decode_graph.json.gz")
    phase = analyze(path).report.phases["trace"]
    assert phase.kinds["attention"] > 0
    assert {g.kind for g in phase.gemms} == {"gemm"}
