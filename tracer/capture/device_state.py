"""The device of a capture before and after it: `device` and `timing` of run.json.

Every capture, ours or that of a user's loop, lies between `DeviceState.open` and `close`. The rates
that matrix products reached in its profiled steps are evidence of what the device can do at least.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from math import prod
from typing import Any

import torch

from prunescope.taxonomy.dtypes import dtype as dtype_name
from prunescope.taxonomy.formats import changed
from prunescope.taxonomy.kept_calibrations import newest_calibration
from prunescope.taxonomy.runs.run_blocks import Clocks, DeviceEntry, MeasuredPeaks, TimingNote
from prunescope.tracer.capture.chrome import DEVICE, ChromeTrace, Event
from prunescope.tracer.machine.device import device_info, read_clocks, timing_note
from prunescope.tracer.machine.host import load_average
from prunescope.tracer.machine.peaks import better_peaks, measure_peaks, rates_of

_CALLS = 3  # fewer calls of a shape have no useful median
# Which two of an op's inputs are multiplied: [..., M, K] and [..., K, N].
_PRODUCTS = {"aten::mm": 0, "aten::bmm": 0, "aten::addmm": 1, "aten::baddbmm": 1}


class DeviceState:
    """The state of a device around a capture.

    All runs of a capture share `entry`, which is `device` of the manifest and None before `open`.
    `achieved` holds the rates of the products in profiled steps. `peaks` were measured elsewhere;
    if None, they are measured here, before and after the capture.
    """

    def __init__(self, device: torch.device, peaks: MeasuredPeaks | None = None) -> None:
        self.device = device
        self._load_before = load_average()
        self._given_peaks = peaks
        self._dtype = ""
        self.entry: DeviceEntry | None = None
        self.achieved = AchievedRates()

    def open(self, dtype: str) -> DeviceEntry:
        """Return the entry of the device, with clocks and peaks from before the capture."""
        if self.entry is None:
            self._dtype = dtype_name(dtype) or "fp32"
            entry = self.entry = device_info(self.device)
            entry.peaks = self._given_peaks or measure_peaks(self.device, self._dtype)
            entry.calibration = newest_calibration(str(entry.name))
            entry.clocks = Clocks(before=read_clocks(self.device))
        return self.entry

    def close(self) -> TimingNote:
        """Complete the entry after the capture, and return the note on how busy the machine was.

        Another process lowers a measured peak, so that the better of before and after counts. The
        rates that products achieved are stored next to it.
        """
        entry = self.open(self._dtype)
        assert entry.clocks is not None
        assert entry.peaks is not None
        entry.clocks = changed(entry.clocks, after=read_clocks(self.device))
        note = timing_note(self._load_before)
        before = peaks = entry.peaks
        if self._given_peaks is None:
            # Of a disturbed measurement another shape may have been the best one.
            known = None if before.disturbed else before
            after = measure_peaks(self.device, self._dtype, known)
            peaks = better_peaks(before, after)
            peaks = changed(peaks, before=rates_of(before), after=rates_of(after))
        entry.peaks = changed(peaks, reached=self.achieved.rates())
        return note


class AchievedRates:
    """FLOP/s of matrix products in profiled steps, by dtype.

    A rate is the best over shapes of the median over calls. Profiler overhead is included, so that
    a rate is never too high.
    """

    def __init__(self) -> None:
        self._us: dict[tuple[str, int], list[float]] = defaultdict(list)  # by dtype and FLOP

    def add(self, trace: ChromeTrace) -> None:
        """Add the products of a session's trace."""
        events = [e for e in trace["traceEvents"] if e["ph"] == "X"]
        on_device = _sum_device_us(events)
        for event in events:
            key = _product_work(event) if event.get("cat") == "cpu_op" else None
            if key is None:
                continue
            us = event["dur"]
            if on_device is not None:
                us = on_device.get(event["args"].get("External id"), 0.0)
            if us > 0:
                self._us[key].append(us)

    def rates(self) -> dict[str, float]:
        """Return {dtype: FLOP/s} of all traces together.

        A dtype without three calls of one shape is left out.
        """
        rates: dict[str, float] = {}
        for (dtype, flop), calls_us in self._us.items():
            if len(calls_us) >= _CALLS:
                rates[dtype] = max(rates.get(dtype, 0.0), flop / statistics.median(calls_us) * 1e6)
        return rates


def _sum_device_us(events: list[Event]) -> dict[Any, float] | None:
    """Sum the microseconds of kernels by their op; None where no device ran any."""
    op_us: dict[Any, float] = defaultdict(float)
    kernels = [event for event in events if event.get("cat") in DEVICE]
    for event in kernels:
        op_us[event.get("args", {}).get("External id")] += event["dur"]
    op_us.pop(None, None)
    return op_us if kernels else None


def _product_work(event: Event) -> tuple[str, int] | None:
    """Return (dtype, FLOP) of a matrix product; None for every other op."""
    at = _PRODUCTS.get(event["name"])
    args = event.get("args", {})
    dims, types = args.get("Input Dims") or [], args.get("Input type") or []
    if at is None or len(dims) < at + 2 or len(types) <= at:
        return None
    left, right = dims[at], dims[at + 1]
    dtype = dtype_name(str(types[at]))
    if dtype is None or min(len(left), len(right)) < 2:  # a matrix has two
        return None
    return dtype, 2 * prod(left) * right[-1]
