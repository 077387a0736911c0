"""The picture of a plan: in, a plan; out, PNG, PDF or SVG bytes.

Above, the share of channels and KV heads that each layer keeps; below, what each layer gives up and
saves; right, the least loss over the target, with the plan and the best uniform family.
"""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from prunescope.analysis.report.allocation_tables import target_text
from prunescope.analysis.report.escape import clean
from prunescope.analysis.report.figure_style import plotting, saved
from prunescope.taxonomy.allocations.allocation_plan import KeptLayer, PlanOfLayers

_CHANNELS, _HEADS, _LOSS, _SAVES, _UNIFORM = "#0072B2", "#E69F00", "#D55E00", "#009E73", "#555555"
_WIDTH, _HEIGHT = 7.0, 3.0  # inches


def plan_figure(plan: PlanOfLayers, ending: str) -> bytes:
    """The figure as PNG, PDF or SVG."""
    with plotting():
        return saved(_figure(plan), ending)


class AllocationPlots:
    """The figures of a plan, as matplotlib Figures."""

    def __init__(self, plan: PlanOfLayers) -> None:
        self._plan = plan

    def layers(self) -> Figure:
        """The size, loss and saved time of each layer, and the least loss over the target."""
        return _figure(self._plan)


def _figure(plan: PlanOfLayers) -> Figure:
    figure = Figure(figsize=(_WIDTH, _HEIGHT), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(1, 2, width_ratios=(2.2, 1))
    inner = grid[0].subgridspec(2, 1)
    kept, given = figure.add_subplot(inner[0]), figure.add_subplot(inner[1])
    _kept(kept, plan.layers)
    _given_up(given, plan)
    kept.sharex(given)
    kept.tick_params(labelbottom=False)
    _trade(figure.add_subplot(grid[1]), plan)
    figure.suptitle(
        f"{clean(plan.model[-40:])}: {target_text(plan.target)}, "
        f"{plan.expected.speedup:.2f}× expected",
        x=0.01,
        ha="left",
        fontsize=8,
    )
    return figure


def _kept(axes: Axes, layers: list[KeptLayer]) -> None:
    """The share of its channels and KV heads that each layer keeps, or of the parameters of its
    matrices where these have a low rank."""
    numbers = [one.layer for one in layers]
    for name, lowrank, colour, label, shift in (
        ("channels", "mlp_lowrank", _CHANNELS, "MLP channels", -0.2),
        ("kv_heads", "attention_lowrank", _HEADS, "KV heads", 0.2),
    ):
        if not any(getattr(one, f"dense_{name}") for one in layers):
            continue
        sizes = [(getattr(one, name), getattr(one, f"dense_{name}")) for one in layers]
        shares = [(left or 0) / (dense or 1) for left, dense in sizes]
        axes.bar([n + shift for n in numbers], shares, width=0.38, color=colour, label=label)
        ranked = [one for one in layers if getattr(one, lowrank) is not None]
        if ranked:  # over the full bar, the share of the numbers that two matrices have
            at = [one.layer + shift for one in ranked]
            axes.bar(at, [1.0] * len(ranked), width=0.38, color="white")
            axes.bar(
                at,
                [getattr(one, lowrank) / 100 for one in ranked],
                width=0.38,
                color=colour,
                alpha=0.5,
                hatch="////",
                edgecolor="white",
                label=f"{'MLP' if name == 'channels' else 'attention'} of low rank, numbers",
            )
    dropped = [one.layer for one in layers if one.dropped]
    if dropped:
        cross: dict[str, Any] = {"marker": "x", "markersize": 3, "color": _LOSS, "linestyle": ""}
        axes.plot(dropped, [0.05] * len(dropped), label="dropped", **cross)
    axes.set_ylim(0, 1.05)
    axes.set_ylabel("kept")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=6, ncols=2, loc="lower left", bbox_to_anchor=(0, 1))


def _given_up(axes: Axes, plan: PlanOfLayers) -> None:
    numbers = [one.layer for one in plan.layers]
    axes.bar([n - 0.2 for n in numbers], [one.loss for one in plan.layers], 0.38, color=_LOSS)
    axes.set_ylabel("loss given up (nats)", color=_LOSS)
    axes.set_xlabel("layer")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top"]].set_visible(False)
    saves = axes.twinx()
    weights = {name: one.weight for name, one in plan.expected.phases.items()}
    saved_ms = [
        sum(weights[name] * ns for name, ns in one.saves_ns.items()) / 1e6 for one in plan.layers
    ]
    saves.bar([n + 0.2 for n in numbers], saved_ms, 0.38, color=_SAVES)
    saves.set_ylabel("time saved (ms)", color=_SAVES)
    saves.spines[["top"]].set_visible(False)


def _trade(axes: Axes, plan: PlanOfLayers) -> None:
    memory = plan.target.memory_gb is not None

    def at(one: object) -> float:
        value = getattr(one, "memory_bytes" if memory else "speedup") or 0.0
        return float(value) / (1e9 if memory else 1)

    reached, losses = [at(one) for one in plan.frontier], [one.loss for one in plan.frontier]
    line: dict[str, Any] = {"linewidth": 0.9, "marker": ".", "markersize": 3}
    if reached:
        axes.plot(reached, losses, color=_CHANNELS, label="allocate", **line)
    square: dict[str, Any] = {"marker": "s", "markersize": 4, "linestyle": ""}
    dot: dict[str, Any] = {"marker": "o", "markersize": 5, "linestyle": ""}
    axes.plot([at(plan.expected)], [plan.expected.loss], color=_CHANNELS, label="this plan", **dot)
    if plan.uniform is not None:
        best = plan.uniform
        axes.plot([at(best)], [best.loss], color=_UNIFORM, label=best.family, **square)
    axes.set_xlabel("memory (GB)" if memory else "expected speedup")
    axes.set_ylabel("loss (nats a token)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=6, loc="best")
