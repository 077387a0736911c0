"""The peak rates of a device: FLOP/s by dtype, byte/s, and the time of the shortest kernel.

In: the device table, the peaks that `trace` and `calibrate` measured, and those of the command
line. Out: `Peaks`, with their source and what makes them doubtful.
"""

from __future__ import annotations

from msgspec import Struct, field
from msgspec.structs import replace

from prunescope.analysis.device.hardware import Device
from prunescope.analysis.schema.notice import Notice, warning
from prunescope.analysis.schema.sides import DeviceRates, DeviceUsed, PeakRates, PeakTaken
from prunescope.taxonomy.runs.run_blocks import (
    CalibratedDevice,
    DeviceEntry,
    MeasuredPeaks,
    MeasuredRates,
)

BANDWIDTH = "bandwidth"
APART = 1.2  # times: how far two measurements of one peak may differ


class Peaks(Struct, frozen=True):
    """The peaks of a device.

    Attributes:
        name: The name of the device.
        flop_per_s: Dense FLOP/s by dtype.
        byte_per_s: The bandwidth of its memory; None if unknown.
        source: Where the peaks come from, in words.
        measured: Whether they were measured on the device.
        floor_ns: The time of the shortest kernel; None if it was not measured.
        sm: The number of multiprocessors; None on a CPU.
        device: Its row in the device table; None if it has none.
        sheet: The rates of its data sheet; None if they are unknown.
        taken: The measurements behind a peak, by dtype and "bandwidth", where `trace` kept them.
        disturbed: What disturbed every measurement of the rates; empty where one was undisturbed.
    """

    name: str
    flop_per_s: dict[str, float]
    byte_per_s: float | None
    source: str
    measured: bool = False
    floor_ns: float | None = None
    sm: int | None = None
    device: Device | None = None
    sheet: DeviceRates | None = None
    taken: dict[str, PeakTaken] = field(default_factory=dict)
    disturbed: tuple[str, ...] = ()

    @property
    def link_byte_per_s(self) -> float | None:
        """The bandwidth between host and device, in one direction; None if unknown."""
        return self.device.link_byte_per_s if self.device else None

    def as_json(self) -> DeviceUsed:
        """Return the `device` object of the report."""
        used = DeviceUsed(
            name=self.name,
            peaks=PeakRates(
                dense_flop_per_s=self.flop_per_s,
                byte_per_s=self.byte_per_s,
                kernel_floor_ns=self.floor_ns,
            ),
            source=self.source,
            measured=self.measured,
            sheet=self.sheet,
        )
        return {**used, "taken": self.taken} if self.taken else used

    def caveats(self) -> list[Notice]:
        """Warn of peaks whose two measurements are too far apart, or of which none was quiet."""
        rates = {**self.flop_per_s, BANDWIDTH: self.byte_per_s or 0.0}
        below = [
            {"peak": name, "calibrated": rates[name], "most": most}
            for name, taken in self.taken.items()
            if taken["used"] == "calibrated"
            and (most := max(taken["before"] or 0, taken["after"] or 0))
            if rates[name] > APART * most
        ]
        lower = {rates_below["peak"] for rates_below in below}
        moved = [
            {"peak": name, "before": before, "after": after, "used": taken["used"]}
            for name, taken in self.taken.items()
            if (before := taken["before"]) and (after := taken["after"])
            if max(before, after) > APART * min(before, after) and name not in lower
        ]
        warnings = [warning("peaks-moved", peaks=moved)] if moved else []
        if below:
            warnings.append(warning("peaks-below-calibration", peaks=below))
        if self.disturbed:
            warnings.append(warning("peaks-disturbed", reasons=[*self.disturbed]))
        return warnings


def sheet_peaks(device: Device) -> Peaks:
    """Return the peaks of the device table."""
    return Peaks(
        name=device.name,
        flop_per_s=dict(device.dense_flop_per_s),
        byte_per_s=device.byte_per_s,
        source=device.source,
        sm=device.sm,
        device=device,
        sheet=_rates_of_sheet(device),
    )


def _rates_of_sheet(device: Device) -> DeviceRates:
    return DeviceRates(dense_flop_per_s=dict(device.dense_flop_per_s), byte_per_s=device.byte_per_s)


def run_peaks(
    device: DeviceEntry, sheet: Device | None, *, by: str = "`prunescope trace`"
) -> Peaks | None:
    """Return the peaks that `trace` measured and kept in run.json; None where it measured none.

    A peak is a ceiling, and what disturbs a measurement lowers it: the rates of `calibrate` with as
    many threads are taken where they are higher.

    Args:
        device: The device of run.json.
        sheet: Its row in the device table.
        by: What recorded the run, in words.
    """
    peaks = device.peaks
    if peaks is None:
        return None
    rates, floor = _rates_of(peaks), peaks.kernel_floor_ns
    if not rates:
        return None
    source = f"measured on this device by {by}"
    taken = _taken(peaks)
    raised = [name for name, peak in taken.items() if peak["used"] == "reached"]
    rates |= {name: taken[name]["reached"] or 0.0 for name in raised}
    if raised:
        source += f" ({', '.join(raised)} raised to what a GEMM of this run reached)"
    calibrated = _calibrated(device.calibration, peaks.threads)
    higher: set[str] = set()
    if calibrated:
        source += " and `prunescope calibrate`"
        higher = {name for name, rate in calibrated.items() if rate > rates.get(name, 0.0)}
        rates |= {name: calibrated[name] for name in higher}
        taken |= {name: {**taken[name], "used": "calibrated"} for name in higher & set(taken)}
    disturbed = (
        _calibration_disturbed(device) if higher.issuperset(rates) else _run_disturbed(peaks)
    )
    byte_per_s = rates.pop(BANDWIDTH, None)
    return Peaks(
        name=sheet.name if sheet else device.name or "unnamed",
        flop_per_s=rates,
        byte_per_s=byte_per_s,
        source=source,
        measured=True,
        floor_ns=floor if _positive(floor) else None,
        sm=sheet.sm if sheet else None,
        device=sheet,
        sheet=None if sheet is None else _rates_of_sheet(sheet),
        taken=taken,
        disturbed=disturbed,
    )


def _taken(peaks: MeasuredPeaks) -> dict[str, PeakTaken]:
    """Return the measurements behind each peak.

    They are from before and after the capture, and what a product of that dtype reached in the run,
    below which no compute peak lies. The bandwidth is not raised this way: caches are faster. Empty
    for a run that kept one measurement only.
    """
    before, after = _rates_of(peaks.before), _rates_of(peaks.after)
    reached = {k: v for k, v in (peaks.reached or {}).items() if _positive(v)}
    known = _rates_of(peaks)
    taken: dict[str, PeakTaken] = {}
    for name, best in known.items():
        rates = before.get(name), after.get(name), reached.get(name)
        if rates == (None, None, None):
            continue
        used = "before" if rates[0] == best else "after" if rates[1] == best else "given"
        used = "reached" if (rates[2] or 0.0) > best else used
        taken[name] = PeakTaken(before=rates[0], after=rates[1], reached=rates[2], used=used)
    return taken


def _run_disturbed(peaks: MeasuredPeaks) -> tuple[str, ...]:
    """Return the disturbances of a run's peaks.

    A disturbance lowers a rate, so the better of two measurements is doubtful only where both were
    disturbed.
    """
    before, after = peaks.before, peaks.after
    if before is None or after is None:
        return tuple(peaks.disturbed)
    both = before.disturbed and after.disturbed
    return tuple(dict.fromkeys([*before.disturbed, *after.disturbed])) if both else ()


def _calibration_disturbed(device: DeviceEntry) -> tuple[str, ...]:
    """Return the disturbances of a calibration whose rates are used."""
    measured = device.calibration.measured if device.calibration else None
    return tuple(measured.disturbed) if measured else ()


def _rates_of(peaks: MeasuredPeaks | MeasuredRates | CalibratedDevice | None) -> dict[str, float]:
    """Return the compute peaks by dtype and the bandwidth of one measurement."""
    if peaks is None:
        return {}
    every = {**peaks.dense_flop_per_s, BANDWIDTH: peaks.byte_per_s}
    return {
        name: float(rate) for name, rate in every.items() if rate is not None and _positive(rate)
    }


def _calibrated(entry: CalibratedDevice | None, threads: int | None) -> dict[str, float]:
    """Return the rates that `calibrate` found with as many threads; empty where it found none."""
    if entry is None or entry.measured is None or entry.measured.threads != threads:
        return {}
    return _rates_of(entry)


def override(
    peaks: Peaks | None, *, flop_per_s: dict[str, float], byte_per_s: float | None
) -> Peaks | None:
    """Return `peaks` with each number that was given on the command line in its place."""
    if not flop_per_s and byte_per_s is None:
        return peaks
    base = peaks or Peaks(name="given", flop_per_s={}, byte_per_s=None, source="")
    given = [*flop_per_s, *([BANDWIDTH] if byte_per_s else [])]
    used: dict[str, PeakTaken]
    used = {name: {**base.taken[name], "used": "given"} for name in given if name in base.taken}
    return replace(
        base,
        flop_per_s={**base.flop_per_s, **flop_per_s},
        byte_per_s=byte_per_s or base.byte_per_s,
        source=f"{base.source}; {', '.join(given)} given on the command line".removeprefix("; "),
        taken={**base.taken, **used},
        disturbed=() if {*base.flop_per_s, BANDWIDTH}.issubset(given) else base.disturbed,
    )


def _positive(value: float | None) -> bool:
    return value is not None and 0 < value < 1e30
