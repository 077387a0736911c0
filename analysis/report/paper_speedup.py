"""Fig. 5 of the paper, and its study of alignment: realised speedups next to their bounds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from prunescope.analysis.report.escape import clean
from prunescope.analysis.report.figure_style import (
    MOST_WHISKER,
    family_looks,
    hatch_of,
    reason_patches,
)
from prunescope.analysis.report.paper_figure import (
    PAGE,
    MissingFigure,
    Panel,
    PaperFigure,
    Row,
    alignment,
    ends,
    families_of,
    family_label,
    grid_of,
    mark_words,
    not_shown,
    of_sweep,
    on_a_page,
    panels,
    patch,
    points_of,
    size_of,
    two_columns,
    usually_aligned,
    with_marks,
)
from prunescope.analysis.report.pareto_figures import dot, legend_below
from prunescope.analysis.schema.pareto import Pareto, SweepPoint
from prunescope.analysis.summary import evidence
from prunescope.taxonomy.keep import is_just
from prunescope.taxonomy.runs.run_setting import RunSetting

_GROUP = 0.84  # of the distance of two groups of bars
_BOUND = Line2D([], [], color="black", linewidth=1.2, label="roofline bound")
_BAND = 0.94  # of a panel's height that the largest speedup takes


@dataclass(frozen=True)
class _Strip:
    """A panel of bars: groups along one axis of the workload, all else fixed."""

    phase: str
    how: RunSetting  # with the batch and length that stay
    axis: str  # "prompt_len" or "batch"
    points: list[SweepPoint]
    shared: frozenset[str] = frozenset()  # as of a Panel

    @property
    def values(self) -> list[int]:
        """The values of the axis at which there are bars."""
        return sorted({getattr(p, self.axis) for p in self.points})

    @property
    def title(self) -> str:
        """The phase and what is fixed."""
        fixed = {
            "batch": f"{self.how.prompt_len:,} tokens",
            "prompt_len": f"batch {self.how.batch}",
        }
        how = [word for word in self.how.where.split(", ")[2:] if word not in self.shared]
        return clean(", ".join([self.phase, fixed[self.axis], *how]))


def speedups(found: Pareto) -> Iterator[PaperFigure | MissingFigure]:
    """A figure a sparsity: families over length and over batch, with nominal and bound."""
    sparsities = sorted({p.sparsity for p in points_of(panels(found)) if p.sparsity is not None})
    if not sparsities:
        key = "give `families` and `sparsities`"
        yield MissingFigure("speedup", "no point has a nominal sparsity", key)
    for sparsity in sparsities:
        yield _speedup(found, sparsity)


def _speedup(found: Pareto, sparsity: float) -> PaperFigure:
    def chosen(points: list[SweepPoint]) -> list[SweepPoint]:
        return usually_aligned(p for p in points if sparsity in (p.sparsity, *p.sparsities))

    shown = panels(found, chosen)
    strips = _strips(shown)
    points = points_of(shown)
    title = f"Speedup at s = {sparsity:g}"
    return PaperFigure(
        name=f"speedup-{sparsity:g}",
        title=title,
        caption=f"{title} by family, batch and length: realised (bars), nominal 1/(1 − s) "
        "(dotted) and roofline bound of each (line at its bar). Whiskers: 95 % intervals"
        f"{_of_selections(points)}, cut where they leave the panel.{mark_words(points)} "
        f"{of_sweep(found, points)}",
        rows=[_row(panel, p, sparsity) for panel in shown for p in panel.points],
        plot=lambda: _speedup_figure(strips, sparsity),
    )


def _of_selections(points: Sequence[SweepPoint]) -> str:
    """The meaning of an interval where a point has several random selections."""
    count = max((len(p.draws) for p in points), default=1)
    return f", the hull over {count} random selections" if count > 1 else ""


def _row(panel: Panel, p: SweepPoint, sparsity: float | None) -> Row:
    return {
        **panel.row_of(p),
        "sparsity": sparsity,
        "align": alignment(p),
        "realised": p.realised,
        **ends(p.realised_ci95),
        "nominal": None if sparsity is None else 1 / (1 - sparsity),
        **{f"{name}_bound": p.bounds.get(name) for name in ("flop", "coverage", "roofline")},
        "flop_sparsity": p.flop_sparsity,
        "n": max(1, len(p.draws)),
        "timing_valid": p.timing_valid,
    }


def _strips(shown: Sequence[Panel]) -> list[_Strip]:
    """Lengths at the smallest batch and batches at the smallest length, for each phase and way to
    run; a batch or length that has no other is no strip of its own."""
    ways: dict[tuple[str, RunSetting], list[SweepPoint]] = {}
    for panel in shown:
        how = msgspec.structs.replace(panel.cell.setting, batch=1, prompt_len=1)
        ways.setdefault((panel.phase, how), []).extend(panel.points)
    found = []
    shared = shown[0].shared if shown else frozenset[str]()
    for (phase, how), points in ways.items():
        batch, length = min(p.batch for p in points), min(p.prompt_len for p in points)
        fixed = msgspec.structs.replace(how, batch=batch, prompt_len=length)
        strips = [
            _Strip(phase, fixed, "prompt_len", [p for p in points if p.batch == batch], shared),
            _Strip(phase, fixed, "batch", [p for p in points if p.prompt_len == length], shared),
        ]
        found += [s for s in strips if len(s.values) > 1] or strips[:1]
    return found


def _speedup_figure(strips: Sequence[_Strip], sparsity: float) -> Figure:
    points = [p for strip in strips for p in strip.points]
    families = families_of(points)
    colours = {name: colour for name, (colour, _) in family_looks(families).items()}
    figure, every = two_columns(len(strips), 1.9, (PAGE / 2, 0.75 * PAGE))
    for axes, strip in zip(every, strips, strict=True):
        _bars(axes, strip, colours, sparsity)
    handles: list[Any] = [patch(colours[name], with_marks(name, points)) for name in families]
    nominal = f"nominal, {1 / (1 - sparsity):.2f}×"
    handles += [_BOUND] if any(p.bounds.get("roofline") for p in points) else []
    handles += [Line2D([], [], color="black", linewidth=0.8, linestyle=":", label=nominal)]
    handles += reason_patches(points)
    legend_below(figure, handles, columns=6)
    return figure


def _bars(axes: Axes, strip: _Strip, colours: dict[str, str], sparsity: float) -> None:
    width = _GROUP / len(colours)
    nominal = 1 / (1 - sparsity)
    highest, ends = [nominal], [nominal]
    for i, value in enumerate(strip.values):
        for point in (p for p in strip.points if getattr(p, strip.axis) == value):
            j = list(colours).index(family_label(point))
            at = i + (j - (len(colours) - 1) / 2) * width
            colour, reasons = colours[family_label(point)], evidence.point_reasons(point)
            look: dict[str, Any] = {"color": colour, "edgecolor": "black", "linewidth": 0.4}
            if reasons:
                look |= {"color": "white", "edgecolor": colour, "hatch": hatch_of(reasons)}
            axes.bar(at, point.realised, 0.9 * width, **look)
            if point.realised_ci95 is not None:
                axes.plot([at, at], point.realised_ci95, color="black", linewidth=0.7)
            highest.append(point.realised)
            ends += point.realised_ci95 or []
            if (bound := point.bounds.get("roofline")) is not None:
                half = 0.45 * width
                axes.plot([at - half, at + half], [bound] * 2, color="black", linewidth=1.2)
                highest.append(bound)
    axes.axhline(1.0, color="black", linewidth=0.6, linestyle=(0, (3, 2)))
    axes.axhline(nominal, color="black", linewidth=0.8, linestyle=":")
    axes.set_xticks(range(len(strip.values)), [f"{value:,}" for value in strip.values])
    axes.set_xlim(-0.5, len(strip.values) - 0.5)
    axes.set_ylim(0, min(max(ends), MOST_WHISKER * max(highest)) / _BAND)
    axes.tick_params(axis="x", length=0)
    names = {"batch": "batch (sequences)", "prompt_len": "length (tokens)"}
    axes.set_xlabel(names[strip.axis])
    axes.set_ylabel("speedup, dense ÷ pruned")
    axes.set_title(strip.title, loc="left", fontsize=7)


def alignments(found: Pareto) -> PaperFigure | MissingFigure:
    """Realised speedup over the alignment of the kept dimensions."""
    shown = panels(found, _aligned)
    name, title = "alignment", "Alignment"
    if not shown:
        return MissingFigure(
            name,
            "no family has points of two alignments at one sparsity",
            "add `set: {align: [odd, just-2, just-4, just-8, 16, 128]}` to the sweep",
        )
    same = [_same_models(panel.points) for panel in shown]
    points = points_of(shown)
    return PaperFigure(
        name=name,
        title=title,
        caption=f"{title}: realised speedup over what kept dimensions are rounded up to a multiple "
        "of (odd, even and just-N: of no larger power of two), each family at the sparsity with "
        "the most alignments; its roofline bound dotted. "
        f"Whiskers: 95 % intervals{_of_selections(points)}, cut where they leave the panel."
        f"{_same_words(same)}{mark_words(points)}{not_shown(shown)} {of_sweep(found, points)}",
        rows=[
            _row(panel, p, p.sparsity) | {"same_model_as": ", ".join(_others(p, groups)) or None}
            for panel, groups in zip(shown, same, strict=True)
            for p in panel.points
        ],
        plot=lambda: _alignment_figure(on_a_page(shown)),
    )


def _same_models(points: Sequence[SweepPoint]) -> list[list[SweepPoint]]:
    """The groups of a panel's points that are one model under several alignments, by their
    dimensions; none of points whose dimensions are not known."""
    groups: list[list[SweepPoint]] = []
    for point in points:
        for group in groups:
            one = group[0]
            if point.dimensions and (family_label(one), one.dimensions) == (
                family_label(point),
                point.dimensions,
            ):
                group.append(point)
                break
        else:
            groups.append([point])
    return [sorted(group, key=_place) for group in groups if len(group) > 1]


def _others(point: SweepPoint, groups: Sequence[Sequence[SweepPoint]]) -> list[str]:
    """The alignments of the points that are the same model as this one."""
    own = next((group for group in groups if any(one is point for one in group)), ())
    return [alignment(one) or "" for one in own if one is not point]


def _same_words(of_panels: Sequence[Sequence[Sequence[SweepPoint]]]) -> str:
    """A sentence for a caption; empty where every point is a model of its own."""
    words = dict.fromkeys(
        f"{family_label(group[0])} {' = '.join(alignment(one) or '' for one in group)}"
        for groups in of_panels
        for group in groups
    )
    if not words:
        return ""
    return f" Points with = are the same model, as all dimensions are equal: {'; '.join(words)}."


def _place(point: SweepPoint) -> tuple[int, int]:
    return _order(alignment(point) or "")


def _aligned(points: Sequence[SweepPoint]) -> list[SweepPoint]:
    """For each family, its points at the sparsity with the most alignments (the largest of
    several); none for a family with one alignment."""
    groups: dict[str, dict[float, list[SweepPoint]]] = {}
    for point in points:
        if alignment(point) is not None and point.sparsity is not None:
            of_family = groups.setdefault(family_label(point), {})
            of_family.setdefault(point.sparsity, []).append(point)
    best = [max(by.items(), key=lambda one: (len(one[1]), one[0]))[1] for by in groups.values()]
    return [point for of_family in best if len(of_family) > 1 for point in of_family]


def _order(align: str) -> tuple[int, int]:
    """The sort key of an alignment, by size: just that (odd, even), then multiples, then the name
    of what families round to; last what is no alignment."""
    size = size_of(align)
    if not size:
        return 1 << 30, 0
    return size, 0 if is_just(align) else 1 if align.isdigit() else 2


def _alignment_figure(shown: Sequence[Panel]) -> Figure:
    figure, every = grid_of(shown, 2.1)
    points = points_of(shown)
    aligns = sorted({align for p in points if (align := alignment(p))}, key=_order)
    looks = family_looks(families_of(points))
    for axes, panel in zip(every, shown, strict=True):
        for i, (name, look) in enumerate(looks.items()):
            aside = 0.08 * (i - (len(looks) - 1) / 2)
            at = {
                aligns.index(alignment(p) or "") + aside: p
                for p in panel.points
                if family_label(p) == name
            }
            _line(axes, dict(sorted(at.items())), look)
            for group in _same_models([p for p in panel.points if family_label(p) == name]):
                _join(axes, [(x, p.realised) for x, p in at.items() if p in group], look[0])
        axes.axhline(1.0, color="black", linewidth=0.6, linestyle=(0, (3, 2)))
        axes.set_xticks(range(len(aligns)), aligns)
        axes.set_xlim(-0.4, len(aligns) - 0.6)
        speeds = [p.realised for p in panel.points]
        speeds += [p.bounds.get("roofline") or 0.0 for p in panel.points]
        most = MOST_WHISKER * max(1.0, *speeds)
        axes.set_ylim(0, min(axes.get_ylim()[1], most))
        axes.set_xlabel("alignment of kept dimensions")
        axes.set_ylabel("speedup, dense ÷ pruned")
    handles: list[Any] = [
        Line2D(
            [],
            [],
            color=colour,
            marker=marker,
            markersize=5,
            linewidth=0.9,
            label=_with_sparsity(name, points),
        )
        for name, (colour, marker) in looks.items()
    ]
    if any(p.bounds.get("roofline") for p in points):
        dots: dict[str, Any] = {"color": "black", "linewidth": 0.8, "linestyle": ":"}
        handles.append(Line2D([], [], label="roofline bound", **dots))
    handles += reason_patches(points)
    legend_below(figure, handles, columns=5)
    return figure


def _join(axes: Axes, at: Sequence[tuple[float, float]], colour: str) -> None:
    """Mark points that are the same model."""
    for x, y in at:
        look: dict[str, Any] = {"ha": "left", "va": "bottom", "fontsize": 7, "color": colour}
        axes.annotate("=", (x, y), (4, 1), textcoords="offset points", **look)


def _with_sparsity(name: str, points: Sequence[SweepPoint]) -> str:
    """A family and the sparsity that is shown of it, where that is one everywhere."""
    found = {p.sparsity for p in points if family_label(p) == name}
    label = with_marks(name, points)
    return f"{label}, s = {found.pop():g}" if len(found) == 1 else label


def _line(axes: Axes, points: dict[float, SweepPoint], look: tuple[str, str]) -> None:
    """The points of a family by their places on the axis, and their bounds."""
    colour, marker = look
    speeds = [p.realised for p in points.values()]
    axes.plot(list(points), speeds, color=colour, linewidth=0.9)
    bounds = [(x, bound) for x, p in points.items() if (bound := p.bounds.get("roofline"))]
    if bounds:
        axes.plot(*zip(*bounds, strict=True), color=colour, linewidth=0.9, linestyle=":")
    for x, point in points.items():
        spreads, reasons = (None, point.realised_ci95), evidence.point_reasons(point)
        at = (x, point.realised)
        dot(axes, at, spreads, colour, marker, full=True, label=None, reasons=reasons)
