"""The look of all figures, and the pieces that several figures share: axes, marks and legends.

In: names, values and reasons why times are no evidence. Out: matplotlib objects, or the bytes of a
figure without a date. Colours are those of Okabe and Ito, so that colour-blind readers can tell
them apart; greys have hatches; fonts are embedded as Type 42, as publishers ask.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from prunescope.analysis.report import hatches
from prunescope.analysis.schema.pareto import SweepPoint
from prunescope.analysis.summary import evidence
from prunescope.taxonomy.runs.run_quality import RANDOM_IDS
from prunescope.taxonomy.uninterrupted import uninterrupted

WIDTH = 3.35  # inches: one column of a two-column page
PAGE = 7.0  # inches: both columns
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
    "png": {"Software": None}, "pdf": {"CreationDate": None}, "svg": {"Date": None},
}  # fmt: skip
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999")
MARKERS = "osD^"
CURVES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
CURVE_MARKERS = "osD^vP*"
# The colours of families alternate between dark and light. Black is that of whiskers and bounds,
# and yellow is hard to see as a small marker on white.
_FAMILY_COLOURS = (
    "#0072B2", "#E69F00", "#009E73", "#56B4E9", "#D55E00", "#CC79A7", "#888888", "#332288",
)  # fmt: skip
_FAMILY_MARKERS = f"{CURVE_MARKERS}X<>hpd8"
THIN = 0.6
# An axis of speedups or times ends at this multiple of the highest mark. The interval of a
# disturbed time may leave the panel there, since it would otherwise leave no room for the marks.
MOST_WHISKER = 1.4
EDGE: dict[str, Any] = {"edgecolor": "black", "linewidth": 0.4}  # of bars and their legend entries
PARITY: dict[str, Any] = {"color": "black", "linewidth": 0.6, "linestyle": (0, (3, 2))}  # at 1×
BOUND_LINE: dict[str, Any] = {"color": "black", "linewidth": 1.2}  # across the bar that it bounds
DOTTED: dict[str, Any] = {"color": "black", "linewidth": 0.8, "linestyle": ":"}
_LETTER_WIDTH, _MARK_WIDTH = 0.05, 0.33  # inches in a legend


Ends = Sequence[float] | None  # of an interval; None where there is none


class NotebookFigure(Figure):
    """A figure that a notebook shows even if pyplot was never imported."""

    def _repr_png_(self) -> bytes:
        return saved(self, "png")


@contextmanager
def plotting() -> Iterator[None]:
    """Set the style of figures, and defer signals until the figure is plotted and saved."""
    with uninterrupted(), matplotlib.rc_context(STYLE):
        yield


def saved(figure: Figure, ending: str) -> bytes:
    """Return the bytes of a figure in one format: png, pdf or svg."""
    return saved_as(figure, (ending,))[ending]


def saved_as(figure: Figure, endings: Sequence[str]) -> dict[str, bytes]:
    """Return the bytes of a figure by format, without a date, so that equal reports are equal.

    The figure is laid out once, at the resolution of the PNG. All formats then show the same,
    whichever of them were asked for, and the others take a third less time.
    """
    layout, dpi = figure.get_layout_engine(), figure.dpi
    figure.set_dpi(_DPI)
    if layout is not None:
        layout.execute(figure)
        figure.set_layout_engine("none")
    data_by_ending = {}
    for ending in endings:
        buffer = io.BytesIO()
        figure.savefig(buffer, format=ending, dpi=_DPI, metadata=_METADATA[ending])
        data_by_ending[ending] = buffer.getvalue()
    figure.set_dpi(dpi)
    figure.set_layout_engine(layout)
    return data_by_ending


def picture_files(
    name: Callable[[str], str], plot: Callable[[], Figure | None], endings: Sequence[str]
) -> dict[str, bytes]:
    """Plot a figure once and return its files, from file name to bytes.

    Args:
        name: Makes the name of a file out of its ending.
        plot: Plots the figure; None where there is nothing to plot, and then there are no files.
        endings: The formats, of png, pdf and svg.
    """
    with plotting():
        figure = plot()
        pictures = {} if figure is None else saved_as(figure, endings)
    return {name(ending): data for ending, data in pictures.items()}


def blank_figure(
    width: float, height: float, *, layout: Literal["constrained"] | None = "constrained"
) -> Figure:
    """Return an empty figure of this size in inches, which pyplot does not know of."""
    figure = NotebookFigure(figsize=(width, height), layout=layout)
    FigureCanvasAgg(figure)
    return figure


def hide_frame(axes: Axes, *sides: str, **ticks: Any) -> None:
    """Hide the frame of axes at the top, the right and at `sides`; `ticks` is their look."""
    axes.spines[["top", "right", *sides]].set_visible(False)
    if ticks:
        axes.tick_params(**ticks)


def row_axes(num_rows: int) -> tuple[Figure, Axes]:
    """Return a figure one column wide, and its axes with room for `num_rows` horizontal bars."""
    figure = blank_figure(WIDTH, 0.98 + 0.19 * num_rows)
    axes = figure.add_subplot()
    hide_frame(axes, "left", axis="y", length=0)
    axes.tick_params(axis="x", length=2.5)
    return figure, axes


def page_axes(height: float, title: str, subject: str) -> tuple[Figure, Axes]:
    """Return a figure one column wide and its axes, under a title and the subject of it."""
    figure, (axes,) = page_strips(height, title, subject, 1)
    return figure, axes


def page_strips(height: float, title: str, subject: str, count: int) -> tuple[Figure, list[Axes]]:
    """Return a figure one column wide with `count` axes below each other.

    Args:
        height: The height of the figure in inches.
        title: What is plotted.
        subject: Of which model, method and phase; stands on a second line unless empty.
        count: The number of axes.
    """
    figure = blank_figure(WIDTH, height)
    figure.suptitle(f"{title}\n{subject}" if subject else title, x=0.01, ha="left", fontsize=7)
    strips = figure.subplots(count, 1, squeeze=False)[:, 0].tolist()
    for axes in strips:
        hide_frame(axes, length=2.5, width=THIN)
    return figure, strips


def panel_page(
    rows: int, columns: int, size: tuple[float, float]
) -> tuple[Figure, list[list[Axes]]]:
    """Return a figure with a grid of panels, each of `size` inches, open at the top and right."""
    figure = blank_figure(size[0] * columns, size[1] * rows)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        hide_frame(axes, length=2.5)
    return figure, grid.tolist()


def two_columns(
    count: int, height: float, widths: tuple[float, float] = (WIDTH, 1.3 * WIDTH)
) -> tuple[Figure, list[Axes]]:
    """Return a figure of `count` panels in two columns, or in one if there is a single panel.

    Args:
        count: The number of panels.
        height: The height of a panel in inches.
        widths: The width of a panel in two columns, and of a single one.
    """
    columns = min(2, count)
    figure, grid = panel_page(-(-count // columns), columns, (widths[columns == 1], height))
    flat = [axes for row in grid for axes in row]
    for axes in flat[count:]:
        axes.set_visible(False)
    return figure, flat[:count]


def label_rows(axes: Axes, names: list[str]) -> None:
    """Write the names of the rows, the first one on top."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.45, -0.55)
    axes.locator_params(axis="x", nbins=5)


def draw_level(axes: Axes, at: float, half: float, y: float, **look: Any) -> None:
    """Draw a level across a vertical bar at `at`, `half` wide on either side of its middle."""
    axes.plot([at - half, at + half], [y, y], **{**BOUND_LINE, **look})


def draw_interval(axes: Axes, at: float, ci95: Ends, **look: Any) -> None:
    """Draw an interval as a vertical line at `at`; draw nothing where there is none."""
    if ci95 is not None:
        axes.plot([at, at], ci95, **{"color": "black", "linewidth": 0.7, **look})


def dot(
    axes: Axes,
    at: tuple[float, float],
    intervals: tuple[Ends, Ends],
    look: tuple[str, str],
    *,
    full: bool = True,
    reasons: Sequence[str] = (),
) -> Artist:
    """Draw a point with its intervals, and return the point.

    Args:
        axes: The axes.
        at: The place of the point, (x, y).
        intervals: The 95 % intervals of x and of y; None where there is none.
        look: Colour and marker.
        full: Whether the marker is filled.
        reasons: Why the point is no evidence; it is hatched by the first reason.
    """
    (x, y), (across, up), (colour, marker) = at, intervals, look
    if across is not None:
        axes.plot(across, [y, y], color=colour, linewidth=0.7)
    draw_interval(axes, x, up, color=colour)
    if reasons:
        hatch = 2 * hatches.HATCHES[reasons[0]]
        hatched: dict[str, Any] = {"facecolors": "white", "edgecolors": colour, "linewidths": 0.8}
        return axes.scatter([x], [y], s=36, marker=marker, hatch=hatch, zorder=3, **hatched)
    line: dict[str, Any] = {"color": colour, "linestyle": "none", "markersize": 5}
    line["markerfacecolor"] = colour if full else "white"
    return axes.plot(x, y, marker=marker, markeredgewidth=0.8, **line)[0]


def add_title_and_legend(figure: Figure, title: str, entries: list[Any]) -> None:
    """Write the title above the axes, if there is one, and a legend below them, if any entry is."""
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=7)
    if entries:
        letters = sum(len(entry.get_label()) for entry in entries)
        width = _MARK_WIDTH + _LETTER_WIDTH * letters / len(entries)
        add_legend(figure, entries, max(1, min(len(entries), int(WIDTH / width))))


def add_legend(figure: Figure, entries: list[Any], columns: int) -> None:
    """Put a legend of small letters below the axes."""
    figure.legend(
        handles=entries,
        loc="outside lower center",
        ncols=columns,
        fontsize=6,
        frameon=False,
        handlelength=1.4,
        columnspacing=1.2,
        borderpad=0.1,
        handletextpad=0.5,
    )


def add_wrapped_legend(figure: Figure, entries: list[Any], columns: int) -> None:
    """Put a legend below the axes, in fewer than `columns` columns if its words are long."""
    widest = _MARK_WIDTH + _LETTER_WIDTH * max(len(entry.get_label()) for entry in entries)
    add_legend(figure, entries, max(1, min(columns, int(WIDTH / widest))))


def legend_below(figure: Figure, entries: Sequence[Artist], *, columns: int) -> int:
    """Put one legend below all panels, and return its number of rows.

    It has at most `columns` columns, and as many as are no wider than the figure.
    """
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    while True:
        legend = figure.legend(
            handles=entries, loc="outside lower center", ncols=columns, frameon=False
        )
        wide = legend.get_window_extent(renderer).width
        if columns == 1 or wide <= figure.bbox.width:
            return -(-len(entries) // columns)
        legend.remove()
        columns -= 1


def bar_entry(label: str, colour: str, hatch: str = "") -> Patch:
    """Return the entry of a legend for bars."""
    return Patch(facecolor=colour, hatch=hatch, label=label, **EDGE)


def line_entry(label: str, **look: Any) -> Line2D:
    """Return the entry of a legend for a line, or for points where `look` has a marker."""
    return Line2D([], [], label=label, **look)


def point_entry(label: str, look: tuple[str, str]) -> Line2D:
    """Return the entry of a legend for points of this colour and marker."""
    colour, marker = look
    return line_entry(label, color=colour, marker=marker, linestyle="none", markersize=5)


def family_looks(labels: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Return colour and marker of each family; they are the same in all figures of a sweep.

    Args:
        labels: The labels of the families in the order of the sweep; a label may come repeatedly.
    """
    colours, markers = _FAMILY_COLOURS, _FAMILY_MARKERS
    return {
        label: (colours[i % len(colours)], markers[i % len(markers)])
        for i, label in enumerate(dict.fromkeys(labels))
    }


def hatch_of(reasons: list[str]) -> str:
    """Return the hatch of the most severe reason why times are no evidence; empty without one."""
    return hatches.HATCHES[reasons[0]] if reasons else ""


def ground(reasons: list[str]) -> dict[str, Any]:
    """Return the look of the background of what is no evidence."""
    look = {"facecolor": "white", "edgecolor": "#CCCCCC", "linewidth": 0.0}
    return {**look, "hatch": hatch_of(reasons)}


def no_evidence(reasons: list[str], label: str) -> Patch:
    """Return the entry of a legend for what has such a background."""
    # A rectangle without extent, since some callers put it into the axes.
    return Rectangle((0, 0), 0, 0, label=label, **{**ground(reasons), **EDGE})


def reason_patches(points: Iterable[SweepPoint], mark: str = "") -> list[Patch]:
    """Return legend entries for the reasons why points are no evidence."""
    reasons = hatches.first_reasons(map(evidence.point_reasons, points))
    return [no_evidence([reason], f"{mark}{reason}") for reason in reasons]


def random_ids_entry() -> Patch:
    """Return the entry of a legend for losses that were measured on random token ids."""
    return no_evidence([RANDOM_IDS], f"{RANDOM_IDS}: no loss means anything")


def say_random_ids(axes: Axes) -> None:
    """Mark a panel whose losses mean nothing, because its texts are random token ids."""
    whole = Rectangle((0, 0), 1, 1, transform=axes.transAxes, zorder=-1, **ground([RANDOM_IDS]))
    axes.add_patch(whole)
    axes.set_xlabel(f"{axes.get_xlabel()}\non {RANDOM_IDS}: no loss means anything")


def shade(axes: Axes, at: float, point: SweepPoint) -> None:
    """Hatch the background of a vertical bar that is no evidence."""
    if reasons := evidence.point_reasons(point):
        axes.axvspan(at - 0.5, at + 0.5, zorder=-1, **ground(reasons))
