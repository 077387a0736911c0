"""The paper's kinds of figure from one sweep: in, a Pareto and GEMM speedups; out, files by name.

Each figure is a picture in the formats asked for, a CSV of its numbers and a LaTeX snippet with its
caption. paper.tex has all snippets; paper.md has all figures, and says what was not plotted and
why.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from prunescope.analysis.paper.paper_added import overhead, recovery
from prunescope.analysis.paper.paper_categories import layer, shares
from prunescope.analysis.paper.paper_figure import MissingFigure
from prunescope.analysis.paper.paper_gemms import gemm_steps
from prunescope.analysis.paper.paper_speedup import alignments, speedups
from prunescope.analysis.report.escape import markdown as text
from prunescope.analysis.report.latex_head import head
from prunescope.analysis.report.picture import Picture, files_of_pictures
from prunescope.analysis.schema.pareto import Pareto
from prunescope.analysis.schema.replay import SpeedupCurve


@dataclass(frozen=True)
class PaperSet:
    """The figures of a sweep, and those that it has no data for."""

    figures: list[Picture]
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
        [figure for figure in every if isinstance(figure, Picture)],
        [figure for figure in every if isinstance(figure, MissingFigure)],
    )


def paper_files(figures: PaperSet, tool: str, endings: Sequence[str]) -> dict[str, bytes]:
    """Return the files of all figures, from file name to bytes.

    Args:
        figures: The figures, by `paper_set`.
        tool: Name and version of this tool, for the first line of LaTeX files.
        endings: The formats of the pictures, of png, pdf and svg.
    """
    files = files_of_pictures(figures.figures, [*endings, "csv", "tex"], tool)
    snippets = (figure.snippet for figure in figures.figures)
    files["paper.tex"] = "\n".join([head(tool), *snippets]).encode()
    files["paper.md"] = ("\n\n".join(_page(figures)) + "\n").encode()
    return files


def _page(figures: PaperSet) -> Iterator[str]:
    """Yield the paragraphs of paper.md."""
    yield "# The paper's kinds of figure"
    for figure in figures.figures:
        png, table = (f"{figure.stem}.{ending}" for ending in ("png", "csv"))
        yield f"## {text(figure.title)}"
        yield f"![{text(figure.alt)}]({png})"
        yield f"{text(figure.caption)} Numbers: [{table}]({table})."
    if figures.missing:
        yield "## Not plotted"
        yield "\n".join(
            f"- {text(figure.name)}: {text(figure.reason)}; {text(figure.key)}"
            for figure in figures.missing
        )
