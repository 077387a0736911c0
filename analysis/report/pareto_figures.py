"""Figures of a sweep: in, a Pareto; out, PNG, PDF or SVG bytes by file name.

Speed against loss has a column for each phase and a row for each batch and length. Losses are
perplexity ratios within a usable range, and the margin says how many points lie beyond it. Realised
against bound, and the ledger of each family, have a panel for each batch and length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

import matplotlib.text
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.path import Path
from matplotlib.text import Annotation
from matplotlib.textpath import TextPath
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Bbox

from prunescope.analysis.report.escape import clean
from prunescope.analysis.report.figure_style import (
    EDGE,
    MOST_WHISKER,
    PARITY,
    WIDTH,
    Ends,
    blank_figure,
    dot,
    draw_level,
    family_looks,
    hide_frame,
    legend_below,
    line_entry,
    picture_files,
    plotting,
    point_entry,
    random_ids_entry,
    reason_patches,
    say_random_ids,
    shade,
)
from prunescope.analysis.report.hatches import MARKS, marked, marks_of_point
from prunescope.analysis.report.ledger_view import is_visible
from prunescope.analysis.report.titles import figure_name
from prunescope.analysis.schema.pareto import MOST_RATIO, Loss, Pareto, ParetoPhase, SweepPoint
from prunescope.analysis.summary import evidence
from prunescope.analysis.summary.labels import LEDGER
from prunescope.taxonomy.words import factor, when

Looks = dict[str, tuple[str, str]]  # colour and marker of each family
Label = tuple[float, float, str]  # where it points, and its text
_COLUMNS = 2  # of panels
_ROWS = (
    ("coverage", "#D55E00", "/////"), ("roofline_shift", "#CC79A7", ""),
    ("shape", "#F0E442", "....."), ("kernel_efficiency", "#E69F00", ""),
    ("added_work", "#56B4E9", "+++++"), ("launch_idle", "#999999", "\\\\\\\\\\"),
    ("not_explained", "#FFFFFF", "++++"),
)  # fmt: skip
_PROMISED = "#DDDDDD"
# Where a label may stand, in points from its mark, the best place first.
_PLACES = ((4, 4), (4, -9), (-4, 5), (-4, -10), (9, 0), (-9, 0), (0, 11), (0, -16), (14, 9),
           (-14, -14), (16, -14), (-16, 12), (0, 20), (0, -26), (0, 28), (0, -36))  # fmt: skip
_Line = tuple[tuple[float, float], tuple[float, float]]


def pareto_figures(pareto: Pareto, *endings: str) -> dict[str, bytes]:
    """Return the files of a sweep's figures, from file name to bytes, each plotted once.

    Args:
        pareto: The comparison of the sweep. Speed against loss shows all of its phases, bound and
            ledger show one each.
        endings: The formats, of png, pdf and svg.
    """
    plots = {("speed-quality", "all"): partial(frontier_figure, pareto)}
    for name, phase in pareto.phases.items():
        plots["bound", name] = partial(_cells_figure, phase, name, _plot_bounds)
        plots["ledger", name] = partial(_cells_figure, phase, name, _plot_ledgers)
    files: dict[str, bytes] = {}
    for (kind, name), plot in plots.items():
        files |= picture_files(partial(figure_name, kind, name), plot, endings)
    return files


def _cells_figure(
    phase: ParetoPhase, name: str, plot_panel: Callable[[Axes, list[SweepPoint], Looks], None]
) -> Figure:
    """Plot a panel for each batch and length of a phase, with one legend for all."""
    looks = family_looks(point.label for point in phase.points)
    columns = min(_COLUMNS, len(phase.cells))
    rows = -(-len(phase.cells) // columns)
    figure = blank_figure(WIDTH * columns, 2.5 * rows + 0.6)
    grid = figure.subplots(rows, columns, squeeze=False)
    by_label: dict[str, Any] = {}
    for axes, cell in zip(grid.flat, phase.cells, strict=False):
        plot_panel(axes, phase.points_in(cell), looks)
        axes.set_title(f"{clean(name)}, {clean(cell.where)}")
        hide_frame(axes)
        for entry, label in zip(*axes.get_legend_handles_labels(), strict=True):
            by_label.setdefault(label, entry)
    for axes in grid.flat[len(phase.cells) :]:
        axes.set_visible(False)
    legend_below(figure, list(by_label.values()), columns=2 * columns)
    return figure


def _plot_bounds(axes: Axes, points: list[SweepPoint], looks: Looks) -> None:
    """Plot realised speedups over roofline bounds; a point on the diagonal reaches its bound."""
    low, top = 1.0, 1.0
    bounded = [(p, bound) for p in points if (bound := p.bounds.get("roofline")) is not None]
    for family, look in looks.items():
        of_family = [(point, bound) for point, bound in bounded if point.label == family]
        is_named = False  # by its first point that is evidence
        for point, bound in of_family:
            reasons = evidence.point_reasons(point)
            intervals = None, point.realised_ci95
            mark = dot(axes, (bound, point.realised), intervals, look, reasons=reasons)
            if not reasons and not is_named:
                mark.set_label(_label_with_marks(family, points))
                is_named = True
            low, top = min(low, bound, point.realised), max(top, bound, point.realised)
        if of_family and not is_named:
            (colour, marker), label = look, _label_with_marks(family, points)
            axes.plot([], [], color=colour, marker=marker, linestyle="none", label=label)
    _add_reasons(axes, [point for point, _ in bounded])
    ends = [0.95 * low, 1.05 * top]
    axes.plot(ends, ends, label="all of the bound realised", **PARITY)
    axes.set(xlabel="roofline bound (speedup)", ylabel="realised (speedup)")


def _plot_ledgers(axes: Axes, points: list[SweepPoint], looks: Looks) -> None:
    """Plot the ledger of each family at its largest sparsity, as shares of the dense step.

    A bar begins with the promise; losses are stacked above it, and gains below zero.
    """
    bars = [point for point in (_largest(points, family) for family in looks) if point is not None]
    shares = ((row, ns / p.ledger["dense"]) for p in bars for row, ns in p.ledger.items())
    seen = {row for row, share in shares if is_visible([0.0, abs(share)], 1.0)}
    for i, point in enumerate(bars):
        is_first = i == 0  # the bar whose labels the legend has
        dense = point.ledger["dense"]
        up, down = point.ledger["promised"] / dense, 0.0
        axes.bar(i, up, 0.7, color=_PROMISED, label=when(is_first, "promised"), **EDGE)
        for row, colour, hatch in (look for look in _ROWS if look[0] in seen):
            share = point.ledger.get(row, 0.0) / dense
            base, label = up if share >= 0 else down, when(is_first, LEDGER[row][0])
            axes.bar(i, share, 0.7, bottom=base, color=colour, hatch=hatch, label=label, **EDGE)
            up, down = up + max(0.0, share), down + min(0.0, share)
        label = when(is_first, "pruned, measured")
        draw_level(axes, i, 0.42, point.ledger["pruned"] / dense, linewidth=1.6, label=label)
    for i, point in enumerate(bars):
        shade(axes, i, point)
    _add_reasons(axes, bars)
    axes.axhline(1.0, label="dense, measured", **PARITY)
    axes.axhline(0.0, color="black", linewidth=0.6)
    names = ((p, "" if p.sparsity is None else f"{p.sparsity:g}") for p in bars)
    axes.set_xticks(range(len(bars)), [marked(f"{clean(p.label)} {s}", p) for p, s in names])
    axes.tick_params(axis="x", rotation=40, labelsize=6)
    for tick in axes.get_xticklabels():
        tick.set_horizontalalignment("right")
    axes.set_ylabel("share of the dense step")


def _add_reasons(axes: Axes, points: list[SweepPoint]) -> None:
    """Put the meaning of marks and hatches into the axes, from which the legend is collected."""
    for note in _mark_notes(points):
        axes.add_line(note)
    for patch in reason_patches(points):
        axes.add_patch(patch)


def _label_with_marks(label: str, points: Iterable[SweepPoint]) -> str:
    """Return a label for the legend, with the marks of its points."""
    return marked(clean(label), *(point for point in points if point.label == label))


def _mark_notes(points: Iterable[SweepPoint]) -> list[Line2D]:
    """Return legend entries for the marks behind names."""
    used = "".join(map(marks_of_point, points))
    return [_letter_entry(mark, words) for mark, words in MARKS.items() if mark in used]


def _letter_entry(mark: str, words: str) -> Line2D:
    """Return a legend entry whose mark is a letter, as it stands next to the points."""
    letter = TextPath((0, 0), mark, size=10)
    box = letter.get_extents()
    middle = Path(letter.vertices - [(box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2], letter.codes)
    look: dict[str, Any] = {"color": "black", "linestyle": "none", "markeredgewidth": 0}
    return line_entry(words, marker=middle, markersize=5, **look)


def _largest(points: list[SweepPoint], family: str) -> SweepPoint | None:
    """Return the point of a family at its largest sparsity, if any has a ledger."""
    of_family = [p for p in points if p.label == family and p.ledger.get("dense")]
    return max(of_family, key=lambda p: p.sparsity or 0.0, default=None)


@dataclass
class Obstacles:
    """The marks and ends of lines that labels should not hide, in units of the axes."""

    marks: list[tuple[float, float]] = field(default_factory=list)
    lines: list[_Line] = field(default_factory=list)

    def add(self, at: tuple[float, float], across: Ends, up: Ends) -> None:
        """Add a point with its intervals across and up."""
        x, y = at
        (left, right), (low, high) = across or (x, x), up or (y, y)
        self.marks.append(at)
        self.lines += [((left, y), (right, y)), ((x, low), (x, high))]


def frontier_figure(pareto: Pareto, *, most: float = MOST_RATIO) -> Figure:
    """Plot speed against loss, with the frontier of each phase, batch and length.

    Args:
        pareto: The comparison of the sweep.
        most: The largest perplexity ratio that is shown.
    """
    phases = pareto.phases
    looks = family_looks(p.label for phase in phases.values() for p in phase.points)
    rows = sorted({cell.setting for phase in phases.values() for cell in phase.cells})
    on_random_ids = pareto.subject.on_random_ids
    with plotting():
        wide, high = WIDTH * max(1, len(phases)), 2.4 * len(rows)
        figure = blank_figure(wide, high)
        grid = figure.subplots(len(rows), max(1, len(phases)), squeeze=False)
        panels: list[tuple[Axes, list[Label], Obstacles]] = []
        for column, (name, phase) in enumerate(phases.items()):
            for row, cell in enumerate(rows):
                axes = grid[row][column]
                axes.set_title(f"{clean(name)}, {clean(cell.where)}", loc="left")
                points = [point for point in phase.points if point.setting == cell]
                panels.append((axes, *_plot_frontier(axes, points, looks, most)))
                if on_random_ids:
                    say_random_ids(axes)
        every = (point for phase in phases.values() for point in phase.points)
        shown = [p for p in every if (ratio := shown_loss(p)[0]) is not None and ratio <= most]
        lines = _add_frontier_legend(figure, looks, shown, on_random_ids=on_random_ids)
        figure.set_size_inches(wide, high + 0.14 * lines + 0.25)
        figure.draw_without_rendering()
        for axes, labels, obstacles in panels:
            place_labels(axes, labels, obstacles)
    return figure


def shown_loss(point: SweepPoint) -> tuple[float | None, list[float] | None]:
    """Return the perplexity of a point over that of the dense model, and its interval.

    The dense model is the one with the same training, if there is one. None means not measured.
    """
    loss = point.loss or Loss()
    if loss.perplexity_rel_recovered is not None:
        return 1 + loss.perplexity_rel_recovered, loss.recovered_ci95
    if loss.perplexity_rel is None:
        return None, None
    return 1 + loss.perplexity_rel, loss.ci95


def _plot_frontier(
    axes: Axes, points: Sequence[SweepPoint], looks: Looks, most: float
) -> tuple[list[Label], Obstacles]:
    """Plot the points and the frontier of one panel.

    Return the labels with their places, and the marks and lines that these should not hide.
    """
    best: list[tuple[float, float]] = []
    labels: list[Label] = []
    obstacles = Obstacles()
    beyond: list[float] = []
    for point in points:
        x, spread = shown_loss(point)
        if x is None:
            continue
        if x > most:
            beyond.append(x)
            continue
        at = (x, point.realised)
        reasons = evidence.point_reasons(point)
        intervals = None if spread is None else [1 + end for end in spread], point.realised_ci95
        full = point.on_frontier
        dot(axes, at, intervals, looks[point.label], full=full, reasons=reasons)
        obstacles.add(at, *intervals)
        words = []
        if full:
            best.append(at)
        if (full or reasons) and point.sparsity is not None:
            words.append(f"{point.sparsity:g}")
        words += ["?"] if reasons else []
        words.append(marks_of_point(point))
        labels.append((*at, " ".join(filter(None, words))))
    hide_frame(axes)
    left, right = axes.get_xlim()
    left, right = min(left, 1.0), min(right, most) if points else most
    axes.set_xlim(left, right)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    # The axis of speedups ends near the points; an interval that reaches its edge goes on.
    if speedups := [y for _, y in obstacles.marks]:
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, 0.0), min(high, MOST_WHISKER * max(1.0, *speedups)))
    obstacles.lines += draw_frontier(axes, best, right)
    obstacles.lines.append(((left, 1.0), (right, 1.0)))
    axes.axhline(1.0, **PARITY)
    is_recovered = any(p.loss and p.loss.perplexity_rel_recovered is not None for p in points)
    axes.set_xlabel(f"perplexity, pruned ÷ dense{' trained the same way' if is_recovered else ''}")
    axes.set_ylabel("speedup, dense ÷ pruned")
    if beyond:
        if not obstacles.marks:
            _say_all_beyond(axes, beyond, most)
        corner: dict[str, Any] = {"ha": "right", "va": "bottom", "fontsize": 6}
        note = f"{len(beyond)} beyond {most:g}× →"
        axes.text(1.0, 1.01, note, transform=axes.transAxes, **corner)
    return [label for label in labels if label[2]], obstacles


def draw_frontier(
    axes: Axes, best: Sequence[tuple[float, float]], right: float, style: Any = "-"
) -> list[_Line]:
    """Draw a frontier in steps, from the dense model on, and return its pieces.

    Args:
        axes: The axes.
        best: The points on the frontier: loss as a ratio, and speedup.
        right: Where the frontier ends.
        style: The style of the line.
    """
    steps = sorted(best)
    if not steps or steps[0][0] > 1:
        steps.insert(0, (1.0, 1.0))  # the dense model itself
    steps.append((max(right, steps[-1][0]), steps[-1][1]))
    xs, ys = zip(*steps, strict=True)
    axes.step(xs, ys, where="post", color="black", linewidth=0.8, linestyle=style, zorder=0)
    corners = [(x, y) for (_, y), (x, _) in pairwise(steps)]
    path = [place for pair in zip(steps, corners, strict=False) for place in pair]
    return list(pairwise(path))


def _say_all_beyond(axes: Axes, ratios: Sequence[float], most: float) -> None:
    """Write why a panel is empty: all of its points lie beyond the axis."""
    axes.set_xlim(1.0, most)
    ends = [factor(ratio - 1) or f"{ratio:.3g}×" for ratio in (min(ratios), max(ratios))]
    span = " to ".join(dict.fromkeys(ends))
    which = "its one point lies" if len(ratios) == 1 else f"all {len(ratios)} points lie"
    text = f"{which} beyond this axis,\nat {span} the dense perplexity"
    centre: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 7}
    axes.text(0.5, 0.75, text, transform=axes.transAxes, **centre)


def _add_frontier_legend(
    figure: Figure, looks: Looks, points: Sequence[SweepPoint], *, on_random_ids: bool
) -> int:
    """Add one legend for the points of all panels, and return its number of rows."""
    names = {point.label for point in points}
    shown = [(label, look) for label, look in looks.items() if label in names]
    entries: list[Any] = [point_entry(_label_with_marks(n, points), look) for n, look in shown]
    words = "frontier: full marks, with their s"
    entries.append(line_entry(words, color="black", linewidth=0.8))
    entries += [*_mark_notes(points), *reason_patches(points, "? ")]
    if on_random_ids:
        entries.append(random_ids_entry())
    return legend_below(figure, entries, columns=4)


def place_labels(axes: Axes, labels: Sequence[Label], obstacles: Obstacles) -> None:
    """Write each label where it hides no other label, no mark and no line.

    Where there is no such place, it may lie on a line. A label far from its mark gets a line to it.

    Args:
        axes: The axes, of a figure that was laid out.
        labels: Place and text of each label.
        obstacles: The marks and lines.
    """
    figure = axes.figure
    inside = axes.get_window_extent(figure.canvas.get_renderer())  # type: ignore[attr-defined]
    radius = 3.5 * figure.dpi / 72
    centres = [axes.transData.transform(at) for at in obstacles.marks]
    taken = [Bbox([middle - radius, middle + radius]) for middle in centres]
    lines = [Bbox(axes.transData.transform(ends)) for ends in obstacles.lines]
    for x, y, text in sorted(labels):
        tries = [(place, lines) for place in _PLACES] + [(place, []) for place in _PLACES]
        for place, also in tries:
            label, box = _write_label(axes, (x, y), text, place)
            is_free = not any(box.overlaps(obstacle) for obstacle in (*taken, *also))
            if is_free and inside.contains(*box.min) and inside.contains(*box.max):
                break
            label.remove()
        else:
            _, box = _write_label(axes, (x, y), text, _PLACES[0])
        taken.append(box)


def _write_label(
    axes: Axes, at: tuple[float, float], text: str, place: tuple[int, int]
) -> tuple[Annotation, Bbox]:
    """Write a label at a distance from its mark; return it with the box of its text in pixels."""
    side = "left" if place[0] > 0 else "right" if place[0] < 0 else "center"
    line = {"arrowstyle": "-", "linewidth": 0.4, "shrinkA": 0, "shrinkB": 2}
    arrow = line if max(map(abs, place)) > 10 else None
    look: dict[str, Any] = {"fontsize": 6, "ha": side, "arrowprops": arrow}
    label = axes.annotate(text, at, textcoords="offset points", xytext=place, **look)
    renderer = axes.figure.canvas.get_renderer()  # type: ignore[attr-defined]
    label.update_positions(renderer)
    return label, matplotlib.text.Text.get_window_extent(label, renderer)


class ParetoPlots:
    """The figures of a sweep, as matplotlib Figures."""

    def __init__(self, pareto: Pareto) -> None:
        self._pareto = pareto

    def frontier(self) -> Figure:
        """Plot speed against loss, with the frontier."""
        return frontier_figure(self._pareto)
