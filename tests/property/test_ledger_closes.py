"""The ledger closes for any units, and dense against dense is zero: properties, not examples."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prunescope.analysis.ledger import noise
from prunescope.analysis.ledger.alignment import Alignment
from prunescope.analysis.ledger.attribution import attribution_inputs
from prunescope.analysis.ledger.ledger import (
    ROWS,
    SideTimes,
    Split,
    ratios,
    scale_idle,
    split,
    subtract_profiler_overhead,
    times,
    uniform,
)
from prunescope.analysis.ledger.noise import bootstrap, choose_time_base, halves, point
from prunescope.analysis.ledger.pairing import RecordWeight, Units, UnitSums
from prunescope.analysis.ledger.rows import build_rows

QUIET = settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
NS = st.integers(0, 10**7).map(float)
COUNT = st.integers(0, 50).map(float)
WORK = st.sampled_from([float("nan"), 0.0]) | st.floats(1, 1e15)  # no device does less than 1
KEYS = [(layer, role, cls) for layer in (None, 0, 1, -2)
        for role, cls in (("q", "matmul"), ("attention", "attention"), ("residual", "pointwise"),
                          ("q", "gather_scatter"))]  # fmt: skip
MODELLED = ("flop", "bytes", "ideal", "predicted")


@st.composite
def sides(draw: st.DrawFn, num: int, present: list[bool]) -> UnitSums:
    steps = draw(st.sampled_from([1, 2, 5]))  # one; too few for intervals; enough

    def column(values: Any) -> np.ndarray:
        cells = [[draw(values) if here else 0.0 for _ in range(steps)] for here in present]
        return np.array(cells, float).reshape(num, steps)

    work = {name: column(WORK) for name in MODELLED}
    trailing_idle = np.array([draw(NS) for _ in range(steps)])
    recorded = None
    if draw(st.booleans()):
        inside, before = (np.array([draw(COUNT) for _ in present]) for _ in range(2))
        recorded = RecordWeight(inside, before, draw(COUNT))
    return UnitSums(
        column(NS), column(NS), **work,
        present=np.array(present, bool), trailing_idle=trailing_idle, recorded=recorded,
    )  # fmt: skip


@st.composite
def pairs_of_sides(draw: st.DrawFn) -> Units:
    """Units that are matched, removed or added, each at random."""
    keys = draw(st.lists(st.sampled_from(KEYS), unique=True, min_size=1, max_size=8))
    where = [draw(st.sampled_from(["both", "both", "dense", "pruned"])) for _ in keys]
    dense = draw(sides(len(keys), [w != "pruned" for w in where]))
    pruned = draw(sides(len(keys), [w != "dense" for w in where]))
    return Units(keys, dense, pruned, Alignment({}, [], "identity", True, 2))


@pytest.fixture(autouse=True, scope="module")
def _few_replicates() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(noise, "REPLICATES", 20)
        yield


def closes(ledger: Split) -> None:
    rows = sum(ledger.total(name) for name in ROWS[1:-1])
    scale_of = np.maximum(ledger.dense, ledger.pruned) + sum(
        np.abs(r).sum(axis=0) for r in ledger.rows.values()
    )
    assert np.all(np.isfinite(rows))
    assert np.all(np.abs(rows - ledger.pruned) <= 1e-9 * np.maximum(scale_of, 1.0))


SPARSITY = st.none() | st.floats(0, 0.99)


@QUIET
@given(units=pairs_of_sides(), sparsity=SPARSITY)
def test_rows_sum_to_the_pruned_wall(units: Units, sparsity: float | None) -> None:
    ratio = ratios(units, sparsity)
    ledger = split(units, ratio, times(units, uniform(units.dense), uniform(units.pruned)))
    d, p = units.dense, units.pruned
    wall_d = (d.busy.sum() + d.gap.sum() + d.trailing_idle.sum()) / d.busy.shape[1]
    wall_p = (p.busy.sum() + p.gap.sum() + p.trailing_idle.sum()) / p.busy.shape[1]
    assert ledger.dense[0] == pytest.approx(wall_d, abs=1e-3)
    assert ledger.pruned[0] == pytest.approx(wall_p, abs=1e-3)
    closes(ledger)


@QUIET
@given(units=pairs_of_sides(), sparsity=SPARSITY, device=st.booleans(),
       walls=st.lists(st.integers(1, 10**9), min_size=2, max_size=6))  # fmt: skip
def test_every_replicate_closes(
    *, units: Units, sparsity: float | None, device: bool, walls: list[int]
) -> None:
    """The point, the bootstrap and the halves, in whichever domain the samples put them."""
    half = len(walls) // 2
    domain = choose_time_base(units, walls[:half], walls[half:], on_device=device)
    ratio = ratios(units, sparsity)
    main = point(units, ratio, domain)
    closes(main)
    if domain.unprofiled:
        assert main.dense[0] == pytest.approx(np.median(walls[:half]), rel=1e-9, abs=1e-6)
        assert main.pruned[0] == pytest.approx(np.median(walls[half:]), rel=1e-9, abs=1e-6)
    boot, twin = bootstrap(units, ratio, domain), halves(units, domain)
    assert (twin is None) == (units.dense.busy.shape[1] < 2)
    for replicates in (boot, twin):
        if replicates is not None:
            closes(replicates)


@QUIET
@given(units=pairs_of_sides())
def test_dense_against_itself_is_zero(units: Units) -> None:
    same = Units(units.keys, units.dense, units.dense, units.alignment)
    ledger = point(same, ratios(same, None), choose_time_base(same, [], [], on_device=True))
    wall = ledger.dense[0]
    assert ledger.promised[0] == pytest.approx(wall)
    assert ledger.pruned[0] == wall
    for name in ROWS[2:-1]:
        assert ledger.total(name)[0] == pytest.approx(0, abs=1e-9 * max(wall, 1.0))


@QUIET
@given(units=pairs_of_sides(), sparsity=SPARSITY)
def test_parts_sum_to_their_row(units: Units, sparsity: float | None) -> None:
    inputs = attribution_inputs(units, nominal=sparsity, samples_ns=([], []), on_device=True)
    ledger = inputs.ledger
    rows = build_rows(inputs, halves(units, inputs.time_base), lambda *_: ["a kernel"])
    assert [r.row for r in rows] == list(ROWS)
    slack = max(1e-2, 1e-9 * sum(float(np.abs(r).sum()) for r in ledger.rows.values()))
    for row in rows:
        want = ledger.total(row.row)[0]
        assert row.ns == pytest.approx(want, abs=slack)
        if row.parts:
            assert sum(p.ns for p in row.parts) == pytest.approx(row.ns, abs=slack)
        names = [(p.role, p.cls) for p in row.parts]
        assert len(names) == len(set(names))
    between = sum(r.ns for r in rows[1:-1])
    assert between == pytest.approx(rows[-1].ns, abs=slack)


@QUIET
@given(busy=NS, gap=NS, trailing_idle=NS, wall=st.integers(1, 10**8))
def test_scaling_reaches_the_wall(busy: float, gap: float, trailing_idle: float, wall: int) -> None:
    """A device keeps its busy time, and idles φ = (W - busy) / (wall - busy) of what it did; a CPU
    whose records are unknown is scaled as a whole."""
    if busy + gap + trailing_idle == 0:
        return  # nothing that could be scaled
    side, walls = (
        SideTimes(np.array([[busy]]), np.array([[gap]]), np.array([trailing_idle])),
        np.array([float(wall)]),
    )
    scaled = subtract_profiler_overhead(side, walls, None)
    assert scaled.wall[0] == pytest.approx(wall, rel=1e-9, abs=1e-6)
    factor = wall / (busy + gap + trailing_idle)
    assert (scaled.busy[0, 0], scaled.gap[0, 0]) == (
        pytest.approx(busy * factor),
        pytest.approx(gap * factor),
    )
    if gap + trailing_idle > 0:
        scaled = scale_idle(side, walls)
        assert scaled.wall[0] == pytest.approx(wall, rel=1e-9, abs=1e-6)
        assert scaled.busy[0, 0] == busy


@QUIET
@given(
    busy=NS,
    gap=NS,
    trailing_idle=NS,
    inside=COUNT,
    before=COUNT,
    after=COUNT,
    wall=st.integers(1, 10**8),
)
def test_what_records_cost_is_taken_by_their_number(
    *, busy: float, gap: float, trailing_idle: float,
    inside: float, before: float, after: float, wall: int,
) -> None:  # fmt: skip
    """Parts reach the wall, none below 0; one without records loses by the factor of all alone,
    which no part with records loses less than."""
    total = busy + gap + trailing_idle
    if not 0 < wall < total:
        return
    side = SideTimes(np.array([[busy]]), np.array([[gap]]), np.array([trailing_idle]))
    cost = RecordWeight(np.array([inside]), np.array([before]), after)
    scaled = subtract_profiler_overhead(side, np.array([float(wall)]), cost)
    b, g, t = (float(x.ravel()[0]) for x in (scaled.busy, scaled.gap, scaled.trailing_idle))
    assert b + g + t == pytest.approx(wall, rel=1e-9, abs=1e-6)
    kept = [(new / old, weight) for new, old, weight in
            ((b, busy, inside), (g, gap, before), (t, trailing_idle, after)) if old]  # fmt: skip
    assert min(share for share, _ in kept) >= 0
    without = [share for share, weight in kept if not weight]
    if without:
        assert max(share for share, _ in kept) <= min(without) * (1 + 1e-9)
