"""Ideal time and bound of every row: how long the device's peaks allow, and which one binds.

In: FLOP, bytes and dtype a row, and `Peaks`. Out: ideal ns (null where the work or the peak is
unknown), predicted ns with tile and wave loss, and a bound: compute, memory, latency or unknown.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import polars as pl

from prunescope.analysis.device.hardware import Device, rate_of
from prunescope.analysis.schema.sides import DeviceRates, DeviceUsed, PeakRates, PeakTaken
from prunescope.taxonomy.run_blocks import (
    CalibratedDevice,
    DeviceEntry,
    MeasuredPeaks,
    MeasuredRates,
)

BANDWIDTH = "bandwidth"
APART = 1.2  # two measurements of one peak
# A kernel on a few units that lasts longer than so many floors works, and does not wait.
_FLOORS = 10
_LINE_BYTES = 128  # what a GPU's memory moves at once: a unit without any has nothing to do
_USUAL_FLOOR_NS = 2000.0  # of a kernel on a GPU whose floor was not measured: 1.5 to 3 us


@dataclass(frozen=True)
class Peaks:
    """What the device can do at most. FLOP/s a dtype (dense), byte/s, and the floor of one kernel.

    `measured` tells peaks that were measured on the device from those of a data sheet (`sheet`,
    with its `source`, where both are known). `sm`: multiprocessors, None on a CPU.
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
    # By dtype and "bandwidth", where `trace` kept how they came about.
    taken: dict[str, PeakTaken] = field(default_factory=dict)
    # What else ran beside every measurement that the rates are of; empty where one was quiet.
    disturbed: tuple[str, ...] = ()

    @property
    def link_byte_per_s(self) -> float | None:
        """Bandwidth between host and device, in one direction."""
        return self.device.link_byte_per_s if self.device else None

    def as_json(self) -> DeviceUsed:
        """The `device` object of the report."""
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

    def caveats(self) -> list[str]:
        """Peaks that two measurements give further apart than they may be, and peaks of which no
        measurement was quiet."""
        said = [
            f"the {name} peak was measured as {rate_text(one, name)} before the capture and "
            f"{rate_text(other, name)} after it: something else ran, or the clock fell; bounds use "
            f"{_USED[seen['used']]}"
            for name, seen in self.taken.items()
            if (one := seen["before"]) and (other := seen["after"])
            if max(one, other) > APART * min(one, other)
        ]
        said += [
            f"the {name} peak is {rate_text(rates[name], name)} by `prunescope calibrate`, and was "
            f"at most {rate_text(most, name)} around this capture: the device was slower then, or "
            "the calibration is of another time; shares of bounds may be too low"
            for name, seen in self.taken.items()
            if seen["used"] == "calibrated"
            and (most := max(seen["before"] or 0, seen["after"] or 0))
            if (rates := {**self.flop_per_s, BANDWIDTH: self.byte_per_s or 0.0})[name]
            > APART * most
        ]
        if self.disturbed:
            said.append(
                f"every measurement of the peaks was disturbed ({', '.join(self.disturbed)}): they "
                "may be too low, and shares of a bound too high"
            )
        return said


def rate_text(per_s: float, name: str) -> str:
    """A peak as people write it."""
    if name == BANDWIDTH:
        return f"{per_s / 1e9:.3g} GB/s"
    return f"{per_s / 1e12:.3g} TFLOP/s"


def sheet_peaks(device: Device) -> Peaks:
    """Peaks from the device table."""
    return Peaks(
        name=device.name,
        flop_per_s=dict(device.dense_flop_per_s),
        byte_per_s=device.byte_per_s,
        source=device.source,
        sm=device.sm,
        device=device,
        sheet=_of_sheet(device),
    )


_USED = {
    "before": "the higher one",
    "after": "the higher one",
    "reached": "what a product of the run reached",
    "calibrated": "what `prunescope calibrate` measured",
    "given": "the one that was given",
}


def _of_sheet(device: Device) -> DeviceRates:
    return DeviceRates(dense_flop_per_s=dict(device.dense_flop_per_s), byte_per_s=device.byte_per_s)


def run_peaks(device: DeviceEntry, sheet: Device | None) -> Peaks | None:
    """Peaks that `trace` measured and kept in run.json, or where they are higher those that
    `calibrate` did with as many threads; None where `trace` measured none.

    A peak is a ceiling: what disturbs a measurement lowers it.
    """
    peaks = device.peaks
    if peaks is None:
        return None
    rates, floor = _rates_of(peaks), peaks.kernel_floor_ns
    if not rates:
        return None
    source = "measured on this device by `prunescope trace`"
    taken = _taken(peaks)
    raised = [name for name, seen in taken.items() if seen["used"] == "reached"]
    rates |= {name: taken[name]["reached"] or 0.0 for name in raised}
    if raised:
        source += f" ({', '.join(raised)} raised to what a product of this run reached)"
    calibrated = _calibrated(device.calibration, peaks.threads)
    higher: set[str] = set()
    if calibrated:
        source += " and `prunescope calibrate`"
        higher = {name for name, rate in calibrated.items() if rate > rates.get(name, 0.0)}
        rates |= {name: calibrated[name] for name in higher}
        taken |= {name: {**taken[name], "used": "calibrated"} for name in higher & set(taken)}
    disturbed = _of_calibration(device) if higher.issuperset(rates) else _disturbed(peaks)
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
        sheet=None if sheet is None else _of_sheet(sheet),
        taken=taken,
        disturbed=disturbed,
    )


def _taken(peaks: MeasuredPeaks) -> dict[str, PeakTaken]:
    """How each peak came about: measured before and after, and no compute peak below what a product
    of that dtype reached in the run itself. Bandwidth is not raised so: caches are faster. Empty
    for a run that was measured once and kept nothing of it."""
    before, after = _rates_of(peaks.before), _rates_of(peaks.after)
    reached = {k: v for k, v in (peaks.reached or {}).items() if _positive(v)}
    known = _rates_of(peaks)
    out: dict[str, PeakTaken] = {}
    for name, best in known.items():
        seen = before.get(name), after.get(name), reached.get(name)
        if seen == (None, None, None):
            continue
        used = "before" if seen[0] == best else "after" if seen[1] == best else "given"
        used = "reached" if (seen[2] or 0.0) > best else used
        out[name] = PeakTaken(before=seen[0], after=seen[1], reached=seen[2], used=used)
    return out


def _disturbed(peaks: MeasuredPeaks) -> tuple[str, ...]:
    """What ran beside the peaks of a run: a disturbance lowers a rate, so that the better of two
    measurements is in doubt only where both were disturbed."""
    before, after = peaks.before, peaks.after
    if before is None or after is None:
        return tuple(peaks.disturbed)
    both = before.disturbed and after.disturbed
    return tuple(dict.fromkeys([*before.disturbed, *after.disturbed])) if both else ()


def _of_calibration(device: DeviceEntry) -> tuple[str, ...]:
    """What ran beside a calibration whose rates are used."""
    measured = device.calibration.measured if device.calibration else None
    return tuple(measured.disturbed) if measured else ()


def _rates_of(peaks: MeasuredPeaks | MeasuredRates | CalibratedDevice | None) -> dict[str, float]:
    """Compute peaks by dtype and the bandwidth of one measurement."""
    if peaks is None:
        return {}
    every = {**peaks.dense_flop_per_s, BANDWIDTH: peaks.byte_per_s}
    return {
        name: float(rate) for name, rate in every.items() if rate is not None and _positive(rate)
    }


def _calibrated(entry: CalibratedDevice | None, threads: int | None) -> dict[str, float]:
    """Rates that `calibrate` found with as many threads; none where it did not."""
    if entry is None or entry.measured is None or entry.measured.threads != threads:
        return {}
    return _rates_of(entry)


def override(
    peaks: Peaks | None, *, flop_per_s: dict[str, float], byte_per_s: float | None
) -> Peaks | None:
    """Peaks given on the command line over those known, per number."""
    if not flop_per_s and byte_per_s is None:
        return peaks
    base = peaks or Peaks(name="given", flop_per_s={}, byte_per_s=None, source="")
    given = [*flop_per_s, *([BANDWIDTH] if byte_per_s else [])]
    taken = dict(base.taken)
    taken |= {name: {**taken[name], "used": "given"} for name in given if name in taken}
    return Peaks(
        name=base.name,
        flop_per_s={**base.flop_per_s, **flop_per_s},
        byte_per_s=byte_per_s or base.byte_per_s,
        source=f"{base.source}; {', '.join(given)} given on the command line".removeprefix("; "),
        measured=base.measured,
        floor_ns=base.floor_ns,
        sm=base.sm,
        device=base.device,
        sheet=base.sheet,
        taken=taken,
        disturbed=() if {*base.flop_per_s, BANDWIDTH}.issubset(given) else base.disturbed,
    )


def _positive(value: float | None) -> bool:
    return value is not None and 0 < value < 1e30


def add_bound(frame: pl.DataFrame, peaks: Peaks | None) -> pl.DataFrame:
    """Columns `compute_ns`, `memory_ns`, `ideal`, `predicted` (ns) and `bound`.

    Needs `flop`, `bytes`, `dtype`, `busy`, `duration`, `blocks` (null off a GPU), `shape_loss`
    (>= 1, null where the tile is unknown), `category` and `crosses` (a copy between host and
    device, which goes at the rate of their link). ideal = max(FLOP/peak, bytes/bandwidth); an op
    without FLOPs has none to wait for. A row without bytes, or with FLOPs of a dtype without a
    peak, has no ideal. Latency-bound: an ideal below the measured floor; or a duration below ten
    floors, and blocks (or lines of memory to move) for fewer than half of the units, or the ideal
    of a copy or fill below the usual floor. A partial wave of a long kernel is a loss of its shape.
    """
    rates = _rates(frame, peaks)
    byte_ns = 1e9 / peaks.byte_per_s if peaks and peaks.byte_per_s else None
    link_ns = 1e9 / peaks.link_byte_per_s if peaks and peaks.link_byte_per_s else None
    per_byte = pl.when("crosses").then(pl.lit(link_ns)).otherwise(pl.lit(byte_ns, pl.Float64))
    memory = pl.col("bytes") * per_byte
    compute = pl.when(pl.col("flop") > 0).then(pl.col("flop") * 1e9 / rates).otherwise(0.0)
    frame = frame.with_columns(compute_ns=compute, memory_ns=memory)
    frame = frame.with_columns(
        ideal=_max_known("compute_ns", "memory_ns"),
        _shaped=pl.col("compute_ns") * pl.col("shape_loss").fill_null(1.0),
    ).with_columns(predicted=_max_known("_shaped", "memory_ns"))
    # The tile of a GEMM that no name tells: its loss is unknown, not none.
    untold = pl.col("class").is_in(["matmul"]) & pl.col("shape_loss").is_null()
    frame = frame.with_columns(predicted=pl.when(~untold).then("predicted"))
    floor = peaks.floor_ns if peaks else None
    small = pl.lit(False)  # noqa: FBT003  (an expression, not a flag)
    short = pl.col("duration") < _FLOORS * (floor or _USUAL_FLOOR_NS)
    if floor is not None:
        small = pl.col("ideal") < floor
    if peaks and peaks.sm:
        lines = pl.col("bytes") / _LINE_BYTES
        few = 2 * pl.min_horizontal(pl.max_horizontal("blocks", "tiles"), lines) < peaks.sm
        small = small | (few & short).fill_null(value=False)
    moves = pl.col("category").is_in([1, 2]) & (pl.col("ideal") < (floor or _USUAL_FLOOR_NS))
    small = small | (moves & short).fill_null(value=False)
    bound = (
        pl.when(pl.col("ideal").is_null())
        .then(pl.lit("unknown"))
        .when(small)
        .then(pl.lit("latency"))
        .when(pl.col("compute_ns") >= pl.col("memory_ns"))
        .then(pl.lit("compute"))
        .otherwise(pl.lit("memory"))
    )
    return frame.with_columns(bound=bound).drop("_shaped")


def _max_known(a: str, b: str) -> pl.Expr:
    """max(a, b), null where either is."""
    known = pl.col(a).is_not_null() & pl.col(b).is_not_null()
    return pl.when(known).then(pl.max_horizontal(a, b))


def _rates(frame: pl.DataFrame, peaks: Peaks | None) -> pl.Expr:
    old = [d for d in frame["dtype"].unique().to_list() if d is not None]
    new = [rate_of(peaks.flop_per_s, d) if peaks else None for d in old]
    if not old:
        return pl.lit(None, pl.Float64)
    return pl.col("dtype").replace_strict(old, new, default=None, return_dtype=pl.Float64)
