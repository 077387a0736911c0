"""Names of the files of a report, and of what it is about: in, phases and subjects of any spelling;
out, plain ASCII file names and short lines."""

from __future__ import annotations

import re

from prunescope.analysis.report.device_sentence import named
from prunescope.analysis.report.escape import clean
from prunescope.analysis.report.sentences import heading
from prunescope.analysis.schema.report import Report


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


def of_what(report: Report, phase: str) -> str:
    """Of which model, method and phase, each cut to what a figure has room for."""
    return ", ".join(short(fact, 24) for fact in facts_of(report, phase))


def facts_of(report: Report, name: str) -> list[str]:
    """Model, method (or the family that was told from the shapes) and phase, where known."""
    subject, phase = report.subject, report.phases[name]
    model = named(subject.get("model")) or named(subject.get("name"))
    family = phase.family.id if phase.family and phase.family.id != "unknown" else ""
    facts = [model, named(subject.get("method")) or family, heading(name, phase)]
    return [fact for fact in facts if fact]


def short(name: str, most: int = 18) -> str:
    """A name on one line, cut after `most` characters."""
    plain = clean(name)
    return plain if len(plain) <= most else f"{plain[: most - 1]}…"
