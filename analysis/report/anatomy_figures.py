"""Figures of the anatomy of a phase: in, a Phase and the device; out, PNG, PDF or SVG bytes.

roofline: calls as points, sized by time, under the ceilings. bounds: time by kind and bound.
layers: time of each layer by role. waves: predicted time over N, with the dimensions that ran.
"""

from __future__ import annotations

import math
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, NullFormatter

from prunescope.analysis.report import figures, names, numbers
from prunescope.analysis.report.names import figure_name, phase_slugs
from prunescope.analysis.schema.anatomy import Anatomy, LayerTime, RooflinePoint, Shape
from prunescope.analysis.schema.report import Report
from prunescope.analysis.schema.sides import DeviceUsed
from prunescope.taxonomy.dtypes import THREE_TF32, three_tf32_rate

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999")
_BOUNDS = {
    "compute": ("#0072B2", ""), "memory": ("#E69F00", ""), "latency": ("#CC79A7", "////"),
    "unknown": ("#DDDDDD", ""),
}  # fmt: skip
_MARKERS = "osD^"
_MOST_KINDS, _MOST_ROLES, _FEWEST_LAYERS = 10, 16, 2
_LARGEST, _SMALLEST = 90.0, 5.0  # area of a point
_LETTER_WIDTH, _MARK_WIDTH = 0.05, 0.33  # inches in a legend
_VISIBLE = 0.001  # of the time of all points
_TERA = 1e12
_ROOM = 1.3
_THIN = 0.6


KINDS = ("roofline", "bounds", "layers", "waves")


def anatomy_files(report: Report, ending: str) -> dict[str, bytes]:
    """File name to bytes of every figure that a phase has something for."""
    drawn: dict[str, bytes] = {}
    slugs = phase_slugs(report)
    for name in report.phases:
        for kind in KINDS:
            if (figure := draw(report, name, kind)) is not None:
                with matplotlib.rc_context(figures.STYLE):
                    drawn[figure_name(kind, slugs[name], ending)] = figures.saved(figure, ending)
    return drawn


def draw(report: Report, name: str, kind: str) -> Figure | None:
    """One of KINDS of a phase; None where the phase has nothing for it."""
    anatomy = report.phases[name].anatomy
    if anatomy is None:
        return None
    of = names.short(names.of_what(report, name), 60)
    with matplotlib.rc_context(figures.STYLE):
        if kind == "roofline":
            return _roofline(anatomy, report.device, of)
        return {"bounds": _bounds, "layers": _layers, "waves": _waves}[kind](anatomy, of)


def _page(height: float, what: str, of: str) -> tuple[Figure, Axes]:
    figure = figures.Drawn(figsize=(figures.WIDTH, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(length=2.5, width=_THIN)
    figure.suptitle(f"{what}\n{of}" if of else what, x=0.01, ha="left", fontsize=7)
    return figure, axes


def _legend(figure: Figure, handles: list[Any], columns: int) -> None:
    widest = _MARK_WIDTH + _LETTER_WIDTH * max(len(handle.get_label()) for handle in handles)
    figures.legend(figure, handles, max(1, min(columns, int(figures.WIDTH / widest))))


def _roofline(anatomy: Anatomy, device: DeviceUsed, of: str) -> Figure | None:
    least = _VISIBLE * sum(p.busy_ns for p in anatomy.points)
    points = [p for p in anatomy.points if p.busy_ns > least]
    ceilings = _ceilings(device, points)
    if not points or not ceilings:
        return None
    figure, axes = _page(2.9, "Roofline: calls with FLOPs as points, area by time", of)
    kinds = list(dict.fromkeys(p.kind for p in points))
    colour = {kind: _COLOURS[min(i, len(_COLOURS) - 1)] for i, kind in enumerate(kinds)}
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
        Line2D(
            [], [], marker="o", linestyle="", color=colour[k], markersize=4, label=names.short(k)
        )
        for k in kinds[: len(_COLOURS)]
    ]
    handles += [
        Line2D([], [], color="black", linewidth=0.8, linestyle=style, label=name)
        for name, _, _, style in ceilings
    ]
    _legend(figure, handles, 3)
    return figure


def _plain(value: float, _: int) -> str:
    """A tick of a logarithmic axis without mathematics."""
    return f"{value:,.0f}" if value >= 1 else f"{value:g}"


def _ceilings(
    device: DeviceUsed, points: list[RooflinePoint]
) -> list[tuple[str, float, float, Any]]:
    """(name, FLOP/s, byte/s, line style): the peaks in use, and the data sheet's beside measured
    ones, for the dtype that takes the most time, and for fp32 as three products of TF32."""
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
        slower = three_tf32_rate(rates)  # its bound is another than that of fp32
        if THREE_TF32 in time and slower and byte_per_s:
            dots = (0, (1, 1)) if style == "-" else (0, (4, 2, 1, 2))
            found.append((f"{THREE_TF32}, {name}", slower, byte_per_s, dots))
    return found


def _decades(values: list[float]) -> tuple[float, float]:
    """The powers of ten around positive values, with room for a point at either end."""
    low, high = math.log10(min(values) / _ROOM), math.log10(max(values) * _ROOM)
    return 10 ** math.floor(low), 10 ** math.ceil(high)


def _bounds(anatomy: Anatomy, of: str) -> Figure | None:
    kinds = list(anatomy.kind_bounds.items())[:_MOST_KINDS]
    totals = [sum(parts.values()) for _, parts in kinds]
    if not kinds or not max(totals):
        return None
    unit = numbers.scale(totals)
    figure, axes = _page(1.0 + 0.19 * len(kinds), "Busy time by kind and bound", of)
    top = max(totals) / unit.per
    for i, ((_, parts), total) in enumerate(zip(kinds, totals, strict=True)):
        left = 0.0
        for bound, (colour, hatch) in _BOUNDS.items():
            width = parts.get(bound, 0.0) / unit.per
            if width:
                axes.barh(
                    i,
                    width,
                    0.68,
                    left=left,
                    color=colour,
                    hatch=hatch,
                    edgecolor="black",
                    linewidth=0.4,
                )
            left += width
        axes.text(left + 0.02 * top, i, unit.text(total), va="center")
    figures.labels(axes, [names.short(kind) for kind, _ in kinds])
    axes.set_xlim(0, 1.2 * top)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(f"busy time of a step ({unit.unit})")
    seen = {bound for _, parts in kinds for bound, ns in parts.items() if ns}
    handles = [
        Patch(facecolor=c, hatch=h, edgecolor="black", linewidth=0.4, label=bound)
        for bound, (c, h) in _BOUNDS.items()
        if bound in seen
    ]
    _legend(figure, handles, len(handles))
    return figure


def _layers(anatomy: Anatomy, of: str) -> Figure | None:
    layers = [one for one in anatomy.layers if one.layer is not None]
    roles = _ranked(layers)[:_MOST_ROLES]
    if len(layers) < _FEWEST_LAYERS or not roles:
        return None
    unit = numbers.scale(ns for one in layers for ns in one.roles.values())
    cells = [[one.roles.get(role, 0.0) / unit.per for one in layers] for role in roles]
    figure, axes = _page(0.95 + 0.15 * len(roles), "Busy time of each layer by role", of)
    image = axes.imshow(cells, aspect="auto", cmap="cividis", interpolation="nearest", vmin=0)
    axes.set_yticks(range(len(roles)), [names.short(role) for role in roles])
    step = max(1, -(-len(layers) // 8))
    axes.set_xticks(range(0, len(layers), step), [str(one.layer) for one in layers[::step]])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("layer")
    bar = figure.colorbar(image, ax=axes, pad=0.02, aspect=30)
    bar.set_label(f"{unit.unit} a step")
    bar.outline.set_linewidth(0.4)
    bar.ax.tick_params(length=2, width=_THIN)
    return figure


def _ranked(layers: list[LayerTime]) -> list[str]:
    """Roles by their time over all layers; those that take a hundredth of the largest."""
    time: dict[str, float] = {}
    for one in layers:
        for role, ns in one.roles.items():
            time[role] = time.get(role, 0.0) + ns
    top = max(time.values(), default=0.0)
    return [role for role in sorted(time, key=lambda r: (-time[r], r)) if time[role] > top / 100]


def _waves(anatomy: Anatomy, of: str) -> Figure | None:
    shapes = [one for one in anatomy.shapes if one.curve]
    if not shapes:
        return None
    unit = numbers.scale(ns for one in shapes for _, ns in one.curve)
    figure, axes = _page(2.6, "Predicted time over N: tiles, waves, roofline", of)
    handles: list[Any] = []
    for i, one in enumerate(shapes):
        n, ns = zip(*one.curve, strict=True)
        # Two GEMMs of one shape would lie on each other.
        axes.plot(
            n,
            [y / unit.per for y in ns],
            color=_COLOURS[i],
            linewidth=0.9,
            drawstyle="steps-pre",
            alpha=0.85,
        )
        _mark(axes, one, i, unit)
        handles.append(
            Line2D(
                [],
                [],
                color=_COLOURS[i],
                marker=_MARKERS[i],
                markersize=4,
                linewidth=0.9,
                label=names.short(one.role),
            )
        )
    if any(one.dense not in (None, one.n) for one in shapes):
        handles.append(
            Line2D(
                [],
                [],
                color="black",
                marker="o",
                markersize=4,
                linestyle="",
                markerfacecolor="white",
                label="dense N",
            )
        )
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("N, output features")
    axes.set_ylabel(f"{unit.unit} a step")
    _legend(figure, handles, min(len(handles), 5))
    return figure


def _mark(axes: Axes, one: Shape, i: int, unit: numbers.Scale) -> None:
    """The N that ran, filled, and the dense one, hollow."""
    at = {int(n): ns for n, ns in one.curve}
    if one.n in at:
        axes.plot(
            [one.n],
            [at[one.n] / unit.per],
            marker=_MARKERS[i],
            color=_COLOURS[i],
            markersize=5,
            markeredgecolor="black",
            markeredgewidth=0.4,
            zorder=4,
        )
    if one.dense in at and one.dense != one.n:
        axes.plot(
            [one.dense],
            [at[one.dense] / unit.per],
            marker=_MARKERS[i],
            markersize=5,
            markerfacecolor="white",
            markeredgecolor=_COLOURS[i],
            zorder=4,
        )
