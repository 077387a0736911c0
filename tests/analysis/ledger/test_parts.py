"""A unit is split by what is known of it: no part takes the ratio of another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from prunescope.analysis.pipeline import analyze
from tests.chrome import chrome, k, module, op, save

T = 32


def rows_of(dense: list[Any], pruned: list[Any], folder: Path) -> dict[str, float | None]:
    paths = [
        save(chrome(*items), folder / f"{name}.json")
        for name, items in (("dense", dense), ("pruned", pruned))
    ]
    (phase,) = analyze(paths[1], baseline=paths[0]).report.phases.values()
    assert phase.pairing is not None and (phase.pairing.removed, phase.pairing.added) == (0, 0)
    return {row.row: row.ns for row in phase.ledger or ()}


def excess_over_flops(rows: dict[str, float | None]) -> float:
    """What kernels gained or lost beyond their FLOPs or bytes, whatever the bound is held to."""
    return sum(rows[name] or 0.0 for name in ("roofline_shift", "shape", "kernel_efficiency"))


def product(n: int, k_in: int, us: float) -> Any:
    return op("aten::mm", [T, k_in], [k_in, n], kernels=[k(us=us, name="gemm")])


def unread(us: float) -> Any:
    """A GEMM whose op has no shapes."""
    return op("my_library::product", kernels=[k(us=us, name="sm80_xmma_gemm_f32")])


@pytest.mark.parametrize("position", [0, 1])
def test_products_of_known_shape_keep_their_ratio(tmp_path: Path, position: int) -> None:
    """K 256 → 192 in one of two GEMMs of a module, which takes 80 → 60 us; of the other nothing is
    known. All that is gained was promised: p = 0.75 of the FLOPs that are known."""

    def side(k_in: int, us: float) -> list[Any]:
        items = [unread(10)]
        items.insert(position, product(64, k_in, us))
        return [module(f"model.layers.{i}.self_attn.q_proj", *items) for i in range(4)]

    rows = rows_of(side(256, 80), side(192, 60), tmp_path)
    assert rows["promised"] == pytest.approx(0.75 * 360_000)
    # The unknown 40 us stay, of which a quarter was promised; the others do all that was promised.
    assert rows["coverage"] == pytest.approx(0.25 * 40_000)
    assert excess_over_flops(rows) == pytest.approx(0, abs=1e-3)


def test_bytes_are_not_pooled_over_a_unit(tmp_path: Path) -> None:
    """An activation of half the width takes half of its 2 us; what combines the results moves ten
    times its bytes, and stays."""

    def side(width: int, us: float) -> list[Any]:
        at = "model.layers.0.mlp"
        act = op("aten::relu", [T, width], kernels=[k(us=us, name="relu_kernel")])
        combine = op("aten::sum", [T, 40960], kernels=[k(us=5, name="reduce_kernel")])
        return [
            module(f"{at}.up_proj", product(width, 64, 4 * us)),
            module(f"{at}.act_fn", act, combine),
            module(f"{at}.down_proj", product(64, width, 4 * us)),
        ]

    rows = rows_of(side(4096, 2), side(2048, 1), tmp_path)
    assert rows["promised"] == pytest.approx(0.5 * 23_000)
    assert rows["coverage"] == pytest.approx(0.5 * 5_000)  # the sum, which keeps all of its bytes
    assert excess_over_flops(rows) == pytest.approx(0, abs=1e-3)


def test_other_ops_are_compared_as_a_whole(tmp_path: Path) -> None:
    """A fused norm against an eager one: their bytes together say what is left, as no part of the
    one is a part of the other."""
    at = "model.layers.0.input_layernorm"
    both = [op("aten::pow", [T, 64], kernels=[k(us=2, name="pow_kernel")]),
            op("aten::mean", [T, 64], kernels=[k(us=2, name="mean_kernel")])]  # fmt: skip
    fused = op("aten::native_layer_norm", [T, 64], kernels=[k(us=3, name="layer_norm_kernel")])
    rest = module("model.layers.0.mlp.up_proj", product(64, 64, 10))
    rows = rows_of([module(at, *both), rest], [module(at, fused), rest], tmp_path)
    assert rows["added_work"] == 0
    assert sum(ns or 0 for row, ns in rows.items() if row not in ("dense", "pruned")) == (
        pytest.approx(rows["pruned"])
    )
