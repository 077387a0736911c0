"""Names of the files of a report: in, phases of any spelling; out, plain ASCII file names."""

from __future__ import annotations

import re

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
