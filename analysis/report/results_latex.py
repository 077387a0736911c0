r"""Tables of results as files; in LaTeX booktabs and siunitx, as wide as a column or a page.

In: ResultsTables. Out: Markdown, CSV, and a `table` or `table*` for \input, with every string
escaped. Where the phases do not fit side by side into a column, they stand below each other.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

from prunescope.analysis.report.escape import latex, latex_caption
from prunescope.analysis.report.latex_head import head, table_row
from prunescope.analysis.report.markdown import table_blocks
from prunescope.analysis.report.printing import printing
from prunescope.analysis.report.results_table import (
    Quantity,
    ResultRow,
    ResultsTable,
    ResultValue,
    as_table,
    results_csv,
    rows_and_apart,
)
from prunescope.taxonomy import numbers
from prunescope.taxonomy.words import when

COLUMN, PAGE = "column", "page"
# Points of a column and a page of two columns; a digit in the sizes of type of both, and the space
# between columns. A table may be scaled until its type is 6 pt high.
_ROOM = {COLUMN: 239.0, PAGE: 504.0}
_TYPE = {COLUMN: ("scriptsize", 3.5, 7.0), PAGE: ("footnotesize", 4.0, 8.0)}
_GAP, _SMALLEST = 8.0, 6.0
# Bold numbers of siunitx: version 3 of 2021, and the versions before it.
_BOLD = (
    r"\makeatletter\@ifpackagelater{siunitx}{2021/05/01}"
    r"{\sisetup{text-series-to-math=true,propagate-math-font=true}}"
    r"{\sisetup{detect-weight=true,mode=text}}\makeatother"
)


def results_files(
    tables: Sequence[ResultsTable], formats: Collection[str], tool: str
) -> dict[str, bytes]:
    """Return tables of results as files: table-ID.md, .csv and .tex, of the formats asked for.

    Args:
        tables: The tables.
        formats: Some of md, csv and tex; others are ignored.
        tool: Name and version of this tool, for the first line of LaTeX files.
    """
    now = printing()
    files: dict[str, str] = {}
    for table in tables:
        name = f"table-{table.id}"
        if "md" in formats:
            files[f"{name}.md"] = "\n\n".join([*table_blocks(as_table(table), level=1), ""])
        if "csv" in formats:
            files[f"{name}.csv"] = results_csv(table)
        if "tex" in formats:
            text = results_latex(table, f"tab:{now.label_prefix}{table.id}", now.word)
            files[f"{name}.tex"] = f"{head(tool)}\n{text}"
    return {name: text.encode() for name, text in files.items()}


def results_latex(results: ResultsTable, label: str, width: str | None = None) -> str:
    """Return a table of results as LaTeX.

    Args:
        results: The table.
        label: Its label.
        width: "column" or "page"; None: a column if the table fits into it, else a page.
    """
    stacked = _stacked(results)
    if width != PAGE and _fits(results, COLUMN):
        return "\n".join(_table(results, label, COLUMN))
    if width == COLUMN and stacked is not None:
        return "\n".join(_table(stacked, label, COLUMN))
    return "\n".join(_table(results, label, width or PAGE))


def _fits(results: ResultsTable, width: str) -> bool:
    """Return whether a table is no wider than its place, in type of at least 6 pt."""
    _, per_letter, size = _TYPE[width]
    shown = [row for row, _ in rows_and_apart(results)]
    letters = max([len(results.heads[0]), *(len(row.method) for row in shown)]) + 5
    for i, quantity in enumerate(results.quantities):
        values = [row.values[i] for row in shown]
        widths = [len(value.text) + len(value.interval) for value in values]
        letters += max([len(quantity.head), *widths]) if widths else len(quantity.head)
    gaps = _GAP * (1 + len(results.quantities))
    return per_letter * letters + gaps <= _ROOM[width] * size / _SMALLEST


def _stacked(results: ResultsTable) -> ResultsTable | None:
    """Return the table with its phases below each other; None if it has only one."""
    phases = list(dict.fromkeys(q.phase for q in results.quantities if q.phase))
    if len(phases) < 2:
        return None
    first = [q for q in results.quantities if q.phase in ("", phases[0])]
    rows: list[ResultRow] = []
    for phase in phases:
        kept = [i for i, q in enumerate(results.quantities) if q.phase in ("", phase)]
        rows += [
            replace(
                row,
                values=[row.values[i] for i in kept],
                points={name: point for name, point in row.points.items() if name == phase},
                block=phase,
            )
            for row in results.rows
            if not row.points or phase in row.points
        ]
    return replace(results, quantities=[replace(q, phase="") for q in first], rows=rows)


@dataclass(frozen=True)
class _Form:
    """The form of the columns of a quantity, and the values that decide on it."""

    quantity: Quantity
    values: Sequence[ResultValue]

    @property
    def columns(self) -> str:
        """The column of siunitx for the value, and one for the interval."""
        plain = [number for value in self.values if (number := _number(value))]
        before = max((len(n.lstrip("-").partition(".")[0]) for n in plain), default=1)
        after = max((len(n.partition(".")[2]) for n in plain), default=0)
        sign = when(any(n.startswith("-") for n in plain), "-")
        letters = [value.letter for value in self.values if value.letter]
        room = f",table-space-text-post={_raised(max(letters))}" if letters else ""
        form = f"S[table-format={sign}{before}.{after}{'' if self.has_interval else room}]"
        return form + when(self.has_interval, r"@{\;}l")

    @property
    def has_interval(self) -> bool:
        """Whether some value has an interval."""
        return any(value.interval for value in self.values)

    @property
    def span(self) -> int:
        """The number of its columns."""
        return 2 if self.has_interval else 1


def _table(results: ResultsTable, label: str, width: str) -> Iterator[str]:
    """Yield the lines of a table."""
    environment = "table*" if width == PAGE else "table"
    lines = list(rows_and_apart(results))
    forms = [
        _Form(quantity, [row.values[i] for row, _ in lines])
        for i, quantity in enumerate(results.quantities)
    ]
    yield rf"\begin{{{environment}}}\centering\{_TYPE[width][0]}\setlength{{\tabcolsep}}{{4pt}}"
    yield _BOLD
    yield rf"\caption{{{latex_caption(f'{results.title}: {results.caption}')}}}"
    yield rf"\label{{{label}}}\smallskip"
    yield rf"\prunescopefit{{\begin{{tabular}}{{ll{''.join(form.columns for form in forms)}}}"
    yield r"\toprule"
    yield from _heads(results, forms)
    yield r"\midrule"
    yield from _body(forms, lines)
    yield r"\bottomrule"
    yield r"\end{tabular}}"
    if results.notes:
        yield rf"\par\smallskip\raggedright {latex(' '.join(results.notes))}"
    yield rf"\end{{{environment}}}"
    yield ""


def _heads(results: ResultsTable, forms: Sequence[_Form]) -> Iterator[str]:
    """Yield the heads: quantities, and below them the phases if there are several."""
    names = [latex(head) for head in results.heads]
    if len({form.quantity.phase for form in forms if form.quantity.phase}) < 2:
        heads = [_span(form.quantity.head, form.span) for form in forms]
        yield " & ".join([*names, *heads]) + r" \\"
        return
    groups: list[tuple[str, list[_Form]]] = []
    for form in forms:
        if groups and groups[-1][0] == form.quantity.head:
            groups[-1][1].append(form)
        else:
            groups.append((form.quantity.head, [form]))
    above = [_span(head, sum(form.span for form in group)) for head, group in groups]
    yield " & ".join(["", "", *above]) + r" \\"
    at = 3
    for _, group in groups:
        end = at + sum(form.span for form in group) - 1
        yield rf"\cmidrule(lr){{{at}-{end}}}"
        at = end + 1
    below = [_span(form.quantity.phase, form.span) for form in forms]
    yield " & ".join([*names, *below]) + r" \\"


def _span(text: str, span: int) -> str:
    return rf"\multicolumn{{{span}}}{{c}}{{{latex(text)}}}"


def _body(forms: Sequence[_Form], lines: Sequence[tuple[ResultRow, bool]]) -> Iterator[str]:
    """Yield the rows: a heading above each setting, and those without evidence at the end."""
    span = 2 + sum(form.span for form in forms)
    many = len({(row.block, row.setting) for row, _ in lines}) > 1
    before: tuple[object, ...] = ()
    for row, apart in lines:
        here = (row.block, row.setting, apart)
        if here != before:
            words = [row.block, row.setting.where] if many else [row.block]
            words += ["timing not valid, no evidence"] if apart else []
            title = ", ".join(filter(None, words))
            if before:
                yield r"\addlinespace"
            if title:
                yield rf"\multicolumn{{{span}}}{{l}}{{\itshape {latex(title)}}} \\"
        before = here
        cells = [latex(row.method), latex(row.sparsity)]
        for form, value in zip(forms, row.values, strict=True):
            cells += _cells(form, value, apart=apart)
        yield table_row(cells)


def _cells(form: _Form, value: ResultValue, *, apart: bool) -> list[str]:
    """Return the value with its mark, and its interval if the quantity has any."""
    if value.invalid and not apart:
        return ["{not valid}", ""][: form.span]
    number = _number(value)
    shown = number or f"{{{_power(value.text)}}}"
    if value.best:
        shown = rf"\bfseries {number}" if number else rf"{{\bfseries {_power(value.text)}}}"
    letter = _raised(value.letter) if value.letter else ""
    if form.has_interval:
        return [shown, f"{latex(value.interval)}{letter}"]
    return [f"{shown}{letter}"]


def _raised(letter: str) -> str:
    return rf"\textsuperscript{{{letter}}}"


def _number(value: ResultValue) -> str:
    """Return a value as siunitx reads it; empty for one that is unknown or has a power of ten."""
    text = value.text.replace(numbers.MINUS, "-").replace(",", "")
    return text if text.lstrip("-").replace(".", "", 1).isdecimal() else ""


def _power(text: str) -> str:
    """Return `4.3e9` as LaTeX sets it, any other text as it is."""
    digits, exponent, power = text.partition("e")
    return rf"$ {digits}\times 10^{{{power}}} $" if exponent else latex(text)
