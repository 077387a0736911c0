"""The reproducibility checklist of a large conference, filled in as far as runs know.

In: a Report or a Pareto. Out: a Table with an answer and its reason for each item. What a run
cannot know is left to the authors, and said so. `checklist.json` has the items, whose they are, and
when they were read.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from prunescope.analysis.report import titles
from prunescope.analysis.report.view import Column, Table, text_table
from prunescope.analysis.schema.pareto import Pareto
from prunescope.analysis.schema.report import Report
from prunescope.analysis.summary.paper_words import statistic_words, why_no_speedup
from prunescope.taxonomy import numbers

YES, NO, AUTHORS = "Yes", "No", "for the authors"
Answer = tuple[str, str]
_NOT_KNOWN = "the run does not tell"


@dataclass(frozen=True, kw_only=True)
class _Facts:
    """What runs know of the items of a checklist.

    Attributes:
        model: The model.
        texts: The texts and data sets that were read.
        commands: The commands that were run.
        versions: The versions of the software.
        seeds: The seeds.
        device: The device, with its threads.
        memory_bytes: The largest peak of memory.
        statistics: The statistic of each result that has an interval.
        invalid: The results that are no evidence, with the reason.
        results: The number of results.
        warnings: What the reports warn of.
    """

    model: str
    texts: list[str]
    commands: list[str]
    versions: dict[str, str]
    seeds: dict[str, int]
    device: str
    memory_bytes: float | None
    statistics: list[str]
    invalid: list[str]
    results: int
    warnings: list[str]


def report_checklist(report: Report) -> Table:
    """Return the checklist of a report."""
    phases, subject = report.phases, report.subject
    workloads = [phase.workload for phase in phases.values() if phase.workload]
    threads = {f"{w.threads} threads" for w in workloads if w.on_host and w.threads}
    device = titles.named(report.device.get("name"))
    why = {name: why_no_speedup(phase) for name, phase in phases.items() if phase.ladder}
    known = [name for name, phase in phases.items() if phase.ladder and phase.ladder.realised_ci95]
    argv = subject.get("argv") or []
    peaks = (
        side.peak_memory_bytes
        for phase in phases.values()
        for side in (phase, phase.baseline)
        if side is not None and side.peak_memory_bytes
    )
    return _table(
        _Facts(
            model=titles.named(subject.get("model")),
            texts=_distinct(w.inputs for w in workloads),
            commands=[" ".join(["prunescope", *argv])] if argv else [],
            versions=subject.get("versions") or {},
            seeds=subject.get("seeds") or {},
            device=", ".join(filter(None, [device, *sorted(threads)])),
            memory_bytes=max(peaks, default=None),
            statistics=_distinct(statistic_words(phases[name]) for name in known if not why[name]),
            invalid=[f"{name}: {reason}" for name, reason in why.items() if reason],
            results=len(phases),
            warnings=report.warnings,
        )
    )


def sweep_checklist(pareto: Pareto) -> Table:
    """Return the checklist of a sweep."""
    subject = pareto.subject
    points = [point for phase in pareto.phases.values() for point in phase.points]
    threads = f"{subject.threads} threads" if subject.threads else None
    source = (subject.text or {}).get("source")
    seed = subject.config.get("seed")
    samples = _distinct(f"n = {p.samples}" for p in points if p.is_judged and p.samples)
    return _table(
        _Facts(
            model=subject.model or "",
            texts=_distinct([str(source) if source else None]),
            commands=_distinct([subject.command]),
            versions=subject.versions,
            seeds={} if seed is None else {"seed": seed},
            device=", ".join(filter(None, [subject.device, threads])),
            memory_bytes=max((p.peak_memory_bytes or 0 for p in points), default=0) or None,
            statistics=[f"speedups of {' or '.join(samples)} samples a side"] if samples else [],
            invalid=[f"{p.name}, {p.where}: times not valid" for p in points if not p.timing_valid],
            results=len(points),
            warnings=pareto.notes,
        )
    )


def _distinct(texts: Iterable[str | None]) -> list[str]:
    return list(dict.fromkeys(filter(None, texts)))


@cache
def checklist() -> dict[str, Any]:
    """Return checklist.json."""
    text = resources.files(__package__).joinpath("checklist.json").read_text("utf-8")
    read: dict[str, Any] = json.loads(text)
    return read


def _table(facts: _Facts) -> Table:
    known = checklist()
    rows = []
    for entry in known["items"]:
        answer, reason = AUTHORS, ""
        if entry["asks"] is not None:
            answer, reason = _ANSWERS[entry["asks"]](facts)
        rows.append((f"{entry['number']}. {entry['item']}", answer, reason))
    title = f"Checklist of {known['conference']} {known['edition']}, as far as the runs know"
    note = f"Items: {known['source']}, read {known['read']}."
    return text_table(
        "checklist", title, [Column("item"), Column("answer"), Column("reason")], rows, [note]
    )


def _limits(facts: _Facts) -> Answer:
    if not facts.warnings:
        return AUTHORS, "the reports warn of nothing"
    return AUTHORS, f"the reports warn: {'; '.join(facts.warnings)}"


def _reproduction(facts: _Facts) -> Answer:
    if not facts.commands or not facts.versions:
        return NO, f"{_NOT_KNOWN} the command"
    seeds = ", ".join(f"{name} {seed}" for name, seed in facts.seeds.items())
    versions = ", ".join(f"{name} {version}" for name, version in facts.versions.items())
    parts = [f"model {facts.model}", *facts.commands, f"seeds: {seeds}" if seeds else "", versions]
    return YES, "; ".join(filter(None, parts))


def _evidence(_facts: _Facts) -> Answer:
    return AUTHORS, (
        "`prunescope bundle` packs traces, samples, tables and figures, from which `verify` "
        "rebuilds every number; whether it is public, you know"
    )


def _setting(facts: _Facts) -> Answer:
    if not facts.device:
        return NO, f"{_NOT_KNOWN} the device"
    return YES, "the captions of tables and figures, and the appendix on how it was measured"


def _significance(facts: _Facts) -> Answer:
    valid = facts.results - len(facts.invalid)
    text = f"{valid} of {facts.results} results are valid"
    if facts.statistics and valid:
        text += f"; 95 % intervals: {'; '.join(facts.statistics)}"
        return (YES if valid == facts.results else NO), text
    return NO, "; ".join([text, *facts.invalid])


def _compute(facts: _Facts) -> Answer:
    if not facts.device:
        return NO, f"{_NOT_KNOWN} the device"
    memory = f", at most {numbers.size(facts.memory_bytes)} of memory" if facts.memory_bytes else ""
    return AUTHORS, f"{facts.device}{memory}; the time of the whole study is not recorded"


def _assets(facts: _Facts) -> Answer:
    used = ", ".join(filter(None, [facts.model, *facts.texts])) or _NOT_KNOWN
    return AUTHORS, f"{used}; licences are not read"


_ANSWERS = {
    "limits": _limits,
    "reproduction": _reproduction,
    "evidence": _evidence,
    "setting": _setting,
    "significance": _significance,
    "compute": _compute,
    "assets": _assets,
}
