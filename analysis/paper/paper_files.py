"""The paper's kinds of figure from one sweep: in, a Pareto and GEMM speedups; out, files by name.

Each figure is a picture in the formats asked for, a CSV of its numbers and a LaTeX snippet with its
caption. paper.tex has all snippets; paper.md has all figures, and says what was not plotted and
why.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from prunescope.analysis.paper.paper_added import overhead, recovery
from prunescope.analysis.paper.paper_categories import layer, shares
from prunescope.analysis.paper.paper_figure import MissingFigure, PaperFigure
from prunescope.analysis.paper.paper_gemms import gemm_steps
from prunescope.analysis.paper.paper_speedup import alignments, speedups
from prunescope.analysis.report.escape import csv_text
from prunescope.analysis.report.escape import markdown as text
from prunescope.analysis.report.figure_style import picture_files
from prunescope.analysis.report.latex import figure_snippet, head
from prunescope.analysis.report.titles import figure_name
from prunescope.analysis.schema.pareto import Pareto
from prunescope.analysis.schema.replay import SpeedupCurve

_KIND = "paper"


@dataclass(frozen=True)
class PaperSet:
    """The figures of a sweep, and those that it has no data for."""

    figures: list[PaperFigure]
    missing: list[MissingFigure]


def paper_set(pareto: Pareto, curves: Sequence[SpeedupCurve] = ()) -> PaperSet:
    """Return the figures in the order of the paper.

    Args:
        pareto: The comparison of the sweep.
        curves: Speedups of GEMMs that were replayed alone.
    """
    every = [shares(pareto), *speedups(pareto), layer(pareto), alignments(pareto)]
    every += [gemm_steps(curves), recovery(pareto), overhead(pareto)]
    return PaperSet(
        [figure for figure in every if isinstance(figure, PaperFigure)],
        [figure for figure in every if isinstance(figure, MissingFigure)],
    )


def paper_files(figures: PaperSet, tool: str, endings: Sequence[str]) -> dict[str, bytes]:
    """Return the files of all figures, from file name to bytes.

    Args:
        figures: The figures, by `paper_set`.
        tool: Name and version of this tool, for the first line of LaTeX files.
        endings: The formats of the pictures, of png, pdf and svg.
    """
    files: dict[str, bytes] = {}
    snippets = []
    for figure in figures.figures:
        name = partial(figure_name, _KIND, figure.name)
        files |= picture_files(name, figure.plot, endings)
        rows = (row.values() for row in figure.rows)
        files[name("csv")] = csv_text(figure.columns, rows).encode()
        stem = name("tex").removesuffix(".tex")
        snippet = "\n".join(figure_snippet(stem, figure.caption, f"fig:{stem}"))
        files[f"figure-{stem}.tex"] = f"{head(tool)}\n{snippet}".encode()
        snippets.append(snippet)
    files["paper.tex"] = "\n".join([head(tool), *snippets]).encode()
    files["paper.md"] = ("\n\n".join(_page(figures)) + "\n").encode()
    return files


def _page(figures: PaperSet) -> Iterator[str]:
    """Yield the paragraphs of paper.md."""
    yield "# The paper's kinds of figure"
    for figure in figures.figures:
        png, table = (figure_name(_KIND, figure.name, ending) for ending in ("png", "csv"))
        yield f"## {text(figure.title)}"
        yield f"![{text(figure.title)}]({png})"
        yield f"{text(figure.caption)} Numbers: [{table}]({table})."
    if figures.missing:
        yield "## Not plotted"
        yield "\n".join(
            f"- {text(figure.name)}: {text(figure.reason)}; {text(figure.key)}"
            for figure in figures.missing
        )
