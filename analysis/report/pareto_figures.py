"""Figures of a sweep: in, a Pareto; out, PNG, PDF or SVG bytes by file name.

Realised against bound, and where the time goes in each family as stacked parts of the dense step.
One panel for each batch and length. Speed against loss: `frontier_figure`.
"""

from __future__ import annotations

from collections.abc import Callable

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from prunescope.analysis.report.escape import clean
from prunescope.analysis.report.figures import STYLE, saved
from prunescope.analysis.report.ledger_view import LEDGER
from prunescope.analysis.report.names import figure_name
from prunescope.analysis.report.pareto_frontier import frontier_figure
from prunescope.analysis.report.pareto_marks import dot, legend_below, marks_of
from prunescope.analysis.schema.pareto import Pareto, ParetoPhase, SweepCell, SweepPoint

_PANEL, _COLUMNS = 3.35, 2  # inches; two columns of a page side by side
_ROWS = (
    ("coverage", "#D55E00", "/////"),
    ("roofline_shift", "#CC79A7", ""),
    ("shape", "#F0E442", "....."),
    ("kernel_efficiency", "#E69F00", ""),
    ("added_work", "#56B4E9", "xxxxx"),
    ("launch_idle", "#999999", "-----"),
    ("not_explained", "#FFFFFF", "++++"),
)
_PROMISED = "#DDDDDD"

Panel = Callable[[Axes, list[SweepPoint], dict[str, tuple[str, str]]], None]


def pareto_figures(found: Pareto, ending: str) -> dict[str, bytes]:
    """File name to bytes: speed-quality of all phases, bound and ledger of each."""
    panels: dict[str, Panel] = {
        "bound": _bound,
        "ledger": _ledger,
    }
    files = {figure_name("speed-quality", "all", ending): frontier_figure(found, ending)}
    for name, phase in found.phases.items():
        for kind, panel in panels.items():
            files[figure_name(kind, name, ending)] = _figure(phase, name, panel, ending)
    return files


def _figure(phase: ParetoPhase, name: str, panel: Panel, ending: str) -> bytes:
    marks = marks_of(phase.points)
    columns = min(_COLUMNS, len(phase.cells))
    rows = -(-len(phase.cells) // columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(_PANEL * columns, 2.5 * rows + 0.6), layout="constrained")
        FigureCanvasAgg(figure)
        grid = figure.subplots(rows, columns, squeeze=False)
        for axes, cell in zip(grid.flat, phase.cells, strict=False):
            panel(axes, _of(phase, cell), marks)
            axes.set_title(f"{clean(name)}, batch {cell.batch}, {cell.prompt_len} tokens")
            axes.spines[["top", "right"]].set_visible(False)
        for axes in grid.flat[len(phase.cells) :]:
            axes.set_visible(False)
        handles, _ = grid.flat[0].get_legend_handles_labels()
        legend_below(figure, handles, columns=2 * columns)
        return saved(figure, ending)


def _bound(axes: Axes, points: list[SweepPoint], marks: dict[str, tuple[str, str]]) -> None:
    """x: the roofline bound, y: what was realised; on the diagonal the bound is reached."""
    low, top = 1.0, 1.0
    for family, (colour, marker) in marks.items():
        label: str | None = clean(family)
        for point in (p for p in points if p.label == family):
            bound = point.bounds.get("roofline")
            if bound is None:
                continue
            dot(
                axes,
                (bound, point.realised),
                (None, point.realised_ci95),
                colour,
                marker,
                full=point.timing_valid,
                label=label if point.timing_valid else None,
            )
            label = None if point.timing_valid else label
            low, top = min(low, bound, point.realised), max(top, bound, point.realised)
        if label is not None:
            axes.plot([], [], color=colour, marker=marker, linestyle="none", label=label)
    if not all(p.timing_valid for p in points):
        words = "open: timing not valid"
        axes.plot([], [], "o", color="black", markerfacecolor="white", label=words)
    ends = [0.95 * low, 1.05 * top]
    axes.plot(ends, ends, color="black", linewidth=0.6, linestyle=(0, (3, 2)))
    axes.set_xlabel("roofline bound (speedup)")
    axes.set_ylabel("realised (speedup)")


def _ledger(axes: Axes, points: list[SweepPoint], marks: dict[str, tuple[str, str]]) -> None:
    """A bar a family, at its largest sparsity: the promise, then losses up and gains down."""
    bars = [p for p in (_largest(points, family) for family in marks) if p is not None]
    seen = {row for point in bars for row in point.ledger}
    for i, point in enumerate(bars):
        dense = point.ledger["dense"]
        up, down = point.ledger["promised"] / dense, 0.0
        axes.bar(
            i,
            up,
            0.7,
            color=_PROMISED,
            edgecolor="black",
            linewidth=0.4,
            label="promised" if i == 0 else None,
        )
        for row, colour, hatch in (one for one in _ROWS if one[0] in seen):
            share = point.ledger.get(row, 0.0) / dense
            base = up if share >= 0 else down
            axes.bar(
                i,
                share,
                0.7,
                bottom=base,
                color=colour,
                hatch=hatch,
                edgecolor="black",
                linewidth=0.4,
                label=LEDGER[row][0] if i == 0 else None,
            )
            up, down = up + max(0.0, share), down + min(0.0, share)
        axes.plot(
            [i - 0.42, i + 0.42],
            [point.ledger["pruned"] / dense] * 2,
            color="black",
            linewidth=1.6,
            label="pruned, measured" if i == 0 else None,
        )
    axes.axhline(1.0, color="black", linewidth=0.6, linestyle=(0, (3, 2)))
    axes.axhline(0.0, color="black", linewidth=0.6)
    axes.set_xticks(range(len(bars)), [f"{clean(p.label)} {_share(p)}" for p in bars])
    axes.tick_params(axis="x", rotation=40, labelsize=6)
    for label in axes.get_xticklabels():
        label.set_horizontalalignment("right")
    axes.set_ylabel("share of the dense step")


def _largest(points: list[SweepPoint], family: str) -> SweepPoint | None:
    own = [p for p in points if p.label == family and p.ledger.get("dense")]
    return max(own, key=lambda p: p.sparsity or 0.0, default=None)


def _of(phase: ParetoPhase, cell: SweepCell) -> list[SweepPoint]:
    where = (cell.batch, cell.prompt_len)
    return [p for p in phase.points if (p.batch, p.prompt_len) == where]


def _share(point: SweepPoint) -> str:
    return "" if point.sparsity is None else f"{point.sparsity:g}"
