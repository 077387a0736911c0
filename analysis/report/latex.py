r"""The report as a LaTeX fragment for \input: booktabs and siunitx tables and figure snippets.

In: a Report. Out: one text that compiles with pdflatex. Every string of the report is escaped.
"""

from __future__ import annotations

from collections.abc import Iterator

from prunescope.analysis.report import titles
from prunescope.analysis.report.appendix import checklist_latex, phase_appendix, setting_table
from prunescope.analysis.report.checklist import report_checklist
from prunescope.analysis.report.escape import latex, latex_caption, latex_code
from prunescope.analysis.report.latex_head import head, table_row
from prunescope.analysis.report.phase_pictures import phase_pictures
from prunescope.analysis.report.phase_tables import Extent, phase_tables
from prunescope.analysis.report.printing import printing
from prunescope.analysis.report.titles import phase_slugs
from prunescope.analysis.report.view import Cell, Column, Table
from prunescope.analysis.schema.report import Report
from prunescope.analysis.summary.paper_words import (
    capital,
    caption_words,
    setting_caption,
    statistic_words,
)
from prunescope.taxonomy import numbers
from prunescope.taxonomy.words import plural

# What a paper has room for.
_EXTENT = Extent(
    gemms=30,
    kernels=20,
    rounded=True,
    without=frozenset({"parts", "kind", "role", "shapes", "host"}),
)
_LONGEST = 72  # characters of a kernel's name in a table for paper
_OF_RESULT = frozenset({"ladder", "ledger", "sides"})  # others are of the profiled steps
_DROPPED = frozenset({"meaning", "largest part", "group"})  # too wide for paper


def render_latex(report: Report) -> str:
    """Return tables (ladder, ledger, GEMMs, kernels) and figures of every phase as one text."""
    return head(report.tool) + "\n" + "\n".join(_snippets(report).values())


def latex_files(report: Report) -> dict[str, str]:
    """Return file name to text: report.tex, and a file for each table and figure of it.

    Labels are `tab:PREFIX-ladder-prefill` with the prefix of `printing`, so that two reports fit
    into one paper.
    """
    parts = {name: head(report.tool) + "\n" + text for name, text in _snippets(report).items()}
    spoken = {
        f"sentence-{slug}.tex": f"{latex(answer.sentence)}%\n"
        for name, slug in phase_slugs(report).items()
        if (answer := report.phases[name].answer) is not None and answer.sentence
    }
    return {"report.tex": render_latex(report), **parts, **spoken}


def _snippets(report: Report) -> dict[str, str]:
    """Return file name to the text of one table or figure, in the order of the whole."""
    texts: dict[str, str] = {}
    for name, slug in phase_slugs(report).items():
        phase, heading = report.phases[name], titles.heading(name, report.phases[name])
        result = caption_words(heading, phase, report.subject, report.device)
        setting = setting_caption(heading, phase, report.subject, report.device)
        profiled = f"{setting} Means of n = {phase.steps} profiled step{plural(phase.steps)}."
        for table in phase_tables(phase, _EXTENT):
            label = f"tab:{printing().label_prefix}{table.id}-{slug}"
            text = result if table.id in _OF_RESULT else profiled
            texts[f"table-{table.id}-{slug}.tex"] = "\n".join(
                _table(table, f"{table.title}: {text}", label)
            )
    for picture in phase_pictures(report):
        texts[f"figure-{picture.stem}.tex"] = picture.snippet
    for name, slug in phase_slugs(report).items():
        phase, heading = report.phases[name], titles.heading(name, report.phases[name])
        label = f"tab:{printing().label_prefix}measured-{slug}"
        setting = setting_caption(heading, phase, report.subject, report.device)
        caption = f"What was measured, and how: {setting} {capital(statistic_words(phase))}."
        texts[f"table-measured-{slug}.tex"] = phase_appendix(
            setting_table(heading, phase, report), caption, label, phase
        )
    checklist = report_checklist(report)
    texts["checklist.tex"] = checklist_latex(checklist, printing().label_prefix)
    return texts


def _table(table: Table, caption: str, label: str) -> Iterator[str]:
    keep = [i for i, c in enumerate(table.columns) if c.title not in _DROPPED]
    table_env = "table*" if len(keep) > 6 else "table"
    yield rf"\begin{{{table_env}}}\centering\footnotesize\setlength{{\tabcolsep}}{{3pt}}"
    yield rf"\caption{{{latex_caption(caption)}}}\label{{{label}}}\smallskip"
    yield from tabular(table, keep)
    yield from (rf"\par {latex(note)}" for note in table.notes)
    yield rf"\end{{{table_env}}}"
    yield ""


def tabular(table: Table, keep: list[int]) -> Iterator[str]:
    """Yield the columns `keep` of a table as booktabs lines, no wider than the text."""
    columns = [table.columns[i] for i in keep]
    bodies = [[row[i] for i in keep] for row in table.rows]
    forms = [_form(column, [row[i] for row in bodies]) for i, column in enumerate(columns)]
    yield rf"\prunescopefit{{\begin{{tabular}}{{{''.join(forms)}}}"
    yield r"\toprule"
    heads = (_head(column, [row[i] for row in bodies]) for i, column in enumerate(columns))
    yield " & ".join(f"{{{head}}}" for head in heads) + r" \\"
    yield r"\midrule"
    for row in bodies:
        cells = (_cell(cell, form) for cell, form in zip(row, forms, strict=True))
        yield table_row(cells)
    yield r"\bottomrule"
    yield r"\end{tabular}}"


def _head(column: Column, cells: list[Cell]) -> str:
    if any(cell.text.endswith(" %") for cell in cells):
        return rf"{latex(column.title)} (\%)"
    unit = {"ms": r"\si{\milli\second}", "µs": r"\si{\micro\second}", "s": r"\si{\second}"}
    known = unit.get(column.unit, latex(column.unit))
    return f"{latex(column.title)} ({known})" if column.unit else latex(column.title)


def _form(column: Column, cells: list[Cell]) -> str:
    """Return the form of a column: S where every known cell is one number, else text."""
    if column.flexible:
        return r">{\raggedright\arraybackslash}p{0.45\linewidth}"
    plain = [_number(cell) for cell in cells]
    known = [number for number in plain if number]
    if column.numeric and known and all(n is not None for n in plain):
        before = max(len(n.lstrip("+-").partition(".")[0]) for n in known)
        after = max(len(n.partition(".")[2]) for n in known)
        is_signed = any(n[0] in "+-" for n in known)
        form = f"table-format={'+' if is_signed else ''}{before}.{after}"
        return f"S[{form},retain-explicit-plus]" if is_signed else f"S[{form}]"
    return "r" if column.numeric else "l"


def _number(cell: Cell) -> str | None:
    """Return the number of a cell as siunitx reads it.

    It is "" where it is unknown, and None where the cell is no single number.
    """
    text = cell.text.replace(numbers.MINUS, "-").replace(",", "")
    text = text.removesuffix(" %").removesuffix("×").removeprefix("±")
    if text in (numbers.UNKNOWN, ""):
        return ""
    body = text.lstrip("+-")
    return text if body.replace(".", "", 1).isdecimal() and body.isascii() else None


def _cell(cell: Cell, form: str) -> str:
    if not form.startswith("S"):
        short = cell.text if len(cell.text) <= _LONGEST else cell.text[: _LONGEST - 1] + "…"
        return latex_code(short) if cell.code else latex(short)
    number = _number(cell)
    if not number:
        return f"{{{latex(cell.text)}}}"
    return number
