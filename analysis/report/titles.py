"""The subject of a report in titles, captions and file names.

In: the Report. Out: plain lines, unescaped, and ASCII file names; of the device its peaks, where
they come from, and their share of the data sheet.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from prunescope.analysis.report.escape import clean
from prunescope.analysis.schema.report import Phase, Report
from prunescope.analysis.schema.sides import DeviceRates, DeviceUsed
from prunescope.analysis.summary.causes import find_moved
from prunescope.analysis.summary.evidence import ledger_invalid_reasons
from prunescope.analysis.summary.paper_words import method_name
from prunescope.taxonomy import numbers
from prunescope.taxonomy.dtypes import QUANTISED, THREE_TF32, three_tf32_rate
from prunescope.taxonomy.words import when

# Where bounds use a peak that is none of those measured around the run or in it.
_USED = {
    "calibrated": ("used: what prunescope calibrate measured",),
    "given": ("used: the one that was given",),
}
_NO_FAMILY = ("unknown", "outside")  # they name no method
_LINKS = {"nvlink-c2c": "NVLink-C2C"}


def named(value: Any) -> str:
    """Return a name out of a value of the manifest: itself, or its `id` or `name`."""
    if isinstance(value, dict):
        value = value.get("id") or value.get("name")
    return "" if value is None else str(value)


def device(report: Report, *, brief: bool = False) -> str:
    """Return the peaks that the bounds use, their source, and their share of the data sheet.

    Unless `brief`, every measurement of a peak follows.
    """
    name = named(report.device.get("name")) or "unknown device"
    peaks, sheet = report.device.get("peaks"), report.device.get("sheet")
    rates = peaks["dense_flop_per_s"] if peaks else {}
    dtypes = {gemm.dtype for phase in report.phases.values() for gemm in phase.gemms}
    used = dtypes & set(rates)
    in_three = three_tf32_rate(rates) if THREE_TF32 in dtypes else None
    shown = used or (set() if in_three else set(rates))
    facts = [
        f"{dtype} {numbers.peak_rate(rate, 'FLOP')}"
        for dtype, rate in rates.items()
        if dtype in shown
    ]
    if in_three:
        facts.append(f"{THREE_TF32} {numbers.peak_rate(in_three, 'FLOP')} (a third of TF32)")
    if peaks and peaks["byte_per_s"] is not None:
        facts.append(numbers.peak_rate(peaks["byte_per_s"], "B"))
    if peaks and "link" in peaks and "link_byte_per_s" in peaks:
        rate = numbers.peak_rate(peaks["link_byte_per_s"], "B")
        facts.append(f"link to the host {rate} ({_link(peaks['link'])})")
    if not facts:
        return f"device {name}: no peaks known, so bounds are null; name --device or give --peak"
    source = (named(report.device.get("source")) or "source unknown").replace("`", "")
    text = f"device {name}: peaks {', '.join(facts)} ({source})"
    if not brief:
        text += "".join(_peaks_taken(report.device, used | {"bandwidth"}))
    return text + (_shares_of_sheet(peaks, sheet) if peaks and sheet else "")


def _link(name: str) -> str:
    """Return `pcie-5.0` as people write it."""
    kind, _, version = name.partition("-")
    return f"PCIe {version} x16" if kind == "pcie" else _LINKS.get(name, name)


def _peaks_taken(device: DeviceUsed, names: set[str | None]) -> Iterator[str]:
    """Yield how each peak came about: before, after, by a product, and which one bounds use."""
    for name, peak in device.get("taken", {}).items():
        unit = "B" if name == "bandwidth" else "FLOP"
        taken = (("before", peak["before"]), ("after", peak["after"]), ("reached", peak["reached"]))
        rates = [
            f"{label} {numbers.peak_rate(rate, unit)}{when(label == peak['used'], ' (used)')}"
            for label, rate in taken
            if rate is not None
        ]
        if name in names and rates:
            yield f"; {name} {', '.join([*rates, *_USED.get(peak['used'], ())])}"


def _shares_of_sheet(peaks: DeviceRates, sheet: DeviceRates) -> str:
    """Return the share of each rate of the data sheet that was reached, if any differs."""
    known, rates = (
        {**device["dense_flop_per_s"], "memory": device["byte_per_s"]} for device in (sheet, peaks)
    )
    shares = [
        f"{name} {numbers.percent(numbers.share_of(rate, known.get(name)), decimals=0)}"
        for name, rate in rates.items()
        if rate and known.get(name) and rate != known.get(name)
    ]
    return when(bool(shares), f"; of the data sheet: {', '.join(shares)}")


def title(report: Report) -> str:
    """Return the measured model, method and device in one line."""
    subject = report.subject
    name = named(subject.get("name")) or named(subject.get("model")) or "report"
    facts = [named(subject.get("model")), method_name(subject)]
    facts.append(_formats(report))
    facts.append(named(report.device.get("name")))
    parts = [name]
    for fact in facts:
        if fact and fact not in parts:
            parts.append(fact)
    return " · ".join(parts)


def _formats(report: Report) -> str:
    """Return the number format of the model, `int8 products (torch.ao), fp32 else` if both ran.

    The manifest knows nothing of products that run in packed or quantised weights.
    """
    dtype = named(report.subject.get("dtype"))
    gemms = [gemm for phase in report.phases.values() for gemm in phase.gemms]
    quantised = [gemm for gemm in gemms if gemm.dtype in QUANTISED and gemm.dtype != dtype]
    if not dtype or not quantised:
        return dtype
    formats = " and ".join(sorted({str(gemm.dtype) for gemm in quantised}))
    is_by_torch = all(str(gemm.op).startswith("quantized::") for gemm in quantised)
    return f"{formats} products{when(is_by_torch, ' (torch.ao)')}, {dtype} else"


def against(report: Report) -> str:
    """Return the baseline of the comparison."""
    if report.baseline is None:
        return "no baseline: shapes, bounds and kernels only; --baseline gives the ledger"
    name = named(report.baseline.get("name")) or named(report.baseline.get("model")) or "dense"
    if name == named(report.subject.get("name")):
        return f"against itself ({name})"
    return f"against {name}"


def heading(name: str, phase: Phase) -> str:
    """Return the name of a phase, with its kind where only a trace without run.json shows it."""
    kind = phase.phase_kind["kind"] if phase.phase_kind else "unknown"
    is_in_name = kind in ("unknown", name) or name.endswith(f"-{kind}")  # rank0-decode
    return name if is_in_name else f"{name} ({kind})"


def phase_slugs(report: Report) -> dict[str, str]:
    """Return a distinct part of file names for each phase: letters, digits and dashes."""
    slugs: dict[str, str] = {}
    for name in report.phases:
        slug = re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")[:40] or "phase"
        taken = set(slugs.values())
        same = (f"{slug}-{i}" for i in range(2, len(taken) + 3))
        slugs[name] = slug if slug not in taken else next(s for s in same if s not in taken)
    return slugs


def page_link(report: Report, phase: str, *place: str) -> str:
    """Return a link into the page: `report.html#prefill/ledger/coverage`.

    Args:
        report: The report.
        phase: The name of the phase.
        place: What is opened there, as `("ledger", "coverage")`; the row that moved most where
            nothing is named, and the phase alone where no row is evidence.
    """
    rows = report.phases[phase].ledger or []
    is_evidence = not ledger_invalid_reasons(report.phases[phase])
    if not place and is_evidence and (moved := find_moved(rows, 0.0)):
        place = ("ledger", moved[0].row)
    return f"report.html#{'/'.join([phase_slugs(report)[phase], *place])}"


def short_subject(report: Report, phase: str, most: int = 60) -> str:
    """Return model, method and phase in at most `most` characters: the longest of them are cut."""
    facts = [clean(fact) for fact in facts_of(report, phase)]
    room = most - 2 * (len(facts) - 1)  # less the commas
    longest = max(map(len, facts), default=0)
    while sum(min(len(fact), longest) for fact in facts) > room and longest > 1:
        longest -= 1
    return ", ".join(short(fact, longest) for fact in facts)


def facts_of(report: Report, name: str) -> list[str]:
    """Return model, method (or the family that the shapes show) and phase, where known."""
    subject, phase = report.subject, report.phases[name]
    model = named(subject.get("model")) or named(subject.get("name"))
    family = phase.family.id if phase.family and phase.family.id not in _NO_FAMILY else ""
    facts = [model, method_name(subject) or family, heading(name, phase)]
    return [fact for fact in facts if fact]


def short(name: str, most: int = 18) -> str:
    """Return a name on one line, cut after `most` characters."""
    plain = clean(name)
    return plain if len(plain) <= most else f"{plain[: most - 1]}…"
