"""The overhead of dynamic families, by hand: what each op is for, its op_cost, and where it pays.

Times are us on the device; two layers a step. Nothing is timed without the profiler: the ledger is
in the profiled domain and every op_cost is the recorded time.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from prunescope.analysis.ledger.dynamic_overhead import (
    ADDED,
    HOST,
    KEY_VALUE,
    WEIGHTS,
    break_even,
    weigh_added_work,
)
from prunescope.analysis.schema.report import Overhead, OverheadPart, Phase
from tests.analysis.finding_cases import BF16, layers, mm, pair, pointwise, report, sdpa
from tests.analysis.report import example
from tests.chrome import chrome, gap, k, module, op, step

US = 1e3
B, ACTIVE, N, K = 8, 4, 4096, 2048


def dense_rows() -> dict[str, Any]:
    """480 us: q and o 100 each, k and v 20 each, a layer."""
    return layers(
        ("self_attn.q_proj", mm(m=B, us=100)),
        ("self_attn.k_proj", mm(m=B, us=20)),
        ("self_attn.v_proj", mm(m=B, us=20)),
        ("self_attn.o_proj", mm(m=B, us=100)),
    )


def routed_rows(*, wait_us: float = 7) -> dict[str, Any]:
    """324 us: half of the rows of q and o at half the time, and 15 us of added work a layer."""
    router = [
        gap(us=wait_us),
        op("aten::mm", [B, K], [K, 1], dtype=BF16, kernels=[k(us=4, name="gemv_kernel")]),
        op("aten::topk", [B], [], dtype=BF16, kernels=[k(us=2, name="topk")]),
        op("aten::add", [ACTIVE], [1], dtype="long int", kernels=[k(us=1, name="add")]),
    ]
    gather = op("aten::index_select", [B, K], [], [ACTIVE], dtype=BF16,
                kernels=[k(us=2, name="indexSelectSmallIndex")])  # fmt: skip
    scatter = op("aten::index_add_", [B, K], [], [ACTIVE], [ACTIVE, K], dtype=BF16,
                 kernels=[k(us=5, name="indexFuncSmallIndex")])  # fmt: skip
    return layers(
        ("self_attn.k_proj", mm(m=B, us=20)),  # what waits before the first kernel is the lead
        ("self_attn.router", router),
        ("self_attn", gather),
        ("self_attn.q_proj", mm(m=ACTIVE, us=50)),
        ("self_attn.v_proj", mm(m=B, us=20)),
        ("self_attn.o_proj", mm(m=ACTIVE, us=50)),
        ("self_attn", [scatter, pointwise("aten::copy_", [B, K], [B, K], us=1)]),
    )


def paid(tmp_path: Path, dense: dict[str, Any], pruned: dict[str, Any]) -> tuple[Overhead, Phase]:
    (phase,) = report(tmp_path, dense, pruned).phases.values()
    assert phase.overhead is not None
    return phase.overhead, phase


def parts(cost: Overhead) -> dict[str, float | None]:
    return {part.name: part.ns for part in cost.parts}


def test_each_part_of_dynamic_m(tmp_path: Path) -> None:
    cost, phase = paid(tmp_path, dense_rows(), routed_rows())
    assert phase.family is not None
    assert phase.family.id == "dynamic-m"
    shift = (ACTIVE * K + K * N + ACTIVE * N) / (B * K + K * N + B * N) - 0.5  # bytes less FLOPs
    assert parts(cost) == pytest.approx(
        {
            "router": 2 * 4 * US,
            "index building": 2 * 3 * US,  # top-k, and an addition of whole numbers
            "gather": 2 * 2 * US,
            "scatter": 2 * 5 * US,
            "estimator": 0.0,
            "copies and other work": 2 * 1 * US,
            HOST: 2 * 7 * US,
            KEY_VALUE: 2 * 2 * 20 * US * 0.5,  # half of the rows are not active
            WEIGHTS: 4 * 100 * US * shift,
        }
    )
    assert {p.name: p.share for p in cost.parts}["router"] == pytest.approx(8 / 480)
    assert [p.name for p in cost.parts if p.added] == [*ADDED, HOST]
    assert cost.parts[1].evidence[0].startswith("aten::topk in router: 0.004 ms in 2")


def test_where_it_pays(tmp_path: Path) -> None:
    """480 - 324 + 44 = 200 us were saved at s = 1/2, 30 us stay, 14 us fall with what is kept:
    400·s = 30 + 28·(1 - s), so s = 58 / 428."""
    cost, _ = paid(tmp_path, dense_rows(), routed_rows())
    assert cost.added_ns == pytest.approx(44 * US)
    assert cost.saved_ns == pytest.approx(200 * US)
    assert cost.sparsity == pytest.approx(0.5)
    assert cost.break_even == pytest.approx(58 / 428)
    assert cost.why is None
    assert cost.break_even_ci95 is None  # one step: nothing to draw from


def test_it_never_pays_where_the_rest_costs_more_than_all_could_save(tmp_path: Path) -> None:
    """With 400 us of waiting a layer: 400·s is 200 us saved, and 816 us stay."""
    cost, _ = paid(tmp_path, dense_rows(), routed_rows(wait_us=400))
    assert parts(cost)[HOST] == pytest.approx(800 * US)
    assert cost.break_even is None
    assert cost.why is not None
    assert "does not fall" in cost.why


def test_the_added_parts_are_the_row_of_the_ledger(tmp_path: Path) -> None:
    cost, phase = paid(tmp_path, dense_rows(), routed_rows())
    row = next(r for r in phase.ledger or [] if r.row == "added_work")
    assert sum(p.ns or 0 for p in cost.parts if p.name in ADDED) == pytest.approx(row.ns)


def blocks() -> dict[str, Any]:
    """Attention over half of the keys, chosen by pooled scores."""
    estimator = [
        op("aten::bmm", [16, 8, 64], [16, 64, 8], dtype=BF16,
           kernels=[k(us=6, name="a_gemm_kernel")]),
        op("aten::_softmax", [16, 8, 8], dtype=BF16, kernels=[k(us=2, name="softmax")]),
        op("aten::arange", [], dtype=BF16, kernels=[k(us=1, name="arange")]),
    ]  # fmt: skip
    gather = op("aten::index_select", [512, 64], [], [256], dtype=BF16,
                kernels=[k(us=3, name="indexSelectLargeIndex")])  # fmt: skip
    return layers(
        ("self_attn.router", estimator),
        ("self_attn", [gather, sdpa(60, keys=256)]),
        ("mlp.up_proj", mm()),
    )


def test_an_estimator_is_no_router(tmp_path: Path) -> None:
    dense = layers(("self_attn", sdpa(100)), ("mlp.up_proj", mm()))
    cost, phase = paid(tmp_path, dense, blocks())
    assert phase.family is not None
    assert phase.family.id == "dynamic-nk"
    told = parts(cost)
    assert told["estimator"] == pytest.approx(2 * 8 * US)
    assert told["index building"] == pytest.approx(2 * 1 * US)
    assert told["gather"] == pytest.approx(2 * 3 * US)
    assert told["router"] == 0.0
    assert [gemm.role for gemm in phase.gemms if gemm.axis == "added"] == ["estimator"]
    assert "estimator" in phase.roles and "router" not in phase.roles
    assert told[KEY_VALUE] == 0.0  # no token was skipped
    assert told[WEIGHTS] == 0.0


def test_weights_read_are_unknown_without_peaks(tmp_path: Path) -> None:
    def cpu(trace: dict[str, Any]) -> dict[str, Any]:
        return {**trace, "deviceProperties": []}

    unknown = {"device": {"kind": "cpu", "name": "some CPU"}}
    compared = pair(
        tmp_path, cpu(dense_rows()), cpu(routed_rows()), pruned_run=unknown, dense_run=unknown
    )
    (phase,) = compared.phases.values()
    assert phase.overhead is not None
    assert parts(phase.overhead)[WEIGHTS] is None
    assert parts(phase.overhead)[KEY_VALUE] == pytest.approx(40 * US)


def test_a_static_family_has_none(tmp_path: Path) -> None:
    dense = layers(("mlp.up_proj", mm()), ("mlp.down_proj", mm(n=K, k_=N)))
    half = layers(("mlp.up_proj", mm(n=N // 2, us=50)), ("mlp.down_proj", mm(n=K, k_=N // 2)))
    for pruned in (half, dense):
        (phase,) = report(tmp_path, dense, pruned).phases.values()
        assert phase.overhead is None


def test_copied_steps_are_means(tmp_path: Path) -> None:
    """Five steps of one layer each: parts are those of a step."""
    dense = chrome(*(step(i, *_layer(0, routed=False)) for i in range(5)))
    pruned = chrome(*(step(i, *_layer(0, routed=True)) for i in range(5)))
    cost, _ = paid(tmp_path, dense, pruned)
    assert parts(cost)["router"] == pytest.approx(4 * US)
    assert cost.break_even_ci95 is not None


def _layer(index: int, *, routed: bool, rows: int = ACTIVE) -> list[Any]:
    rows = rows if routed else B
    at = f"model.layers.{index}.self_attn"
    router = op("aten::mm", [B, K], [K, 1], dtype=BF16, kernels=[k(us=4, name="gemv_kernel")])
    items = [
        module(f"{at}.q_proj", mm(m=rows, us=100 * rows / B)),
        module(f"{at}.k_proj", mm(m=B, us=20)),
        module(f"{at}.o_proj", mm(m=rows, us=100 * rows / B)),
    ]
    return [module(f"{at}.router", router), *items] if routed else items


def test_a_layer_that_skipped_nothing_counts_where_layers_decide(tmp_path: Path) -> None:
    """Of two layers one lost half of the rows of q and o: a quarter is gone, not a half."""
    dense = chrome(step(0, *_layer(0, routed=False), *_layer(1, routed=False)))
    pruned = chrome(step(0, *_layer(0, routed=True), *_layer(1, routed=True, rows=B)))
    cost, phase = paid(tmp_path, dense, pruned)
    assert phase.family is not None
    assert phase.family.id == "dynamic-m"
    assert cost.sparsity == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("gain", "fixed", "kept", "sparsity", "expected"),
    [
        (100.0, 20.0, 0.0, 0.5, 0.1),  # 200·s = 20
        (100.0, 0.0, 50.0, 0.5, 100 / 300),  # 200·s = 100·(1 - s)
        (100.0, 0.0, 0.0, 0.5, 0.0),  # nothing was added
        (100.0, 50.0, 0.0, 1.0, 0.5),
        (100.0, 200.0, 0.0, 0.5, None),  # at s = 1 gain and overhead are equal
        (0.0, 1.0, 0.0, 0.5, None),
        (100.0, 1.0, 0.0, 0.0, None),
        (100.0, 1.0, 0.0, None, None),
    ],
)
def test_break_even_by_hand(
    gain: float, fixed: float, kept: float, sparsity: float | None, expected: float | None
) -> None:
    at, why = break_even(gain=gain, fixed=fixed, kept=kept, sparsity=sparsity)
    assert at == (None if expected is None else pytest.approx(expected))
    assert (why is None) == (expected is not None)


@pytest.mark.parametrize("fixed", [5.0, 40.0, 80.0, 120.0])
@pytest.mark.parametrize("sparsity", [0.2, 0.5, 0.9])
def test_a_step_is_faster_exactly_beyond_its_break_even(fixed: float, sparsity: float) -> None:
    gain, kept = 100.0, 10.0
    at, _ = break_even(gain=gain, fixed=fixed, kept=kept, sparsity=sparsity)
    assert (gain > fixed + kept) == (at is not None and sparsity > at)


def test_pareto_tells_the_parts_of_the_report() -> None:
    ledger = [example.row("dense", 10.0), example.row("added_work", 0.5), example.row("pruned", 9)]
    told = Overhead(
        parts=[
            OverheadPart(name="gather", ns=0.5e6, added=True),
            OverheadPart(name=HOST, ns=1.5e6, added=True),
            OverheadPart(name=WEIGHTS, ns=9e6, added=False),
        ],
        added_ns=2e6, saved_ns=3e6, sparsity=0.5, break_even=0.4,
    )  # fmt: skip
    added = weigh_added_work(ledger, told)
    assert added is not None
    assert added.saved_ns == pytest.approx(3e6)  # 10 - 9 + 2 ms
    assert added.share_of_saved == pytest.approx(2 / 3)
    assert added.without == pytest.approx(10 / 7)  # 9 - 2 ms
    assert (added.sparsity, added.break_even) == (0.5, 0.4)
    assert [(part.name, part.ns) for part in added.parts] == [(HOST, 1.5e6), ("gather", 0.5e6)]
    assert weigh_added_work(None) is None
