"""Figures of a pair: in, a Phase with a baseline; out, its ladder as bars and its ledger as a
waterfall, one column wide, or None where it has none.
"""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from prunescope.analysis.report import hatches, ledger_view
from prunescope.analysis.report.figure_style import (
    BOUND,
    COLOURS,
    EDGE,
    REALISED,
    ground,
    hatch_of,
    headed,
    labels,
    no_evidence,
    row_axes,
)
from prunescope.analysis.report.titles import short
from prunescope.analysis.schema.report import Phase, Row
from prunescope.analysis.summary import evidence
from prunescope.analysis.summary.labels import label_of
from prunescope.taxonomy import numbers

_UNSURE = "#DDDDDD"  # a bar that is no evidence
_HATCHES = {"loss": "", "gain": "/////", "quiet": ""}


def ladder_figure(phase: Phase, name: str, *, title: str = "") -> Figure | None:
    """The speedup ladder as horizontal bars from 0, with the intervals of bounds that have one."""
    rows = ledger_view.ladder_rows(phase)
    if not rows:
        return None
    figure, axes = row_axes(len(rows))
    ends = [end for row in rows for end in row.ci95 or ()]
    top = max([1.0, *(row.value for row in rows if row.value is not None), *ends])
    for i, row in enumerate(rows):
        value = row.value
        if value is not None:
            colour = _UNSURE if row.reasons else REALISED if row.is_measured else BOUND
            axes.barh(i, value, 0.68, color=colour, hatch=hatch_of(row.reasons), **EDGE)
        end = value or 0.0
        if row.ci95 and ledger_view.is_visible(row.ci95, 1.2 * top):
            low, high = row.ci95
            axes.plot([low, high], [i, i], color="black", linewidth=1.0, marker="|", markersize=4)
            end = max(end, high)
        # The line at 1x would strike through a number that stands on it.
        behind = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
        axes.text(end + 0.02 * top, i, numbers.ratio(value), va="center", zorder=3, bbox=behind)
    axes.axvline(1.0, color="black", linewidth=0.6, linestyle=(0, (3, 2)))
    axes.set_xlim(0, 1.2 * top)
    labels(axes, [row.label for row in rows])
    sure = {row.is_measured for row in rows if row.value is not None and not row.reasons}
    marks: list[Any] = [
        Patch(facecolor=colour, **EDGE, label=label)
        for colour, label, kind in ((BOUND, "bound", False), (REALISED, "measured", True))
        if kind in sure
    ]
    marks += [
        Patch(facecolor=_UNSURE, hatch=hatches.HATCHES[reason], **EDGE, label=words)
        for reason, words in ledger_view.ladder_caveats(rows).items()
    ]
    if any(ledger_view.is_visible(row.ci95, 1.2 * top) for row in rows):
        whisker: dict[str, Any] = {"color": "black", "linewidth": 1.0, "markersize": 4}
        marks.append(Line2D([], [], marker="|", label="95 % interval", **whisker))
    marks.append(
        Line2D([], [], color="black", linewidth=0.6, linestyle=(0, (3, 2)), label="1× (dense)")
    )
    headed(axes, title, marks)
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
    figure, axes = row_axes(len(rows))
    axes.set_xlim(low / unit.per, high / unit.per)
    reasons = evidence.ledger_reasons(phase)
    for i, (row, bar) in enumerate(zip(rows, bars, strict=True)):
        start, end = (low / unit.per + at * span for at in (bar.start, bar.end))
        _change(axes, i, (start, end), bar.tone)
        _whisker(axes, i, row, end, unit=unit, rows=rows)
        if i + 1 < len(rows) and row.row != "dense":
            axes.plot([end, end], [i, i + 1], color="black", linewidth=0.4, zorder=0)
        _amount(axes, i, row, unit)
    labels(axes, [label_of(row) for row in rows])
    axes.text(1.2, -0.85, unit.unit, transform=axes.get_yaxis_transform(), va="center", ha="right")
    left, right = axes.get_xlim()
    marks = _legend(bars, is_whiskered=_is_whiskered(rows, (right - left) * unit.per))
    if reasons:
        axes.axhspan(-0.5, len(rows) - 0.5, zorder=-1, **ground(reasons))
        marks.append(no_evidence(reasons, ", ".join(reasons)))
    headed(axes, title, marks)
    kind = "unprofiled" if phase.time_base == "unprofiled" else "profiled"
    axes.set_xlabel(f"time of a step ({unit.unit}), {short(name)}, {kind}")
    return figure


def _legend(bars: list[ledger_view.WaterfallBar], *, is_whiskered: bool) -> list[Patch | Line2D]:
    """Colours of the bars, and the whiskers where one is seen."""
    labels_by_tone = {"loss": "lost", "gain": "gained", "quiet": "no evidence"}
    tones = {bar.tone for bar in bars if ledger_view.is_visible(sorted((bar.start, bar.end)), 1.0)}
    marks: list[Patch | Line2D] = [
        Patch(
            facecolor=COLOURS[tone],
            hatch=_HATCHES[tone],
            **EDGE,
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
        ledger_view.is_visible(
            ledger_view.readable_interval(row, rows),
            across * (3 if row.is_wall else 1),
        )
        for row in rows
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
        color=COLOURS[tone],
        hatch=_HATCHES[tone],
        **EDGE,
    )


def _whisker(
    axes: Axes, i: int, row: Row, end: float, *, unit: numbers.Scale, rows: list[Row]
) -> None:
    """The interval of a row around the end of its bar; the axis grows to hold it."""
    ci95 = ledger_view.readable_interval(row, rows)
    if ci95 is None:
        return
    low, high = (end + (bound - row.moves_ns) / unit.per for bound in ci95)
    axes.plot([low, high], [i, i], color="black", linewidth=0.7)
    left, right = axes.get_xlim()
    room = 0.02 * (right - left)
    axes.set_xlim(min(left, low - room), max(right, high + room))


def _amount(axes: Axes, i: int, row: Row, unit: numbers.Scale) -> None:
    """The number of a row in a column of its own at the right, where nothing can overlap it."""
    signed = not row.is_wall and row.row != "promised"
    axes.text(
        1.2,
        i,
        unit.text(row.ns, signed=signed),
        transform=axes.get_yaxis_transform(),
        va="center",
        ha="right",
        weight="bold" if row.is_wall else "normal",
    )
