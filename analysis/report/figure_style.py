"""The look of all figures, and the pieces that several figures share: axes, marks and legends.

In: names, values and reasons why times are no evidence. Out: matplotlib objects, or the bytes of a
figure without a date. Figures are as wide as `printing` says, and no letter in them is smaller than
SMALL. Colours are those of looks.py; fonts are embedded as Type 42, as publishers ask.
"""

from __future__ import annotations

import io
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import matplotlib
import numpy as np
from fontTools import subset
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backend_bases import RendererBase
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from prunescope.analysis.report import hatches
from prunescope.analysis.report.looks import Look
from prunescope.analysis.report.printing import printing
from prunescope.analysis.schema.pareto import SweepPoint
from prunescope.analysis.summary import evidence
from prunescope.taxonomy.lazy_pattern import lazy_pattern
from prunescope.taxonomy.runs.run_quality import RANDOM_IDS
from prunescope.taxonomy.uninterrupted import uninterrupted

SMALL, USUAL = 6.5, 7.0  # pt: of ticks, legends and numbers, and of labels and titles
MOST_HEIGHT = 5.6  # inches of panels: a page with legend and caption
_PANEL = 2.6  # inches: the least width of a panel beside others
_LETTER = 0.055  # inches of a usual letter
_LINE = 0.14  # inches: a row of a legend
_DPI = 300
_FONTS = {"sans": ["DejaVu Sans"], "serif": ["STIXGeneral", "DejaVu Serif"]}
STYLE: dict[Any, Any] = {
    "pdf.fonttype": 42, "ps.fonttype": 42, "svg.fonttype": "none", "svg.hashsalt": "prunescope",
    "font.family": "sans-serif", "font.size": USUAL, "axes.titlesize": USUAL,
    "legend.fontsize": SMALL, "xtick.labelsize": SMALL, "ytick.labelsize": SMALL,
    "axes.linewidth": 0.6, "xtick.major.width": 0.6, "hatch.linewidth": 0.5,
    "text.parse_math": False, "axes.unicode_minus": True,
}  # fmt: skip
# Tables of a font that place and join letters: a PDF names and places each glyph itself. Reducing
# them to the letters of a figure took a fifth of the time of its PDF, and decoding them a tenth.
_LAYOUT_TABLES = ("GDEF", "GPOS", "GSUB", "kern")
# A creation date would make two reports of one run differ.
_METADATA: dict[str, dict[str, str | None]] = {
    "png": {"Software": None}, "pdf": {"CreationDate": None}, "svg": {"Date": None},
}  # fmt: skip
# Where each format keeps the text that stands for a figure.
_ALT = {"png": "Description", "pdf": "Subject", "svg": "Description"}
THIN = 0.6
# An axis of speedups or times ends at this multiple of the highest mark. The interval of a
# disturbed time may leave the panel there, where an arrow says that it goes on.
MOST_WHISKER = 1.4
INTERVAL, CLIPPED = "interval", "clipped"  # ids of artists
_NOT_PLAIN, _LONGEST_ID = lazy_pattern(r"[^A-Za-z0-9_.-]+"), 80
EDGE: dict[str, Any] = {"edgecolor": "black", "linewidth": 0.4}  # of bars and their legend entries
PARITY: dict[str, Any] = {"color": "black", "linewidth": 0.6, "linestyle": (0, (3, 2))}  # at 1×
BOUND_LINE: dict[str, Any] = {"color": "black", "linewidth": 1.2}  # across the bar that it bounds
DOTTED: dict[str, Any] = {"color": "black", "linewidth": 0.8, "linestyle": ":"}


Ends = Sequence[float] | None  # of an interval; None where there is none


class PrintedFigure(Figure):
    """A figure that a notebook shows even if pyplot was never imported.

    Before it is drawn for the first time, intervals that leave their axes get arrows, and artists
    of one id are numbered, so that each id is found once.
    """

    _is_finished = False

    def draw(self, renderer: RendererBase) -> None:
        """Finish the figure, and draw it."""
        if not self._is_finished:
            self._is_finished = True
            for axes in self.axes:
                _mark_clipped(axes)
            _number_ids(self)
        super().draw(renderer)

    def _repr_png_(self) -> bytes:
        return saved_as(self, ("png",))["png"]


@contextmanager
def plotting() -> Iterator[None]:
    """Set the style of figures, and defer signals until the figure is plotted and saved."""
    style = {**STYLE, "font.sans-serif": _FONTS[printing().font]}
    with uninterrupted(), matplotlib.rc_context(style), _fonts_without_layout():
        yield


@contextmanager
def _fonts_without_layout() -> Iterator[None]:
    """Embed fonts without the tables that place and join letters.

    matplotlib has no option for it: meanwhile its fonts are loaded without these tables. fontTools
    decodes all that a font has before it leaves any table out.
    """
    load = subset.load_font

    def load_without_layout(*args: Any, **options: Any) -> Any:
        font = load(*args, **options)
        for tag in _LAYOUT_TABLES:
            if tag in font:
                del font[tag]
        return font

    subset.load_font = load_without_layout
    try:
        yield
    finally:
        subset.load_font = load


def saved_as(figure: Figure, endings: Sequence[str], alt: str = "") -> dict[str, bytes]:
    """Return the bytes of a figure by format, without a date, so that equal reports are equal.

    The figure is laid out once, at the resolution of the PNG. All formats then show the same,
    whichever of them were asked for, and the others take a third less time.

    Args:
        figure: The figure.
        endings: The formats, of png, pdf and svg.
        alt: The text that stands for the figure, which each format keeps.
    """
    layout, dpi = figure.get_layout_engine(), figure.dpi
    figure.set_dpi(_DPI)
    if layout is not None:
        layout.execute(figure)
        figure.set_layout_engine(None)  # any engine would have each format drawn twice
    data_by_ending = {}
    for ending in endings:
        buffer = io.BytesIO()
        metadata = _METADATA[ending] | ({_ALT[ending]: alt} if alt else {})
        figure.savefig(buffer, format=ending, dpi=_DPI, metadata=metadata)
        data_by_ending[ending] = buffer.getvalue()
    figure.set_dpi(dpi)
    figure.set_layout_engine(layout)
    return data_by_ending


def picture_files(
    name: Callable[[str], str],
    plot: Callable[[], Figure | None],
    endings: Sequence[str],
    alt: str = "",
) -> dict[str, bytes]:
    """Plot a figure once and return its files, from file name to bytes.

    Args:
        name: Makes the name of a file out of its ending.
        plot: Plots the figure; None where there is nothing to plot, and then there are no files.
        endings: The formats, of png, pdf and svg.
        alt: The text that stands for the figure.
    """
    with plotting():
        figure = plot()
        pictures = {} if figure is None else saved_as(figure, endings, alt)
    return {name(ending): data for ending, data in pictures.items()}


def _mark_clipped(axes: Axes) -> None:
    """Put an arrow where an interval leaves its axes."""
    (left, right), (low, high) = sorted(axes.get_xlim()), sorted(axes.get_ylim())
    for line in [line for line in axes.lines if line.get_gid() == INTERVAL]:
        (x0, y0), (x1, y1) = np.asarray(line.get_xydata()).tolist()
        xs, ys = (x0, x1), (y0, y1)
        beyond = [
            (xs[0], high, "^", max(ys) > high),
            (xs[0], low, "v", min(ys) < low),
            (right, ys[0], ">", max(xs) > right),
            (left, ys[0], "<", min(xs) < left),
        ]
        for x, y, marker, is_beyond in beyond:
            if is_beyond and left <= x <= right and low <= y <= high:
                arrow = Line2D([x], [y], marker=marker, markersize=3, color=line.get_color())
                arrow.set(clip_on=False, gid=CLIPPED, zorder=5)
                axes.add_line(arrow)


def _number_ids(figure: Figure) -> None:
    """Make the ids of artists distinct and plain: `row-shape`, `row-shape_2`.

    Some hold the name of a method, which may be anything, and an SVG has them as they are.
    """
    counts: Counter[str] = Counter()
    for artist in figure.findobj(lambda artist: artist.get_gid() is not None):
        name = _NOT_PLAIN.sub("-", str(artist.get_gid()))[:_LONGEST_ID]
        counts[name] += 1
        artist.set_gid(name if counts[name] == 1 else f"{name}_{counts[name]}")


def blank_figure(height: float, *, layout: Literal["constrained"] | None = "constrained") -> Figure:
    """Return an empty figure of this height in inches, which pyplot does not know of."""
    figure = PrintedFigure(figsize=(printing().inches, height), layout=layout)
    FigureCanvasAgg(figure)
    return figure


def hide_frame(axes: Axes, *sides: str, **ticks: Any) -> None:
    """Hide the frame of axes at the top, the right and at `sides`; `ticks` is their look."""
    axes.spines[["top", "right", *sides]].set_visible(False)
    if ticks:
        axes.tick_params(**ticks)


def row_axes(num_rows: int) -> tuple[Figure, Axes]:
    """Return a figure, and its axes with room for `num_rows` horizontal bars."""
    figure = blank_figure(0.75 + 0.19 * num_rows)
    axes = figure.add_subplot()
    hide_frame(axes, "left", axis="y", length=0)
    axes.tick_params(axis="x", length=2.5)
    return figure, axes


def page_axes(height: float, title: str, subject: str) -> tuple[Figure, Axes]:
    """Return a figure and its axes, under a title and the subject of it."""
    figure, (axes,) = page_strips(height, title, subject, 1)
    return figure, axes


def page_strips(height: float, title: str, subject: str, count: int) -> tuple[Figure, list[Axes]]:
    """Return a figure with `count` axes below each other.

    Args:
        height: The height of the figure in inches.
        title: What is plotted.
        subject: Of which model, method and phase; stands on a second line unless empty.
        count: The number of axes.
    """
    figure = blank_figure(height)
    add_title(figure, f"{title}\n{subject}" if subject else title)
    strips = figure.subplots(count, 1, squeeze=False)[:, 0].tolist()
    for axes in strips:
        hide_frame(axes, length=2.5, width=THIN)
    return figure, strips


def panel_columns() -> int:
    """Return how many panels stand beside each other."""
    return max(1, int(printing().inches / _PANEL))


def most_panels(height: float) -> int:
    """Return how many panels of this height fit on a page."""
    return panel_columns() * max(1, int(MOST_HEIGHT / height))


def panel_axes(
    count: int, height: float, *, columns: int | None = None
) -> tuple[Figure, list[Axes]]:
    """Return a figure of panels that are open at the top and right.

    Args:
        count: The number of panels.
        height: The height of each in inches.
        columns: How many stand beside each other; None: as many as have room.
    """
    columns = columns or min(panel_columns(), count)
    rows = -(-count // columns)
    figure = blank_figure(height * rows)
    flat = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in flat:
        hide_frame(axes, length=2.5)
    for axes in flat[count:]:
        axes.set_visible(False)
    return figure, flat[:count]


def label_rows(axes: Axes, names: list[str]) -> None:
    """Write the names of the rows, the first one on top."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.45, -0.55)
    axes.locator_params(axis="x", nbins=5)


def add_title(figure: Figure, title: str) -> None:
    """Write a title above the axes, unless a caption stands below the figure."""
    if title and printing().titled:
        lines = map(wrapped, title.splitlines())
        figure.suptitle("\n".join(lines), x=0.01, ha="left", fontsize=USUAL)


def wrapped(line: str, *, less: int = 0) -> str:
    """Return a line broken into several that are no wider than the figure, but `less` letters."""
    return textwrap.fill(line, int(printing().inches / _LETTER) - less)


def draw_level(axes: Axes, at: float, half: float, y: float, **look: Any) -> None:
    """Draw a level across a vertical bar at `at`, `half` wide on either side of its middle."""
    axes.plot([at - half, at + half], [y, y], **{**BOUND_LINE, **look})


def draw_interval(axes: Axes, at: float, ci95: Ends, **look: Any) -> None:
    """Draw an interval as a vertical line at `at`; draw nothing where there is none."""
    if ci95 is not None:
        _draw_span(axes, [at, at], list(ci95), look)


def draw_interval_across(axes: Axes, y: float, ci95: Ends, **look: Any) -> None:
    """Draw an interval as a horizontal line at `y`; draw nothing where there is none."""
    if ci95 is not None:
        _draw_span(axes, list(ci95), [y, y], look)


def _draw_span(axes: Axes, xs: list[float], ys: list[float], look: Mapping[str, Any]) -> None:
    axes.plot(xs, ys, **{"color": "black", "linewidth": 0.7, "gid": INTERVAL, **look})


def end_axis(values: Iterable[float], ends: Iterable[float]) -> float:
    """Return where an axis from 0 ends: at its intervals, but at most MOST_WHISKER of its marks.

    Args:
        values: The marks.
        ends: The ends of their intervals.
    """
    highest = max(values)
    return min(max(highest, *ends, highest), MOST_WHISKER * highest)


def mark_break(axes: Axes) -> None:
    """Mark that the horizontal axis does not begin at 0, by two strokes across its beginning."""
    look: dict[str, Any] = {"transform": axes.transAxes, "color": "black", "linewidth": 0.8}
    for i, shift in enumerate((0.02, 0.035)):
        ends = [shift - 0.006, shift + 0.006], [-0.018, 0.018]
        axes.plot(*ends, clip_on=False, gid="broken-axis" if i == 0 else None, **look)


def dot(
    axes: Axes,
    at: tuple[float, float],
    intervals: tuple[Ends, Ends],
    look: Look,
    *,
    full: bool = True,
    reasons: Sequence[str] = (),
) -> Artist:
    """Draw a point with its intervals, and return the point.

    Args:
        axes: The axes.
        at: The place of the point, (x, y).
        intervals: The 95 % intervals of x and of y; None where there is none.
        look: Its colour and marker.
        full: Whether the marker is filled.
        reasons: Why the point is no evidence; it is hatched by the first reason.
    """
    (x, y), (across, up), colour = at, intervals, look.colour
    draw_interval_across(axes, y, across, color=colour)
    draw_interval(axes, x, up, color=colour)
    if reasons:
        hatch = 2 * hatches.HATCHES[reasons[0]]
        hatched: dict[str, Any] = {"facecolors": "white", "edgecolors": colour, "linewidths": 0.8}
        hatched |= {"marker": look.marker, "hatch": hatch, "zorder": 3}
        return axes.scatter([x], [y], s=36, **hatched)
    line: dict[str, Any] = {"color": colour, "linestyle": "none", "markersize": 5}
    line["markerfacecolor"] = colour if full else "white"
    return axes.plot(x, y, marker=look.marker, markeredgewidth=0.8, **line)[0]


def legend_below(figure: Figure, entries: Sequence[Artist], *, columns: int | None = None) -> None:
    """Put one legend below all panels, for which the figure grows.

    It has as many columns as are no wider than the figure, and at most `columns`. Words that are
    wider than the figure are broken into lines.
    """
    if not entries:
        return
    for entry in entries:
        entry.set_label(wrapped(str(entry.get_label()), less=6))
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    count = min(columns or len(entries), len(entries))
    while True:
        legend = figure.legend(
            handles=entries,
            loc="outside lower center",
            ncols=count,
            frameon=False,
            handlelength=1.4,
            columnspacing=1.2,
            borderpad=0.1,
            handletextpad=0.5,
        )
        wide = legend.get_window_extent(renderer).width
        if count == 1 or wide <= figure.bbox.width:
            rows = max(-(-len(entries) // count), *(_lines(entry) for entry in entries))
            figure.set_size_inches(printing().inches, figure.get_figheight() + _LINE * rows)
            return
        legend.remove()
        count -= 1


def _lines(entry: Artist) -> int:
    return str(entry.get_label()).count("\n") + 1


def bar_entry(label: str, look: Look) -> Patch:
    """Return the entry of a legend for bars."""
    return Patch(facecolor=look.colour, hatch=look.hatch, label=label, **EDGE)


def line_entry(label: str, **look: Any) -> Line2D:
    """Return the entry of a legend for a line, or for points where `look` has a marker."""
    return Line2D([], [], label=label, **look)


def point_entry(label: str, look: Look) -> Line2D:
    """Return the entry of a legend for points of this look."""
    dots: dict[str, Any] = {"linestyle": "none", "markersize": 5}
    return line_entry(label, color=look.colour, marker=look.marker, **dots)


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
