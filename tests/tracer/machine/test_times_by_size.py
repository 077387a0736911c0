"""Times of a CPU by the size of an op: GEMMs, streams, and the cost of an op in a model."""

from __future__ import annotations

import pytest
import torch

from prunescope.taxonomy.contradictions import contradictions
from prunescope.taxonomy.runs.run_blocks import GemmGrid, StreamTimes
from prunescope.tracer.machine import times_by_size
from prunescope.tracer.machine.op_cost import CallCost, OpCounter, measure_op_cost
from prunescope.tracer.machine.times_by_size import PassTimes, least_times, measure_times

pytestmark = pytest.mark.torch


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two sizes of each axis, so that the measurement takes a moment."""
    monkeypatch.setattr(times_by_size, "_ROWS", (1, 8))
    monkeypatch.setattr(times_by_size, "_WIDTHS", (32, 64))
    monkeypatch.setattr(times_by_size, "_STREAM_BYTES", (3 << 10, 3 << 14))
    monkeypatch.setattr(times_by_size, "_WEIGHTS_BYTES", 1 << 16)
    monkeypatch.setattr(times_by_size, "_CELL_S", 0.001)


@pytest.mark.usefixtures("few")
def test_every_size_of_a_grid_has_a_time() -> None:
    times = measure_times(torch.device("cpu"))
    assert set(times.gemms) == {"bf16", "fp32"}
    for grid in times.gemms.values():
        assert (grid.m, grid.n, grid.k) == ([1, 8], [32, 64], [32, 64])
        assert list(contradictions(grid)) == []
    assert times.streams is not None
    assert list(contradictions(times.streams)) == []


def test_the_least_of_each_size_counts() -> None:
    def of_pass(*ns: int, op_ns: float) -> PassTimes:
        return PassTimes(
            gemms={"fp32": GemmGrid(m=[1], n=[32, 64], k=[32], ns=list(ns[:2]))},
            streams=StreamTimes(bytes=[10], ns=[ns[2]]),
            cost=CallCost(op_ns=op_ns, forward_ns=10 - op_ns),
        )

    least = least_times([of_pass(3, 8, 5, op_ns=4), of_pass(4, 7, 6, op_ns=3)])
    assert least.gemms["fp32"].ns == [3, 7]
    assert least.streams is not None and least.streams.ns == [5]
    assert least.cost == CallCost(op_ns=3, forward_ns=6)
    assert least_times([]) == PassTimes()


def test_ops_are_counted_without_views() -> None:
    """Two ops make tensors of their own; a transposed and a sliced one share theirs."""
    x = torch.ones(2, 3)
    with torch.inference_mode(), OpCounter() as counter:
        (x * x).transpose(0, 1)[1:] + 1
    assert counter.ops == 2


def test_an_op_takes_time() -> None:
    cost = measure_op_cost()
    assert cost.op_ns > 0
    assert cost.forward_ns >= 0
