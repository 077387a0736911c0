"""The paper's Fig. 5 redrawn: published speedups as bars, ours or the predicted ones as points.

In: a Reproduction. Out: files: reproduction.png and .pdf, and reproduction.csv of all numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from prunescope.analysis.report.escape import csv_text
from prunescope.analysis.report.figure_style import family_looks, plotting, saved_as
from prunescope.analysis.report.paper_figure import PAGE, page, patch
from prunescope.analysis.report.pareto_figures import legend_below
from prunescope.analysis.schema.reproduction import ReproducedValue, Reproduction
from prunescope.analysis.summary import evidence
from prunescope.taxonomy.paper import FIGURE_5

_NAME, _GROUP = "reproduction", 0.86
_BLACK: dict[str, Any] = {"color": "black", "linestyle": "none", "markersize": 3}


FORMATS = ("csv", "json", "png", "pdf", "svg")


def reproduction_files(
    found: Reproduction, formats: Sequence[str] = ("csv", "png", "pdf")
) -> dict[str, bytes]:
    """File name to bytes, of some of FORMATS."""
    files: dict[str, bytes] = {}
    for name in dict.fromkeys(formats):
        if name == "csv":
            files[f"{_NAME}.csv"] = _csv(found)
        elif name == "json":
            files[f"{_NAME}.json"] = msgspec.json.format(msgspec.json.encode(found), indent=2)
    if pictures := [name for name in dict.fromkeys(formats) if name not in ("csv", "json")]:
        with plotting():
            plots = saved_as(speedups_figure(found), pictures)
        files |= {f"{_NAME}.{name}": data for name, data in plots.items()}
    return files


def _csv(found: Reproduction) -> bytes:
    pairs = ("ours_ci95", "predicted_range")
    names = [name for name in ReproducedValue.__struct_fields__ if name not in pairs]
    ends = [f"{pair}_{end}" for pair in pairs for end in ("low", "high")]
    rows = (
        [
            *(getattr(one, name) for name in names),
            *(end for pair in pairs for end in getattr(one, pair) or (None, None)),
        ]
        for one in found.values
    )
    return csv_text([*names, *ends], rows).encode()


class ReproductionPlots:
    """The figure of a reproduction, as a matplotlib Figure."""

    def __init__(self, found: Reproduction) -> None:
        self._found = found

    def speedups(self) -> Figure:
        """The published speedups as bars, ours or the predicted ones as points."""
        return speedups_figure(self._found)


def speedups_figure(found: Reproduction) -> Figure:
    """Fig. 5 redrawn, a panel a phase."""
    values = [one for one in found.values if one.figure == FIGURE_5]
    phases = list(dict.fromkeys(str(one.phase) for one in values))
    colours = {name: colour for name, (colour, _) in family_looks(list(_families(values))).items()}
    figure, grid = page(len(phases), 1, (PAGE, 2.0))
    for (axes,), phase in zip(grid, phases, strict=True):
        _panel(axes, [one for one in values if one.phase == phase], colours)
        axes.set_title(f"{phase}, s = 0.5", loc="left", fontsize=7)
    handles: list[Any] = [patch(colour, name) for name, colour in colours.items()]
    if any(one.predicted is not None and one.ours is None for one in values):
        handles.append(Line2D([], [], marker="o", label="predicted, with its range", **_BLACK))
    if any(one.ours is not None and one.timing_valid is not False for one in values):
        words = "ours at the closest setting of the sweep, 95 % interval"
        handles.append(Line2D([], [], marker="D", label=words, **_BLACK))
    if any(one.ours is not None and one.timing_valid is False for one in values):
        look = {**_BLACK, "markerfacecolor": "white"}
        words = f"ours, {evidence.NOT_VALID_TIMING}"
        handles.append(Line2D([], [], marker="D", label=words, **look))
    if any(one.bound is not None for one in values):
        bound = "roofline bound of the prediction" if not _measured(values) else "our bound"
        handles.append(Line2D([], [], color="black", linewidth=1.2, label=bound))
    legend_below(figure, handles, columns=7)
    return figure


def _measured(values: Sequence[ReproducedValue]) -> bool:
    return any(one.ours is not None for one in values)


def _families(values: Sequence[ReproducedValue]) -> dict[str, None]:
    return dict.fromkeys(one.name for one in values)


def _panel(axes: Axes, values: Sequence[ReproducedValue], colours: dict[str, str]) -> None:
    """A group of bars a batch and length."""
    groups = sorted({(one.batch or 0, one.prompt_len or 0) for one in values})
    width = _GROUP / len(colours)
    for one in values:
        at = groups.index((one.batch or 0, one.prompt_len or 0))
        at_x = at + (list(colours).index(one.name) - (len(colours) - 1) / 2) * width
        axes.bar(
            at_x,
            one.published,
            0.9 * width,
            color=colours[one.name],
            edgecolor="black",
            linewidth=0.3,
        )
        if one.bound is not None:
            half = 0.45 * width
            axes.plot([at_x - half, at_x + half], [one.bound] * 2, color="black", linewidth=1.2)
        ours, ends, marker = one.ours, one.ours_ci95, "D"
        if ours is None:
            ours, ends, marker = one.predicted, one.predicted_range, "o"
        if ours is None:
            continue
        face = "white" if one.timing_valid is False else "black"
        axes.plot(at_x, ours, marker=marker, markerfacecolor=face, **_BLACK)
        if ends is not None:
            axes.plot([at_x, at_x], ends, color="black", linewidth=0.6)
    axes.axhline(1.0, color="black", linewidth=0.6, linestyle=(0, (3, 2)))
    shown = [v for one in values for v in (one.published, one.ours, one.predicted, one.bound) if v]
    axes.set_ylim(0, 1.12 * max(shown))
    axes.set_xticks(
        range(len(groups)), [f"batch {batch}\n{length:,} tokens" for batch, length in groups]
    )
    axes.set_xlim(-0.5, len(groups) - 0.5)
    axes.tick_params(axis="x", length=0)
    axes.set_ylabel("speedup, dense ÷ pruned")
