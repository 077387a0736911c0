"""The paper's kinds of figure from one sweep: in, a Pareto and GEMM speedups; out, files by name.

Each figure is a picture in the formats asked for, a CSV of its numbers and a LaTeX snippet with its
caption; paper.tex has all of them, and paper.md too, with what was not plotted and why.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from prunescope.analysis.report.escape import csv_text
from prunescope.analysis.report.escape import markdown as text
from prunescope.analysis.report.figure_style import plotting, saved_as
from prunescope.analysis.report.latex import figure_snippet, head
from prunescope.analysis.report.paper_added import overhead, recovery
from prunescope.analysis.report.paper_categories import layer, shares
from prunescope.analysis.report.paper_figure import MissingFigure, PaperFigure
from prunescope.analysis.report.paper_gemms import gemm_steps
from prunescope.analysis.report.paper_speedup import alignments, speedups
from prunescope.analysis.report.titles import figure_name
from prunescope.analysis.schema.pareto import Pareto
from prunescope.analysis.schema.replay import SpeedupCurve

_KIND = "paper"


@dataclass(frozen=True)
class PaperSet:
    """The figures of a sweep, and those that it has no data for."""

    figures: list[PaperFigure]
    missing: list[MissingFigure]


def paper_set(found: Pareto, curves: Sequence[SpeedupCurve] = ()) -> PaperSet:
    """The figures in the order of the paper."""
    every = list(_every(found, curves))
    return PaperSet(
        [one for one in every if isinstance(one, PaperFigure)],
        [one for one in every if isinstance(one, MissingFigure)],
    )


def _every(found: Pareto, curves: Sequence[SpeedupCurve]) -> Iterator[PaperFigure | MissingFigure]:
    yield shares(found)
    yield from speedups(found)
    yield layer(found)
    yield alignments(found)
    yield gemm_steps(curves)
    yield recovery(found)
    yield overhead(found)


def paper_files(found: PaperSet, tool: str, endings: Sequence[str]) -> dict[str, bytes]:
    """File name to bytes of all figures; `endings`: png, pdf or svg."""
    files: dict[str, bytes] = {}
    snippets = []
    for one in found.figures:
        with plotting():
            figure = one.plot()
            for ending, data in saved_as(figure, endings).items():
                files[figure_name(_KIND, one.name, ending)] = data
        numbers = csv_text(one.columns, (row.values() for row in one.rows))
        files[figure_name(_KIND, one.name, "csv")] = numbers.encode()
        stem = figure_name(_KIND, one.name, "tex").removesuffix(".tex")
        snippet = "\n".join(figure_snippet(stem, one.caption, f"fig:{stem}"))
        files[f"figure-{stem}.tex"] = f"{head(tool)}\n{snippet}".encode()
        snippets.append(snippet)
    files["paper.tex"] = "\n".join([head(tool), *snippets]).encode()
    files["paper.md"] = ("\n\n".join(_page(found)) + "\n").encode()
    return files


def _page(found: PaperSet) -> Iterator[str]:
    yield "# The paper's kinds of figure"
    for one in found.figures:
        yield f"## {text(one.title)}"
        yield f"![{text(one.title)}]({figure_name(_KIND, one.name, 'png')})"
        yield f"{text(one.caption)} Numbers: [{figure_name(_KIND, one.name, 'csv')}]" + (
            f"({figure_name(_KIND, one.name, 'csv')})."
        )
    if found.missing:
        yield "## Not plotted"
        yield "\n".join(
            f"- {text(one.name)}: {text(one.reason)}; {text(one.key)}" for one in found.missing
        )
