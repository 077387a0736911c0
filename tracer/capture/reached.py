"""How fast matrix products ran in the profiled steps: evidence of what the device can do at least.

In: Chrome traces of sessions, one at a time. Out: FLOP/s by dtype, the best over shapes of the
median over calls; the profiler's own cost is in it, so that it is never too high.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from math import prod
from typing import Any

from prunescope.taxonomy.dtypes import dtype as dtype_name
from prunescope.tracer.capture.chrome import DEVICE, ChromeTrace, Event

_CALLS = 3  # fewer have no median
# Which two of an op's inputs are multiplied: [..., M, K] and [..., K, N].
_PRODUCTS = {"aten::mm": 0, "aten::bmm": 0, "aten::addmm": 1, "aten::baddbmm": 1}


class Reached:
    """The products of the traces so far."""

    def __init__(self) -> None:
        self._us: dict[tuple[str, int], list[float]] = defaultdict(list)  # by dtype and FLOP

    def add(self, trace: ChromeTrace) -> None:
        """Those of one more trace."""
        events = [e for e in trace["traceEvents"] if e["ph"] == "X"]
        on_device = _device_us(events)
        for event in events:
            key = _work(event) if event.get("cat") == "cpu_op" else None
            if key is None:
                continue
            us = event["dur"]
            if on_device is not None:
                us = on_device.get(event["args"].get("External id"), 0.0)
            if us > 0:
                self._us[key].append(us)

    def rates(self) -> dict[str, float]:
        """{dtype: FLOP/s} of all traces together; a dtype without enough calls is left out."""
        rates: dict[str, float] = {}
        for (dtype, flop), found in self._us.items():
            if len(found) >= _CALLS:
                rates[dtype] = max(rates.get(dtype, 0.0), flop / statistics.median(found) * 1e6)
        return rates


def _device_us(events: list[Event]) -> dict[Any, float] | None:
    """Microseconds of kernels by the op that launched them; None where no device ran any."""
    found: dict[Any, float] = defaultdict(float)
    kernels = [event for event in events if event.get("cat") in DEVICE]
    for event in kernels:
        found[event.get("args", {}).get("External id")] += event["dur"]
    found.pop(None, None)
    return found if kernels else None


def _work(event: Event) -> tuple[str, int] | None:
    """(dtype, FLOP) of a product; None for every other op."""
    at = _PRODUCTS.get(event["name"])
    args = event.get("args", {})
    dims, types = args.get("Input Dims") or [], args.get("Input type") or []
    if at is None or len(dims) < at + 2 or len(types) <= at:
        return None
    left, right = dims[at], dims[at + 1]
    dtype = dtype_name(str(types[at]))
    if dtype is None or min(len(left), len(right)) < 2:  # noqa: PLR2004 - a matrix has two sides
        return None
    return dtype, 2 * prod(left) * right[-1]
