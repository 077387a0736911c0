"""The device of a report in a sentence: its peaks, how they came about, and of which sheet."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prunescope.analysis.report import numbers
from prunescope.analysis.schema.report import Report
from prunescope.analysis.schema.sides import DeviceRates, DeviceUsed
from prunescope.taxonomy.dtypes import THREE_TF32, three_tf32_rate

# Where bounds use a peak that is none of those measured around the run or in it.
_USED = {
    "calibrated": ("used: what prunescope calibrate measured",),
    "given": ("used: the one that was given",),
}
_LINKS = {"nvlink-c2c": "NVLink-C2C"}


def named(value: Any) -> str:
    """A name out of a value of the manifest: itself, or its `id` or `name`."""
    if isinstance(value, dict):
        value = value.get("id") or value.get("name")
    return "" if value is None else str(value)


def device(report: Report) -> str:
    """The peaks that the bounds use, their source, and the share of the data sheet they reach."""
    name = named(report.device.get("name")) or "unknown device"
    peaks, sheet = report.device.get("peaks"), report.device.get("sheet")
    rates = peaks["dense_flop_per_s"] if peaks else {}
    dtypes = {gemm.dtype for phase in report.phases.values() for gemm in phase.gemms}
    used = dtypes & set(rates)
    in_three = three_tf32_rate(rates) if THREE_TF32 in dtypes else None
    shown = used or (set() if in_three else set(rates))
    facts = [
        f"{dtype} {numbers.per_second(rate, 'FLOP')}"
        for dtype, rate in rates.items()
        if dtype in shown
    ]
    if in_three:
        facts.append(f"{THREE_TF32} {numbers.per_second(in_three, 'FLOP')} (a third of TF32)")
    if peaks and peaks["byte_per_s"] is not None:
        facts.append(numbers.per_second(peaks["byte_per_s"], "B"))
    if peaks and "link" in peaks and "link_byte_per_s" in peaks:
        rate = numbers.per_second(peaks["link_byte_per_s"], "B")
        facts.append(f"link to the host {rate} ({_link(peaks['link'])})")
    if not facts:
        return f"device {name}: no peaks known, so bounds are null; name --device or give --peak"
    source = (named(report.device.get("source")) or "source not said").replace("`", "")
    text = f"device {name}: peaks {', '.join(facts)} ({source})"
    text += "".join(_taken(report.device, used | {"bandwidth"}))
    return text + (_of_sheet(peaks, sheet) if peaks and sheet else "")


def _link(name: str) -> str:
    """`pcie-5.0` as people write it."""
    kind, _, version = name.partition("-")
    return f"PCIe {version} x16" if kind == "pcie" else _LINKS.get(name, name)


def _taken(device: DeviceUsed, names: set[str | None]) -> Iterator[str]:
    """How each peak that is used came about: before, after, what a product reached, and which of
    them bounds use."""
    for name, seen in device.get("taken", {}).items():
        what = "B" if name == "bandwidth" else "FLOP"
        said = [
            f"{label} {numbers.per_second(rate, what)}{' (used)' * (label == seen['used'])}"
            for label, rate in (
                ("before", seen["before"]),
                ("after", seen["after"]),
                ("reached", seen["reached"]),
            )
            if rate is not None
        ]
        if name in names and said:
            yield f"; {name} {', '.join([*said, *_USED.get(seen['used'], ())])}"


def _of_sheet(peaks: DeviceRates, sheet: DeviceRates) -> str:
    known, rates = (
        {**one["dense_flop_per_s"], "memory": one["byte_per_s"]} for one in (sheet, peaks)
    )
    shares = [
        f"{name} {numbers.percent(numbers.share_of(rate, known.get(name)), decimals=0)}"
        for name, rate in rates.items()
        if rate and known.get(name) and rate != known.get(name)
    ]
    return f"; of the data sheet: {', '.join(shares)}" if shares else ""
