"""A Comparison as a table and figures: in, plain values; out, texts and files.

Times are of one step, and ledger rows are shares of the dense wall. A dash is unknown, never 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from prunescope.analysis.report import escape
from prunescope.analysis.report.html import rendered_page
from prunescope.analysis.report.latex import tabular
from prunescope.analysis.report.latex_head import head
from prunescope.analysis.report.markdown import table_blocks
from prunescope.analysis.report.notebook import fragment
from prunescope.analysis.report.picture import PICTURES, files_of_pictures
from prunescope.analysis.report.printing import (
    WIDTHS,
    Printing,
    printed_as,
    printing,
    printing_of,
)
from prunescope.analysis.report.sheet import Line, Sheet
from prunescope.analysis.report.view import Cell, Column, Columns, Table, number, table_of
from prunescope.analysis.report.write import DEFAULT_FORMATS, check_formats, write_files
from prunescope.analysis.schema.comparison import Comparison, ComparisonRow, to_json
from prunescope.analysis.summary.labels import CHANGES, LADDER, LEDGER, NOT_EXPLAINED
from prunescope.taxonomy import numbers
from prunescope.taxonomy.words import when

COMPARISON_FORMATS = ("md", "html", "json", "tex", "csv", "png", "pdf", "svg")
# Columns of the CSV that only some rows have.
_DECODER_COLUMNS = ("prompt_len", "context", "kv_bytes", "dense_kv_bytes")
_TOKEN_COLUMNS = ("tokens_per_s", "dense_tokens_per_s")
_ITEM_COLUMNS = ("items_per_s", "dense_items_per_s")
# Paper has no room for every column. LaTeX has a table of what was measured, one of its bounds and
# one of what became of the promise.
_TOKENS = "tokens of an item"  # of an encoder, which has no prompt
_TIMES = ("TTFT or TPOT", "TTFT, TPOT or step", "step")
_WHICH = ("run", "model", "method", "nominal s", "phase", "B", "prompt", _TOKENS)
_MEASURED = (*_TIMES, "tokens/s", "items/s", "weights", "KV cache", "peak memory")
_BOUNDS = ("coverage", "roofline", "realised")
_COLUMN = 6  # columns of a table that one column of a paper has room for
_SPARSITIES = ("nominal", "parameters", "flop", "bytes")
_TITLE = "Comparison: dense → pruned, of one step"
_WALLS = "TTFT and TPOT are the wall of one prefill forward and of one decoded token"
_MEDIANS = "medians of unprofiled samples, or profiled means where a run has none (marked p)"
_STEP = {
    "forward": "a step is one forward pass",
    "training": "a step is one of training: forward, backward and optimizer, where they are there",
}
_ABOUT_ROWS = (
    "coverage to launch and idle: rows of the ledger as shares of the dense wall; with the promise "
    "they sum to the pruned wall"
)
_CAVEAT = (
    "? timing not valid (the samples vary too much or were disturbed), no step was timed, or the "
    "two sides ran with other settings: the ratio and its rows are no evidence"
)


def write_comparison(
    comparison: Comparison,
    folder: Path,
    *,
    formats: Sequence[str] = DEFAULT_FORMATS,
    **look: Any,
) -> list[Path]:
    """Write a comparison in some formats into a folder, all or none.

    Args:
        comparison: The comparison.
        folder: The folder to write to.
        formats: Some of COMPARISON_FORMATS.
        **look: How figures are printed, as `printing_of` takes it: width, font, label_prefix.

    Returns:
        The paths of the files.

    Raises:
        PrunescopeError: A format is unknown, or the folder cannot be written.
    """
    check_formats(formats, COMPARISON_FORMATS)
    names = list(dict.fromkeys(formats))
    texts: dict[str, Callable[[Comparison], str]] = {
        "md": render_markdown,
        "csv": render_csv,
        "html": render_html,
        "tex": render_latex,
    }
    with printed_as(printing_of(names, **look)):
        files = _figures(comparison, [name for name in names if name != "csv"])
        files |= {
            f"comparison.{name}": texts[name](comparison).encode()
            for name in names
            if name in texts
        }
    if "json" in names:
        files["comparison.json"] = to_json(comparison)
    return write_files(files, folder)


def _figures(comparison: Comparison, formats: Sequence[str]) -> dict[str, bytes]:
    """Return the figures in those formats that are pictures or captions; empty without ladders."""
    if not set(formats) & {*PICTURES, "tex"}:
        return {}
    from prunescope.analysis.report.comparison_figure import comparison_pictures

    return files_of_pictures(comparison_pictures(comparison), formats, comparison.tool)


def comparison_table(comparison: Comparison) -> Table:
    """Return a table with one row for each run and phase.

    Columns of which no row has anything are left out: models that decode nothing have no prompt, no
    context and no cache.
    """
    rows = comparison.rows
    columns = _columns(rows)
    (timed,) = (column.title for column, _ in columns if column.title in _TIMES)
    about_times = "; ".join([*_step_notes(rows), _MEDIANS])
    has_marks = not all(row.is_evidence for row in rows)
    about_rows = f"{_ABOUT_ROWS}{when(has_marks, f'; {_CAVEAT}')}"
    failed = [f"{failure.run} has no row: {failure.why}" for failure in comparison.failed]
    table = table_of("comparison", _TITLE, rows, columns, [about_times, about_rows, *failed])
    moved = tuple(LEDGER[row][0] for row in _ledger_rows(rows))
    return replace(table, needs={about_times: (timed,), _ABOUT_ROWS: moved})


def _ledger_rows(rows: Sequence[ComparisonRow]) -> list[str]:
    """Return the rows of the ledger that have a column."""
    has_unexplained = any(NOT_EXPLAINED in (row.ledger or {}) for row in rows)
    return [name for name in CHANGES if name != NOT_EXPLAINED or has_unexplained]


def _step_notes(rows: Sequence[ComparisonRow]) -> Iterator[str]:
    """Yield what a step is, for each kind of pass that the rows have."""
    passes = {row.pass_kind for row in rows if row.pass_kind}
    if not passes or not all(row.pass_kind for row in rows):
        yield _WALLS
    yield from (text for kind, text in _STEP.items() if kind in passes)


def _columns(rows: Sequence[ComparisonRow]) -> Columns[ComparisonRow]:
    """Return the columns that some row has something for, each with what it shows of a row."""
    passes = [row for row in rows if row.pass_kind]
    decodes = len(passes) < len(rows) or not rows
    has_items = any(row.items_per_s is not None for row in rows)
    has_tokens = decodes or any(row.tokens_per_s is not None for row in rows)
    encodes = any(row.items_per_s is None and row.prompt_len is not None for row in passes)
    timed = _TIMES[0] if not passes else _TIMES[1] if decodes else _TIMES[2]
    every: list[tuple[bool, Column, Callable[[ComparisonRow], Cell | str]]] = [
        (True, Column("run"), lambda row: row.run),
        (True, Column("phase"), lambda row: row.phase),
        (True, number(LADDER["realised"][0]), partial(_ratio, key="realised")),
        (True, number("95 %", drop=1), _interval),
        (True, Column("model", drop=20), lambda row: row.model or numbers.UNKNOWN),
        (True, Column("method", drop=3), _method),
        (True, number("nominal s"), lambda row: _share(row.sparsity.get("nominal"))),
        (True, number("FLOPs removed", drop=5), lambda row: _share(row.sparsity.get("flop"))),
        (True, number("B"), lambda row: _count(row.batch)),
        (decodes, number("prompt", drop=4), lambda row: _count(_decoder_only(row, row.prompt_len))),
        (encodes, number(_TOKENS, drop=4), lambda row: _count(_item_tokens(row))),
        (decodes, number("context", drop=19), lambda row: _count(_decoder_only(row, row.context))),
        *(
            (True, number(LADDER[key][0], drop=drop), partial(_ratio, key=key))
            for key, drop in _DROP.items()
        ),
        *(
            (True, number(LEDGER[name][0], drop=10 + i), partial(_ledger, name=name))
            for i, name in enumerate(_ledger_rows(rows))
        ),
        (True, number(timed, drop=6), _time),
        (has_tokens, number("tokens/s", drop=7), _both("tokens_per_s", numbers.rate)),
        (has_items, number("items/s", drop=7), _both("items_per_s", numbers.rate)),
        (True, number("weights", drop=16), _both("weight_bytes", numbers.size)),
        (decodes, number("KV cache", drop=17), _both("kv_bytes", numbers.size)),
        (True, number("peak memory", drop=18), _both("peak_memory_bytes", numbers.size)),
    ]
    return [(column, shown) for is_there, column, shown in every if is_there]


_DROP = {"nominal": 15, "flop": 9, "coverage": 8, "roofline": 2, "busy": 14}


def _method(row: ComparisonRow) -> str:
    return row.called or (row.family and f"({row.family})") or numbers.UNKNOWN


def _decoder_only(row: ComparisonRow, size: int | None) -> int | None:
    return None if row.pass_kind else size


def _item_tokens(row: ComparisonRow) -> int | None:
    return row.prompt_len if row.pass_kind and row.items_per_s is None else None


def _ratio(row: ComparisonRow, key: str) -> Cell:
    value = getattr(row.ladder, key) if row.ladder else None
    mark = " ?" if key == "realised" and not row.is_evidence else ""
    return Cell(numbers.ratio(value) + mark, value)


def _interval(row: ComparisonRow) -> Cell:
    ci95 = row.ladder.realised_ci95 if row.ladder else None
    return Cell(numbers.interval(ci95, "{:.2f}".format), ci95[0] if ci95 else None)


def _time(row: ComparisonRow) -> Cell:
    cell = _both("wall_ns", numbers.time)(row)
    return replace(cell, text=cell.text + when(row.timed == "profiled", " p"))


def _both(name: str, form: Callable[[Any], str]) -> Callable[[ComparisonRow], Cell]:
    """Return what shows a quantity of both sides, as `dense → pruned`."""

    def shown(row: ComparisonRow) -> Cell:
        dense, now = getattr(row, f"dense_{name}"), getattr(row, name)
        if now is None:
            return Cell(numbers.UNKNOWN)
        return Cell(form(now) if dense is None else f"{form(dense)} → {form(now)}", now)

    return shown


def _share(value: float | None) -> Cell:
    return Cell(numbers.percent(value), value)


def _count(value: int | None) -> Cell:
    return Cell(numbers.UNKNOWN if value is None else str(value), value)


def _ledger(row: ComparisonRow, name: str) -> Cell:
    ns = (row.ledger or {}).get(name)
    share = numbers.share_of(ns, (row.ledger or {}).get("dense"))
    tone = "" if not share else "loss" if share > 0 else "gain"
    tone = "quiet" if name in row.no_evidence else tone
    return Cell(numbers.percent(share, signed=True), share, tone=tone)


def comparison_warnings(comparison: Comparison) -> list[str]:
    """Return the warnings of a comparison, and the critical findings of its runs."""
    rows = comparison.rows
    critical = [f"{r.run}, {r.phase}: {', '.join(r.critical)}" for r in rows if r.critical]
    return [*comparison.warnings, *critical]


def render_markdown(comparison: Comparison) -> str:
    """Return the table as GitHub-flavoured Markdown."""
    warnings = (f"> ⚠ {escape.markdown(text)}" for text in comparison_warnings(comparison))
    table = table_blocks(comparison_table(comparison))
    return "\n\n".join(["# Comparison", *table, *warnings, ""])


def render_latex(comparison: Comparison) -> str:
    """Return booktabs tables and figures: what was measured, its bounds, and the rows of ledgers.

    What all rows have in common, such as their phase, stands in the captions alone.
    """
    from prunescope.analysis.report.comparison_figure import (
        comparison_pictures,
        comparison_setting,
    )

    table = comparison_table(comparison)
    moved = {LEDGER[name][0] for name in _ledger_rows(comparison.rows)}
    setting, which = comparison_setting(comparison, comparison.rows), _telling(table)
    times, rows, *failed = table.notes
    lines = [head(comparison.tool)]
    for label, titles, note in (
        ("measured", set(_MEASURED), times),
        ("bounds", {"FLOPs removed", "95 %", *(LADDER[key][0] for key in _BOUNDS)}, _CAVEAT),
        ("explained", moved, rows),
    ):
        keep = which + [i for i, column in enumerate(table.columns) if column.title in titles]
        text = escape.latex_caption(f"{_TITLE}: {label}. {note[0].upper()}{note[1:]}. {setting}")
        kind = "table*" if len(keep) > _COLUMN else "table"
        lines += [
            rf"\begin{{{kind}}}\centering\footnotesize\setlength{{\tabcolsep}}{{3pt}}",
            rf"\caption{{{text}}}",
            rf"\label{{tab:{printing().label_prefix}comparison-{label}}}\smallskip",
            *tabular(table, keep),
            rf"\end{{{kind}}}",
        ]
    lines += [rf"% {escape.latex(note)}" for note in failed]
    lines += [picture.snippet for picture in comparison_pictures(comparison)]
    return "\n".join(lines) + "\n"


def _telling(table: Table) -> list[int]:
    """Return the columns that tell the rows of a table apart, the run only where others do not."""
    columns = [i for i, column in enumerate(table.columns) if column.title in _WHICH]
    run, *others = columns
    differing = [i for i in others if len({row[i].text for row in table.rows}) > 1]
    are_distinct = len({tuple(row[i].text for i in differing) for row in table.rows}) == len(
        table.rows
    )
    return differing if differing and are_distinct else [run, *differing]


def render_csv(comparison: Comparison) -> str:
    """Return raw values (ns, bytes, ratios), one line for each run and phase; empty is unknown."""
    flat = [dict(_flat(row)) for row in comparison.rows]
    names = list(dict.fromkeys(key for row in flat for key in row))
    return escape.csv_text(names, (map(row.get, names) for row in flat))


def _flat(row: ComparisonRow) -> Iterator[tuple[str, Any]]:
    """Yield the columns of a row in CSV.

    Models that decode have those of prompts and caches. A model has either those of tokens or those
    of items.
    """
    absent = _TOKEN_COLUMNS if row.items_per_s is not None else _ITEM_COLUMNS
    left_out = {*absent, *(_DECODER_COLUMNS if row.pass_kind else ("pass_kind",))}
    for key, value in msgspec.structs.asdict(row).items():
        if key == "prompt_len" and row.pass_kind and row.items_per_s is None:
            yield "item_tokens", value
        elif key in left_out:
            continue
        elif key == "sparsity":
            yield from ((f"sparsity_{k}", row.sparsity.get(k)) for k in _SPARSITIES)
        elif key == "ladder":
            yield from ((f"speedup_{k}", getattr(value, k) if value else None) for k in LADDER)
            yield from _ends("speedup_realised", value.realised_ci95 if value else None)
        elif key == "ledger":
            yield from ((f"{k}_ns", (value or {}).get(k)) for k in LEDGER)
        elif key == "wall_ci95":
            yield from _ends("wall_ns", value)
        else:
            text = " ".join(value) if isinstance(value, list) else value
            yield key, None if text is msgspec.UNSET else text


def _ends(name: str, ci95: list[float] | None) -> Iterator[tuple[str, float | None]]:
    yield f"{name}_ci95_low", ci95[0] if ci95 else None
    yield f"{name}_ci95_high", ci95[1] if ci95 else None


def render_html(comparison: Comparison) -> str:
    """Return one self-contained page, with the figures inline and a table that can be sorted.

    The figures are as wide as a page of print, whatever the files are.
    """
    with printed_as(Printing(width=WIDTHS["page"])):
        figures = _figures(comparison, ["svg"])
    inline = (svg.decode().partition("<svg")[2] for svg in figures.values())
    return rendered_page(
        "comparison.html.j2",
        title="Comparison",
        warnings=comparison_warnings(comparison),
        table=comparison_table(comparison),
        figures=[f"<svg{text}" for text in inline],
        tool=comparison.tool,
    )


def render_comparison(comparison: Comparison) -> str:
    """Render the table of a comparison for a notebook."""
    return fragment(
        title=_TITLE,
        warnings=comparison_warnings(comparison),
        table=comparison_table(comparison),
    )


def comparison_sheet(comparison: Comparison) -> Sheet:
    """Return the table for a terminal, and the warnings below it.

    Columns that do not fit are left out, the least wanted ones first.
    """
    table = comparison_table(comparison)
    warnings = [Line(f"! {warning}", "yellow") for warning in comparison_warnings(comparison)]
    return Sheet([Line(table.title, "bold"), replace(table, title=""), *warnings])
