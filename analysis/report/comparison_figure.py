"""The figures of a Comparison: in, the comparison; out, Pictures.

One shows speedup over sparsity with 95 % intervals, a panel for each phase, batch and length, and a
line for each method. The other shows where the dense wall went, a bar for each run and phase in
groups of one setting; losses are right of the promise, gains left.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from prunescope.analysis.report import hatches
from prunescope.analysis.report.figure_style import (
    EDGE,
    MOST_HEIGHT,
    PARITY,
    bar_entry,
    blank_figure,
    draw_interval,
    end_axis,
    ground,
    hide_frame,
    legend_below,
    line_entry,
    most_panels,
    no_evidence,
    panel_axes,
    plotting,
)
from prunescope.analysis.report.ledger_view import is_visible
from prunescope.analysis.report.looks import ROWS, Look, family_looks
from prunescope.analysis.report.picture import Picture
from prunescope.analysis.report.sweep_setting import setting_of
from prunescope.analysis.report.titles import short
from prunescope.analysis.schema.comparison import Comparison, ComparisonRow
from prunescope.analysis.summary import evidence
from prunescope.analysis.summary.labels import LEDGER
from prunescope.taxonomy import numbers
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.words import plural

_PANEL, _BAR = 2.1, 0.17  # inches: the height of a panel of curves, and of a bar
_MOST_FAMILIES = 8  # lines of a panel
_MOST_BARS = int((MOST_HEIGHT - 1.2) / _BAR)  # bars and headings of a figure
_LABEL = 26  # letters left of the bars
Looks = dict[str, Look]


class _Panel(NamedTuple):
    """The rows of one setting, and which methods a panel shows of them."""

    title: str
    rows: list[ComparisonRow]
    methods: list[str]


def comparison_pictures(comparison: Comparison) -> Iterator[Picture]:
    """Yield the figures of a comparison; none where no row has a ladder."""
    known = [row for row in comparison.rows if row.ladder is not None]
    looks = _looks(known)
    placed = [row for row in known if _sparsity(row) is not None]
    every, unplaced = _panels(placed), len(known) - len(placed)
    most = most_panels(_PANEL)
    for i in range(0, len(every), most):
        panels = every[i : i + most]
        shown = [row for panel in panels for row in panel.rows if _method(row) in panel.methods]
        title = "Speedup over sparsity"
        words = (
            "95 % intervals as whiskers, open marks are no evidence, the dotted line is 1/(1 − s)"
        )
        if unplaced and i == 0:
            words += f"; {unplaced} of unknown sparsity without a point"
        told = (f"{_name(row)} {numbers.ratio(row.ladder.realised)}" for row in shown if row.ladder)
        yield Picture(
            stem=_stem("comparison", i, most),
            title=title,
            caption=f"{title}: {words}. {comparison_setting(comparison, shown)}",
            alt=f"Curves: {'; '.join(told)}.",
            plot=partial(_curves_figure, panels, looks),
        )
    groups = _groups([row for row in known if row.ledger and row.ledger["dense"] > 0])
    for i, page in enumerate(_pages(groups)):
        bars = [row for _, rows in page for row in rows]
        title = "Where the dense wall went"
        words = "losses stand right of the promise, gains left; a diamond is the pruned wall"
        reasons = ", ".join(hatches.first_reasons(map(evidence.row_reasons, bars)))
        words += f"; hatched: {reasons}" if reasons else ""
        yield Picture(
            stem=_stem("comparison-ledger", i, 1),
            title=title,
            caption=f"{title}: {words}. {comparison_setting(comparison, bars)}",
            alt=f"Stacked bars of {len(bars)} runs, in % of the dense wall.",
            plot=partial(_bars_figure, page),
        )


def _stem(stem: str, first: int, most: int) -> str:
    return stem if first == 0 else f"{stem}-{first // most + 1}"


def comparison_setting(comparison: Comparison, rows: Sequence[ComparisonRow]) -> str:
    """Return what was measured, on what and how often, for a caption."""
    facts = setting_of(
        [row.model for row in rows],
        map(_method, rows),
        map(_sparsity, rows),
        dict.fromkeys(row.phase for row in rows),
        ([row.batch for row in rows], [row.prompt_len for row in rows if row.items_per_s is None]),
    )
    phases = [
        comparison.reports[r.run].phases[r.phase] for r in rows if r.run in comparison.reports
    ]
    workloads = [phase.workload for phase in phases if phase.workload]
    facts += dict.fromkeys(workload.dtype for workload in workloads)
    facts += dict.fromkeys(workload.device for workload in workloads if workload.device)
    facts += dict.fromkeys(
        f"{workload.threads} thread{plural(workload.threads)}"
        for workload in workloads
        if workload.threads
    )
    counts = {len(phase.unprofiled_ns.samples) for phase in phases if phase.unprofiled_ns}
    ends = " to ".join(f"{n}" for n in dict.fromkeys((min(counts), max(counts)))) if counts else ""
    n = f"n = {len(rows)} result{plural(len(rows))}"
    return f"{', '.join(facts)}; {n}{f' of {ends} unprofiled samples' if ends else ''}."


def _method(row: ComparisonRow) -> str:
    return row.called or row.family or "?"


def _sparsity(row: ComparisonRow) -> float | None:
    """Return the nominal sparsity, or the removed share of FLOPs where none is named."""
    nominal = row.sparsity.get("nominal")
    return row.sparsity.get("flop") if nominal is None else nominal


def _name(row: ComparisonRow) -> str:
    nominal = row.sparsity.get("nominal")
    return f"{_method(row)}{'' if nominal is None else f' {nominal:g}'}"


def _looks(rows: Iterable[ComparisonRow]) -> Looks:
    return family_looks((_method(row), row.method or row.family or "?") for row in rows)


def _groups(rows: Sequence[ComparisonRow]) -> dict[str, list[ComparisonRow]]:
    """Return the rows by the words of their setting: phase, batch and length, and model."""
    models = {row.model for row in rows}
    groups: dict[str, list[ComparisonRow]] = defaultdict(list)
    for row in rows:
        words = [row.phase]
        words += [f"batch {row.batch}"] if row.batch is not None else []
        if row.prompt_len is not None and row.items_per_s is None:
            words.append(f"{row.prompt_len:,} tokens")
        words += [row.model] if len(models) > 1 and row.model else []
        groups[short(", ".join(words), 56)].append(row)
    return groups


def _panels(rows: Sequence[ComparisonRow]) -> list[_Panel]:
    """Return a panel for each setting, or several where there are more methods than one names."""
    panels = []
    for title, own in _groups(rows).items():
        methods = list(dict.fromkeys(map(_method, own)))
        panels += [
            _Panel(title, own, methods[i : i + _MOST_FAMILIES])
            for i in range(0, len(methods), _MOST_FAMILIES)
        ]
    return panels


def _pages(
    groups: dict[str, list[ComparisonRow]],
) -> Iterator[list[tuple[str, list[ComparisonRow]]]]:
    """Yield groups of bars that fit on one page; a long group is continued on the next."""
    page: list[tuple[str, list[ComparisonRow]]] = []
    left = _MOST_BARS
    for title, rows in groups.items():
        rest = rows
        while rest:
            if left < 2:
                yield page
                page, left = [], _MOST_BARS
            page.append((title, rest[: left - 1]))
            rest, left = rest[left - 1 :], left - 1 - len(page[-1][1])
    if page:
        yield page


def _curves_figure(panels: Sequence[_Panel], looks: Looks) -> Figure:
    """Plot realised speedups with their intervals over the sparsity, a panel for each setting."""
    figure, every = panel_axes(len(panels), _PANEL)
    shown: list[ComparisonRow] = []
    for axes, panel in zip(every, panels, strict=True):
        rows = [row for row in panel.rows if _method(row) in panel.methods]
        _plot_curves(axes, rows, looks)
        axes.set_title(panel.title, loc="left")
        shown += rows
    line: dict[str, Any] = {"linewidth": 0.9, "markersize": 3}
    names = dict.fromkeys(map(_method, shown))
    entries: list[Any] = [
        line_entry(short(name, _LABEL), color=looks[name].colour, marker=looks[name].marker, **line)
        for name in names
    ]
    entries.append(line_entry("promised, 1/(1 − s)", **_PROMISE))
    every_reason = list(map(evidence.row_reasons, shown))
    if reasons := [name for name in hatches.HATCHES if any(name in own for own in every_reason)]:
        hollow: dict[str, Any] = {"color": "black", "marker": "o", "markerfacecolor": "white"}
        words = f"open: {', '.join(reasons)}"
        entries.append(line_entry(words, linestyle="none", markersize=3, **hollow))
    legend_below(figure, entries)
    return figure


_PROMISE: dict[str, Any] = {"color": "black", "linewidth": 0.6, "linestyle": (0, (1, 1.5))}


def _plot_curves(axes: Axes, rows: Sequence[ComparisonRow], looks: Looks) -> None:
    """Plot the curves of one setting."""
    curves: dict[str, list[tuple[float, ComparisonRow]]] = defaultdict(list)
    for row in rows:
        curves[_method(row)].append((_sparsity(row) or 0.0, row))
    ends = sorted({x for points in curves.values() for x, _ in points})
    span = ends[-1] - ends[0] or 0.1
    left, right = ends[0] - 0.12 * span, ends[-1] + 0.12 * span
    for i, (name, points) in enumerate(curves.items()):
        # Curves stand side by side, so that intervals at one sparsity do not hide each other.
        aside = (i - (len(curves) - 1) / 2) * 0.012 * span
        _plot_curve(axes, [(x + aside, row) for x, row in points], looks[name])
    grid = [x for i in range(41) if 0 <= (x := left + (right - left) * i / 40) < 0.95]
    promised = [1 / (1 - x) for x in grid]
    axes.plot(grid, promised, **_PROMISE)
    known = [row.ladder for row in rows if row.ladder is not None]
    reached = [1.0, *promised, *(ladder.realised for ladder in known)]
    spread = [end for ladder in known for end in ladder.realised_ci95 or ()]
    top = end_axis(reached, spread)
    least = min([*reached, *(end for end in spread if end > min(reached) / 2)])
    axes.set(xlim=(left, right), ylim=(max(0.0, least - 0.08 * (top - least)), 1.02 * top))
    axes.axhline(1.0, **PARITY)
    is_named = all(row.sparsity.get("nominal") is not None for row in rows)
    axes.set_xlabel("sparsity s" if is_named else "sparsity s, or removed share of FLOPs")
    axes.set_ylabel("speedup (dense ÷ pruned)")
    axes.locator_params(nbins=5)
    if len(ends) == 1:
        axes.set_xticks(ends)


def _plot_curve(axes: Axes, points: list[tuple[float, ComparisonRow]], look: Look) -> None:
    """Plot a curve with its intervals; markers of points that are no evidence are open."""
    mark: dict[str, Any] = {"color": look.colour, "marker": look.marker, "markersize": 3}
    known = [
        (x, row, row.ladder)
        for x, row in sorted(points, key=lambda point: point[0])
        if row.ladder is not None
    ]
    gid = f"family-{known[0][1].method or known[0][1].family}"
    values = [ladder.realised for *_, ladder in known]
    axes.plot([x for x, *_ in known], values, linewidth=0.9, gid=gid, **mark)
    for x, row, ladder in known:
        whisker: dict[str, Any] = {"linewidth": 0.8, "marker": "_", "markersize": 3}
        draw_interval(axes, x, ladder.realised_ci95 or None, color=look.colour, **whisker)
        if evidence.row_reasons(row):
            hollow: dict[str, Any] = {"markerfacecolor": "white", "markeredgewidth": 0.8}
            axes.plot(x, ladder.realised, linestyle="none", zorder=3, **hollow, **mark)


def _bars_figure(groups: Sequence[tuple[str, list[ComparisonRow]]]) -> Figure:
    """Plot the ledger of each row in per cent of its dense wall, around the promise.

    A row that is no evidence has a hatched background.
    """
    rows = [row for _, own in groups for row in own]
    labels, places = [], []
    figure = blank_figure(0.5 + _BAR * (len(rows) + len(groups)))
    axes = figure.add_subplot()
    hide_frame(axes, "left", axis="y", length=0)
    at = 0
    for title, own in groups:
        heading: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "style": "italic"}
        axes.text(0.0, at, title, va="center", ha="left", **heading)
        names = Counter(map(_name, own))
        for row in own:
            at += 1
            _plot_bar(axes, at, row)
            if why := evidence.row_reasons(row):
                axes.axhspan(at - 0.5, at + 0.5, zorder=-1, **ground(why))
            name = _name(row)
            labels.append(short(name if names[name] == 1 else f"{name}, {row.run}", _LABEL))
            places.append(at)
        at += 1
    axes.axvline(100, **PARITY)
    axes.set_yticks(places, labels)
    axes.set_ylim(at - 0.4, -0.6)
    axes.set_xlim(left=min(0.0, *map(_lowest, rows)))
    axes.set_xlabel("% of the dense wall")
    legend_below(figure, _bar_entries(rows))
    return figure


def _bar_entries(rows: Sequence[ComparisonRow]) -> list[Any]:
    """Return the legend of the bars: the rows that are seen, and why some are no evidence."""
    entries: list[Any] = [bar_entry("promised", ROWS["promised"])]
    entries += [
        bar_entry(LEDGER[name][0], look)
        for name, look in ROWS.items()
        if name != "promised" and any(_is_visible(row, name) for row in rows)
    ]
    diamond: dict[str, Any] = {"marker": "D", "markersize": 2.5, "color": "black"}
    entries.append(line_entry("pruned, measured", linestyle="none", **diamond))
    reasons = hatches.with_further_reasons(map(evidence.row_reasons, rows))
    return entries + [no_evidence([reason], words) for reason, words in reasons.items()]


def _is_visible(row: ComparisonRow, name: str) -> bool:
    """Return whether a row of the ledger is wide enough to be seen."""
    ledger = row.ledger or {}
    return is_visible([0.0, abs(ledger.get(name, 0.0) / ledger["dense"])], 1.0)


def _lowest(row: ComparisonRow) -> float:
    """Return where the gains of a row end, in per cent of its dense wall."""
    ledger = row.ledger or {}
    gains = sum(min(0.0, ledger.get(name, 0.0)) for name in ROWS if name != "promised")
    return 100 * (ledger["promised"] + gains) / ledger["dense"]


def _plot_bar(axes: Axes, at: int, row: ComparisonRow) -> None:
    """Plot one ledger: the promise, losses to its right, gains to its left, and the pruned wall."""
    ledger = row.ledger or {}
    per = 100 / ledger["dense"]
    promised = right = left = ledger["promised"] * per
    ground_look: dict[str, Any] = {"color": ROWS["promised"].colour, "edgecolor": "none"}
    axes.barh(at, promised, 0.66, zorder=0, gid="row-promised", **ground_look)
    for name, look in ROWS.items():
        share = 0.0 if name == "promised" else ledger.get(name, 0.0) * per
        start = right if share > 0 else left
        bar: dict[str, Any] = {"color": look.colour, "hatch": look.hatch, **EDGE}
        if share:
            axes.barh(at, share, 0.66, left=start, gid=f"row-{name}", **bar)
        right, left = (right + share, left) if share > 0 else (right, left + share)
    line: dict[str, Any] = {"color": "black", "linewidth": 1.0}
    axes.plot([promised, promised], [at - 0.36, at + 0.36], **line)
    face = "white" if evidence.row_reasons(row) else "black"
    diamond: dict[str, Any] = {"marker": "D", "markersize": 2.5, "color": "black", "zorder": 3}
    axes.plot([ledger["pruned"] * per], [at], markerfacecolor=face, gid="row-pruned", **diamond)


class ComparisonPlots:
    """The figures of a comparison, as matplotlib Figures."""

    def __init__(self, comparison: Comparison) -> None:
        self._comparison = comparison

    def speedups(self) -> Figure:
        """Plot the speedups of the runs, with intervals.

        Raises:
            PrunescopeError: No run has a speedup.
        """
        return self._first("comparison")

    def ledgers(self) -> Figure:
        """Plot where the dense wall of each run went.

        Raises:
            PrunescopeError: No run has a ledger.
        """
        return self._first("comparison-ledger")

    def _first(self, stem: str) -> Figure:
        pictures = {picture.stem: picture for picture in comparison_pictures(self._comparison)}
        with plotting():
            figure = pictures[stem].plot() if stem in pictures else None
        if figure is None:
            raise PrunescopeError(
                "no run has a speedup to plot", hint="a speedup needs a dense baseline"
            )
        return figure
