"""The look of figures, and what several of them are made of: axes, legends, hatched grounds.

In: names, marks and reasons; out: matplotlib objects, or the bytes of a figure without a date.
Okabe-Ito colours, hatches for grey, Type 42 fonts.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from prunescope.analysis.report import hatches
from prunescope.analysis.schema.pareto import SweepPoint
from prunescope.analysis.summary import evidence
from prunescope.taxonomy.uninterrupted import uninterrupted

WIDTH = 3.35  # inches: one column of a two-column page
_DPI = 300
STYLE: dict[Any, Any] = {
    "pdf.fonttype": 42, "ps.fonttype": 42, "svg.fonttype": "none", "svg.hashsalt": "prunescope",
    "font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"], "font.size": 7,
    "axes.linewidth": 0.6, "xtick.major.width": 0.6, "hatch.linewidth": 0.5,
    "text.parse_math": False, "axes.unicode_minus": True,
}  # fmt: skip
BOUND, REALISED = "#56B4E9", "#0072B2"
COLOURS = {"loss": "#D55E00", "gain": "#009E73", "quiet": "#BBBBBB"}
# A creation date would make two reports of one run differ.
_METADATA: dict[str, dict[str, str | None]] = {
    "png": {"Software": None},
    "pdf": {"CreationDate": None},
    "svg": {"Date": None},
}
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999")
MARKERS = "osD^"
CURVES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
CURVE_MARKERS = "osD^vP*"
# Of families, dark and light in turns: without the black of whiskers and bounds, and without
# yellow, which a small marker on white hardly shows.
_FAMILY_COLOURS = (
    "#0072B2", "#E69F00", "#009E73", "#56B4E9", "#D55E00", "#CC79A7", "#888888", "#332288",
)  # fmt: skip
_FAMILY_MARKERS = f"{CURVE_MARKERS}X<>hpd8"
THIN = 0.6
# An axis of speedups or times ends at so many times the highest mark; the interval of a disturbed
# time may leave the panel there, or it would leave no room for marks.
MOST_WHISKER = 1.4
EDGE: dict[str, Any] = {"edgecolor": "black", "linewidth": 0.4}  # of bars and their keys
_LETTER_WIDTH, _MARK_WIDTH = 0.05, 0.33  # inches in a legend


class NotebookFigure(Figure):
    """A figure that a notebook shows though pyplot was never imported."""

    def _repr_png_(self) -> bytes:
        return saved(self, "png")


@contextmanager
def plotting() -> Iterator[None]:
    """Context in which one figure is plotted and saved: sets our style, and lets signals wait for
    its end."""
    with uninterrupted(), matplotlib.rc_context(STYLE):
        yield


def saved(figure: Figure, ending: str) -> bytes:
    """The bytes of a figure in one format: png, pdf or svg."""
    return saved_as(figure, (ending,))[ending]


def saved_as(figure: Figure, endings: Sequence[str]) -> dict[str, bytes]:
    """The bytes of a figure by format, without a date: two reports of one run are equal.

    It is laid out once, at the resolution of the PNG: all formats show the same, whichever of them
    were asked for, and the others take a third less time.
    """
    layout, dpi = figure.get_layout_engine(), figure.dpi
    figure.set_dpi(_DPI)
    if layout is not None:
        layout.execute(figure)
        figure.set_layout_engine("none")
    found = {}
    for ending in endings:
        out = io.BytesIO()
        figure.savefig(out, format=ending, dpi=_DPI, metadata=_METADATA[ending])
        found[ending] = out.getvalue()
    figure.set_dpi(dpi)
    figure.set_layout_engine(layout)
    return found


def row_axes(num_rows: int) -> tuple[Figure, Axes]:
    """A figure and its axes for rows of bars, with room for so many."""
    figure = NotebookFigure(figsize=(WIDTH, 0.98 + 0.19 * num_rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", length=2.5)
    return figure, axes


def page_axes(height: float, what: str, of: str) -> tuple[Figure, Axes]:
    """A figure of so many inches and its axes, under a title of two lines: what, and of what."""
    figure = NotebookFigure(figsize=(WIDTH, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(length=2.5, width=THIN)
    figure.suptitle(f"{what}\n{of}" if of else what, x=0.01, ha="left", fontsize=7)
    return figure, axes


def labels(axes: Axes, names: list[str]) -> None:
    """Names of rows, the first one on top."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.45, -0.55)
    axes.locator_params(axis="x", nbins=5)


def headed(axes: Axes, title: str, marks: list[Any]) -> None:
    """Title above the axes, legend below them."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=7)
    if marks:
        widest = _MARK_WIDTH + _LETTER_WIDTH * sum(len(m.get_label()) for m in marks) / len(marks)
        legend(figure, marks, max(1, min(len(marks), int(WIDTH / widest))))


def legend(figure: Figure, marks: list[Any], columns: int) -> None:
    """A legend below the axes."""
    figure.legend(
        handles=marks,
        loc="outside lower center",
        ncols=columns,
        fontsize=6,
        frameon=False,
        handlelength=1.4,
        columnspacing=1.2,
        borderpad=0.1,
        handletextpad=0.5,
    )


def wrapped_legend(figure: Figure, handles: list[Any], columns: int) -> None:
    """A legend below the axes of at most so many columns, fewer where its words are long."""
    widest = _MARK_WIDTH + _LETTER_WIDTH * max(len(handle.get_label()) for handle in handles)
    legend(figure, handles, max(1, min(columns, int(WIDTH / widest))))


def family_looks(labels: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker of each family, in the order of the sweep: the same in all its figures."""
    return {
        label: (
            _FAMILY_COLOURS[i % len(_FAMILY_COLOURS)],
            _FAMILY_MARKERS[i % len(_FAMILY_MARKERS)],
        )
        for i, label in enumerate(dict.fromkeys(labels))
    }


def hatch_of(reasons: list[str]) -> str:
    """The hatch of the most severe reason why times are no evidence; empty without one."""
    return hatches.HATCHES[reasons[0]] if reasons else ""


def ground(reasons: list[str]) -> dict[str, Any]:
    """The look of the ground behind what is no evidence."""
    return {
        "facecolor": "white",
        "edgecolor": "#CCCCCC",
        "hatch": hatch_of(reasons),
        "linewidth": 0.0,
    }


def no_evidence(reasons: list[str], label: str) -> Patch:
    """The entry of a legend for what has such a background."""
    look = {**ground(reasons), "edgecolor": "black", "linewidth": 0.4}
    return Rectangle((0, 0), 0, 0, label=label, **look)  # without extent, where it is in the axes


def reason_patches(points: Iterable[SweepPoint], mark: str = "") -> list[Patch]:
    """Why points are no evidence, as entries of a legend."""
    reasons = hatches.first_reasons(map(evidence.point_reasons, points))
    return [no_evidence([reason], f"{mark}{reason}") for reason in reasons]


def shade(axes: Axes, at: float, point: SweepPoint) -> None:
    """The ground behind a bar that is no evidence."""
    if reasons := evidence.point_reasons(point):
        axes.axvspan(at - 0.5, at + 0.5, zorder=-1, **ground(reasons))
