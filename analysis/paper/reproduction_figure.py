"""The paper's Fig. 5 redrawn: published speedups as bars, ours or the predicted ones as points.

In: a Reproduction. Out: files: reproduction.png and .pdf, and reproduction.csv of all numbers.
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
    PAGE,
    PARITY,
    bar_entry,
    draw_interval,
    draw_level,
    family_looks,
    legend_below,
    line_entry,
    panel_page,
    picture_files,
)
from prunescope.analysis.schema.encode import json_bytes
from prunescope.analysis.schema.reproduction import ReproducedValue, Reproduction
from prunescope.analysis.summary import evidence
from prunescope.taxonomy.paper import FIGURE_5

FORMATS = ("csv", "json", "png", "pdf", "svg")
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
    if pictures := [name for name in names if name not in texts]:
        plot = partial(_speedups_figure, reproduction)
        files |= picture_files("reproduction.{}".format, plot, pictures)
    return files


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
        return _speedups_figure(self._reproduction)


def _speedups_figure(reproduction: Reproduction) -> Figure:
    """Plot Fig. 5 again, a panel for each phase."""
    values = [value for value in reproduction.values if value.figure == FIGURE_5]
    phases = list(dict.fromkeys(str(value.phase) for value in values))
    looks = family_looks(value.name for value in values)
    colours = {name: colour for name, (colour, _) in looks.items()}
    figure, grid = panel_page(len(phases), 1, (PAGE, 2.0))
    for (axes,), phase in zip(grid, phases, strict=True):
        _plot_phase(axes, [value for value in values if value.phase == phase], colours)
        axes.set_title(f"{phase}, s = 0.5", loc="left", fontsize=7)
    measured = [value for value in values if value.ours is not None]
    entries: list[Any] = [bar_entry(name, colour) for name, colour in colours.items()]
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
    legend_below(figure, entries, columns=7)
    return figure


def _plot_phase(axes: Axes, values: Sequence[ReproducedValue], colours: dict[str, str]) -> None:
    """Plot a group of bars for each batch and length; a family has one place in each group."""
    groups = sorted({(value.batch or 0, value.prompt_len or 0) for value in values})
    width = _GROUP / len(colours)
    for value in values:
        group = groups.index((value.batch or 0, value.prompt_len or 0))
        at = group + (list(colours).index(value.name) - (len(colours) - 1) / 2) * width
        edge: dict[str, Any] = {"edgecolor": "black", "linewidth": 0.3}
        axes.bar(at, value.published, 0.9 * width, color=colours[value.name], **edge)
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
    names = [f"batch {batch}\n{length:,} tokens" for batch, length in groups]
    axes.set_xticks(range(len(groups)), names)
    axes.set_xlim(-0.5, len(groups) - 0.5)
    axes.tick_params(axis="x", length=0)
    axes.set_ylabel("speedup, dense ÷ pruned")
