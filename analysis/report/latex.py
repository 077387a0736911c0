r"""The report as a LaTeX fragment for \input: booktabs and siunitx tables and figure snippets; in,
a Report; out, one text that compiles with pdflatex. Every string of the report is escaped.
"""

from __future__ import annotations

from collections.abc import Iterator

from prunescope.analysis.report import ledger_view, numbers, sentences, view
from prunescope.analysis.report.escape import latex, latex_code
from prunescope.analysis.report.names import figure_name, phase_slugs
from prunescope.analysis.report.overhead_view import overhead_table
from prunescope.analysis.report.sides_view import sides_table
from prunescope.analysis.report.view import Cell, Column, Table
from prunescope.analysis.schema.report import Phase, Report

_TOP_GEMMS = 30
_TOP_KERNELS = 20
_LONGEST = 72  # characters of a kernel's name in a table for paper
_DROPPED = frozenset({"meaning", "largest part", "group"})  # too wide for paper
HEAD = r"""% Written by TOOL. Needs \usepackage{booktabs,siunitx,graphicx,array} in the preamble.
\providecommand{\prunescopewidth}{\columnwidth}% width of a figure
% A table wider than the text is scaled to it.
\providecommand{\prunescopefit}[1]{\sbox0{#1}\ifdim\wd0>\linewidth
  \resizebox{\linewidth}{!}{\usebox0}\else\usebox0\fi}
"""


def render_latex(report: Report) -> str:
    """Tables (ladder, ledger, GEMMs, kernels) and figures of every phase."""
    lines = [HEAD.replace("TOOL", latex(report.tool).replace("\n", " "))]
    slugs = phase_slugs(report)
    for name, phase in report.phases.items():
        lines.append("\n".join(_phase(name, phase, slugs[name])))
    return "\n".join(lines) + "\n"


def _phase(name: str, phase: Phase, slug: str) -> Iterator[str]:
    opening = (ledger_view.ladder_table, sides_table, ledger_view.ledger_table, overhead_table)
    tables = [draw(phase) for draw in opening]
    if phase.gemms:
        tables.append(view.gemm_table(phase, top=_TOP_GEMMS))
    if phase.kernels:
        tables.append(view.kernel_table(phase.kernels, phase.busy_ns, top=_TOP_KERNELS))
    for table in tables:
        if table is not None:
            yield from _table(table, name, phase, slug)
    if phase.ladder is not None:
        yield from _figure("ladder", "Speedup ladder", name, slug)
    if phase.ledger:
        yield from _figure("ledger", "Ledger waterfall", name, slug)


def _figure(kind: str, caption: str, name: str, slug: str) -> Iterator[str]:
    file = figure_name(kind, slug, "pdf")
    yield rf"\IfFileExists{{{file}}}{{%"
    yield r"\begin{figure}\centering"
    yield rf"\includegraphics[width=\prunescopewidth]{{{file}}}"
    yield rf"\caption{{{caption}, {latex(name)}.}}\label{{fig:{kind}-{slug}}}"
    yield r"\end{figure}}{}"
    yield ""


def _table(table: Table, name: str, phase: Phase, slug: str) -> Iterator[str]:
    keep = [i for i, c in enumerate(table.columns) if c.title not in _DROPPED]
    table_env = "table*" if len(keep) > 6 else "table"
    yield rf"\begin{{{table_env}}}\centering\footnotesize\setlength{{\tabcolsep}}{{3pt}}"
    yield rf"\caption{{{_caption(table, name, phase)}}}\label{{tab:{table.id}-{slug}}}\smallskip"
    yield from tabular(table, keep)
    yield from (rf"\par {latex(note)}" for note in table.notes)
    yield rf"\end{{{table_env}}}"
    yield ""


def tabular(table: Table, keep: list[int]) -> Iterator[str]:
    """The columns `keep` of a table as booktabs lines, no wider than the text."""
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
        yield " & ".join(cells) + r" \\"
    yield r"\bottomrule"
    yield r"\end{tabular}}"


def _caption(table: Table, name: str, phase: Phase) -> str:
    compared = table.id in ("ladder", "ledger")
    says = sentences.headline(phase) if compared else sentences.setup(phase)
    text = f"{table.title}, {name}: {says}."
    if table.id == "ladder" and (statistic := sentences.statistic(phase)):
        text += f" {statistic[0].upper()}{statistic[1:]}."
    return latex(text)


def _head(column: Column, cells: list[Cell]) -> str:
    if any(cell.text.endswith(" %") for cell in cells):
        return rf"{latex(column.title)} (\%)"
    unit = {"ms": r"\si{\milli\second}", "µs": r"\si{\micro\second}", "s": r"\si{\second}"}
    known = unit.get(column.unit, latex(column.unit))
    return f"{latex(column.title)} ({known})" if column.unit else latex(column.title)


def _form(column: Column, cells: list[Cell]) -> str:
    """An S column where every known cell is one number, else text."""
    if column.flexible:
        return r">{\raggedright\arraybackslash}p{0.45\linewidth}"
    plain = [_number(cell) for cell in cells]
    known = [number for number in plain if number]
    if column.numeric and known and all(n is not None for n in plain):
        before = max(len(n.lstrip("+-").partition(".")[0]) for n in known)
        after = max(len(n.partition(".")[2]) for n in known)
        signed = any(n[0] in "+-" for n in known)
        form = f"table-format={'+' * signed}{before}.{after}"
        return f"S[{form},retain-explicit-plus]" if signed else f"S[{form}]"
    return "r" if column.numeric else "l"


def _number(cell: Cell) -> str | None:
    """The cell as siunitx reads it; "" where it is unknown, None where it is no single number."""
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
