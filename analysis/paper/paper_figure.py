"""Why a sweep lacks one of the paper's kinds of figure, and what these figures share.

That is: which points they show, bars with intervals and validity, panels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from prunescope.analysis.report.figure_style import EDGE, most_panels, panel_axes
from prunescope.analysis.report.hatches import MARKS, marked, marks_of_point
from prunescope.analysis.report.looks import Look, family_looks
from prunescope.analysis.report.picture import Row
from prunescope.analysis.report.sweep_setting import (
    setting_of_points,
    shared_settings,
    split_setting,
)
from prunescope.analysis.report.titles import short
from prunescope.analysis.schema.pareto import Pareto, SweepCell, SweepPoint
from prunescope.taxonomy.keep import ALIGNMENTS, alignment_size, is_just

MODEL, LAYER = "model", "layer"  # what ran
ALIGN = "align="
_USUAL_ALIGNMENT = ("paper", "16")  # what families round to without the knob
_LONGEST_TITLE = 64  # characters of the title of a panel
_LONGEST_NAME = 32  # characters of a family: more leave no room for its panel
_HEIGHT = 2.5  # inches: a panel, at most


@dataclass(frozen=True)
class MissingFigure:
    """A figure that the sweep has no data for. `key` says what to add to the sweep, or to run."""

    name: str
    reason: str
    key: str

    def __str__(self) -> str:
        return f"not plotted: {self.name}: {self.reason}; {self.key}"


@dataclass(frozen=True)
class Panel:
    """A phase, batch and length, with the points that are shown there.

    `shared` has the settings that all panels have in common, which the caption says; batch and
    length are not among them.
    """

    phase: str
    cell: SweepCell
    points: list[SweepPoint]
    shared: frozenset[str] = frozenset()

    @property
    def title(self) -> str:
        """A title, as `prefill, batch 1, 64 tokens`."""
        size, settings = split_setting(self.cell.where)
        own = [word for word in settings if word not in self.shared]
        return short(", ".join([self.phase, *size, *own]), _LONGEST_TITLE)

    def row_of(self, point: SweepPoint) -> Row:
        """Return the first numbers of a point: where it is, its family and sparsity."""
        where: Row = {"phase": self.phase, "setting": self.cell.where}
        return {**where, "family": family_label(point), "sparsity": point.sparsity}


def fields(struct: Any, *names: str) -> Row:
    """Return some fields of a struct as numbers of a row, under their own names."""
    return {name: getattr(struct, name) for name in names}


def interval_ends(ci95: Sequence[float] | None, prefix: str = "") -> Row:
    """Return the ends of an interval as two numbers of a row; None where there is no interval."""
    low, high = ci95 or (None, None)
    return {f"{prefix}low": low, f"{prefix}high": high}


def panels(
    pareto: Pareto,
    choose: Callable[[list[SweepPoint]], list[SweepPoint]] = list,
    *,
    only: str = MODEL,
) -> list[Panel]:
    """Return the panels of a sweep that have points.

    Args:
        pareto: The comparison of the sweep.
        choose: Picks the points to show out of those of one phase, batch and length.
        only: MODEL for results of whole models, LAYER for those of one layer alone.
    """
    every = (
        Panel(name, cell, choose(phase.points_in(cell)))
        for name, phase in pareto.phases.items()
        for cell in phase.cells
        if cell.only == only
    )
    shown = [panel for panel in every if panel.points]
    shared = frozenset(shared_settings(panel.cell.where for panel in shown))
    return [replace(panel, shared=shared) for panel in shown]


def alignment(point: SweepPoint) -> str | None:
    """Return the alignment of a point; None if the sweep does not vary it."""
    return next((knob.removeprefix(ALIGN) for knob in point.set if knob.startswith(ALIGN)), None)


def usually_aligned(points: Iterable[SweepPoint]) -> list[SweepPoint]:
    """Return the points of one alignment for each family.

    It is the usual one, or the largest if a family has no point of that. A point without the knob
    stands for its family and sparsity alone.
    """
    points = list(points)
    kept: dict[str, str] = {}
    for point in points:
        align = alignment(point)
        if align is not None and _rank(align) > _rank(kept.get(point.family)):
            kept[point.family] = align
    plain = {(family_label(p), p.sparsity) for p in points if alignment(p) is None}
    return [
        p
        for p in points
        if alignment(p) is None
        or (alignment(p) == kept[p.family] and (family_label(p), p.sparsity) not in plain)
    ]


def _rank(align: str | None) -> tuple[int, bool]:
    """Return a sort key: the usual alignment is last, before it the larger ones.

    Of two of one size, a multiple ranks above an alignment of just that size.
    """
    if align is None:
        return 0, False
    if align in _USUAL_ALIGNMENT:
        return 1 << 30, True
    return size_of(align), align in ALIGNMENTS and not is_just(align)


def size_of(align: str) -> int:
    """Return the number that divides the dimensions; 0 for a name that is no alignment.

    The settings in the folder of a sweep may have any name.
    """
    return alignment_size(align) if align in ALIGNMENTS else 0


def looks_of(points: Iterable[SweepPoint]) -> dict[str, Look]:
    """Return the look of each family without its alignment, in the order of the sweep."""
    return family_looks((family_label(point), point.family) for point in points)


def families_of(points: Iterable[SweepPoint]) -> list[str]:
    """Return the labels of the families without the alignment, in the order of the sweep."""
    return list(dict.fromkeys(map(family_label, points)))


def family_label(point: SweepPoint) -> str:
    """Return the label of a point without its alignment."""
    words = [point.select] if point.select else []
    words += [knob for knob in point.set if not knob.startswith(ALIGN)]
    return f"{point.method} ({', '.join(words)})" if words else point.method


def points_of(shown: Iterable[Panel]) -> list[SweepPoint]:
    """Return the points of all panels."""
    return [point for panel in shown for point in panel.points]


def fit_page(shown: Sequence[Panel]) -> list[Panel]:
    """Return the panels that fit on a page, the same number for each phase."""
    phases = list(dict.fromkeys(panel.phase for panel in shown))
    each = max(1, most_panels(_HEIGHT) // len(phases))
    return [p for phase in phases for p in [q for q in shown if q.phase == phase][:each]]


def stacked(
    axes: Axes,
    at: float,
    parts: Mapping[str, float],
    looks: Mapping[str, Look],
    width: float,
) -> None:
    """Draw a bar of parts, one on the other.

    Args:
        axes: The axes.
        at: The place of the bar.
        parts: The height of each part, the lowest first.
        looks: The look of each part.
        width: The width of the bar.
    """
    top = 0.0
    for name, height in parts.items():
        look: dict[str, Any] = {"color": looks[name].colour, "hatch": looks[name].hatch, **EDGE}
        axes.bar(at, height, width, bottom=top, gid=f"part-{name}", **look)
        top += height


def with_marks(family: str, points: Iterable[SweepPoint]) -> str:
    """Return a family with the marks of its points, for a legend."""
    own = [point for point in points if family_label(point) == family]
    return marked(short(family, _LONGEST_NAME), *own)


def named(point: SweepPoint) -> str:
    """Return family and nominal sparsity of a point, with its marks."""
    share = "" if point.sparsity is None else f" {point.sparsity:g}"
    return marked(f"{short(family_label(point), _LONGEST_NAME)}{share}", point)


def slant_names(axes: Axes, names: Sequence[str]) -> None:
    """Write slanted names below bars."""
    axes.set_xticks(range(len(names)), names, rotation=40, ha="right", rotation_mode="anchor")
    axes.tick_params(axis="x", length=0)
    axes.set_xlim(-0.6, len(names) - 0.4)


def panel_grid(shown: Sequence[Panel], height: float) -> tuple[Figure, list[tuple[Axes, Panel]]]:
    """Return a figure, and axes with a title for each of its panels, `height` inches each."""
    figure, every = panel_axes(len(shown), height)
    for axes, panel in zip(every, shown, strict=True):
        axes.set_title(panel.title, loc="left")
    return figure, list(zip(every, shown, strict=True))


def caption_end(pareto: Pareto, shown: Sequence[Panel], *, is_whole: bool = False) -> str:
    """Return the last sentences of a caption: marks, panels without room, and the set-up.

    Args:
        pareto: The comparison of the sweep.
        shown: The panels that the CSV has.
        is_whole: Whether the figure has room for all of them.
    """
    points = points_of(shown)
    used = "".join(map(marks_of_point, points))
    text = "".join(f" {mark} {words}." for mark, words in MARKS.items() if mark in used)
    left = len(shown) - len(fit_page(shown))
    if left and not is_whole:
        text += f" {left} more settings are in the CSV."
    return f"{text} {setup_words(pareto, shown)}"


def setup_words(pareto: Pareto, shown: Sequence[Panel]) -> str:
    """Return the last sentences of a caption: what was measured, where, how often."""
    phases = list(dict.fromkeys(panel.phase for panel in shown))
    return setting_of_points(pareto, phases, points_of(shown))
