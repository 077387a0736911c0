"""Intervals of what a dynamic family pays: of the ledger's replicates, and parts that sum in each.

Times are us on the device; two or three steps of one layer, without unprofiled samples.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from prunescope.analysis.ledger import dynamic_overhead, noise
from prunescope.analysis.ledger.alignment import Alignment
from prunescope.analysis.ledger.attribution import attribution_inputs
from prunescope.analysis.ledger.dynamic_overhead import ADDED, HOST, KEY_VALUE, WEIGHTS
from prunescope.analysis.ledger.pairing import RecordWeight, Units, UnitSums
from prunescope.analysis.ledger.samples import Samples
from prunescope.analysis.schema.report import Overhead
from tests.analysis.finding_cases import BF16, mm, pair
from tests.analysis.ledger.test_dynamic_overhead import ACTIVE, US, B, K, paid
from tests.chrome import chrome, gap, k, module, op, step

AT = "model.layers.0.self_attn"


@pytest.fixture(autouse=True)
def _two_steps_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that intervals follow by hand."""
    monkeypatch.setattr(noise, "LEAST_STEPS", 2)


def layer(*, gather_us: float | None = None, wait_us: float = 0) -> list[Any]:
    """q, k and o of eight rows; routed, of four, behind a router of 4 us, a top-k of 2 us and the
    gather, which are all units of work that only the pruned side has."""
    rows = B if gather_us is None else ACTIVE
    items = [
        module(f"{AT}.q_proj", mm(m=rows, us=100 * rows / B)),
        module(f"{AT}.k_proj", mm(m=B, us=20)),
        module(f"{AT}.o_proj", mm(m=rows, us=100 * rows / B)),
    ]
    if gather_us is None:
        return items
    router = [
        gap(us=wait_us),
        op("aten::mm", [B, K], [K, 1], dtype=BF16, kernels=[k(us=4, name="gemv_kernel")]),
        op("aten::topk", [B], [], dtype=BF16, kernels=[k(us=2, name="topk")]),
    ]
    gather = op("aten::index_select", [B, K], [], [ACTIVE], dtype=BF16,
                kernels=[k(us=gather_us, name="indexSelectSmallIndex")])  # fmt: skip
    # What waits before a step's first kernel is its lead.
    return [items[1], module(f"{AT}.router", *router), module(AT, gather), items[0], items[2]]


def two_steps(tmp_path: Path) -> Overhead:
    """The gather takes 2 us in one step and 10 in the other, the wait 7 and 9."""
    dense = chrome(*(step(i, *layer()) for i in range(2)))
    routed = (layer(gather_us=2, wait_us=7), layer(gather_us=10, wait_us=9))
    return paid(tmp_path, dense, chrome(*(step(i, *items) for i, items in enumerate(routed))))[0]


def test_each_part_has_the_interval_of_its_own_steps(tmp_path: Path) -> None:
    """Two steps of one placement, drawn as they are: from one of them alone to the other."""
    cost = two_steps(tmp_path)
    ends = {part.name: part.ci95 for part in cost.parts}
    assert ends["gather"] == pytest.approx([2 * US, 10 * US])
    assert ends["router"] == pytest.approx([4 * US, 4 * US])
    assert ends["index building"] == pytest.approx([2 * US, 2 * US])
    assert ends["estimator"] == [0, 0]
    assert ends[HOST] == pytest.approx([7 * US, 9 * US])
    assert ends[KEY_VALUE] == pytest.approx([10 * US, 10 * US])  # half of 20, in both
    (shift,) = (part for part in cost.parts if part.name == WEIGHTS)
    assert shift.ci95 == pytest.approx([shift.ns, shift.ns])


def test_the_sums_have_theirs(tmp_path: Path) -> None:
    """15 and 25 us are added. 220 us of dense, and 120 + 15 and 120 + 25 of pruned: 100 saved."""
    cost = two_steps(tmp_path)
    assert cost.added_ns == pytest.approx(20 * US)
    assert cost.added_ci95 == pytest.approx([15 * US, 25 * US])
    assert cost.saved_ci95 == pytest.approx([100 * US, 100 * US])


def test_one_step_tells_none(tmp_path: Path) -> None:
    cost, _ = paid(
        tmp_path, chrome(step(0, *layer())), chrome(step(0, *layer(gather_us=2, wait_us=7)))
    )
    assert all(part.ci95 is None for part in cost.parts)
    assert cost.added_ci95 is None and cost.saved_ci95 is None


def test_what_is_not_known_has_no_interval(tmp_path: Path) -> None:
    """Without peaks nobody knows which bytes bind, and what reading all weights costs."""
    bare, unknown = {"deviceProperties": []}, {"device": {"kind": "cpu", "name": "some CPU"}}
    dense, routed = (
        chrome(*(step(i, *layer(gather_us=us)) for i in range(2))) | bare for us in (None, 2)
    )
    compared = pair(tmp_path, dense, routed, pruned_run=unknown, dense_run=unknown)
    (phase,) = compared.phases.values()
    assert phase.overhead is not None
    ends = {part.name: (part.ns, part.ci95) for part in phase.overhead.parts}
    assert ends[WEIGHTS] == (None, None)
    assert ends[KEY_VALUE] == (pytest.approx(10 * US), pytest.approx([10 * US, 10 * US]))


def side(draw: np.random.Generator, present: list[bool]) -> UnitSums:
    """Four placements of a step, each unit 50 to 150 ns; two records in each unit, one before
    it."""
    busy = draw.uniform(50, 150, (len(present), 4)) * np.array(present)[:, None]
    known = np.ones_like(busy)
    cost = RecordWeight(2.0 * np.array(present), 1.0 * np.array(present), 0.0)
    return UnitSums(busy, known, known, known, known, known, np.array(present), np.zeros(4), cost)


@pytest.mark.parametrize("on_device", [True, False])
def test_parts_of_a_replicate_sum_to_its_added_work(on_device: bool) -> None:
    """Two added units, in one of which a part takes 30 to 70 % of the time, and another the rest;
    in either domain."""
    draw = np.random.default_rng(4)
    keys = [(0, "q", "matmul"), (0, "router", "gather"), (0, "router", "pointwise")]
    units = Units(keys, side(draw, [True, False, False]), side(draw, [True, True, True]),
                  Alignment({0: 0}, [], "identity", True, 1))  # fmt: skip
    walls = [[160, 162], [158, 161], [165, 163], [155, 157]], [[500, 505], [510, 503]] * 2
    samples = tuple(Samples.of(placements, [1] * 4) for placements in walls)
    inputs = attribution_inputs(units, nominal=0.5, samples_ns=samples, on_device=on_device)
    drawn = inputs.replicates
    assert inputs.time_base.unprofiled and drawn is not None
    share = draw.uniform(0.3, 0.7, 4)
    busy = units.pruned.busy
    rows = [(1, s, "gather", share[s] * busy[1, s]) for s in range(4)]
    rows += [(1, s, "scatter", (1 - share[s]) * busy[1, s]) for s in range(4)]
    rows += [(2, s, "scatter", busy[2, s]) for s in range(4)]
    spent = pl.DataFrame(rows, schema=["unit", "step", "part", "busy"], orient="row")
    by_part = dynamic_overhead._replicate_parts(inputs, drawn, spent)
    assert set(by_part) == {"gather", "scatter"} <= set(ADDED)
    assert sum(by_part.values()) == pytest.approx(drawn.total("added_work"))
    if on_device:  # busy time is as recorded, so a part is what its steps weigh
        assert by_part["gather"] == pytest.approx((share * busy[1]) @ drawn.steps[1])
    assert by_part["gather"].std() > 0
