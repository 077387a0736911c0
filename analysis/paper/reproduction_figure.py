"""The paper's Fig. 5 redrawn: published speedups as bars, ours or the predicted ones as points.

In: a Reproduction. Out: files: reproduction.png, .pdf and its caption, reproduction.csv of all
numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from prunescope.analysis.report.escape import csv_text
from prunescope.analysis.report.figure_style import (
    BOUND_LINE,
    EDGE,
    PARITY,
    bar_entry,
    draw_interval,
    draw_level,
    legend_below,
    line_entry,
    panel_axes,
    plotting,
)
from prunescope.analysis.report.looks import Look, family_looks
from prunescope.analysis.report.picture import Picture, files_of_pictures
from prunescope.analysis.schema.encode import json_bytes
from prunescope.analysis.schema.reproduction import ReproducedValue, Reproduction
from prunescope.analysis.summary import evidence
from prunescope.taxonomy import numbers
from prunescope.taxonomy.paper import FIGURE_5

FORMATS = ("csv", "json", "tex", "png", "pdf", "svg")
_GROUP = 0.86  # of the distance of two groups of bars
_POINT: dict[str, Any] = {"color": "black", "linestyle": "none", "markersize": 3}


def reproduction_files(
    reproduction: Reproduction, formats: Sequence[str] = ("csv", "png", "pdf")
) -> dict[str, bytes]:
    """Return the files of a reproduction, from file name to bytes.

    Args:
        reproduction: The published numbers with those of a sweep, or the predicted ones.
        formats: Some of FORMATS.
    """
    texts = {"csv": _csv, "json": json_bytes}
    names = dict.fromkeys(formats)
    files = {f"reproduction.{n}": texts[n](reproduction) for n in names if n in texts}
    pictures = [_picture(reproduction)]
    others = [name for name in names if name not in texts]
    return files | files_of_pictures(pictures, others, reproduction.tool)


def _picture(reproduction: Reproduction) -> Picture:
    values = [value for value in reproduction.values if value.figure == FIGURE_5]
    measured = [value for value in values if value.ours is not None]
    ours = f"{len(measured)} measured here" if measured else "none measured here: predicted"
    invalid = sum(value.timing_valid is False for value in measured)
    pairs = (
        f"{value.name}, {value.phase}, batch {value.batch}, {value.prompt_len:,} tokens: "
        f"{numbers.ratio(value.published)} published"
        for value in values[:1]
        if value.prompt_len
    )
    title = "Published speedups redrawn"
    return Picture(
        stem="reproduction",
        title=title,
        caption=f"{title}: {FIGURE_5} of {reproduction.source}; by family, phase, batch and "
        f"length. Bars are published, points ours or predicted, with their intervals or "
        f"ranges; lines are bounds. {len(values)} numbers, {ours}"
        + (f", {invalid} of them not valid (open)." if invalid else "."),
        alt=f"Bars of {len(values)} speedups, the first {'; '.join(pairs) or 'unknown'}.",
        plot=partial(_speedups_figure, reproduction),
    )


def _csv(reproduction: Reproduction) -> bytes:
    """Return a row for each published number; an interval is two columns at the end."""
    pairs = ("ours_ci95", "predicted_range")
    names = [name for name in ReproducedValue.__struct_fields__ if name not in pairs]
    ends = [f"{pair}_{end}" for pair in pairs for end in ("low", "high")]
    rows = (
        [
            *(getattr(value, name) for name in names),
            *(end for pair in pairs for end in getattr(value, pair) or (None, None)),
        ]
        for value in reproduction.values
    )
    return csv_text([*names, *ends], rows).encode()


class ReproductionPlots:
    """The figure of a reproduction, as a matplotlib Figure."""

    def __init__(self, reproduction: Reproduction) -> None:
        self._reproduction = reproduction

    def speedups(self) -> Figure:
        """Plot the published speedups as bars, ours or the predicted ones as points."""
        with plotting():
            return _speedups_figure(self._reproduction)


def _speedups_figure(reproduction: Reproduction) -> Figure:
    """Plot Fig. 5 again, a panel for each phase."""
    values = [value for value in reproduction.values if value.figure == FIGURE_5]
    phases = list(dict.fromkeys(str(value.phase) for value in values))
    looks = family_looks((value.name, value.name) for value in values)
    figure, every = panel_axes(len(phases), 2.2, columns=1)
    for axes, phase in zip(every, phases, strict=True):
        _plot_phase(axes, [value for value in values if value.phase == phase], looks)
        axes.set_title(f"{phase}, s = 0.5", loc="left")
    measured = [value for value in values if value.ours is not None]
    entries: list[Any] = [bar_entry(name, look) for name, look in looks.items()]
    if any(value.predicted is not None and value.ours is None for value in values):
        entries.append(line_entry("predicted, with its range", marker="o", **_POINT))
    if any(value.timing_valid is not False for value in measured):
        words = "ours at the closest setting of the sweep, 95 % interval"
        entries.append(line_entry(words, marker="D", **_POINT))
    if any(value.timing_valid is False for value in measured):
        words = f"ours, {evidence.NOT_VALID_TIMING}"
        entries.append(line_entry(words, marker="D", markerfacecolor="white", **_POINT))
    if any(value.bound is not None for value in values):
        words = "our bound" if measured else "roofline bound of the prediction"
        entries.append(line_entry(words, **BOUND_LINE))
    legend_below(figure, entries)
    return figure


def _plot_phase(axes: Axes, values: Sequence[ReproducedValue], looks: dict[str, Look]) -> None:
    """Plot a group of bars for each batch and length; a family has one place in each group."""
    groups = sorted({(value.batch or 0, value.prompt_len or 0) for value in values})
    width = _GROUP / len(looks)
    for value in values:
        group = groups.index((value.batch or 0, value.prompt_len or 0))
        at = group + (list(looks).index(value.name) - (len(looks) - 1) / 2) * width
        look = looks[value.name]
        bar: dict[str, Any] = {"color": look.colour, "hatch": look.hatch, **EDGE}
        axes.bar(at, value.published, 0.9 * width, gid=f"family-{value.name}", **bar)
        if value.bound is not None:
            draw_level(axes, at, 0.45 * width, value.bound)
        point, interval, marker = value.ours, value.ours_ci95, "D"
        if point is None:
            point, interval, marker = value.predicted, value.predicted_range, "o"
        if point is None:
            continue
        face = "white" if value.timing_valid is False else "black"
        axes.plot(at, point, marker=marker, markerfacecolor=face, **_POINT)
        draw_interval(axes, at, interval, linewidth=0.6)
    axes.axhline(1.0, **PARITY)
    shown = [n for v in values for n in (v.published, v.ours, v.predicted, v.bound) if n]
    axes.set_ylim(0, 1.12 * max(shown))
    names = [f"batch {batch}, {length:,} tokens" for batch, length in groups]
    slant: dict[str, Any] = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(range(len(groups)), names, **slant)
    axes.set_xlim(-0.5, len(groups) - 0.5)
    axes.tick_params(axis="x", length=0)
    axes.set_ylabel("speedup, dense ÷ pruned")
