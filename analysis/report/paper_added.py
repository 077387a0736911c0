"""The cost of pruning other than GEMMs, and the gain of recovery training: two figures of a sweep.

Work that a family adds, by its parts, as a share of the dense step. Speed against loss before and
after recovery training, each with its frontier.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from prunescope.analysis.report.figure_style import (
    MOST_WHISKER,
    family_looks,
    no_evidence,
    reason_patches,
    shade,
)
from prunescope.analysis.report.ledger_view import is_visible
from prunescope.analysis.report.paper_figure import (
    MissingFigure,
    Panel,
    PaperFigure,
    Row,
    ends,
    families_of,
    family_label,
    grid_of,
    mark_words,
    named,
    not_shown,
    of_sweep,
    on_a_page,
    panels,
    patch,
    points_of,
    slanted,
    stacked,
    usually_aligned,
    with_marks,
)
from prunescope.analysis.report.pareto_figures import (
    Obstacles,
    dot,
    in_legend,
    legend_below,
    place_labels,
    say_random_ids,
)
from prunescope.analysis.report.titles import short
from prunescope.analysis.schema.pareto import Pareto, RecoveryLoss, SweepPoint
from prunescope.analysis.summary import evidence
from prunescope.taxonomy.numbers import percent
from prunescope.taxonomy.runs.run_quality import RANDOM_IDS

_COLOURS = (
    ("#D55E00", ""),
    ("#56B4E9", ""),
    ("#009E73", ""),
    ("#E69F00", ""),
    ("#CC79A7", ""),
    ("#0072B2", "////"),
    ("#F0E442", "...."),
)
_REST = "other parts"


def overhead(found: Pareto) -> PaperFigure | MissingFigure:
    """Added work by part, as a share of the dense step."""
    shown = panels(found, lambda points: [p for p in usually_aligned(points) if _adds(p)])
    name, title = "overhead", "Work that a family adds"
    if not shown:
        return MissingFigure(
            name,
            "no family of the sweep adds work to the step",
            "add one that decides at run time to `families` (see `prunescope families`)",
        )
    points = points_of(shown)
    return PaperFigure(
        name=name,
        title=title,
        caption=f"{title}, as a share of the dense step, by part; above each bar, the same time as "
        "a share of what the family saves before it. Whiskers: the 95 % interval of the sum, cut "
        "where it leaves the panel."
        f"{mark_words(points)}{not_shown(shown)} {of_sweep(found, points)}",
        rows=[row for panel in shown for p in panel.points for row in _added_rows(panel, p)],
        plot=lambda: _overhead_figure(on_a_page(shown)),
    )


def _adds(point: SweepPoint) -> bool:
    return point.overhead is not None and bool(point.ledger.get("dense"))


def _added_rows(panel: Panel, point: SweepPoint) -> list[Row]:
    added = point.overhead
    assert added is not None
    return [
        {
            **panel.row_of(point),
            "part": part.name,
            "ns": part.ns,
            "of_dense": part.ns / point.ledger["dense"],
            "of_saved": part.share_of_saved,
            "sum_ns": added.added_ns,
            **ends(added.added_ci95, "sum_"),
            "realised": point.realised,
            "without": added.without,
            "timing_valid": point.timing_valid,
        }
        for part in added.parts
    ]


def _overhead_figure(shown: Sequence[Panel]) -> Figure:
    figure, every = grid_of(shown, 2.3)
    points = points_of(shown)
    looks = _looks(points)
    for axes, panel in zip(every, shown, strict=True):
        tops = [_added_bar(axes, i, point, looks) for i, point in enumerate(panel.points)]
        for i, point in enumerate(panel.points):
            shade(axes, i, point)
        slanted(axes, [named(p) for p in panel.points])
        axes.set_ylim(0, MOST_WHISKER * max(tops))
        axes.set_ylabel("added, % of the dense step")
    handles: list[Any] = [
        patch(colour, short(n, 32), hatch) for n, (colour, hatch) in looks.items()
    ]
    handles += reason_patches(points)
    legend_below(figure, handles, columns=4)
    return figure


def _looks(points: Sequence[SweepPoint]) -> dict[str, tuple[str, str]]:
    """A look for each part that takes time, the largest first; one for all that are too many."""
    sums: dict[str, float] = {}
    for point in points:
        for part in point.overhead.parts if point.overhead else ():
            sums[part.name] = sums.get(part.name, 0.0) + part.ns / point.ledger["dense"]
    most = max(sums.values(), default=0.0)
    seen = (n for n, share in sums.items() if is_visible([0.0, share], most))
    names = sorted(seen, key=lambda n: -sums[n])
    if len(names) > len(_COLOURS):
        names = [*names[: len(_COLOURS) - 1], _REST]
    return dict(zip(names, _COLOURS, strict=False))


def _added_bar(axes: Axes, at: int, point: SweepPoint, looks: dict[str, tuple[str, str]]) -> float:
    """A stacked bar; gives its height."""
    added, dense = point.overhead, point.ledger["dense"]
    assert added is not None
    parts = dict.fromkeys(looks, 0.0)
    for part in added.parts:
        name = part.name if part.name in looks else _REST
        parts[name] = parts.get(name, 0.0) + 100 * part.ns / dense
    parts = {name: parts[name] for name in looks}
    stacked(axes, at, parts, looks, 0.66)
    top = sum(parts.values())
    if added.added_ci95 is not None:
        ends = [100 * end / dense for end in added.added_ci95]
        axes.plot([at + 0.25] * 2, ends, color="black", linewidth=0.8)
    share = added.share_of_saved
    text = "nothing saved" if share is None else f"{percent(share, decimals=0)} of saved"
    axes.text(at, top, text, ha="center", va="bottom", fontsize=5)
    return top


def recovery(found: Pareto) -> PaperFigure | MissingFigure:
    """Speed against loss before and after recovery training."""
    shown = panels(
        found, lambda points: [p for p in usually_aligned(points) if p.recovery is not None]
    )
    name, title = "recovery", "Frontier before and after recovery"
    if not shown:
        key = "add `recover: steps=100,rank=16` to the sweep"
        return MissingFigure(name, "no pruned model was trained", key)
    points = points_of(shown)
    tokens = max((p.recovery.tokens or 0 for p in points if p.recovery), default=0)
    return PaperFigure(
        name=name,
        title=title,
        caption=f"{title} training: perplexity on {tokens:,} held-out tokens over that of the dense"
        " model, trained alike where the pruned one is, against the realised speedup. "
        f"{_of_losses(points)}"
        "Whiskers: 95 % intervals, those of speedups cut where they leave the panel."
        f"{mark_words(points)}{not_shown(shown)} {of_sweep(found, points)}",
        rows=[row for panel in shown for row in _recovery_rows(panel)],
        plot=lambda: _recovery_figure(on_a_page(shown), on_random_ids=found.subject.on_random_ids),
    )


def _before(point: SweepPoint) -> float:
    return 1 + _trained(point).before_rel


def _after(point: SweepPoint) -> float:
    return 1 + _trained(point).after_rel


def _trained(point: SweepPoint) -> RecoveryLoss:
    assert point.recovery is not None
    return point.recovery


def _ratios(ends: list[float] | None) -> list[float] | None:
    """Ends of a relative loss as those of pruned over dense."""
    return None if ends is None else [1 + end for end in ends]


def _of_losses(points: Sequence[SweepPoint]) -> str:
    """The basis of the intervals of the losses, as the end of a caption."""
    counts = sorted(
        {p.recovery.blocks or 0 for p in points if p.recovery and p.recovery.after_ci95}
    )
    if not counts:
        return "Losses on held-out tokens have no interval here. "
    blocks = " to ".join(f"{n}" for n in dict.fromkeys((counts[0], counts[-1])))
    return (
        f"Intervals of losses: a bootstrap over {blocks} blocks of neighbouring tokens, the same "
        "of both models. "
    )


def _best(points: Sequence[SweepPoint], loss: Callable[[SweepPoint], float]) -> list[SweepPoint]:
    """The frontier by point estimates: faster than dense, and none as fast loses less."""
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
            **panel.row_of(p),
            "realised": p.realised,
            **ends(p.realised_ci95),
            "before_rel": _trained(p).before_rel,
            "after_rel": _trained(p).after_rel,
            **ends(_trained(p).before_ci95, "before_"),
            **ends(_trained(p).after_ci95, "after_"),
            "blocks": _trained(p).blocks,
            "frontier_before": p.id in before,
            "frontier_after": p.id in after,
            "tokens": _trained(p).tokens,
            "timing_valid": p.timing_valid,
        }
        for p in panel.points
    ]


def _recovery_figure(shown: Sequence[Panel], *, on_random_ids: bool) -> Figure:
    figure, every = grid_of(shown, 2.3)
    points = points_of(shown)
    looks = family_looks(families_of(points))
    placed = []
    for axes, panel in zip(every, shown, strict=True):
        for point in panel.points:
            colour, marker = looks[family_label(point)]
            xs, y = (_before(point), _after(point)), point.realised
            axes.annotate(
                "",
                (xs[1], y),
                (xs[0], y),
                arrowprops={"arrowstyle": "->", "color": colour, "linewidth": 0.6},
            )
            trained = _trained(point)
            spreads = [_ratios(trained.before_ci95), _ratios(trained.after_ci95)]
            for x, across, full in zip(xs, spreads, (False, True), strict=True):
                if across is not None:  # with ends, as the arrow lies on it
                    axes.plot(across, [y, y], color=colour, linewidth=0.7, marker="|", markersize=4)
                dot(
                    axes,
                    (x, y),
                    (None, point.realised_ci95 if full else None),
                    colour,
                    marker,
                    full=full,
                    label=None,
                    reasons=evidence.point_reasons(point) if full else (),
                )
        axes.update_datalim([(1.0, 1.0)])  # the dense model
        axes.autoscale_view()
        highest = max(p.realised for p in panel.points)
        lows = [(p.realised_ci95 or [p.realised])[0] for p in panel.points]
        lowest = max(0.0, min(1.0, *lows))
        top = min(axes.get_ylim()[1], MOST_WHISKER * max(1.0, highest))
        axes.set_ylim(lowest - 0.05 * (top - lowest), top)
        placed.append((axes, *_labels(panel)))
        right = axes.get_xlim()[1]
        for loss, style in ((_before, (0, (3, 2))), (_after, "-")):
            _steps(axes, _best(panel.points, loss), loss, (right, style))
        axes.axhline(1.0, color="black", linewidth=0.6, linestyle=(0, (1, 1)))
        axes.set_xlabel("perplexity on held-out tokens, pruned ÷ dense")
        axes.set_ylabel("speedup, dense ÷ pruned")
        if on_random_ids:
            say_random_ids(axes)
    handles: list[Any] = [
        in_legend(with_marks(label, points), colour, marker)
        for label, (colour, marker) in looks.items()
    ]
    black: dict[str, Any] = {"color": "black", "marker": "o", "markersize": 5, "linewidth": 0.8}
    before: dict[str, Any] = {**black, "markerfacecolor": "white", "linestyle": (0, (3, 2))}
    handles.append(Line2D([], [], label="before training, and its frontier", **before))
    handles.append(Line2D([], [], label="after training, and its frontier", **black))
    handles += reason_patches(points)
    if on_random_ids:
        handles.append(no_evidence([RANDOM_IDS], f"{RANDOM_IDS}: no loss means anything"))
    legend_below(figure, handles, columns=4)
    figure.draw_without_rendering()
    for axes, labels, obstacles in placed:
        place_labels(axes, labels, obstacles)
    return figure


def _labels(panel: Panel) -> tuple[list[tuple[float, float, str]], Obstacles]:
    """The sparsity of each trained point, and what it should not hide."""
    obstacles, labels = Obstacles(), []
    for point in panel.points:
        after, before, y = _after(point), _before(point), point.realised
        obstacles.marks += [(before, y), (after, y)]
        low, high = point.realised_ci95 or (y, y)
        obstacles.lines += [((before, y), (after, y)), ((after, low), (after, high))]
        for across in (_trained(point).before_ci95, _trained(point).after_ci95):
            if across is not None:
                obstacles.lines.append(((1 + across[0], y), (1 + across[1], y)))
        if point.sparsity is not None:
            labels.append((after, y, f"{point.sparsity:g}"))
    return labels, obstacles


def _steps(
    axes: Axes,
    best: Sequence[SweepPoint],
    loss: Callable[[SweepPoint], float],
    end: tuple[float, Any],
) -> None:
    """A frontier in steps, from the dense model on to the right end of the axis; none where no
    point is on it."""
    if not best:
        return
    right, style = end
    at = [(loss(p), p.realised) for p in best]
    if at[0][0] > 1:
        at.insert(0, (1.0, 1.0))  # the dense model itself
    at.append((max(right, at[-1][0]), at[-1][1]))
    xs, ys = zip(*at, strict=True)
    axes.step(xs, ys, where="post", color="black", linewidth=0.8, linestyle=style, zorder=0)
