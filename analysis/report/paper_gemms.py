"""The paper's study of GEMM shapes: the speedup of one GEMM over the removed share of N or K.

In: speedups of GEMMs that `prunescope gemm` replayed alone. The largest size of a curve is the
dense one; tiles and waves make steps where N shrinks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from prunescope.analysis.report.escape import clean
from prunescope.analysis.report.figure_style import ground, no_evidence
from prunescope.analysis.report.paper_figure import (
    MissingFigure,
    PaperFigure,
    Row,
    ends,
    two_columns,
)
from prunescope.analysis.report.pareto_figures import legend_below
from prunescope.analysis.schema.replay import SpeedupCurve
from prunescope.analysis.summary import evidence

_MOST = 6  # curves: three rows of two
_MEASURED, _LAW = "#0072B2", "#D55E00"
_SIZES = {"N": "output features", "K": "input features"}


def gemm_steps(curves: Sequence[SpeedupCurve]) -> PaperFigure | MissingFigure:
    """The steps of GEMMs that were replayed alone over N or K."""
    name, title = "gemms", "GEMM steps"
    if not curves:
        return MissingFigure(
            name,
            "no GEMM was replayed over N or K",
            "run `prunescope gemm RUN` on a run of the sweep, or give --gemm FILE of "
            "`prunescope gemm --m M --n LOW:HIGH:STEP --k K --json FILE`",
        )
    devices = dict.fromkeys(str(one.device) for one in curves)
    samples = " and ".join(
        dict.fromkeys(f"n = {one.repeats} samples in {one.placements} placements" for one in curves)
    )
    return PaperFigure(
        name=name,
        title=title,
        caption=f"{title}: speedup of one GEMM [M, K] × [K, N] alone, warm operands, over the share"
        " of N or K that is removed (points), in proportion to the size (dotted) and by roofline "
        f"(dashed); steps of tiles and waves where they describe it better than a line. "
        f"{', '.join(devices)}; {samples} of each size, the ratio of geometric means over "
        "placements of medians; whiskers: its 95 % interval, with the noise of both times, cut "
        f"where it leaves the panel.{_hatched(curves)}",
        rows=[row for one in curves for row in _rows(one)],
        plot=lambda: _figure(curves[:_MOST]),
    )


def _disturbed(curves: Sequence[SpeedupCurve]) -> str:
    """The reasons why times are not valid; else empty."""
    found = dict.fromkeys(why for one in curves for why in one.disturbed)
    return f"disturbed by {', '.join(found)}" if found else ""


def _hatched(curves: Sequence[SpeedupCurve]) -> str:
    """Which points are hatched, for a caption."""
    count, why = sum(not one.timing_valid for one in curves), _disturbed(curves)
    return f" Hatched: {count} of {len(curves)} curves, {why}: no evidence." if why else ""


def _rows(one: SpeedupCurve) -> list[Row]:
    curve, dense = one.curve, one.points[-1]
    return [
        {
            "role": curve.role,
            "phase": curve.phase,
            "axis": curve.axis,
            "m": curve.m,
            "n": curve.gemm(point.size).n,
            "k": curve.gemm(point.size).k,
            "dtype": curve.dtype,
            "size": point.size,
            "gone": point.gone,
            "ns": point.ns,
            **ends(point.ci95),
            "speedup": point.speedup,
            **ends(point.speedup_ci95, "speedup_"),
            "proportional": dense.size / point.size,
            "roofline_bound": point.roofline,
            "width": curve.width,
            "timing_valid": one.timing_valid,
            "disturbed": ", ".join(one.disturbed),
        }
        for point in one.points
    ]


def _has_roofline(one: SpeedupCurve) -> bool:
    return all(point.roofline is not None for point in one.points)


def _figure(curves: Sequence[SpeedupCurve]) -> Figure:
    figure, every = two_columns(len(curves), 2.1)
    for axes, one in zip(every, curves, strict=True):
        _panel(axes, one)
    black: dict[str, Any] = {"color": "black", "linewidth": 0.8}
    handles: list[Any] = [
        Line2D([], [], color=_MEASURED, marker="o", markersize=3, linewidth=0.6, label="measured"),
        Line2D([], [], linestyle=":", label="in proportion to the size", **black),
    ]
    if any(map(_has_roofline, curves)):
        handles.append(Line2D([], [], linestyle=(0, (4, 2)), label="roofline", **black))
    if any(one.curve.width for one in curves):
        handles.append(Line2D([], [], color=_LAW, linewidth=0.9, label="steps"))
    if words := _disturbed(curves):
        handles.append(no_evidence([evidence.NOT_VALID_TIMING], clean(words)))
    legend_below(figure, handles, columns=4)
    return figure


def _panel(axes: Axes, one: SpeedupCurve) -> None:
    curve, points, dense = one.curve, one.points, one.points[-1]
    removed = [point.gone for point in points]
    if not one.timing_valid:
        axes.axvspan(-0.02, 1.02, zorder=-1, **ground([evidence.NOT_VALID_TIMING]))
    speedups = [point.speedup for point in points]
    axes.plot(removed, speedups, color=_MEASURED, marker="o", markersize=3, linewidth=0.6)
    for point in points:
        if point.speedup_ci95 is not None:
            axes.plot([point.gone] * 2, point.speedup_ci95, color=_MEASURED, linewidth=0.6)
    proportional = [dense.size / point.size for point in points]
    axes.plot(removed, proportional, color="black", linewidth=0.8, linestyle=":")
    if _has_roofline(one):
        bounds = [point.roofline or 0.0 for point in points]
        axes.plot(removed, bounds, color="black", linewidth=0.8, linestyle=(0, (4, 2)))
    if curve.width and curve.step_ns is not None and curve.base_ns is not None:
        fine = range(points[0].size, dense.size + 1)
        law = [curve.base_ns + curve.step_ns * math.ceil(size / curve.width) for size in fine]
        axes.plot(
            [1 - size / dense.size for size in fine],
            [dense.ns / ns for ns in law],
            color=_LAW,
            linewidth=0.9,
            zorder=1,
        )
    axes.set_ylim(0, 1.06 * max(*speedups, *proportional))
    axes.set_xlim(-0.02, max(removed) + 0.02)
    fixed = f"K = {curve.k:,}" if curve.axis == "N" else f"N = {curve.n:,}"
    what = [curve.role or "GEMM", *([curve.phase] if curve.phase else [])]
    axes.set_title(
        clean(f"{', '.join(what)}: M = {curve.m:,}, {fixed}, {curve.dtype}"), loc="left", fontsize=7
    )
    axes.set_xlabel(f"share of {curve.axis} = {dense.size:,} {_SIZES[curve.axis]} that is removed")
    axes.set_ylabel("speedup over the largest size")
