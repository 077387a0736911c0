"""Figures of one run or pair: in, a Phase; out, figures.

kinds: busy time by kind; roofline: calls as points, sized by time, under the ceilings; bounds: time
by kind and bound; layers: time of each layer by role; waves: predicted time over N; experts: how
evenly tokens are spread. Where there is a dense side, the first four show it too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter, StrMethodFormatter

from prunescope.analysis.report.anatomy_view import (
    MOST_KINDS,
    Ceiling,
    ceilings,
    largest_kinds,
    longest_roles,
    numbered_layers,
    shapes_with_curves,
    step_name,
    visible_points,
)
from prunescope.analysis.report.figure_style import (
    EDGE,
    THIN,
    add_title,
    bar_entry,
    blank_figure,
    ground,
    label_rows,
    legend_below,
    line_entry,
    no_evidence,
    page_axes,
    page_strips,
    row_axes,
)
from prunescope.analysis.report.label_places import Label, Obstacles, place_labels
from prunescope.analysis.report.ledger_view import is_visible
from prunescope.analysis.report.looks import BOUNDS, DENSE, PRUNED, SERIES, kind_look
from prunescope.analysis.report.titles import short
from prunescope.analysis.schema.anatomy import RooflinePoint, Shape
from prunescope.analysis.schema.report import Phase
from prunescope.analysis.schema.sides import DeviceUsed
from prunescope.taxonomy import numbers
from prunescope.taxonomy.runs.run_quality import RANDOM_IDS

_TIMES = 4  # from this ratio of the longest to the shortest curve on, N is on a logarithmic axis
_LARGEST, _SMALLEST = 90.0, 8.0  # area of a point
_MOST_LABELS = 8  # points that are named by their role
_PIECES = 40  # of the rising part of a ceiling, around which labels stand
_TERA = 1e12
_STROKES = {  # of a ceiling, by whether its peaks are the second ones, and fp32 is split
    (False, False): "-", (True, False): (0, (4, 2)), (False, True): (0, (1, 1)),
    (True, True): (0, (4, 2, 1, 2)),
}  # fmt: skip
_CELLS = "cividis"  # even in lightness, and the same to the colour-blind
# Fields of LayerRouting that the figure of experts shows, by their labels.
_EXPERT_STRIPS = {
    "distinct": "distinct a step", "fullest": "fullest ÷ mean", "entropy": "entropy",
}  # fmt: skip
_ROOM = 1.3


def kinds_figure(phase: Phase, name: str, *, title: str = "") -> Figure | None:
    """Plot busy time by kind, for a report without a baseline."""
    if not phase.kinds:
        return None
    ranked = sorted(phase.busy_by_kind.items(), key=lambda item: -item[1])[:MOST_KINDS]
    unit = numbers.scale(ns for _, ns in ranked)
    figure, axes = row_axes(len(ranked))
    top = max(ns for _, ns in ranked) / unit.per or 1.0
    for i, (kind, ns) in enumerate(ranked):
        look = kind_look(kind.partition(",")[0])
        bar: dict[str, Any] = {"color": look.colour, "hatch": look.hatch, **EDGE}
        axes.barh(i, ns / unit.per, 0.68, gid=f"kind-{kind.partition(',')[0]}", **bar)
        axes.text(ns / unit.per + 0.02 * top, i, unit.text(ns), va="center")
    axes.set_xlim(0, 1.25 * top)
    label_rows(axes, [short(kind) for kind, _ in ranked])
    add_title(figure, title)
    axes.set_xlabel(f"busy time of {step_name(phase)} ({unit.unit}), {short(name)}")
    return figure


def roofline_figure(phase: Phase, device: DeviceUsed, subject: str) -> Figure | None:
    """Plot calls with FLOPs as points under the ceilings of the device; their area shows time.

    The points of the pruned side, or of a run alone, are full, and those of the dense one hollow.
    The largest are named by their role.

    Args:
        phase: The phase; points below a thousandth of the time are left out.
        device: The device with its peaks.
        subject: Model, method and phase, for the title.
    """
    sides = {side: visible_points(anatomy) for side, anatomy in phase.anatomies.items()}
    every = [(side, point) for side, points in sides.items() for point in points]
    tops = ceilings(device, (point for _, point in every))
    if not every or not tops:
        return None
    figure, axes = page_axes(3.1, "Roofline: calls with FLOPs as points, area by time", subject)
    rates = [_rate(point) for _, point in every]
    unit, per = ("TFLOP/s", 1e12) if max(rates) >= _TERA else ("GFLOP/s", 1e9)
    most = max(point.busy_ns for _, point in every)
    obstacles = Obstacles()
    for side, point in every:
        look, area = kind_look(point.kind), max(_SMALLEST, _LARGEST * point.busy_ns / most)
        at = point.flop / point.bytes, _rate(point) / per
        dot: dict[str, Any] = {"marker": look.marker, "linewidths": 0.7, "zorder": 3}
        dot |= {"facecolors": "none" if side == "dense" else look.colour, "alpha": 0.8}
        dot["edgecolors"] = look.colour if side == "dense" else "black"
        axes.scatter([at[0]], [at[1]], s=area, gid=f"{side or 'step'}-{point.role}", **dot)
        obstacles.add(at, None, None)
    levels = [top.flop_per_s / per for top in tops]
    knees = [top.flop_per_s / top.byte_per_s for top in tops]
    left, right = _decades([*(x for x, _ in obstacles.marks), *knees])
    black: dict[str, Any] = {"color": "black", "linewidth": 0.8}
    for top, level, knee in zip(tops, levels, knees, strict=True):
        corners = [left, knee, right], [left * top.byte_per_s / per, level, level]
        stroke = _STROKES[top.is_second, top.is_split]
        axes.plot(*corners, linestyle=stroke, gid="ceiling", **black)
        slope = [left * (knee / left) ** (i / _PIECES) for i in range(_PIECES + 1)]
        rising = [(x, x * top.byte_per_s / per) for x in slope]
        obstacles.lines += [*pairwise(rising), ((knee, level), (right, level))]
    axes.set(xscale="log", yscale="log", xlim=(left, right))
    speeds = [y for _, y in obstacles.marks]
    axes.set_ylim(min(_decades(speeds)[0], min(levels) / 10), 2 * max(*levels, *speeds))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(_format_tick))
        axis.set_minor_formatter(NullFormatter())
    axes.set(xlabel="FLOP per compulsory byte", ylabel=unit)
    _add_roofline_legend(figure, sides, tops)
    figure.draw_without_rendering()
    place_labels(axes, _role_labels(sides, per), obstacles)
    return figure


def _rate(point: RooflinePoint) -> float:
    """Return the FLOP/s of the calls of a point, at the clock that its time rests on."""
    return point.flop * point.count / point.clock_ns * 1e9


def _add_roofline_legend(
    figure: Figure, sides: dict[str | None, list[RooflinePoint]], tops: Sequence[Ceiling]
) -> None:
    """Name kinds, sides and ceilings below the axes."""
    dot: dict[str, Any] = {"linestyle": "", "markersize": 4, "markeredgewidth": 0.5}
    kinds = dict.fromkeys(point.kind for points in sides.values() for point in points)
    looks = {kind: kind_look(kind) for kind in kinds}
    entries = [
        line_entry(short(kind), color=look.colour, marker=look.marker, **dot)
        for kind, look in looks.items()
    ]
    if len(sides) > 1:
        words = {"dense, hollow": "white", "pruned": "#555555"}
        entries += [
            line_entry(name, color="#555555", marker="o", markerfacecolor=face, **dot)
            for name, face in words.items()
        ]
    for top in tops:
        stroke = _STROKES[top.is_second, top.is_split]
        entries.append(line_entry(top.name, linestyle=stroke, color="black", linewidth=0.8))
    legend_below(figure, entries)


def _role_labels(sides: dict[str | None, list[RooflinePoint]], per: float) -> list[Label]:
    """Return the roles of the largest points with their places, each role once."""
    shown = sides.get("pruned") or next(iter(sides.values()))
    largest: dict[str, RooflinePoint] = {}
    for point in sorted(shown, key=lambda point: -point.busy_ns):
        largest.setdefault(point.role, point)
    return [
        (point.flop / point.bytes, _rate(point) / per, short(role))
        for role, point in list(largest.items())[:_MOST_LABELS]
    ]


def _format_tick(value: float, _: int) -> str:
    """Format a tick of a logarithmic axis without a power of ten."""
    return f"{value:,.0f}" if value >= 1 else f"{value:g}"


def _decades(values: list[float]) -> tuple[float, float]:
    """Return the powers of ten around positive values, with room for a point at either end."""
    low, high = math.log10(min(values) / _ROOM), math.log10(max(values) * _ROOM)
    return 10 ** math.floor(low), 10 ** math.ceil(high)


def bounds_figure(phase: Phase, subject: str) -> Figure | None:
    """Plot busy time by kind, and that of each kind by its bound; dense above pruned.

    Args:
        phase: The phase.
        subject: Model, method and phase, for the title.
    """
    sides = phase.anatomies
    kinds = largest_kinds(sides.values())
    if not kinds:
        return None
    rows = [
        (_row_name(kind, side, is_first=i == 0), anatomy.kind_bounds.get(kind, {}))
        for kind in kinds
        for i, (side, anatomy) in enumerate(sides.items())
    ]
    totals = [sum(parts.values()) for _, parts in rows]
    unit = numbers.scale(totals)
    figure, axes = page_axes(1.0 + 0.17 * len(rows), "Busy time by kind and bound", subject)
    top = max(totals) / unit.per
    present = set()
    for i, ((_, parts), total) in enumerate(zip(rows, totals, strict=True)):
        left = 0.0
        for bound, look in BOUNDS.items():
            width = parts.get(bound, 0.0) / unit.per
            if is_visible([0.0, width], 1.2 * top):
                present.add(bound)
                bar: dict[str, Any] = {"color": look.colour, "hatch": look.hatch, **EDGE}
                axes.barh(i, width, 0.68, left=left, gid=f"bound-{bound}", **bar)
            left += width
        axes.text(left + 0.02 * top, i, unit.text(total), va="center")
    label_rows(axes, [name for name, _ in rows])
    for i in range(len(sides), len(rows), len(sides)):
        axes.axhline(i - 0.5, color="#CCCCCC", linewidth=0.4, zorder=0)
    axes.set_xlim(0, 1.2 * top)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(f"busy time of {step_name(phase)} ({unit.unit})")
    legend_below(figure, [bar_entry(bound, BOUNDS[bound]) for bound in BOUNDS if bound in present])
    return figure


def _row_name(kind: str, side: str | None, *, is_first: bool) -> str:
    """Return the name of a row: the kind at its first side, and the side where there are two."""
    if side is None:
        return short(kind)
    return f"{short(kind)}, {side}" if is_first else side


def layers_figure(phase: Phase, subject: str) -> Figure | None:
    """Plot the time of each layer by role, as colours; dense above pruned, on one scale.

    Args:
        phase: The phase; None is returned for fewer than two layers.
        subject: Model, method and phase, for the title.
    """
    sides = {side: numbered_layers(anatomy) for side, anatomy in phase.anatomies.items()}
    sides = {side: layers for side, layers in sides.items() if layers}
    roles = longest_roles(sides.values())
    if not roles:
        return None
    times = [ns for layers in sides.values() for layer in layers for ns in layer.roles.values()]
    unit = numbers.scale(times)
    height = 0.75 + (0.25 + 0.14 * len(roles)) * len(sides)
    figure = blank_figure(height)
    add_title(figure, f"Busy time of each layer by role\n{subject}")
    strips = figure.subplots(len(sides), 1, squeeze=False)[:, 0].tolist()
    for axes, (side, layers) in zip(strips, sides.items(), strict=True):
        cells = [[layer.roles.get(role, 0.0) / unit.per for layer in layers] for role in roles]
        look: dict[str, Any] = {"aspect": "auto", "cmap": _CELLS, "interpolation": "nearest"}
        image = axes.imshow(cells, vmin=0, vmax=max(times) / unit.per, **look)
        axes.set_yticks(range(len(roles)), [short(role) for role in roles])
        step = max(1, -(-len(layers) // 8))
        axes.set_xticks(range(0, len(layers), step), [str(layer.layer) for layer in layers[::step]])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_xlabel("layer" if side is None else f"layer, {side}")
    bar = figure.colorbar(image, ax=strips, pad=0.02, aspect=30)
    bar.set_label(f"{unit.unit}, {step_name(phase)}")
    bar.outline.set_linewidth(0.4)
    bar.ax.tick_params(length=2, width=THIN)
    return figure


def waves_figure(phase: Phase, subject: str) -> Figure | None:
    """Plot the predicted time of GEMMs over N, and mark the N that ran and the dense N.

    Args:
        phase: The phase.
        subject: Model, method and phase, for the title.
    """
    shapes = shapes_with_curves(phase)
    if not shapes:
        return None
    unit = numbers.scale(ns for shape in shapes for _, ns in shape.curve)
    figure, axes = page_axes(2.6, "Predicted time over N: tiles, waves, roofline", subject)
    entries: list[Any] = []
    is_dense_shown = False
    for i, shape in enumerate(shapes):
        n, ns = zip(*shape.curve, strict=True)
        line: dict[str, Any] = {"color": SERIES[i % len(SERIES)].colour, "linewidth": 0.9}
        # The curves are translucent because those of two GEMMs of one shape lie on each other.
        axes.plot(n, [y / unit.per for y in ns], drawstyle="steps-pre", alpha=0.85, **line)
        sizes = _mark_sizes(axes, shape, i, unit)
        is_dense_shown |= shape.dense in sizes - {shape.n}
        marker = SERIES[i % len(SERIES)].marker if shape.n in sizes else ""
        entries.append(line_entry(short(shape.role), marker=marker, markersize=4, **line))
    if is_dense_shown:
        hollow: dict[str, Any] = {"color": "black", "linestyle": "", "markerfacecolor": "white"}
        entries.append(line_entry("dense N", marker="o", markersize=4, **hollow))
    _scale_widths(axes, shapes)
    axes.set_ylim(bottom=0)
    axes.set(xlabel="N, output features", ylabel=f"{unit.unit}, {step_name(phase)}")
    legend_below(figure, entries)
    return figure


def _scale_widths(axes: Axes, shapes: Sequence[Shape]) -> None:
    """Choose the scale of the axis of N, and few enough ticks that their labels stay apart.

    The scale is logarithmic if a head of 150,000 tokens would leave the other curves less than a
    quarter of the width.
    """
    ends = [max(n for n, _ in shape.curve) for shape in shapes]
    if max(ends) > _TIMES * min(ends):
        axes.set_xscale("log")
    else:
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _mark_sizes(axes: Axes, shape: Shape, i: int, unit: numbers.Scale) -> set[int]:
    """Mark the N that ran with a full marker and the dense N with a hollow one.

    Return those of the two that lie on the curve.
    """
    ns = {int(n): ns for n, ns in shape.curve}
    look = SERIES[i % len(SERIES)]
    mark: dict[str, Any] = {"marker": look.marker, "markersize": 5, "zorder": 4}
    if shape.n in ns:
        filled = {
            **mark,
            "color": SERIES[i % len(SERIES)].colour,
            "markeredgecolor": "black",
            "markeredgewidth": 0.4,
        }
        axes.plot([shape.n], [ns[shape.n] / unit.per], **filled)
    if shape.dense in ns and shape.dense != shape.n:
        hollow = {
            **mark,
            "markerfacecolor": "white",
            "markeredgecolor": SERIES[i % len(SERIES)].colour,
        }
        axes.plot([shape.dense], [ns[shape.dense] / unit.per], **hollow)
    return ns.keys() & {n for n in (shape.n, shape.dense) if n is not None}


def experts_figure(phase: Phase, subject: str) -> Figure | None:
    """Plot how tokens are spread over experts, as three strips over the layers.

    The strips show the number of distinct experts a step, the tokens of the fullest expert over the
    mean, and the entropy.

    Args:
        phase: The phase; None is returned for one without routers.
        subject: Model, method and phase, for the title.
    """
    layers = phase.routing.layers if phase.routing else []
    if not layers:
        return None
    figure, strips = page_strips(3.1, "Tokens of experts, layer by layer", subject, 3)
    places = range(len(layers))
    step = max(1, -(-len(layers) // 8))
    names = [str(layer.layer) for layer in layers[::step]]
    is_pair = any(layer.dense_experts for layer in layers)
    is_on_random_ids = phase.token_ids == RANDOM_IDS
    line: dict[str, Any] = {"markersize": 2.5, "linewidth": 0.9}
    sides: list[tuple[str, str, dict[str, Any]]] = [
        ("", "pruned" if is_pair else "this run", {"color": PRUNED.colour, "marker": PRUNED.marker})
    ]
    if is_pair:
        sides.insert(0, ("dense_", "dense", {"color": DENSE.colour, "marker": DENSE.marker}))
    for axes, (key, label) in zip(strips, _EXPERT_STRIPS.items(), strict=True):
        top = 0.0
        for prefix, _, look in sides:
            values = [getattr(layer, prefix + key) for layer in layers]
            top = max([top, *(value for value in values if value is not None)])
            known = [math.nan if value is None else value for value in values]
            axes.plot(places, known, **look, **line)
        axes.set(ylabel=label, ylim=(0, (top or 1) * 1.1))
        axes.set_xticks(places[::step], names if axes is strips[-1] else [""] * len(names))
    strips[-1].set_xlabel("layer")
    entries: list[Any] = []
    if is_pair or is_on_random_ids:
        entries += [line_entry(name, **look, **line) for _, name, look in sides]
    if is_on_random_ids:  # the text, above all, decides which experts tokens go to
        for axes in strips:
            axes.axhspan(*axes.get_ylim(), zorder=-1, **ground([RANDOM_IDS]))
        entries.append(no_evidence([RANDOM_IDS], RANDOM_IDS))
    legend_below(figure, entries)
    return figure
