"""A figure as a value that was not plotted yet: what its caption says, its numbers and its plot.

In: what a figure shows. Out: its files: the picture in the formats asked for, the numbers as CSV,
and for LaTeX a snippet with caption and label.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prunescope.analysis.report.escape import clean, csv_text, latex, latex_caption
from prunescope.analysis.report.latex_head import head
from prunescope.analysis.report.printing import printing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PICTURES = ("png", "pdf", "svg")
Row = dict[str, str | int | float | bool | None]


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A figure that was not plotted yet.

    Attributes:
        stem: The name of its files, without an ending.
        title: What it shows, in a few words.
        caption: What stands below it: what it shows, of what, n and the statistic.
        alt: What it looks like, for who cannot see it.
        plot: Plots it; None where there is nothing to plot.
        rows: The numbers that it shows, by their names; empty where another table has them.
        of: What stands before its stem in its label, where figures of another kind have that name.
    """

    stem: str
    title: str
    caption: str
    alt: str
    plot: Callable[[], Figure | None]
    rows: Sequence[Row] = ()
    of: str = ""

    @property
    def columns(self) -> list[str]:
        """The names of the numbers."""
        return list(self.rows[0]) if self.rows else []

    @property
    def snippet(self) -> str:
        """The lines of LaTeX that show it with its caption, in as many columns as it spans."""
        kind = "figure*" if printing().spans else "figure"
        label = f"fig:{printing().label_prefix}{self.of}{self.stem}"
        return (
            f"\\prunescopedraw{{{kind}}}{{{self.stem}}}{{{latex(self.alt)}}}{{%\n"
            f"\\caption{{{latex_caption(self.caption)}}}\\label{{{label}}}}}\n"
        )


def files_of_pictures(
    pictures: Iterable[Picture], formats: Sequence[str], tool: str
) -> dict[str, bytes]:
    """Return the files of figures, from file name to bytes; each is plotted once.

    Args:
        pictures: The figures; one that has nothing to plot has no files.
        formats: Of png, pdf and svg for the picture, csv for its numbers, tex for its caption.
        tool: Name and version of this tool, for the first line of LaTeX files.
    """
    from prunescope.analysis.report.figure_style import picture_files

    files: dict[str, bytes] = {}
    endings = [ending for ending in PICTURES if ending in formats]
    for picture in pictures:
        name = f"{picture.stem}.{{}}".format
        drawn = picture_files(name, picture.plot, endings, clean(picture.alt))
        if not drawn and endings:
            continue
        files |= drawn
        if "csv" in formats and picture.rows:
            rows = (row.values() for row in picture.rows)
            files[f"{picture.stem}.csv"] = csv_text(picture.columns, rows).encode()
        if "tex" in formats:
            files[f"figure-{picture.stem}.tex"] = f"{head(tool)}\n{picture.snippet}".encode()
    return files
