"""The ledger of kernels made by hand: what each change of a step becomes, and what changes none."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunescope.analysis.ledger.ledger import ROWS
from prunescope.analysis.ledger.pairing import pair
from tests.property.drawn_kernels import BUSY, GAP, Row, changed, decoders, kernels
from tests.records import kernel_row, ledger_of, product

QUICK = settings(max_examples=15, deadline=None)
BETWEEN = ROWS[2:-1]  # the rows from the promise to the pruned wall
NEAR = 1e-3  # ns


def only(ledger: dict[str, float], **moved: float) -> bool:
    """Whether these rows have these times, and all others between the walls none."""
    return all(abs(ledger[name] - moved.get(name, 0.0)) < NEAR for name in BETWEEN)


@QUICK
@given(rows=decoders(), steps=st.integers(1, 2))
def test_a_step_against_itself_loses_nothing(rows: list[Row], steps: int) -> None:
    side = kernels(rows, steps=steps)
    ledger = ledger_of(side, side)
    wall = side.wall / steps
    assert only(ledger)
    assert (ledger["dense"], ledger["promised"], ledger["pruned"]) == pytest.approx([wall] * 3)


@QUICK
@given(dense=decoders(), pruned=decoders(), tails=st.tuples(GAP, GAP))
def test_every_nanosecond_of_both_sides_is_in_a_unit_and_in_the_walls(
    dense: list[Row], pruned: list[Row], tails: tuple[int, int]
) -> None:
    sides = [kernels(rows, trailing_idle=tail)
             for rows, tail in zip((dense, pruned), tails, strict=True)]  # fmt: skip
    units = pair(sides[0], sides[1])
    for side, sums in zip(sides, (units.dense, units.pruned), strict=True):
        assert sums.busy.sum() == side.frame["busy"].sum()
        assert sums.busy.sum() + sums.gap.sum() + sums.trailing_idle.sum() == side.wall
    assert (units.matched | units.removed | units.added).all()
    ledger = ledger_of(sides[0], sides[1])
    assert (ledger["dense"], ledger["pruned"]) == pytest.approx([side.wall for side in sides])


@QUICK
@given(dense=decoders(), pruned=decoders(), order=st.randoms(use_true_random=False))
def test_the_order_of_rows_within_a_step_changes_no_row_of_the_ledger(
    dense: list[Row], pruned: list[Row], order: Random
) -> None:
    shuffled = list(pruned)
    order.shuffle(shuffled)
    first, second = (ledger_of(kernels(dense), kernels(rows)) for rows in (pruned, shuffled))
    assert first == pytest.approx(second, abs=NEAR)


@QUICK
@given(dense=decoders(), pruned=decoders(), times=st.integers(2, 1000),
       nominal=st.none() | st.floats(0, 0.9))  # fmt: skip
def test_times_that_are_c_times_as_long_make_every_row_c_times_as_large(
    dense: list[Row], pruned: list[Row], times: int, nominal: float | None
) -> None:
    def longer(rows: list[Row]) -> list[Row]:
        return [{**row, "busy": times * row["busy"], "gap": times * row["gap"]} for row in rows]

    ledger = ledger_of(kernels(dense), kernels(pruned), nominal=nominal)
    scaled = ledger_of(kernels(longer(dense)), kernels(longer(pruned)), nominal=nominal)
    largest = times * max(map(abs, ledger.values()))
    assert {n: times * ns for n, ns in ledger.items()} == pytest.approx(scaled, abs=1e-9 * largest)


@QUICK
@given(rows=decoders(least=2), gone=st.sets(st.integers(0, 3), min_size=1),
       is_numbered_anew=st.booleans(), is_mapped=st.booleans())  # fmt: skip
def test_layers_that_are_gone_are_coverage_and_never_added_work(
    *, rows: list[Row], gone: set[int], is_numbered_anew: bool, is_mapped: bool
) -> None:
    layers = sorted({row["layer"] for row in rows} - {None})
    left = [number for number in layers if number not in gone] or layers[:1]
    new = {old: i if is_numbered_anew else old for i, old in enumerate(left)} | {None: None}
    pruned = [{**row, "layer": new[row["layer"]]} for row in rows if row["layer"] in new]
    layer_map = left if is_mapped and is_numbered_anew else None
    ledger = ledger_of(kernels(rows), kernels(pruned), layer_map)
    assert ledger["added_work"] == 0
    has_holes = left != layers[: len(left)]
    if layer_map or left == layers or (has_holes and not is_numbered_anew):
        # Else layers of equal sizes may stand for one another.
        lost = ledger["pruned"] - ledger["dense"]
        assert only(ledger, coverage=lost + ledger["dense"] - ledger["promised"])


@QUICK
@given(rows=decoders(), busy=BUSY, gap=GAP)
def test_work_that_is_added_and_the_wait_for_it_are_rows_of_their_own(
    rows: list[Row], busy: int, gap: int
) -> None:
    more = [*rows, kernel_row(0, "router", product(1, 64), busy=busy, gap=gap)]
    assert only(ledger_of(kernels(rows), kernels(more)), added_work=busy, launch_idle=gap)
    back = ledger_of(kernels(more), kernels(rows), nominal=0.0)
    assert only(back, coverage=-busy - gap)


@QUICK
@given(rows=decoders(), number=st.integers(0, 28), busy=BUSY, gap=GAP, tail=GAP)
def test_a_slower_kernel_is_kernel_efficiency_and_a_longer_wait_is_idle_time(
    *, rows: list[Row], number: int, busy: int, gap: int, tail: int
) -> None:
    number %= len(rows)
    old = rows[number]
    slower = changed(rows, number, busy=old["busy"] + busy)
    assert only(ledger_of(kernels(rows), kernels(slower)), kernel_efficiency=busy)
    later = changed(rows, number, gap=old["gap"] + gap)
    ledger = ledger_of(kernels(rows), kernels(later, trailing_idle=tail))
    assert only(ledger, launch_idle=gap + tail)


@QUICK
@given(rows=decoders(), names=st.lists(st.text("abc_", min_size=1, max_size=8), min_size=1,
                                       max_size=5))  # fmt: skip
def test_other_names_of_the_same_kernels_lose_nothing(rows: list[Row], names: list[str]) -> None:
    renamed = [{**row, "name": names[i % len(names)]} for i, row in enumerate(rows)]
    assert only(ledger_of(kernels(rows), kernels(renamed)))
    assert only(ledger_of(kernels(renamed), kernels(rows)))


@QUICK
@given(dense=decoders(), pruned=decoders(), steps=st.integers(2, 4))
def test_steps_that_repeat_change_no_row(dense: list[Row], pruned: list[Row], steps: int) -> None:
    once = ledger_of(kernels(dense), kernels(pruned))
    again = ledger_of(kernels(dense, steps=steps), kernels(pruned))
    assert again == pytest.approx(once, abs=NEAR)


@QUICK
@given(rows=decoders(), pruned=decoders())
def test_swapped_sides_swap_what_is_removed_and_what_is_added(
    rows: list[Row], pruned: list[Row]
) -> None:
    """Of as many layers, which are then the same ones on both sides."""
    layers = {row["layer"] for row in rows}
    pruned = [row for row in pruned if row["layer"] in layers]
    missing = [row for row in rows if row["layer"] not in {row["layer"] for row in pruned}]
    dense_side, pruned_side = kernels(rows), kernels(pruned + missing)
    there, back = pair(dense_side, pruned_side), pair(pruned_side, dense_side)
    assert there.keys == back.keys
    assert (there.removed == back.added).all()
    assert (there.matched == back.matched).all()
    assert np.array_equal(there.dense.busy, back.pruned.busy)
