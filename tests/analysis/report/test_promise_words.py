"""Whose promise it was, what a net saving is made of, and what a table of kernels leaves out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from prunescope.analysis.report import gemm_table, sentences
from prunescope.analysis.schema.report import KernelRow
from tests.analysis.finding_cases import FULL, found, model, of_pair

# Every MLP is half as wide; attention stays.
HALF = replace(FULL, f=FULL.f // 2)


def test_what_nobody_promised_is_what_the_flops_allow(tmp_path: Path) -> None:
    alone = of_pair(tmp_path, model(FULL), model(HALF))
    asked = of_pair(tmp_path, model(FULL), model(HALF), 0.5)
    assert "its FLOPs allow 1.49×" in sentences.headline(alone)
    assert "2.00× was promised" in sentences.headline(asked)
    # Without the finding that its interval holds 1×:
    sure = [msgspec.structs.replace(phase, findings=[]) for phase in (alone, asked)]
    assert "of 1.49× that its FLOPs allow" in sentences.headline(sure[0])
    assert "of 2.00× promised" in sentences.headline(sure[1])
    assert not any("promised" in sentences.headline(phase) for phase in (alone, sure[0]))


def test_a_net_saving_names_what_offsets_it(tmp_path: Path) -> None:
    """A quarter is promised of all: the MLPs lose half, more than that; the rest loses nothing."""
    phase = of_pair(tmp_path, model(FULL), model(HALF), 0.25)
    row = next(row for row in phase.ledger or [] if row.row == "coverage")
    less = -sum(part.ns for part in row.parts if part.ns < 0)
    kept = sum(part.ns for part in row.parts if part.ns > 0)
    assert less > 0
    assert kept - less == pytest.approx(row.ns, abs=1)
    finding = found(phase, "coverage-limited")
    assert finding is not None
    assert "by which other work shrank more" in finding.text
    shown = finding.text.split()[0]
    assert float(shown) == pytest.approx(
        kept / 1e6 if " ms of" in finding.text else kept / 1e3, rel=1e-3
    )


def test_what_a_table_of_kernels_leaves_out_is_time(tmp_path: Path) -> None:
    phase = of_pair(tmp_path, model(FULL), model(HALF))
    rows = phase.kernels
    busy = sum(row.busy_ns for row in rows)
    assert gemm_table.kernel_table(rows, busy).notes == []
    (note,) = gemm_table.kernel_table(rows, busy, top=1).notes
    assert "left out here" in note
    # A report that was cut at its largest rows says the same, though it shows every row it has.
    cut: list[KernelRow] = [msgspec.structs.replace(rows[0], busy_ns=busy * 0.4)]
    (note,) = gemm_table.kernel_table(cut, busy).notes
    assert "60.0 % of busy" in note
