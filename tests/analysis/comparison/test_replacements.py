"""Kernels of unknown kind that stand where the other side has a known one are no added work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prunescope.analysis.pipeline import analyze
from prunescope.analysis.schema.report import Phase
from tests.analysis.finding_cases import found, layers, mm, of_pair, sdpa
from tests.chrome import chrome, k, module, op, step


def secret(us: float) -> Any:
    """An attention of a library that no table knows."""
    return op("mylib::op_7", [1, 16, 512, 64], kernels=[k(us=us, name="kernel_7")])


def quantise(us: float) -> Any:
    return op("mylib::quantize", [16, 64], kernels=[k(us=us, name="quantize_kernel")])


def row_of_layers(attention: Callable[[], tuple[Any, ...]], layers: int = 3) -> dict[str, Any]:
    """Per layer a GEMM, an attention and two GEMMs, without module scopes."""
    items = [(mm(n=4096), *attention(), mm(n=2048), mm(n=1024)) for _ in range(layers)]
    return chrome(step(0, *[item for layer in items for item in layer]))


def scoped_layers(attention: Callable[[], tuple[Any, ...]], layers: int = 3) -> dict[str, Any]:
    at = "model.layers.{}.self_attn"
    return chrome(
        step(0, *[
            module(at.format(i), module(f"{at.format(i)}.q_proj", mm()), *attention())
            for i in range(layers)
        ])
    )  # fmt: skip


def rows(phase: Phase) -> dict[str, float | None]:
    return {row.row: row.ns for row in phase.ledger or []}


@pytest.mark.parametrize("trace", [row_of_layers, scoped_layers])
def test_another_attention_replaces_the_old_one(trace: Any, tmp_path: Path) -> None:
    """Three attentions of 80 us became three of 90 us, with 5 us of quantisation before each."""
    phase = of_pair(tmp_path, trace(lambda: (sdpa(80),)), trace(lambda: (quantise(5), secret(90))))
    assert rows(phase)["added_work"] == 3 * 5_000
    by_row = rows(phase)
    work = ("coverage", "roofline_shift", "shape", "kernel_efficiency")
    kept = by_row["promised"], *(by_row[row] for row in work)
    assert sum(ns or 0 for ns in kept) == by_row["dense"] + 3 * 10_000
    assert phase.pairing is not None and phase.pairing.removed == 0
    said = " ".join(phase.notes)
    assert "3 kernels kernel_7 a step stand where" in said or "of the other side's in: att" in said


def test_a_kernel_in_another_place_is_added_work(tmp_path: Path) -> None:
    """Three kernels after the last GEMM replace no attention between GEMMs."""
    dense = row_of_layers(lambda: (sdpa(80),))
    moved = chrome(
        step(0, *[item for _ in range(3) for item in (mm(n=4096), mm(n=2048), mm(n=1024))],
             *[secret(90)] * 3)
    )  # fmt: skip
    phase = of_pair(tmp_path, dense, moved)
    assert rows(phase)["added_work"] == 3 * 90_000


def test_a_kernel_beside_the_work_of_its_module_is_added_work(tmp_path: Path) -> None:
    """The attention is still there: what else runs in its module is new."""
    phase = of_pair(
        tmp_path, scoped_layers(lambda: (sdpa(80),)), scoped_layers(lambda: (sdpa(80), secret(9)))
    )
    assert rows(phase)["added_work"] == 3 * 9_000


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
