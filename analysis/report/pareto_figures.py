"""Figures of a sweep: in, a Pareto; out, Pictures.

Speed against loss has a panel for each phase, batch and length. Losses are perplexity ratios within
a usable range, and the margin says how many points lie beyond it. Realised against bound, and the
ledger of each family, are figures of a phase, with a panel for each batch and length. Above eight
families a panel becomes several, in each of which eight are named and the others are grey.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.path import Path
from matplotlib.textpath import TextPath
from matplotlib.ticker import MaxNLocator

from prunescope.analysis.report.escape import clean
from prunescope.analysis.report.figure_style import (
    EDGE,
    PARITY,
    dot,
    draw_level,
    end_axis,
    legend_below,
    line_entry,
    most_panels,
    panel_axes,
    plotting,
    point_entry,
    random_ids_entry,
    reason_patches,
    say_random_ids,
    shade,
)
from prunescope.analysis.report.hatches import MARKS, marked, marks_of_point
from prunescope.analysis.report.label_places import Label, Line, Obstacles, place_labels
from prunescope.analysis.report.ledger_view import is_visible
from prunescope.analysis.report.looks import ROWS, Look, family_looks
from prunescope.analysis.report.picture import Picture, Row
from prunescope.analysis.report.sweep_setting import setting_of_points
from prunescope.analysis.schema.pareto import MOST_RATIO, Loss, Pareto, SweepPoint
from prunescope.analysis.summary import evidence
from prunescope.analysis.summary.labels import LEDGER
from prunescope.taxonomy import numbers
from prunescope.taxonomy.words import factor, when

Looks = dict[str, Look]
MOST_FAMILIES = 8  # that a panel names
_SWEEP = "sweep-"  # of labels, since reports of runs have ledgers too
_FRONTIER, _CELL = 2.3, 2.5  # inches: the height of a panel
_OTHERS = Look("#BBBBBB", "", "o")  # of points that a panel does not name


class FamilyPanel(NamedTuple):
    """The points of a phase, batch and length, and which of them a panel names.

    Attributes:
        title: The phase, batch and length.
        points: The points.
        shown: Their labels that it names.
        part: Which of several panels of these points it is, such as "1 of 2"; empty of one alone.
    """

    title: str
    points: list[SweepPoint]
    shown: list[str]
    part: str = ""

    @property
    def heading(self) -> str:
        """The title, and which part of it this is."""
        return f"{self.title} ({self.part})" if self.part else self.title


def pareto_pictures(pareto: Pareto) -> Iterator[Picture]:
    """Yield the figures of a sweep; what does not fit on one page has several."""
    frontier = [panel for name in pareto.phases for panel in _panels(pareto, [name])]
    shown = sorted(frontier, key=lambda panel: panel.title.partition(", ")[2])
    yield from _paged("speed-quality-all", shown, _FRONTIER, partial(_frontier_picture, pareto))
    for name in pareto.phases:
        every = _panels(pareto, [name])
        yield from _paged(f"bound-{name}", every, _CELL, partial(_bound_picture, pareto))
        yield from _paged(f"ledger-{name}", every, _CELL, partial(_ledger_picture, pareto))


def _panels(pareto: Pareto, names: Iterable[str]) -> list[FamilyPanel]:
    """Return the panels of phases, each with at most MOST_FAMILIES labels."""
    panels = []
    for name in names:
        phase = pareto.phases[name]
        for cell in phase.cells:
            points = phase.points_in(cell)
            labels = list(dict.fromkeys(point.label for point in points))
            chunks = [labels[i : i + MOST_FAMILIES] for i in range(0, len(labels), MOST_FAMILIES)]
            title = f"{clean(name)}, {clean(cell.where)}"
            parts = [f"{i} of {len(chunks)}" for i in range(1, len(chunks) + 1)]
            parts = parts if len(chunks) > 1 else [""]
            panels += [
                FamilyPanel(title, points, chunk, part)
                for chunk, part in zip(chunks, parts, strict=True)
            ]
    return panels


def _paged(
    stem: str,
    panels: list[FamilyPanel],
    height: float,
    make: Callable[[str, list[FamilyPanel]], Picture],
) -> Iterator[Picture]:
    """Yield a picture for each page of panels."""
    most = most_panels(height)
    for i in range(0, len(panels), most):
        yield make(stem if i == 0 else f"{stem}-{i // most + 1}", panels[i : i + most])


def _all_looks(pareto: Pareto) -> Looks:
    points = (point for phase in pareto.phases.values() for point in phase.points)
    return family_looks((point.label, point.family) for point in points)


def _points_of(panels: Iterable[FamilyPanel]) -> list[SweepPoint]:
    """Return the points that panels name."""
    return [p for panel in panels for p in panel.points if p.label in panel.shown]


def _row(panel: FamilyPanel, point: SweepPoint) -> Row:
    """Return the first numbers of a point: where it is, its family, sparsity and speedup."""
    low, high = point.realised_ci95 or (None, None)
    phase, _, setting = panel.title.partition(", ")
    return {
        "phase": phase,
        "setting": setting,
        "family": point.label,
        "sparsity": point.sparsity,
        "realised": point.realised,
        "low": low,
        "high": high,
        "timing_valid": point.timing_valid,
    }


def _frontier_picture(pareto: Pareto, stem: str, panels: list[FamilyPanel]) -> Picture:
    points = _points_of(panels)
    best = [p for p in points if p.on_frontier]
    named = "; ".join(f"{p.name} at {numbers.ratio(p.realised)}" for p in best)
    words = [
        "perplexity and speedup of each point with 95 % intervals",
        "the line is the frontier, its points are full" if _has_frontier(pareto, panels) else "",
        f"points beyond {MOST_RATIO:g}× are counted at the axis",
        "losses on random token ids mean nothing" if pareto.subject.on_random_ids else "",
    ]
    return Picture(
        stem=stem,
        of=_SWEEP,
        title="Speed against loss",
        caption=_caption("Speed against loss", words, pareto, panels),
        alt=f"Scatter of {len(points)} points"
        + (f"; on the frontier: {named}." if named else "; none is on a frontier."),
        plot=partial(_plot_frontiers, pareto, panels),
        rows=[
            {**_row(panel, p), **_loss_row(p), "on_frontier": p.on_frontier}
            for panel in panels
            for p in panel.points
            if p.label in panel.shown
        ],
    )


def _loss_row(point: SweepPoint) -> Row:
    ratio, spread = shown_loss(point)
    low, high = spread or (None, None)
    ends = (None if end is None else 1 + end for end in (low, high))
    return dict(zip(("perplexity_ratio", "ratio_low", "ratio_high"), (ratio, *ends), strict=True))


def _caption(title: str, words: Iterable[str], pareto: Pareto, panels: list[FamilyPanel]) -> str:
    """Return a caption: what is shown, how to read it, the setting and the statistic."""
    points = _points_of(panels)
    phases = list(dict.fromkeys(panel.title.partition(", ")[0] for panel in panels))
    used = "".join(map(marks_of_point, points))
    marks = [f"{mark} {meaning}" for mark, meaning in MARKS.items() if mark in used]
    reasons = dict.fromkeys(why for point in points for why in evidence.point_reasons(point))
    hatched = f"hatched: {', '.join(reasons)}" if reasons else ""
    text = "; ".join(filter(None, [*words, *marks, hatched]))
    return f"{title}: {text}. {setting_of_points(pareto, phases, points)}"


def _bound_picture(pareto: Pareto, stem: str, panels: list[FamilyPanel]) -> Picture:
    title = "Realised speedup against the roofline bound"
    points = [p for p in _points_of(panels) if p.bounds.get("roofline") is not None]
    words = ["points on the dashed line realise all of their bound, whiskers are 95 % intervals"]
    return Picture(
        stem=stem,
        of=_SWEEP,
        title=title,
        caption=_caption(title, words, pareto, panels),
        alt=f"Scatter of {len(points)} points below and around a diagonal.",
        plot=partial(_cells_figure, pareto, panels, _plot_bounds),
        rows=[
            {**_row(panel, p), "roofline_bound": p.bounds.get("roofline")}
            for panel in panels
            for p in panel.points
            if p.label in panel.shown
        ],
    )


def _ledger_picture(pareto: Pareto, stem: str, panels: list[FamilyPanel]) -> Picture:
    title = "Where the dense step's time went"
    words = [
        "each family at its largest sparsity; a bar begins with the promise, losses are stacked on "
        "it and gains below 0, and a line across it is the measured time"
    ]
    bars = [(panel, p) for panel in panels for p in _bars_of(panel)]
    named = "; ".join(f"{p.name} {_share(p, 'pruned'):.2f}" for _, p in bars)
    return Picture(
        stem=stem,
        of=_SWEEP,
        title=title,
        caption=_caption(title, words, pareto, panels),
        alt=f"Stacked bars, as shares of the dense step; measured: {named}.",
        plot=partial(_cells_figure, pareto, panels, _plot_ledgers),
        rows=[
            {**_row(panel, p), "row": row, "ns": ns, "of_dense": _share(p, row)}
            for panel, p in bars
            for row, ns in p.ledger.items()
        ],
    )


def _share(point: SweepPoint, row: str) -> float:
    return point.ledger.get(row, 0.0) / point.ledger["dense"]


def _bars_of(panel: FamilyPanel) -> list[SweepPoint]:
    """Return the point of each family at its largest sparsity, where it has a ledger."""
    points = (_largest(panel.points, label) for label in panel.shown)
    return [point for point in points if point is not None]


def _cells_figure(
    pareto: Pareto,
    panels: Sequence[FamilyPanel],
    plot_panel: Callable[[Axes, FamilyPanel, Looks], None],
) -> Figure:
    """Plot panels, with one legend for all."""
    looks = _all_looks(pareto)
    figure, every = panel_axes(len(panels), _CELL)
    by_label: dict[str, Any] = {}
    for axes, panel in zip(every, panels, strict=True):
        plot_panel(axes, panel, looks)
        axes.set_title(panel.heading, loc="left")
        for entry, label in zip(*axes.get_legend_handles_labels(), strict=True):
            by_label.setdefault(label, entry)
    legend_below(figure, list(by_label.values()))
    return figure


def _plot_others(axes: Axes, places: Iterable[tuple[float, float]]) -> None:
    """Plot points that the panel does not name, as small grey dots."""
    if shown := list(places):
        grey: dict[str, Any] = {"marker": _OTHERS.marker, "markersize": 2.5, "linestyle": "none"}
        axes.plot(*zip(*shown, strict=True), color=_OTHERS.colour, label="others", zorder=0, **grey)


def _plot_bounds(axes: Axes, panel: FamilyPanel, looks: Looks) -> None:
    """Plot realised speedups over roofline bounds; a point on the diagonal reaches its bound."""
    bounded = [(p, bound) for p in panel.points if (bound := p.bounds.get("roofline")) is not None]
    _plot_others(axes, ((bound, p.realised) for p, bound in bounded if p.label not in panel.shown))
    for label in panel.shown:
        of_family = [(point, bound) for point, bound in bounded if point.label == label]
        look, is_named = looks[label], False  # by its first point that is evidence
        for point, bound in of_family:
            reasons = evidence.point_reasons(point)
            intervals = None, point.realised_ci95
            mark = dot(axes, (bound, point.realised), intervals, look, reasons=reasons)
            mark.set_gid(f"family-{point.family}")
            if not reasons and not is_named:
                mark.set_label(_label_with_marks(label, panel.points))
                is_named = True
        if of_family and not is_named:
            name = _label_with_marks(label, panel.points)
            line: dict[str, Any] = {"color": look.colour, "marker": look.marker}
            axes.plot([], [], linestyle="none", label=name, **line)
    _add_reasons(axes, [point for point, _ in bounded if point.label in panel.shown])
    reached = [1.0, *(point.realised for point, _ in bounded)]
    least, most = min(1.0, *(b for _, b in bounded), *reached), max(1.0, *(b for _, b in bounded))
    top = max(most, end_axis(reached, [e for p, _ in bounded for e in p.realised_ci95 or ()]))
    ends = [0.95 * least, 1.05 * most]
    axes.plot(ends, ends, label="all of the bound realised", **PARITY)
    axes.set(xlim=(0.95 * least, 1.05 * most), ylim=(0.95 * least, 1.05 * top))
    axes.set(xlabel="roofline bound (speedup)", ylabel="realised (speedup)")


def _plot_ledgers(axes: Axes, panel: FamilyPanel, looks: Looks) -> None:
    """Plot the ledger of each family at its largest sparsity, as shares of the dense step.

    A bar begins with the promise; losses are stacked above it, and gains below zero.
    """
    del looks  # bars are told apart by their names; colours are those of the rows
    bars = _bars_of(panel)
    shares = ((row, _share(p, row)) for p in bars for row in p.ledger)
    seen = {row for row, share in shares if is_visible([0.0, abs(share)], 1.0)}
    for i, point in enumerate(bars):
        is_first = i == 0  # the bar whose labels the legend has
        up, down = _share(point, "promised"), 0.0
        promise: dict[str, Any] = {"color": ROWS["promised"].colour, "gid": "row-promised", **EDGE}
        axes.bar(i, up, 0.7, label=when(is_first, "promised"), **promise)
        for row in (row for row in ROWS if row in seen and row != "promised"):
            share, look = _share(point, row), ROWS[row]
            base, label = up if share >= 0 else down, when(is_first, LEDGER[row][0])
            bar: dict[str, Any] = {"color": look.colour, "hatch": look.hatch, **EDGE}
            axes.bar(i, share, 0.7, bottom=base, label=label, gid=f"row-{row}", **bar)
            up, down = up + max(0.0, share), down + min(0.0, share)
        label = when(is_first, "pruned, measured")
        level: dict[str, Any] = {"linewidth": 1.6, "label": label, "gid": "row-pruned"}
        draw_level(axes, i, 0.42, _share(point, "pruned"), **level)
    for i, point in enumerate(bars):
        shade(axes, i, point)
    _add_reasons(axes, bars)
    axes.axhline(1.0, label="dense, measured", **PARITY)
    axes.axhline(0.0, color="black", linewidth=0.6)
    names = ((p, "" if p.sparsity is None else f"{p.sparsity:g}") for p in bars)
    labels = [marked(f"{clean(p.label)} {s}", p) for p, s in names]
    axes.set_xticks(range(len(bars)), labels, rotation=40, ha="right", rotation_mode="anchor")
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


def _is_judged(pareto: Pareto, panel: FamilyPanel) -> bool:
    """Return whether a point of a panel has both a time and a loss that are evidence."""
    if pareto.subject.on_random_ids:
        return False
    return any(point.is_judged and shown_loss(point)[0] is not None for point in panel.points)


def _has_frontier(pareto: Pareto, panels: Iterable[FamilyPanel]) -> bool:
    return any(_is_judged(pareto, panel) for panel in panels)


def frontier_figure(pareto: Pareto, *, most: float = MOST_RATIO) -> Figure:
    """Plot speed against loss, with the frontier of each phase, batch and length.

    Args:
        pareto: The comparison of the sweep.
        most: The largest perplexity ratio that is shown.
    """
    return _plot_frontiers(pareto, _panels(pareto, pareto.phases), most=most)


def _plot_frontiers(
    pareto: Pareto, panels: Sequence[FamilyPanel], *, most: float = MOST_RATIO
) -> Figure:
    looks, on_random_ids = _all_looks(pareto), pareto.subject.on_random_ids
    with plotting():
        figure, every = panel_axes(len(panels), _FRONTIER)
        placed: list[tuple[Axes, list[Label], Obstacles]] = []
        for axes, panel in zip(every, panels, strict=True):
            axes.set_title(panel.heading, loc="left")
            is_judged = _is_judged(pareto, panel)
            placed.append((axes, *_plot_frontier(axes, panel, looks, most, is_judged=is_judged)))
            if on_random_ids:
                say_random_ids(axes)
        named = _points_of(panels)
        shown = [p for p in named if (ratio := shown_loss(p)[0]) is not None and ratio <= most]
        entries = _frontier_entries(looks, shown, has_line=_has_frontier(pareto, panels))
        if any(axes.get_legend_handles_labels()[0] for axes in every):
            entries.append(point_entry("others", _OTHERS))
        if on_random_ids:
            entries.append(random_ids_entry())
        legend_below(figure, entries, columns=4)
        figure.draw_without_rendering()
        for axes, labels, obstacles in placed:
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
    axes: Axes, panel: FamilyPanel, looks: Looks, most: float, *, is_judged: bool
) -> tuple[list[Label], Obstacles]:
    """Plot the points of one panel, and their frontier if a point was judged.

    Return the labels with their places, and the marks and lines that these should not hide.
    """
    labels: list[Label] = []
    obstacles = Obstacles()
    beyond: list[float] = []
    points = [point for point in panel.points if point.label in panel.shown]
    others = [point for point in panel.points if point.label not in panel.shown]
    places = [(x, p.realised) for p in others if (x := shown_loss(p)[0]) is not None and x <= most]
    _plot_others(axes, places)
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
        mark = dot(axes, at, intervals, looks[point.label], full=full, reasons=reasons)
        mark.set_gid(f"family-{point.family}")
        obstacles.add(at, *intervals)
        words = []
        if (full or reasons) and point.sparsity is not None:
            words.append(f"{point.sparsity:g}")
        words += ["?"] if reasons else []
        words.append(marks_of_point(point))
        labels.append((*at, " ".join(filter(None, words))))
    left, right = _end_axes(axes, panel.points, most)
    if is_judged:
        full_points = [p for p in panel.points if p.on_frontier]
        best = [(x, p.realised) for p in full_points if (x := shown_loss(p)[0]) and x <= most]
        obstacles.lines += draw_frontier(axes, best, right)
    obstacles.lines.append(((left, 1.0), (right, 1.0)))
    axes.axhline(1.0, **PARITY)
    is_recovered = any(p.loss and p.loss.perplexity_rel_recovered is not None for p in points)
    axes.set_xlabel(f"perplexity, pruned ÷ dense{' trained the same way' if is_recovered else ''}")
    axes.set_ylabel("speedup, dense ÷ pruned")
    if not places and not beyond and not obstacles.marks:
        _write_in_middle(axes, "no point has a loss")
    if beyond:
        if not obstacles.marks:
            _say_all_beyond(axes, beyond, most)
        axes.set_xlabel(f"{axes.get_xlabel()} ({len(beyond)} beyond {most:g}×)")
    return [label for label in labels if label[2]], obstacles


def _end_axes(axes: Axes, points: Sequence[SweepPoint], most: float) -> tuple[float, float]:
    """End the axes near the points and the dense model, and return the ends of the losses.

    Panels of the same points have the same ends. An interval that reaches an end goes on.
    """
    axes.xaxis.set_major_locator(MaxNLocator(5))
    losses = [(point, *shown_loss(point)) for point in points]
    near = [(p, x, ends) for p, x, ends in losses if x is not None and x <= most]
    shown = [(p, x, ends or [x - 1] * 2) for p, x, ends in near]
    if not shown:
        return axes.get_xlim()
    xs = [1.0, *(x for _, x, _ in shown), *(1 + end for *_, spread in shown for end in spread)]
    room = 0.04 * (max(xs) - min(xs)) or 0.01
    left, right = min(xs) - room, min(max(xs) + room, most)
    axes.set_xlim(left, right)
    speedups = [p.realised for p, *_ in shown]
    ends = [end for p, *_ in shown for end in p.realised_ci95 or ()]
    least = min(1.0, *speedups, *(end for end in ends if end > min(speedups) / 2))
    top = end_axis([1.0, 1.03 * max(speedups)], ends)
    axes.set_ylim(max(0.0, least - 0.05 * (top - least)), top)
    return left, right


def draw_frontier(
    axes: Axes, best: Sequence[tuple[float, float]], right: float, style: Any = "-"
) -> list[Line]:
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
    _write_in_middle(axes, f"{which} beyond this axis,\nat {span} the dense perplexity")


def _write_in_middle(axes: Axes, text: str) -> None:
    """Write why a panel is empty."""
    centre: dict[str, Any] = {"ha": "center", "va": "center"}
    axes.text(0.5, 0.75, text, transform=axes.transAxes, **centre)


def _frontier_entries(looks: Looks, points: Sequence[SweepPoint], *, has_line: bool) -> list[Any]:
    """Return the legend for the points of all panels."""
    names = {point.label for point in points}
    shown = [(label, look) for label, look in looks.items() if label in names]
    entries: list[Any] = [point_entry(_label_with_marks(n, points), look) for n, look in shown]
    if has_line:
        words = "frontier: full marks, with their s"
        entries.append(line_entry(words, color="black", linewidth=0.8))
    return [*entries, *_mark_notes(points), *reason_patches(points, "? ")]


class ParetoPlots:
    """The figures of a sweep, as matplotlib Figures."""

    def __init__(self, pareto: Pareto) -> None:
        self._pareto = pareto

    def frontier(self) -> Figure:
        """Plot speed against loss, with the frontier."""
        return frontier_figure(self._pareto)
