"""Figs. 2 and 6 of the paper: the dense step, and one layer dense and pruned, in its categories."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from prunescope.analysis.paper.paper_figure import (
    LAYER,
    MissingFigure,
    Panel,
    caption_end,
    family_label,
    fit_page,
    interval_ends,
    named,
    panel_grid,
    panels,
    points_of,
    setup_words,
    slant_names,
    stacked,
    usually_aligned,
)
from prunescope.analysis.report import hatches
from prunescope.analysis.report.escape import clean
from prunescope.analysis.report.figure_style import (
    BOUND_LINE,
    EDGE,
    MOST_WHISKER,
    SMALL,
    bar_entry,
    draw_interval,
    draw_level,
    ground,
    legend_below,
    line_entry,
    no_evidence,
    panel_axes,
    reason_patches,
    shade,
)
from prunescope.analysis.report.ledger_view import is_visible
from prunescope.analysis.report.looks import CATEGORIES as LOOKS
from prunescope.analysis.report.looks import ink
from prunescope.analysis.report.picture import Picture, Row
from prunescope.analysis.schema.categories import CATEGORIES, GEMMS
from prunescope.analysis.schema.pareto import Pareto, SweepPoint
from prunescope.analysis.summary import evidence
from prunescope.taxonomy.numbers import Scale, scale, time
from prunescope.taxonomy.words import when

_LEAST_SHOWN = 0.06  # of a step: a share that has room for its number
_GEMM = "gemm"
_LAYER_NAMES = {_GEMM: "GEMM, GEMV", **CATEGORIES}
_ORDER = (_GEMM, *(name for name in CATEGORIES if name not in GEMMS))
_HERE = " Here: the share that this layer left out of what it decides on, where it is not s."
_ROW = 0.3  # inches: two lines
Spread = tuple[float, float, float]  # of the median result, lowest, highest


def shares(pareto: Pareto) -> Picture | MissingFigure:
    """Return the figure of the shares of the dense step, a bar for each phase and setting."""
    known = [panel for panel in panels(pareto) if _timed_dense(panel)]
    shown = [panel for panel in map(_with_shares, known) if panel.points]
    withheld = len(points_of(known)) - len(points_of(shown))
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
    words = f" Withheld: {withheld} results with a category outside of 0 to 100 % of the step; "
    words += "intervals are cut there."
    apart = max(high - low for _, spreads in every for _, low, high in spreads.values())
    return Picture(
        stem=f"paper-{name}",
        title=title,
        alt=f"Bars of 100 %, one for each of {len(every)} settings.",
        caption=f"{title} in the categories of arXiv 2606.09080, of the result whose dense step "
        f"takes the median time; results of one setting differ by up to {100 * apart:.1f} points"
        f"{_widest_words(shown)}.{when(withheld > 0, words)} "
        f"{setup_words(pareto, shown)}",
        rows=[
            {
                "phase": panel.phase,
                "setting": panel.cell.where,
                "category": category,
                "share": share,
                "lowest": lowest,
                "highest": highest,
                **interval_ends(_interval(panel, category)),
                "dense_ns": _wall(panel),
                "n": len(_timed_dense(panel)),
                "timing_valid": not _reasons(panel),
            }
            for panel, spreads in every
            for category, (share, lowest, highest) in spreads.items()
        ],
        plot=lambda: _shares_figure(every),
    )


def _with_shares(panel: Panel) -> Panel:
    """Keep the results of a panel whose categories each take 0 to 100 % of the dense step.

    A category has less than no time if the profiler's overhead, which is subtracted, exceeds it.
    """
    known = (p for p in panel.points if _knows_dense(p))
    points = [p for p in known if all(0 <= c.dense_ns <= p.ledger["dense"] for c in p.categories)]
    return replace(panel, points=points)


def _knows_dense(point: SweepPoint) -> bool:
    """Return whether a point knows the categories of its dense step."""
    return bool(point.categories and point.ledger.get("dense"))


def _timed_dense(panel: Panel) -> list[SweepPoint]:
    """Return the points that know the categories of their dense step.

    If some of them have valid times, the others are left out.
    """
    known = [point for point in panel.points if _knows_dense(point)]
    return [point for point in known if point.timing_valid] or known


def _reasons(panel: Panel) -> list[str]:
    """Return why the dense times of a panel are no evidence; empty if one result has valid ones."""
    every = [evidence.point_reasons(point) for point in _timed_dense(panel)]
    return min(every, key=len, default=[])


def _median(panel: Panel) -> SweepPoint:
    """Return the result whose dense step takes the median time, the lower one of two.

    The shares of one result add up to the step; medians of the shares do not.
    """
    points = sorted(_timed_dense(panel), key=lambda point: point.ledger["dense"])
    return points[(len(points) - 1) // 2]


def _shares(panel: Panel) -> dict[str, Spread]:
    """Return the share of each category in the dense wall, of those that take time."""
    points = [_median(panel), *_timed_dense(panel)]
    spreads = {}
    for name in CATEGORIES:
        values = [
            sum(c.dense_ns for c in p.categories if c.name == name) / p.ledger["dense"]
            for p in points
        ]
        spreads[name] = (values[0], min(values), max(values))
    return {name: spread for name, spread in spreads.items() if spread[2] > 0}


def _interval(panel: Panel, category: str) -> list[float] | None:
    """Return the 95 % interval of a category in the median result, as shares of its dense wall."""
    ends = [c.dense_ci95 for c in _median(panel).categories if c.name == category]
    if len(ends) != 1 or ends[0] is None:
        return None
    return [min(1.0, max(0.0, end / _wall(panel))) for end in ends[0]]


def _widest_words(shown: Sequence[Panel]) -> str:
    """Return how wide the widest interval of a share is, as the end of a sentence."""
    every = [_interval(panel, name) for panel in shown for name in _shares(panel)]
    widths = [ends[1] - ends[0] for ends in every if ends is not None]
    if not widths:
        return ", and no share has a 95 % interval, as too few steps were profiled"
    return f", and the 95 % interval of a share is at most {100 * max(widths):.1f} points wide"


def _wall(panel: Panel) -> float:
    """Return the time of the dense step of the median result, in ns."""
    return _median(panel).ledger["dense"]


def _shares_figure(every: Sequence[tuple[Panel, dict[str, Spread]]]) -> Figure:
    figure, (axes,) = panel_axes(1, 0.85 + _ROW * len(every))
    for i, (panel, spreads) in enumerate(every):
        _plot_shares(axes, i, {name: share for name, (share, *_) in spreads.items()})
        if reasons := _reasons(panel):
            axes.axhspan(i - 0.5, i + 0.5, zorder=-1, **ground(reasons))
    axes.set_xlim(0, 1)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25", "50", "75", "100 %"])
    names = [f"{panel.title}\n{time(_wall(panel))}" for panel, _ in every]
    axes.set_yticks(range(len(every)), names)
    axes.set_ylim(len(every) - 0.45, -0.55)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("share of the dense step")
    present = [n for n in CATEGORIES if any(n in spreads for _, spreads in every)]
    entries = [bar_entry(CATEGORIES[n], LOOKS[n]) for n in present]
    of_all = hatches.first_reasons(_reasons(panel) for panel, _ in every)
    entries += [no_evidence([reason], reason) for reason in of_all]
    legend_below(figure, entries)
    return figure


def _plot_shares(axes: Axes, at: int, parts: dict[str, float]) -> None:
    """Plot the shares of one step as a horizontal bar, with the numbers that it has room for."""
    left = 0.0
    for name, share in parts.items():
        look = LOOKS[name]
        bar: dict[str, Any] = {"color": look.colour, "hatch": look.hatch, **EDGE}
        axes.barh(at, share, 0.72, left=left, gid=f"category-{name}", **bar)
        if share >= _LEAST_SHOWN:
            letters: dict[str, Any] = {"color": ink(look.colour), "fontsize": SMALL}
            # Hatches would run through the number.
            box = {"facecolor": look.colour, "edgecolor": "none", "pad": 0.5}
            letters |= {"bbox": box} if look.hatch else {}
            text = f"{100 * share:.0f}"
            axes.text(left + share / 2, at, text, ha="center", va="center", **letters)
        left += share


def layer(pareto: Pareto) -> Picture | MissingFigure:
    """Return the figure of one layer alone: dense next to each family, by category (Fig. 6)."""
    shown = panels(pareto, _largest, only=LAYER)
    name, title = "layer", "One layer alone"
    if not shown:
        key = "add `only: [model, layer]` to the sweep"
        return MissingFigure(name, "no result is of one layer alone", key)
    points = points_of(shown)
    own = when(any(map(_own_share, points)), _HERE)
    return Picture(
        stem=f"paper-{name}",
        title=title,
        alt=f"Stacked bars: the dense layer beside {len(points)} pruned ones.",
        caption=f"{title}, dense and of each family at its largest sparsity, in the categories of "
        "arXiv 2606.09080. Each result measures a dense layer of its own, at the line across its "
        "bar; the dense bar is the one of the median time, its whisker from the lowest to the "
        "highest of all. Whiskers of families: the 95 % interval of the speedup, on the time of "
        f"the layer, cut where it leaves the panel.{own}{_layer_sum_words(points)}"
        f"{caption_end(pareto, shown)}",
        rows=[
            row
            for panel in shown
            for point in panel.points
            for side in ("dense", "pruned")
            for row in _rows_of_side(panel, point, side)
        ],
        plot=lambda: _layer_figure(fit_page(shown)),
    )


def _largest(points: Sequence[SweepPoint]) -> list[SweepPoint]:
    """Return the point of each family at its largest sparsity, of those with categories."""
    best: dict[str, SweepPoint] = {}
    for point in usually_aligned(p for p in points if p.categories):
        key = family_label(point)
        if key not in best or (point.sparsity or 0.0) > (best[key].sparsity or 0.0):
            best[key] = point
    return list(best.values())


def _parts(point: SweepPoint, side: str) -> dict[str, float]:
    """Return the time (ns) of each category of the dense or pruned side, all GEMMs as one."""
    ns: dict[str, float] = {}
    for category in point.categories:
        name = _GEMM if category.name in GEMMS else category.name
        ns[name] = ns.get(name, 0.0) + getattr(category, f"{side}_ns")
    return {name: ns[name] for name in _ORDER if ns.get(name)}


def _own_share(point: SweepPoint) -> str:
    """Return the sparsity of a layer of a dynamic family; empty where it is the nominal one."""
    own, nominal = point.own_sparsity, point.sparsity
    if own is None or nominal is None or f"{own:.2f}" == f"{nominal:.2f}":
        return ""
    return f"\nhere {own:.2f}"


def _layer_sum_words(points: Sequence[SweepPoint]) -> str:
    """Return how near the sum of all layers is to the whole model; empty where that is unknown."""
    sums = [layer_sum for p in points for layer_sum in (p.closure or {}).values()]
    if not sums:
        return ""
    ratios = [layer_sum.ratio for layer_sum in sums]
    ends = [end for layer_sum in sums for end in layer_sum.ratio_ci95 or ()]
    within = ""
    if ends:
        within = ", with 95 % intervals (over rounds of one placement) from "
        within += f"{min(ends):.2f} to {max(ends):.2f}"
    return (
        " Layer sum: as many of this layer as the model has, with the rest, take "
        f"{min(ratios):.2f} to {max(ratios):.2f} of the time of the whole model{within}; each is "
        "in the CSV."
    )


def _rows_of_side(panel: Panel, point: SweepPoint, side: str) -> list[Row]:
    """Return the rows of the dense or the pruned layer of a result, one for each category."""
    is_dense = side == "dense"
    layer_sum = (point.closure or {}).get(side)
    return [
        {
            "phase": panel.phase,
            "setting": panel.cell.where,
            "result": family_label(point),
            "side": side,
            "sparsity": None if is_dense else point.sparsity,
            "own_sparsity": None if is_dense else point.own_sparsity,
            "category": category.name,
            "ns": getattr(category, f"{side}_ns"),
            **interval_ends(getattr(category, f"{side}_ci95")),
            "realised": 1.0 if is_dense else point.realised,
            **interval_ends(None if is_dense else point.realised_ci95, "realised_"),
            "closure": layer_sum.ratio if layer_sum else None,
            **interval_ends(layer_sum.ratio_ci95 if layer_sum else None, "closure_"),
            "drawn": not is_dense or point is _median(panel),
            "timing_valid": point.timing_valid,
        }
        for category in point.categories
    ]


def _layer_figure(shown: Sequence[Panel]) -> Figure:
    figure, every = panel_grid(shown, 2.5)
    present: set[str] = set()
    for axes, panel in every:
        sides = [(_median(panel), "dense"), *((point, "pruned") for point in panel.points)]
        unit = scale(point.ledger[side] for point, side in sides)
        tops = []
        for i, (point, side) in enumerate(sides):
            parts = _parts(point, side)
            top, own = sum(parts.values()), sum(_parts(point, "dense").values())
            present |= {name for name, ns in parts.items() if is_visible([0.0, ns], top)}
            _plot_layer(axes, i, parts, unit, is_below=own > top)
            tops += [top, own]
            shade(axes, i, point)
            if side == "pruned":
                draw_level(axes, i, 0.4, own / unit.per)
                # The interval of the speedup as one of the pruned time.
                ratios = (point.realised_ci95 or [])[::-1]
                ends = [point.realised / end * top / unit.per for end in ratios] or None
                draw_interval(axes, i + 0.28, ends, linewidth=0.8)
        dense = [sum(_parts(point, "dense").values()) / unit.per for point in _timed_dense(panel)]
        draw_interval(axes, 0.28, [min(dense), max(dense)], linewidth=0.8)
        axes.set_ylim(0, MOST_WHISKER * max(tops) / unit.per)
        slant_names(axes, ["dense", *(f"{named(p)}{_own_share(p)}" for p in panel.points)])
        axes.set_ylabel(f"time of a layer ({unit.unit})")
    seen = [name for name in _ORDER if name in present]
    entries: list[Any] = [bar_entry(_LAYER_NAMES[n], LOOKS[n]) for n in seen]
    entries.append(line_entry("dense, of the same result", **BOUND_LINE))
    entries += reason_patches(points_of(shown))
    legend_below(figure, entries)
    return figure


def _plot_layer(
    axes: Axes, at: int, parts: dict[str, float], unit: Scale, *, is_below: bool
) -> None:
    """Plot the parts of one layer as a stacked bar, with its time above it.

    If the line of the dense layer lies above the bar (`is_below`), the time stands inside of the
    bar, so that it does not read as that of the line.
    """
    scaled, top = {name: ns / unit.per for name, ns in parts.items()}, sum(parts.values())
    stacked(axes, at, scaled, LOOKS, 0.7)
    look: dict[str, Any] = {"ha": "center", "va": "bottom", "fontsize": SMALL}
    if is_below:
        box = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
        look |= {"va": "top", "bbox": box}
    axes.text(at, top / unit.per, clean(unit.text(top)), **look)
