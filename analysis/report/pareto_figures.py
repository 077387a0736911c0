"""Figures of a sweep: in, a Pareto; out, PNG, PDF or SVG bytes by file name.

Speed against loss: a column for each phase, a row for each batch and length; losses are perplexity
ratios within a usable range, and the margin says how many points lie beyond it. Realised
against bound, and the ledger of each family: a panel for each batch and length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import matplotlib.text
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.path import Path
from matplotlib.text import Annotation
from matplotlib.textpath import TextPath
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Bbox

from prunescope.analysis.report import hatches
from prunescope.analysis.report.escape import clean
from prunescope.analysis.report.figure_style import (
    EDGE,
    MOST_WHISKER,
    family_looks,
    ground,
    no_evidence,
    plotting,
    reason_patches,
    saved_as,
    shade,
)
from prunescope.analysis.report.hatches import MARKS, marked, marks_of_point
from prunescope.analysis.report.ledger_view import is_visible
from prunescope.analysis.report.titles import figure_name
from prunescope.analysis.schema.pareto import (
    MOST_RATIO,
    Loss,
    Pareto,
    ParetoPhase,
    SweepPoint,
)
from prunescope.analysis.summary import evidence
from prunescope.analysis.summary.labels import LEDGER
from prunescope.taxonomy.runs.run_quality import RANDOM_IDS
from prunescope.taxonomy.words import factor

Marks = dict[str, tuple[str, str]]
_PANEL, _COLUMNS = 3.35, 2  # inches wide; two columns of a page side by side
_ROWS = (
    ("coverage", "#D55E00", "/////"),
    ("roofline_shift", "#CC79A7", ""),
    ("shape", "#F0E442", "....."),
    ("kernel_efficiency", "#E69F00", ""),
    ("added_work", "#56B4E9", "+++++"),
    ("launch_idle", "#999999", "\\\\\\\\\\"),
    ("not_explained", "#FFFFFF", "++++"),
)
_PROMISED = "#DDDDDD"
Panel = Callable[[Axes, list[SweepPoint], Marks], None]
# Where a label may stand, in points from its mark, the best place first.
_PLACES = ((4, 4), (4, -9), (-4, 5), (-4, -10), (9, 0), (-9, 0), (0, 11), (0, -16), (14, 9),
           (-14, -14), (16, -14), (-16, 12), (0, 20), (0, -26), (0, 28), (0, -36))  # fmt: skip
_Line = tuple[tuple[float, float], tuple[float, float]]


def marks_of(points: Iterable[SweepPoint]) -> Marks:
    """Colour and marker of the label of each point, in the order in which they come."""
    return family_looks(p.label for p in points)


def dot(  # noqa: PLR0913
    axes: Axes,
    at: tuple[float, float],
    spreads: tuple[Any, Any],
    colour: str,
    marker: str,
    *,
    full: bool,
    label: str | None,
    reasons: Sequence[str] = (),
) -> None:
    """A point with its intervals across and up; open where it is not `full`, hatched where it is no
    evidence for a reason."""
    (x, y), (across, up) = at, spreads
    if across is not None:
        axes.plot(across, [y, y], color=colour, linewidth=0.7)
    if up is not None:
        axes.plot([x, x], up, color=colour, linewidth=0.7)
    if reasons:
        hatch = 2 * hatches.HATCHES[reasons[0]]
        look: dict[str, Any] = {"facecolors": "white", "edgecolors": colour, "linewidths": 0.8}
        axes.scatter([x], [y], s=36, marker=marker, hatch=hatch, zorder=3, label=label, **look)
        return
    axes.plot(
        x,
        y,
        color=colour,
        marker=marker,
        markersize=5,
        linestyle="none",
        markerfacecolor=colour if full else "white",
        markeredgewidth=0.8,
        label=label,
    )


def legend_below(figure: Figure, handles: Sequence[Any], *, columns: int) -> int:
    """Put one legend under the panels, in as many columns, `columns` at most, as are no wider than
    the figure; gives its number of rows."""
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    while True:
        legend = figure.legend(
            handles=handles, loc="outside lower center", ncols=columns, frameon=False
        )
        wide = legend.get_window_extent(renderer).width
        if columns == 1 or wide <= figure.bbox.width:
            return -(-len(handles) // columns)
        legend.remove()
        columns -= 1


def pareto_figures(found: Pareto, *endings: str) -> dict[str, bytes]:
    """File name to bytes: speed-quality of all phases, bound and ledger of each, each plotted once.
    `endings`: png, pdf or svg."""
    panels: dict[str, Panel] = {"bound": _bound, "ledger": _ledger}
    pictures = {("speed-quality", "all"): frontier_figure(found, *endings)}
    for name, phase in found.phases.items():
        for kind, panel in panels.items():
            pictures[kind, name] = _figure(phase, name, panel, endings)
    return {
        figure_name(kind, name, ending): data
        for (kind, name), by_ending in pictures.items()
        for ending, data in by_ending.items()
    }


def _figure(
    phase: ParetoPhase, name: str, panel: Panel, endings: Sequence[str]
) -> dict[str, bytes]:
    marks = marks_of(phase.points)
    columns = min(_COLUMNS, len(phase.cells))
    rows = -(-len(phase.cells) // columns)
    with plotting():
        figure = Figure(figsize=(_PANEL * columns, 2.5 * rows + 0.6), layout="constrained")
        FigureCanvasAgg(figure)
        grid = figure.subplots(rows, columns, squeeze=False)
        for axes, cell in zip(grid.flat, phase.cells, strict=False):
            panel(axes, phase.points_in(cell), marks)
            axes.set_title(f"{clean(name)}, {clean(cell.where)}")
            axes.spines[["top", "right"]].set_visible(False)
        for axes in grid.flat[len(phase.cells) :]:
            axes.set_visible(False)
        by_label: dict[str, Any] = {}
        for axes in grid.flat[: len(phase.cells)]:
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
                by_label.setdefault(label, handle)
        legend_below(figure, list(by_label.values()), columns=2 * columns)
        return saved_as(figure, endings)


def _bound(axes: Axes, points: list[SweepPoint], marks: Marks) -> None:
    """x: the roofline bound, y: what was realised; on the diagonal the bound is reached."""
    low, top = 1.0, 1.0
    for family, (colour, marker) in marks.items():
        label: str | None = _label_with_marks(family, points)
        bounded = [p for p in points if p.label == family and p.bounds.get("roofline") is not None]
        for point in bounded:
            bound = point.bounds["roofline"]
            assert bound is not None
            dot(
                axes,
                (bound, point.realised),
                (None, point.realised_ci95),
                colour,
                marker,
                full=True,
                label=None if (reasons := evidence.point_reasons(point)) else label,
                reasons=reasons,
            )
            label = label if reasons else None
            low, top = min(low, bound, point.realised), max(top, bound, point.realised)
        if bounded and label is not None:
            axes.plot([], [], color=colour, marker=marker, linestyle="none", label=label)
    shown = [p for p in points if p.bounds.get("roofline") is not None]
    for note in _mark_notes(shown):
        axes.add_line(note)
    for patch in reason_patches(shown):
        axes.add_patch(patch)
    ends = [0.95 * low, 1.05 * top]
    line: dict[str, Any] = {"color": "black", "linewidth": 0.6, "linestyle": (0, (3, 2))}
    axes.plot(ends, ends, label="all of the bound realised", **line)
    axes.set_xlabel("roofline bound (speedup)")
    axes.set_ylabel("realised (speedup)")


def _ledger(axes: Axes, points: list[SweepPoint], marks: Marks) -> None:
    """A bar a family, at its largest sparsity: the promise, then losses up and gains down."""
    bars = [p for p in (_largest(points, family) for family in marks) if p is not None]
    rows = {
        row
        for point in bars
        for row, ns in point.ledger.items()
        if is_visible([0.0, abs(ns / point.ledger["dense"])], 1.0)
    }
    for i, point in enumerate(bars):
        dense = point.ledger["dense"]
        up, down = point.ledger["promised"] / dense, 0.0
        axes.bar(
            i,
            up,
            0.7,
            color=_PROMISED,
            **EDGE,
            label="promised" if i == 0 else None,
        )
        for row, colour, hatch in (look for look in _ROWS if look[0] in rows):
            share = point.ledger.get(row, 0.0) / dense
            base = up if share >= 0 else down
            axes.bar(
                i,
                share,
                0.7,
                bottom=base,
                color=colour,
                hatch=hatch,
                **EDGE,
                label=LEDGER[row][0] if i == 0 else None,
            )
            up, down = up + max(0.0, share), down + min(0.0, share)
        axes.plot(
            [i - 0.42, i + 0.42],
            [point.ledger["pruned"] / dense] * 2,
            color="black",
            linewidth=1.6,
            label="pruned, measured" if i == 0 else None,
        )
    for note in _mark_notes(bars):
        axes.add_line(note)
    for i, point in enumerate(bars):
        shade(axes, i, point)
    for patch in reason_patches(bars):
        axes.add_patch(patch)
    axes.axhline(1.0, color="black", linewidth=0.6, linestyle=(0, (3, 2)), label="dense, measured")
    axes.axhline(0.0, color="black", linewidth=0.6)
    axes.set_xticks(range(len(bars)), [marked(f"{clean(p.label)} {_share(p)}", p) for p in bars])
    axes.tick_params(axis="x", rotation=40, labelsize=6)
    for label in axes.get_xticklabels():
        label.set_horizontalalignment("right")
    axes.set_ylabel("share of the dense step")


def _label_with_marks(label: str, points: Iterable[SweepPoint]) -> str:
    """A label of the legend, with the marks of its points."""
    return marked(clean(label), *(point for point in points if point.label == label))


def _mark_notes(points: Iterable[SweepPoint]) -> list[Line2D]:
    """Legend entries for the marks of a figure."""
    found = "".join(map(marks_of_point, points))
    return [_written_mark(mark, words) for mark, words in MARKS.items() if mark in found]


def _written_mark(mark: str, words: str) -> Line2D:
    """An entry of a legend whose mark is a letter, as it stands next to the points."""
    letter = TextPath((0, 0), mark, size=10)
    box = letter.get_extents()
    middle = Path(letter.vertices - [(box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2], letter.codes)
    look: dict[str, Any] = {"color": "black", "linestyle": "none", "markeredgewidth": 0}
    return Line2D([], [], marker=middle, markersize=5, label=words, **look)


def _largest(points: list[SweepPoint], family: str) -> SweepPoint | None:
    of_family = [p for p in points if p.label == family and p.ledger.get("dense")]
    return max(of_family, key=lambda p: p.sparsity or 0.0, default=None)


def _share(point: SweepPoint) -> str:
    return "" if point.sparsity is None else f"{point.sparsity:g}"


@dataclass
class Obstacles:
    """The marks and ends of lines that labels should not hide, in units of the axes."""

    marks: list[tuple[float, float]] = field(default_factory=list)
    lines: list[_Line] = field(default_factory=list)


def frontier_figure(found: Pareto, *endings: str, most: float = MOST_RATIO) -> dict[str, bytes]:
    """The figure as a file of each format; `most`: the largest perplexity ratio that is shown."""
    with plotting():
        return saved_as(frontier_plot(found, most=most), endings)


def frontier_plot(found: Pareto, *, most: float = MOST_RATIO) -> Figure:
    """The figure."""
    marks = marks_of(p for phase in found.phases.values() for p in phase.points)
    rows = sorted({c.setting for phase in found.phases.values() for c in phase.cells})
    with plotting():
        wide, high = _PANEL * max(1, len(found.phases)), 2.4 * len(rows)
        figure = Figure(figsize=(wide, high), layout="constrained")
        FigureCanvasAgg(figure)
        grid = figure.subplots(len(rows), max(1, len(found.phases)), squeeze=False)
        panels: list[tuple[Axes, Any, Any]] = []
        for column, (name, phase) in enumerate(found.phases.items()):
            for row, cell in enumerate(rows):
                axes = grid[row][column]
                points = [p for p in phase.points if p.setting == cell]
                title = f"{clean(name)}, {clean(cell.where)}"
                axes.set_title(title, loc="left")
                panels.append((axes, *_frontier_panel(axes, points, marks, most)))
                if found.subject.on_random_ids:
                    say_random_ids(axes)
        shown = [
            p
            for ph in found.phases.values()
            for p in ph.points
            if (ratio := shown_loss(p)[0]) is not None and ratio <= most
        ]
        lines = _frontier_legend(figure, marks, shown, on_random_ids=found.subject.on_random_ids)
        figure.set_size_inches(wide, high + 0.14 * lines + 0.25)
        figure.draw_without_rendering()
        for axes, labels, obstacles in panels:
            place_labels(axes, labels, obstacles)
    return figure


def shown_loss(point: SweepPoint) -> tuple[float | None, list[float] | None]:
    """Perplexity ratio and its interval: against the dense model with the same training, where
    there is one."""
    loss = point.loss or Loss()
    if loss.perplexity_rel_recovered is not None:
        return 1 + loss.perplexity_rel_recovered, loss.recovered_ci95
    if loss.perplexity_rel is None:
        return None, None
    return 1 + loss.perplexity_rel, loss.ci95


def _frontier_panel(
    axes: Axes, points: Sequence[SweepPoint], marks: Marks, most: float
) -> tuple[list[tuple[float, float, str]], Obstacles]:
    """Points and frontier of a cell; gives the labels with their places, and what they should not
    hide."""
    best: list[tuple[float, float]] = []
    labels: list[tuple[float, float, str]] = []
    obstacles = Obstacles()
    beyond: list[float] = []
    for point in points:
        x, spread = shown_loss(point)
        if x is None:
            continue
        if x > most:
            beyond.append(x)
            continue
        colour, marker = marks[point.label]
        across = None if spread is None else [1 + bound for bound in spread]
        dot(
            axes,
            (x, point.realised),
            (across, point.realised_ci95),
            colour,
            marker,
            full=point.on_frontier,
            label=None,
            reasons=(reasons := evidence.point_reasons(point)),
        )
        y = point.realised
        obstacles.marks.append((x, y))
        (left, right), (low, high) = across or (x, x), point.realised_ci95 or (y, y)
        obstacles.lines += [((left, y), (right, y)), ((x, low), (x, high))]
        words = []
        if point.on_frontier:
            best.append((x, point.realised))
        if (point.on_frontier or reasons) and point.sparsity is not None:
            words.append(f"{point.sparsity:g}")
        if reasons:
            words.append("?")
        words.append(marks_of_point(point))
        labels.append((x, point.realised, " ".join(filter(None, words))))
    axes.spines[["top", "right"]].set_visible(False)
    left, right = axes.get_xlim()
    left, right = min(left, 1.0), min(right, most) if points else most
    axes.set_xlim(left, right)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    _cut_intervals(axes, [y for _, y in obstacles.marks])
    obstacles.lines += _frontier_line(axes, best, right)
    obstacles.lines.append(((left, 1.0), (right, 1.0)))
    axes.axhline(1.0, color="black", linewidth=0.6, linestyle=(0, (3, 2)))
    is_recovered = any(p.loss and p.loss.perplexity_rel_recovered is not None for p in points)
    axes.set_xlabel(f"perplexity, pruned ÷ dense{' trained the same way' if is_recovered else ''}")
    axes.set_ylabel("speedup, dense ÷ pruned")
    if beyond:
        if not obstacles.marks:
            _say_all_beyond(axes, beyond, most)
        axes.text(
            1.0,
            1.01,
            f"{len(beyond)} beyond {most:g}× →",
            transform=axes.transAxes,
            ha="right",
            va="bottom",
            fontsize=6,
        )
    return [label for label in labels if label[2]], obstacles


def _cut_intervals(axes: Axes, speedups: Sequence[float]) -> None:
    """End the axis of speedups near the points: an interval that reaches its edge goes on."""
    low, high = axes.get_ylim()
    if speedups:
        axes.set_ylim(max(low, 0.0), min(high, MOST_WHISKER * max(1.0, *speedups)))


def _frontier_line(axes: Axes, best: Sequence[tuple[float, float]], right: float) -> list[_Line]:
    """The frontier in steps, from the dense model on; gives its pieces."""
    steps = sorted(best)
    if not steps or steps[0][0] > 1:
        steps.insert(0, (1.0, 1.0))  # the dense model itself
    steps.append((right, steps[-1][1]))
    xs, ys = zip(*steps, strict=True)
    axes.step(xs, ys, where="post", color="black", linewidth=0.8, zorder=0)
    corners = [(steps[i + 1][0], y) for i, (_, y) in enumerate(steps[:-1])]
    path = [one for pair in zip(steps, corners, strict=False) for one in pair]
    return list(pairwise(path))


def say_random_ids(axes: Axes) -> None:
    """Mark a panel whose losses mean nothing, because its texts are random token ids."""
    whole = Rectangle((0, 0), 1, 1, transform=axes.transAxes, zorder=-1, **ground([RANDOM_IDS]))
    axes.add_patch(whole)
    axes.set_xlabel(f"{axes.get_xlabel()}\non {RANDOM_IDS}: no loss means anything")


def _say_all_beyond(axes: Axes, ratios: Sequence[float], most: float) -> None:
    """Why a panel is empty."""
    axes.set_xlim(1.0, most)
    ends = [factor(one - 1) or f"{one:.3g}×" for one in (min(ratios), max(ratios))]
    span = " to ".join(dict.fromkeys(ends))
    which = "its one point lies" if len(ratios) == 1 else f"all {len(ratios)} points lie"
    axes.text(
        0.5,
        0.75,
        f"{which} beyond this axis,\nat {span} the dense perplexity",
        transform=axes.transAxes,
        ha="center",
        va="center",
        fontsize=7,
    )


def in_legend(label: str, colour: str, marker: str) -> Line2D:
    """The entry of a legend for points of this colour and marker."""
    return Line2D([], [], color=colour, marker=marker, linestyle="none", markersize=5, label=label)


def _frontier_legend(
    figure: Figure, marks: Marks, points: Sequence[SweepPoint], *, on_random_ids: bool
) -> int:
    """The legend of all panels, whose points these are; gives its number of rows."""
    handles: list[Any] = [
        in_legend(_label_with_marks(label, points), colour, marker)
        for label, (colour, marker) in marks.items()
        if any(point.label == label for point in points)
    ]
    handles.append(
        Line2D([], [], color="black", linewidth=0.8, label="frontier: full marks, with their s")
    )
    handles += _mark_notes(points)
    handles += reason_patches(points, "? ")
    if on_random_ids:
        handles.append(no_evidence([RANDOM_IDS], f"{RANDOM_IDS}: no loss means anything"))
    return legend_below(figure, handles, columns=4)


def place_labels(
    axes: Axes,
    labels: Sequence[tuple[float, float, str]],
    obstacles: Obstacles,
) -> None:
    """Write each label where it hides no other label, no mark and no line; where there is no such
    place, it may lie on a line. A label far from its mark gets a line to it."""
    figure = axes.figure
    inside = axes.get_window_extent(figure.canvas.get_renderer())  # type: ignore[attr-defined]
    radius = 3.5 * figure.dpi / 72
    centres = [axes.transData.transform(at) for at in obstacles.marks]
    taken = [Bbox([middle - radius, middle + radius]) for middle in centres]
    lines = [Bbox(axes.transData.transform(ends)) for ends in obstacles.lines]
    for x, y, text in sorted(labels):
        tries = [(place, lines) for place in _PLACES] + [(place, []) for place in _PLACES]
        for place, also in tries:
            label, box = _written(axes, (x, y), text, place)
            free = not any(box.overlaps(other) for other in (*taken, *also))
            if free and inside.contains(*box.min) and inside.contains(*box.max):
                break
            label.remove()
        else:
            _, box = _written(axes, (x, y), text, _PLACES[0])
        taken.append(box)


def _written(
    axes: Axes, at: tuple[float, float], text: str, place: tuple[int, int]
) -> tuple[Annotation, Bbox]:
    """A label in a place, and the box of its text in pixels."""
    label = axes.annotate(
        text,
        at,
        textcoords="offset points",
        xytext=place,
        fontsize=6,
        ha="left" if place[0] > 0 else "right" if place[0] < 0 else "center",
        arrowprops={"arrowstyle": "-", "linewidth": 0.4, "shrinkA": 0, "shrinkB": 2}
        if max(map(abs, place)) > 10
        else None,
    )
    renderer = axes.figure.canvas.get_renderer()  # type: ignore[attr-defined]
    label.update_positions(renderer)
    return label, matplotlib.text.Text.get_window_extent(label, renderer)


class ParetoPlots:
    """The figures of a sweep, as matplotlib Figures."""

    def __init__(self, found: Pareto) -> None:
        self._found = found

    def frontier(self) -> Figure:
        """Speed against loss, with the frontier."""
        return frontier_plot(self._found)
