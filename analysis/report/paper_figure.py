"""One of the paper's kinds of figure as a value: picture, numbers, caption; or why there is none.

Also what these figures share: which points they show, bars with intervals and validity, panels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from prunescope.analysis.report.figure_style import EDGE, plotting
from prunescope.analysis.report.hatches import MARKS, marked, marks_of_point
from prunescope.analysis.report.titles import short
from prunescope.analysis.schema.pareto import Pareto, SweepCell, SweepPoint
from prunescope.taxonomy.keep import ALIGNMENTS, alignment_size, is_just

Row = dict[str, str | int | float | bool | None]
PAGE, COLUMN = 7.0, 3.35  # inches: both columns of a page, and one
MODEL, LAYER = "model", "layer"  # what ran
ALIGN = "align="
_USUAL_ALIGNMENT = ("paper", "16")  # what families round to without the knob
_LONGEST_TITLE = 64  # characters of the title of a panel
_LONGEST_NAME = 32  # characters of a family: more leave no room for its panel
_MOST_PANELS = 8  # four rows of two: a page


@dataclass(frozen=True, kw_only=True)
class PaperFigure:
    """A figure. `caption`: what it shows, of what, n and which interval; `rows`: the numbers that
    it shows by their names, for a CSV. `plot` is called within `plotting()`."""

    name: str
    title: str
    caption: str
    rows: Sequence[Row]
    plot: Callable[[], Figure]

    @property
    def columns(self) -> list[str]:
        """The names of the numbers."""
        return list(self.rows[0]) if self.rows else []

    def plotted(self) -> Figure:
        """The figure in our style."""
        with plotting():
            return self.plot()


@dataclass(frozen=True)
class MissingFigure:
    """A figure that the sweep has no data for. `key`: what to add to the sweep, or to run."""

    name: str
    reason: str
    key: str

    def __str__(self) -> str:
        return f"not plotted: {self.name}: {self.reason}; {self.key}"


@dataclass(frozen=True)
class Panel:
    """A phase and a cell, with the points that are shown there. `shared`: what the settings of all
    panels have in common apart from batch and length, which the caption says."""

    phase: str
    cell: SweepCell
    points: list[SweepPoint]
    shared: frozenset[str] = frozenset()

    @property
    def title(self) -> str:
        """`prefill, batch 1, 64 tokens`."""
        size, how = _words(self.cell.where)
        own = [word for word in how if word not in self.shared]
        return short(", ".join([self.phase, *size, *own]), _LONGEST_TITLE)

    def row_of(self, point: SweepPoint) -> Row:
        """How the numbers of a point begin: where it is, its family and sparsity."""
        where: Row = {"phase": self.phase, "setting": self.cell.where}
        return {**where, "family": family_label(point), "sparsity": point.sparsity}


def ends(ci95: Sequence[float] | None, prefix: str = "") -> Row:
    """The ends of an interval among the numbers of a point."""
    low, high = ci95 or (None, None)
    return {f"{prefix}low": low, f"{prefix}high": high}


def _words(where: str) -> tuple[list[str], list[str]]:
    """A setting as words: batch and length, and what is not as usual."""
    words = where.split(", ")
    return words[:2], words[2:]


def _shared(settings: Iterable[str]) -> list[str]:
    """The settings other than batch and length that all panels have in common, in the order of the
    first."""
    every = [_words(where)[1] for where in settings]
    return [word for word in (every[0] if every else []) if all(word in one for one in every)]


def panels(
    found: Pareto,
    choose: Callable[[list[SweepPoint]], list[SweepPoint]] = list,
    *,
    only: str = MODEL,
) -> list[Panel]:
    """The cells of whole models, or of one layer alone, that have points of those chosen."""
    every = (
        Panel(name, cell, choose(phase.points_in(cell)))
        for name, phase in found.phases.items()
        for cell in phase.cells
        if cell.only == only
    )
    shown = [panel for panel in every if panel.points]
    shared = frozenset(_shared(panel.cell.where for panel in shown))
    return [replace(panel, shared=shared) for panel in shown]


def alignment(point: SweepPoint) -> str | None:
    """The alignment of a point of a sweep that varies it."""
    return next((one.removeprefix(ALIGN) for one in point.set if one.startswith(ALIGN)), None)


def usually_aligned(points: Iterable[SweepPoint]) -> list[SweepPoint]:
    """The points without those of another alignment than the usual one; where a family has none of
    that, of its largest. One without the knob stands for its family alone."""
    points = list(points)
    kept: dict[str, str] = {}
    for point in points:
        found = alignment(point)
        if found is not None and _rank(found) > _rank(kept.get(point.family)):
            kept[point.family] = found
    plain = {(family_label(p), p.sparsity) for p in points if alignment(p) is None}
    return [
        p
        for p in points
        if alignment(p) is None
        or (alignment(p) == kept[p.family] and (family_label(p), p.sparsity) not in plain)
    ]


def _rank(align: str | None) -> tuple[int, bool]:
    """The usual one first, then the largest, and of two a multiple before just that."""
    if align in _USUAL_ALIGNMENT:
        return 1 << 30, True
    return (
        (0, False)
        if align is None
        else (size_of(align), align in ALIGNMENTS and not is_just(align))
    )


def size_of(align: str) -> int:
    """The number that divides dimensions of an alignment; 0 for a name of none, which a folder may
    hold."""
    return alignment_size(align) if align in ALIGNMENTS else 0


def families_of(points: Iterable[SweepPoint]) -> list[str]:
    """Labels without the alignment, in the order of the sweep."""
    return list(dict.fromkeys(map(family_label, points)))


def family_label(point: SweepPoint) -> str:
    """The label of a point without its alignment."""
    words = [*([point.select] if point.select else [])]
    words += [one for one in point.set if not one.startswith(ALIGN)]
    return f"{point.family} ({', '.join(words)})" if words else point.family


def points_of(shown: Iterable[Panel]) -> list[SweepPoint]:
    """The points of all panels."""
    return [point for panel in shown for point in panel.points]


def on_a_page(shown: Sequence[Panel]) -> list[Panel]:
    """The panels that fit on a page, the same number for each phase."""
    phases = list(dict.fromkeys(panel.phase for panel in shown))
    each = max(1, _MOST_PANELS // len(phases))
    return [p for phase in phases for p in [q for q in shown if q.phase == phase][:each]]


def not_shown(shown: Sequence[Panel]) -> str:
    """How many panels a page has no room for, for a caption."""
    left = len(shown) - len(on_a_page(shown))
    return f" {left} more settings are in the CSV." if left else ""


def patch(colour: str, label: str, hatch: str = "") -> Patch:
    """The entry of a legend for bars."""
    return Patch(facecolor=colour, **EDGE, hatch=hatch, label=label)


def stacked(
    axes: Axes,
    at: float,
    parts: Mapping[str, float],
    looks: Mapping[str, tuple[str, str]],
    width: float,
) -> None:
    """A bar of parts, one on the other; `looks`: colour and hatch of each."""
    top = 0.0
    for name, height in parts.items():
        colour, hatch = looks[name]
        axes.bar(at, height, width, bottom=top, color=colour, hatch=hatch, **EDGE)
        top += height


def mark_words(points: Iterable[SweepPoint]) -> str:
    """The meaning of the marks behind the names of points, for a caption."""
    found = "".join(map(marks_of_point, points))
    return "".join(f" {mark} {words}." for mark, words in MARKS.items() if mark in found)


def with_marks(family: str, points: Iterable[SweepPoint]) -> str:
    """A family with the marks of its points, for a legend."""
    own = [point for point in points if family_label(point) == family]
    return marked(short(family, _LONGEST_NAME), *own)


def named(point: SweepPoint) -> str:
    """Family and nominal sparsity, with the marks of the point."""
    share = "" if point.sparsity is None else f" {point.sparsity:g}"
    return marked(f"{short(family_label(point), _LONGEST_NAME)}{share}", point)


def slanted(axes: Axes, names: Sequence[str]) -> None:
    """Names below bars."""
    axes.set_xticks(range(len(names)), names, rotation=40, ha="right", rotation_mode="anchor")
    axes.tick_params(axis="x", labelsize=6, length=0)
    axes.set_xlim(-0.6, len(names) - 0.4)


def page(rows: int, columns: int, size: tuple[float, float]) -> tuple[Figure, list[list[Axes]]]:
    """A figure of so many panels, each of so many inches, without spines at top and right."""
    figure = Figure(figsize=(size[0] * columns, size[1] * rows), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(length=2.5)
    return figure, grid.tolist()


def two_columns(
    count: int, height: float, widths: tuple[float, float] = (COLUMN, 1.3 * COLUMN)
) -> tuple[Figure, list[Axes]]:
    """A figure of so many panels in two columns, or of a single one; `widths` of each."""
    columns = min(2, count)
    figure, grid = page(-(-count // columns), columns, (widths[columns == 1], height))
    flat = [axes for row in grid for axes in row]
    for axes in flat[count:]:
        axes.set_visible(False)
    return figure, flat[:count]


def grid_of(figure_panels: Sequence[Panel], height: float) -> tuple[Figure, list[Axes]]:
    """A figure of panels, each with its title."""
    figure, every = two_columns(len(figure_panels), height)
    for axes, panel in zip(every, figure_panels, strict=True):
        axes.set_title(panel.title, loc="left", fontsize=7)
    return figure, every


def of_sweep(found: Pareto, points: Iterable[SweepPoint]) -> str:
    """Model, device, what all settings have in common, and what each result was measured with, for
    a caption."""
    subject, config, points = found.subject, found.subject.config, list(points)
    facts = [subject.model, subject.device, subject.dtype, *_shared(p.where for p in points)]
    count = sum(max(1, len(point.draws)) for point in points)
    measured = f"n = {count} results"
    if repeats := config.get("repeats"):
        measured += f" of {repeats} unprofiled samples"
        placements = config.get("placements", config.get("seatings"))
        measured += f" in {placements} placements" if placements else ""
    if steps := config.get("steps"):
        measured += f" and at most {steps} profiled steps"
    return f"{', '.join(str(fact) for fact in facts if fact)}; {measured}."
