"""The figure of a Comparison: in, its rows; out, PNG, PDF or SVG bytes, two columns wide.

Above: speedup over sparsity with 95 % intervals, a line for each method and setting. Below: where
the dense wall went, a bar for each run and phase; losses are right of the promise, gains left.
"""

from __future__ import annotations

import textwrap
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from prunescope.analysis.report import hatches
from prunescope.analysis.report.figure_style import (
    CURVE_MARKERS,
    CURVES,
    PAGE,
    PARITY,
    blank_figure,
    draw_interval,
    ground,
    hide_frame,
    no_evidence,
    picture_files,
)
from prunescope.analysis.report.ledger_view import is_visible
from prunescope.analysis.report.titles import short
from prunescope.analysis.schema.comparison import Comparison, ComparisonRow
from prunescope.analysis.summary import evidence
from prunescope.analysis.summary.labels import LEDGER
from prunescope.taxonomy.errors import PrunescopeError

_CURVES, _BAR, _LINE = 1.9, 0.16, 0.13  # inches: height of the curves, a bar, a line of a legend
_MOST_BARS, _MOST_CURVES = 30, 14  # what one page has room for
_SMALL = 6
_LABEL = 44  # letters left of the bars
_LEGEND_LETTERS, _MARK = 88, 4  # letters in a line of the legend; a mark is as wide as four
_NOTE_WIDTH = 48  # letters right of the curves
_PROMISED = "#DDDDDD"
_EDGE: dict[str, Any] = {"edgecolor": "black", "linewidth": 0.3}
# The hatches differ from those of what is no evidence (hatches.HATCHES).
_ROWS = {
    "coverage": ("#E69F00", ""), "roofline_shift": ("#56B4E9", "////"),
    "shape": ("#CC79A7", "...."), "kernel_efficiency": ("#D55E00", ""),
    "added_work": ("#F0E442", ""), "launch_idle": ("#999999", "\\\\\\\\"),
    "not_explained": ("#FFFFFF", "++++"),
}  # fmt: skip
Curve = list[tuple[float, ComparisonRow]]  # sparsity, and the row that has it


def plot_comparison(rows: Sequence[ComparisonRow], *endings: str) -> dict[str, bytes]:
    """Return the figure by format, plotted once; empty where no row has a ladder."""
    return picture_files(lambda ending: ending, lambda: comparison_figure(rows), endings)


def comparison_figure(rows: Sequence[ComparisonRow]) -> Figure | None:
    """Plot curves and bars on one page, at places that are fixed in inches.

    Args:
        rows: The rows of a comparison. Those without a ladder are left out.

    Returns:
        The figure; None where no row has a ladder.
    """
    known = [row for row in rows if row.ladder is not None]
    bars = [row for row in known if row.ledger and row.ledger["dense"] > 0][:_MOST_BARS]
    if not known:
        return None
    low = 0.5 + _BAR * max(1, len(bars))
    entries = _bar_entries(bars)
    above = -(-len(entries) // _count_columns(entries)) * _LINE  # inches of the legend of the bars
    height = 0.15 + _CURVES + 0.5 + max(0.35, above) + low + 0.05
    figure = blank_figure(PAGE, height, layout=None)

    def place(left: float, bottom: float, width: float, high: float) -> Axes:
        box = (left / PAGE, bottom / height, width / PAGE, high / height)
        return figure.add_axes(box)

    plot_curves(place(0.6, height - 0.15 - _CURVES, 3.3, _CURVES), known)
    plot_bars(place(2.5, 0.46, 4.3, low - 0.46), bars, left_out=len(known) - len(bars))
    return figure


def plot_curves(axes: Axes, rows: Sequence[ComparisonRow]) -> None:
    """Plot realised speedups with their intervals over the sparsity.

    The sparsity is the nominal one, or the removed share of FLOPs where none is named.
    """
    hide_frame(axes)
    curves: dict[str, Curve] = defaultdict(list)
    for row in rows:
        nominal = row.sparsity.get("nominal")
        at = row.sparsity.get("flop") if nominal is None else nominal
        if at is not None:
            curves[_curve_name(row, rows)].append((at, row))
    ends = sorted({x for points in curves.values() for x, _ in points}) or [0.0]
    span = ends[-1] - ends[0] or 0.1
    left, right = ends[0] - 0.12 * span, ends[-1] + 0.12 * span
    shown = list(curves.items())[:_MOST_CURVES]
    for i, (label, points) in enumerate(shown):
        # Curves stand side by side, so that intervals at one sparsity do not hide each other.
        aside = (i - (len(shown) - 1) / 2) * 0.012 * span
        _plot_curve(axes, i, label, [(x + aside, row) for x, row in points])
    grid = [x for i in range(41) if 0 <= (x := left + (right - left) * i / 40) < 0.95]
    dots: dict[str, Any] = {"color": "black", "linewidth": 0.6, "linestyle": (0, (1, 1.5))}
    axes.plot(grid, [1 / (1 - x) for x in grid], label="promised, 1/(1 − s)", **dots)
    every = [evidence.row_reasons(row) for _, points in shown for _, row in points]
    if reasons := [name for name in hatches.HATCHES if any(name in own for own in every)]:
        words = textwrap.fill(f"open: {', '.join(reasons)}", _NOTE_WIDTH)
        axes.plot([], [], "o", color="black", markersize=3, markerfacecolor="white", label=words)
    axes.set_xlim(left, right)
    axes.axhline(1.0, **PARITY)
    note = "; points of one s side by side" if len(shown) > 1 else ""
    axes.set_xlabel(f"sparsity s (share of FLOPs where none is named{note})", fontsize=_SMALL)
    axes.set_ylabel("speedup (dense ÷ pruned)")
    axes.locator_params(nbins=5)
    if len(ends) == 1:
        axes.set_xticks(ends)
    axes.legend(
        loc="upper left",
        bbox_to_anchor=(1.02, 1.0),
        borderaxespad=0,
        fontsize=_SMALL,
        frameon=False,
        labelspacing=0.25,
        title_fontsize=_SMALL,
        alignment="left",
        title=_left_out_notes(rows, curves, shown=len(shown)),
    )


def _left_out_notes(
    rows: Sequence[ComparisonRow], curves: dict[str, Curve], *, shown: int
) -> str | None:
    """Return notes on runs without a point in the curves, and on curves without room, if any."""
    hidden = len(curves) - shown
    lines = [f"{hidden} more curves left out"] if hidden > 0 else []
    placed = {id(row) for points in curves.values() for _, row in points}
    without = [f"{short(row.run, 24)} {row.phase}" for row in rows if id(row) not in placed]
    if without:
        more = f" and {len(without) - 2} more" if len(without) > 2 else ""
        text = f"no point, as its sparsity is unknown: {', '.join(without[:2])}{more}"
        lines.append(textwrap.fill(text, _NOTE_WIDTH))
    return "\n".join(lines) or None


def _plot_curve(axes: Axes, i: int, label: str, points: Curve) -> None:
    """Plot curve `i` with its intervals; markers of points that are no evidence are open."""
    colour, marker = CURVES[i % len(CURVES)], CURVE_MARKERS[i % len(CURVE_MARKERS)]
    look: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 3}
    known = [
        (x, row.ladder, bool(evidence.row_reasons(row)))
        for x, row in sorted(points, key=lambda point: point[0])
        if row.ladder is not None
    ]
    style = "-" if i < len(CURVES) else "--"
    line: dict[str, Any] = {"linewidth": 0.9, "label": label, "linestyle": style, **look}
    axes.plot([x for x, *_ in known], [ladder.realised for _, ladder, _ in known], **line)
    for x, ladder, _ in known:
        whisker: dict[str, Any] = {"linewidth": 0.8, "marker": "_", "markersize": 3}
        draw_interval(axes, x, ladder.realised_ci95 or None, color=colour, **whisker)
    look |= {"markerfacecolor": "white", "markeredgewidth": 0.8, "linestyle": "none", "zorder": 3}
    for x, ladder, is_open in known:
        if is_open:
            axes.plot(x, ladder.realised, **look)


def plot_bars(axes: Axes, rows: Sequence[ComparisonRow], *, left_out: int) -> None:
    """Plot the ledger of each row in per cent of its dense wall, around the promise.

    A row that is no evidence has a hatched background.

    Args:
        axes: The axes.
        rows: The rows of the comparison that have a ledger.
        left_out: How many rows the figure has no room for.
    """
    hide_frame(axes, "left", axis="y", length=0)
    for i, row in enumerate(rows):
        _plot_bar(axes, i, row)
        if why := evidence.row_reasons(row):
            axes.axhspan(i - 0.5, i + 0.5, zorder=-1, **ground(why))
    axes.axvline(100, **PARITY)
    axes.set_yticks(range(len(rows)), _bar_labels(rows), fontsize=_SMALL)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(left=0)
    note = f"; {left_out} more left out" if left_out > 0 else ""
    axes.set_xlabel(f"% of the dense wall; | promised, ◆ pruned{note}")
    entries = _bar_entries(rows)
    axes.legend(
        handles=entries,
        loc="lower left",
        bbox_to_anchor=(0, 1.0),
        ncols=_count_columns(entries),
        handlelength=1,
        fontsize=_SMALL,
        frameon=False,
        borderaxespad=0.2,
        columnspacing=0.9,
        handletextpad=0.4,
    )


def _bar_entries(rows: Sequence[ComparisonRow]) -> list[Patch]:
    """Return the legend of the bars: the rows that are seen, and why some are no evidence."""
    entries = [Patch(facecolor=_PROMISED, label="promised")] if rows else []
    entries += [
        Patch(facecolor=colour, hatch=hatch, label=LEDGER[name][0], **_EDGE)
        for name, (colour, hatch) in _ROWS.items()
        if any(_is_visible(row, name) for row in rows)
    ]
    reasons = hatches.with_further_reasons(map(evidence.row_reasons, rows))
    return entries + [no_evidence([reason], words) for reason, words in reasons.items()]


def _count_columns(entries: Sequence[Patch]) -> int:
    """Return how many columns that legend has room for, each as wide as its longest words."""
    widths = [len(str(entry.get_label())) + _MARK for entry in entries]
    for columns in range(6, 1, -1):
        rows, more = divmod(len(widths), columns)  # matplotlib fills the first columns
        ends = [0, *(rows * (i + 1) + min(i + 1, more) for i in range(columns))]
        parts = (widths[a:b] for a, b in pairwise(ends))
        if sum(max(part, default=0) for part in parts) <= _LEGEND_LETTERS:
            return columns
    return 1


def _is_visible(row: ComparisonRow, name: str) -> bool:
    """Return whether a row of the ledger is wide enough to be seen."""
    ledger = row.ledger or {}
    return is_visible([0.0, abs(ledger.get(name, 0.0) / ledger["dense"])], 1.0)


def _plot_bar(axes: Axes, i: int, row: ComparisonRow) -> None:
    """Plot one ledger: the promise, losses to its right, gains to its left, and the pruned wall."""
    ledger = row.ledger or {}
    per = 100 / ledger["dense"]
    promised = right = left = ledger["promised"] * per
    axes.barh(i, promised, 0.62, color=_PROMISED, edgecolor="none", zorder=0)
    for name, (colour, hatch) in _ROWS.items():
        share = ledger.get(name, 0.0) * per
        start = right if share > 0 else left
        axes.barh(i, share, 0.62, left=start, color=colour, hatch=hatch, **_EDGE)
        right, left = (right + share, left) if share > 0 else (right, left + share)
    axes.plot([promised, promised], [i - 0.36, i + 0.36], color="black", linewidth=1.0)
    face = "white" if evidence.row_reasons(row) else "black"
    diamond: dict[str, Any] = {"marker": "D", "markersize": 2.5, "color": "black", "zorder": 3}
    axes.plot([ledger["pruned"] * per], [i], markerfacecolor=face, **diamond)


def _curve_name(row: ComparisonRow, rows: Sequence[ComparisonRow]) -> str:
    """Return method and phase, with the settings in which the rows differ."""
    words = [row.called or row.family or "?", row.phase]
    for key, label in (("batch", "B"), ("prompt_len", "S"), ("model", "")):
        of_items = key == "prompt_len" and row.items_per_s is not None
        if len({getattr(r, key) for r in rows}) > 1 and not of_items:
            words.append(f"{label}{getattr(row, key)}")
    return short(" ".join(str(w) for w in words), 40)


def _bar_labels(rows: Sequence[ComparisonRow]) -> list[str]:
    """Return run and phase of each row, then method and sparsity where there is room for them."""
    labels = []
    for row in rows:
        nominal = row.sparsity.get("nominal")
        run = f"{short(row.run, 34)} {row.phase}"
        method = row.called or row.family or "?"
        label = f"{run}: {method}{'' if nominal is None else f' {nominal:g}'}"
        labels.append(short(label if len(label) <= _LABEL else run, _LABEL))
    return labels


class ComparisonPlots:
    """The figures of a comparison, as matplotlib Figures."""

    def __init__(self, comparison: Comparison) -> None:
        self._comparison = comparison

    def speedups(self) -> Figure:
        """Plot the speedups of the runs, with intervals.

        Raises:
            PrunescopeError: No run has a speedup.
        """
        figure = comparison_figure(self._comparison.rows)
        if figure is None:
            raise PrunescopeError(
                "no run has a speedup to plot", hint="a speedup needs a dense baseline"
            )
        return figure
