"""Figures for a paper: in, a Report; out, figures one column wide, or their bytes.

Holds what the other figures share too. Okabe-Ito colours, hatches for grey, Type 42 fonts.
"""

from __future__ import annotations

import io
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from prunescope.analysis.report import ledger_view, numbers
from prunescope.analysis.report.names import figure_name, of_what, phase_slugs, short
from prunescope.analysis.schema.report import Phase, Report, Row

WIDTH = 3.35  # inches: one column of a two-column page
STYLE: dict[Any, Any] = {
    "pdf.fonttype": 42, "ps.fonttype": 42, "svg.fonttype": "none", "svg.hashsalt": "prunescope",
    "font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"], "font.size": 7,
    "axes.linewidth": 0.6, "xtick.major.width": 0.6, "hatch.linewidth": 0.5,
    "text.parse_math": False, "axes.unicode_minus": True,
}  # fmt: skip
_BOUND, _REALISED = "#56B4E9", "#0072B2"
_COLOURS = {"loss": "#D55E00", "gain": "#009E73", "quiet": "#BBBBBB"}
_HATCHES = {"loss": "", "gain": "/////", "quiet": ""}
# A creation date would make two reports of one run differ.
_METADATA: dict[str, dict[str, str | None]] = {
    "png": {"Software": None},
    "pdf": {"CreationDate": None},
    "svg": {"Date": None},
}


class Drawn(Figure):
    """A figure that a notebook shows though pyplot was never imported."""

    def _repr_png_(self) -> bytes:
        return saved(self, "png")


def figure_files(report: Report, ending: str) -> dict[str, bytes]:
    """File name to bytes: a ladder and a ledger for every phase that has one."""
    files = {}
    slugs = phase_slugs(report)
    for name, phase in report.phases.items():
        kinds = ["ladder"] * (phase.ladder is not None) + ["ledger"] * bool(phase.ledger)
        if phase.ladder is None and phase.kinds and phase.anatomy is None:
            kinds.append("kinds")
        for kind in kinds:
            figure = draw(report, name, kind)
            with matplotlib.rc_context(STYLE):
                files[figure_name(kind, slugs[name], ending)] = saved(figure, ending)
    return files


def draw(report: Report, name: str, kind: str) -> Figure:
    """One figure of a phase: "ladder", "ledger" or "kinds", of which the phase must have data."""
    says, of = {
        "ladder": ("speedup", ladder_figure),
        "ledger": ("where the time went", ledger_figure),
        "kinds": ("busy time by kind", kinds_figure),
    }[kind]
    return of(report.phases[name], name, title=_title(report, name, says))


def _title(report: Report, name: str, what: str) -> str:
    """Two lines: what is drawn, and of which model, method and phase."""
    of = short(of_what(report, name), 50)
    return f"{what[0].upper()}{what[1:]}\n{of}" if of else what


def ladder_figure(phase: Phase, name: str, *, title: str = "") -> Figure:
    """The speedup ladder as horizontal bars from 0, with the intervals of bounds that have one."""
    assert phase.ladder is not None
    ladder = phase.ladder
    bounds = [(label, getattr(ladder, key)) for key, (label, _) in ledger_view.LADDER.items()]
    spans = [ledger_view.telling_interval(ladder, key) for key in ledger_view.LADDER]
    measured = [i for i, key in enumerate(ledger_view.LADDER) if key in ("busy", "realised")]
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes(len(bounds))
        ends = [end for ci95 in spans for end in ci95 or ()]
        top = max([1.0, *(v for _, v in bounds if v is not None), *ends])
        for i, ((_, value), ci95) in enumerate(zip(bounds, spans, strict=True)):
            if value is not None:
                axes.barh(
                    i,
                    value,
                    0.68,
                    color=_REALISED if i in measured else _BOUND,
                    edgecolor="black",
                    linewidth=0.4,
                )
            end = value or 0.0
            if ci95:
                low, high = ci95
                axes.plot(
                    [low, high], [i, i], color="black", linewidth=1.0, marker="|", markersize=4
                )
                end = max(end, high)
            axes.text(end + 0.02 * top, i, numbers.ratio(value), va="center")
        axes.axvline(1.0, color="black", linewidth=0.6, linestyle=(0, (3, 2)))
        axes.set_xlim(0, 1.2 * top)
        labels(axes, [label for label, _ in bounds])
        marks: list[Any] = [
            Patch(facecolor=colour, edgecolor="black", linewidth=0.4, label=label)
            for colour, label in ((_BOUND, "bound"), (_REALISED, "measured"))
        ]
        if ends:
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


def ledger_figure(phase: Phase, name: str, *, title: str = "") -> Figure:
    """The ledger as a waterfall: walls and the promise as lines, changes as bars between them."""
    rows = phase.ledger or []
    bars, (low, high) = ledger_view.waterfall(rows)
    unit = ledger_view.ledger_scale(rows)
    span = (high - low) / unit.per
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes(len(rows))
        axes.set_xlim(low / unit.per, high / unit.per)
        for i, (row, bar) in enumerate(zip(rows, bars, strict=True)):
            start, end = (low / unit.per + at * span for at in (bar.start, bar.end))
            _change(axes, i, (start, end), bar.tone)
            _whisker(axes, i, row, end, unit=unit, rows=rows)
            if i + 1 < len(rows) and row.row != "dense":
                axes.plot([end, end], [i, i + 1], color="black", linewidth=0.4, zorder=0)
            _amount(axes, i, row, unit)
        labels(axes, [ledger_view.LEDGER.get(row.row, (row.row, ""))[0] for row in rows])
        axes.text(
            1.2, -0.85, unit.unit, transform=axes.get_yaxis_transform(), va="center", ha="right"
        )
        _headed(axes, title, _legend(rows, bars))
        kind = "unprofiled" if phase.domain == "unprofiled" else "profiled"
        axes.set_xlabel(f"time of a step ({unit.unit}), {short(name)}, {kind}")
        return figure


def _legend(rows: list[Row], bars: list[ledger_view.WaterfallBar]) -> list[Patch | Line2D]:
    """What the colours that are drawn mean, and the whiskers."""
    says = {"loss": "lost", "gain": "gained", "quiet": "no evidence"}
    seen = {bar.tone for bar in bars if bar.start != bar.end}
    marks: list[Patch | Line2D] = [
        Patch(
            facecolor=_COLOURS[tone],
            hatch=_HATCHES[tone],
            edgecolor="black",
            linewidth=0.4,
            label=label,
        )
        for tone, label in says.items()
        if tone in seen
    ]
    if any(ledger_view.telling(row, rows) for row in rows):
        marks.append(Line2D([], [], color="black", linewidth=0.7, label="95 % interval"))
    return marks


def _headed(axes: Axes, title: str, marks: list[Any]) -> None:
    """Title above the axes, legend below them."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=7)
    if marks:
        legend(figure, marks, len(marks))


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
    """The interval of a row, drawn around the end of its bar; it may reach over the axis' end."""
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


def kinds_figure(phase: Phase, name: str, *, title: str = "") -> Figure:
    """Busy time by kind, for a report without a baseline."""
    ranked = sorted(phase.kinds.items(), key=lambda item: -item[1])[:10]
    unit = numbers.scale(ns for _, ns in ranked)
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes(len(ranked))
        top = max(ns for _, ns in ranked) / unit.per or 1.0
        for i, (_, ns) in enumerate(ranked):
            axes.barh(i, ns / unit.per, 0.68, color=_BOUND, edgecolor="black", linewidth=0.4)
            axes.text(ns / unit.per + 0.02 * top, i, unit.text(ns), va="center")
        axes.set_xlim(0, 1.25 * top)
        labels(axes, [short(kind) for kind, _ in ranked])
        _headed(axes, title, [])
        axes.set_xlabel(f"busy time of a step ({unit.unit}), {short(name)}")
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
