"""GEMMs of kernels made by hand: every one is in a pair, and only what moved makes a family."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunescope.analysis.comparison.more_calls import more_calls
from prunescope.analysis.kernels.frame import Kernels
from prunescope.analysis.ledger import pairing
from prunescope.analysis.ledger.gemm_calls import collect_gemm_calls
from prunescope.analysis.ledger.gemms import Pair, pair_calls
from prunescope.analysis.ledger.reported_gemms import build_gemm_rows, build_single_rows
from prunescope.analysis.schema.report import FamilyVerdict
from prunescope.analysis.verdict.evidence import Evidence
from prunescope.analysis.verdict.verdict import verdict
from prunescope.taxonomy.families import families
from tests.property.drawn_kernels import TIMES, Row, decoders, kernels, layer_rows
from tests.records import kernel_row, product

QUICK = settings(max_examples=15, deadline=None)
FAMILIES = {family.id for family in families()}


def paired(dense: Kernels, pruned: Kernels) -> list[Pair]:
    units = pairing.pair(dense, pruned)
    return pair_calls(collect_gemm_calls(dense), collect_gemm_calls(pruned, units.alignment))


def family_of(dense: Kernels, pruned: Kernels) -> FamilyVerdict:
    """The verdict on traces without a manifest, with the evidence that kernels give."""
    pairs, units = paired(dense, pruned), pairing.pair(dense, pruned)
    evidence = Evidence(pairs, units, None, None, more_calls=more_calls(dense, pruned))
    return verdict(evidence).family


@QUICK
@given(rows=decoders(), steps=st.integers(1, 3))
def test_every_gemm_of_a_step_is_read_once_with_all_of_its_time(
    rows: list[Row], steps: int
) -> None:
    side = kernels(rows, steps=steps)
    calls = collect_gemm_calls(side).values()
    products = [row for row in rows if row["class"] != "pointwise"]
    assert sum(call.busy for call in calls) == pytest.approx(sum(row["busy"] for row in products))
    assert all(call.count == 1 for call in calls)
    flop = sum(call.flop or 0 for call in calls if call.role != "attention")
    assert flop == sum(2 * m * k * n for row in products if row["role"] != "attention"
                       for (m, k), (_, n) in [row["of"].shapes])  # fmt: skip
    table = build_single_rows(collect_gemm_calls(side))
    assert sum(gemm.busy_ns for gemm in table) == pytest.approx(sum(call.busy for call in calls))


@QUICK
@given(dense=decoders(), pruned=decoders())
def test_every_gemm_of_both_sides_is_in_exactly_one_pair(
    dense: list[Row], pruned: list[Row]
) -> None:
    sides = kernels(dense), kernels(pruned)
    pairs = paired(*sides)
    for name, side in zip(("dense", "pruned"), sides, strict=True):
        calls = [getattr(pair, name) for pair in pairs if getattr(pair, name) is not None]
        assert len({id(call) for call in calls}) == len(calls) == len(collect_gemm_calls(side))
    assert {pair.axis for pair in pairs} <= {"none", "gone", "added"}  # the widths are the same
    assert all((pair.axis == "gone") == (pair.pruned is None) for pair in pairs)
    assert all((pair.axis == "added") == (pair.dense is None) for pair in pairs)
    table = build_gemm_rows(pairs, promised=1.0, exact_layers=True)
    lost = sum(gemm.loss_ns or 0.0 for gemm in table if gemm.dense_busy_ns is not None)
    assert lost == pytest.approx(sum((pair.pruned.busy if pair.pruned else 0) - pair.dense.busy
                                     for pair in pairs if pair.dense), abs=1e-3)  # fmt: skip


SIZES = st.lists(st.tuples(st.sampled_from([16, 32, 48]), st.sampled_from([16, 32, 48])),
                 min_size=1, max_size=6)  # fmt: skip


@QUICK
@given(dense=SIZES, pruned=SIZES)
def test_gemms_without_a_role_pair_one_to_one_and_never_where_no_width_agrees(
    dense: list[tuple[int, int]], pruned: list[tuple[int, int]]
) -> None:
    sides = [kernels([kernel_row(None, "unknown", product(*size), busy=100) for size in sizes])
             for sizes in (dense, pruned)]  # fmt: skip
    pairs = paired(*sides)
    counts = Counter(id(pair.dense) for pair in pairs if pair.dense and pair.axis != "rank")
    assert max(counts.values(), default=1) == 1
    assert sum(pair.pruned is not None for pair in pairs) == len(pruned)
    assert len({id(pair.dense) for pair in pairs if pair.dense}) == len(dense)
    if dense == pruned:
        assert {pair.axis for pair in pairs} == {"none"}


@QUICK
@given(rows=decoders(), names=st.lists(st.text("abc_", min_size=1, max_size=8), min_size=1,
                                       max_size=5), slower=st.floats(0.5, 2))  # fmt: skip
def test_other_names_and_other_times_of_kernels_never_make_a_family(
    rows: list[Row], names: list[str], slower: float
) -> None:
    renamed = [{**row, "name": names[i % len(names)], "busy": int(row["busy"] * slower) + 1}
               for i, row in enumerate(rows)]  # fmt: skip
    named = family_of(kernels(rows), kernels(renamed))
    assert not FAMILIES & set((named.id or "").split("+"))


@QUICK
@given(layers=st.integers(1, 4), width=st.integers(1, 95))
def test_a_narrower_mlp_in_every_layer_is_its_family_at_any_width(layers: int, width: int) -> None:
    dense, pruned = ([row for i in range(layers) for row in layer_rows(i, TIMES, width=w)]
                     for w in (96, width))  # fmt: skip
    named = family_of(kernels(dense), kernels(pruned))
    assert named.id == "static-nk-mlp"
    axes = {pair.key[1]: pair.axis for pair in paired(kernels(dense), kernels(pruned))}
    assert (axes["gate"], axes["up"], axes["down"], axes["q"]) == ("N", "N", "K", "none")


@QUICK
@given(layers=st.integers(2, 4), gone=st.integers(0, 3))
def test_a_layer_that_is_gone_is_depth_and_no_other_family(layers: int, gone: int) -> None:
    dense = [row for i in range(layers) for row in layer_rows(i, TIMES)]
    pruned = [row for row in dense if row["layer"] != gone % layers]
    assert family_of(kernels(dense), kernels(pruned)).id == "static-m"
