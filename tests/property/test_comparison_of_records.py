"""Whether two sides of kernels made by hand compare: equal sides do, and order decides nothing."""

from __future__ import annotations

from random import Random
from typing import Any

import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from prunescope.analysis.comparison.differences import find_differences, pair_comparison
from prunescope.analysis.comparison.equal_information import (
    ComparableSides,
    fuse_products,
    make_comparable,
    renumber_layers,
)
from prunescope.analysis.comparison.other_inputs import other_inputs
from prunescope.analysis.comparison.replacements import with_replacements
from prunescope.analysis.inputs.side import SidePhase
from prunescope.analysis.kernels.frame import ModuleRoles
from prunescope.analysis.ledger.gemm_calls import collect_gemm_calls
from prunescope.analysis.ledger.gemms import pair_calls
from prunescope.analysis.schema.pair_comparison import Difference
from tests.property.drawn_kernels import TIMES, Row, decoders, kernels, layer_rows
from tests.records import kernel_row, phase_of, product


def fold_layers(dense: SidePhase, pruned: SidePhase) -> tuple[SidePhase, SidePhase]:
    return renumber_layers(ComparableSides(dense, pruned)).both


def fused_sides(dense: SidePhase, pruned: SidePhase) -> tuple[SidePhase, SidePhase]:
    return fuse_products(ComparableSides(dense, pruned)).both


QUICK = settings(max_examples=15, deadline=None)
BY_ORDER, BY_MODULES = ModuleRoles("order"), ModuleRoles("modules")


def frames(sides: tuple[SidePhase, SidePhase]) -> list[pl.DataFrame]:
    return [side.kernels.frame for side in sides]


def same(ones: tuple[SidePhase, SidePhase], others: tuple[SidePhase, SidePhase]) -> bool:
    return all(a.equals(b) for a, b in zip(frames(ones), frames(others), strict=True))


@QUICK
@given(rows=decoders())
def test_a_side_compares_with_itself_as_it_is(rows: list[Row]) -> None:
    side = phase_of(kernels(rows, modules=BY_MODULES))
    equal = make_comparable(side, side)
    assert same((equal.dense, equal.pruned), (side, side))
    assert equal.one_sided == ()
    calls = collect_gemm_calls(side.kernels)
    assert find_differences(side, side, pair_calls(calls, calls)) == ()
    assert other_inputs(pair_calls(calls, calls)) is None


@QUICK
@given(layers=st.integers(1, 4), times=st.integers(2, 4), is_dense=st.booleans())
def test_layers_that_one_side_counts_on_are_folded_and_folding_again_changes_nothing(
    *, layers: int, times: int, is_dense: bool
) -> None:
    counted = [row for i in range(layers * times) for row in layer_rows(i, TIMES)]
    anew = [{**row, "layer": row["layer"] % layers} for row in counted]
    sides = [phase_of(kernels(rows, modules=BY_ORDER)) for rows in (counted, anew)]
    dense, pruned = sides if is_dense else reversed(sides)
    folded = fold_layers(dense, pruned)
    assert all(frame["layer"].n_unique() == layers for frame in frames(folded))
    assert len(folded[1].kernels.notes) == 1
    assert same(fold_layers(*folded), folded)


@QUICK
@given(layers=st.integers(1, 3), is_dense=st.booleans())
def test_products_that_one_side_fuses_are_one_role_on_both_and_stay_so(
    *, layers: int, is_dense: bool
) -> None:
    apart = [
        kernel_row(i, role, product(64, 64), busy=1_000) for i in range(layers) for role in "qkv"
    ]
    fused = [kernel_row(i, "qkv", product(192, 64), busy=2_000) for i in range(layers)]
    sides = [phase_of(kernels(rows, modules=BY_MODULES)) for rows in (apart, fused)]
    dense, pruned = sides if is_dense else reversed(sides)
    equal = fused_sides(dense, pruned)
    assert all(set(frame["role"]) == {"qkv"} for frame in frames(equal))
    pairs = pair_calls(*(collect_gemm_calls(side.kernels) for side in equal))
    assert [pair.axis for pair in pairs] == ["none"] * layers
    assert same(fused_sides(*equal), equal)


@QUICK
@given(rows=decoders(), number=st.integers(0, 28))
def test_an_unknown_kernel_takes_the_place_of_what_is_missing_once(
    rows: list[Row], number: int
) -> None:
    number %= len(rows)
    mystery = {"of": None, "op": "mylib::op", "name": "mystery", "kind": "unknown",
               "class": "unknown"}  # fmt: skip
    reference = kernels(rows)
    side = kernels([{**row, **mystery} if i == number else row for i, row in enumerate(rows)])
    replaced = with_replacements(side, reference)
    assert with_replacements(replaced, reference).frame.equals(replaced.frame)
    assert replaced.frame["busy"].equals(side.frame["busy"])
    assert with_replacements(reference, reference) is reference


@QUICK
@given(rows=decoders(), times=st.sampled_from([0.25, 0.5, 2, 3]),
       order=st.randoms(use_true_random=False))  # fmt: skip
def test_rows_of_every_linear_in_one_ratio_are_other_inputs_in_any_order(
    rows: list[Row], times: float, order: Random
) -> None:
    def scaled(call: Any) -> Any:
        m = int(32 * times)
        return product(call.shapes[1][1], call.shapes[1][0], m=m)

    longer = [{**row, "of": scaled(row["of"])} if row["class"] == "matmul" else row for row in rows]
    pairs = pair_calls(collect_gemm_calls(kernels(rows)), collect_gemm_calls(kernels(longer)))
    inputs = other_inputs(pairs)
    assert inputs is not None
    assert (inputs.dense, inputs.pruned, inputs.hides_pruning) == (1, times, True)
    order.shuffle(pairs)
    assert other_inputs(pairs) == inputs
    still = [replace(pair, pruned=pair.dense) if pair.key[1] == "up" else pair for pair in pairs]
    assert other_inputs(still) is None


DIFFERENCES = st.lists(
    st.builds(Difference, st.sampled_from(["batch", "dtype", "device", "code"]), st.just(1),
              st.integers(2, 4), st.booleans()),
    max_size=4,
)  # fmt: skip


@QUICK
@given(some=DIFFERENCES, more=DIFFERENCES, order=st.randoms(use_true_random=False))
def test_a_further_difference_never_makes_two_sides_compare(
    some: list[Difference], more: list[Difference], order: Random
) -> None:
    def answers(some: list[Difference]) -> tuple[bool, bool, bool]:
        comparison = pair_comparison(some)
        return comparison.is_speedup, comparison.shows_pruning, comparison.has_bounds

    every = [*some, *more]
    order.shuffle(every)
    assert all(a <= b for a, b in zip(answers(every), answers(some), strict=True))
    assert answers(every) == answers([*more, *some])
    assert answers([]) == (True, True, True)
