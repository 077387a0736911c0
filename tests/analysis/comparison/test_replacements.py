"""Kernels of unknown kind that stand where the other side has a known one are no added work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prunescope.analysis.pipeline import analyze
from prunescope.analysis.schema.report import Phase
from tests.analysis.finding_cases import found, layers, mm, of_pair
from tests.chrome import k, op


def rows(phase: Phase) -> dict[str, float | None]:
    return {row.row: row.ns for row in phase.ledger or []}


def test_228_attentions_of_a_real_trace(real_trace: Callable[[str], Path]) -> None:
    """228 fmha_fwd_hd128 (120.7 ms) became 228 sage_fwd (122.1 ms) and quantisation (10.9 ms)."""
    phase = analyze(
        real_trace("../strangers2/tracelens_mi300x_flux_aiter_sage.json.gz"),
        baseline=real_trace("../strangers2/tracelens_mi300x_flux_aiter.json.gz"),
    ).report.phases["trace"]
    added = rows(phase)["added_work"]
    assert added is not None and added < 20e6
    assert not any(f.id == "kernels-missing" for f in phase.findings)


def test_linears_in_unknown_kernels_are_replaced_and_no_added_work(tmp_path: Path) -> None:
    """Packed linears of a library that no table knows: 6 GEMMs of 100 us became 6 of 70 us."""

    def packed(name: str, us: float) -> Any:
        return op(name, [512, 2048], kernels=[k(us=us, name="kernel_8")])

    roles = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    phase = of_pair(
        tmp_path,
        layers(*[(role, mm()) for role in roles]),
        layers(*[(role, packed("mylib::op_8", 70)) for role in roles]),
    )
    assert rows(phase)["added_work"] == 0
    assert phase.pairing is not None
    assert (phase.pairing.matched, phase.pairing.removed) == (6, 0)
    assert phase.family is not None and phase.family.id in ("outside", "unknown")
    assert "other ops stand in their places (down (unknown) × 2" in phase.family.evidence[-1]


@pytest.mark.parametrize("rank", [3, 5])
def test_what_differs_between_ranks_is_no_other_kernel(rank: int, tmp_path: Path) -> None:
    dense, pruned = (layers(("mlp.up_proj", mm(us=us))) for us in (100, 50))
    dense["distributedInfo"], pruned["distributedInfo"] = {"rank": 0}, {"rank": rank}
    phase = of_pair(tmp_path, dense, pruned)
    assert found(phase, "not-comparable") is not None
    assert found(phase, "unexplained-difference") is None
