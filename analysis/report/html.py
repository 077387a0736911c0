"""The report as one self-contained HTML page: in, a Report; out, one text. jinja2 escapes every
string; the page loads nothing and a content security policy forbids any script but its own.
"""

from __future__ import annotations

import base64
import hashlib
import html
import re
from functools import cache
from pathlib import Path
from typing import Any

import jinja2

from prunescope.analysis.report import hatches, ledger_view, measured, sentences, titles
from prunescope.analysis.report.escape import clean
from prunescope.analysis.report.phase_tables import Extent, overview, phase_tables
from prunescope.analysis.report.titles import phase_slugs
from prunescope.analysis.report.view import Table
from prunescope.analysis.schema.report import Finding, Phase, Report
from prunescope.analysis.summary import evidence
from prunescope.analysis.summary.labels import LEDGER
from prunescope.analysis.summary.paragraph import in_reading_order, outcome_and_reasons, waits_for
from prunescope.taxonomy import numbers

_TEMPLATES = Path(__file__).parent / "templates"
_CODE = re.compile(r"`([^`]+)`")
_OPTION = re.compile(r"(?<!\S)--[\w-]+")  # browsers break lines between its hyphens
_EXTENT = Extent(kernel_names=True, without=frozenset({"ladder", "ledger"}))


def render_html(report: Report) -> str:
    """The whole report, light and dark, with every row that the report holds."""
    slugs = phase_slugs(report)
    return rendered_page(
        "report.html.j2",
        title=titles.title(report),
        against=titles.against(report),
        device=titles.device(report),
        tool=report.tool,
        warnings=sentences.warnings(report),
        no_finding=sentences.NO_FINDING,
        overview=overview(report.phases),
        phases=[
            phase_view(name, slugs[name], phase, waits_for(phase, report.phases))
            for name, phase in in_reading_order(report.phases).items()
        ],
    )


def rendered_page(template: str, **values: Any) -> str:
    """A self-contained page, with the script that sorts its tables and the digest of that."""
    script = (_TEMPLATES / "sort.js.html").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return templates().get_template(template).render(script=script, digest=digest, **values)


@cache
def templates() -> jinja2.Environment:
    """The templates, compiled once (0.1 s): they escape every string, and refuse a name that is
    not there."""
    env = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=spelled_out,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters["prose"] = prose
    return env


class Escaped(str):
    """HTML that is escaped already, as jinja2 asks for it."""

    def __html__(self) -> str:
        return str(self)


def prose(text: str) -> Escaped:
    """A sentence, escaped, with what stands in backticks as code."""
    return Escaped(_CODE.sub(_code, html.escape(clean(text))))


def _code(found: re.Match[str]) -> str:
    whole = _OPTION.sub(r'<span class="option">\g<0></span>', found[1])
    return f"<code>{whole}</code>"


def spelled_out(value: Any) -> Any:
    """Control characters spelled out in every string, before it is escaped."""
    return clean(value) if type(value) is str else value


def phase_view(name: str, slug: str, phase: Phase, late: Finding | None = None) -> dict[str, Any]:
    """Template variables of one phase: sentences, bounds, ledger and tables. `late`: the finding
    on the rank that this one waits for."""
    rows = ledger_view.ladder_rows(phase)
    bounds, one = _bars(rows)
    outcome, reasons = outcome_and_reasons(phase, late)
    return {
        "name": titles.heading(name, phase),
        "slug": slug,
        "outcome": outcome,
        "reasons": reasons,
        "opening": sentences.opening(phase),
        "findings": [
            {"severity": f.severity, "text": sentences.finding(f), "evidence": f.evidence}
            for f in phase.findings
        ],
        "caveats": [
            (_strokes([why]), text) for why, text in ledger_view.ladder_caveats(rows).items()
        ],
        "ladder_notes": ledger_view.ladder_notes(phase),
        "bounds": bounds,
        "spans": any("[" in row.interval for row in rows),
        "one": one,
        "ledger": _ledger(phase),
        "tables": list(phase_tables(phase, _EXTENT)),
        "measured": measured.lines(phase),
    }


def _strokes(caveats: list[str]) -> str:
    """The class of the hatching of the most severe caveat; empty without one."""
    return hatches.STROKES[hatches.HATCHES[caveats[0]]] if caveats else ""


def _bars(rows: list[ledger_view.LadderRow]) -> tuple[list[dict[str, Any]], float]:
    """The ladder with width of a bar and ends of an interval (None: no whisker is seen), 0..100;
    and where 1× lies on the bars."""
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


def _ledger(phase: Phase) -> dict[str, Any] | None:
    table: Table | None = ledger_view.ledger_table(phase)
    if table is None or phase.ledger is None:
        return None
    bars, (low, high) = ledger_view.waterfall(phase.ledger)
    unit = ledger_view.ledger_scale(phase.ledger)
    spans = [
        {"x": 100 * min(b.start, b.end), "width": 100 * abs(b.end - b.start), "tone": b.tone}
        for b in bars
    ]
    meanings = [LEDGER.get(row.row, ("", ""))[1] for row in phase.ledger]
    return {
        "table": table,
        "rows": list(zip(table.rows, spans, meanings, strict=True)),
        "caveats": ", ".join(caveats := evidence.ledger_reasons(phase)),
        "strokes": _strokes(caveats),
        "tones": {bar.tone for bar in bars if bar.start != bar.end},
        "range": f"{unit.text(low)} to {unit.text(high)} {unit.unit}",
    }
