"""Figures of a dense and a pruned run: the ladder of speedups, and the ledger as a waterfall.

In: a Phase. Out: figures; None where the phase has no ladder or no ledger.
"""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from prunescope.analysis.report import hatches, ledger_view
from prunescope.analysis.report.figure_style import (
    EDGE,
    PARITY,
    add_title,
    bar_entry,
    draw_interval_across,
    end_axis,
    ground,
    hatch_of,
    label_rows,
    legend_below,
    line_entry,
    mark_break,
    no_evidence,
    row_axes,
)
from prunescope.analysis.report.looks import BOUND, MEASURED, ROWS, Look
from prunescope.analysis.report.titles import short
from prunescope.analysis.schema.report import Phase, Row
from prunescope.analysis.summary import evidence
from prunescope.analysis.summary.labels import label_of
from prunescope.taxonomy import numbers

_UNSURE = "#DDDDDD"  # a bar that is no evidence
_INTERVAL: dict[str, Any] = {"color": "black", "linewidth": 1.0, "marker": "|", "markersize": 4}
_ROOM = 1.2  # times the longest bar: room for its number


def ladder_figure(phase: Phase, name: str, *, title: str = "") -> Figure | None:
    """Plot the speedup ladder as horizontal bars from 0, with the intervals that are known."""
    rows = ledger_view.ladder_rows(phase)
    if not rows:
        return None
    figure, axes = row_axes(len(rows))
    known = [row.value for row in rows if row.value is not None]
    top = end_axis([1.0, *known], [end for row in rows for end in row.ci95 or ()])
    for i, row in enumerate(rows):
        value, end = row.value, row.value or 0.0
        if value is not None:
            look = MEASURED if row.is_measured else BOUND
            bar: dict[str, Any] = {"color": _UNSURE if row.reasons else look.colour, **EDGE}
            axes.barh(i, value, 0.68, hatch=hatch_of(row.reasons), gid=f"bound-{row.key}", **bar)
        if row.ci95 and ledger_view.is_visible(row.ci95, _ROOM * top):
            draw_interval_across(axes, i, row.ci95, **_INTERVAL)
            end = min(top, max(end, row.ci95[1]))
        # The line at 1× would strike through a number that stands on it.
        box = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
        axes.text(end + 0.03 * top, i, numbers.ratio(value), va="center", zorder=3, bbox=box)
    axes.axvline(1.0, **PARITY)
    axes.set_xlim(0, _ROOM * top)
    label_rows(axes, [row.label for row in rows])
    sure = {row.is_measured for row in rows if row.value is not None and not row.reasons}
    bars = ((False, BOUND, "bound"), (True, MEASURED, "measured"))
    entries: list[Any] = [
        bar_entry(label, Look(look.colour)) for kind, look, label in bars if kind in sure
    ]
    entries += [
        bar_entry(words, Look(_UNSURE, hatches.HATCHES[reason]))
        for reason, words in ledger_view.ladder_caveats(rows).items()
    ]
    if any(ledger_view.is_visible(row.ci95, _ROOM * top) for row in rows):
        entries.append(line_entry("95 % interval", **_INTERVAL))
    entries.append(line_entry("1× (dense)", **PARITY))
    add_title(figure, title)
    legend_below(figure, entries)
    axes.set_xlabel(f"speedup (dense ÷ pruned), {short(name)}")
    return figure


def ledger_figure(phase: Phase, name: str, *, title: str = "") -> Figure | None:
    """Plot the ledger as a waterfall: walls and the promise as lines, changes as bars."""
    rows = phase.ledger
    if not rows:
        return None
    bars, (low, high) = ledger_view.waterfall(rows)
    unit = ledger_view.ledger_scale(rows)
    span = (high - low) / unit.per
    figure, axes = row_axes(len(rows))
    axes.set_xlim(low / unit.per, high / unit.per)
    has_intervals, spread = False, list[float]()
    for i, (row, bar) in enumerate(zip(rows, bars, strict=True)):
        start, end = (low / unit.per + at * span for at in (bar.start, bar.end))
        if bar.tone in ("total", "promise"):
            wall: dict[str, Any] = {"linewidth": 2.2 if bar.tone == "total" else 1.2}
            axes.plot([end, end], [i - 0.38, i + 0.38], color="black", gid=f"row-{row.row}", **wall)
        else:
            bar_look = _bar_look(row, is_sure=bar.tone != "quiet")
            axes.barh(i, end - start, 0.62, left=start, gid=f"row-{row.row}", **bar_look)
        if (ci95 := ledger_view.readable_interval(row, rows)) is not None:
            ends = [end + (bound - row.moves_ns) / unit.per for bound in ci95]
            draw_interval_across(axes, i, ends)
            spread += ends
            # The line of a wall is three times as wide as a whisker, so it hides more.
            hidden = 3 if row.is_wall else 1
            has_intervals |= ledger_view.is_visible(ends, hidden * span)
        if i + 1 < len(rows) and row.row != "dense":
            axes.plot([end, end], [i, i + 1], color="black", linewidth=0.4, zorder=0)
        _write_amount(axes, i, row, unit)
    _make_room(axes, spread)
    label_rows(axes, [label_of(row) for row in rows])
    if axes.get_xlim()[0] > 0:
        mark_break(axes)
    axes.text(1.2, -0.85, unit.unit, transform=axes.get_yaxis_transform(), va="center", ha="right")
    entries: list[Any] = _bar_entries(rows, bars)
    if has_intervals:
        entries.append(line_entry("95 % interval", color="black", linewidth=0.7))
    if reasons := evidence.ledger_reasons(phase):
        axes.axhspan(-0.5, len(rows) - 0.5, zorder=-1, **ground(reasons))
        entries.append(no_evidence(reasons, ", ".join(reasons)))
    add_title(figure, title)
    legend_below(figure, entries)
    kind = "unprofiled" if phase.time_base == "unprofiled" else "profiled"
    axes.set_xlabel(f"time of a step ({unit.unit}), {short(name)}, {kind}")
    return figure


def _bar_look(row: Row, *, is_sure: bool) -> dict[str, Any]:
    """Return the look of a row: its colour in every figure, and only its outline if unsure."""
    look = ROWS.get(row.row, ROWS["not_explained"])
    if not is_sure:
        return {"facecolor": "none", "edgecolor": "black", "linewidth": 0.6}
    return {"color": look.colour, "hatch": look.hatch, **EDGE}


def _bar_entries(rows: list[Row], bars: list[ledger_view.WaterfallBar]) -> list[Patch]:
    """Return the legend for bars without a colour; the others are named at their axis."""
    seen = any(
        bar.tone == "quiet" and ledger_view.is_visible(sorted((bar.start, bar.end)), 1.0)
        for bar in bars[: len(rows)]
    )
    return [Patch(label="no evidence", facecolor="none", edgecolor="black")] if seen else []


def _make_room(axes: Axes, ends: list[float]) -> None:
    """Extend the axis to hold the intervals, by no more than half of its length on each side.

    One wide interval would leave no room for the bars; an arrow says where it goes on.
    """
    left, right = axes.get_xlim()
    across = right - left
    room = 0.02 * across
    lowest, highest = min([left + room, *ends]) - room, max([right - room, *ends]) + room
    axes.set_xlim(max(lowest, left - across / 2), min(highest, right + across / 2))


def _write_amount(axes: Axes, i: int, row: Row, unit: numbers.Scale) -> None:
    """Write the number of row `i` in a column at the right, where nothing can overlap it."""
    is_total = row.is_wall
    text = unit.text(row.ns, signed=not is_total and row.row != "promised")
    weight = "bold" if is_total else "normal"
    place: dict[str, Any] = {"va": "center", "ha": "right", "weight": weight}
    axes.text(1.2, i, text, transform=axes.get_yaxis_transform(), **place)
