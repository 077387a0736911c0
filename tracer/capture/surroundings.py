"""The device of a capture, and how it was before and after: `device` and `timing` of run.json.

Every capture is taken between `Surroundings.look` and `close`, ours and a user's alike.
"""

from __future__ import annotations

from typing import Any

import torch

from prunescope.taxonomy.dtypes import dtype as dtype_name
from prunescope.tracer.machine.calibrate import newest
from prunescope.tracer.machine.clocks import read_clocks
from prunescope.tracer.machine.conditions import timing_note
from prunescope.tracer.machine.device import device_info, load_average
from prunescope.tracer.machine.peaks import measure_peaks


class Surroundings:
    """`device` fills with the manifest's entry; all runs of a capture share it."""

    def __init__(self, device: torch.device, peaks: dict[str, Any] | None = None) -> None:
        self._device = device
        self._load_before = load_average()
        self._peaks = peaks
        self.entry: dict[str, Any] = {}

    def look(self, dtype: str) -> dict[str, Any]:
        """The entry of the device; its peaks are measured where none were given."""
        if not self.entry:
            self.entry |= device_info(self._device)
            measured = dtype_name(dtype) or "fp32"
            self._peaks = self._peaks or measure_peaks(self._device, measured)
            self.entry["peaks"] = self._peaks
            self.entry["calibration"] = newest(self.entry["name"])
            self.entry["clocks"] = {"before": read_clocks(self._device)}
        return self.entry

    def close(self) -> dict[str, Any]:
        """Clocks after the capture go into the entry; returns the note on how busy it was."""
        self.entry["clocks"]["after"] = read_clocks(self._device)
        return timing_note(self._load_before)
