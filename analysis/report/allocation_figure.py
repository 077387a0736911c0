"""The picture of a plan: in, a plan; out, its files.

Above, the share of channels and KV heads that each layer keeps; below, what each layer gives up and
saves; right, the least loss over the target, with the plan and the best uniform family.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from prunescope.analysis.report.allocation_tables import targets_text
from prunescope.analysis.report.escape import clean
from prunescope.analysis.report.figure_style import (
    EDGE,
    add_title,
    blank_figure,
    hide_frame,
    panel_columns,
    plotting,
)
from prunescope.analysis.report.looks import SERIES
from prunescope.analysis.report.picture import Picture, Row, files_of_pictures
from prunescope.analysis.schema.report import TOOL
from prunescope.taxonomy import numbers
from prunescope.taxonomy.allocations.allocation_plan import KeptLayer, PlanOfLayers

_CHANNELS, _LOSS, _SAVES, _HEADS = (SERIES[i].colour for i in (0, 1, 2, 4))
_UNIFORM = "#555555"
_NUMBERS = (
    "layer", "dropped", "kv_heads", "dense_kv_heads", "channels", "dense_channels",
    "attention_lowrank", "mlp_lowrank", "loss",
)  # fmt: skip
_HEIGHT = 3.0  # inches
_PARTS = (  # field of a layer, field of its low rank, colour, and its words; at the left or right
    ("channels", "mlp_lowrank", _CHANNELS, "MLP channels", "MLP", -0.2),
    ("kv_heads", "attention_lowrank", _HEADS, "KV heads", "attention", 0.2),
)


def plan_files(plan: PlanOfLayers, stem: str, formats: Sequence[str]) -> dict[str, bytes]:
    """Return the files of the figure of a plan, from file name to bytes.

    Args:
        plan: The plan.
        stem: The name of the files, without an ending.
        formats: Of png, pdf and svg for the figure, csv for its numbers, tex for its caption;
            others are ignored.
    """
    return files_of_pictures([_picture(plan, stem)], formats, TOOL)


def _picture(plan: PlanOfLayers, stem: str) -> Picture:
    expected, title = plan.expected, "What each layer keeps, and what it saves and loses"
    low, high = map(numbers.ratio, expected.range)
    phases = "; ".join(
        f"{clean(name)}: {numbers.time(phase.dense_ns)} dense, {numbers.time(phase.ns)} as planned"
        for name, phase in expected.phases.items()
    )
    tokens = plan.text.get("tokens")
    text = f"losses measured on {tokens:,} tokens" if isinstance(tokens, int) else "losses measured"
    if not plan.text.get("text"):
        text += f" ({clean(str(plan.text['note']))})" if plan.text.get("note") else ""
    lost = f"{expected.loss:+.3f} nats a token"
    dropped = f", {len(plan.removed)} of {len(plan.layers)} layers dropped"
    return Picture(
        stem=stem,
        title=title,
        caption=f"{title}: {clean(plan.model)}, target {targets_text(plan)}; expected, not "
        f"measured: {numbers.ratio(expected.speedup)} ({low} to {high}) at {lost}. {phases}. Of "
        f"each layer alone, {text}; the curve is the least loss over the target.",
        alt=f"Bars of {len(plan.layers)} layers{dropped}; expected: "
        f"{numbers.ratio(expected.speedup)}.",
        plot=partial(_figure, plan),
        rows=[_row(layer) for layer in plan.layers],
    )


def _row(layer: KeptLayer) -> Row:
    """Return the numbers of a layer: what it keeps, gives up and saves."""
    row: Row = {name: getattr(layer, name) for name in _NUMBERS}
    return row | {f"{name}_saves_ns": ns for name, ns in layer.saves_ns.items()}


class AllocationPlots:
    """The figures of a plan, as matplotlib Figures."""

    def __init__(self, plan: PlanOfLayers) -> None:
        self._plan = plan

    def layers(self) -> Figure:
        """Plot the size, loss and saved time of each layer, and the least loss over the target."""
        with plotting():
            return _figure(self._plan)


def _figure(plan: PlanOfLayers) -> Figure:
    if panel_columns() > 1:
        figure = blank_figure(_HEIGHT)
        grid = figure.add_gridspec(1, 2, width_ratios=(2.2, 1))
    else:
        figure = blank_figure(1.6 * _HEIGHT)
        grid = figure.add_gridspec(2, 1, height_ratios=(2, 1))
    inner = grid[0].subgridspec(2, 1)
    kept, given = figure.add_subplot(inner[0]), figure.add_subplot(inner[1])
    _plot_kept(kept, plan.layers)
    _plot_losses(given, plan)
    kept.sharex(given)
    kept.tick_params(labelbottom=False)
    _plot_frontier(figure.add_subplot(grid[1]), plan)
    target = f"{targets_text(plan)}, {plan.expected.speedup:.2f}× expected"
    add_title(figure, f"{clean(plan.model[-40:])}: {target}")
    return figure


def _plot_kept(axes: Axes, layers: list[KeptLayer]) -> None:
    """Plot the share of its channels and KV heads that each layer keeps.

    Where the matrices of a layer have a low rank, the bar shows the share of their parameters.
    """
    for name, lowrank, colour, label, module, shift in _PARTS:
        if not any(getattr(layer, f"dense_{name}") for layer in layers):
            continue
        sizes = [(getattr(layer, name), getattr(layer, f"dense_{name}")) for layer in layers]
        shares = [(left or 0) / (dense or 1) for left, dense in sizes]
        bar: dict[str, Any] = {"width": 0.38, "color": colour}
        axes.bar([layer.layer + shift for layer in layers], shares, label=label, **bar)
        ranked = [layer for layer in layers if getattr(layer, lowrank) is not None]
        if ranked:  # a hatched bar over the full one
            at = [layer.layer + shift for layer in ranked]
            axes.bar(at, [1.0] * len(ranked), width=0.38, color="white")
            shares = [getattr(layer, lowrank) / 100 for layer in ranked]
            bar |= {"alpha": 0.5, "hatch": "////", "edgecolor": "white"}
            axes.bar(at, shares, label=f"{module} of low rank, numbers", **bar)
    dropped = [layer.layer for layer in layers if layer.dropped]
    if dropped:
        cross: dict[str, Any] = {"marker": "x", "markersize": 3, "color": _LOSS, "linestyle": ""}
        axes.plot(dropped, [0.05] * len(dropped), label="dropped", **cross)
    axes.set(ylim=(0, 1.05), ylabel="kept")
    hide_frame(axes)
    axes.legend(frameon=False, ncols=2, loc="lower left", bbox_to_anchor=(0, 1))


def _plot_losses(axes: Axes, plan: PlanOfLayers) -> None:
    """Plot the loss that each layer gives up, and the time that it saves on an axis at the right.

    The saved time weights the phases as the target of the plan does.
    """
    layers = [layer.layer for layer in plan.layers]
    left: dict[str, Any] = {"width": 0.38, "color": _LOSS, **EDGE}
    axes.bar([n - 0.2 for n in layers], [layer.loss for layer in plan.layers], **left)
    axes.set_ylabel("loss (nats), left bars", color=_LOSS)
    axes.set_xlabel("layer")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top"]].set_visible(False)
    saves = axes.twinx()
    weights = {name: phase.weight for name, phase in plan.expected.phases.items()}
    saved_ms = [
        sum(weights[name] * ns for name, ns in layer.saves_ns.items()) / 1e6
        for layer in plan.layers
    ]
    right: dict[str, Any] = {"width": 0.38, "color": _SAVES, **EDGE}
    saves.bar([n + 0.2 for n in layers], saved_ms, **right)
    saves.set_ylabel("saved (ms), right bars", color=_SAVES)
    saves.spines[["top"]].set_visible(False)


def _plot_frontier(axes: Axes, plan: PlanOfLayers) -> None:
    """Plot the least loss over the memory or the speedup that is reached."""
    is_memory = plan.target.memory_gb is not None

    def reach(point: object) -> float:
        value = getattr(point, "memory_bytes" if is_memory else "speedup") or 0.0
        return float(value) / (1e9 if is_memory else 1)

    line: dict[str, Any] = {"linewidth": 0.9, "marker": ".", "markersize": 3}
    if plan.frontier:
        reached = [reach(point) for point in plan.frontier]
        losses = [point.loss for point in plan.frontier]
        axes.plot(reached, losses, color=_CHANNELS, label="allocate", **line)
    dot: dict[str, Any] = {"marker": "o", "markersize": 5, "linestyle": "", "label": "this plan"}
    axes.plot([reach(plan.expected)], [plan.expected.loss], color=_CHANNELS, **dot)
    if (best := plan.uniform) is not None:
        square: dict[str, Any] = {"marker": "s", "markersize": 4, "linestyle": ""}
        axes.plot([reach(best)], [best.loss], color=_UNIFORM, label=clean(best.family), **square)
    axes.set_xlabel("memory (GB)" if is_memory else "expected speedup")
    axes.set_ylabel("loss (nats a token)")
    hide_frame(axes)
    axes.legend(frameon=False, loc="best")
