"""How figures are printed: their width, their typeface, and whether a caption stands below them.

In: the words of `--width` and `--font`, and the formats. Out: a Printing, for which every figure
within `printed_as` is drawn.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal

from msgspec import Struct

from prunescope.analysis.report.latex_head import check_prefix
from prunescope.taxonomy.arguments import number
from prunescope.taxonomy.errors import PrunescopeError

WIDTHS = {"column": 84.0, "page": 178.0}  # mm, of one and of both columns of a paper
LEAST_MM, MOST_MM = 60.0, 400.0  # narrower ones have no room for type of 6 pt
_INCH = 25.4  # mm
Font = Literal["sans", "serif"]


class Printing(Struct, frozen=True, kw_only=True):
    """How figures are printed.

    Attributes:
        width: Their width in mm.
        word: The word for it, "column" or "page"; None: it was given in mm, or not at all.
        font: Their typeface.
        titled: Whether a title stands in them; a caption takes its place.
        label_prefix: What stands in front of labels in LaTeX, with its dash.
    """

    width: float = WIDTHS["column"]
    word: str | None = None
    font: Font = "sans"
    titled: bool = True
    label_prefix: str = ""

    @property
    def spans(self) -> bool:
        """Whether they stand across both columns."""
        return self.word == "page"

    @property
    def inches(self) -> float:
        """The width in inches."""
        return self.width / _INCH


def printing_of(
    formats: Collection[str],
    *,
    width: str | float | None = None,
    font: str = "sans",
    label_prefix: str = "",
) -> Printing:
    """Return how figures of some formats are printed.

    Args:
        formats: The formats that are written; with `tex` each figure has a caption.
        width: "column", "page", or mm.
        font: "sans" or "serif".
        label_prefix: What stands in front of labels in LaTeX.

    Raises:
        PrunescopeError: The width is none, there is no such typeface, or the prefix is no word of
            letters, digits, dots and dashes.
    """
    if font not in ("sans", "serif"):
        raise PrunescopeError(f"--font {font!r} is not known", hint="accepted: sans, serif")
    return Printing(
        width=read_width(width),
        word=width if isinstance(width, str) and width in WIDTHS else None,
        font="serif" if font == "serif" else "sans",
        titled="tex" not in formats,
        label_prefix=check_prefix(label_prefix),
    )


def read_width(width: str | float | None) -> float:
    """Return the mm of a width: that of a column unless one is given.

    Raises:
        PrunescopeError: It is neither a word for one nor a number of mm that figures fit into.
    """
    if width is None:
        return WIDTHS["column"]
    mm = WIDTHS.get(width, number(width)) if isinstance(width, str) else width
    if not isinstance(mm, int | float) or not LEAST_MM <= mm <= MOST_MM:
        raise PrunescopeError(
            f"--width {str(width)[:40]!r} is no width of a figure",
            hint=f"column (84 mm), page (178 mm), or {LEAST_MM:g} to {MOST_MM:g} mm, as in 121",
        )
    return float(mm)


_current: ContextVar[Printing] = ContextVar("printing", default=Printing())  # noqa: B039 - frozen


def printing() -> Printing:
    """Return how figures are printed now."""
    return _current.get()


@contextmanager
def printed_as(now: Printing) -> Iterator[None]:
    """Print figures in this way within a block."""
    token = _current.set(now)
    try:
        yield
    finally:
        _current.reset(token)
