"""A note stands where the columns that it is about do; words fit the phase that is there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import prunescope
from prunescope.analysis.report.phase_tables import sides_table
from prunescope.analysis.report.sheet import kept_columns, shown_notes
from prunescope.analysis.report.view import Cell, Column, Table
from tests.analysis.finding_cases import BF16
from tests.chrome import chrome, op, save, step


def table() -> Table:
    columns = [Column("role"), Column("of bound", numeric=True, drop=8)]
    rows = [[Cell("gate" * 4), Cell("104.1 %!", 1.041)]]
    return Table(
        "t", "T", columns, rows, ["! of the bound", "always"], {"! of the bound": ("of bound",)}
    )


@pytest.mark.parametrize(("width", "notes"), [(80, 2), (20, 1)])
def test_a_mark_that_is_not_shown_is_not_explained(width: int, notes: int) -> None:
    assert len(kept_columns(table(), width)) == notes
    assert shown_notes(table(), width) == table().notes[-notes:]


def trained(tmp_path: Path, name: str, n: int) -> Path:
    mm = op("aten::mm", [8, 32], [32, n], dtype=BF16, us=10)
    back = op("aten::mm", [32, 8], [8, n], dtype=BF16, us=10)
    node = op("autograd::engine::evaluate_function: MmBackward0", inner=[back], us=1)
    trace = chrome(step(0, mm, node), cpu=True)
    return save(trace, tmp_path / name)


def test_a_step_of_training_is_no_token(tmp_path: Path) -> None:
    report: Any = prunescope.analyze(
        trained(tmp_path, "p.json", 32), baseline=trained(tmp_path, "d.json", 64)
    )
    phase = report.phases["trace"]
    assert phase.phase_kind is not None and phase.phase_kind["kind"] == "training"
    sides = sides_table(phase)
    assert sides is not None and sides.notes[0].startswith("a step is one of training")
    said = next(one for one in report.warnings if one.startswith("peaks of"))
    assert "`prunescope calibrate`" in said and "--device" not in said
