"""Figures of one run: in, a Phase or its anatomy; out, figures one column wide, None without data.

kinds: busy time by kind; roofline: calls as points, sized by time, under the ceilings; bounds: time
by kind and bound; layers: time of each layer by role; waves: predicted time over N; experts: how
evenly tokens are spread.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter, StrMethodFormatter

from prunescope.analysis.report.figure_style import (
    BOUND,
    EDGE,
    MARKERS,
    PALETTE,
    REALISED,
    THIN,
    ground,
    headed,
    labels,
    legend,
    no_evidence,
    page_axes,
    row_axes,
    wrapped_legend,
)
from prunescope.analysis.report.ledger_view import is_visible
from prunescope.analysis.report.titles import short
from prunescope.analysis.schema.anatomy import Anatomy, LayerTime, RooflinePoint, Shape
from prunescope.analysis.schema.report import Phase
from prunescope.analysis.schema.sides import DeviceUsed
from prunescope.taxonomy import numbers
from prunescope.taxonomy.dtypes import THREE_TF32, three_tf32_rate
from prunescope.taxonomy.runs.run_quality import RANDOM_IDS

_TIMES = 4  # the shortest curve of times over N: from a longer one on, N is on a logarithmic axis
_BOUND_LOOKS = {
    "compute": ("#0072B2", ""), "memory": ("#E69F00", ""), "latency": ("#CC79A7", "////"),
    "unknown": ("#DDDDDD", ""),
}  # fmt: skip
_MOST_KINDS, _MOST_ROLES, _FEWEST_LAYERS = 10, 16, 2
_LARGEST, _SMALLEST = 90.0, 5.0  # area of a point
_VISIBLE = 0.001  # of the time of all points
_TERA = 1e12
# Fields of LayerRouting that the figure of experts shows, by their labels.
_EXPERT_STRIPS = {
    "distinct": "distinct a step", "fullest": "fullest ÷ mean", "entropy": "entropy",
}  # fmt: skip
_ROOM = 1.3


def step_name(phase: Phase) -> str:
    """The step that busy times belong to: profiled, where the profiler slows the ops of a CPU."""
    return "a profiled step" if phase.is_slowed else "a step"


def kinds_figure(phase: Phase, name: str, *, title: str = "") -> Figure | None:
    """Busy time by kind, for a report without a baseline."""
    if not phase.kinds:
        return None
    ranked = sorted(phase.busy_by_kind.items(), key=lambda item: -item[1])[:10]
    unit = numbers.scale(ns for _, ns in ranked)
    figure, axes = row_axes(len(ranked))
    top = max(ns for _, ns in ranked) / unit.per or 1.0
    for i, (_, ns) in enumerate(ranked):
        axes.barh(i, ns / unit.per, 0.68, color=BOUND, **EDGE)
        axes.text(ns / unit.per + 0.02 * top, i, unit.text(ns), va="center")
    axes.set_xlim(0, 1.25 * top)
    labels(axes, [short(kind) for kind, _ in ranked])
    headed(axes, title, [])
    axes.set_xlabel(f"busy time of {step_name(phase)} ({unit.unit}), {short(name)}")
    return figure


def roofline_figure(anatomy: Anatomy, device: DeviceUsed, of: str) -> Figure | None:
    """Calls with FLOPs as points, area by time, under the ceilings of the device."""
    least = _VISIBLE * sum(p.busy_ns for p in anatomy.points)
    points = [p for p in anatomy.points if p.busy_ns > least]
    ceilings = _ceilings(device, points)
    if not points or not ceilings:
        return None
    figure, axes = page_axes(2.9, "Roofline: calls with FLOPs as points, area by time", of)
    kinds = list(dict.fromkeys(p.kind for p in points))
    colour = {kind: PALETTE[min(i, len(PALETTE) - 1)] for i, kind in enumerate(kinds)}
    names = [short(kind) for kind in kinds]
    if len(names) > len(PALETTE):  # the last colour is that of all others
        names[len(PALETTE) - 1 :] = ["other kinds"]
    most = max(p.busy_ns for p in points)
    x = [p.flop / p.bytes for p in points]
    rates = [p.flop * p.count / p.clock_ns * 1e9 for p in points]
    unit, per = ("TFLOP/s", 1e12) if max(rates) >= _TERA else ("GFLOP/s", 1e9)
    y = [rate / per for rate in rates]
    area = [max(_SMALLEST, _LARGEST * p.busy_ns / most) for p in points]
    axes.scatter(
        x,
        y,
        s=area,
        c=[colour[p.kind] for p in points],
        alpha=0.75,
        edgecolors="black",
        linewidths=0.3,
        zorder=3,
    )
    tops = [peak / per for _, peak, _, _ in ceilings]
    left, right = _decades([*x, *(peak / rate for _, peak, rate, _ in ceilings)])
    for (_, peak, rate, style), top in zip(ceilings, tops, strict=True):
        axes.plot(
            [left, peak / rate, right],
            [left * rate / per, top, top],
            color="black",
            linewidth=0.8,
            linestyle=style,
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(left, right)
    axes.set_ylim(min(_decades(y)[0], min(tops) / 10), 2 * max(*tops, *y))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(_plain))
        axis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("FLOP per compulsory byte")
    axes.set_ylabel(unit)
    handles = [
        Line2D([], [], marker="o", linestyle="", color=PALETTE[i], markersize=4, label=label)
        for i, label in enumerate(names)
    ]
    handles += [
        Line2D([], [], color="black", linewidth=0.8, linestyle=style, label=name)
        for name, _, _, style in ceilings
    ]
    wrapped_legend(figure, handles, 3)
    return figure


def _plain(value: float, _: int) -> str:
    """A tick of a logarithmic axis without mathematics."""
    return f"{value:,.0f}" if value >= 1 else f"{value:g}"


def _ceilings(
    device: DeviceUsed, points: list[RooflinePoint]
) -> list[tuple[str, float, float, Any]]:
    """(name, FLOP/s, byte/s, line style): the peaks in use, those of the data sheet next to
    measured ones, for the dtype that takes the most time, and for fp32 as three products of
    TF32."""
    time: dict[str, float] = {}
    for point in points:
        if point.dtype is not None:
            time[point.dtype] = time.get(point.dtype, 0.0) + point.busy_ns
    found: list[tuple[str, float, float, Any]] = []
    measured = bool(device.get("measured"))
    sources: list[tuple[str, Any, Any]] = [
        ("measured" if measured else "data sheet", device.get("peaks"), "-")
    ]
    if measured and device.get("sheet"):
        sources.append(("data sheet", device["sheet"], (0, (4, 2))))
    for name, peaks, style in sources:
        rates = (peaks or {}).get("dense_flop_per_s") or {}
        byte_per_s = (peaks or {}).get("byte_per_s")
        dtype = next((d for d in sorted(time, key=lambda d: -time[d]) if d in rates), None)
        if dtype is not None and byte_per_s:
            found.append((f"{dtype}, {name}", rates[dtype], byte_per_s, style))
        slower = three_tf32_rate(rates)  # its ceiling differs from that of fp32
        if THREE_TF32 in time and slower and byte_per_s:
            dots = (0, (1, 1)) if style == "-" else (0, (4, 2, 1, 2))
            found.append((f"{THREE_TF32}, {name}", slower, byte_per_s, dots))
    return found


def _decades(values: list[float]) -> tuple[float, float]:
    """The powers of ten around positive values, with room for a point at either end."""
    low, high = math.log10(min(values) / _ROOM), math.log10(max(values) * _ROOM)
    return 10 ** math.floor(low), 10 ** math.ceil(high)


def bounds_figure(anatomy: Anatomy, of: str, of_step: str) -> Figure | None:
    """Busy time by kind, and in each kind by its bound."""
    kinds = list(anatomy.kind_bounds.items())[:_MOST_KINDS]
    totals = [sum(parts.values()) for _, parts in kinds]
    if not kinds or not max(totals):
        return None
    unit = numbers.scale(totals)
    figure, axes = page_axes(1.0 + 0.19 * len(kinds), "Busy time by kind and bound", of)
    top = max(totals) / unit.per
    present = set()
    for i, ((_, parts), total) in enumerate(zip(kinds, totals, strict=True)):
        left = 0.0
        for bound, (colour, hatch) in _BOUND_LOOKS.items():
            width = parts.get(bound, 0.0) / unit.per
            if is_visible([0.0, width], 1.2 * top):
                present.add(bound)
                axes.barh(
                    i,
                    width,
                    0.68,
                    left=left,
                    color=colour,
                    hatch=hatch,
                    **EDGE,
                )
            left += width
        axes.text(left + 0.02 * top, i, unit.text(total), va="center")
    labels(axes, [short(kind) for kind, _ in kinds])
    axes.set_xlim(0, 1.2 * top)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(f"busy time of {of_step} ({unit.unit})")
    handles = [
        Patch(facecolor=c, hatch=h, **EDGE, label=bound)
        for bound, (c, h) in _BOUND_LOOKS.items()
        if bound in present
    ]
    wrapped_legend(figure, handles, len(handles))
    return figure


def layers_figure(anatomy: Anatomy, of: str, of_step: str) -> Figure | None:
    """Time of each layer by role, as colours."""
    layers = [one for one in anatomy.layers if one.layer is not None]
    roles = _ranked(layers)[:_MOST_ROLES]
    if len(layers) < _FEWEST_LAYERS or not roles:
        return None
    unit = numbers.scale(ns for one in layers for ns in one.roles.values())
    cells = [[one.roles.get(role, 0.0) / unit.per for one in layers] for role in roles]
    figure, axes = page_axes(0.95 + 0.15 * len(roles), "Busy time of each layer by role", of)
    image = axes.imshow(cells, aspect="auto", cmap="cividis", interpolation="nearest", vmin=0)
    axes.set_yticks(range(len(roles)), [short(role) for role in roles])
    step = max(1, -(-len(layers) // 8))
    axes.set_xticks(range(0, len(layers), step), [str(one.layer) for one in layers[::step]])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("layer")
    bar = figure.colorbar(image, ax=axes, pad=0.02, aspect=30)
    bar.set_label(f"{unit.unit}, {of_step}")
    bar.outline.set_linewidth(0.4)
    bar.ax.tick_params(length=2, width=THIN)
    return figure


def _ranked(layers: list[LayerTime]) -> list[str]:
    """Roles by their time over all layers; those that take a hundredth of the largest."""
    time: dict[str, float] = {}
    for one in layers:
        for role, ns in one.roles.items():
            time[role] = time.get(role, 0.0) + ns
    top = max(time.values(), default=0.0)
    return [role for role in sorted(time, key=lambda r: (-time[r], r)) if time[role] > top / 100]


def waves_figure(anatomy: Anatomy, of: str, of_step: str) -> Figure | None:
    """Predicted time of GEMMs over N, with the N that ran and the dense one."""
    shapes = [one for one in anatomy.shapes if one.curve]
    if not shapes:
        return None
    unit = numbers.scale(ns for one in shapes for _, ns in one.curve)
    figure, axes = page_axes(2.6, "Predicted time over N: tiles, waves, roofline", of)
    handles: list[Any] = []
    is_dense_shown = False
    for i, one in enumerate(shapes):
        n, ns = zip(*one.curve, strict=True)
        # Two GEMMs of one shape would lie on each other.
        line: dict[str, Any] = {"color": PALETTE[i], "linewidth": 0.9}
        times = [y / unit.per for y in ns]
        axes.plot(n, times, drawstyle="steps-pre", alpha=0.85, **line)
        sizes = _mark_sizes(axes, one, i, unit)
        is_dense_shown |= one.dense in sizes - {one.n}
        marker = MARKERS[i] if one.n in sizes else ""
        handles.append(Line2D([], [], marker=marker, markersize=4, label=short(one.role), **line))
    if is_dense_shown:
        hollow: dict[str, Any] = {"color": "black", "linestyle": "", "markerfacecolor": "white"}
        handles.append(Line2D([], [], marker="o", markersize=4, label="dense N", **hollow))
    _scale_widths(axes, shapes)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("N, output features")
    axes.set_ylabel(f"{unit.unit}, {of_step}")
    wrapped_legend(figure, handles, min(len(handles), 5))
    return figure


def _scale_widths(axes: Axes, shapes: Sequence[Shape]) -> None:
    """The axis of N: by powers of ten where a head of 150,000 tokens would leave the other curves
    less than a quarter of the width, and with few enough ticks that their labels stay apart."""
    ends = [max(n for n, _ in one.curve) for one in shapes]
    if max(ends) > _TIMES * min(ends):
        axes.set_xscale("log")
    else:
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _mark_sizes(axes: Axes, one: Shape, i: int, unit: numbers.Scale) -> set[int]:
    """The N that ran, filled, and the dense one, hollow; gives those that lie on the curve."""
    at = {int(n): ns for n, ns in one.curve}
    mark: dict[str, Any] = {"marker": MARKERS[i], "markersize": 5, "zorder": 4}
    if one.n in at:
        filled = {**mark, "color": PALETTE[i], "markeredgecolor": "black", "markeredgewidth": 0.4}
        axes.plot([one.n], [at[one.n] / unit.per], **filled)
    if one.dense in at and one.dense != one.n:
        hollow = {**mark, "markerfacecolor": "white", "markeredgecolor": PALETTE[i]}
        axes.plot([one.dense], [at[one.dense] / unit.per], **hollow)
    return at.keys() & {n for n in (one.n, one.dense) if n is not None}


def experts_figure(phase: Phase, of: str) -> Figure | None:
    """Three strips over the layers: distinct experts a step, fullest over mean, entropy."""
    layers = phase.routing.layers if phase.routing else []
    if len(layers) < _FEWEST_LAYERS:
        return None
    figure, first = page_axes(3.1, "Tokens of experts, layer by layer", of)
    first.remove()
    strips = figure.subplots(3, 1)
    places = range(len(layers))
    step = max(1, -(-len(layers) // 8))
    names = [str(one.layer) for one in layers[::step]]
    is_pair = any(one.dense_experts for one in layers)
    sides = [("", "pruned" if is_pair else "this run", REALISED, "o")]
    if is_pair:
        sides.insert(0, ("dense_", "dense", BOUND, "s"))
    for axes, (key, label) in zip(strips, _EXPERT_STRIPS.items(), strict=True):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(length=2.5, width=THIN)
        top = 0.0
        for prefix, _, colour, marker in sides:
            values = [getattr(one, prefix + key) for one in layers]
            top = max([top, *(value for value in values if value is not None)])
            axes.plot(
                places,
                [math.nan if value is None else value for value in values],
                color=colour,
                marker=marker,
                markersize=2.5,
                linewidth=0.9,
            )
        axes.set_ylabel(label)
        axes.set_ylim(0, (top or 1) * 1.1)
        last = axes is strips[-1]
        axes.set_xticks(places[::step], names if last else [""] * len(names))
    strips[-1].set_xlabel("layer")
    marks: list[Patch | Line2D] = []
    if is_pair or phase.token_ids == RANDOM_IDS:
        marks += [
            Line2D([], [], color=colour, marker=marker, markersize=2.5, linewidth=0.9, label=name)
            for _, name, colour, marker in sides
        ]
    if phase.token_ids == RANDOM_IDS:  # which experts tokens go to depends on the text above all
        for axes in strips:
            axes.axhspan(*axes.get_ylim(), zorder=-1, **ground([RANDOM_IDS]))
        marks.append(no_evidence([RANDOM_IDS], RANDOM_IDS))
    if marks:
        legend(figure, marks, len(marks))
    return figure
