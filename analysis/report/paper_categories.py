"""Figs. 2 and 6 of the paper: the dense step, and one layer dense and pruned, in its categories."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from prunescope.analysis.report import hatches
from prunescope.analysis.report.escape import clean
from prunescope.analysis.report.figure_style import (
    EDGE,
    MOST_WHISKER,
    ground,
    no_evidence,
    reason_patches,
    shade,
)
from prunescope.analysis.report.ledger_view import is_visible
from prunescope.analysis.report.paper_figure import (
    LAYER,
    PAGE,
    MissingFigure,
    Panel,
    PaperFigure,
    Row,
    ends,
    family_label,
    grid_of,
    mark_words,
    named,
    not_shown,
    of_sweep,
    on_a_page,
    page,
    panels,
    patch,
    points_of,
    slanted,
    stacked,
    usually_aligned,
)
from prunescope.analysis.report.pareto_figures import legend_below
from prunescope.analysis.schema.categories import CATEGORIES, GEMMS
from prunescope.analysis.schema.pareto import Pareto, SweepPoint
from prunescope.analysis.summary import evidence
from prunescope.taxonomy.numbers import Scale, scale, time

_LOOKS = {
    "mlp": ("#0072B2", ""), "qkvo": ("#56B4E9", ""), "other_gemm": ("#56B4E9", "////"),
    "lm_head": ("#CC79A7", ""), "attention": ("#E69F00", ""), "cache_update": ("#F0E442", ""),
    "extra": ("#D55E00", ""), "preprocess": ("#D55E00", "////"), "elementwise": ("#009E73", ""),
    "other": ("#FFFFFF", "...."), "idle": ("#BBBBBB", ""),
}  # fmt: skip
_DARK = ("mlp", "elementwise", "extra")  # with white numbers in them
_LEAST_SHOWN = 0.06  # of a step: a share that has room for its number
_GEMM = "gemm"
_LAYER_LOOKS = {_GEMM: ("#0072B2", ""), **_LOOKS}
_LAYER_NAMES = {_GEMM: "GEMM, GEMV", **CATEGORIES}
_ROW = 0.21  # inches
Spread = tuple[float, float, float]  # of the median result, lowest, highest


def shares(found: Pareto) -> PaperFigure | MissingFigure:
    """Shares of the dense step, a bar a phase and setting."""
    known = [panel for panel in panels(found) if _of_dense(panel)]
    shown = [panel for panel in map(_with_shares, known) if panel.points]
    withheld = sum(len(p.points) for p in known) - sum(len(p.points) for p in shown)
    name, title = "shares", "Shares of the dense step"
    if known and not shown:
        return MissingFigure(
            name,
            "every result has a share of its dense step outside of 0 to 100 %",
            "sweep again with more `steps`, while nothing else runs",
        )
    if not shown:
        reason = "no result has the time of its dense step by category"
        return MissingFigure(name, reason, "sweep with profiled steps, as `steps: 2`")
    every = [(panel, _shares(panel)) for panel in shown]
    apart = max(high - low for _, of in every for _, low, high in of.values())
    return PaperFigure(
        name=name,
        title=title,
        caption=f"{title} in the categories of arXiv 2606.09080, of the result whose dense step "
        f"takes the median time; results of one setting differ by up to {100 * apart:.1f} points"
        f"{_widest(shown)}.{_withheld_words(withheld)} {of_sweep(found, points_of(shown))}",
        rows=[
            {
                "phase": panel.phase,
                "setting": panel.cell.where,
                "category": category,
                "share": share,
                "lowest": lowest,
                "highest": highest,
                **ends(_interval(panel, category)),
                "dense_ns": _wall(panel),
                "n": len(_of_dense(panel)),
                "timing_valid": not _reasons(panel),
            }
            for panel, of_panel in every
            for category, (share, lowest, highest) in of_panel.items()
        ],
        plot=lambda: _shares_figure(every),
    )


def _with_shares(panel: Panel) -> Panel:
    """A panel with the results of which each category takes 0 to 100 % of the dense step. Where the
    profiler's overhead, which is subtracted, exceeds a category, its time is below zero."""
    points = [
        p
        for p in panel.points
        if p.categories
        and p.ledger.get("dense")
        and all(0 <= c.dense_ns <= p.ledger["dense"] for c in p.categories)
    ]
    return replace(panel, points=points)


def _withheld_words(count: int) -> str:
    if not count:
        return ""
    return (
        f" Withheld: {count} results with a category outside of 0 to 100 % of the step; intervals "
        "are cut there."
    )


def _of_dense(panel: Panel) -> list[SweepPoint]:
    """The points that know the categories of their dense step; those with valid times, if any."""
    known = [p for p in panel.points if p.categories and p.ledger.get("dense")]
    return [p for p in known if p.timing_valid] or known


def _reasons(panel: Panel) -> list[str]:
    """Why the dense times of a panel are no evidence: no result has valid ones."""
    every = [evidence.point_reasons(p) for p in _of_dense(panel)]
    return min(every, key=len, default=[])


def _median(panel: Panel) -> SweepPoint:
    """The result whose dense step takes the median time, the lower one of two: its shares add up,
    which medians of shares do not."""
    points = sorted(_of_dense(panel), key=lambda p: p.ledger["dense"])
    return points[(len(points) - 1) // 2]


def _shares(panel: Panel) -> dict[str, Spread]:
    """Each category's share of the dense wall."""
    points = [_median(panel), *_of_dense(panel)]
    names = [n for n in CATEGORIES if any(n == c.name for p in points for c in p.categories)]
    found = {}
    for name in names:
        values = [
            sum(c.dense_ns for c in p.categories if c.name == name) / p.ledger["dense"]
            for p in points
        ]
        found[name] = (values[0], min(values), max(values))
    return {name: spread for name, spread in found.items() if spread[2] > 0}


def _interval(panel: Panel, category: str) -> list[float] | None:
    """The 95 % interval of a category's time in the median result, as shares of its dense wall."""
    ends = [c.dense_ci95 for c in _median(panel).categories if c.name == category]
    if len(ends) != 1 or ends[0] is None:
        return None
    return [min(1.0, max(0.0, end / _wall(panel))) for end in ends[0]]


def _widest(shown: Sequence[Panel]) -> str:
    """How wide the widest interval of a share is, as the end of a sentence."""
    every = [_interval(panel, name) for panel in shown for name in _shares(panel)]
    widths = [ends[1] - ends[0] for ends in every if ends is not None]
    if not widths:
        return ", and no share has a 95 % interval, as too few steps were profiled"
    return f", and the 95 % interval of a share is at most {100 * max(widths):.1f} points wide"


def _wall(panel: Panel) -> float:
    return _median(panel).ledger["dense"]


def _shares_figure(every: Sequence[tuple[Panel, dict[str, Spread]]]) -> Figure:
    figure, grid = page(1, 1, (PAGE, 0.85 + _ROW * len(every)))
    axes = grid[0][0]
    for i, (panel, of_panel) in enumerate(every):
        _stack(axes, i, {name: spread[0] for name, spread in of_panel.items()})
        axes.text(1.01, i, time(_wall(panel)), va="center")
        if reasons := _reasons(panel):
            axes.axhspan(i - 0.5, i + 0.5, zorder=-1, **ground(reasons))
    axes.set_xlim(0, 1.1)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25", "50", "75", "100 %"])
    axes.set_yticks(range(len(every)), [panel.title for panel, _ in every])
    axes.set_ylim(len(every) - 0.45, -0.55)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("share of the dense step; at the right, its time")
    present = [n for n in CATEGORIES if any(n in of for _, of in every)]
    handles = [patch(_LOOKS[n][0], CATEGORIES[n], _LOOKS[n][1]) for n in present]
    of_all = hatches.first_reasons(_reasons(panel) for panel, _ in every)
    handles += [no_evidence([reason], reason) for reason in of_all]
    legend_below(figure, handles, columns=len(handles))
    return figure


def _stack(axes: Axes, at: int, of_panel: dict[str, float]) -> None:
    left = 0.0
    for name, share in of_panel.items():
        colour, hatch = _LOOKS[name]
        axes.barh(at, share, 0.72, left=left, color=colour, hatch=hatch, **EDGE)
        if share >= _LEAST_SHOWN:
            axes.text(
                left + share / 2,
                at,
                f"{100 * share:.0f}",
                ha="center",
                va="center",
                fontsize=6,
                color="white" if name in _DARK else "black",
            )
        left += share


def layer(found: Pareto) -> PaperFigure | MissingFigure:
    """One layer alone: the dense one next to that of each family, in the categories of Fig. 6."""
    shown = panels(found, _largest, only=LAYER)
    name, title = "layer", "One layer alone"
    if not shown:
        key = "add `only: [model, layer]` to the sweep"
        return MissingFigure(name, "no result is of one layer alone", key)
    points = points_of(shown)
    return PaperFigure(
        name=name,
        title=title,
        caption=f"{title}, dense and of each family at its largest sparsity, in the categories of "
        "arXiv 2606.09080. Each result measures a dense layer of its own, at the line across its "
        "bar; the dense bar is the one of the median time, its whisker from the lowest to the "
        "highest of all. Whiskers of families: the 95 % interval of the speedup, on the time of "
        f"the layer, cut where it leaves the panel.{_own_words(points)}{_layer_sum_words(points)}"
        f"{mark_words(points)}{not_shown(shown)} {of_sweep(found, points)}",
        rows=[row for panel in shown for row in _layer_rows(panel)],
        plot=lambda: _layer_figure(on_a_page(shown)),
    )


def _largest(points: Sequence[SweepPoint]) -> list[SweepPoint]:
    """The point of each family at its largest sparsity, with its categories."""
    best: dict[str, SweepPoint] = {}
    for point in usually_aligned(p for p in points if p.categories):
        key = family_label(point)
        if key not in best or (point.sparsity or 0.0) > (best[key].sparsity or 0.0):
            best[key] = point
    return list(best.values())


def _parts(point: SweepPoint, *, dense: bool) -> dict[str, float]:
    """Category to ns, the GEMMs as one."""
    found: dict[str, float] = {}
    for one in point.categories:
        name = _GEMM if one.name in GEMMS else one.name
        found[name] = found.get(name, 0.0) + (one.dense_ns if dense else one.pruned_ns)
    return {name: found[name] for name in _ORDER if found.get(name)}


_ORDER = (_GEMM, *(name for name in CATEGORIES if name not in GEMMS))


def _own_words(points: Sequence[SweepPoint]) -> str:
    """The meaning of `here` in a name, for a caption; empty where no layer has a share of its
    own."""
    if not any(map(_here, points)):
        return ""
    return " Here: the share that this layer left out of what it decides on, where it is not s."


def _here(point: SweepPoint) -> str:
    """The sparsity of a layer of a dynamic family, where it is not the nominal one; else empty."""
    own, nominal = point.own_sparsity, point.sparsity
    if own is None or nominal is None or f"{own:.2f}" == f"{nominal:.2f}":
        return ""
    return f"\nhere {own:.2f}"


def _layer_sum_words(points: Sequence[SweepPoint]) -> str:
    """How near all layers by this one are to the whole model; empty where that is not known."""
    found = [one for p in points for one in (p.closure or {}).values()]
    if not found:
        return ""
    ratios = [one.ratio for one in found]
    ends = [end for one in found for end in one.ratio_ci95 or ()]
    within = (
        f", with 95 % intervals (over rounds of one placement) from {min(ends):.2f} to "
        f"{max(ends):.2f}"
        if ends
        else ""
    )
    return (
        " Layer sum: as many of this layer as the model has, with the rest, take "
        f"{min(ratios):.2f} to {max(ratios):.2f} of the time of the whole model{within}; each is "
        "in the CSV."
    )


def _layer_rows(panel: Panel) -> list[Row]:
    """The dense and the pruned layer of each result, by category."""
    median = _median(panel)
    return [
        row
        for point in panel.points
        for side in ("dense", "pruned")
        for row in _rows_of_side(panel, point, side, is_plotted=side == "pruned" or point is median)
    ]


def _rows_of_side(panel: Panel, point: SweepPoint, side: str, *, is_plotted: bool) -> list[Row]:
    is_dense = side == "dense"
    closure = (point.closure or {}).get(side)
    return [
        {
            "phase": panel.phase,
            "setting": panel.cell.where,
            "result": family_label(point),
            "side": side,
            "sparsity": None if is_dense else point.sparsity,
            "own_sparsity": None if is_dense else point.own_sparsity,
            "category": one.name,
            "ns": one.dense_ns if is_dense else one.pruned_ns,
            **ends(one.dense_ci95 if is_dense else one.pruned_ci95),
            "realised": 1.0 if is_dense else point.realised,
            **ends(None if is_dense else point.realised_ci95, "realised_"),
            "closure": closure.ratio if closure else None,
            **ends(closure.ratio_ci95 if closure else None, "closure_"),
            "drawn": is_plotted,
            "timing_valid": point.timing_valid,
        }
        for one in point.categories
    ]


def _layer_figure(shown: Sequence[Panel]) -> Figure:
    figure, every = grid_of(shown, 2.5)
    present: dict[str, None] = {}
    for axes, panel in zip(every, shown, strict=True):
        sides = [(_median(panel), True), *((p, False) for p in panel.points)]
        unit = scale(p.ledger["dense" if dense else "pruned"] for p, dense in sides)
        tops = []
        for i, (point, dense) in enumerate(sides):
            parts = _parts(point, dense=dense)
            whole = sum(parts.values())
            present |= {name: None for name, ns in parts.items() if is_visible([0.0, ns], whole)}
            own = sum(_parts(point, dense=True).values())
            top = _column(axes, i, parts, unit, clear=own)
            tops += [top, own]
            shade(axes, i, point)
            if not dense:
                axes.plot([i - 0.4, i + 0.4], [own / unit.per] * 2, color="black", linewidth=1.2)
                _whisker(axes, i, (top, point), unit)
        _dense_spread(axes, panel, unit)
        axes.set_ylim(0, MOST_WHISKER * max(tops) / unit.per)
        slanted(axes, ["dense", *(f"{named(p)}{_here(p)}" for p in panel.points)])
        axes.set_ylabel(f"time of a layer ({unit.unit})")
    handles: list[Any] = [
        patch(_LAYER_LOOKS[n][0], _LAYER_NAMES[n], _LAYER_LOOKS[n][1])
        for n in _ORDER
        if n in present
    ]
    handles += [Line2D([], [], color="black", linewidth=1.2, label="dense, of the same result")]
    handles += reason_patches(points_of(shown))
    legend_below(figure, handles, columns=len(handles))
    return figure


def _dense_spread(axes: Axes, panel: Panel, unit: Scale) -> None:
    """Plot the range of the dense layer's time, lowest to highest, next to the dense bar."""
    times = [sum(_parts(point, dense=True).values()) / unit.per for point in _of_dense(panel)]
    axes.plot([0.28] * 2, [min(times), max(times)], color="black", linewidth=0.8)


def _column(axes: Axes, at: int, parts: dict[str, float], unit: Scale, *, clear: float) -> float:
    """A stacked bar, with its height above it; inside of it where a line at `clear` ns lies above,
    so that the number does not read as that of the line. Gives the height in ns."""
    scaled, top = {name: ns / unit.per for name, ns in parts.items()}, sum(parts.values())
    stacked(axes, at, scaled, _LAYER_LOOKS, 0.7)
    look: dict[str, Any] = {"ha": "center", "va": "bottom", "fontsize": 6}
    if clear > top:
        ground = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
        look |= {"va": "top", "bbox": ground}
    axes.text(at, top / unit.per, clean(unit.text(top)), **look)
    return top


def _whisker(axes: Axes, at: int, of: tuple[float, SweepPoint], unit: Scale) -> None:
    """The interval of the speedup as one of the pruned time, next to the number on top."""
    top, point = of
    if point.realised_ci95 is None:
        return
    low, high = (point.realised / end * top / unit.per for end in reversed(point.realised_ci95))
    axes.plot([at + 0.28] * 2, [low, high], color="black", linewidth=0.8)
