"""The subject of a report in titles, captions and file names: in, the Report; out, plain lines,
unescaped, and ASCII file names. Device: its peaks, where they come from, and share of the sheet.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from prunescope.analysis.report.escape import clean
from prunescope.analysis.schema.report import (
    Phase,
    Report,
)
from prunescope.analysis.schema.sides import DeviceRates, DeviceUsed
from prunescope.taxonomy import numbers
from prunescope.taxonomy.dtypes import QUANTISED, THREE_TF32, three_tf32_rate

# Where bounds use a peak that is none of those measured around the run or in it.
_USED = {
    "calibrated": ("used: what prunescope calibrate measured",),
    "given": ("used: the one that was given",),
}
_NO_FAMILY = ("unknown", "outside")  # they name no method
_LINKS = {"nvlink-c2c": "NVLink-C2C"}


def named(value: Any) -> str:
    """A name out of a value of the manifest: itself, or its `id` or `name`."""
    if isinstance(value, dict):
        value = value.get("id") or value.get("name")
    return "" if value is None else str(value)


def device(report: Report, *, brief: bool = False) -> str:
    """The peaks that the bounds use, their source, and the share of the data sheet they reach;
    unless `brief`, every measurement of a peak."""
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
    source = (named(report.device.get("source")) or "source unknown").replace("`", "")
    text = f"device {name}: peaks {', '.join(facts)} ({source})"
    if not brief:
        text += "".join(_peaks_taken(report.device, used | {"bandwidth"}))
    return text + (_of_sheet(peaks, sheet) if peaks and sheet else "")


def _link(name: str) -> str:
    """`pcie-5.0` as people write it."""
    kind, _, version = name.partition("-")
    return f"PCIe {version} x16" if kind == "pcie" else _LINKS.get(name, name)


def _peaks_taken(device: DeviceUsed, names: set[str | None]) -> Iterator[str]:
    """How each peak that is used came about: before, after, what a product reached, and which of
    them bounds use."""
    for name, peak in device.get("taken", {}).items():
        what = "B" if name == "bandwidth" else "FLOP"
        rates = [
            f"{label} {numbers.per_second(rate, what)}{' (used)' * (label == peak['used'])}"
            for label, rate in (
                ("before", peak["before"]),
                ("after", peak["after"]),
                ("reached", peak["reached"]),
            )
            if rate is not None
        ]
        if name in names and rates:
            yield f"; {name} {', '.join([*rates, *_USED.get(peak['used'], ())])}"


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


def title(report: Report) -> str:
    """The measured model, method and sparsity in one line."""
    subject = report.subject
    name = named(subject.get("name")) or named(subject.get("model")) or "report"
    facts = [named(subject.get(key)) for key in ("model", "method")]
    facts.append(_formats(report))
    facts.append(named(report.device.get("name")))
    parts = [name]
    for fact in facts:
        if fact and fact not in parts:
            parts.append(fact)
    return " · ".join(parts)


def _formats(report: Report) -> str:
    """The number format of the model; where products run in packed or quantised weights, of which
    a manifest knows nothing, theirs first: `int8 products (torch.ao), fp32 else`."""
    dtype = named(report.subject.get("dtype"))
    gemms = [gemm for phase in report.phases.values() for gemm in phase.gemms]
    quantised = [gemm for gemm in gemms if gemm.dtype in QUANTISED and gemm.dtype != dtype]
    if not dtype or not quantised:
        return dtype
    formats = " and ".join(sorted({str(gemm.dtype) for gemm in quantised}))
    by_torch = all(str(gemm.op).startswith("quantized::") for gemm in quantised)
    return f"{formats} products{' (torch.ao)' * by_torch}, {dtype} else"


def against(report: Report) -> str:
    """The baseline of the comparison."""
    if report.baseline is None:
        return "no baseline: shapes, bounds and kernels only; --baseline gives the ledger"
    name = named(report.baseline.get("name")) or named(report.baseline.get("model")) or "dense"
    if name == named(report.subject.get("name")):
        return f"against itself ({name})"
    return f"against {name}"


def heading(name: str, phase: Phase) -> str:
    """The name of a phase, and of a trace without run.json the kind of phase that it turned out to
    be."""
    kind = phase.phase_kind["kind"] if phase.phase_kind else "unknown"
    is_in_name = kind in ("unknown", name) or name.endswith(f"-{kind}")  # rank0-decode
    return name if is_in_name else f"{name} ({kind})"


def phase_slugs(report: Report) -> dict[str, str]:
    """A distinct file-name part a phase: letters, digits, dashes."""
    slugs: dict[str, str] = {}
    for name in report.phases:
        slug = re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")[:40] or "phase"
        taken = set(slugs.values())
        same = (f"{slug}-{i}" for i in range(2, len(taken) + 3))
        slugs[name] = slug if slug not in taken else next(s for s in same if s not in taken)
    return slugs


def figure_name(kind: str, slug: str, ending: str) -> str:
    """`ladder-prefill.pdf`."""
    return f"{kind}-{slug}.{ending}"


def of_what(report: Report, phase: str, most: int = 60) -> str:
    """Model, method and phase in at most so many characters: the longest of them are cut."""
    facts = [clean(fact) for fact in facts_of(report, phase)]
    room = most - 2 * (len(facts) - 1)  # less the commas
    longest = max(map(len, facts), default=0)
    while sum(min(len(fact), longest) for fact in facts) > room and longest > 1:
        longest -= 1
    return ", ".join(short(fact, longest) for fact in facts)


def facts_of(report: Report, name: str) -> list[str]:
    """Model, method (or the family read from the shapes) and phase, where known."""
    subject, phase = report.subject, report.phases[name]
    model = named(subject.get("model")) or named(subject.get("name"))
    family = phase.family.id if phase.family and phase.family.id not in _NO_FAMILY else ""
    facts = [model, named(subject.get("method")) or family, heading(name, phase)]
    return [fact for fact in facts if fact]


def short(name: str, most: int = 18) -> str:
    """A name on one line, cut after `most` characters."""
    plain = clean(name)
    return plain if len(plain) <= most else f"{plain[: most - 1]}…"
