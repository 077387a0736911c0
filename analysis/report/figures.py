"""Figures for a paper: in, a Report; out, figures one column wide, or their bytes.

ladder, ledger, kinds; roofline: calls as points, sized by time, under the ceilings; bounds: time by
kind and bound; layers: time of each layer by role; waves: predicted time over N; experts: how
evenly tokens are spread; replay: GEMMs alone over N, K and alignment. Other figures take the style
from here. Okabe-Ito colours, hatches for grey, Type 42 fonts.
"""

from __future__ import annotations

import io
import math
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import matplotlib
from matplotlib import ft2font
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import FuncFormatter, NullFormatter

from prunescope.analysis.report import evidence, ledger_view, numbers, titles
from prunescope.analysis.report.titles import figure_name, of_what, phase_slugs, short
from prunescope.analysis.schema.anatomy import Anatomy, LayerTime, RooflinePoint, Shape
from prunescope.analysis.schema.replay import AlignedTime
from prunescope.analysis.schema.report import Phase, Report, Row
from prunescope.analysis.schema.sides import DeviceUsed
from prunescope.taxonomy.dtypes import THREE_TF32, three_tf32_rate
from prunescope.taxonomy.errors import PrunescopeError, nearest
from prunescope.taxonomy.replays import StepCurve
from prunescope.taxonomy.run_quality import RANDOM_IDS
from prunescope.taxonomy.uninterrupted import uninterrupted

WIDTH = 3.35  # inches: one column of a two-column page
STYLE: dict[Any, Any] = {
    "pdf.fonttype": 42, "ps.fonttype": 42, "svg.fonttype": "none", "svg.hashsalt": "prunescope",
    "font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"], "font.size": 7,
    "axes.linewidth": 0.6, "xtick.major.width": 0.6, "hatch.linewidth": 0.5,
    "text.parse_math": False, "axes.unicode_minus": True,
}  # fmt: skip
_UNSURE = "#DDDDDD"  # a measured bar that is no evidence
_BOUND, _REALISED = "#56B4E9", "#0072B2"
_COLOURS = {"loss": "#D55E00", "gain": "#009E73", "quiet": "#BBBBBB"}
_HATCHES = {"loss": "", "gain": "/////", "quiet": ""}
# A creation date would make two reports of one run differ.
_METADATA: dict[str, dict[str, str | None]] = {
    "png": {"Software": None},
    "pdf": {"CreationDate": None},
    "svg": {"Date": None},
}
_PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999")
_BOUND_LOOKS = {
    "compute": ("#0072B2", ""), "memory": ("#E69F00", ""), "latency": ("#CC79A7", "////"),
    "unknown": ("#DDDDDD", ""),
}  # fmt: skip
_MARKERS = "osD^"
_MOST_KINDS, _MOST_ROLES, _FEWEST_LAYERS = 10, 16, 2
_LARGEST, _SMALLEST = 90.0, 5.0  # area of a point
_LETTER_WIDTH, _MARK_WIDTH = 0.05, 0.33  # inches in a legend
_VISIBLE = 0.001  # of the time of all points
_TERA = 1e12
# Fields of LayerRouting that the figure of experts shows, by their labels.
_EXPERT_STRIPS = {
    "distinct": "distinct a step", "fullest": "fullest ÷ mean", "entropy": "entropy",
}  # fmt: skip
_ROOM = 1.3
_MOST_CURVES = 4
_THIN = 0.6
KINDS = ("ladder", "ledger", "kinds", "roofline", "bounds", "layers", "waves", "experts", "replay")


class Drawn(Figure):
    """A figure that a notebook shows though pyplot was never imported."""

    def _repr_png_(self) -> bytes:
        return saved(self, "png")


def figure_files(report: Report, ending: str) -> dict[str, bytes]:
    """File name to bytes of every figure that a phase has data for; busy time by kind only where
    there is neither a ladder nor an anatomy."""
    files: dict[str, bytes] = {}
    slugs = phase_slugs(report)
    for name, phase in report.phases.items():
        alone = phase.ladder is None and phase.anatomy is None
        for kind in KINDS:
            with drawing():
                figure = plot(report, name, kind) if kind != "kinds" or alone else None
                if figure is not None:
                    files[figure_name(kind, slugs[name], ending)] = saved(figure, ending)
    return files


@contextmanager
def drawing() -> Iterator[None]:
    """Around one figure, plotted and saved: our style, and signals wait for its end."""
    with uninterrupted(), matplotlib.rc_context(STYLE):
        yield


def plot(report: Report, name: str, kind: str) -> Figure | None:
    """One of KINDS of a phase; None where the phase has no data for it."""
    phase = report.phases[name]
    with drawing():
        if kind == "ladder":
            return ladder_figure(phase, name, title=_title(report, name, "speedup"))
        if kind == "ledger":
            return ledger_figure(phase, name, title=_title(report, name, "where the time went"))
        if kind == "kinds":
            return kinds_figure(phase, name, title=_title(report, name, "busy time by kind"))
        subject = short(of_what(report, name), 60)
        if kind == "experts":
            return _experts_figure(phase, subject)
        if kind == "replay":
            found = phase.replay
            return replay_figure(found.curves, found.alignments, subject) if found else None
        if phase.anatomy is None:
            return None
        if evidence.NOT_VALID_TIMING in evidence.of_phase(phase):
            subject = f"{evidence.NOT_VALID_TIMING}: {short(of_what(report, name), 40)}"
        if kind == "roofline":
            return _roofline_figure(phase.anatomy, report.device, subject)
        anatomy_figures = {
            "bounds": _bounds_figure,
            "layers": _layers_figure,
            "waves": _waves_figure,
        }
        return anatomy_figures[kind](phase.anatomy, subject, _of_step(phase))


def _of_step(phase: Phase) -> str:
    """Of which step busy times are: a profiler slows the ops of a CPU."""
    return "a profiled step" if phase.is_slowed else "a step"


def _title(report: Report, name: str, what: str) -> str:
    """Two lines: what is plotted, and of which model, method and phase."""
    subject = short(of_what(report, name), 50)
    return f"{what[0].upper()}{what[1:]}\n{subject}" if subject else what


def ladder_figure(phase: Phase, name: str, *, title: str = "") -> Figure | None:
    """The speedup ladder as horizontal bars from 0, with the intervals of bounds that have one."""
    ladder = phase.ladder
    if ladder is None:
        return None
    shown = ledger_view.shown_bounds(ladder)
    bounds = [(label, getattr(ladder, key)) for key, (label, _) in shown.items()]
    spans = [ledger_view.telling_interval(ladder, key) for key in shown]
    measured = [i for i, key in enumerate(shown) if key in ("busy", "realised")]
    figure, axes = _axes(len(bounds))
    reasons = evidence.of_phase(phase)
    ends = [end for ci95 in spans for end in ci95 or ()]
    top = max([1.0, *(v for _, v in bounds if v is not None), *ends])
    for i, ((_, value), ci95) in enumerate(zip(bounds, spans, strict=True)):
        if value is not None:
            axes.barh(
                i,
                value,
                0.68,
                color=_BOUND if i not in measured else _UNSURE if reasons else _REALISED,
                hatch=_hatch(reasons) if i in measured else "",
                edgecolor="black",
                linewidth=0.4,
            )
        end = value or 0.0
        if ci95 and ledger_view.is_seen(ci95, 1.2 * top):
            low, high = ci95
            axes.plot([low, high], [i, i], color="black", linewidth=1.0, marker="|", markersize=4)
            end = max(end, high)
        axes.text(end + 0.02 * top, i, numbers.ratio(value), va="center")
    axes.axvline(1.0, color="black", linewidth=0.6, linestyle=(0, (3, 2)))
    axes.set_xlim(0, 1.2 * top)
    labels(axes, [label for label, _ in bounds])
    sure = [True for i, (_, value) in enumerate(bounds) if value is not None and i not in measured]
    marks: list[Any] = [Patch(facecolor=_BOUND, edgecolor="black", linewidth=0.4, label="bound")]
    marks = marks if sure else []
    marks.append(
        Patch(
            facecolor=_UNSURE if reasons else _REALISED,
            hatch=_hatch(reasons),
            edgecolor="black",
            linewidth=0.4,
            label=", ".join(reasons) or "measured",
        )
    )
    if any(ledger_view.is_seen(ci95, 1.2 * top) for ci95 in spans):
        marks.append(
            Line2D(
                [],
                [],
                color="black",
                linewidth=1.0,
                marker="|",
                markersize=4,
                label="95 % interval",
            )
        )
    marks.append(
        Line2D([], [], color="black", linewidth=0.6, linestyle=(0, (3, 2)), label="1× (dense)")
    )
    _headed(axes, title, marks)
    axes.set_xlabel(f"speedup (dense ÷ pruned), {short(name)}")
    return figure


def ledger_figure(phase: Phase, name: str, *, title: str = "") -> Figure | None:
    """The ledger as a waterfall: walls and the promise as lines, changes as bars between them."""
    rows = phase.ledger
    if not rows:
        return None
    bars, (low, high) = ledger_view.waterfall(rows)
    unit = ledger_view.ledger_scale(rows)
    span = (high - low) / unit.per
    figure, axes = _axes(len(rows))
    axes.set_xlim(low / unit.per, high / unit.per)
    reasons = evidence.of_phase(phase)
    for i, (row, bar) in enumerate(zip(rows, bars, strict=True)):
        start, end = (low / unit.per + at * span for at in (bar.start, bar.end))
        _change(axes, i, (start, end), bar.tone)
        _whisker(axes, i, row, end, unit=unit, rows=rows)
        if i + 1 < len(rows) and row.row != "dense":
            axes.plot([end, end], [i, i + 1], color="black", linewidth=0.4, zorder=0)
        _amount(axes, i, row, unit)
    labels(axes, [ledger_view.LEDGER.get(row.row, (row.row, ""))[0] for row in rows])
    axes.text(1.2, -0.85, unit.unit, transform=axes.get_yaxis_transform(), va="center", ha="right")
    left, right = axes.get_xlim()
    marks = _legend(bars, is_whiskered=_is_whiskered(rows, (right - left) * unit.per))
    if reasons:
        axes.axhspan(-0.5, len(rows) - 0.5, zorder=-1, **ground(reasons))
        marks.append(no_evidence(reasons, ", ".join(reasons)))
    _headed(axes, title, marks)
    kind = "unprofiled" if phase.domain == "unprofiled" else "profiled"
    axes.set_xlabel(f"time of a step ({unit.unit}), {short(name)}, {kind}")
    return figure


def _hatch(reasons: list[str]) -> str:
    return evidence.HATCHES[reasons[0]] if reasons else ""


def ground(reasons: list[str]) -> dict[str, Any]:
    """The look of the ground behind what is no evidence."""
    return {
        "facecolor": "white",
        "edgecolor": "#CCCCCC",
        "hatch": _hatch(reasons),
        "linewidth": 0.0,
    }


def no_evidence(reasons: list[str], label: str) -> Patch:
    """The entry of a legend for what stands on such ground."""
    look = {**ground(reasons), "edgecolor": "black", "linewidth": 0.4}
    return Rectangle((0, 0), 0, 0, label=label, **look)  # without extent, where it is in the axes


def _legend(bars: list[ledger_view.WaterfallBar], *, is_whiskered: bool) -> list[Patch | Line2D]:
    """Colours of the bars, and the whiskers where one is seen."""
    labels_by_tone = {"loss": "lost", "gain": "gained", "quiet": "no evidence"}
    tones = {bar.tone for bar in bars if bar.start != bar.end}
    marks: list[Patch | Line2D] = [
        Patch(
            facecolor=_COLOURS[tone],
            hatch=_HATCHES[tone],
            edgecolor="black",
            linewidth=0.4,
            label=label,
        )
        for tone, label in labels_by_tone.items()
        if tone in tones
    ]
    if is_whiskered:
        marks.append(Line2D([], [], color="black", linewidth=0.7, label="95 % interval"))
    return marks


def _is_whiskered(rows: list[Row], across: float) -> bool:
    """Whether an interval is seen on an axis of so many ns; a wall's line is thrice as wide."""
    return any(
        ledger_view.is_seen(
            ledger_view.telling(row, rows), across * (3 if row.row in ledger_view.TOTALS else 1)
        )
        for row in rows
    )


def _headed(axes: Axes, title: str, marks: list[Any]) -> None:
    """Title above the axes, legend below them."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=7)
    if marks:
        widest = _MARK_WIDTH + _LETTER_WIDTH * sum(len(m.get_label()) for m in marks) / len(marks)
        legend(figure, marks, max(1, min(len(marks), int(WIDTH / widest))))


def legend(figure: Figure, marks: list[Any], columns: int) -> None:
    """A legend below the axes."""
    figure.legend(
        handles=marks,
        loc="outside lower center",
        ncols=columns,
        fontsize=6,
        frameon=False,
        handlelength=1.4,
        columnspacing=1.2,
        borderpad=0.1,
        handletextpad=0.5,
    )


def _change(axes: Axes, i: int, ends: tuple[float, float], tone: str) -> None:
    start, end = ends
    if tone in ("total", "promise"):
        axes.plot(
            [end, end],
            [i - 0.38, i + 0.38],
            color="black",
            linewidth=2.2 if tone == "total" else 1.2,
        )
        return
    axes.barh(
        i,
        end - start,
        0.62,
        left=start,
        color=_COLOURS[tone],
        hatch=_HATCHES[tone],
        edgecolor="black",
        linewidth=0.4,
    )


def _whisker(
    axes: Axes, i: int, row: Row, end: float, *, unit: numbers.Scale, rows: list[Row]
) -> None:
    """The interval of a row around the end of its bar; the axis grows to hold it."""
    ci95 = ledger_view.telling(row, rows)
    if ci95 is None:
        return
    low, high = (end + (bound - row.moves_ns) / unit.per for bound in ci95)
    axes.plot([low, high], [i, i], color="black", linewidth=0.7)
    left, right = axes.get_xlim()
    room = 0.02 * (right - left)
    axes.set_xlim(min(left, low - room), max(right, high + room))


def _amount(axes: Axes, i: int, row: Row, unit: numbers.Scale) -> None:
    """The number of a row in a column of its own at the right, where nothing can overlap it."""
    signed = row.row not in ledger_view.TOTALS and row.row != "promised"
    axes.text(
        1.2,
        i,
        unit.text(row.ns, signed=signed),
        transform=axes.get_yaxis_transform(),
        va="center",
        ha="right",
        weight="bold" if row.row in ledger_view.TOTALS else "normal",
    )


def kinds_figure(phase: Phase, name: str, *, title: str = "") -> Figure | None:
    """Busy time by kind, for a report without a baseline."""
    if not phase.kinds:
        return None
    ranked = sorted(phase.busy_by_kind.items(), key=lambda item: -item[1])[:10]
    unit = numbers.scale(ns for _, ns in ranked)
    figure, axes = _axes(len(ranked))
    top = max(ns for _, ns in ranked) / unit.per or 1.0
    for i, (_, ns) in enumerate(ranked):
        axes.barh(i, ns / unit.per, 0.68, color=_BOUND, edgecolor="black", linewidth=0.4)
        axes.text(ns / unit.per + 0.02 * top, i, unit.text(ns), va="center")
    axes.set_xlim(0, 1.25 * top)
    labels(axes, [short(kind) for kind, _ in ranked])
    _headed(axes, title, [])
    axes.set_xlabel(f"busy time of {_of_step(phase)} ({unit.unit}), {short(name)}")
    return figure


def _axes(num_rows: int) -> tuple[Figure, Axes]:
    figure = Drawn(figsize=(WIDTH, 0.98 + 0.19 * num_rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", length=2.5)
    return figure, axes


def labels(axes: Axes, names: list[str]) -> None:
    """Names of rows, the first one on top."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.45, -0.55)
    axes.locator_params(axis="x", nbins=5)


def saved(figure: Figure, ending: str) -> bytes:
    """The bytes of a figure, without a date: two reports of one run are equal."""
    out = io.BytesIO()
    figure.savefig(out, format=ending, dpi=300, metadata=_METADATA[ending])
    return out.getvalue()


def _page(height: float, what: str, of: str) -> tuple[Figure, Axes]:
    figure = Drawn(figsize=(WIDTH, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(length=2.5, width=_THIN)
    figure.suptitle(f"{what}\n{of}" if of else what, x=0.01, ha="left", fontsize=7)
    return figure, axes


def _wrapped_legend(figure: Figure, handles: list[Any], columns: int) -> None:
    widest = _MARK_WIDTH + _LETTER_WIDTH * max(len(handle.get_label()) for handle in handles)
    legend(figure, handles, max(1, min(columns, int(WIDTH / widest))))


def _roofline_figure(anatomy: Anatomy, device: DeviceUsed, of: str) -> Figure | None:
    least = _VISIBLE * sum(p.busy_ns for p in anatomy.points)
    points = [p for p in anatomy.points if p.busy_ns > least]
    ceilings = _ceilings(device, points)
    if not points or not ceilings:
        return None
    figure, axes = _page(2.9, "Roofline: calls with FLOPs as points, area by time", of)
    kinds = list(dict.fromkeys(p.kind for p in points))
    colour = {kind: _PALETTE[min(i, len(_PALETTE) - 1)] for i, kind in enumerate(kinds)}
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
            [], [], marker="o", linestyle="", color=colour[k], markersize=4, label=titles.short(k)
        )
        for k in kinds[: len(_PALETTE)]
    ]
    handles += [
        Line2D([], [], color="black", linewidth=0.8, linestyle=style, label=name)
        for name, _, _, style in ceilings
    ]
    _wrapped_legend(figure, handles, 3)
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


def _bounds_figure(anatomy: Anatomy, of: str, of_step: str) -> Figure | None:
    kinds = list(anatomy.kind_bounds.items())[:_MOST_KINDS]
    totals = [sum(parts.values()) for _, parts in kinds]
    if not kinds or not max(totals):
        return None
    unit = numbers.scale(totals)
    figure, axes = _page(1.0 + 0.19 * len(kinds), "Busy time by kind and bound", of)
    top = max(totals) / unit.per
    for i, ((_, parts), total) in enumerate(zip(kinds, totals, strict=True)):
        left = 0.0
        for bound, (colour, hatch) in _BOUND_LOOKS.items():
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
    labels(axes, [titles.short(kind) for kind, _ in kinds])
    axes.set_xlim(0, 1.2 * top)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(f"busy time of {of_step} ({unit.unit})")
    present = {bound for _, parts in kinds for bound, ns in parts.items() if ns}
    handles = [
        Patch(facecolor=c, hatch=h, edgecolor="black", linewidth=0.4, label=bound)
        for bound, (c, h) in _BOUND_LOOKS.items()
        if bound in present
    ]
    _wrapped_legend(figure, handles, len(handles))
    return figure


def _layers_figure(anatomy: Anatomy, of: str, of_step: str) -> Figure | None:
    layers = [one for one in anatomy.layers if one.layer is not None]
    roles = _ranked(layers)[:_MOST_ROLES]
    if len(layers) < _FEWEST_LAYERS or not roles:
        return None
    unit = numbers.scale(ns for one in layers for ns in one.roles.values())
    cells = [[one.roles.get(role, 0.0) / unit.per for one in layers] for role in roles]
    figure, axes = _page(0.95 + 0.15 * len(roles), "Busy time of each layer by role", of)
    image = axes.imshow(cells, aspect="auto", cmap="cividis", interpolation="nearest", vmin=0)
    axes.set_yticks(range(len(roles)), [titles.short(role) for role in roles])
    step = max(1, -(-len(layers) // 8))
    axes.set_xticks(range(0, len(layers), step), [str(one.layer) for one in layers[::step]])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("layer")
    bar = figure.colorbar(image, ax=axes, pad=0.02, aspect=30)
    bar.set_label(f"{unit.unit}, {of_step}")
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


def _waves_figure(anatomy: Anatomy, of: str, of_step: str) -> Figure | None:
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
            color=_PALETTE[i],
            linewidth=0.9,
            drawstyle="steps-pre",
            alpha=0.85,
        )
        _mark_sizes(axes, one, i, unit)
        handles.append(
            Line2D(
                [],
                [],
                color=_PALETTE[i],
                marker=_MARKERS[i],
                markersize=4,
                linewidth=0.9,
                label=titles.short(one.role),
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
    axes.set_ylabel(f"{unit.unit}, {of_step}")
    _wrapped_legend(figure, handles, min(len(handles), 5))
    return figure


def _mark_sizes(axes: Axes, one: Shape, i: int, unit: numbers.Scale) -> None:
    """The N that ran, filled, and the dense one, hollow."""
    at = {int(n): ns for n, ns in one.curve}
    if one.n in at:
        axes.plot(
            [one.n],
            [at[one.n] / unit.per],
            marker=_MARKERS[i],
            color=_PALETTE[i],
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
            markeredgecolor=_PALETTE[i],
            zorder=4,
        )


def _experts_figure(phase: Phase, of: str) -> Figure | None:
    """Three strips over the layers: distinct experts a step, fullest over mean, entropy."""
    layers = phase.routing.layers if phase.routing else []
    if len(layers) < _FEWEST_LAYERS:
        return None
    figure, first = _page(3.1, "Tokens of experts, layer by layer", of)
    first.remove()
    strips = figure.subplots(3, 1)
    places = range(len(layers))
    step = max(1, -(-len(layers) // 8))
    names = [str(one.layer) for one in layers[::step]]
    sides = [("", "pruned", _REALISED, "o")]
    if any(one.dense_experts for one in layers):
        sides.insert(0, ("dense_", "dense", _BOUND, "s"))
    for axes, (key, label) in zip(strips, _EXPERT_STRIPS.items(), strict=True):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(length=2.5, width=_THIN)
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
    if len(sides) > 1:
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


def replay_figure(
    curves: Sequence[StepCurve], alignments: Sequence[AlignedTime], of: str
) -> Figure | None:
    """Time of a call alone over N or K, with the steps that describe it; below, time a kept number
    at each alignment. None without either."""
    shown = curves[:_MOST_CURVES]
    count = len(shown) + bool(alignments)
    if not count:
        return None
    figure, first = _page(0.4 + 1.5 * count, "GEMMs replayed alone, operands warm", of)
    first.remove()
    strips = figure.subplots(count, 1, squeeze=False)[:, 0]
    for axes in strips:
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(length=2.5, width=_THIN)
    for axes, curve in zip(strips, shown, strict=False):
        _plot_curve(axes, curve)
    if alignments:
        _plot_alignments(strips[-1], alignments)
    return figure


def _plot_curve(axes: Axes, curve: StepCurve) -> None:
    unit = numbers.scale(curve.ns)
    order = sorted(zip(curve.sizes, curve.ns, strict=True))
    sizes, ns = zip(*order, strict=True)
    axes.plot(
        sizes, [y / unit.per for y in ns], color=_REALISED, marker="o", markersize=2, linewidth=0.5
    )
    name = titles.short(curve.role or "")
    fixed = f"K = {curve.k}" if curve.axis == "N" else f"N = {curve.n}"
    law = "no steps"
    if curve.width and curve.step_ns is not None and curve.base_ns is not None:
        law = f"steps of {curve.width}"
        fine = range(sizes[0], sizes[-1] + 1)
        law_ns = [curve.base_ns + curve.step_ns * math.ceil(x / curve.width) for x in fine]
        axes.plot(fine, [y / unit.per for y in law_ns], color=_COLOURS["loss"], linewidth=0.9)
    axes.set_ylim(bottom=0)
    axes.set_ylabel(f"{unit.unit} a call")
    what = f"{name}, M = {curve.m}, {fixed}: {law}".removeprefix(", ")
    axes.set_xlabel(f"{curve.axis}; {what}")


def _plot_alignments(axes: Axes, times: Sequence[AlignedTime]) -> None:
    keys = list(dict.fromkeys((one.role, one.axis, one.now) for one in times))[: len(_PALETTE)]
    aligns = sorted({one.align for one in times})
    for i, key in enumerate(keys):
        at = {one.align: one.relative for one in times if (one.role, one.axis, one.now) == key}
        axes.plot(
            range(len(aligns)),
            [at.get(align, math.nan) for align in aligns],
            color=_PALETTE[i],
            marker=_MARKERS[i % len(_MARKERS)],
            markersize=3,
            linewidth=0.9,
            label=f"{titles.short(key[0])} {key[1]} = {key[2]}",
        )
    axes.axhline(1.0, color="black", linewidth=_THIN, linestyle=(0, (3, 2)))
    axes.set_xticks(range(len(aligns)), [str(align) for align in aligns])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("alignment of the kept dimension")
    axes.set_ylabel("time a kept number")
    axes.legend(fontsize=5, frameon=False, ncols=2)


class Plots:
    """The figures of a report. Each takes a phase, the first one where none is named, and gives a
    matplotlib Figure; PrunescopeError where the phase has nothing to plot."""

    def __init__(self, report: Report) -> None:
        self._report = report

    def __getattr__(self, name: str) -> NoReturn:
        known = [one for one in vars(Plots) if not one.startswith("_")]
        raise AttributeError(f"there is no plot {name!r}; nearest: {nearest(name, known, count=2)}")

    def ladder(self, phase: str | None = None) -> Figure:
        """Speedups, from the promise to what was measured."""
        return self._plot("ladder", phase)

    def ledger(self, phase: str | None = None) -> Figure:
        """Where the time went, as a waterfall."""
        return self._plot("ledger", phase)

    def kinds(self, phase: str | None = None) -> Figure:
        """Busy time by kind."""
        return self._plot("kinds", phase)

    def roofline(self, phase: str | None = None) -> Figure:
        """Calls under the ceilings of the device."""
        return self._plot("roofline", phase)

    def bounds(self, phase: str | None = None) -> Figure:
        """Time by kind and bound."""
        return self._plot("bounds", phase)

    def layers(self, phase: str | None = None) -> Figure:
        """Time of each layer by role."""
        return self._plot("layers", phase)

    def waves(self, phase: str | None = None) -> Figure:
        """Predicted time over N, with the dimensions that ran."""
        return self._plot("waves", phase)

    def experts(self, phase: str | None = None) -> Figure:
        """How evenly tokens are spread over experts, layer by layer."""
        return self._plot("experts", phase)

    def replay(self, phase: str | None = None) -> Figure:
        """GEMMs replayed alone: time over N and K, and at each alignment."""
        return self._plot("replay", phase)

    def _plot(self, kind: str, phase: str | None) -> Figure:
        phases = self._report.phases
        name = next(iter(phases), "") if phase is None else phase
        if name not in phases:
            raise PrunescopeError(
                f"the report has no phase {name!r}", hint=f"nearest: {nearest(name, phases)}"
            )
        figure = plot(self._report, name, kind)
        if figure is None:
            raise PrunescopeError(
                f"{name} has no {kind} to plot",
                hint="a ladder and a ledger need a baseline, a roofline the peaks of the device",
            )
        return figure


def plotted_with() -> str:
    """The versions that figures are plotted with: other versions may place text elsewhere."""
    return f"matplotlib {matplotlib.__version__}, freetype {ft2font.__freetype_version__}"


def most_apart(first: bytes, second: bytes) -> float | None:
    """The largest difference of a channel of a pixel between two PNG files, 0 to 1; None where one
    cannot be read or they differ in size."""
    try:
        with uninterrupted():
            pixels, others = (imread(io.BytesIO(data), "png") for data in (first, second))
    except (OSError, ValueError, SyntaxError, EOFError, zlib.error):
        return None
    return float(abs(pixels - others).max()) if pixels.shape == others.shape else None
