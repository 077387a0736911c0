"""Figures of a dense and a pruned run: the ladder of speedups, and the ledger as a waterfall.

In: a Phase. Out: figures one column wide; None where the phase has no ladder or no ledger.
"""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from prunescope.analysis.report import hatches, ledger_view
from prunescope.analysis.report.figure_style import (
    BOUND,
    COLOURS,
    EDGE,
    PARITY,
    REALISED,
    add_title_and_legend,
    bar_entry,
    ground,
    hatch_of,
    label_rows,
    line_entry,
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
_INTERVAL: dict[str, Any] = {"color": "black", "linewidth": 1.0, "marker": "|", "markersize": 4}
_TONES = {"loss": "lost", "gain": "gained", "quiet": "no evidence"}


def ladder_figure(phase: Phase, name: str, *, title: str = "") -> Figure | None:
    """Plot the speedup ladder as horizontal bars from 0, with the intervals that are known."""
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
            axes.plot(row.ci95, [i, i], **_INTERVAL)
            end = max(end, row.ci95[1])
        # The line at 1× would strike through a number that stands on it.
        box = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
        axes.text(end + 0.02 * top, i, numbers.ratio(value), va="center", zorder=3, bbox=box)
    axes.axvline(1.0, **PARITY)
    axes.set_xlim(0, 1.2 * top)
    label_rows(axes, [row.label for row in rows])
    sure = {row.is_measured for row in rows if row.value is not None and not row.reasons}
    bars = ((False, BOUND, "bound"), (True, REALISED, "measured"))
    entries: list[Any] = [bar_entry(label, colour) for kind, colour, label in bars if kind in sure]
    entries += [
        bar_entry(words, _UNSURE, hatches.HATCHES[reason])
        for reason, words in ledger_view.ladder_caveats(rows).items()
    ]
    if any(ledger_view.is_visible(row.ci95, 1.2 * top) for row in rows):
        entries.append(line_entry("95 % interval", **_INTERVAL))
    entries.append(line_entry("1× (dense)", **PARITY))
    add_title_and_legend(figure, title, entries)
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
    for i, (row, bar) in enumerate(zip(rows, bars, strict=True)):
        start, end = (low / unit.per + at * span for at in (bar.start, bar.end))
        if bar.tone in ("total", "promise"):
            width = 2.2 if bar.tone == "total" else 1.2
            axes.plot([end, end], [i - 0.38, i + 0.38], color="black", linewidth=width)
        else:
            look = {"color": COLOURS[bar.tone], "hatch": _HATCHES[bar.tone], **EDGE}
            axes.barh(i, end - start, 0.62, left=start, **look)
        if (ci95 := ledger_view.readable_interval(row, rows)) is not None:
            _draw_row_interval(axes, i, [end + (bound - row.moves_ns) / unit.per for bound in ci95])
        if i + 1 < len(rows) and row.row != "dense":
            axes.plot([end, end], [i, i + 1], color="black", linewidth=0.4, zorder=0)
        _write_amount(axes, i, row, unit)
    label_rows(axes, [label_of(row) for row in rows])
    axes.text(1.2, -0.85, unit.unit, transform=axes.get_yaxis_transform(), va="center", ha="right")
    left, right = axes.get_xlim()
    entries: list[Any] = _tone_entries(bars)
    if _is_whiskered(rows, (right - left) * unit.per):
        entries.append(line_entry("95 % interval", color="black", linewidth=0.7))
    if reasons := evidence.ledger_reasons(phase):
        axes.axhspan(-0.5, len(rows) - 0.5, zorder=-1, **ground(reasons))
        entries.append(no_evidence(reasons, ", ".join(reasons)))
    add_title_and_legend(figure, title, entries)
    kind = "unprofiled" if phase.time_base == "unprofiled" else "profiled"
    axes.set_xlabel(f"time of a step ({unit.unit}), {short(name)}, {kind}")
    return figure


def _tone_entries(bars: list[ledger_view.WaterfallBar]) -> list[Patch]:
    """Return legend entries for the colours of those bars that can be seen."""
    seen = {bar.tone for bar in bars if ledger_view.is_visible(sorted((bar.start, bar.end)), 1.0)}
    return [bar_entry(words, COLOURS[t], _HATCHES[t]) for t, words in _TONES.items() if t in seen]


def _is_whiskered(rows: list[Row], across: float) -> bool:
    """Return whether an interval can be seen on an axis that is `across` ns long.

    The line of a wall is three times as wide as a whisker, so it hides more.
    """
    spans = ((row, across * (3 if row.is_wall else 1)) for row in rows)
    return any(
        ledger_view.is_visible(ledger_view.readable_interval(row, rows), span)
        for row, span in spans
    )


def _draw_row_interval(axes: Axes, i: int, ends: list[float]) -> None:
    """Draw the interval of row `i`, and extend the axis to hold it."""
    axes.plot(ends, [i, i], color="black", linewidth=0.7)
    left, right = axes.get_xlim()
    room = 0.02 * (right - left)
    axes.set_xlim(min(left, ends[0] - room), max(right, ends[1] + room))


def _write_amount(axes: Axes, i: int, row: Row, unit: numbers.Scale) -> None:
    """Write the number of row `i` in a column at the right, where nothing can overlap it."""
    is_total = row.is_wall
    text = unit.text(row.ns, signed=not is_total and row.row != "promised")
    weight = "bold" if is_total else "normal"
    place: dict[str, Any] = {"va": "center", "ha": "right", "weight": weight}
    axes.text(1.2, i, text, transform=axes.get_yaxis_transform(), **place)
