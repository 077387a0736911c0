"""The device of a capture, and how it was before and after: `device` and `timing` of run.json.

Every capture is taken between `Surroundings.look` and `close`, ours and a user's alike.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from prunescope.taxonomy.dtypes import dtype as dtype_name
from prunescope.tracer.capture.reached import reached_rates
from prunescope.tracer.machine.calibrate import newest
from prunescope.tracer.machine.clocks import read_clocks
from prunescope.tracer.machine.conditions import timing_note
from prunescope.tracer.machine.device import device_info, load_average
from prunescope.tracer.machine.peaks import better_peaks, measure_peaks

_KEPT = ("dense_flop_per_s", "byte_per_s", "disturbed")  # of each measurement


class Surroundings:
    """`entry` fills with the manifest's `device`; all runs of a capture share it."""

    def __init__(self, device: torch.device, peaks: dict[str, Any] | None = None) -> None:
        self._device = device
        self._load_before = load_average()
        self._given = peaks
        self._dtype = ""
        self.entry: dict[str, Any] = {}

    def look(self, dtype: str) -> dict[str, Any]:
        """The entry of the device; its peaks are measured where none were given."""
        if not self.entry:
            self.entry |= device_info(self._device)
            self._dtype = dtype_name(dtype) or "fp32"
            given = self._given
            self.entry["peaks"] = given or measure_peaks(self._device, self._dtype)
            self.entry["calibration"] = newest(self.entry["name"])
            self.entry["clocks"] = {"before": read_clocks(self._device)}
        return self.entry

    def close(self, traces: Iterable[dict[str, Any]]) -> dict[str, Any]:
        """Peaks and clocks after the capture go into the entry; returns the note on how busy it
        was. What measured a peak before and after is measured too low where something else ran:
        the better counts, and what a product of `traces` reached is kept beside it."""
        self.entry["clocks"]["after"] = read_clocks(self._device)
        note = timing_note(self._load_before)
        before = self.entry["peaks"]
        peaks = dict(before)
        if self._given is None:
            after = measure_peaks(self._device, self._dtype)
            peaks = better_peaks(before, after) | {"before": _kept(before), "after": _kept(after)}
        peaks["reached"] = reached_rates(traces)
        self.entry["peaks"] = peaks
        return note


def _kept(peaks: dict[str, Any]) -> dict[str, Any]:
    return {name: peaks[name] for name in _KEPT if name in peaks}
