"""Products with CSR and COO matrices: work from the numbers that they store, or none."""

from __future__ import annotations

from pathlib import Path

import pytest

from prunescope.analysis.pipeline import analyze
from prunescope.analysis.schema.report import Report
from tests.chrome import Op, chrome, k, op, save, step


def product(*, shown: bool, us: float = 7) -> Op:
    """[8] + [4, 16] x [16, 8], of which the second stores 20 numbers: 9 + 20 indices of 8 bytes."""
    parts = {"ccol_indices": ("long int", 9), "row_indices": ("long int", 20),
             "values": ("float", 20)}  # fmt: skip
    views = [
        op(f"aten::{name}", [16, 8], strides=[[]], inner=[op("aten::alias", [n], dtype=dtype)])
        for name, (dtype, n) in parts.items()
    ]
    return op("aten::addmm", [8], [4, 16], [16, 8], strides=[[1], [16, 1], []],
              inner=views if shown else [], kernels=[k(us=us, name="csrmm_kernel")])  # fmt: skip


def told(path: Path, *, shown: bool) -> Report:
    return analyze(save(chrome(step(0, product(shown=shown))), path / "t.json")).report


def test_the_numbers_that_are_stored_are_the_work(tmp_path: Path) -> None:
    """2 * 20 * 4 FLOPs. Bytes: 20 * 4, 29 * 8, 4 * 16 * 4, the bias 8 * 4, the result 4 * 8 * 4."""
    report = told(tmp_path, shown=True)
    [phase] = report.phases.values()
    [gemm] = phase.gemms
    assert (gemm.m, gemm.n, gemm.k) == (None, None, None)
    assert (gemm.flop, gemm.bytes) == (160, 80 + 232 + 256 + 32 + 128)
    assert any("count the numbers that are stored" in note for note in phase.notes)
    assert not any("no GEMM has shapes" in warning for warning in report.warnings)


def test_work_is_unknown_where_the_trace_does_not_count_them(tmp_path: Path) -> None:
    report = told(tmp_path, shown=False)
    [phase] = report.phases.values()
    [gemm] = phase.gemms
    assert (gemm.flop, gemm.bytes) == (None, None)
    [note] = [note for note in phase.notes if "CSR" in note]
    assert note.endswith("so FLOPs and bytes of 7.0 µs are unknown")
    assert not any("no GEMM has shapes" in warning for warning in report.warnings)


@pytest.mark.parametrize("shown", [True, False])
def test_a_sparse_matrix_in_place_of_a_dense_one_is_not_unchanged(
    tmp_path: Path, *, shown: bool
) -> None:
    dense = op("aten::addmm", [8], [4, 16], [16, 8], kernels=[k(us=5)])
    baseline = save(chrome(step(0, dense)), tmp_path / "dense.json")
    pruned = save(chrome(step(0, product(shown=shown))), tmp_path / "sparse.json")
    [phase] = analyze(pruned, baseline=baseline).report.phases.values()
    assert phase.family is not None and phase.family.id not in ("dense", "static-nk")
    assert {row.axis for row in phase.gemms} <= {"unknown", "added", "gone"}
    assert phase.ladder is not None and phase.ladder.flop == (1024 / 160 if shown else None)
