"""The times of a CPU by the size of an op: GEMMs over M, N and K, and element-wise ops by bytes.

A device gives ns, medians over a few calls. The rate of a GEMM depends on its size: a product of
one row has the speed of a read, a narrow one that of its overhead, and no size reaches the peak of
all. Each call takes other weights than the ones before it, as the layers of a model do: they come
from the last cache if it holds them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import cycle, product

import torch

from prunescope.taxonomy.dtypes import ITEMSIZE
from prunescope.taxonomy.runs.run_blocks import GemmGrid, StreamTimes
from prunescope.tracer.machine.op_cost import CallCost, measure_op_cost
from prunescope.tracer.machine.timed_calls import TORCH_DTYPES, times_ns

DTYPES = ("bf16", "fp32")
# Multiples of 64, threefold each: powers of two would meet in the same lines of a cache.
_ROWS = (1, 8, 64, 512)
_WIDTHS = (64, 192, 576, 1728, 5184)
_STREAM_BYTES = tuple(3 << power for power in range(10, 26, 3))  # 3 KiB to 96 MiB
_MOST_CALLS = 7
# The weights that calls of one size go through in turn: so many bytes, and so many weights.
_WEIGHTS_BYTES, _LEAST_WEIGHTS = 8 << 20, 3
_CELL_S = 0.02  # of one size; a longer call is made once after its warm-up


@dataclass(frozen=True, kw_only=True)
class PassTimes:
    """Times of GEMMs by dtype, of element-wise ops, and of an op's call in a model.

    They are empty and None where not measured.
    """

    gemms: dict[str, GemmGrid] = field(default_factory=dict)
    streams: StreamTimes | None = None
    cost: CallCost | None = None


def measure_times(device: torch.device) -> PassTimes:
    """Measure the times of a device by size; this takes some seconds."""
    with torch.inference_mode():
        return PassTimes(
            gemms={dtype: _measure_gemms(device, dtype) for dtype in DTYPES},
            streams=_measure_streams(device),
            cost=measure_op_cost(),
        )


def least_times(passes: Sequence[PassTimes]) -> PassTimes:
    """Return the least time of each size over passes of equal sizes; empty without passes."""
    if not passes:
        return PassTimes()
    first = passes[0]
    gemms = {
        dtype: GemmGrid(
            m=grid.m, n=grid.n, k=grid.k, ns=_least([p.gemms[dtype].ns for p in passes])
        )
        for dtype, grid in first.gemms.items()
    }
    streams = [p.streams for p in passes if p.streams is not None]
    return PassTimes(
        gemms=gemms,
        streams=StreamTimes(bytes=streams[0].bytes, ns=_least([s.ns for s in streams]))
        if streams
        else None,
        cost=_least_cost([p.cost for p in passes if p.cost is not None]),
    )


def _least_cost(costs: Sequence[CallCost]) -> CallCost | None:
    """Return the least costs; None without any."""
    if not costs:
        return None
    return CallCost(
        op_ns=min(cost.op_ns for cost in costs),
        forward_ns=min(cost.forward_ns for cost in costs),
    )


def _least(times: Sequence[Sequence[int]]) -> list[int]:
    """Return the least of each position."""
    return [min(values) for values in zip(*times, strict=True)]


def _measure_gemms(device: torch.device, dtype: str) -> GemmGrid:
    """Time the GEMMs of a grid of sizes."""
    ns = [
        _median_ns(_products(device, dtype, m, n, k), device)
        for m, n, k in product(_ROWS, _WIDTHS, _WIDTHS)
    ]
    return GemmGrid(m=list(_ROWS), n=list(_WIDTHS), k=list(_WIDTHS), ns=ns)


def _products(
    device: torch.device, dtype: str, m: int, n: int, k: int
) -> Callable[[], torch.Tensor]:
    """Return a function that multiplies A by the transpose of the next of several weights."""
    kind = TORCH_DTYPES[dtype]
    count = max(_LEAST_WEIGHTS, int(_WEIGHTS_BYTES // (n * k * ITEMSIZE[dtype])))
    a = torch.randn(m, k, device=device).to(kind)
    weights = cycle(torch.randn(count, n, k, device=device).to(kind).unbind())
    return lambda: a @ next(weights).mT


def _measure_streams(device: torch.device) -> StreamTimes:
    """Time products of two tensors, element by element, by the bytes read and written."""
    ns = []
    for size in _STREAM_BYTES:
        a = torch.ones(size // 3 // 4, dtype=torch.float32, device=device)
        b, out = torch.ones_like(a), torch.empty_like(a)
        ns.append(_median_ns(_multiplied(a, b, out), device))
    return StreamTimes(bytes=list(_STREAM_BYTES), ns=ns)


def _multiplied(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> Callable[[], torch.Tensor]:
    """Return a function that multiplies `a` and `b` into `out`."""
    return lambda: torch.mul(a, b, out=out)


def _median_ns(run: Callable[[], object], device: torch.device) -> int:
    """Return the median ns of a few calls, one at least."""
    deadline = time.perf_counter() + _CELL_S
    return max(
        1, round(statistics.median(times_ns(run, device, deadline=deadline, most=_MOST_CALLS)))
    )
