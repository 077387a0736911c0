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
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter, StrMethodFormatter

from prunescope.analysis.report.figure_style import (
    BOUND,
    EDGE,
    MARKERS,
    PALETTE,
    REALISED,
    THIN,
    add_legend,
    add_title_and_legend,
    add_wrapped_legend,
    bar_entry,
    ground,
    label_rows,
    line_entry,
    no_evidence,
    page_axes,
    page_strips,
    row_axes,
)
from prunescope.analysis.report.ledger_view import is_visible
from prunescope.analysis.report.titles import short
from prunescope.analysis.schema.anatomy import Anatomy, RooflinePoint, Shape
from prunescope.analysis.schema.report import Phase
from prunescope.analysis.schema.sides import DeviceUsed
from prunescope.taxonomy import numbers
from prunescope.taxonomy.dtypes import THREE_TF32, three_tf32_rate
from prunescope.taxonomy.runs.run_quality import RANDOM_IDS

_TIMES = 4  # from this ratio of the longest to the shortest curve on, N is on a logarithmic axis
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
    """Return which step busy times belong to: a profiled one if the profiler slows the ops."""
    return "a profiled step" if phase.is_slowed else "a step"


def kinds_figure(phase: Phase, name: str, *, title: str = "") -> Figure | None:
    """Plot busy time by kind, for a report without a baseline."""
    if not phase.kinds:
        return None
    ranked = sorted(phase.busy_by_kind.items(), key=lambda item: -item[1])[:_MOST_KINDS]
    unit = numbers.scale(ns for _, ns in ranked)
    figure, axes = row_axes(len(ranked))
    top = max(ns for _, ns in ranked) / unit.per or 1.0
    for i, (_, ns) in enumerate(ranked):
        axes.barh(i, ns / unit.per, 0.68, color=BOUND, **EDGE)
        axes.text(ns / unit.per + 0.02 * top, i, unit.text(ns), va="center")
    axes.set_xlim(0, 1.25 * top)
    label_rows(axes, [short(kind) for kind, _ in ranked])
    add_title_and_legend(figure, title, [])
    axes.set_xlabel(f"busy time of {step_name(phase)} ({unit.unit}), {short(name)}")
    return figure


def roofline_figure(anatomy: Anatomy, device: DeviceUsed, subject: str) -> Figure | None:
    """Plot calls with FLOPs as points under the ceilings of the device; their area shows time.

    Args:
        anatomy: The anatomy of the phase; points below a thousandth of the time are left out.
        device: The device with its peaks.
        subject: Model, method and phase, for the title.
    """
    least = _VISIBLE * sum(point.busy_ns for point in anatomy.points)
    points = [point for point in anatomy.points if point.busy_ns > least]
    ceilings = _ceilings(device, points)
    if not points or not ceilings:
        return None
    figure, axes = page_axes(2.9, "Roofline: calls with FLOPs as points, area by time", subject)
    kinds = list(dict.fromkeys(point.kind for point in points))
    colour = {kind: PALETTE[min(i, len(PALETTE) - 1)] for i, kind in enumerate(kinds)}
    names = [short(kind) for kind in kinds]
    if len(names) > len(PALETTE):  # the last colour is shared by all other kinds
        names[len(PALETTE) - 1 :] = ["other kinds"]
    most = max(point.busy_ns for point in points)
    x = [point.flop / point.bytes for point in points]
    rates = [point.flop * point.count / point.clock_ns * 1e9 for point in points]
    unit, per = ("TFLOP/s", 1e12) if max(rates) >= _TERA else ("GFLOP/s", 1e9)
    y = [rate / per for rate in rates]
    look: dict[str, Any] = {"alpha": 0.75, "edgecolors": "black", "linewidths": 0.3, "zorder": 3}
    look["s"] = [max(_SMALLEST, _LARGEST * point.busy_ns / most) for point in points]
    axes.scatter(x, y, c=[colour[point.kind] for point in points], **look)
    tops = [peak / per for _, peak, _, _ in ceilings]
    left, right = _decades([*x, *(peak / rate for _, peak, rate, _ in ceilings)])
    black: dict[str, Any] = {"color": "black", "linewidth": 0.8}
    for (_, peak, rate, style), top in zip(ceilings, tops, strict=True):
        corners = [left, peak / rate, right], [left * rate / per, top, top]
        axes.plot(*corners, linestyle=style, **black)
    axes.set(xscale="log", yscale="log", xlim=(left, right))
    axes.set_ylim(min(_decades(y)[0], min(tops) / 10), 2 * max(*tops, *y))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(_format_tick))
        axis.set_minor_formatter(NullFormatter())
    axes.set(xlabel="FLOP per compulsory byte", ylabel=unit)
    dot: dict[str, Any] = {"marker": "o", "linestyle": "", "markersize": 4}
    entries = [line_entry(name, color=PALETTE[i], **dot) for i, name in enumerate(names)]
    entries += [line_entry(name, linestyle=style, **black) for name, _, _, style in ceilings]
    add_wrapped_legend(figure, entries, 3)
    return figure


def _format_tick(value: float, _: int) -> str:
    """Format a tick of a logarithmic axis without a power of ten."""
    return f"{value:,.0f}" if value >= 1 else f"{value:g}"


def _ceilings(
    device: DeviceUsed, points: list[RooflinePoint]
) -> list[tuple[str, float, float, Any]]:
    """Return the ceilings of a roofline: (name, FLOP/s, byte/s, line style).

    They are those of the dtype that takes the most time, at the peaks in use, and next to measured
    peaks also at those of the data sheet. If fp32 runs as three products of TF32, that has a
    ceiling of its own.
    """
    time: dict[str, float] = {}
    for point in points:
        if point.dtype is not None:
            time[point.dtype] = time.get(point.dtype, 0.0) + point.busy_ns
    ceilings: list[tuple[str, float, float, Any]] = []
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
            ceilings.append((f"{dtype}, {name}", rates[dtype], byte_per_s, style))
        slower = three_tf32_rate(rates)  # its ceiling differs from that of fp32
        if THREE_TF32 in time and slower and byte_per_s:
            dots = (0, (1, 1)) if style == "-" else (0, (4, 2, 1, 2))
            ceilings.append((f"{THREE_TF32}, {name}", slower, byte_per_s, dots))
    return ceilings


def _decades(values: list[float]) -> tuple[float, float]:
    """Return the powers of ten around positive values, with room for a point at either end."""
    low, high = math.log10(min(values) / _ROOM), math.log10(max(values) * _ROOM)
    return 10 ** math.floor(low), 10 ** math.ceil(high)


def bounds_figure(anatomy: Anatomy, subject: str, of_step: str) -> Figure | None:
    """Plot busy time by kind, and that of each kind by its bound.

    Args:
        anatomy: The anatomy of the phase.
        subject: Model, method and phase, for the title.
        of_step: The step that the times belong to, by `step_name`.
    """
    kinds = list(anatomy.kind_bounds.items())[:_MOST_KINDS]
    totals = [sum(parts.values()) for _, parts in kinds]
    if not kinds or not max(totals):
        return None
    unit = numbers.scale(totals)
    figure, axes = page_axes(1.0 + 0.19 * len(kinds), "Busy time by kind and bound", subject)
    top = max(totals) / unit.per
    present = set()
    for i, ((_, parts), total) in enumerate(zip(kinds, totals, strict=True)):
        left = 0.0
        for bound, (colour, hatch) in _BOUND_LOOKS.items():
            width = parts.get(bound, 0.0) / unit.per
            if is_visible([0.0, width], 1.2 * top):
                present.add(bound)
                axes.barh(i, width, 0.68, left=left, color=colour, hatch=hatch, **EDGE)
            left += width
        axes.text(left + 0.02 * top, i, unit.text(total), va="center")
    label_rows(axes, [short(kind) for kind, _ in kinds])
    axes.set_xlim(0, 1.2 * top)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(f"busy time of {of_step} ({unit.unit})")
    entries = [bar_entry(bound, *look) for bound, look in _BOUND_LOOKS.items() if bound in present]
    add_wrapped_legend(figure, entries, len(entries))
    return figure


def layers_figure(anatomy: Anatomy, subject: str, of_step: str) -> Figure | None:
    """Plot the time of each layer by role, as colours.

    The roles are those that take a hundredth of the time of the largest, over all layers.

    Args:
        anatomy: The anatomy of the phase; None is returned for fewer than two layers.
        subject: Model, method and phase, for the title.
        of_step: The step that the times belong to, by `step_name`.
    """
    layers = [layer for layer in anatomy.layers if layer.layer is not None]
    time: dict[str, float] = {}
    for layer in layers:
        for role, ns in layer.roles.items():
            time[role] = time.get(role, 0.0) + ns
    ranked = sorted(time, key=lambda role: (-time[role], role))
    roles = [role for role in ranked if time[role] > max(time.values()) / 100][:_MOST_ROLES]
    if len(layers) < _FEWEST_LAYERS or not roles:
        return None
    unit = numbers.scale(ns for layer in layers for ns in layer.roles.values())
    cells = [[layer.roles.get(role, 0.0) / unit.per for layer in layers] for role in roles]
    figure, axes = page_axes(0.95 + 0.15 * len(roles), "Busy time of each layer by role", subject)
    image = axes.imshow(cells, aspect="auto", cmap="cividis", interpolation="nearest", vmin=0)
    axes.set_yticks(range(len(roles)), [short(role) for role in roles])
    step = max(1, -(-len(layers) // 8))
    axes.set_xticks(range(0, len(layers), step), [str(layer.layer) for layer in layers[::step]])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("layer")
    bar = figure.colorbar(image, ax=axes, pad=0.02, aspect=30)
    bar.set_label(f"{unit.unit}, {of_step}")
    bar.outline.set_linewidth(0.4)
    bar.ax.tick_params(length=2, width=THIN)
    return figure


def waves_figure(anatomy: Anatomy, subject: str, of_step: str) -> Figure | None:
    """Plot the predicted time of GEMMs over N, and mark the N that ran and the dense N.

    Args:
        anatomy: The anatomy of the phase.
        subject: Model, method and phase, for the title.
        of_step: The step that the times belong to, by `step_name`.
    """
    shapes = [shape for shape in anatomy.shapes if shape.curve]
    if not shapes:
        return None
    unit = numbers.scale(ns for shape in shapes for _, ns in shape.curve)
    figure, axes = page_axes(2.6, "Predicted time over N: tiles, waves, roofline", subject)
    entries: list[Any] = []
    is_dense_shown = False
    for i, shape in enumerate(shapes):
        n, ns = zip(*shape.curve, strict=True)
        line: dict[str, Any] = {"color": PALETTE[i], "linewidth": 0.9}
        # The curves are translucent because those of two GEMMs of one shape lie on each other.
        axes.plot(n, [y / unit.per for y in ns], drawstyle="steps-pre", alpha=0.85, **line)
        sizes = _mark_sizes(axes, shape, i, unit)
        is_dense_shown |= shape.dense in sizes - {shape.n}
        marker = MARKERS[i] if shape.n in sizes else ""
        entries.append(line_entry(short(shape.role), marker=marker, markersize=4, **line))
    if is_dense_shown:
        hollow: dict[str, Any] = {"color": "black", "linestyle": "", "markerfacecolor": "white"}
        entries.append(line_entry("dense N", marker="o", markersize=4, **hollow))
    _scale_widths(axes, shapes)
    axes.set_ylim(bottom=0)
    axes.set(xlabel="N, output features", ylabel=f"{unit.unit}, {of_step}")
    add_wrapped_legend(figure, entries, min(len(entries), 5))
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
    mark: dict[str, Any] = {"marker": MARKERS[i], "markersize": 5, "zorder": 4}
    if shape.n in ns:
        filled = {**mark, "color": PALETTE[i], "markeredgecolor": "black", "markeredgewidth": 0.4}
        axes.plot([shape.n], [ns[shape.n] / unit.per], **filled)
    if shape.dense in ns and shape.dense != shape.n:
        hollow = {**mark, "markerfacecolor": "white", "markeredgecolor": PALETTE[i]}
        axes.plot([shape.dense], [ns[shape.dense] / unit.per], **hollow)
    return ns.keys() & {n for n in (shape.n, shape.dense) if n is not None}


def experts_figure(phase: Phase, subject: str) -> Figure | None:
    """Plot how tokens are spread over experts, as three strips over the layers.

    The strips show the number of distinct experts a step, the tokens of the fullest expert over the
    mean, and the entropy.

    Args:
        phase: The phase; None is returned for fewer than two layers with routers.
        subject: Model, method and phase, for the title.
    """
    layers = phase.routing.layers if phase.routing else []
    if len(layers) < _FEWEST_LAYERS:
        return None
    figure, strips = page_strips(3.1, "Tokens of experts, layer by layer", subject, 3)
    places = range(len(layers))
    step = max(1, -(-len(layers) // 8))
    names = [str(layer.layer) for layer in layers[::step]]
    is_pair = any(layer.dense_experts for layer in layers)
    is_on_random_ids = phase.token_ids == RANDOM_IDS
    line: dict[str, Any] = {"markersize": 2.5, "linewidth": 0.9}
    sides: list[tuple[str, str, dict[str, Any]]] = [
        ("", "pruned" if is_pair else "this run", {"color": REALISED, "marker": "o"})
    ]
    if is_pair:
        sides.insert(0, ("dense_", "dense", {"color": BOUND, "marker": "s"}))
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
    if entries:
        add_legend(figure, entries, len(entries))
    return figure
