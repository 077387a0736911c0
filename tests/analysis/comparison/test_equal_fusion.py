"""One GEMM in the place of several with the same inputs is the same work, and no pruning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from prunescope.analysis.pipeline import analyze
from prunescope.analysis.schema.report import Phase
from tests.chrome import chrome, k, module, op, save, step

T, H, C, F, LAYERS = 32, 64, 32, 96, 3  # tokens; widths of the stream, of keys, of the MLP


def gemm(name: str, n: int, k_in: int) -> Any:
    return module(name, op("aten::mm", [T, k_in], [k_in, n], kernels=[k(us=10, name="gemm")]))


def layer(number: int, *, fused: bool, f: int = F, named: bool = True) -> list[Any]:
    at = f"model.layers.{number}" if named else "inner"
    attn, mlp = f"{at}.self_attn", f"{at}.mlp"
    heads = [[1, n, T, 16] for n in (H // 16, C // 16, C // 16)]
    first = (
        [gemm(f"{attn}.qkv_proj", H + 2 * C, H)]
        if fused
        else [gemm(f"{attn}.{x}_proj", n, H) for x, n in (("q", H), ("k", C), ("v", C))]
    )
    up = (
        [gemm(f"{mlp}.gate_up_proj", 2 * f, H)]
        if fused
        else [gemm(f"{mlp}.{x}_proj", f, H) for x in ("gate", "up")]
    )
    flash = op("aten::_scaled_dot_product_flash_attention", *heads,
               kernels=[k(us=5, name="flash_fwd_kernel")])  # fmt: skip
    return [*first, module(attn, flash), gemm(f"{attn}.o_proj", H, H), *up,
            gemm(f"{mlp}.down_proj", H, f)]  # fmt: skip


def bare(item: Any) -> Any:
    """An item without its module."""
    return item.items[0] if isinstance(item.items[0], tuple) and len(item.items) == 1 else item


def compared(dense: list[Any], pruned: list[Any], folder: Path) -> Phase:
    paths = [
        save(chrome(step(0, *items)), folder / f"{name}.json")
        for name, items in (("dense", dense), ("pruned", pruned))
    ]
    return next(iter(analyze(paths[1], baseline=paths[0]).report.phases.values()))


@pytest.mark.parametrize("is_named", [True, False])
@pytest.mark.parametrize("is_reversed", [False, True])
def test_fused_against_apart(tmp_path: Path, *, is_reversed: bool, is_named: bool) -> None:
    """By modules, and by the order of kernels alone."""
    sides = [[x for i in range(LAYERS) for x in layer(i, fused=fused)] for fused in (False, True)]
    if not is_named:
        sides = [[bare(item) for item in side] for side in sides]
    dense, pruned = reversed(sides) if is_reversed else sides
    phase = compared(dense, pruned, tmp_path)
    rows = {row.row: row.ns for row in phase.ledger or ()}
    assert rows["added_work"] == 0
    assert phase.ladder is not None
    assert phase.ladder.nominal == pytest.approx(1)
    assert {g.axis for g in phase.gemms} == {"none"}
    assert {"qkv", "gate_up"} <= {g.role for g in phase.gemms}
    assert phase.family is not None
    assert phase.family.id == "unknown"  # zeros would not show
    assert sum("compared as" in note for note in phase.notes) == 2


def test_auxiliary_kernels_have_the_role_of_their_gemm(tmp_path: Path) -> None:
    """A fill, the sum of a split K and a second part of a product name no GEMM of their own, where
    roles come from the order of kernels."""
    split = [
        k(us=1, name="memset", cat="gpu_memset"),
        k(us=6, name="gemm"),
        k(us=2, name="gemm_second_part"),
        k(us=2, name="void cublasLt::splitKreduce_kernel<32>"),
    ]
    items = [bare(x) for i in range(LAYERS) for x in layer(i, fused=False)]
    helped = [x._replace(kernels=tuple(split)) if x.name == "aten::mm" else x for x in items]
    plain, phase = (compared(items, side, tmp_path) for side in (items, helped))
    assert plain.roles.keys() == phase.roles.keys()
    assert phase.roles["down"] == LAYERS * 11_000
    (row,) = (g for g in phase.gemms if g.role == "down")
    assert (row.count, row.auxiliary_ns) == (LAYERS, LAYERS * 3_000)
    assert phase.ladder is not None
    assert phase.ladder.flop == pytest.approx(1)


def swapped(number: int, *, f: int = F) -> list[Any]:
    """A layer whose k runs before its q, as another compilation may order them."""
    q, k_, *rest = layer(number, fused=False, f=f)
    return [k_, q, *rest]


@pytest.mark.parametrize("width", [F, 48])
def test_the_order_of_kernels_does_not_tell_q_from_k(tmp_path: Path, width: int) -> None:
    dense = [bare(x) for i in range(LAYERS) for x in layer(i, fused=False)]
    pruned = [bare(x) for i in range(LAYERS) for x in swapped(i, f=width)]
    phase = compared(dense, pruned, tmp_path)
    axes = {g.role: g.axis for g in phase.gemms}
    assert axes["qkv"] == axes["o"] == "none"
    assert not {"q", "k", "v"} & axes.keys()
    assert phase.family is not None
    assert phase.family.id == ("unknown" if width == F else "static-nk-mlp")


@pytest.mark.parametrize("is_named", [True, False])
def test_broken_is_never_told_from_order_alone(tmp_path: Path, *, is_named: bool) -> None:
    """N of gate and up fell, K of down did not: a broken pruning where modules name them."""
    sides = [[x for i in range(LAYERS) for x in layer(i, fused=False, f=f)] for f in (F, 48)]
    sides[1] = [old if "down" in old.name else new for old, new in zip(*sides, strict=True)]
    if not is_named:
        sides = [[bare(item) for item in side] for side in sides]
    phase = compared(sides[0], sides[1], tmp_path)
    assert phase.family is not None
    is_broken = any("broken" in line for line in phase.family.evidence)
    assert (phase.family.id, is_broken) == (
        ("static-nk-mlp", True) if is_named else ("unknown", False)
    )


def test_compiled_against_eager_has_no_family_and_no_axis(tmp_path: Path) -> None:
    dense = [x for i in range(LAYERS) for x in layer(i, fused=False)]
    inside = [x for i in range(LAYERS) for x in layer(i, fused=True, f=48)]
    compiled = [module("## Call CompiledFxGraph a ##", *inside)]
    phase = compared(dense, compiled, tmp_path)
    assert phase.family is not None
    assert phase.family.id == "outside"
    assert "compiled" in phase.family.evidence[0]
    assert {g.axis for g in phase.gemms} == {"unknown"}
    assert all(g.keep is None and g.dense_n is None for g in phase.gemms)
