"""Roles by the classes of modules, or by order where these name fewer linears."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from prunescope.analysis.pipeline import analyze
from tests.analysis.kernels.test_bare_roles import SEPARATE
from tests.analysis.timeline.test_scopes import nn, pytorch
from tests.chrome import chrome, save

NAMES = ["q", "k", "v", "attention", "o", "gate", "up", "down"]


def plain_block(i: int) -> Any:
    """A block of a class of one's own, which holds linears and calls attention itself."""
    linears = iter(range(len(SEPARATE)))
    items = [
        one if "attention" in one.name else nn(f"Linear_{i * 10 + next(linears)}", one)
        for one in SEPARATE
    ]
    return nn(f"B_{i}", *items)


@pytest.mark.parametrize("cpu", [False, True])
def test_modules_that_name_no_linear_leave_them_to_order(tmp_path: Path, *, cpu: bool) -> None:
    """7 GEMMs and an attention in each of 4 blocks."""
    trace = pytorch(chrome(nn("M_0", *map(plain_block, range(4))), cpu=cpu))
    result = analyze(save(trace, tmp_path / "t.json"))
    rows = result.frames["trace"]
    rows = rows.filter(pl.col("kind").is_in(["gemm", "gemv", "attention"]))
    got = list(zip(rows["layer"].to_list(), rows["role"].to_list(), strict=True))
    assert got == [(i, name) for i in range(4) for name in NAMES]
    notes = result.report.phases["trace"].notes
    assert (
        "the modules of the trace name fewer of its linears than their order does: roles come from "
        "the order of kernels"
    ) in notes
