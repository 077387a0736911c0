"""A report, a comparison or a sheet in a notebook.

In: plain values. Out: an HTML fragment, which brings its own style, scoped to itself, no script,
and takes the colours of the page around it. jinja2 escapes every string.
"""

from __future__ import annotations

from typing import Any

from prunescope.analysis.report import titles
from prunescope.analysis.report.escape import clean
from prunescope.analysis.report.gemm_table import gemm_table
from prunescope.analysis.report.html import report_view, templates
from prunescope.analysis.report.sheet import Sheet
from prunescope.analysis.schema.report import CAPTURED, NO_SPEEDUP, Phase, Report
from prunescope.analysis.summary.paragraph import sort_for_reading
from prunescope.taxonomy import numbers

_TOP_GEMMS = 12


def brief(report: Report) -> str:
    """Return what was measured and the result, in at most 300 characters."""
    lines = [
        f"{name}: {_outcome(phase)}" for name, phase in sort_for_reading(report.phases).items()
    ]
    shown = lines[:2] + ([f"{len(lines) - 2} more phases"] if len(lines) > 2 else [])
    text = "; ".join([clean(titles.title(report))[:120], *(clean(t)[:90] for t in shown)])
    return text[:300]


def _outcome(phase: Phase) -> str:
    if phase.finding(CAPTURED):
        return "no step was timed"
    if phase.ladder is None:
        return f"{numbers.time(phase.step_time_ns)} a step"
    family = phase.family.id if phase.family else "unknown"
    if phase.invalid_times:
        return f"timing not valid, {family}"
    if not phase.is_speedup:
        return f"not comparable, {family}"
    if phase.finding(NO_SPEEDUP):
        return f"no speedup beyond noise, {family}"
    return f"{numbers.ratio(phase.ladder.realised)} realised, {family}"


def render_notebook(report: Report) -> str:
    """Render headline, findings, ladder, ledger and the largest GEMMs of every phase."""
    view = report_view(report)
    phases = [
        values | {"gemms": gemm_table(phase, top=_TOP_GEMMS) if phase.gemms else None}
        for values, phase in zip(
            view["phases"], sort_for_reading(report.phases).values(), strict=True
        )
    ]
    return fragment(
        title=view["title"],
        lines=[view["against"]],
        notes=[view["device"]],
        warnings=view["warnings"],
        phases=phases,
        table=view["overview"],
    )


def render_sheet(sheet: Sheet) -> str:
    """Render lines, which wrap, and tables, each in a box that scrolls where it is wide."""
    return fragment(parts=sheet.parts)


def fragment(**values: Any) -> str:
    """Render the template with whatever it is given of a report, a comparison or a sheet."""
    empty: dict[str, Any] = {"title": "", "lines": [], "parts": [], "table": None, "phases": []}
    page = templates().get_template("notebook.html.j2")
    return page.render(**{**empty, "notes": [], "warnings": [], **values})
