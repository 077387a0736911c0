"""The cost of pruning other than GEMMs, and the gain of recovery training: two figures of a sweep.

One shows the work that a family adds, by its parts, as a share of the dense step. The other shows
speed against loss before and after recovery training, each with its frontier.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from prunescope.analysis.paper.paper_figure import (
    MissingFigure,
    Panel,
    caption_end,
    family_label,
    fields,
    fit_page,
    interval_ends,
    looks_of,
    named,
    panel_grid,
    panels,
    points_of,
    slant_names,
    stacked,
    usually_aligned,
    with_marks,
)
from prunescope.analysis.report.figure_style import (
    MOST_WHISKER,
    PARITY,
    SMALL,
    bar_entry,
    dot,
    draw_interval,
    draw_interval_across,
    legend_below,
    line_entry,
    point_entry,
    random_ids_entry,
    reason_patches,
    say_random_ids,
    shade,
)
from prunescope.analysis.report.label_places import Label, Obstacles, place_labels
from prunescope.analysis.report.ledger_view import is_visible
from prunescope.analysis.report.looks import PARTS, Look
from prunescope.analysis.report.pareto_figures import draw_frontier
from prunescope.analysis.report.picture import Picture, Row
from prunescope.analysis.report.titles import short
from prunescope.analysis.schema.pareto import Added, Pareto, RecoveryLoss, SweepPoint
from prunescope.analysis.summary import evidence
from prunescope.taxonomy.numbers import percent

_REST = "other parts"
# How points and frontiers look before and after training.
_AFTER: dict[str, Any] = {"color": "black", "marker": "o", "markersize": 5, "linewidth": 0.8}
_BEFORE: dict[str, Any] = {**_AFTER, "markerfacecolor": "white", "linestyle": (0, (3, 2))}


def overhead(pareto: Pareto) -> Picture | MissingFigure:
    """Return the figure of added work by part, as a share of the dense step."""
    shown = panels(pareto, lambda points: [p for p in usually_aligned(points) if _adds(p)])
    name, title = "overhead", "Work that a family adds"
    if not shown:
        return MissingFigure(
            name,
            "no family of the sweep adds work to the step",
            "add one that decides at run time to `families` (see `prunescope families`)",
        )
    return Picture(
        stem=f"paper-{name}",
        title=title,
        alt=f"Stacked bars of {len(points_of(shown))} results.",
        caption=f"{title}, as a share of the dense step, by part; above each bar, the same time as "
        "a share of what the family saves before it. Whiskers: the 95 % interval of the sum, cut "
        f"where it leaves the panel.{caption_end(pareto, shown)}",
        rows=[row for panel in shown for p in panel.points for row in _added_rows(panel, p)],
        plot=lambda: _overhead_figure(fit_page(shown)),
    )


def _adds(point: SweepPoint) -> bool:
    return point.overhead is not None and bool(point.ledger.get("dense"))


def _added(point: SweepPoint) -> Added:
    assert point.overhead is not None  # as `_adds` chose it
    return point.overhead


def _added_rows(panel: Panel, point: SweepPoint) -> list[Row]:
    added = _added(point)
    return [
        {
            **panel.row_of(point),
            "part": part.name,
            "ns": part.ns,
            "of_dense": part.ns / point.ledger["dense"],
            "weigh_added_work": part.share_of_saved,
            "sum_ns": added.added_ns,
            **interval_ends(added.added_ci95, "sum_"),
            "realised": point.realised,
            "without": added.without,
            "timing_valid": point.timing_valid,
        }
        for part in added.parts
    ]


def _overhead_figure(shown: Sequence[Panel]) -> Figure:
    figure, every = panel_grid(shown, 2.3)
    points = points_of(shown)
    looks = _looks(points)
    for axes, panel in every:
        tops = [_plot_added(axes, i, point, looks) for i, point in enumerate(panel.points)]
        for i, point in enumerate(panel.points):
            shade(axes, i, point)
        slant_names(axes, [named(p) for p in panel.points])
        axes.set(ylim=(0, MOST_WHISKER * max(tops)), ylabel="added, % of the dense step")
    entries = [bar_entry(short(name, 32), look) for name, look in looks.items()]
    legend_below(figure, entries + reason_patches(points))
    return figure


def _looks(points: Sequence[SweepPoint]) -> dict[str, Look]:
    """Return the look of each part that takes time, the largest first.

    If there are more parts than looks, the smallest share one look as other parts.
    """
    sums: dict[str, float] = {}
    for point in points:
        for part in _added(point).parts:
            sums[part.name] = sums.get(part.name, 0.0) + part.ns / point.ledger["dense"]
    most = max(sums.values(), default=0.0)
    seen = (n for n, share in sums.items() if is_visible([0.0, share], most))
    names = sorted(seen, key=lambda n: -sums[n])
    if len(names) > len(PARTS):
        names = [*names[: len(PARTS) - 1], _REST]
    return dict(zip(names, PARTS, strict=False))


def _plot_added(axes: Axes, at: int, point: SweepPoint, looks: dict[str, Look]) -> float:
    """Plot the added work as a stacked bar, and return its height in % of the dense step."""
    added, dense = _added(point), point.ledger["dense"]
    parts = dict.fromkeys(looks, 0.0)
    for part in added.parts:
        name = part.name if part.name in looks else _REST
        if name in parts:
            parts[name] += 100 * part.ns / dense
    stacked(axes, at, parts, looks, 0.66)
    top = sum(parts.values())
    ends = added.added_ci95 and [100 * end / dense for end in added.added_ci95]
    draw_interval(axes, at + 0.25, ends, linewidth=0.8)
    share = added.share_of_saved
    text = "nothing saved" if share is None else f"{percent(share, decimals=0)} of saved"
    axes.text(at, top, text, ha="center", va="bottom", fontsize=SMALL)
    return top


def recovery(pareto: Pareto) -> Picture | MissingFigure:
    """Return the figure of speed against loss before and after recovery training."""
    shown = panels(pareto, lambda points: [p for p in usually_aligned(points) if p.recovery])
    name, title = "recovery", "Frontier before and after recovery"
    if not shown:
        key = "add `recover: steps=100,rank=16` to the sweep"
        return MissingFigure(name, "no pruned model was trained", key)
    points = points_of(shown)
    tokens = max(_trained(point).tokens or 0 for point in points)
    return Picture(
        stem=f"paper-{name}",
        title=title,
        alt=f"Scatter of {len(points)} results, each with an arrow from before to after training.",
        caption=f"{title} training: perplexity on {tokens:,} held-out tokens over that of the dense"
        " model, trained alike where the pruned one is, against the realised speedup. "
        f"{_interval_words(points)}"
        "Whiskers: 95 % intervals, those of speedups cut where they leave the panel."
        f"{caption_end(pareto, shown)}",
        rows=[row for panel in shown for row in _recovery_rows(panel)],
        plot=lambda: _recovery_figure(fit_page(shown), on_random_ids=pareto.subject.on_random_ids),
    )


def _trained(point: SweepPoint) -> RecoveryLoss:
    assert point.recovery is not None  # as `recovery` chose it
    return point.recovery


def _before(point: SweepPoint) -> float:
    """Return the perplexity of pruned over dense before training."""
    return 1 + _trained(point).before_rel


def _after(point: SweepPoint) -> float:
    """Return the perplexity of pruned over dense after training."""
    return 1 + _trained(point).after_rel


def _spreads(point: SweepPoint) -> tuple[list[float] | None, list[float] | None]:
    """Return the intervals of the two ratios, before and after training."""
    before, after = _trained(point).before_ci95, _trained(point).after_ci95
    return before and [1 + end for end in before], after and [1 + end for end in after]


def _interval_words(points: Sequence[SweepPoint]) -> str:
    """Return a sentence for a caption: what the intervals of the losses rest on."""
    counts = [_trained(p).blocks or 0 for p in points if _trained(p).after_ci95]
    if not counts:
        return "Losses on held-out tokens have no interval here. "
    blocks = " to ".join(f"{n}" for n in dict.fromkeys((min(counts), max(counts))))
    return (
        f"Intervals of losses: a bootstrap over {blocks} blocks of neighbouring tokens, the same "
        "of both models. "
    )


def _best(points: Sequence[SweepPoint], loss: Callable[[SweepPoint], float]) -> list[SweepPoint]:
    """Return the frontier by point estimates.

    Its points are faster than dense, and none that is as fast loses less.
    """
    best: list[SweepPoint] = []
    able = [p for p in points if p.timing_valid and not p.removed_nothing and p.realised > 1]
    for point in sorted(able, key=lambda p: (loss(p), -p.realised)):
        if not best or point.realised > best[-1].realised:
            best.append(point)
    return best


def _recovery_rows(panel: Panel) -> list[Row]:
    before, after = ({p.id for p in _best(panel.points, loss)} for loss in (_before, _after))
    return [
        {
            **panel.row_of(point),
            "realised": point.realised,
            **interval_ends(point.realised_ci95),
            **fields(trained, "before_rel", "after_rel"),
            **interval_ends(trained.before_ci95, "before_"),
            **interval_ends(trained.after_ci95, "after_"),
            "blocks": trained.blocks,
            "frontier_before": point.id in before,
            "frontier_after": point.id in after,
            "tokens": trained.tokens,
            "timing_valid": point.timing_valid,
        }
        for point, trained in ((point, _trained(point)) for point in panel.points)
    ]


def _recovery_figure(shown: Sequence[Panel], *, on_random_ids: bool) -> Figure:
    figure, every = panel_grid(shown, 2.3)
    points = points_of(shown)
    looks = looks_of(points)
    placed = []
    for axes, panel in every:
        obstacles, labels = Obstacles(), list[Label]()
        for point in panel.points:
            _plot_training(axes, point, looks[family_label(point)], obstacles)
            if point.sparsity is not None:
                labels.append((_after(point), point.realised, f"{point.sparsity:g}"))
        _end_speedups(axes, panel.points)
        placed.append((axes, labels, obstacles))
        right = axes.get_xlim()[1]
        for loss, style in ((_before, _BEFORE["linestyle"]), (_after, "-")):
            best = [(loss(point), point.realised) for point in _best(panel.points, loss)]
            if best:
                draw_frontier(axes, best, right, style)
        axes.axhline(1.0, **{**PARITY, "linestyle": (0, (1, 1))})
        axes.set_xlabel("perplexity on held-out tokens, pruned ÷ dense")
        axes.set_ylabel("speedup, dense ÷ pruned")
        if on_random_ids:
            say_random_ids(axes)
    entries: list[Any] = [point_entry(with_marks(n, points), look) for n, look in looks.items()]
    entries.append(line_entry("before training, and its frontier", **_BEFORE))
    entries.append(line_entry("after training, and its frontier", **_AFTER))
    entries += reason_patches(points)
    if on_random_ids:
        entries.append(random_ids_entry())
    legend_below(figure, entries, columns=4)
    figure.draw_without_rendering()
    for axes, labels, obstacles in placed:
        place_labels(axes, labels, obstacles)
    return figure


def _plot_training(axes: Axes, point: SweepPoint, look: Look, obstacles: Obstacles) -> None:
    """Plot a point before and after training, with an arrow between; add both to the obstacles."""
    before, after, y = _before(point), _after(point), point.realised
    colour, up = look.colour, point.realised_ci95
    arrow = {"arrowstyle": "->", "color": colour, "linewidth": 0.6}
    axes.annotate("", (after, y), (before, y), arrowprops=arrow)
    obstacles.lines.append(((before, y), (after, y)))
    reasons = evidence.point_reasons(point)
    spreads = _spreads(point)
    for x, across, full in zip((before, after), spreads, (False, True), strict=True):
        if across is not None:  # with ends, as the arrow lies on it
            draw_interval_across(axes, y, across, color=colour, marker="|", markersize=4)
        own_up = up if full else None
        own_reasons = reasons if full else ()
        mark = dot(axes, (x, y), (None, own_up), look, full=full, reasons=own_reasons)
        mark.set_gid(f"family-{point.family}")
        obstacles.add((x, y), across, own_up)


def _end_speedups(axes: Axes, points: Sequence[SweepPoint]) -> None:
    """End the axis of speedups near the points and the dense model at 1×."""
    axes.update_datalim([(1.0, 1.0)])
    axes.autoscale_view()
    lowest = max(0.0, min(1.0, *((p.realised_ci95 or [p.realised])[0] for p in points)))
    highest = max(1.0, *(point.realised for point in points))
    top = min(axes.get_ylim()[1], MOST_WHISKER * highest)
    axes.set_ylim(lowest - 0.05 * (top - lowest), top)
