"""The report as one self-contained HTML page.

In: a Report. Out: one text. jinja2 escapes every string; the page loads nothing, and a content
security policy forbids any script but its own.
"""

from __future__ import annotations

import base64
import hashlib
import html
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jinja2

from prunescope.analysis.report import hatches, ledger_view, looks, measured, sentences, titles
from prunescope.analysis.report.escape import clean
from prunescope.analysis.report.explorer import SideTimeline, timelines
from prunescope.analysis.report.phase_tables import Extent, overview, phase_tables
from prunescope.analysis.report.titles import phase_slugs
from prunescope.analysis.report.view import Table
from prunescope.analysis.schema.report import Finding, Phase, Report
from prunescope.analysis.summary import evidence
from prunescope.analysis.summary.answer import given_answer
from prunescope.analysis.summary.labels import LEDGER
from prunescope.analysis.summary.paragraph import outcome_and_reasons, sort_for_reading, waits_for
from prunescope.taxonomy import numbers
from prunescope.taxonomy.lazy_pattern import lazy_pattern

_TEMPLATES = Path(__file__).parent / "templates"
_CODE = lazy_pattern(r"`([^`]+)`")
_OPTION = lazy_pattern(r"(?<!\S)--[\w-]+")  # browsers break lines between its hyphens
_EXTENT = Extent(kernel_names=True, without=frozenset({"ladder", "ledger"}))


def render_html(report: Report, sides: Mapping[str, Sequence[SideTimeline]] | None = None) -> str:
    """Return the whole report as a page, light and dark, with every row that the report holds.

    Args:
        report: The report.
        sides: The sides of each phase, for its timelines, dense first; a phase without any has no
            timeline.
    """
    data = {
        name: Escaped(timelines(phase, sides[name]))
        for name, phase in report.phases.items()
        if sides is not None and sides.get(name)
    }
    return rendered_page(
        "report.html.j2",
        scripts=("sort.js.html", "explorer.js.html"),
        tool=report.tool,
        no_finding=sentences.NO_FINDING,
        timelines={phase_slugs(report)[name]: text for name, text in data.items()},
        **report_view(report),
    )


def report_view(report: Report) -> dict[str, Any]:
    """Return the template variables of a report: its title, notes, overview and phases."""
    slugs = phase_slugs(report)
    return {
        "title": titles.title(report),
        "against": titles.against(report),
        "device": titles.device(report),
        "warnings": sentences.warnings(report),
        "overview": overview(report.phases),
        "phases": [
            phase_view(name, slugs[name], phase, waits_for(phase, report.phases))
            for name, phase in sort_for_reading(report.phases).items()
        ],
    }


def rendered_page(
    template: str, *, scripts: Sequence[str] = ("sort.js.html",), **values: Any
) -> str:
    """Render a template as a self-contained page, with scripts of this package as one.

    The page gets the digest of the script, the only one that its policy allows.
    """
    script = "\n".join((_TEMPLATES / name).read_text(encoding="utf-8") for name in scripts)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return templates().get_template(template).render(script=script, digest=digest, **values)


@cache
def templates() -> jinja2.Environment:
    """Return the templates, compiled once (0.1 s).

    They escape every string, and refuse a name that is not given.
    """
    env = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=spelled_out,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters["prose"] = prose
    env.globals["looks"] = looks
    return env


class Escaped(str):
    """HTML that is escaped already, as jinja2 asks for it."""

    def __html__(self) -> str:
        """Return the text itself."""
        return str(self)


def prose(text: str) -> Escaped:
    """Escape a sentence, with what stands in backticks as code."""
    return Escaped(_CODE.sub(_code, html.escape(clean(text))))


def _code(span: re.Match[str]) -> str:
    whole = _OPTION.sub(r'<span class="option">\g<0></span>', span[1])
    return f"<code>{whole}</code>"


def spelled_out(value: Any) -> Any:
    """Spell out control characters in a string, before it is escaped; other values stay."""
    return clean(value) if type(value) is str else value


def phase_view(name: str, slug: str, phase: Phase, late: Finding | None = None) -> dict[str, Any]:
    """Return the template variables of one phase: sentences, bounds, ledger and tables.

    Args:
        name: The name of the phase.
        slug: The part of file names and anchors that stands for it.
        phase: The phase.
        late: The finding on the rank that this one waits for; None without one.
    """
    rows = ledger_view.ladder_rows(phase)
    bounds, unchanged = _bars(rows)
    code = sentences.code_to_try(phase)
    return {
        "name": titles.heading(name, phase),
        "slug": slug,
        "answer": given_answer(phase, late),
        "sentence": phase.answer.sentence if phase.answer else None,
        "detail": " ".join(outcome_and_reasons(phase, late)).strip(),
        "is_invalid": bool(evidence.ledger_invalid_reasons(phase)),
        "is_slowed": phase.is_slowed,
        "opening": sentences.opening(phase),
        "findings": [
            {
                "id": f.id,
                "severity": f.severity,
                "text": sentences.finding(f),
                "evidence": f.evidence,
            }
            for f in phase.findings
        ],
        "code": None if code is None else (code[0], Escaped(html.escape(code[1]))),
        "caveats": [
            (_strokes([why]), text) for why, text in ledger_view.ladder_caveats(rows).items()
        ],
        "ladder_notes": ledger_view.ladder_notes(phase),
        "bounds": bounds,
        "spans": any("[" in row.interval for row in rows),
        "unchanged": unchanged,
        "ledger": _ledger(phase),
        "tables": list(phase_tables(phase, _EXTENT)),
        "measured": measured.lines(phase),
    }


def _strokes(caveats: list[str]) -> str:
    """Return the class of the hatching for the most severe reason; empty without one."""
    return hatches.STROKES[hatches.HATCHES[caveats[0]]] if caveats else ""


def _bars(rows: list[ledger_view.LadderRow]) -> tuple[list[dict[str, Any]], float]:
    """Return the ladder as bars, and where 1× lies on them; positions run from 0 to 100.

    A bar whose interval is too narrow to be seen has no ends, so no whisker.
    """
    ends = [end for row in rows for end in (row.value, *(row.ci95 or ())) if end is not None]
    full = 100 / (1.04 * max([1.0, *ends]))
    bounds = []
    for row in rows:
        seen = row.ci95 if ledger_view.is_visible(row.ci95, 100 / full) else None
        low, high = (full * end for end in seen) if seen else (None, None)
        bounds.append(
            {
                "row": row,
                "text": numbers.ratio(row.value),
                "share": numbers.percent(row.share, decimals=0),
                "width": full * (row.value or 0.0),
                "low": low,
                "high": high,
                "caveats": ", ".join(row.reasons),
                "strokes": _strokes(row.reasons),
            }
        )
    return bounds, full


def fill_of(row: str, tone: str) -> str:
    """Return the colour of a row of the ledger, as in every figure; none where it is unsure."""
    return "none" if tone == "quiet" else looks.ROWS.get(row, looks.ROWS["not_explained"]).colour


def _ledger(phase: Phase) -> dict[str, Any] | None:
    """Return the template variables of the ledger; None without one."""
    table: Table | None = ledger_view.ledger_table(phase)
    if table is None or phase.ledger is None:
        return None
    bars, (low, high) = ledger_view.waterfall(phase.ledger)
    unit = ledger_view.ledger_scale(phase.ledger)
    spans = [
        {
            "x": 100 * min(bar.start, bar.end),
            "width": 100 * abs(bar.end - bar.start),
            "tone": bar.tone,
            "fill": fill_of(row.row, bar.tone),
        }
        for row, bar in zip(phase.ledger, bars, strict=True)
    ]
    rows = [row.row for row in phase.ledger]
    meanings = [LEDGER.get(row.row, ("", ""))[1] for row in phase.ledger]
    return {
        "table": table,
        "rows": list(zip(table.rows, spans, meanings, rows, strict=True)),
        "caveats": ", ".join(caveats := evidence.ledger_reasons(phase)),
        "strokes": _strokes(caveats),
        "unsure": any(bar.tone == "quiet" and bar.start != bar.end for bar in bars),
        "range": f"{unit.text(low)} to {unit.text(high)} {unit.unit}",
    }
