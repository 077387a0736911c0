"""The ledger of kernels made by hand: parts of a unit, GEMMs of unknown size, added work."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from prunescope.analysis.kernels.frame import OpShapes
from prunescope.analysis.ledger.dynamic_overhead import touched_sparsity, weigh_added_work
from prunescope.analysis.ledger.gemm_calls import collect_gemm_calls
from prunescope.analysis.ledger.gemms import pair_calls
from prunescope.analysis.ledger.ledger import ROWS, ratios
from prunescope.analysis.ledger.pairing import pair
from prunescope.analysis.ledger.reported_gemms import build_gemm_rows, build_single_rows
from prunescope.analysis.ops.call import OpCall
from prunescope.analysis.schema.report import Row
from tests.records import kernel_row, kernels_of, ledger_of, product

US = 1_000
BEYOND_FLOPS = ("roofline_shift", "shape", "kernel_efficiency")
Rows = list[dict[str, Any]]


def pointwise(name: str, width: int, busy: int, role: str = "activation") -> dict[str, Any]:
    return {**kernel_row(0, role, busy=busy), "of": OpCall(name, ((32, width),), ("float",))}


def ledger_of_pairs(dense: Rows, pruned: Rows) -> dict[str, float]:
    """The ledger of two sides, all units of which pair."""
    sides = kernels_of(*dense), kernels_of(*pruned)
    assert pair(*sides, None).matched.all()
    return ledger_of(*sides, None)


@pytest.mark.parametrize("position", [0, 1])
def test_products_of_known_shape_keep_their_ratio(position: int) -> None:
    """K 256 → 192 in one of two GEMMs of a module, which takes 80 → 60 us; of the other nothing is
    known. All that is gained was promised: p = 0.75 of the FLOPs that are known."""

    def side(k: int, us: int) -> Rows:
        unread = {"op": "my_library::product", "kind": "gemm", "class": "matmul", "busy": 10 * US}
        pairs = []
        for layer in range(4):
            known = kernel_row(layer, "q", product(64, k), busy=us * US)
            both = [known, {**unread, "layer": layer, "role": "q"}]
            pairs += both if position else both[::-1]
        return pairs

    ledger = ledger_of_pairs(side(256, 80), side(192, 60))
    assert ledger["promised"] == pytest.approx(0.75 * 360 * US)
    # The unknown 40 us stay, of which a quarter was promised; the others do all that was promised.
    assert ledger["coverage"] == pytest.approx(0.25 * 40 * US)
    assert sum(ledger[name] for name in BEYOND_FLOPS) == pytest.approx(0, abs=1e-3)


def test_bytes_are_not_pooled_over_a_unit() -> None:
    """An activation of half the width takes half of its 2 us; what combines the results moves ten
    times its bytes, and stays."""

    def side(width: int, us: int) -> Rows:
        return [
            kernel_row(0, "up", product(width, 64), busy=4 * us * US),
            pointwise("aten::relu", width, us * US),
            pointwise("aten::sum", 40_960, 5 * US),
            kernel_row(0, "down", product(64, width), busy=4 * us * US),
        ]

    ledger = ledger_of_pairs(side(4096, 2), side(2048, 1))
    assert ledger["promised"] == pytest.approx(0.5 * 23 * US)
    assert ledger["coverage"] == pytest.approx(0.5 * 5 * US)  # the sum, which keeps all its bytes
    assert sum(ledger[name] for name in BEYOND_FLOPS) == pytest.approx(0, abs=1e-3)


def test_other_ops_are_compared_as_a_whole() -> None:
    """A fused norm against an eager one: their bytes together say what is left, as no part of the
    one is a part of the other. 4 us of 64·(2 + 1) numbers a row become 3 us of 2·64."""
    eager = [pointwise(name, 64, 2 * US, "attn_norm") for name in ("aten::pow", "aten::mean")]
    fused = pointwise("aten::native_layer_norm", 64, 3 * US, "attn_norm")
    up = kernel_row(0, "up", product(64, 64), busy=10 * US)
    ledger = ledger_of_pairs([*eager, up], [fused, up])
    assert ledger["added_work"] == 0
    assert ledger["kernel_efficiency"] + ledger["coverage"] == pytest.approx(-1 * US)


def test_gaps_of_layers_that_are_gone_go_with_their_norms() -> None:
    """No module says which layer a norm is of: half of them are left, and of the gaps before them.
    4 layers of 27 us and a head of 2 are 110 us, 2 layers 56: the bound is what was reached."""

    def side(layers: int) -> Rows:
        rows: Rows = []
        for layer in range(layers):
            linears = [kernel_row(layer, role, product(64, 64), busy=2 * US, gap=US)
                       for role in ("q", "k", "v", "o", "gate", "up", "down")]  # fmt: skip
            norm = {**kernel_row(None, "unknown", busy=3 * US, gap=3 * US), "name": "norm"}
            rows += [*linears, norm]
        return [*rows, kernel_row(None, "lm_head", product(512, 64), busy=2 * US)]

    dense, pruned = (kernels_of(*side(layers), steps=2) for layers in (4, 2))
    ledger = ledger_of(dense, pruned)
    assert (ledger["dense"], ledger["pruned"]) == pytest.approx((110 * US, 56 * US))
    assert ledger["promised"] + ledger["coverage"] == pytest.approx(56 * US)
    assert ledger["launch_idle"] == pytest.approx(0, abs=1e-3)


def test_a_gemm_without_rows_has_the_widths_that_a_config_gives() -> None:
    """N and K are known of a call whose M is not: one matrix, and no FLOPs."""
    kernels = kernels_of(kernel_row(0, "up", product(96, 64)))
    call = kernels.shapes.calls[0]
    shapes = OpShapes(calls=[call], works=[None], widths={0: (96, 64)})
    (gemm,) = collect_gemm_calls(replace(kernels, shapes=shapes)).values()
    assert (gemm.batch, gemm.m, gemm.n, gemm.k, gemm.flop) == (1, None, 96, 64, None)


def test_the_ideal_time_of_a_gemm_is_that_of_a_step() -> None:
    """Two steps of one GEMM of 10 us, the least time of which is 5 us."""
    up = {**kernel_row(0, "up", product(96, 64), busy=10 * US), "ideal": 5.0 * US}
    (gemm,) = build_single_rows(collect_gemm_calls(kernels_of(up, steps=2)))
    assert (gemm.busy_ns, gemm.ideal_ns, gemm.efficiency) == (10 * US, 5 * US, 0.5)


def test_an_added_gemm_has_no_dense_time_and_loses_nothing_of_a_promise() -> None:
    up, router = (kernel_row(0, role, product(96, 64)) for role in ("up", "router"))
    dense, pruned = (collect_gemm_calls(kernels_of(*rows)) for rows in ([up], [up, router]))
    rows = build_gemm_rows(pair_calls(dense, pruned), promised=0.5, exact_layers=True)
    (added,) = (row for row in rows if row.group == "added")
    assert (added.dense_busy_ns, added.promised_ns, added.loss_ns) == (None, None, None)


def test_a_family_that_adds_nothing_has_no_share_of_what_it_saves() -> None:
    """Dense 100, pruned 80; 20 saved, of which 5 added would be a fifth of the 25 saved before."""
    rows = {name: Row(row=name, ns=0.0) for name in ROWS}
    rows["dense"].ns, rows["pruned"].ns = 100.0, 80.0
    assert weigh_added_work(rows.values()) is None
    rows["added_work"].ns = 5.0
    added = weigh_added_work(rows.values())
    assert added is not None
    assert (added.saved_ns, added.share_of_saved, added.without) == (25.0, 0.2, 100 / 75)
    rows["added_work"].ns = -5.0
    assert weigh_added_work(rows.values()) is None


def test_places_decide_where_each_gemm_keeps_a_width_though_another_one_has_its_size() -> None:
    """N 96 and 48 became 48 and 24: the first is no copy of the second one."""
    dense, pruned = (
        collect_gemm_calls(
            kernels_of(*[kernel_row(None, "unknown", product(n, 64)) for n in widths])
        )
        for widths in ((96, 48), (48, 24))
    )
    pairs = pair_calls(dense, pruned)
    assert [(p.dense and p.dense.n, p.pruned and p.pruned.n, p.axis) for p in pairs] == [
        (96, 48, "N"), (48, 24, "N"),
    ]  # fmt: skip


def test_products_of_an_eager_attention_are_queries_by_keys_and_scores_by_values_in_turns() -> None:
    """Two attentions in one layer: 4 heads of 16, over 32 keys."""
    scores = OpCall("aten::bmm", ((4, 32, 16), (4, 16, 32)), ("float", "float"))
    values = OpCall("aten::bmm", ((4, 32, 32), (4, 32, 16)), ("float", "float"))
    rows = [{**kernel_row(0, "attention", call), "kind": "batched_gemm", "class": "attention"}
            for call in (scores, values, scores, values)]  # fmt: skip
    calls = collect_gemm_calls(kernels_of(*rows))
    assert [(key[2], key[3], call.n, call.k) for key, call in calls.items()] == [
        ("qk", 0, 32, 16), ("pv", 0, 16, 32), ("qk", 1, 32, 16), ("pv", 1, 16, 32),
    ]  # fmt: skip


def test_a_gemm_that_is_gone_takes_no_time_and_no_auxiliary_kernels() -> None:
    split = {**kernel_row(0, "up", product(96, 64)), "instance": 0}
    reduction = {**split, "name": "splitKreduce", "kind": "gemm", "primary": False,
                 "carries_work": False, "auxiliary": True, "busy": 300}  # fmt: skip
    dense = collect_gemm_calls(kernels_of(split, reduction))
    (there,) = build_gemm_rows(pair_calls(dense, dense), promised=1.0, exact_layers=True)
    assert (there.busy_ns, there.auxiliary_ns) == (1_300, 300)
    (gone,) = build_gemm_rows(pair_calls(dense, {}), promised=1.0, exact_layers=True)
    assert (gone.busy_ns, gone.auxiliary_ns, gone.count, gone.axis) == (0, 0, 0, "gone")


def test_no_share_of_the_flops_was_removed_where_no_product_does_less() -> None:
    dense, narrower, bare = (
        kernels_of(row)
        for row in (kernel_row(0, "up", product(96, 64)), kernel_row(0, "up", product(72, 64)),
                    kernel_row(0, "up"))
    )  # fmt: skip
    shares = []
    for pruned in (dense, narrower):
        units = pair(dense, pruned)
        shares.append(touched_sparsity(units, ratios(units, None)))
    assert shares == [0.0, 0.25]
    unknown = pair(bare, bare)
    assert touched_sparsity(unknown, ratios(unknown, None)) is None


def test_layers_whose_times_agree_are_not_taken_for_layers_of_equal_proportion() -> None:
    """The last two of four layers are gone; 30 and 10 us are as 15 and 5 to their median."""
    dense, pruned = (
        kernels_of(*[kernel_row(layer, "up", product(96, 64), busy=us * US)
                     for layer, us in enumerate(times)])
        for times in ((30, 10, 15, 5), (30, 10))
    )  # fmt: skip
    assert pair(dense, pruned).alignment.dense_layer == {0: 0, 1: 1}
