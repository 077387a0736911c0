"""GEMMs replayed alone as files: in, Replays and the report of their run; out, CSV, and a figure
one column wide: time of a call over N or K, and time a kept number at each alignment.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from prunescope.analysis.report import titles
from prunescope.analysis.report.escape import clean, csv_text
from prunescope.analysis.report.figure_style import (
    COLOURS,
    MARKERS,
    PALETTE,
    REALISED,
    THIN,
    ground,
    legend,
    no_evidence,
    page_axes,
    plotting,
    saved_as,
)
from prunescope.analysis.report.records import Records
from prunescope.analysis.report.replay_records import curve_records, shape_records
from prunescope.analysis.schema.replay import AlignedTime
from prunescope.analysis.schema.report import Report
from prunescope.analysis.summary import evidence
from prunescope.taxonomy import numbers
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.replays import Replays, StepCurve

PICTURES = ("png", "pdf", "svg")
_MOST_CURVES = 4
_LEGEND_COLUMNS, _LEGEND_ROW = 3, 0.13  # height of a row of the legend, of a panel's


def replay_figure(
    curves: Sequence[StepCurve],
    alignments: Sequence[AlignedTime],
    of: str,
    disturbed: Sequence[str] = (),
) -> Figure | None:
    """Time of a call alone over N or K, with the steps that describe it; below, time a kept number
    at each alignment. None without either. `disturbed`: by what, where times are not valid."""
    shown = curves[:_MOST_CURVES]
    count = len(shown) + bool(alignments)
    if not count:
        return None
    figure, first = page_axes(0.4 + 1.5 * count, "GEMMs replayed alone, operands warm", of)
    first.remove()
    strips = figure.subplots(count, 1, squeeze=False)[:, 0]
    for axes in strips:
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(length=2.5, width=THIN)
    for axes, curve in zip(strips, shown, strict=False):
        _plot_curve(axes, curve)
    if alignments:
        _plot_alignments(strips[-1], alignments)
    if disturbed:
        reasons = [evidence.NOT_VALID_TIMING]
        for axes in strips:
            ends = axes.get_xlim()
            axes.axvspan(*ends, zorder=-1, **ground(reasons))
            axes.set_xlim(ends)
        words = clean(f"disturbed by {', '.join(disturbed)}")
        legend(figure, [no_evidence(reasons, words)], 1)
    return figure


def _plot_curve(axes: Axes, curve: StepCurve) -> None:
    unit = numbers.scale(curve.ns)
    order = sorted(zip(curve.sizes, curve.ns, strict=True))
    sizes, ns = zip(*order, strict=True)
    measured: dict[str, Any] = {"color": REALISED, "marker": "o", "markersize": 2, "linewidth": 0.5}
    axes.plot(sizes, [y / unit.per for y in ns], label="measured", **measured)
    name = titles.short(curve.role or "")
    fixed = f"K = {curve.k}" if curve.axis == "N" else f"N = {curve.n}"
    law = "no steps"
    if curve.width and curve.step_ns is not None and curve.base_ns is not None:
        law = f"steps of {curve.width}"
        fine = range(sizes[0], sizes[-1] + 1)
        law_ns = [curve.base_ns + curve.step_ns * math.ceil(x / curve.width) for x in fine]
        law_line: dict[str, Any] = {"color": COLOURS["loss"], "linewidth": 0.9}
        axes.plot(fine, [y / unit.per for y in law_ns], label="steps", **law_line)
        axes.legend(fontsize=5, frameon=False, loc="lower right")
    axes.set_ylim(bottom=0)
    axes.set_ylabel(f"{unit.unit} a call")
    what = f"{name}, M = {curve.m}, {fixed}: {law}".removeprefix(", ")
    axes.set_xlabel(f"{curve.axis}; {what}")


def _plot_alignments(axes: Axes, times: Sequence[AlignedTime]) -> None:
    keys = list(dict.fromkeys((one.role, one.axis, one.now) for one in times))[: len(PALETTE)]
    aligns = sorted({one.align for one in times})
    for i, key in enumerate(keys):
        at = {one.align: one.relative for one in times if (one.role, one.axis, one.now) == key}
        axes.plot(
            range(len(aligns)),
            [at.get(align, math.nan) for align in aligns],
            color=PALETTE[i],
            marker=MARKERS[i % len(MARKERS)],
            markersize=3,
            linewidth=0.9,
            label=f"{titles.short(key[0])} {key[1]} = {key[2]}",
        )
    axes.axhline(1.0, color="black", linewidth=THIN, linestyle=(0, (3, 2)))
    axes.set_xticks(range(len(aligns)), [str(align) for align in aligns])
    rows = math.ceil(len(keys) / _LEGEND_COLUMNS)
    highest = max(1.0, *(one.relative for one in times))
    axes.set_ylim(0, highest / (0.97 - _LEGEND_ROW * rows))
    axes.set_xlabel("alignment of the kept dimension")
    axes.set_ylabel("time a kept number")
    axes.legend(fontsize=5, frameon=False, ncols=_LEGEND_COLUMNS, loc="upper left")


def replay_files(
    replays: Replays, report: Report | None, formats: Sequence[str] = ("csv", *PICTURES)
) -> dict[str, bytes]:
    """File name to bytes: gemms.csv and curves.csv; gemms.png, .pdf and .svg where there are curves
    or alignments."""
    files: dict[str, bytes] = {}
    if "csv" in formats:
        files["gemms.csv"] = _csv(shape_records(replays))
        files["curves.csv"] = _csv(curve_records(replays))
    endings = [name for name in PICTURES if name in formats]
    if endings:
        with plotting():
            figure = _figure(replays, report)
            if figure is not None:
                for ending, data in saved_as(figure, endings).items():
                    files[f"gemms.{ending}"] = data
    return files


class ReplayPlots:
    """The figure of replayed GEMMs, as a matplotlib Figure."""

    def __init__(self, replays: Replays, report: Report | None) -> None:
        self._of = replays, report

    def curves(self) -> Figure:
        """Time over N or K, and time a kept number at each alignment. Raises PrunescopeError where
        neither was replayed."""
        with plotting():
            figure = _figure(*self._of)
        if figure is None:
            raise PrunescopeError(
                "no GEMM was replayed over N or K, or at several alignments",
                hint="give four sizes of n= or k= or more, or a run whose GEMMs were pruned",
            )
        return figure


def _figure(replays: Replays, report: Report | None) -> Figure | None:
    aligned = [
        one
        for phase in (report.phases.values() if report is not None else ())
        for one in (phase.replay.alignments if phase.replay is not None else ())
    ]
    device = replays.device.name or ""
    return replay_figure(replays.curves, aligned, device, replays.disturbed)


def _csv(table: Records) -> bytes:
    return csv_text(table.columns, (row.values() for row in table), quoted=False).encode()
