r"""The report as a LaTeX fragment for \input: booktabs and siunitx tables and figure snippets.

In: a Report. Out: one text that compiles with pdflatex. Every string of the report is escaped.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from prunescope.analysis.report import titles
from prunescope.analysis.report.escape import latex, latex_code
from prunescope.analysis.report.phase_tables import Extent, phase_tables
from prunescope.analysis.report.titles import phase_slugs
from prunescope.analysis.report.view import Cell, Column, Table
from prunescope.analysis.schema.report import Report
from prunescope.analysis.summary.paper_words import caption_words, setting_caption
from prunescope.taxonomy import numbers
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.words import plural

# What a paper has room for.
_EXTENT = Extent(
    gemms=30, kernels=20, without=frozenset({"parts", "kind", "role", "shapes", "host"})
)
_LONGEST = 72  # characters of a kernel's name in a table for paper
_FIGURES = {"ladder": "Speedup ladder", "ledger": "Ledger waterfall"}
_OF_RESULT = frozenset({"ladder", "ledger", "sides"})  # others are of the profiled steps
_PREFIX = re.compile(r"[A-Za-z0-9.\-]{0,40}")
_DROPPED = frozenset({"meaning", "largest part", "group"})  # too wide for paper
HEAD = r"""% Written by TOOL. Needs \usepackage{booktabs,siunitx,graphicx,array} in the preamble.
\providecommand{\prunescopewidth}{\columnwidth}% width of a figure
% A table wider than the text is scaled to it.
\providecommand{\prunescopefit}[1]{\sbox0{#1}\ifdim\wd0>\linewidth
  \resizebox{\linewidth}{!}{\usebox0}\else\usebox0\fi}
% The folder of this file, so that its figures are found from wherever it is \input.
\def\prunescopehere{}
\ifdefined\CurrentFilePathUsed\edef\prunescopehere{\CurrentFilePathUsed}\fi
\ifx\prunescopehere\empty\else\edef\prunescopehere{\prunescopehere/}\fi
% A figure: its file without the ending, pdf before png, and its caption; a warning without a file.
\providecommand{\prunescopefigure}[2]{%
  \IfFileExists{\prunescopehere #1.pdf}{\prunescopeshow{#1.pdf}{#2}}{%
    \IfFileExists{\prunescopehere #1.png}{\prunescopeshow{#1.png}{#2}}{%
      \PackageWarning{prunescope}{no \prunescopehere #1.pdf or .png: the figure is left out;
        write it with --format tex,pdf}}}}
\providecommand{\prunescopeshow}[2]{\begin{figure}\centering
  \includegraphics[width=\prunescopewidth]{\prunescopehere #1}#2\end{figure}}
"""


def render_latex(report: Report, *, label_prefix: str = "") -> str:
    """Return tables (ladder, ledger, GEMMs, kernels) and figures of every phase as one text."""
    return head(report.tool) + "\n" + "\n".join(_snippets(report, label_prefix).values())


def latex_files(report: Report, *, label_prefix: str = "") -> dict[str, str]:
    """Return file name to text: report.tex, and a file for each table and figure of it.

    Args:
        report: The report.
        label_prefix: A word that is put in front of every label, `tab:PREFIX-ladder-prefill`,
            so that two reports fit into one paper.

    Raises:
        PrunescopeError: The prefix is no word of letters, digits and dashes.
    """
    parts = _snippets(report, label_prefix)
    whole = {"report.tex": render_latex(report, label_prefix=label_prefix)}
    return whole | {name: head(report.tool) + "\n" + text for name, text in parts.items()}


def check_prefix(label_prefix: str) -> str:
    """Return the prefix with its dash; raise PrunescopeError where it cannot stand in a label."""
    if not _PREFIX.fullmatch(label_prefix):
        raise PrunescopeError(
            f"--label-prefix {label_prefix!r} cannot stand in a label",
            hint="letters, digits, dots and dashes, as in first or llama-8b",
        )
    return f"{label_prefix}-" if label_prefix else ""


def head(tool: str) -> str:
    """Return the lines that every file begins with; they may be read twice."""
    return HEAD.replace("TOOL", latex(tool).replace("\n", " "))


def _snippets(report: Report, prefix: str) -> dict[str, str]:
    """Return file name to the text of one table or figure, in the order of the whole."""
    texts: dict[str, str] = {}
    prefix = check_prefix(prefix)
    for name, slug in phase_slugs(report).items():
        phase, heading = report.phases[name], titles.heading(name, report.phases[name])
        result = caption_words(heading, phase, report.subject, report.device)
        setting = setting_caption(heading, phase, report.subject, report.device)
        profiled = f"{setting} Means of n = {phase.steps} profiled step{plural(phase.steps)}."
        for table in phase_tables(phase, _EXTENT):
            label = f"tab:{prefix}{table.id}-{slug}"
            text = result if table.id in _OF_RESULT else profiled
            texts[f"table-{table.id}-{slug}.tex"] = "\n".join(
                _table(table, f"{table.title}: {text}", label)
            )
        for kind, title in _FIGURES.items():
            if getattr(phase, kind):
                label, file = f"fig:{prefix}{kind}-{slug}", f"{kind}-{slug}"
                text = f"{title}: {result}"
                texts[f"figure-{kind}-{slug}.tex"] = "\n".join(figure_snippet(file, text, label))
    return texts


def figure_snippet(file: str, text: str, label: str) -> Iterator[str]:
    """Yield the lines that show a figure with its caption."""
    yield rf"\prunescopefigure{{{file}}}{{%"
    yield rf"\caption{{{latex(text)}}}\label{{{label}}}}}"
    yield ""


def _table(table: Table, caption: str, label: str) -> Iterator[str]:
    keep = [i for i, c in enumerate(table.columns) if c.title not in _DROPPED]
    table_env = "table*" if len(keep) > 6 else "table"
    yield rf"\begin{{{table_env}}}\centering\footnotesize\setlength{{\tabcolsep}}{{3pt}}"
    yield rf"\caption{{{latex(caption)}}}\label{{{label}}}\smallskip"
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
        yield " & ".join(cells) + r" \\"
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
