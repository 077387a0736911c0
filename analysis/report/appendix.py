r"""The appendix of a paper: how a phase was measured, as the page has it, and the checklist.

In: a Report or a Table of prose. Out: LaTeX texts for \input, with every string escaped.
"""

from __future__ import annotations

from collections.abc import Iterator

from prunescope.analysis.report import measured, sentences, titles
from prunescope.analysis.report.escape import clean, latex, latex_caption
from prunescope.analysis.report.view import Column, Table, text_table
from prunescope.analysis.schema.report import Phase, Report
from prunescope.analysis.schema.workload import PhaseWorkload
from prunescope.analysis.summary.paper_words import method_name
from prunescope.analysis.summary.setting import clock_words, setting_words
from prunescope.taxonomy.words import plural, when

_LONGEST = 12  # letters between which a line may end, in a word of more than two times as many
_WIDTHS = {2: (0.2, 0.74), 3: (0.28, 0.12, 0.52)}  # of columns of prose, as shares of the line


def setting_table(name: str, phase: Phase, report: Report) -> Table:
    """Return what was measured and how, a row for each fact that is known.

    Args:
        name: The heading of the phase.
        phase: The phase.
        report: Its report.
    """
    rows = [pair for pair in _facts(name, phase, report) if pair[1]]
    title = "What was measured, and how"
    return text_table("measured", title, [Column("fact"), Column("value")], rows)


def _facts(name: str, phase: Phase, report: Report) -> Iterator[tuple[str, str]]:
    """Yield label and value of each fact; an unknown one is empty."""
    subject, workload = report.subject, phase.workload or None
    code, called = subject.get("method") or "", method_name(subject)
    yield "model", titles.named(subject.get("model"))
    yield "method", called + when(called != code, f" ({code})")
    yield "selection", str(subject.get("selection") or "")
    device = titles.named(report.device.get("name"))
    yield "setting", ", ".join(setting_words(phase, name, device))
    if workload is not None:
        yield from _workload_facts(workload)
    yield "statistic", sentences.statistic(phase)
    versions = subject.get("versions") or {}
    yield "software", ", ".join(f"{key} {version}" for key, version in versions.items())
    argv = subject.get("argv") or []
    yield "command", " ".join(["prunescope", *argv]) if argv else ""


def _workload_facts(workload: PhaseWorkload) -> Iterator[tuple[str, str]]:
    facts = (
        f"{workload.attention} attention" if workload.attention else "",
        f"{workload.cache} cache" if workload.cache else "",
        f"logits: {workload.logits}" if workload.logits else "",
    )
    yield "execution", ", ".join([f"{workload.mode} mode", *filter(None, facts)])
    seed = "" if workload.seed is None else f", seed {workload.seed}"
    yield "token ids", f"{workload.inputs}{seed}" if workload.inputs else ""
    yield (
        "order of samples",
        {
            "alternating": "alternating: dense and pruned in turns",
            "blocks": "in blocks, which alternate",
            "alone": "one model after the other",
        }.get(workload.order, workload.order),
    )
    yield "warm-up", f"{workload.warmup} sample{plural(workload.warmup)} discarded"
    placed = f"{workload.placements} of the weights in memory" if workload.placements else ""
    yield "placements", placed
    if (count := workload.disturbed) is not None:
        yield "disturbed", f"{count} sample{plural(count)} kept though something disturbed them"
    cache = "flushed before each sample and step" if workload.flushed else "as a step left it"
    yield "last-level cache", cache
    yield "clocks", clock_words(workload)


def phase_appendix(table: Table, caption: str, label: str, phase: Phase) -> str:
    """Return the appendix of a phase: the table of its setting, and the lines of the page.

    Args:
        table: The table, by `setting_table`.
        caption: Its caption.
        label: Its label.
        phase: The phase.
    """
    lines = [*sentences.opening(phase), *measured.lines(phase)]
    items = "\n".join(rf"\item {_folded(line)}" for line in lines)
    return (
        f"{prose_table(table, caption, label)}\n"
        rf"{{\footnotesize\sloppy\begin{{itemize}}\raggedright"
        f"\n{items}\n"
        r"\end{itemize}}"
        "\n"
    )


def prose_table(table: Table, caption: str, label: str) -> str:
    """Return a table of sentences as LaTeX, across both columns of a page, its lines folded."""
    widths = _WIDTHS[len(table.columns)]
    columns = "".join(rf">{{\raggedright\arraybackslash}}p{{{w}\linewidth}}" for w in widths)
    rows = [[column.title for column in table.columns]]
    rows += [[cell.text for cell in row] for row in table.rows]
    head, *body = [rf"{' & '.join(map(_folded, row))} \\" for row in rows]
    notes = [rf"\par\smallskip\raggedright {latex(note)}" for note in table.notes]
    lines = [r"\begin{table*}[p]\centering\footnotesize\setlength{\tabcolsep}{4pt}"]
    lines += [rf"\caption{{{latex_caption(caption)}}}\label{{{label}}}\smallskip"]
    lines += [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", head, r"\midrule", *body]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", *notes, r"\end{table*}", ""])


def _folded(text: str) -> str:
    """Return a sentence as LaTeX, whose lines may end within a long name."""
    return latex(" ").join(map(_folded_word, clean(text).split(" ")))


def _folded_word(word: str) -> str:
    if len(word) <= 2 * _LONGEST:
        return latex(word)
    pieces = (word[i : i + _LONGEST] for i in range(0, len(word), _LONGEST))
    return r"\allowbreak{}".join(map(latex, pieces))


def checklist_latex(table: Table, prefix: str) -> str:
    """Return a checklist as LaTeX.

    Args:
        table: The checklist.
        prefix: What stands in front of its label.
    """
    return prose_table(table, f"{table.title}.", f"tab:{prefix}{table.id}")
