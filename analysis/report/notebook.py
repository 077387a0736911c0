"""A report, a comparison or a sheet in a notebook: in, plain values; out, an HTML fragment.

It brings its own style, scoped to itself, no script, and takes the colours of the page around it.
jinja2 escapes every string.
"""

from __future__ import annotations

from typing import Any

from prunescope.analysis.report import gemm_table, sentences, titles
from prunescope.analysis.report.comparison import comparison_table, comparison_warnings
from prunescope.analysis.report.escape import clean
from prunescope.analysis.report.html import phase_view, templates
from prunescope.analysis.report.phase_tables import overview
from prunescope.analysis.report.sheet import Sheet
from prunescope.analysis.report.titles import phase_slugs
from prunescope.analysis.schema.comparison import Comparison
from prunescope.analysis.schema.report import CAPTURED, NO_SPEEDUP, Phase, Report
from prunescope.analysis.summary.paragraph import in_reading_order, waits_for
from prunescope.taxonomy import numbers

_TOP_GEMMS = 12


def brief(report: Report) -> str:
    """What was measured and the result, in at most 300 characters."""
    lines = [
        f"{name}: {_outcome(phase)}" for name, phase in in_reading_order(report.phases).items()
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
    """Headline, findings, ladder, ledger and the largest GEMMs of every phase."""
    slugs = phase_slugs(report)
    phases = [
        phase_view(name, slugs[name], phase, waits_for(phase, report.phases))
        | {"gemms": gemm_table.gemm_table(phase, top=_TOP_GEMMS) if phase.gemms else None}
        for name, phase in in_reading_order(report.phases).items()
    ]
    return _fragment(
        title=titles.title(report),
        lines=[titles.against(report)],
        notes=[titles.device(report)],
        warnings=sentences.warnings(report),
        phases=phases,
        table=overview(report.phases),
    )


def render_sheet(sheet: Sheet) -> str:
    """Lines, which wrap, and tables, which scroll in a box of their own where they are wide."""
    return _fragment(parts=sheet.parts)


def _fragment(**values: Any) -> str:
    """The template, whatever it is given of a report, a comparison or a sheet."""
    empty: dict[str, Any] = {"title": "", "lines": [], "parts": [], "table": None, "phases": []}
    page = templates().get_template("notebook.html.j2")
    return page.render(**{**empty, "notes": [], "warnings": [], **values})


def render_comparison(comparison: Comparison) -> str:
    """The table of a comparison."""
    return _fragment(
        title="Comparison: dense → pruned, of one step",
        warnings=comparison_warnings(comparison),
        table=comparison_table(comparison),
    )
