"""Fig. 5 of the paper, and its study of alignment: realised speedups next to their bounds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from prunescope.analysis.paper.paper_figure import (
    MissingFigure,
    Panel,
    alignment,
    caption_end,
    family_label,
    fit_page,
    interval_ends,
    looks_of,
    panel_grid,
    panels,
    points_of,
    size_of,
    usually_aligned,
    with_marks,
)
from prunescope.analysis.report.escape import clean
from prunescope.analysis.report.figure_style import (
    BOUND_LINE,
    DOTTED,
    EDGE,
    MOST_WHISKER,
    PARITY,
    USUAL,
    bar_entry,
    dot,
    draw_interval,
    draw_level,
    hatch_of,
    legend_below,
    line_entry,
    most_panels,
    panel_axes,
    reason_patches,
)
from prunescope.analysis.report.looks import Look
from prunescope.analysis.report.picture import Picture, Row
from prunescope.analysis.schema.pareto import Pareto, SweepPoint
from prunescope.analysis.summary import evidence
from prunescope.taxonomy.keep import is_just
from prunescope.taxonomy.runs.run_setting import RunSetting

_STRIP = 1.4  # inches: the height of a strip
_GROUP = 0.84  # of the distance of two groups of bars
_BAND = 0.94  # of a panel's height that the largest speedup takes
_AXES = {"batch": "batch (sequences)", "prompt_len": "length (tokens)"}


@dataclass(frozen=True)
class _Strip:
    """A panel of bars: groups along one axis of the workload, with all else fixed."""

    phase: str
    how: RunSetting  # with the batch and length that stay
    axis: str  # "prompt_len" or "batch"
    points: list[SweepPoint]
    shared: frozenset[str] = frozenset()  # as of a Panel

    @property
    def values(self) -> list[int]:
        """The values of the axis at which there are bars."""
        return sorted({getattr(point, self.axis) for point in self.points})

    @property
    def title(self) -> str:
        """The phase and what is fixed."""
        fixed = f"batch {self.how.batch}"
        if self.axis == "batch":
            fixed = f"{self.how.prompt_len:,} tokens"
        how = [word for word in self.how.where.split(", ")[2:] if word not in self.shared]
        return clean(", ".join([self.phase, fixed, *how]))


def speedups(pareto: Pareto) -> Iterator[Picture | MissingFigure]:
    """Yield a figure for each sparsity: families over length and over batch, with their bounds."""
    every = points_of(panels(pareto))
    sparsities = sorted({p.sparsity for p in every if p.sparsity is not None})
    if not sparsities:
        key = "give `families` and `sparsities`"
        yield MissingFigure("speedup", "no point has a nominal sparsity", key)
    for sparsity in sparsities:
        yield from _speedup(pareto, sparsity)


def _speedup(pareto: Pareto, sparsity: float) -> Iterator[Picture]:
    """Yield the figure of one sparsity, as several where its strips do not fit on one page."""

    def choose(points: list[SweepPoint]) -> list[SweepPoint]:
        return usually_aligned(p for p in points if sparsity in (p.sparsity, *p.sparsities))

    shown = panels(pareto, choose)
    title = f"Speedup at s = {sparsity:g}"
    strips, most = _strips(shown), most_panels(_STRIP)
    for i in range(0, len(strips), most):
        rows = [_row(panel, p, sparsity) for panel in shown for p in panel.points]
        yield Picture(
            stem=f"paper-speedup-{sparsity:g}{f'-{i // most + 1}' if i else ''}",
            title=title,
            alt=f"Bars of {len(points_of(shown))} results, in groups over batch or length.",
            caption=f"{title} by family, batch and length: realised (bars), nominal 1/(1 − s) "
            "(dotted) and roofline bound of each (line at its bar). Whiskers: 95 % intervals"
            f"{_hull_words(points_of(shown))}, cut where they leave the panel."
            f"{caption_end(pareto, shown, is_whole=True)}",
            rows=[] if i else rows,
            plot=partial(_speedup_figure, strips[i : i + most], sparsity),
        )


def _hull_words(points: Sequence[SweepPoint]) -> str:
    """Return what an interval means if a point has several random selections."""
    count = max((len(p.draws) for p in points), default=1)
    return f", the hull over {count} random selections" if count > 1 else ""


def _row(panel: Panel, point: SweepPoint, sparsity: float | None) -> Row:
    return {
        **panel.row_of(point),
        "sparsity": sparsity,
        "align": alignment(point),
        "realised": point.realised,
        **interval_ends(point.realised_ci95),
        "nominal": None if sparsity is None else 1 / (1 - sparsity),
        **{f"{name}_bound": point.bounds.get(name) for name in ("flop", "coverage", "roofline")},
        "flop_sparsity": point.flop_sparsity,
        "n": max(1, len(point.draws)),
        "timing_valid": point.timing_valid,
    }


def _strips(shown: Sequence[Panel]) -> list[_Strip]:
    """Return the strips of each phase and way to run.

    They are the lengths at the smallest batch and the batches at the smallest length. An axis with
    a single value has no strip of its own.
    """
    ways: dict[tuple[str, RunSetting], list[SweepPoint]] = {}
    for panel in shown:
        how = msgspec.structs.replace(panel.cell.setting, batch=1, prompt_len=1)
        ways.setdefault((panel.phase, how), []).extend(panel.points)
    strips: list[_Strip] = []
    shared = shown[0].shared if shown else frozenset[str]()
    for (phase, how), points in ways.items():
        batch, length = min(p.batch for p in points), min(p.prompt_len for p in points)
        fixed = msgspec.structs.replace(how, batch=batch, prompt_len=length)
        over = {
            "prompt_len": [point for point in points if point.batch == batch],
            "batch": [point for point in points if point.prompt_len == length],
        }
        both = [_Strip(phase, fixed, axis, along, shared) for axis, along in over.items()]
        strips += [strip for strip in both if len(strip.values) > 1] or both[:1]
    return strips


def _speedup_figure(strips: Sequence[_Strip], sparsity: float) -> Figure:
    points = [point for strip in strips for point in strip.points]
    looks = looks_of(points)
    figure, every = panel_axes(len(strips), _STRIP)
    for axes, strip in zip(every, strips, strict=True):
        _plot_strip(axes, strip, looks, sparsity)
    entries: list[Any] = [bar_entry(with_marks(n, points), look) for n, look in looks.items()]
    if any(point.bounds.get("roofline") for point in points):
        entries.append(line_entry("roofline bound", **BOUND_LINE))
    entries.append(line_entry(f"nominal, {1 / (1 - sparsity):.2f}×", **DOTTED))
    legend_below(figure, entries + reason_patches(points))
    return figure


def _plot_strip(axes: Axes, strip: _Strip, looks: dict[str, Look], sparsity: float) -> None:
    """Plot the bars of one strip; the bar of a family has the same place in each group."""
    width = _GROUP / len(looks)
    nominal = 1 / (1 - sparsity)
    highest, ends = [nominal], [nominal]
    for i, value in enumerate(strip.values):
        for point in (p for p in strip.points if getattr(p, strip.axis) == value):
            label, reasons = family_label(point), evidence.point_reasons(point)
            at = i + (list(looks).index(label) - (len(looks) - 1) / 2) * width
            colour, hatch = looks[label].colour, looks[label].hatch
            bar: dict[str, Any] = {"color": colour, "hatch": hatch, **EDGE}
            if reasons:
                bar |= {"color": "white", "edgecolor": colour, "hatch": hatch_of(reasons)}
            axes.bar(at, point.realised, 0.9 * width, gid=f"family-{point.family}", **bar)
            draw_interval(axes, at, point.realised_ci95)
            highest.append(point.realised)
            ends += point.realised_ci95 or []
            if (bound := point.bounds.get("roofline")) is not None:
                draw_level(axes, at, 0.45 * width, bound)
                highest.append(bound)
    axes.axhline(1.0, **PARITY)
    axes.axhline(nominal, **DOTTED)
    axes.set_xticks(range(len(strip.values)), [f"{value:,}" for value in strip.values])
    axes.set_xlim(-0.5, len(strip.values) - 0.5)
    axes.set_ylim(0, min(max(ends), MOST_WHISKER * max(highest)) / _BAND)
    axes.tick_params(axis="x", length=0)
    axes.set(xlabel=_AXES[strip.axis], ylabel="speedup")
    axes.set_title(strip.title, loc="left")


def alignments(pareto: Pareto) -> Picture | MissingFigure:
    """Return the figure of realised speedup over the alignment of the kept dimensions."""
    shown = panels(pareto, _aligned)
    name, title = "alignment", "Alignment"
    if not shown:
        return MissingFigure(
            name,
            "no family has points of two alignments at one sparsity",
            "add `set: {align: [odd, just-2, just-4, just-8, 16, 128]}` to the sweep",
        )
    same = [_same_models(panel.points) for panel in shown]
    return Picture(
        stem=f"paper-{name}",
        title=title,
        alt=f"Curves of {len(points_of(shown))} results over alignments.",
        caption=f"{title}: realised speedup over what kept dimensions are rounded up to a multiple "
        "of (odd, even and just-N: of no larger power of two), each family at the sparsity with "
        "the most alignments; its roofline bound dotted. "
        f"Whiskers: 95 % intervals{_hull_words(points_of(shown))}, cut where they leave the panel."
        f"{_same_words(same)}{caption_end(pareto, shown)}",
        rows=[
            _row(panel, p, p.sparsity) | {"same_model_as": ", ".join(_others(p, groups)) or None}
            for panel, groups in zip(shown, same, strict=True)
            for p in panel.points
        ],
        plot=lambda: _alignment_figure(fit_page(shown)),
    )


def _same_models(points: Sequence[SweepPoint]) -> list[list[SweepPoint]]:
    """Return groups of points that are one model under several alignments.

    Models are the same if all of their dimensions are. Points of unknown dimensions are in no
    group.
    """
    groups: dict[Any, list[SweepPoint]] = {}
    for point in points:
        if point.dimensions:
            key = family_label(point), msgspec.json.encode(point.dimensions, order="sorted")
            groups.setdefault(key, []).append(point)
    return [
        sorted(group, key=lambda point: _sort_key(alignment(point) or ""))
        for group in groups.values()
        if len(group) > 1
    ]


def _others(point: SweepPoint, groups: Sequence[Sequence[SweepPoint]]) -> list[str]:
    """Return the alignments of the points that are the same model as this one."""
    own = next((group for group in groups if any(member is point for member in group)), ())
    return [alignment(member) or "" for member in own if member is not point]


def _same_words(of_panels: Sequence[Sequence[Sequence[SweepPoint]]]) -> str:
    """Return a sentence for a caption; empty where every point is a model of its own."""
    words = dict.fromkeys(
        f"{family_label(group[0])} {' = '.join(alignment(point) or '' for point in group)}"
        for groups in of_panels
        for group in groups
    )
    if not words:
        return ""
    return f" Points with = are the same model, as all dimensions are equal: {'; '.join(words)}."


def _aligned(points: Sequence[SweepPoint]) -> list[SweepPoint]:
    """Return the points of each family at the sparsity with the most alignments.

    Of several such sparsities the largest is taken. A family with one alignment has no points.
    """
    groups: dict[str, dict[float, list[SweepPoint]]] = {}
    for point in points:
        if alignment(point) is not None and point.sparsity is not None:
            by_sparsity = groups.setdefault(family_label(point), {})
            by_sparsity.setdefault(point.sparsity, []).append(point)
    most = [
        max(by_sparsity.items(), key=lambda item: (len(item[1]), item[0]))[1]
        for by_sparsity in groups.values()
    ]
    return [point for of_family in most if len(of_family) > 1 for point in of_family]


def _sort_key(align: str) -> tuple[int, int]:
    """Return the place of an alignment among others, by size.

    Of one size, just that (odd, even) comes first, then multiples, then the name of what families
    round to. What is no alignment comes last.
    """
    size = size_of(align)
    if not size:
        return 1 << 30, 0
    return size, 0 if is_just(align) else 1 if align.isdigit() else 2


def _alignment_figure(shown: Sequence[Panel]) -> Figure:
    figure, every = panel_grid(shown, 2.1)
    points = points_of(shown)
    aligns = sorted({align for p in points if (align := alignment(p))}, key=_sort_key)
    looks = looks_of(points)
    for axes, panel in every:
        for i, (name, look) in enumerate(looks.items()):
            aside = 0.08 * (i - (len(looks) - 1) / 2)
            own = [point for point in panel.points if family_label(point) == name]
            places = {aligns.index(alignment(p) or "") + aside: p for p in own}
            _plot_family(axes, dict(sorted(places.items())), look)
            for group in _same_models(own):
                marked = [(x, p.realised) for x, p in places.items() if p in group]
                for at in marked:
                    text: dict[str, Any] = {"ha": "left", "va": "bottom", "fontsize": USUAL}
                    text |= {"xytext": (4, 1), "textcoords": "offset points"}
                    axes.annotate("=", at, color=look.colour, **text)
        axes.axhline(1.0, **PARITY)
        axes.set_xticks(range(len(aligns)), aligns)
        axes.set_xlim(-0.4, len(aligns) - 0.6)
        heights = [h or 0.0 for p in panel.points for h in (p.realised, p.bounds.get("roofline"))]
        axes.set_ylim(0, min(axes.get_ylim()[1], MOST_WHISKER * max(1.0, *heights)))
        axes.set(xlabel="alignment of kept dimensions", ylabel="speedup, dense ÷ pruned")
    line: dict[str, Any] = {"markersize": 5, "linewidth": 0.9}
    entries: list[Any] = [
        line_entry(_with_sparsity(name, points), color=look.colour, marker=look.marker, **line)
        for name, look in looks.items()
    ]
    if any(point.bounds.get("roofline") for point in points):
        entries.append(line_entry("roofline bound", **DOTTED))
    legend_below(figure, entries + reason_patches(points))
    return figure


def _with_sparsity(name: str, points: Sequence[SweepPoint]) -> str:
    """Return a family, and the sparsity that is shown of it if that is one everywhere."""
    sparsities = {point.sparsity for point in points if family_label(point) == name}
    label = with_marks(name, points)
    return f"{label}, s = {sparsities.pop():g}" if len(sparsities) == 1 else label


def _plot_family(axes: Axes, points: dict[float, SweepPoint], look: Look) -> None:
    """Plot the points of a family by their places on the axis, and their bounds."""
    line: dict[str, Any] = {"color": look.colour, "linewidth": 0.9}
    axes.plot(list(points), [point.realised for point in points.values()], **line)
    bounds = [(x, bound) for x, p in points.items() if (bound := p.bounds.get("roofline"))]
    if bounds:
        axes.plot(*zip(*bounds, strict=True), linestyle=":", **line)
    for x, point in points.items():
        intervals, reasons = (None, point.realised_ci95), evidence.point_reasons(point)
        mark = dot(axes, (x, point.realised), intervals, look, reasons=reasons)
        mark.set_gid(f"family-{point.family}")
