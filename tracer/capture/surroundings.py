"""The device of a capture, and how it was before and after: `device` and `timing` of run.json.

Every capture is taken between `Surroundings.look` and `close`, ours and a user's alike.
"""

from __future__ import annotations

import torch

from prunescope.taxonomy.dtypes import dtype as dtype_name
from prunescope.taxonomy.formats import changed
from prunescope.taxonomy.run_blocks import (
    Clocks,
    DeviceEntry,
    MeasuredPeaks,
    TimingNote,
)
from prunescope.tracer.capture.reached import Reached
from prunescope.tracer.machine.calibrate import newest
from prunescope.tracer.machine.clocks import read_clocks
from prunescope.tracer.machine.conditions import timing_note
from prunescope.tracer.machine.device import device_info, load_average
from prunescope.tracer.machine.peaks import better_peaks, measure_peaks, rates_of


class Surroundings:
    """`entry`: the manifest's `device`, None before `look`; all runs of a capture share it.
    `reached`: what the products of its profiled steps did."""

    def __init__(self, device: torch.device, peaks: MeasuredPeaks | None = None) -> None:
        self._device = device
        self._load_before = load_average()
        self._given = peaks
        self._dtype = ""
        self.entry: DeviceEntry | None = None
        self.reached = Reached()

    def look(self, dtype: str) -> DeviceEntry:
        """The entry of the device; its peaks are measured where none were given."""
        if self.entry is None:
            self._dtype = dtype_name(dtype) or "fp32"
            entry = self.entry = device_info(self._device)
            entry.peaks = self._given or measure_peaks(self._device, self._dtype)
            entry.calibration = newest(str(entry.name))
            entry.clocks = Clocks(before=read_clocks(self._device))
        return self.entry

    def close(self) -> TimingNote:
        """Peaks and clocks after the capture go into the entry; returns the note on how busy it
        was. What measured a peak before and after is measured too low where something else ran:
        the better counts, and what a product reached is kept beside it."""
        entry = self.look(self._dtype)
        assert entry.clocks is not None
        assert entry.peaks is not None
        entry.clocks = changed(entry.clocks, after=read_clocks(self._device))
        note = timing_note(self._load_before)
        before = peaks = entry.peaks
        if self._given is None:
            after = measure_peaks(self._device, self._dtype)
            peaks = better_peaks(before, after)
            peaks = changed(peaks, before=rates_of(before), after=rates_of(after))
        entry.peaks = changed(peaks, reached=self.reached.rates())
        return note
